#!/usr/bin/env python3
"""The PyTorch peer under a stopwatch: on GPUs torch.compile, bf16 autocast, fused attention and AdamW; on the CPU fp32,
compiled or eager.

usage: timed.py VARIANT SIZE BATCH STEPS [compiled | eager | tensor | data [THREADS]]      with THREADS: on the CPU
       the same P times, with RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT as torchrun sets them: tensor or
       data parallelism over P GPUs, compiled

BATCH is that of all ranks together. Compiles and warms up, gives back what memory it can, prints "ready"; for each line on
stdin, so that other programs can be timed in between, it times that many steps and prints one JSON line. Cut into ranks, the
model first checks its loss and gradients against the whole one. figures.py and cpu.py conduct it.
"""
import contextlib
import dataclasses
import json
import os
import statistics
import sys
import time

import torch
from torch import distributed

import model
import ranks

WARM_STEPS = 5
CHECK_TOKENS, CHECK_LIMIT = 128, 0.02  # TF32 on GPUs


class Place:
    """Where this process computes: its device, and its rank among those that share the work."""

    def __init__(self, mode, cpu):
        self.mode, self.cpu = mode, cpu
        self.is_one_of_many = mode in ("tensor", "data")
        self.rank, self.ranks = 0, 1
        self.device = "cpu" if cpu else "cuda"
        if self.is_one_of_many:
            if not cpu:
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            distributed.init_process_group("gloo" if cpu else "nccl")
            self.rank, self.ranks = distributed.get_rank(), distributed.get_world_size()
            self.gate = distributed.new_group(backend="gloo")  # waits without work for the GPU

    def lines(self):
        """Once for each line on stdin of the first rank, on all of them."""
        while True:
            line = torch.tensor([self.rank == 0 and bool(sys.stdin.readline())], dtype=torch.int32)
            if self.is_one_of_many:
                distributed.broadcast(line, 0, group=self.gate)
            if not line.item():
                return
            yield

    def say(self, text):
        if self.rank == 0:
            print(text, flush=True)


def stepper(m, opt, shape, batch, place, compiled):
    run = m
    if place.mode == "data":
        run = torch.nn.parallel.DistributedDataParallel(m, gradient_as_bucket_view=True)
    run = torch.compile(run) if compiled else run
    torch.manual_seed(place.rank if place.mode == "data" else 0)
    tokens = torch.randint(shape.vocab, (batch, shape.context + 1), device=place.device)
    parameters = list(m.parameters())

    def step():
        with contextlib.nullcontext() if place.cpu else torch.autocast("cuda", torch.bfloat16):
            loss = run(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        if shape.ranks > 1:
            ranks.clip(parameters, 1.0)
        else:
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        if not place.cpu:
            torch.cuda.synchronize()

    return step


def timed(step, steps):
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return seconds


def check_cut(m, shape, device):
    """The cut model's loss and gradients, in fp32, are the whole one's, whose weights it takes."""
    whole = model.Model(dataclasses.replace(shape, ranks=1, rank=0))
    whole.draw(torch.Generator().manual_seed(1), std=0.1)
    whole = whole.to(device)
    pairs = list(zip(m.parameters(), whole.parameters()))
    for p, w in pairs:
        p.data.copy_(ranks.piece(w.data, ranks.cut_of(p), shape.ranks, shape.rank))
    tokens = torch.randint(shape.vocab, (1, CHECK_TOKENS + 1), generator=torch.Generator().manual_seed(2)).to(device)
    table = m.cos, m.sin, whole.cos, whole.sin
    for one in (m, whole):
        one.cos, one.sin = one.cos[:CHECK_TOKENS], one.sin[:CHECK_TOKENS]
    losses = [one(tokens[:, :-1], tokens[:, 1:]) for one in (m, whole)]
    m.cos, m.sin, whole.cos, whole.sin = table
    for loss in losses:
        loss.backward()
    worst = abs(losses[0].item() / losses[1].item() - 1)
    for p, w in pairs:
        want = ranks.piece(w.grad, ranks.cut_of(p), shape.ranks, shape.rank)
        worst = max(worst, ((p.grad - want).norm() / want.norm()).item())
        p.grad = None
    if not worst < CHECK_LIMIT:
        sys.exit(f"rank {shape.rank}: the cut model is off the whole one by {worst:.2g}")
    return worst


def main():
    variant, size, batch, steps = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    mode = sys.argv[5] if len(sys.argv) > 5 else "compiled"
    place = Place(mode, cpu=len(sys.argv) > 6)
    compiled = mode != "eager" and (hasattr(torch, "compile") or mode == "compiled")
    cut = place.ranks if mode == "tensor" else 1
    shape = model.shape_of(size, variant, ranks=cut, rank=place.rank if cut > 1 else 0)
    if place.cpu:
        torch.set_num_threads(int(sys.argv[6]))
        card, warm = "cpu", 1
    else:
        card, warm = torch.cuda.get_device_name(), WARM_STEPS
    m = model.Model(shape).to(place.device)
    about = {"program": "pytorch", "version": torch.__version__, "compiled": compiled, "card": card}
    if place.is_one_of_many:
        about.update(parallel=mode, ranks=place.ranks)
    if cut > 1:
        about["off_whole"] = check_cut(m, shape, place.device)
    torch.set_float32_matmul_precision("high")  # not before: the check is one of fp32
    opt = model.optimizer(m, 0.1, fused=not place.cpu or compiled)
    step = stepper(m, opt, shape, batch // place.ranks if mode == "data" else batch, place, compiled)
    timed(step, warm)
    if not place.cpu:
        torch.cuda.empty_cache()
    place.say("ready")
    for _ in place.lines():
        timed(step, warm)
        if not place.cpu:
            torch.cuda.reset_peak_memory_stats()
        seconds = timed(step, steps)
        median = statistics.median(seconds)
        figures = {**about, "parameters": sum(p.numel() for p in m.parameters()), "median_ms": 1e3 * median,
                   "mean_ms": 1e3 * statistics.mean(seconds), "tokens_per_s": batch * shape.context / median}
        if not place.cpu:
            figures["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        place.say(json.dumps(figures))
    if place.is_one_of_many:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
