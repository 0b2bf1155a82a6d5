"""The peer: a LLaMA-like model with the three attention variants, written in PyTorch from docs/design.md sections 2 and 3
and not from the C code. It starts from the same weights, sees the same batches, and is timed beside Bulkhead.

Products that read the same input are one matrix here, as a user of PyTorch would have them; `Model.weights` gives them in
Bulkhead's names, of a model on one rank; ranks.py says what more there are for. Shapes: B batch, T context, d width, H heads, D head dim, R latent dim, D_r rotary dim of mla-decoupled.
"""
import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from ranks import cross_entropy, enter, leave, share

VARIANTS = ("mha", "mla-prerope", "mla-decoupled")
SIZES = {  # layers, width, heads, feed-forward, vocabulary, context, latent dim over D
    "tiny": (4, 256, 4, 688, 4096, 256, 2),
    "60m": (8, 512, 8, 1376, 32000, 1024, 4),
    "130m": (12, 768, 12, 2048, 32000, 1024, 4),
    "350m": (24, 1024, 16, 2736, 32000, 1024, 4),
    "1b": (24, 2048, 32, 5461, 32000, 2048, 4),
}
EPS, THETA = 1e-6, 10000.0


@dataclass
class Shape:
    variant: str
    layers: int
    width: int
    heads: int
    ffn: int
    vocab: int
    context: int
    latent: int
    ranks: int = 1  # tensor-parallel ones; this model is that of `rank`
    rank: int = 0

    @property
    def head_dim(self):
        return self.width // self.heads

    @property
    def rotary_dim(self):
        return self.head_dim // 2 if self.variant == "mla-decoupled" else self.head_dim


