#!/usr/bin/env python3
"""What spectra cost a run on a GPU: the mean time of a step with them, over the same run's without, and whether any was dropped.

usage: watching.py BULKHEAD OUTPUT.jsonl [--size 130m] [--batch 32] [--steps 150] [--rounds 2] [--variants mha ...]

Two ways to watch, each on one diagnostics rank: every step, by head in score form; and every 5th step, with all scopes, parts
and forms. In each round the run without comes first, so that what the machine does meanwhile falls on all alike; the cost is
the median over rounds. Fails where a loss differs by a bit from the run without, or a snapshot is not done. Random tokens.
Prints and appends JSON lines.
"""
import argparse
import json
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile

from curves import write_random_shard

WARM_STEPS = 20
CONTEXT, VOCAB = 1024, 32000
WAYS = {"none": {"diagnostics.ranks": 0},
        "every step, head, score": {"diagnostics.every": 1, "diagnostics.scopes": "[head]", "diagnostics.forms": "[score]"},
        "every 5th, all": {"diagnostics.every": 5, "diagnostics.scopes": "[head, layer]",
                           "diagnostics.parts": "[full, content, rope, ov]",
                           "diagnostics.forms": "[score, channel, weight]"}}
TIME_LIMIT_S = 300


def arguments():
    p = argparse.ArgumentParser(usage=__doc__.split("\n\n")[1].removeprefix("usage: "))
    p.add_argument("bulkhead")
    p.add_argument("output")
    p.add_argument("--size", default="130m")
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--steps", type=int, default=150)
    p.add_argument("--rounds", type=int, default=2)
    p.add_argument("--device", default="cuda")
    p.add_argument("--variants", nargs="+", default=["mha", "mla-prerope", "mla-decoupled"])
    return p.parse_args()


def command(a, variant, way, folder):
    settings = {"run.dir": os.path.join(folder, "run"), "run.device": a.device, "model.size": a.size,
                "model.context": CONTEXT, "model.vocab": VOCAB, "attention.variant": variant,
                "data.train": os.path.join(folder, "random-00000.bin"), "train.steps": WARM_STEPS + a.steps,
                "train.global_batch": a.batch, "train.lr": 1e-4} | WAYS[way]
    words = ["mpirun", "--bind-to", "none", "--oversubscribe", "-n", "1" if way == "none" else "2"]
    words += ["--allow-run-as-root"] if os.geteuid() == 0 else []
    words += [a.bulkhead, "train", os.path.join(folder, "empty.yaml")]
    return words + [word for k, v in settings.items() for word in ("--set", f"{k}={v}")]


def run(a, variant, way, folder):
    """Its steps' times and losses, and how its snapshots ended."""
    shutil.rmtree(os.path.join(folder, "run"), ignore_errors=True)
    done = subprocess.run(command(a, variant, way, folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          timeout=TIME_LIMIT_S, check=False)
    if done.returncode != 0:
        sys.exit(f"{variant}, {way}: exit code {done.returncode}\n" + "\n".join(done.stdout.splitlines()[-8:]))
    db = sqlite3.connect(f"file:{folder}/run/run.db?mode=ro", uri=True)
    steps = db.execute("SELECT step_ms, loss FROM train_metrics ORDER BY step").fetchall()
    lag = db.execute("SELECT avg(compute_ms), max(lag_ms) FROM snapshots WHERE status = 'done'").fetchone()
    return {"mean_ms": statistics.fmean(ms for ms, _ in steps[WARM_STEPS:]),
            "median_ms": statistics.median(ms for ms, _ in steps[WARM_STEPS:]), "losses": [loss for _, loss in steps],
            "snapshots": dict(db.execute("SELECT status, count(*) FROM snapshots GROUP BY status")),
            "compute_ms": lag[0], "most_lag_ms": lag[1]}


def measure(a, variant, folder):
    """A line of figures a way to watch; whether all held."""
    rounds = [{way: run(a, variant, way, folder) for way in WAYS} for _ in range(a.rounds)]
    for way in list(WAYS)[1:]:
        same = all(r[way]["losses"] == r["none"]["losses"] for r in rounds)
        done = all(set(r[way]["snapshots"]) == {"done"} for r in rounds)
        last = rounds[-1][way]
        yield same and done, {
            "bench": "watching", "size": a.size, "variant": variant, "batch": a.batch, "watched": way,
            "cost": statistics.median(r[way]["mean_ms"] / r["none"]["mean_ms"] - 1 for r in rounds),
            "costs": [round(r[way]["mean_ms"] / r["none"]["mean_ms"] - 1, 5) for r in rounds],
            "mean_ms": last["mean_ms"], "median_ms": last["median_ms"], "alone_mean_ms": rounds[-1]["none"]["mean_ms"],
            "same_losses": same, "snapshots": last["snapshots"], "compute_ms": last["compute_ms"],
            "most_lag_ms": last["most_lag_ms"]}


def main():
    a = arguments()
    held = True
    with tempfile.TemporaryDirectory() as folder, open(a.output, "a") as out:
        write_random_shard(os.path.join(folder, "random-00000.bin"), VOCAB)
        open(os.path.join(folder, "empty.yaml"), "w").close()
        for variant in a.variants:
            for well, figures in measure(a, variant, folder):
                held = held and well
                print(json.dumps(figures), flush=True)
                out.write(json.dumps(figures) + "\n")
                out.flush()
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
