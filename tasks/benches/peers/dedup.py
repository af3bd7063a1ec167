#!/usr/bin/env python3
"""The datasketch side of `sbp bench dedup`: dedup.py TEXT

Needs datasketch. TEXT is any UTF-8 file; its paragraphs are the documents. Signatures of 128 functions
over windows of 13 words, the windows not counted. CPU-seconds of one thread, one JSON line.
"""
import json, sys, time

import datasketch

documents = [text.split() for text in open(sys.argv[1], encoding="utf-8").read().split("\n\n")]
documents = [words for words in documents if len(words) >= 13][:2000]
shingles = [[" ".join(words[i:i + 13]).encode() for i in range(len(words) - 12)] for words in documents]
n_bytes = sum(len(" ".join(words).encode()) for words in documents)
start = time.process_time()
for windows in shingles:
    datasketch.MinHash(num_perm=128, seed=1).update_batch(windows)
seconds = time.process_time() - start
print(json.dumps({
    "datasketch": datasketch.__version__, "documents": len(documents), "text_mb": n_bytes / 1e6,
    "minhash_mb_per_s_core": round(n_bytes / 1e6 / seconds, 2),
}))
