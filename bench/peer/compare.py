#!/usr/bin/env python3
"""How closely a run of Bulkhead follows the peer: compares the losses (and gradient norms) of both at each tenth step, and the
validation losses where the peer has them.

usage: compare.py PEER.jsonl RUN.db [--every N] [--limit X] [--norm-limit X]

Prints one line; the exit code is 1 when a loss of either kind differs by more than --limit of the peer's (0.005), or a norm by more than
--norm-limit where that is given, 2 when the two do not have the same steps.
"""
import argparse
import json
import sqlite3
import sys


def greatest(pairs):
    """The step and the size of the greatest relative difference."""
    return max(((abs(a - b) / abs(b), step) for step, a, b in pairs), key=lambda x: (x[0] != x[0], x[0]))


def main():
    p = argparse.ArgumentParser()
    p.add_argument("peer")
    p.add_argument("database")
    p.add_argument("--every", type=int, default=10)
    p.add_argument("--limit", type=float, default=0.005)
    p.add_argument("--norm-limit", type=float, default=float("inf"))
    a = p.parse_args()
    with open(a.peer) as f:
        peer = {r["step"]: r for r in map(json.loads, f)}
    db = sqlite3.connect(f"file:{a.database}?mode=ro", uri=True)
    validation = dict(db.execute("SELECT step, loss FROM eval_metrics WHERE split = 'validation'"))
    ours = {step: (loss, norm) for step, loss, norm in db.execute("SELECT step, loss, grad_norm FROM train_metrics")}
    if not peer or set(ours) != set(peer):
        print(f"{a.database} has {len(ours)} steps, the peer {len(peer)}: they are not one run", file=sys.stderr)
        sys.exit(2)
    steps = [s for s in sorted(peer) if s % a.every == 0 or s == 1]
    loss, at = greatest([(s, ours[s][0], peer[s]["loss"]) for s in steps])
    norm, norm_at = greatest([(s, ours[s][1], peer[s]["grad_norm"]) for s in steps])
    last = max(steps)
    report = {"run": a.database, "steps": len(peer), "loss_difference": loss, "at_step": at, "limit": a.limit,
              "norm_difference": norm, "norm_at_step": norm_at, "first_loss": ours[1][0], "last_loss": ours[last][0],
              "last_peer_loss": peer[last]["loss"]}
    differences = [loss]
    if validated := {step: line["validation"] for step, line in peer.items() if "validation" in line}:
        if set(validated) != set(validation):
            print(f"{a.database} was validated at {len(validation)} steps, the peer at {len(validated)}", file=sys.stderr)
            sys.exit(2)
        unseen, unseen_at = greatest([(s, validation[s], validated[s]) for s in validated])
        report.update(validation_difference=unseen, validation_at_step=unseen_at, last_validation=validation[max(validated)],
                      last_peer_validation=validated[max(validated)])
        differences.append(unseen)
    print(json.dumps(report))
    sys.exit(0 if all(d <= a.limit for d in differences) and norm <= a.norm_limit else 1)


if __name__ == "__main__":
    main()
