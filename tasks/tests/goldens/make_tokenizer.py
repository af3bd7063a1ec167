"""Writes tokenizer.json: merges and ids of Python's `tokenizers` for made-up texts."""

import json
import random
import sys

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

random.seed(7)
SYLLABLES = ["ba", "du", "ki", "lo", "mer", "nast", "po", "ri", "sul", "ten", "vo", "ze"]
WORDS = ["".join(random.choices(SYLLABLES, k=random.randint(1, 3))) for _ in range(120)]
WEIGHTS = [1 / (i + 1) for i in range(len(WORDS))]
TEXTS = [" ".join(random.choices(WORDS, WEIGHTS, k=30)).capitalize() + "." for _ in range(12)]
TEXTS += [
    "fn main() {\n    println!(\"{}\", 1 + 23);\n}\n\n\n// it's    done\t\tnow",
    "naïve façade – “quoted” … 日本語のテキスト 🦀🦀 émigré \u00a0 x",
    "  leading, trailing  ",
]

tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
trainer = trainers.BpeTrainer(
    vocab_size=350,
    min_frequency=2,
    special_tokens=["<|bos|>", "<|eos|>", "<|sep|>", "<|pad|>"],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
)
tokenizer.train_from_iterator(TEXTS, trainer)
merges = json.loads(tokenizer.to_str())["model"]["merges"]
ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]
json.dump({"texts": TEXTS, "merges": merges, "ids": ids}, sys.stdout, ensure_ascii=False)
print()
