"""Makes adamw.json: 100 steps of torch.optim.AdamW on made-up numbers that f32 holds exactly.

Run with torch 2.x from any folder: python make_adamw.py
"""

import json
import pathlib

import torch

N, STEPS = 24, 100
SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def start(i: int) -> float:
    return ((i * 67) % 129 - 64) / 32


def gradient(step: int, i: int) -> float:
    return ((step * 37 + i * 101) % 257 - 128) / 64 * 2.0 ** -(i % 12)


params = torch.tensor([start(i) for i in range(N)], requires_grad=True)
optimizer = torch.optim.AdamW([params], **SETTINGS)
snapshots = {}
for step in range(1, STEPS + 1):
    params.grad = torch.tensor([gradient(step, i) for i in range(N)])
    optimizer.step()
    if step in (1, 10, STEPS):
        snapshots[str(step)] = params.detach().tolist()

path = pathlib.Path(__file__).with_name("adamw.json")
path.write_text(json.dumps({"torch": torch.__version__, "params": snapshots}, indent=1) + "\n")
