#!/usr/bin/env python3
"""The PyTorch peer under a stopwatch, on one GPU: torch.compile, bf16 autocast, fused attention and AdamW.

usage: timed.py VARIANT SIZE BATCH STEPS

Compiles and warms up, gives back what memory it can, prints "ready" and waits for a line on stdin, so that other programs
can be timed meanwhile; then times each step and prints one JSON line. figures.py conducts it.
"""
import json
import statistics
import sys
import time

import torch

import model

WARM_STEPS = 5


def stepper(m, opt, shape, batch):
    run = torch.compile(m)
    tokens = torch.randint(shape.vocab, (batch, shape.context + 1), device="cuda")

    def step():
        with torch.autocast("cuda", torch.bfloat16):
            loss = run(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(m.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        torch.cuda.synchronize()

    return step


def main():
    variant, size, batch, steps = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    torch.set_float32_matmul_precision("high")
    shape = model.shape_of(size, variant)
    m = model.Model(shape).cuda()
    step = stepper(m, model.optimizer(m, 0.1, fused=True), shape, batch)
    for _ in range(WARM_STEPS):
        step()
    torch.cuda.empty_cache()
    print("ready", flush=True)
    if not sys.stdin.readline():
        sys.exit(1)
    for _ in range(WARM_STEPS):
        step()
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    print(json.dumps({"program": "pytorch", "version": torch.__version__, "card": torch.cuda.get_device_name(),
                      "parameters": sum(p.numel() for p in m.parameters()), "median_ms": 1e3 * median,
                      "mean_ms": 1e3 * statistics.mean(seconds), "tokens_per_s": batch * shape.context / median,
                      "memory_gib": torch.cuda.max_memory_allocated() / 2**30}), flush=True)


if __name__ == "__main__":
    main()
