#!/usr/bin/env python3
"""Bulkhead and the PyTorch peer on the same GPUs, in one go: time of a step, tokens a second, memory, and what spectra cost.

usage: figures.py BULKHEAD OUTPUT.jsonl [--size 130m] [--batch 32] [--steps 100] [--limit-s 280] [--peer-steps 20]
                  [--gpus 2 --parallel tensor | data]      --batch: of all GPUs together

For each variant: Bulkhead in bf16 without diagnostics, the peer, and Bulkhead with spectra every 10 steps on a rank of their own. The
peers compile side by side first and then wait; after that one program runs at a time. Tokens are random. A step's median
is each program's own; the mean of Bulkhead's is by the clock from its first timed step's line to its last, so that
snapshots are in it. Memory: the peer's is what its tensors took at most, Bulkhead's all that it took from the device.

Prints and appends JSON lines. The exit code is 1 when a program failed or the time ran out, or when Bulkhead has less than
--least of the peer's tokens a second (0.85), or diagnostics cost more than --cost of a step (0.01).
"""
import argparse
import json
import os
import re
import select
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time

import numpy
import torch

import follow
import model

HERE = os.path.dirname(os.path.abspath(__file__))
WARM_STEPS = 20
SHARD_TOKENS = 4_000_000


def arguments():
    p = argparse.ArgumentParser()
    p.add_argument("bulkhead")
    p.add_argument("output")
    p.add_argument("--size", choices=model.SIZES, default="130m")
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--gpus", type=int, default=1)
    p.add_argument("--parallel", choices=("tensor", "data"), default="tensor", help="how several GPUs share the work")
    p.add_argument("--steps", type=int, default=100)
    p.add_argument("--peer-steps", type=int, default=20)
    p.add_argument("--variants", nargs="+", choices=model.VARIANTS, default=model.VARIANTS)
    p.add_argument("--limit-s", type=float, default=280)
    p.add_argument("--least", type=float, default=0.85)
    p.add_argument("--cost", type=float, default=0.01)
    return p.parse_args()


class Clock:
    """What is left of the time for the whole; every wait ends with it."""

    def __init__(self, limit_s):
        self.end = time.monotonic() + limit_s

    def left(self):
        return max(0.0, self.end - time.monotonic())


