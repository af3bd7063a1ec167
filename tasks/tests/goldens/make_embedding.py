"""Makes qwen3-embedding/: a tiny random embedding model in shards, and what transformers embeds with it.

    python make_embedding.py        (torch, transformers, tokenizers)

The folder is what `save_pretrained` of a headless `Qwen3Model` writes, in several shards with an index,
with a byte-level tokenizer whose template ends every text in `<|endoftext|>`, as that of
Qwen3-Embedding-0.6B does. `golden.json` holds texts, their ids, and vectors by layer and pooling.
"""

import json
import pathlib

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

HERE = pathlib.Path(__file__).parent / "qwen3-embedding"
TEXTS = [
    "", "a", "The cat sat on the mat.", "Der Fuchs läuft über die Brücke: 狐が橋を渡る。",
    "one two three four five six seven eight nine ten eleven twelve " * 3, "x" * 127,
]


def tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(alphabet)}
    vocab["Ġt"], vocab["he"], vocab["Ġthe"] = 256, 257, 258
    inner = Tokenizer(models.BPE(vocab, [("Ġ", "t"), ("h", "e"), ("Ġt", "he")]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<|endoftext|>"])
    end = inner.token_to_id("<|endoftext|>")
    inner.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", end)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|endoftext|>"), end


def main():
    torch.manual_seed(7)
    words, end = tokenizer()
    config = Qwen3Config(
        vocab_size=264, hidden_size=16, intermediate_size=24, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=256,
        rope_theta=1e6, tie_word_embeddings=True, eos_token_id=end, bos_token_id=None,
        initializer_range=0.3,
    )
    model = Qwen3Model(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                p.copy_(1 + 0.3 * torch.randn_like(p))
    model.save_pretrained(HERE, max_shard_size="12KB")
    words.save_pretrained(HERE)
    for extra in ["tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"]:
        (HERE / extra).unlink(missing_ok=True)
    model = model.double()
    cases = []
    for text in TEXTS:
        ids = words(text)["input_ids"]
        with torch.inference_mode():
            states = model(torch.tensor([ids]), output_hidden_states=True)
        unit = lambda v: torch.nn.functional.normalize(v, dim=-1).tolist()
        middle = states.hidden_states[2][0]
        cases.append({
            "text": text, "ids": ids, "last": unit(states.last_hidden_state[0, -1]),
            "middle_last": unit(middle[-1]), "middle_mean": unit(middle.mean(0)),
        })
    (HERE / "golden.json").write_text(json.dumps(cases, ensure_ascii=False))


main()
