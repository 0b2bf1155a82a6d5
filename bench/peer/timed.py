#!/usr/bin/env python3
"""The PyTorch peer under a stopwatch: on one GPU torch.compile, bf16 autocast, fused attention and AdamW; on the CPU fp32,
compiled or eager.

usage: timed.py VARIANT SIZE BATCH STEPS [compiled | eager THREADS]      with THREADS: on the CPU

Compiles and warms up, gives back what memory it can, prints "ready"; for each line on stdin, so that other programs can be
timed in between, it times that many steps and prints one JSON line. figures.py and cpu.py conduct it.
"""
import json
import statistics
import sys
import time

import torch

import model

WARM_STEPS = 5


def stepper(m, opt, shape, batch, device, compiled):
    run = torch.compile(m) if compiled else m
    tokens = torch.randint(shape.vocab, (batch, shape.context + 1), device=device)

    def step():
        with torch.autocast("cuda", torch.bfloat16, enabled=device == "cuda"):
            loss = run(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(m.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def timed(step, steps):
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return seconds


def main():
    variant, size, batch, steps = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    compiled, device = "eager" not in sys.argv[5:6], "cpu" if len(sys.argv) > 6 else "cuda"
    shape = model.shape_of(size, variant)
    if device == "cuda":
        torch.set_float32_matmul_precision("high")
        card, warm = torch.cuda.get_device_name(), WARM_STEPS
    else:
        torch.set_num_threads(int(sys.argv[6]))
        card, warm = "cpu", 1
    m = model.Model(shape).to(device)
    step = stepper(m, model.optimizer(m, 0.1, fused=device == "cuda" or compiled), shape, batch, device, compiled)
    timed(step, warm)
    if device == "cuda":
        torch.cuda.empty_cache()
    print("ready", flush=True)
    for _ in sys.stdin:
        timed(step, warm)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = timed(step, steps)
        median = statistics.median(seconds)
        figures = {"program": "pytorch", "version": torch.__version__, "compiled": compiled, "card": card,
                   "parameters": sum(p.numel() for p in m.parameters()), "median_ms": 1e3 * median,
                   "mean_ms": 1e3 * statistics.mean(seconds), "tokens_per_s": batch * shape.context / median}
        if device == "cuda":
            figures["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
