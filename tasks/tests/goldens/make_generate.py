"""Writes generate.json: greedy texts of transformers' Qwen3 with a key-value cache.

usage: python make_generate.py   (numpy, torch, transformers)

The weights are a function of their place (`noise`), which the test computes too, so that the golden
holds only prompts, texts and the logits of the first new token.
"""
import json
import pathlib

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

N_NEW = 30
CASES = [
    dict(heads=4, kv_heads=2, head_dim=8, tied=True, prompts=[5, 16, 17]),
    dict(heads=3, kv_heads=1, head_dim=20, tied=False, prompts=[1, 33]),
    dict(heads=2, kv_heads=2, head_dim=64, tied=True, prompts=[90]),
]


def noise(first, n):
    """Numbers in [-0.5, 0.5) with 24 bits, a hash of their place."""
    h = np.arange(first, first + n, dtype=np.uint64) * 2654435761 % 2**32
    h ^= h >> 16
    h = h * 0x85EBCA6B % 2**32
    h ^= h >> 13
    h = h * 0xC2B2AE35 % 2**32
    return ((h >> 8).astype(np.float64) / 2**24 - 0.5).astype(np.float32)


def fill(model, config):
    """Fills the weights in the order of the arena: embedding, blocks, final norm, head."""
    at = 0

    def take(parameters, gain=False):
        nonlocal at
        for p in parameters:
            values = torch.from_numpy(noise(at, p.numel())).view_as(p)
            at += p.numel()
            p.copy_(1 + values if gain else values)

    take([model.model.embed_tokens.weight])
    for layer in model.model.layers:
        a, m = layer.self_attn, layer.mlp
        take([layer.input_layernorm.weight], gain=True)
        take([a.q_proj.weight, a.k_proj.weight, a.v_proj.weight])
        take([a.q_norm.weight, a.k_norm.weight], gain=True)
        take([a.o_proj.weight])
        take([layer.post_attention_layernorm.weight], gain=True)
        take([m.gate_proj.weight, m.up_proj.weight, m.down_proj.weight])
    take([model.model.norm.weight], gain=True)
    if not config.tie_word_embeddings:
        take([model.lm_head.weight])


@torch.inference_mode()
def main():
    out = []
    for case in CASES:
        config = Qwen3Config(
            vocab_size=61, hidden_size=24, intermediate_size=40, num_hidden_layers=3,
            num_attention_heads=case["heads"], num_key_value_heads=case["kv_heads"],
            head_dim=case["head_dim"], max_position_embeddings=128, rms_norm_eps=1e-6,
            rope_theta=5e5, tie_word_embeddings=case["tied"], attention_bias=False,
            bos_token_id=None, eos_token_id=None, pad_token_id=0,
        )
        model = Qwen3ForCausalLM(config).eval()
        fill(model, config)
        texts = []
        for n in case["prompts"]:
            prompt = [(7 * i * i + 3 * i + n) % 61 for i in range(n)]
            ids = torch.tensor([prompt])
            result = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=N_NEW, do_sample=False,
                output_logits=True, return_dict_in_generate=True,
            )
            for logits in result.logits:
                best = logits[0].topk(2).values
                assert best[0] - best[1] > 1e-3, "too close for another order of sums"
            texts.append({
                "prompt": prompt, "text": result.sequences[0, n:].tolist(),
                "logits": [round(x, 5) for x in result.logits[0][0].tolist()],
            })
        out.append({**{k: case[k] for k in ("heads", "kv_heads", "head_dim", "tied")}, "texts": texts})
    text = ",\n".join(json.dumps(case) for case in out)
    pathlib.Path(__file__).with_name("generate.json").write_text(f"[\n{text}\n]\n")


if __name__ == "__main__":
    main()
