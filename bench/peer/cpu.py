#!/usr/bin/env python3
"""A training step of Bulkhead and of the PyTorch peer on the CPU, fp32, in turns on the same cores.

usage: cpu.py BENCH_STEP OUTPUT.jsonl [--sizes tiny 60m] [--variants ...] [--rounds 5] [--steps 3] [--threads 2]

In each round each program takes some steps while the others wait: bench_step, which checks its losses first, the peer eager and
the peer compiled (where this PyTorch compiles). A program's figure is the least of its rounds' medians, since whatever else the
machine does only adds. Prints and appends JSON lines.
"""
import argparse
import json
import os
import subprocess
import sys

import model

HERE = os.path.dirname(os.path.abspath(__file__))
BATCH = {"tiny": 16, "60m": 2}


def arguments():
    p = argparse.ArgumentParser()
    p.add_argument("bench_step")
    p.add_argument("output")
    p.add_argument("--sizes", nargs="+", choices=BATCH, default=list(BATCH))
    p.add_argument("--variants", nargs="+", choices=model.VARIANTS, default=model.VARIANTS)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--steps", type=int, default=3)
    p.add_argument("--threads", type=int, default=2)
    return p.parse_args()


def start_peer(a, variant, size, mode):
    words = [sys.executable, os.path.join(HERE, "timed.py"), variant, size, str(BATCH[size]), str(a.steps), mode,
             str(a.threads)]
    peer = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    if any(line.strip() == "ready" for line in peer.stdout):
        return peer
    print(f"the peer does not run {mode}", file=sys.stderr)
    return None


def time_peer(peer):
    peer.stdin.write("go\n")
    peer.stdin.flush()
    return json.loads(peer.stdout.readline())


def time_ours(a, variant, size):
    words = [a.bench_step, size, variant, str(BATCH[size]), str(a.steps), str(a.threads)]
    line = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return {"program": "bulkhead", "median_ms": line["ms"], "tokens_per_s": line["tokens_per_s"]}


def measure(a, variant, size):
    peers = {mode: start_peer(a, variant, size, mode) for mode in ("eager", "compiled")}
    peers = {mode: peer for mode, peer in peers.items() if peer}
    best = {}
    for _ in range(a.rounds):
        figures = {"ours": time_ours(a, variant, size), **{mode: time_peer(peer) for mode, peer in peers.items()}}
        for who, f in figures.items():
            if who not in best or f["median_ms"] < best[who]["median_ms"]:
                best[who] = f
    for peer in peers.values():
        peer.stdin.close()
        peer.wait()
    lines = list(best.values())
    if peers:
        fastest = max(best[mode]["tokens_per_s"] for mode in peers)
        lines.append({"tokens_per_s_over_peer": best["ours"]["tokens_per_s"] / fastest})
    return lines


def main():
    a = arguments()
    with open(a.output, "a") as out:
        for size in a.sizes:
            for variant in a.variants:
                about = {"bench": "step", "device": "cpu", "size": size, "variant": variant, "batch": BATCH[size],
                         "context": model.shape_of(size, variant).context, "threads": a.threads}
                for line in measure(a, variant, size):
                    text = json.dumps({**about, **line})
                    print(text, flush=True)
                    out.write(text + "\n")
                    out.flush()


if __name__ == "__main__":
    main()
