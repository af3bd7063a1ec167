"""Writes shapes.json: losses and gradients of transformers' Qwen3 over many shapes, and 100 steps of AdamW.

usage: python make_shapes.py   (numpy, torch, transformers)

Weights are those of `make_generate.py`: a function of their place, so that the golden holds results
only. A stream is documents of the lengths given, each attended alone; every gradient is told by its
length and its product with a vector of `noise`, which an error anywhere in it would change.
"""
import json
import math
import pathlib

import numpy as np
import torch
from make_generate import fill, noise
from transformers import Qwen3Config, Qwen3ForCausalLM

VOCAB = 61
# The place from which the vectors that gradients are multiplied with are drawn.
PROBE = 1 << 24
CASES = [
    dict(heads=2, kv_heads=2, head_dim=32, tied=True, lengths=[1, 2, 513]),
    dict(heads=3, kv_heads=1, head_dim=64, tied=False, lengths=[257, 64, 63, 65]),
    dict(heads=4, kv_heads=1, head_dim=128, tied=True, lengths=[130, 1, 300]),
    dict(heads=1, kv_heads=1, head_dim=128, tied=False, lengths=[512]),
    dict(heads=6, kv_heads=2, head_dim=32, tied=True, lengths=[33, 33, 33, 100, 7]),
    dict(heads=8, kv_heads=2, head_dim=64, tied=False, lengths=[1] * 20 + [400, 129]),
]
STEPS, RATE, DECAY, CLIP = 100, 2e-3, 0.1, 1.0


def model_of(case):
    config = Qwen3Config(
        vocab_size=VOCAB, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
        num_attention_heads=case["heads"], num_key_value_heads=case["kv_heads"],
        head_dim=case["head_dim"], max_position_embeddings=1024, rms_norm_eps=1e-6,
        rope_theta=5e5, tie_word_embeddings=case["tied"], attention_bias=False,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        fill(model, config)
    return model.double(), config


def ids_of(case):
    n = sum(case["lengths"])
    ids = ((noise(PROBE // 2, n).astype(np.float64) + 0.5) * VOCAB).astype(int).tolist()
    documents, at = [], 0
    for length in case["lengths"]:
        documents.append(ids[at:at + length])
        at += length
    return documents


def losses(model, documents):
    """The loss of every token that has a next one in its document."""
    nll = []
    for ids in documents:
        if len(ids) > 1:
            logits = model(torch.tensor([ids])).logits[0, :-1]
            nll.append(torch.nn.functional.cross_entropy(
                logits, torch.tensor(ids[1:]), reduction="none"))
    return torch.cat(nll)


def parts(model, config):
    """Parameters in the order of the arena, with those that are one matrix there together."""
    yield [model.model.embed_tokens.weight]
    for layer in model.model.layers:
        a, m = layer.self_attn, layer.mlp
        yield [layer.input_layernorm.weight]
        yield [a.q_proj.weight, a.k_proj.weight, a.v_proj.weight]
        yield [a.q_norm.weight]
        yield [a.k_norm.weight]
        yield [a.o_proj.weight]
        yield [layer.post_attention_layernorm.weight]
        yield [m.gate_proj.weight, m.up_proj.weight]
        yield [m.down_proj.weight]
    yield [model.model.norm.weight]
    if not config.tie_word_embeddings:
        yield [model.lm_head.weight]


def short(values):
    return [float(f"{x:.8g}") for x in values]


def shape(case):
    model, config = model_of(case)
    nll = losses(model, ids_of(case))
    nll.mean().backward()
    gradients, at = [], PROBE
    for part in parts(model, config):
        g = np.concatenate([p.grad.numpy().ravel() for p in part])
        probe = noise(at, g.size).astype(np.float64)
        at += g.size
        gradients.append(short([np.linalg.norm(g), g @ probe]))
    return {**case, "nll": short(nll.tolist()), "gradients": gradients}


def history(case):
    model, config = model_of(case)
    documents = ids_of(case)
    matrices, others = [], []
    for name, p in model.named_parameters():
        (matrices if p.dim() == 2 and "embed_tokens" not in name else others).append(p)
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}],
        lr=RATE, betas=(0.9, 0.95), eps=1e-8,
    )
    found = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = losses(model, documents).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        found.append(loss.item())
    assert math.isfinite(found[-1]) and found[-1] < found[0]
    return {"case": CASES.index(case), "rate": RATE, "decay": DECAY, "clip": CLIP, "losses": short(found)}


if __name__ == "__main__":
    out = {"shapes": [shape(case) for case in CASES], "history": history(CASES[4])}
    path = pathlib.Path(__file__).with_name("shapes.json")
    path.write_text(json.dumps(out, separators=(",", ":")) + "\n")
