"""Makes the goldens of the language model with transformers and torch.

    python make_qwen3.py            writes qwen3-*/ beside this file
    python make_qwen3.py check DIR  loads a model folder written by sbp and prints its logits' sum

Each folder is what `save_pretrained` writes for a tiny random Qwen3, and `golden.safetensors`: a
stream of documents, the loss of every token, the gradient of every weight, and the losses of some
AdamW steps on that stream. Data are made up. Sums run in f64 where transformers lets them.
"""

import json
import math
import pathlib
import sys

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

HERE = pathlib.Path(__file__).parent
IGNORE = 0xFFFFFFFF
N_STEPS, N_WARMUP, PEAK, END, WEIGHT_DECAY, CLIP = 20, 4, 2e-2, 1e-3, 0.1, 0.5

CASES = {
    "qwen3-1to1-tied": dict(heads=(2, 2), head_dim=4, tied=True, lengths=[7, 1, 5], z_loss=0.0),
    "qwen3-3to1-untied": dict(heads=(3, 1), head_dim=4, tied=False, lengths=[4, 9], z_loss=0.0),
    "qwen3-4to1-tied": dict(heads=(4, 1), head_dim=6, tied=True, lengths=[11], z_loss=1e-2),
}


def model_of(case, seed):
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=13, hidden_size=8, intermediate_size=12, num_hidden_layers=2,
        num_attention_heads=case["heads"][0], num_key_value_heads=case["heads"][1],
        head_dim=case["head_dim"], max_position_embeddings=16, rms_norm_eps=1e-6,
        rope_theta=5e5, tie_word_embeddings=case["tied"], attention_bias=False,
        initializer_range=0.3,
    )
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                p.copy_(1 + 0.3 * torch.randn_like(p))
    return model


def losses(model, documents, z_loss):
    """Per-token losses and the mean objective over all documents, each attended alone."""
    nll, z = [], []
    for ids, targets in documents:
        logits = model(torch.tensor([ids])).logits[0]
        lse = torch.logsumexp(logits.double(), -1)
        for i, target in enumerate(targets):
            if target == IGNORE:
                nll.append(torch.zeros((), dtype=torch.float64))
            else:
                nll.append(lse[i] - logits[i, target].double())
                z.append(lse[i] ** 2)
    return torch.stack(nll), (torch.stack(nll).sum() + z_loss * torch.stack(z).sum()) / len(z)


def rate(step):
    if step < N_WARMUP:
        return PEAK * (step + 1) / N_WARMUP
    progress = (step - N_WARMUP + 1) / (N_STEPS - N_WARMUP)
    return END + (PEAK - END) * 0.5 * (1 + math.cos(math.pi * progress))


def make(name, case, seed):
    out = HERE / name
    model = model_of(case, seed)
    model.save_pretrained(out)
    for extra in out.glob("generation_config.json"):
        extra.unlink()
    model = model.double()
    generator = torch.Generator().manual_seed(seed)
    documents = []
    for length in case["lengths"]:
        ids = torch.randint(0, 13, (length,), generator=generator).tolist()
        targets = ids[1:] + [IGNORE]
        if length > 6:
            targets[2] = IGNORE
        documents.append((ids, targets))
    # A document of one token predicts nothing unless it is given a target.
    documents = [(i, [5] if len(i) == 1 else t) for i, t in documents]
    nll, loss = losses(model, documents, case["z_loss"])
    loss.backward()
    starts, ids, targets = [], [], []
    for document, target in documents:
        starts += [len(ids)] * len(document)
        ids += document
        targets += target
    golden = {
        "ids": torch.tensor(ids), "starts": torch.tensor(starts), "targets": torch.tensor(targets),
        "nll": nll.detach(), "loss": loss.detach(),
        "z_loss": torch.tensor(case["z_loss"], dtype=torch.float64),
    }
    for parameter, p in model.named_parameters():
        golden[f"grad.{parameter}"] = p.grad.float()
    matrix = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed_tokens" not in n]
    other = [p for n, p in model.named_parameters() if p.dim() != 2 or "embed_tokens" in n]
    optimizer = torch.optim.AdamW(
        [{"params": matrix, "weight_decay": WEIGHT_DECAY}, {"params": other, "weight_decay": 0.0}],
        lr=PEAK, betas=(0.9, 0.95), eps=1e-8,
    )
    history = []
    for step in range(N_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.zero_grad()
        _, loss = losses(model, documents, case["z_loss"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        history.append(losses(model, documents, 0.0)[1].item())
    golden["history"] = torch.tensor(history, dtype=torch.float64)
    save_file({k: v.contiguous().clone() for k, v in golden.items()}, out / "golden.safetensors")


def check(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.arange(min(16, model.config.vocab_size)).unsqueeze(0)
    logits = model(ids).logits
    print(json.dumps({"class": type(model).__name__, "logits": logits[0, -1, :4].tolist()}))


if len(sys.argv) == 3 and sys.argv[1] == "check":
    check(sys.argv[2])
else:
    for seed, (name, case) in enumerate(CASES.items()):
        make(name, case, seed)
