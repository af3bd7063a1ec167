"""PyTorch's side of `sbp bench gpu`: the same shapes, in the same run, one JSON object a line.

Run by `sbp bench gpu` where `python3 -c "import torch"` works; alone: python3 torch_peers.py
"""
import json
import statistics
import sys
import time

try:
    import torch
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel
except ImportError as error:
    print(json.dumps({"missing": str(error)}))
    sys.exit(0)
if not torch.cuda.is_available():
    print(json.dumps({"missing": "PyTorch sees no GPU"}))
    sys.exit(0)

DEVICE = "cuda"
DEADLINE = time.monotonic() + float(sys.argv[1] if len(sys.argv) > 1 else 120)


def seconds(work):
    """The median of three rounds of at least 50 ms, as on our side."""
    work()
    torch.cuda.synchronize()

    def round_of(n):
        start = time.perf_counter()
        for _ in range(n):
            work()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / n

    n = max(1, min(10_000, int(0.05 / max(round_of(1), 1e-6)) + 1))
    return statistics.median(round_of(n) for _ in range(3))


def report(op, shape, amount, unit, work):
    if time.monotonic() > DEADLINE:
        return
    try:
        took = seconds(work)
    except Exception as error:  # A backend that lacks a shape is a finding, not an end.
        print(json.dumps({"op": op, "shape": shape, "error": str(error).splitlines()[0][:200]}), flush=True)
        return
    value = amount / took / (1e9 if unit == "GB/s" else 1e12)
    print(json.dumps({"op": op, "shape": shape, "seconds": took, "value": value, "unit": unit}), flush=True)


def ceilings():
    a = torch.empty(1 << 30, dtype=torch.int8, device=DEVICE)
    b = torch.empty_like(a)
    report("torch copy", "1 GiB on the device", 2 * a.numel(), "GB/s", lambda: b.copy_(a))
    n = 8192
    x, y = (torch.randn(n, n, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    report("torch matmul", "8192 cubed, bf16", 2 * n**3, "TFLOP/s", lambda: x @ y.T)


def attention():
    backends = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
    for n_heads, n_kv_heads, dim, n, length in [(16, 16, 128, 4, 4096), (24, 8, 128, 4, 4096), (24, 8, 128, 1, 16384), (32, 32, 64, 4, 4096)]:
        shape = f"{n}x{length} causal, {n_heads}/{n_kv_heads} heads of {dim}"
        flop = 2.0 * n_heads * dim * n * length * length
        make = lambda h: torch.randn(n, h, length, dim, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
        q, k, v = make(n_heads), make(n_kv_heads), make(n_kv_heads)
        grad = torch.randn_like(q)
        grouped = {"enable_gqa": True} if n_heads != n_kv_heads else {}
        for name, backend in backends.items():
            def forward():
                with sdpa_kernel(backend):
                    return F.scaled_dot_product_attention(q, k, v, is_causal=True, **grouped)

            report(f"SDPA {name}", shape, flop, "TFLOP/s", lambda: forward().detach())
            try:
                out = forward()
            except Exception:
                continue
            report(f"SDPA {name} backward", shape, 2.5 * flop, "TFLOP/s",
                   lambda: torch.autograd.grad(out, (q, k, v), grad, retain_graph=True))


def rms_norm():
    for cols in (1024, 3072, 4096, 8192):
        rows = (1 << 27) // cols
        x = torch.randn(rows, cols, device=DEVICE, dtype=torch.bfloat16)
        gain = torch.randn(cols, device=DEVICE, dtype=torch.bfloat16)
        work = lambda: F.rms_norm(x, (cols,), gain, 1e-6)
        report("RMSNorm eager", f"{rows}x{cols}", 4 * x.numel(), "GB/s", work)
        compiled = torch.compile(lambda x, gain: F.rms_norm(x, (cols,), gain, 1e-6))
        report("RMSNorm compiled", f"{rows}x{cols}", 4 * x.numel(), "GB/s", lambda: compiled(x, gain))


def search():
    n_queries, n_values, columns, chunk = 16384, 1 << 20, 1024, 1 << 15
    q = torch.randint(-127, 128, (n_queries, columns), device=DEVICE, dtype=torch.int8)
    v = torch.randint(-127, 128, (n_values, columns), device=DEVICE, dtype=torch.int8)

    def work():
        best = None
        for first in range(0, n_values, chunk):
            scores = torch._int_mm(q, v[first : first + chunk].T).float()
            top = torch.topk(scores, 200, dim=1)
            best = top.values if best is None else torch.topk(torch.cat([best, top.values], 1), 200, dim=1).values
        return best

    report("torch int8 matmul + topk", f"top 200 of {n_values} for {n_queries}, {columns} columns",
           2.0 * n_queries * n_values * columns, "TOPS", work)


print(json.dumps({"torch": torch.__version__, "gpu": torch.cuda.get_device_name()}), flush=True)
for part in (ceilings, attention, rms_norm, search):
    try:
        part()
    except Exception as error:
        print(json.dumps({"op": part.__name__, "error": str(error).splitlines()[0][:200]}), flush=True)
    torch.cuda.empty_cache()
