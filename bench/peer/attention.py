#!/usr/bin/env python3
"""PyTorch's fused causal attention (cuDNN, FlashAttention-2) at the shapes of bench_attention_cuda: one JSON line a shape
and backend, in the same units.

usage: attention.py        on a machine with a GPU; run bench_attention_cuda before or after it on the same card

Causal flops: forward B H T^2 (D_qk + D_v), backward B H T^2 (3 D_qk + 2 D_v). Each figure is the fastest of a few rounds.
FlashAttention-2 takes heads of one width: where D_v < D_qk its values are padded, and the flops are still those asked for.
"""
import json
import math

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad, scaled_dot_product_attention

SHAPES = {  # batch, heads, context, D_qk, D_v
    "64-1k": (16, 12, 1024, 64, 64), "96/64-1k": (16, 12, 1024, 96, 64), "64-2k": (8, 16, 2048, 64, 64),
    "64-8k": (2, 16, 8192, 64, 64), "96/64-2k": (8, 16, 2048, 96, 64), "128-4k": (4, 16, 4096, 128, 128),
    "192/128-4k": (4, 16, 4096, 192, 128), "128-16k": (1, 16, 16384, 128, 128), "192/128-16k": (1, 16, 16384, 192, 128),
}
BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash-attention-2": SDPBackend.FLASH_ATTENTION}
REPEATS, ROUNDS = 10, 3


def fastest_ms(work):
    best = math.inf
    for round_ in range(ROUNDS + 1):  # the first is to warm up
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(REPEATS):
            work()
        end.record()
        end.synchronize()
        if round_ > 0:
            best = min(best, start.elapsed_time(end) / REPEATS)
    return best


def normal(*shape):
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16)


def measure(backend, batch, heads, context, qk, value):
    width = qk if backend == "flash-attention-2" else value
    q, k = (normal(batch, heads, context, qk).requires_grad_() for _ in range(2))
    v, dout = (pad(normal(batch, heads, context, value), (0, width - value)) for _ in range(2))
    v.requires_grad_()
    with sdpa_kernel(BACKENDS[backend]):
        forward_ms = fastest_ms(lambda: scaled_dot_product_attention(q, k, v, is_causal=True))
        out = scaled_dot_product_attention(q, k, v, is_causal=True)
        backward_ms = fastest_ms(lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True))
    square = 1e-9 * batch * heads * context * context
    return {"forward_ms": round(forward_ms, 4), "forward_tflops": round(square * (qk + value) / forward_ms, 1),
            "backward_ms": round(backward_ms, 4),
            "backward_tflops": round(square * (3 * qk + 2 * value) / backward_ms, 1)}


def main():
    for name, shape in SHAPES.items():
        for backend in BACKENDS:
            print(json.dumps({"bench": "attention", "core": backend, "shape": name, **measure(backend, *shape)}),
                  flush=True)


if __name__ == "__main__":
    main()
