#!/usr/bin/env python3
"""The README's tables from bench/results: Bulkhead beside its peers, of each pair of the same run.

usage: table.py RESULTS [--into FILE]     prints, or replaces what is between the marks in FILE
"""
import glob
import json
import os
import sys

BEGIN, END = "<!-- bench/table.py -->", "<!-- end of bench/table.py -->"
VARIANTS = ("mha", "mla-prerope", "mla-decoupled")
SHAPES = ("64-1k", "96/64-1k", "64-2k", "96/64-2k", "64-8k", "128-4k", "192/128-4k", "128-16k", "192/128-16k")


def read(folder):
    """All lines, each with the machine that its file is named after; a later line replaces an earlier one of its kind."""
    lines = []
    for path in sorted(glob.glob(os.path.join(folder, "*.jsonl"))):
        machine = os.path.basename(path).removesuffix(".jsonl").split("-", 1)[1]
        with open(path) as f:
            lines += [json.loads(line) | {"machine": machine} for line in f]
    return lines


def markdown(head, rows):
    """Empty without rows."""
    if not rows:
        return ""
    text = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(text + ["| " + " | ".join(str(c) for c in row) + " |" for row in rows])


def thousands(x):
    return f"{x / 1000:.0f}k" if x >= 10_000 else f"{x:,.0f}"


def step_rows(lines):
    """A program's figures by machine, size, split and variant: ours without diagnostics, the peer compiled."""
    found = {}
    for line in lines:
        if line["bench"] != "step" or "program" not in line or line.get("diagnostics_every"):
            continue
        if line.get("compiled") is False:
            continue
        split = f"{line['gpus']} GPUs, {line['parallel']}" if line.get("gpus", 1) > 1 else ""
        key = line["machine"], line["size"], split, line["batch"], line["context"], line["variant"]
        found.setdefault(key, {})[line["program"]] = line
    return found


def steps(lines):
    rows = []
    order = sorted(step_rows(lines).items(), key=lambda kv: (*kv[0][:5], VARIANTS.index(kv[0][5])))
    for (machine, size, split, batch, context, variant), by in order:
        if not {"bulkhead", "pytorch"} <= by.keys():
            continue
        ours, peer = by["bulkhead"], by["pytorch"]
        memory = "" if "memory_gib" not in ours else f"{ours['memory_gib']:.1f} / {peer['memory_gib']:.1f}"
        rows.append((machine, f"{size}, {batch} x {context}" + (f", {split}" if split else ""), variant,
                     thousands(ours["tokens_per_s"]), thousands(peer["tokens_per_s"]),
                     f"{ours['tokens_per_s'] / peer['tokens_per_s']:.2f}", memory))
    return markdown(("machine", "model", "variant", "tokens/s", "PyTorch, compiled", "ratio", "GiB, ours / PyTorch"), rows)


def attention(lines):
    by = {}
    for line in lines:
        if line["bench"] == "attention":
            by[line["machine"], line["shape"], line["core"]] = line
    rows = []
    for machine in sorted({m for m, _, _ in by}):
        for shape in SHAPES:
            ours, cudnn, flash = (by.get((machine, shape, core)) for core in ("wgmma", "cudnn", "flash-attention-2"))
            if not ours or not cudnn:
                continue
            rows.append((machine, shape,
                         *(f"{c['forward_tflops']:.0f} / {c['backward_tflops']:.0f}" if c else "" for c in (ours, cudnn, flash)),
                         *(f"{ours[d] / cudnn[d]:.2f}" for d in ("forward_tflops", "backward_tflops"))))
    return markdown(("machine", "D_qk/D_v-T", "TFLOP/s forward / backward", "cuDNN", "FlashAttention-2", "forward over cuDNN",
                     "backward over cuDNN"), rows)


def tables(folder):
    lines = read(folder)
    parts = (("A training step (bf16 on GPUs, fp32 on CPUs), both programs in one run:", steps(lines)),
             ("Causal attention in bf16, both in one run:", attention(lines)))
    return "\n".join(f"{title}\n\n{table}\n" for title, table in parts if table)


def replace(path, text):
    with open(path) as f:
        before, rest = f.read().split(BEGIN + "\n")
    after = rest.split(END)[1]
    with open(path, "w") as f:
        f.write(f"{before}{BEGIN}\n{text}{END}{after}")


def main():
    if len(sys.argv) not in (2, 4) or (len(sys.argv) == 4 and sys.argv[2] != "--into"):
        sys.exit(__doc__.split("\n\n")[1])
    text = tables(sys.argv[1])
    if len(sys.argv) == 4:
        replace(sys.argv[3], text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
