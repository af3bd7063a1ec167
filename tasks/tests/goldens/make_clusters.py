"""Writes clusters.json: the clusters that datasketch's MinHashLSH with exact Jaccard finds among 5,000
documents with planted near-duplicates. The documents are made by `document`, here and in
`tasks/src/dedup/tests.rs`; `texts` is a checksum of them all. Needs `pip install datasketch`."""

import json
import sys
from collections import defaultdict

from datasketch import MinHash, MinHashLSH

N, N_WORDS, VOCABULARY = 5000, 200, 3000
MIN_JACCARD = 0.75
MASK = (1 << 64) - 1


def random(*key):
    """splitmix64 over the parts of a key."""
    state = 0
    for part in key:
        state = (state ^ part) + 0x9E3779B97F4A7C15 & MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & MASK
        state ^= state >> 31
    return state


def document(i):
    """200 words; every fourth repeats an earlier document with up to 24 words changed."""
    source = random(1, i) % i if i % 4 == 3 else None
    words = document(source) if source is not None else [random(0, i, j) % VOCABULARY for j in range(N_WORDS)]
    if source is not None:
        for change in range(random(2, i) % 25):
            words[random(3, i, change) % N_WORDS] = random(4, i, change) % VOCABULARY
    return words


texts = [" ".join(f"w{word}" for word in document(i)) for i in range(N)]
checksum = 0xCBF29CE484222325
for text in texts:
    for byte in text.encode():
        checksum = (checksum ^ byte) * 0x100000001B3 & MASK

sets = []
for text in texts:
    words = text.split(" ")
    sets.append({" ".join(words[j : j + 5]) for j in range(len(words) - 4)})


def clusters(pairs):
    parents = list(range(N))

    def root(i):
        while parents[i] != i:
            i = parents[i]
        return i

    for i, j in pairs:
        if len(sets[i] & sets[j]) / len(sets[i] | sets[j]) >= MIN_JACCARD:
            a, b = sorted((root(i), root(j)))
            parents[b] = a
    return [root(i) for i in range(N)]


lsh = MinHashLSH(num_perm=128, params=(32, 4))
candidates = []
for i, items in enumerate(sets):
    signature = MinHash(num_perm=128, seed=1)
    signature.update_batch([item.encode() for item in items])
    candidates += [(i, j) for j in lsh.query(signature)]
    lsh.insert(i, signature)
found = clusters(candidates)

index, exact = defaultdict(list), set()
for i, items in enumerate(sets):
    for item in items:
        exact.update((i, j) for j in index[item])
        index[item].append(i)
assert found == clusters(exact), "datasketch missed a pair"

dropped = [[i, root] for i, root in enumerate(found) if root != i]
json.dump({"texts": f"{checksum:016x}", "dropped": dropped}, sys.stdout, separators=(",", ":"))
print()