class Lines:
    """The lines of a child as they come, each with the time when it came."""

    def __init__(self, stream, clock):
        self.stream, self.clock, self.rest = stream, clock, b""

    def __iter__(self):
        while select.select([self.stream], [], [], self.clock.left())[0]:
            more = os.read(self.stream.fileno(), 65536)
            if not more:
                return
            now = time.monotonic()
            *lines, self.rest = (self.rest + more).split(b"\n")
            for line in lines:
                yield now, line.decode(errors="replace")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start_peer(a, variant, log):
    """Its processes, one a GPU, of which the first talks."""
    words = [sys.executable, os.path.join(HERE, "timed.py"), variant, a.size, str(a.batch), str(a.peer_steps),
             a.parallel if a.gpus > 1 else "compiled"]
    place = {**os.environ, "WORLD_SIZE": str(a.gpus), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [subprocess.Popen(words, stdin=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
                             stdout=subprocess.PIPE if rank == 0 else log, stderr=log,
                             env={**place, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(a.gpus)]


def time_peer(peer, lines):
    """Lets a peer that is ready go on; its figures, or None when it fails."""
    peer[0].stdin.write(b"go\n")
    peer[0].stdin.close()
    for _, line in lines:
        if line.startswith("{"):
            return json.loads(line)
    return None


def weights_path(folder, variant):
    return os.path.join(folder, variant + ".safetensors")


def command(a, variant, folder, run, diagnostics):
    settings = {"run.dir": run, "run.device": "cuda", "model.size": a.size, "attention.variant": variant,
                "data.train": os.path.join(folder, "train-00000.bin"), "train.precision": "bf16",
                "train.init_from": weights_path(folder, variant),
                "parallel.tensor": a.gpus if a.parallel == "tensor" else 1, "train.steps": WARM_STEPS + a.steps, "train.global_batch": a.batch, "train.lr": 1e-4,
                "train.log_every": 1, "diagnostics.ranks": 1 if diagnostics else 0,
                "diagnostics.every": diagnostics or 10}
    config = os.path.join(folder, "empty.yaml")
    open(config, "w").close()
    words = ["mpirun", "--bind-to", "none", "-n", str(a.gpus + (1 if diagnostics else 0))]
    words += ["--allow-run-as-root"] if os.geteuid() == 0 else []
    words += [a.bulkhead, "train", config]
    return words + [word for k, v in settings.items() for word in ("--set", f"{k}={v}")]


def finish(job, clock):
    """The child's exit code; it is told to end when the time is out (mpirun then ends its ranks)."""
    for end in (job.terminate, job.kill):
        try:
            return job.wait(timeout=clock.left() + 5)
        except subprocess.TimeoutExpired:
            end()
    return job.wait()


def time_bulkhead(a, variant, folder, diagnostics, clock):
    """Its figures, or None, with its last lines printed, when it fails."""
    run = os.path.join(folder, f"{variant}-{diagnostics}")
    job = subprocess.Popen(command(a, variant, folder, run, diagnostics), stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT)
    came, said = {}, []
    for now, line in Lines(job.stdout, clock):
        said.append(line)
        step = re.search(r"\bstep (\d+)/", line)
        if step:
            came[int(step.group(1))] = now
    first, last = WARM_STEPS, WARM_STEPS + a.steps
    memory = re.search(r"([\d.]+) GiB of GPU memory", "\n".join(said))
    if finish(job, clock) != 0 or first not in came or last not in came:
        print(f"{variant}, diagnostics {diagnostics}: failed\n" + "\n".join(said[-15:]), file=sys.stderr)
        return None
    db = sqlite3.connect(f"file:{run}/run.db?mode=ro", uri=True)
    median = statistics.median(ms for ms, in db.execute("SELECT step_ms FROM train_metrics WHERE step > ?", (first,)))
    snapshots = dict(db.execute("SELECT status, count(*) FROM snapshots GROUP BY status"))
    return {"program": "bulkhead", "diagnostics_every": diagnostics, "median_ms": median,
            "mean_ms": 1e3 * (came[last] - came[first]) / a.steps,
            "tokens_per_s": 1e3 * a.batch * model.shape_of(a.size, variant).context / median,
            "memory_gib": float(memory.group(1)) if memory else None, "snapshots": snapshots}


def write_random_shard(path, vocab):
    header = numpy.zeros(256, "<i4")
    header[:3] = 20240520, 1, SHARD_TOKENS
    with open(path, "wb") as f:
        header.tofile(f)
        numpy.random.default_rng(1).integers(0, vocab, SHARD_TOKENS).astype("<u2").tofile(f)


def write_weights(path, shape):
    """Read faster than they are drawn, and written while the peers compile."""
    m = model.Model(shape)
    m.draw(torch.Generator().manual_seed(1))
    follow.write_safetensors(path, m.weights())


def wait_for_peers(peers, clock):
    """The peers that are ready in time, by variant, with their lines."""
    ready = {}
    for variant, peer in peers.items():
        lines = iter(Lines(peer[0].stdout, clock))
        if any(line == "ready" for _, line in lines):
            ready[variant] = lines
    return ready


def report(a, card, variant, figures, out):
    """Writes the figures of one variant; true when both targets are met."""
    about = {"bench": "step", "card": card, "size": a.size, "variant": variant, "batch": a.batch,
             "context": model.shape_of(a.size, variant).context, "precision": "bf16"}
    if a.gpus > 1:
        about.update(gpus=a.gpus, parallel=a.parallel)
    peer, alone, watched = figures
    lines = [f for f in figures if f]
    if peer and alone:
        lines.append({"tokens_per_s_over_peer": alone["tokens_per_s"] / peer["tokens_per_s"]})
    if alone and watched:
        lines.append({"diagnostics_cost": watched["mean_ms"] / alone["mean_ms"] - 1})
    for line in lines:
        text = json.dumps({**about, **line})
        print(text, flush=True)
        out.write(text + "\n")
    good = all(figures) and lines[3]["tokens_per_s_over_peer"] >= a.least and lines[4]["diagnostics_cost"] <= a.cost
    return good


def measure(a, folder, clock, peers, out):
    for variant in a.variants:
        write_weights(weights_path(folder, variant), model.shape_of(a.size, variant))
    ready = wait_for_peers(peers, clock)
    print(f"peers ready: {', '.join(ready)}; {clock.left():.0f} s left", flush=True)
    card, good = None, True
    for variant in a.variants:
        alone = time_bulkhead(a, variant, folder, 0, clock)
        peer = time_peer(peers[variant], ready[variant]) if variant in ready else None
        for process in peers[variant]:
            finish(process, clock)
        watched = time_bulkhead(a, variant, folder, 10, clock)
        card = peer["card"] if peer else card
        good = report(a, card, variant, (peer, alone, watched), out) and good
    return good


def main():
    a = arguments()
    clock = Clock(a.limit_s)
    with tempfile.TemporaryDirectory() as folder, open(a.output, "a") as out:
        write_random_shard(os.path.join(folder, "train-00000.bin"), model.shape_of(a.size, "mha").vocab)
        with open(os.path.join(folder, "peers.log"), "w+") as log:
            peers = {variant: start_peer(a, variant, log) for variant in a.variants}
            try:
                good = measure(a, folder, clock, peers, out)
            finally:
                for process in sum(peers.values(), []):
                    process.kill()
                log.seek(0)
                complaints = log.read()[-3000:]
        if not good:
            print(complaints, file=sys.stderr)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