def shape_of(size, variant, context=None, ranks=1, rank=0):
    layers, width, heads, ffn, vocab, full, latent = SIZES[size]
    return Shape(variant, layers, width, heads, ffn, vocab, context or full, latent * (width // heads), ranks, rank)


def plain_attention(q, k, v, is_causal):
    """For a PyTorch that has no fused one: softmax(q k^T / sqrt(D)) v over [B, H, T, D], causal."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    return torch.softmax(scores.masked_fill(future, -math.inf), -1) @ v


attend = getattr(F, "scaled_dot_product_attention", plain_attention)


def rotate(x, table):
    """Turns the pairs (j, j + D/2) of x [B, H, T, D] by their position's angles."""
    cos, sin = table
    a, b = x.float().chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)


class Norm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        wide = x.float()
        return (wide * torch.rsqrt((wide * wide).mean(-1, keepdim=True) + EPS) * self.weight).to(x.dtype)


def linear(inputs, outputs, s, dim=None, parts=1):
    """Cut over the ranks by its outputs (dim 0) or inputs (1), which are so many parts."""
    size = [outputs, inputs]
    if dim is not None:
        size[dim] = parts * share(size[dim] // parts, s.ranks)
    layer = nn.Linear(size[1], size[0], bias=False)
    if dim is not None and s.ranks > 1:
        layer.weight.cut = dim, parts
    return layer


class Attention(nn.Module):
    """What the variants share: heads out of a row, and the way back to the residual stream."""

    def __init__(self, s):
        super().__init__()
        self.ranks, self.heads = s.ranks, s.heads // s.ranks
        self.out = linear(s.width, s.width, s, dim=1)

    def split(self, x, parts):
        """[B, T, parts H D] -> parts of [B, H, T, D]; each part holds all heads."""
        return x.unflatten(-1, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4)

    def join(self, q, k, v):
        return leave(self.out(attend(q, k, v, is_causal=True).transpose(1, 2).flatten(2)), self.ranks)


class Mha(Attention):
    def __init__(self, s):
        super().__init__(s)
        self.qkv = linear(s.width, 3 * s.width, s, dim=0, parts=3)

    def forward(self, x, table):
        q, k, v = self.split(self.qkv(enter(x, self.ranks)), 3)
        return self.join(rotate(q, table), rotate(k, table), v)

    def weights(self):
        return dict(zip(("W_Q", "W_K", "W_V"), self.qkv.weight.chunk(3)), W_O=self.out.weight)


class Prerope(Attention):
    """Keys are turned before they are compressed with the values; what comes out of the latent is not turned."""

    def __init__(self, s):
        super().__init__(s)
        self.qkv = linear(s.width, 3 * s.width, s, dim=0, parts=3)
        self.down = linear(2 * s.width, s.latent, s, dim=1, parts=2)
        self.norm = Norm(s.latent)
        self.up = linear(s.latent, 2 * s.width, s, dim=0, parts=2)

    def forward(self, x, table):
        q, k, v = self.split(self.qkv(enter(x, self.ranks)), 3)
        both = torch.cat((rotate(k, table), v), 1).transpose(1, 2).flatten(2)
        latent = self.norm(leave(self.down(both), self.ranks))
        k, v = self.split(self.up(enter(latent, self.ranks)), 2)
        return self.join(rotate(q, table), k, v)

    def weights(self):
        found = dict(zip(("W_Q", "W_K", "W_V"), self.qkv.weight.chunk(3)))
        found.update(zip(("W_DK", "W_DV"), self.down.weight.chunk(2, 1)))
        found.update(zip(("W_UK", "W_UV"), self.up.weight.chunk(2)))
        return dict(found, latent_norm=self.norm.weight, W_O=self.out.weight)


class Decoupled(Attention):
    """Keys are [content from the latent | one rotary key for all heads]."""

    def __init__(self, s):
        super().__init__(s)
        self.parts = s.head_dim, s.rotary_dim
        self.latent = s.latent, s.rotary_dim
        self.q = linear(s.width, s.heads * sum(self.parts), s, dim=0)
        self.down = linear(s.width, sum(self.latent), s)
        self.norm = Norm(s.latent)
        self.up = linear(s.latent, 2 * s.width, s, dim=0)

    def forward(self, x, table):
        content, turned = self.q(enter(x, self.ranks)).unflatten(-1, (self.heads, -1)).transpose(1, 2).split(self.parts, -1)
        latent, key = self.down(x).split(self.latent, -1)
        latent, key = enter(self.norm(latent), self.ranks), enter(key, self.ranks)
        k, v = self.up(latent).unflatten(-1, (self.heads, 2, -1)).permute(3, 0, 2, 1, 4)
        key = rotate(key[:, None], table).expand(-1, self.heads, -1, -1)
        return self.join(torch.cat((content, rotate(turned, table)), -1), torch.cat((k, key), -1), v)

    def weights(self):
        down, key = self.down.weight.split(self.latent)
        return dict(W_Q=self.q.weight, W_DKV=down, W_KR=key, latent_norm=self.norm.weight, W_UKV=self.up.weight,
                    W_O=self.out.weight)


ATTENTION = dict(zip(VARIANTS, (Mha, Prerope, Decoupled)))


class Block(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.attention_norm, self.mlp_norm = Norm(s.width), Norm(s.width)
        self.attention = ATTENTION[s.variant](s)
        self.ranks = s.ranks
        self.gate_up = linear(s.width, 2 * s.ffn, s, dim=0, parts=2)
        self.mlp_out = linear(s.ffn, s.width, s, dim=1)

    def forward(self, x, table):
        x = x + self.attention(self.attention_norm(x), table)
        gate, up = self.gate_up(enter(self.mlp_norm(x), self.ranks)).chunk(2, -1)
        return x + leave(self.mlp_out(F.silu(gate) * up), self.ranks)

    def weights(self):
        gate, up = self.gate_up.weight.chunk(2)
        found = {"attention." + name: w for name, w in self.attention.weights().items()}
        found.update({"attention_norm": self.attention_norm.weight, "mlp_norm": self.mlp_norm.weight, "mlp.W_gate": gate,
                      "mlp.W_up": up, "mlp.W_down": self.mlp_out.weight})
        return found


class Model(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.embedding = nn.Embedding(s.vocab, s.width)
        self.blocks = nn.ModuleList(Block(s) for _ in range(s.layers))
        self.norm = Norm(s.width)
        self.ranks, self.rank = s.ranks, s.rank
        self.head = linear(s.width, s.vocab, s, dim=0)
        half = s.rotary_dim // 2
        angle = torch.arange(s.context, dtype=torch.float64)[:, None] * THETA ** (-torch.arange(half).double() / half)
        self.register_buffer("cos", angle.cos().float(), persistent=False)
        self.register_buffer("sin", angle.sin().float(), persistent=False)

    def draw(self, generator, std=0.02):
        """N(0, std^2), what writes into the residual stream smaller by sqrt(2 L); gains stay 1."""
        for name, p in self.named_parameters():
            if p.dim() > 1:
                small = math.sqrt(2 * len(self.blocks)) if name.endswith("out.weight") else 1
                p.data.normal_(0, std / small, generator=generator)

    def forward(self, tokens, targets):
        """Mean cross-entropy in nats over [B, T]."""
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, (self.cos, self.sin))
        logits = self.head(enter(self.norm(x), self.ranks)).float().flatten(0, 1)
        if self.ranks > 1:
            return cross_entropy(logits, targets.flatten(), self.rank)
        return F.cross_entropy(logits, targets.flatten())

    def weights(self):
        """Every parameter in Bulkhead's names, whole, [rows, cols]; a gain is one row."""
        found = {"embedding": self.embedding.weight, "norm": self.norm.weight, "lm_head": self.head.weight}
        for i, block in enumerate(self.blocks):
            found.update({f"layers.{i}.{name}": w for name, w in block.weights().items()})
        return {name: w.detach() if w.dim() == 2 else w.detach()[None] for name, w in found.items()}


def optimizer(model, weight_decay, decay="matrices", fused=False, beta2=0.95):
    """AdamW as Bulkhead's defaults have it: gains decay only with decay = all. The caller sets the learning rate."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    gains = [p for p in model.parameters() if p.dim() == 1]
    groups = [dict(params=matrices, weight_decay=weight_decay),
              dict(params=gains, weight_decay=weight_decay if decay == "all" else 0)]
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, beta2), eps=1e-8, **({"fused": True} if fused else {}))
