"""Writes sampling.json: which tokens transformers' warpers keep, for made-up logits.

usage: python make_sampling.py   (numpy, torch, transformers)
"""
import json
import pathlib

import torch
from transformers.generation.logits_process import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

torch.manual_seed(20)
cases = []
for temperature, top_k, top_p in [
    (1.0, 0, 0.9), (1.0, 0, 0.5), (1.0, 0, 0.05), (0.7, 0, 0.95), (1.5, 0, 0.9), (1.0, 10, 1.0),
    (1.0, 10, 0.8), (0.5, 3, 0.9), (2.0, 20, 0.99), (1.0, 1, 1.0), (1.0, 0, 0.999),
]:
    logits = (torch.randn(1, 48) * 2).round(decimals=3)
    scores = TemperatureLogitsWarper(temperature)(None, logits)
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    cumulative = scores.double().softmax(-1).sort(descending=True).values.cumsum(-1)
    assert (cumulative - top_p).abs().min() > 3e-6 or top_p == 1.0, "too close to the limit"
    if top_p < 1.0:
        scores = TopPLogitsWarper(top_p)(None, scores)
    kept = scores[0].isfinite().nonzero()[:, 0].tolist()
    cases.append({
        "logits": [round(x, 3) for x in logits[0].tolist()],
        "temperature": temperature, "top_k": top_k, "top_p": top_p, "kept": kept,
    })
text = ",\n".join(json.dumps(case) for case in cases)
pathlib.Path(__file__).with_name("sampling.json").write_text(f"[\n{text}\n]\n")
