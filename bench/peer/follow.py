#!/usr/bin/env python3
"""Trains the PyTorch peer from weights that it hands to Bulkhead, on the batches that Bulkhead takes.

usage: follow.py FOLDER --data GLOB [--variant V] [--size S] [--steps N] ...   (--help lists all)

Draws weights and writes FOLDER/weights.safetensors and FOLDER/config.yaml, with which `bulkhead train FOLDER/config.yaml`
makes the same run; then trains and writes FOLDER/peer.jsonl, one line a step; with --validation, lines of --eval-every steps and
the last have the validation loss too. compare.py sets both side by side.
--only weights or --only train does one of the two: the files are the same for the same arguments.
"""
import argparse
import json
import math
import os
import struct

import torch

import data
import model

FIXED = {"beta1": 0.9, "eps": 1e-8, "clip": 1.0, "min_lr_ratio": 0.1}


def arguments():
    p = argparse.ArgumentParser()
    p.add_argument("folder")
    p.add_argument("--data", required=True, help="training shards, a glob")
    p.add_argument("--validation", help="validation shards, a glob")
    p.add_argument("--eval-every", type=int, default=100)
    p.add_argument("--eval-tokens", type=int, default=65536)
    p.add_argument("--variant", choices=model.VARIANTS, default="mha")
    p.add_argument("--size", choices=model.SIZES, default="130m")
    p.add_argument("--context", type=int)
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--micro-batch", type=int, help="samples at once; the default is the batch")
    p.add_argument("--steps", type=int, default=300)
    p.add_argument("--warmup", type=int, default=100)
    p.add_argument("--lr", type=float, default=3e-4)
    p.add_argument("--beta2", type=float, default=0.95)
    p.add_argument("--weight-decay", type=float, default=0.1)
    p.add_argument("--decay", choices=("matrices", "all"), default="matrices")
    p.add_argument("--std", type=float, default=0.02, help="of the weights at the start")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    p.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    p.add_argument("--compile", action="store_true")
    p.add_argument("--only", choices=("weights", "train"))
    a = p.parse_args()
    a.micro_batch = a.micro_batch or a.batch
    if a.batch % a.micro_batch:
        p.error(f"--batch {a.batch} is no multiple of --micro-batch {a.micro_batch}")
    return a


def write_safetensors(path, tensors):
    header, offset = {}, 0
    for name, t in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(t.shape), "data_offsets": [offset, offset + 4 * t.numel()]}
        offset += 4 * t.numel()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for t in tensors.values():
            f.write(t.contiguous().numpy().tobytes())


def write_config(path, a, shape):
    """The same run in Bulkhead's words."""
    sections = {
        "run": {"name": f"follow-{a.variant}", "seed": a.seed, "device": a.device},
        "model": {"size": a.size, "context": shape.context},
        "attention": {"variant": a.variant},
        "data": {"train": os.path.abspath(a.data)},
        "train": {"steps": a.steps, "global_batch": a.batch, "micro_batch": a.micro_batch, "warmup": a.warmup, "lr": a.lr,
                  "decay": a.decay, "weight_decay": a.weight_decay, "precision": a.precision, "beta2": a.beta2,
                  "init_from": os.path.abspath(os.path.join(a.folder, "weights.safetensors")), **FIXED},
    }
    if a.validation:
        sections["data"]["validation"] = os.path.abspath(a.validation)
        sections["train"].update(eval_every=a.eval_every, eval_tokens=a.eval_tokens)
    with open(path, "w") as f:
        for section, keys in sections.items():
            f.write(f"{section}:\n" + "".join(f"  {k}: {json.dumps(v)}\n" for k, v in keys.items()))


def learning_rate(a, step):
    if step <= a.warmup:
        return a.lr * step / a.warmup
    progress = (step - a.warmup) / (a.steps - a.warmup)
    least = FIXED["min_lr_ratio"]
    return a.lr * (least + (1 - least) * 0.5 * (1 + math.cos(math.pi * progress)))


def clip(parameters, limit):
    """Scales the gradients to a norm of at most the limit; returns what it was. Summed in double: PyTorch's own sum of
    squares on a CPU is off by 5e-4."""
    gradients = [p.grad for p in parameters]
    norm = torch.sqrt(sum(g.double().square().sum() for g in gradients))
    scale = torch.clamp(limit / norm, max=1.0).float()
    for g in gradients:
        g.mul_(scale)
    return norm


def tensors(a, arrays):
    return [torch.from_numpy(x.copy()).to(a.device) for x in arrays]


def autocast(a):
    return torch.autocast(a.device, torch.bfloat16, enabled=a.precision == "bf16")


@torch.no_grad()
def validate(a, m, shards):
    """Mean loss of the first --eval-tokens tokens, in whole windows."""
    windows, total = min(max(a.eval_tokens // shards.context, 1), shards.windows), 0.0
    for first in range(0, windows, a.micro_batch):
        count = min(a.micro_batch, windows - first)
        tokens, targets = tensors(a, shards.rows(range(first, first + count)))
        with autocast(a):
            total += count * m(tokens, targets).item()
    return total / windows


def train(a, m, shape):
    m = m.to(a.device)
    run = torch.compile(m) if a.compile else m
    opt = model.optimizer(m, a.weight_decay, a.decay, fused=a.device == "cuda", beta2=a.beta2)
    shards = data.Shards(a.data, shape.context, a.seed)
    unseen = data.Shards(a.validation, shape.context, a.seed) if a.validation else None
    with open(os.path.join(a.folder, "peer.jsonl"), "w") as log:
        for step in range(1, a.steps + 1):
            tokens, targets = tensors(a, shards.batch(step, a.batch))
            for group in opt.param_groups:
                group["lr"] = learning_rate(a, step)
            loss = 0.0
            for x, y in zip(tokens.split(a.micro_batch), targets.split(a.micro_batch)):
                with autocast(a):
                    part = run(x, y) * (a.micro_batch / a.batch)
                part.backward()
                loss += part.detach()
            norm = clip(m.parameters(), FIXED["clip"])
            opt.step()
            opt.zero_grad(set_to_none=True)
            line = {"step": step, "loss": loss.item(), "grad_norm": norm.item()}
            if unseen and (step % a.eval_every == 0 or step == a.steps):
                line["validation"] = validate(a, m, unseen)
            log.write(json.dumps(line) + "\n")
            log.flush()


def main():
    a = arguments()
    shape = model.shape_of(a.size, a.variant, a.context)
    m = model.Model(shape)
    m.draw(torch.Generator().manual_seed(a.seed), a.std)
    os.makedirs(a.folder, exist_ok=True)
    if a.only != "train":
        write_safetensors(os.path.join(a.folder, "weights.safetensors"), m.weights())
        write_config(os.path.join(a.folder, "config.yaml"), a, shape)
    if a.only != "weights":
        train(a, m, shape)


if __name__ == "__main__":
    main()
