#!/usr/bin/env python3
"""Time of a step as the work grows: context T, width d, layers L and tensor-parallel ranks P, each alone, beside what its
work says at the rates of the middle of the curve.

usage: curves.py BULKHEAD OUTPUT.jsonl [--device cuda|cpu] [--variant mla-decoupled] [--axes T d L P]
                 [--steps 10] [--rounds 1]

The tokens of a step stay the same, so a longer context has fewer samples. For each point `train --profile` counts the work of
each phase (operations of products and attention, bytes of the rest); predicted_ms takes each phase's work at the rate that
the phase has at the point that all curves share. So the ratio says what size does to the device's efficiency, and nothing
else. Random tokens, no diagnostics. Prints and appends JSON lines.
"""
import argparse
import array
import json
import os
import random
import re
import sqlite3
import struct
import subprocess
import sys
import tempfile

HEAD_DIM = 64
BASE = {"cuda": dict(T=1024, d=768, L=12, P=1), "cpu": dict(T=256, d=256, L=4, P=1)}
AXES = {
    "cuda": dict(T=(512, 1024, 2048, 4096, 8192, 16384), d=(256, 512, 768, 1024, 1536, 2048), L=(4, 8, 12, 16, 24),
                 P=(1, 2, 4, 8)),
    "cpu": dict(T=(64, 128, 256, 512, 1024), d=(128, 256, 384, 512), L=(1, 2, 4, 8), P=(1, 2)),
}
TOKENS = {"cuda": 32768, "cpu": 2048}
VOCAB = {"cuda": 32000, "cpu": 4096}
SHARD_TOKENS = 2_000_000
TIME_LIMIT_S = 300


def arguments():
    p = argparse.ArgumentParser(usage=__doc__.split("\n\n")[1].removeprefix("usage: "))
    p.add_argument("bulkhead")
    p.add_argument("output")
    p.add_argument("--device", choices=BASE, default="cpu")
    p.add_argument("--variant", default="mla-decoupled")
    p.add_argument("--axes", nargs="+", choices="TdLP", default=list("TdLP"))
    p.add_argument("--steps", type=int, default=10)
    p.add_argument("--rounds", type=int, default=1)
    return p.parse_args()


def write_random_shard(path, vocab):
    tokens = array.array("H", random.Random(1).choices(range(vocab), k=SHARD_TOKENS))
    with open(path, "wb") as f:
        f.write(struct.pack("<256i", 20240520, 1, SHARD_TOKENS, *[0] * 253))
        tokens.tofile(f)


def command(a, folder, point):
    samples = TOKENS[a.device] // point["T"]
    ffn = 16 * round(point["d"] / 6)  # 8/3 d
    settings = {"run.dir": os.path.join(folder, "run"), "run.device": a.device, "model.layers": point["L"],
                "model.width": point["d"], "model.heads": point["d"] // HEAD_DIM, "model.ffn": ffn,
                "model.vocab": VOCAB[a.device], "model.context": point["T"], "attention.variant": a.variant,
                "data.train": os.path.join(folder, "random-00000.bin"), "train.steps": a.steps + 3, "train.warmup": 1,
                "train.global_batch": samples, "train.micro_batch": samples, "parallel.tensor": point["P"],
                "diagnostics.ranks": 0, "checkpoint.every": 0}
    words = ["mpirun", "--bind-to", "none", "--oversubscribe", "-n", str(point["P"])]
    words += ["--allow-run-as-root"] if os.geteuid() == 0 else []
    words += [a.bulkhead, "train", os.path.join(folder, "empty.yaml"), "--profile", str(a.steps)]
    return words + [word for k, v in settings.items() for word in ("--set", f"{k}={v}")]


def profiled(a, folder, point):
    """Rows of the table `profile` by phase, or None, with the program's last lines printed, where it fails."""
    subprocess.run(["rm", "-rf", os.path.join(folder, "run")], check=True)
    done = subprocess.run(command(a, folder, point), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          timeout=TIME_LIMIT_S, check=False)
    if done.returncode != 0:
        print(f"{point}: failed\n" + "\n".join(done.stdout.splitlines()[-5:]), file=sys.stderr)
        return None
    db = sqlite3.connect(f"file:{folder}/run/run.db?mode=ro", uri=True)
    db.row_factory = sqlite3.Row
    rows = {row["phase"]: row for row in db.execute("SELECT phase, ms, flops, bytes FROM profile")}
    device = db.execute("SELECT device FROM sessions").fetchone()[0]
    return {"rows": rows, "device": device}


def measure(a, folder, point):
    found = [profiled(a, folder, point) for _ in range(a.rounds)]
    return min(found, key=lambda f: f["rows"]["step"]["ms"]) if all(found) else None


def predicted_ms(rows, base):
    """Each phase's work at its rate in base; phases without counted work take the time that they take there."""
    total = 0
    for phase, row in rows.items():
        if phase in ("step", "ceiling", "communication hidden"):
            continue
        unit = "flops" if row["flops"] else "bytes"
        then = base.get(phase)
        if row[unit] and then and then[unit]:
            total += row[unit] * then["ms"] / then[unit]
        elif phase == "idle" and then:
            total += then["ms"]
    return total


def gpus(bulkhead):
    said = subprocess.run([bulkhead, "version", "--verbose"], stdout=subprocess.PIPE, text=True, check=True).stdout
    return int(re.search(r"(\d+) NVIDIA GPU", said).group(1))


def points(a, axis):
    most = gpus(a.bulkhead) if a.device == "cuda" else os.cpu_count()
    for value in AXES[a.device][axis]:
        if axis != "P" or value <= most:
            yield BASE[a.device] | {axis: value}


def main():
    a = arguments()
    failed = False
    with tempfile.TemporaryDirectory() as folder, open(a.output, "a") as out:
        write_random_shard(os.path.join(folder, "random-00000.bin"), VOCAB[a.device])
        open(os.path.join(folder, "empty.yaml"), "w").close()
        base = measure(a, folder, BASE[a.device])
        if not base:
            sys.exit(1)
        for axis in a.axes:
            for point in points(a, axis):
                found = base if point == BASE[a.device] else measure(a, folder, point)
                failed = failed or not found
                if not found:
                    continue
                ms, want = found["rows"]["step"]["ms"], predicted_ms(found["rows"], base["rows"])
                text = json.dumps({"bench": "curve", "device": found["device"], "variant": a.variant, "axis": axis, **point,
                                   "tokens": TOKENS[a.device], "ms": ms, "predicted_ms": want, "ratio": ms / want})
                print(text, flush=True)
                out.write(text + "\n")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
