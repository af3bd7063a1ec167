"""Writes dedup.json: made-up texts with planted near duplicates, and which of them are kept when
datasketch's MinHashLSH proposes pairs and exact Jaccard decides."""

import json
import random
import re
import sys

from datasketch import MinHash, MinHashLSH

MIN_JACCARD = 0.7
random.seed(3)
WORDS = [a + b for a in ["ba", "du", "ki", "lo", "me", "na", "po"] for b in ["ri", "sul", "ten", "vo", "zek"]]


def shingles(text):
    words = re.findall(r"\w+", text.lower())
    n = min(5, len(words))
    return {" ".join(words[i : i + n]) for i in range(len(words) - n + 1)}


texts = []
for i in range(24):
    words = random.choices(WORDS, k=60)
    texts.append(" ".join(words))
    if i % 3 == 0:  # An exact copy but for case, and one with a word changed at the end.
        texts.append(" ".join(words).upper())
        texts.append(" ".join(words[:-1] + ["changed"]))
    if i % 3 == 1:  # Half of it: similar, but below the threshold.
        texts.append(" ".join(words[:30] + random.choices(WORDS, k=30)))
random.shuffle(texts)

lsh = MinHashLSH(num_perm=112, params=(14, 8))
sets, parents = [shingles(text) for text in texts], list(range(len(texts)))


def root(i):
    return i if parents[i] == i else root(parents[i])


for i, items in enumerate(sets):
    signature = MinHash(num_perm=112, seed=1)
    signature.update_batch([item.encode() for item in items])
    for j in sorted(int(key) for key in lsh.query(signature)):
        if len(items & sets[j]) / len(items | sets[j]) >= MIN_JACCARD:
            a, b = sorted((root(i), root(j)))
            parents[b] = a
    lsh.insert(str(i), signature)
kept = [i for i in range(len(texts)) if root(i) == i]
json.dump({"texts": texts, "kept": kept}, sys.stdout, indent=0)
print()
