#!/usr/bin/env python3
"""The decoupled attention stage in compiled PyTorch with cuDNN's attention, at the stages of bench_attention_cuda: rotary of
q_r and of the key that all heads share, the key copied to every head and joined to k_n, causal attention, and back. One JSON
line a stage, in the same units.

usage: stage.py        on a machine with a GPU; run bench_attention_cuda before or after it on the same card

Inputs are as projections leave them, [B, T, heads, columns], rotary not yet applied. Memory is what forward and backward take
at most beside the inputs, gradients included.
"""
import json

import torch
from attention import fastest_ms
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

STAGES = {  # batch, heads, context, D_n, D_r, D_v
    "64+32/64-1k": (32, 12, 1024, 64, 32, 64), "64+32/64-2k": (8, 16, 2048, 64, 32, 64),
    "128+64/128-4k": (4, 16, 4096, 128, 64, 128), "128+64/128-16k": (1, 16, 16384, 128, 64, 128),
}


def rotate(x, cos, sin):
    left, right = x.float().chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1).to(x.dtype)


def stage(q, k_v, k_rope, cos, sin, nope):
    q_nope, q_rope = q.transpose(1, 2).tensor_split((nope,), dim=-1)
    k_nope, v = k_v.transpose(1, 2).tensor_split((nope,), dim=-1)
    shared = rotate(k_rope, cos, sin).unsqueeze(1).expand(*q_rope.shape)
    q, k = torch.cat((q_nope, rotate(q_rope, cos, sin)), dim=-1), torch.cat((k_nope, shared), dim=-1)
    return scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def measure(batch, heads, context, nope, rope, value):
    def normal(*shape):
        return torch.randn(shape, device="cuda", dtype=torch.bfloat16)

    inputs = [normal(batch, context, heads, nope + rope), normal(batch, context, heads, nope + value),
              normal(batch, context, rope)]
    for x in inputs:
        x.requires_grad_()
    dout = normal(batch, context, heads, value)
    angles = torch.outer(torch.arange(context, device="cuda"), 10000 ** (-torch.arange(0, rope, 2, device="cuda") / rope))
    compiled = torch.compile(stage, dynamic=False)

    def forward():
        return compiled(*inputs, angles.cos(), angles.sin(), nope)

    def both():
        return torch.autograd.grad(forward(), inputs, dout)

    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        both()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        both()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        return {"forward_ms": round(fastest_ms(forward), 4), "both_ms": round(fastest_ms(both), 4),
                "peak_mib": round(peak / 2**20)}


def main():
    for name, shape in STAGES.items():
        print(json.dumps({"bench": "stage", "core": "cudnn, compiled", "shape": name, **measure(*shape)}), flush=True)


if __name__ == "__main__":
    main()
