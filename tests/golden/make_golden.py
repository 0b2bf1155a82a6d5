#!/usr/bin/python3
"""Golden files: an independent float64 model in PyTorch, written from the formulas of the design and not from the C code.

Each case becomes models/CASE.safetensors: fp32 weights, tokens and targets, and what float64 arithmetic makes of them
(stored as fp32): the mean cross-entropy, each token's loss, the final hidden states, every parameter's gradient, and
for layer 0's attention alone its output, dx and weight gradients for a random x and a random output gradient. The
metadata tell how far from these a naive bf16 version usually is: "bf16.NAME" is ||naive - float64|| / ||float64||.

    make_golden.py            write all files beside this script
    make_golden.py --check    recompute and compare with the committed files; writes nothing

Needs PyTorch (Debian: python3-torch); without it the exit code is 77. Shapes: B batch, T context, N = B T, d width, H
heads, G kv heads, D_n / D_r parts of a head without and with rotary, D_v value dim, R latent, R_q query latent, F feed-
forward, V vocabulary.
Weights are [out, in].
"""
import json
import os
import struct
import sys
from types import SimpleNamespace

try:
    import torch
except ImportError:
    print("make_golden.py needs PyTorch (Debian: python3-torch)", file=sys.stderr)
    sys.exit(77)

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "models")
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
NAIVE_RUNS = 16

DEFAULTS = dict(layers=1, width=32, heads=4, kv_heads=None, head_dim=8, ffn=20, vocab=53, context=33, batch=1,
                tie_embeddings=False, rope_theta=10000.0, norm_eps=1e-6, variant="mha", kv_lora_rank=0, q_lora_rank=0,
                qk_nope_head_dim=0, qk_rope_head_dim=0, v_head_dim=None, latent_norm=True, prerope_source="key")

CASES = {
    # grouped-query: one and two kv heads for four heads; values wider than keys; tied embeddings
    "mha_one_kv_head": dict(kv_heads=1, context=33, batch=2),
    "mha_two_kv_heads": dict(layers=2, kv_heads=2, head_dim=12, v_head_dim=16, context=7, batch=3, tie_embeddings=True),
    # one head, and a context that crosses the tiles of 64 and 128
    "mha_one_head": dict(heads=1, head_dim=32, context=131, norm_eps=1e-5, rope_theta=500000.0),
    "prerope_key": dict(variant="mla-prerope", layers=2, kv_lora_rank=16, context=33),
    "prerope_key_plain": dict(variant="mla-prerope", width=40, heads=2, head_dim=16, kv_lora_rank=20, context=9, batch=2,
                              latent_norm=False),
    "prerope_hidden": dict(variant="mla-prerope", layers=2, kv_lora_rank=12, context=7, batch=2,
                           prerope_source="hidden"),
    "prerope_hidden_plain": dict(variant="mla-prerope", heads=1, head_dim=32, kv_lora_rank=12, context=17,
                                 latent_norm=False, prerope_source="hidden"),
    # (D_n + D_r, D_v) = (24, 16) and (48, 32), D_v above D_n, R_q = 0 and above
    "decoupled": dict(variant="mla-decoupled", layers=2, heads=2, kv_lora_rank=24, qk_nope_head_dim=16,
                      qk_rope_head_dim=8, v_head_dim=16, context=33),
    "decoupled_q_latent": dict(variant="mla-decoupled", layers=2, kv_lora_rank=16, q_lora_rank=20, qk_nope_head_dim=8,
                               qk_rope_head_dim=4, v_head_dim=12, context=7, batch=3),
    "decoupled_wide": dict(variant="mla-decoupled", width=72, heads=2, vocab=29, kv_lora_rank=24, qk_nope_head_dim=32,
                           qk_rope_head_dim=16, v_head_dim=32, context=65),
    "decoupled_plain": dict(variant="mla-decoupled", heads=1, kv_lora_rank=16, q_lora_rank=12, qk_nope_head_dim=16,
                            qk_rope_head_dim=16, v_head_dim=8, context=33, batch=2, latent_norm=False),
}

MODEL_KEYS = ("layers", "width", "heads", "kv_heads", "head_dim", "ffn", "vocab", "context", "tie_embeddings",
              "rope_theta", "norm_eps")
ATTENTION_KEYS = {"mha": ("v_head_dim",), "mla-prerope": ("kv_lora_rank", "latent_norm", "prerope_source"),
                  "mla-decoupled": ("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
                                    "latent_norm")}


def resolve(overrides):
    c = SimpleNamespace(**{**DEFAULTS, **overrides})
    c.kv_heads = c.kv_heads or c.heads
    c.v_head_dim = c.v_head_dim or c.head_dim
    return c


def settings(c):
    """The case as settings of a configuration, section.key=value."""
    def text(v):
        return str(v).lower() if isinstance(v, bool) else str(v)
    return ([f"model.{k}={text(getattr(c, k))}" for k in MODEL_KEYS] + [f"attention.variant={c.variant}"] +
            [f"attention.{k}={text(getattr(c, k))}" for k in ATTENTION_KEYS[c.variant]])


def attention_shapes(c):
    H, G, D, d, R = c.heads, c.kv_heads, c.head_dim, c.width, c.kv_lora_rank
    if c.variant == "mha":
        shapes = {"W_Q": (H * D, d), "W_K": (G * D, d), "W_V": (G * c.v_head_dim, d), "W_O": (d, H * c.v_head_dim)}
    elif c.variant == "mla-prerope":
        shapes = {"W_Q": (H * D, d)}
        if c.prerope_source == "key":
            shapes.update(W_K=(H * D, d), W_V=(H * D, d), W_DK=(R, H * D), W_DV=(R, H * D))
        else:
            shapes.update(W_D=(R, d))
        shapes.update(latent_norm=(1, R), W_UK=(H * D, R), W_UV=(H * D, R), W_O=(d, H * D))
    else:
        Dn, Dr, Dv, Rq = c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim, c.q_lora_rank
        shapes = ({"W_DQ": (Rq, d), "q_latent_norm": (1, Rq), "W_UQ": (H * (Dn + Dr), Rq)} if Rq
                  else {"W_Q": (H * (Dn + Dr), d)})
        shapes.update(W_DKV=(R, d), latent_norm=(1, R), W_KR=(Dr, d), W_UKV=(H * (Dn + Dv), R), W_O=(d, H * Dv))
    if not c.latent_norm:
        shapes = {k: s for k, s in shapes.items() if not k.endswith("latent_norm")}
    return shapes


def parameter_shapes(c):
    shapes = {"embedding": (c.vocab, c.width)}
    for layer in range(c.layers):
        p = f"layers.{layer}."
        shapes[p + "attention_norm"] = (1, c.width)
        shapes.update({p + "attention." + k: s for k, s in attention_shapes(c).items()})
        shapes[p + "mlp_norm"] = (1, c.width)
        shapes.update({p + "mlp.W_gate": (c.ffn, c.width), p + "mlp.W_up": (c.ffn, c.width),
                       p + "mlp.W_down": (c.width, c.ffn)})
    shapes["norm"] = (1, c.width)
    if not c.tie_embeddings:
        shapes["lm_head"] = (c.vocab, c.width)
    return shapes


def draw(shape, generator, scale):
    """Random normals rounded to fp32, as float64."""
    return (torch.randn(shape, generator=generator) * scale).float().double()


def draw_parameters(c, generator):
    """Larger than a real start, so that attention is far from uniform and no gradient is negligible."""
    parameters = {}
    for name, shape in parameter_shapes(c).items():
        if name.endswith("norm"):
            value = 1 + draw(shape, generator, 0.25)
        elif name == "embedding":
            value = draw(shape, generator, 0.7)
        else:
            value = draw(shape, generator, 1.2 / shape[1] ** 0.5)
        parameters[name] = value.float().double()
    return parameters


class Bf16(torch.autograd.Function):
    """Rounds to bf16 what goes forward and the gradient that comes back. In so small a model the error is a matter of luck:
    values are nudged by 2^-13 first, far less than bf16's spacing, so that several runs tell how large it usually is."""
    nudges = None  # a generator; without one nothing is rounded

    @staticmethod
    def round(x):
        return (x * (1 + 2.0 ** -13 * torch.randn(x.shape, generator=Bf16.nudges))).bfloat16().to(x.dtype)

    @staticmethod
    def forward(context, x):
        return Bf16.round(x)

    @staticmethod
    def backward(context, gradient):
        return Bf16.round(gradient)


def stored(x):
    """The result of an operation as it is kept for the next. The naive bf16 version is the same model with every weight and
    every result in bf16: products, norms, rotary, scores, softmax, SwiGLU, residual sums and logits; each exact inside."""
    return Bf16.apply(x) if Bf16.nudges else x


def linear(x, w):
    return stored(x @ w.T)


def rms_norm(x, gain, eps):
    return stored(x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * gain[0])


def rope(x, theta):
    """Rotates the last dimension of x [B, T, D] by position: the pairs are (j, j + D/2)."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[1])[:, None] * theta ** (-torch.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return stored(torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1))


def attend(q, k, v, scale):
    """Causal softmax attention of one head: q, k [B, T, D_qk], v [B, T, D_v]."""
    scores = stored((q @ k.transpose(1, 2)) * scale)
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return stored(stored(torch.softmax(scores.masked_fill(future, -torch.inf), -1)) @ v)


def heads_of(x, count):
    """The columns of x [B, T, count width] in count pieces, one a head."""
    return x.split(x.shape[-1] // count, -1)


def attention(c, w, x):
    """One sublayer: x [B, T, d] -> [B, T, d]; w maps the names of attention_shapes to weights."""
    H, theta = c.heads, c.rope_theta

    def norm(latent, gain):
        return rms_norm(latent, w[gain], c.norm_eps) if c.latent_norm else latent

    def rotate_heads(y):
        return torch.cat([rope(h, theta) for h in heads_of(y, y.shape[-1] // c.head_dim)], -1)

    if c.variant == "mha":
        q = [rope(h, theta) for h in heads_of(linear(x, w["W_Q"]), H)]
        k = [rope(h, theta) for h in heads_of(linear(x, w["W_K"]), c.kv_heads)]
        v = heads_of(linear(x, w["W_V"]), c.kv_heads)
        k, v = ([y[h * c.kv_heads // H] for h in range(H)] for y in (k, v))
        width = c.head_dim
    elif c.variant == "mla-prerope":
        if c.prerope_source == "key":
            latent = stored(linear(rotate_heads(linear(x, w["W_K"])), w["W_DK"]) + linear(linear(x, w["W_V"]), w["W_DV"]))
        else:
            latent = linear(rotate_heads(x), w["W_D"])
        latent = norm(latent, "latent_norm")
        q = heads_of(rotate_heads(linear(x, w["W_Q"])), H)
        k, v = heads_of(linear(latent, w["W_UK"]), H), heads_of(linear(latent, w["W_UV"]), H)
        width = c.head_dim
    else:
        Dn, Dr, Dv = c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim
        latent = norm(linear(x, w["W_DKV"]), "latent_norm")
        shared = rope(linear(x, w["W_KR"]), theta)
        queries = linear(norm(linear(x, w["W_DQ"]), "q_latent_norm"), w["W_UQ"]) if c.q_lora_rank else linear(x, w["W_Q"])
        q = [torch.cat([h[..., :Dn], rope(h[..., Dn:], theta)], -1) for h in heads_of(queries, H)]
        up = heads_of(linear(latent, w["W_UKV"]), H)
        k, v = [torch.cat([h[..., :Dn], shared], -1) for h in up], [h[..., Dn:] for h in up]
        width = Dn + Dr
    return linear(torch.cat([attend(q[h], k[h], v[h], width ** -0.5) for h in range(H)], -1), w["W_O"])


def layer_attention(parameters, layer):
    prefix = f"layers.{layer}.attention."
    return {k[len(prefix):]: v for k, v in parameters.items() if k.startswith(prefix)}


def model(c, parameters, tokens, targets):
    """Final hidden states [B, T, d] and the loss of each token [B, T]."""
    x = parameters["embedding"][tokens]
    for layer in range(c.layers):
        p = f"layers.{layer}."
        x = stored(x + attention(c, layer_attention(parameters, layer),
                                 rms_norm(x, parameters[p + "attention_norm"], c.norm_eps)))
        y = rms_norm(x, parameters[p + "mlp_norm"], c.norm_eps)
        gate, up = linear(y, parameters[p + "mlp.W_gate"]), linear(y, parameters[p + "mlp.W_up"])
        x = stored(x + linear(stored(gate * torch.sigmoid(gate) * up), parameters[p + "mlp.W_down"]))
    hidden = rms_norm(x, parameters["norm"], c.norm_eps)
    logits = linear(hidden, parameters["embedding" if c.tie_embeddings else "lm_head"])
    return hidden, torch.logsumexp(logits, -1) - logits.gather(-1, targets[..., None])[..., 0]


def leaves(tensors):
    """Fresh leaves of the graph with these values, and the same as the model reads them."""
    fresh = {k: t.detach().clone().requires_grad_() for k, t in tensors.items()}
    return fresh, {k: stored(t) for k, t in fresh.items()}


def run(c, parameters, tokens, targets, x, dout):
    """What the model and layer 0's attention alone make of their inputs, by name."""
    weights, read = leaves(parameters)
    hidden, losses = model(c, read, tokens, targets)
    losses.mean().backward()
    results = {"loss": losses.mean().reshape(1), "losses": losses, "hidden": hidden.reshape(-1, c.width)}
    results.update({"gradient." + k: v.grad for k, v in weights.items()})

    weights, read = leaves({**layer_attention(parameters, 0), "x": x})
    out = attention(c, read, read["x"])
    out.backward(stored(dout))
    results["sublayer.out"], results["sublayer.dx"] = (t.reshape(-1, c.width) for t in (out, weights.pop("x").grad))
    results.update({"sublayer.gradient." + k: v.grad for k, v in weights.items()})
    return {k: v.detach() for k, v in results.items()}


def naive_errors(results, again):
    """||naive - float64|| / ||float64|| of each result, the root mean square over NAIVE_RUNS runs."""
    squares = dict.fromkeys(results, 0.0)
    Bf16.nudges = torch.Generator().manual_seed(1)
    for _ in range(NAIVE_RUNS):
        naive = again()
        for k, v in results.items():
            squares[k] += float((naive[k] - v).norm() / v.norm()) ** 2 / NAIVE_RUNS
    Bf16.nudges = None
    return {k: v ** 0.5 for k, v in squares.items()}


def compute(name, c):
    """All tensors of one case, by name (floats are float64), and how far off the naive bf16 version is."""
    generator = torch.Generator().manual_seed(1000 + list(CASES).index(name))
    parameters = draw_parameters(c, generator)
    tokens, targets = torch.randint(c.vocab, (2, c.batch, c.context), generator=generator)
    targets[0, 0], tokens[-1, -1] = c.vocab - 1, c.vocab - 1  # the last row of the vocabulary is used
    x, dout = (draw((c.batch, c.context, c.width), generator, 1) for _ in range(2))
    results = run(c, parameters, tokens, targets, x, dout)
    off = naive_errors(results, lambda: run(c, parameters, tokens, targets, x, dout))
    rows = {"sublayer.x": x.reshape(-1, c.width), "sublayer.dout": dout.reshape(-1, c.width)}
    return {**parameters, "tokens": tokens, "targets": targets, **results, **rows}, off


def write_safetensors(path, tensors, metadata):
    """8 bytes of header length, the header as JSON, then the tensors' little-endian data."""
    header, blobs, offset = {"__metadata__": metadata}, [], 0
    for name, t in tensors.items():
        integer = not t.is_floating_point()
        blob = t.to(torch.int32 if integer else torch.float32).contiguous().numpy().tobytes()
        header[name] = {"dtype": "I32" if integer else "F32", "shape": list(t.shape),
                        "data_offsets": [offset, offset + len(blob)]}
        offset += len(blob)
        blobs.append(blob)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def read_safetensors(path):
    """Tensors by name, and the metadata."""
    with open(path, "rb") as f:
        content = f.read()
    length, = struct.unpack_from("<Q", content)
    header, data = json.loads(content[8:8 + length]), content[8 + length:]
    metadata = header.pop("__metadata__")
    kinds = {"F32": torch.float32, "I32": torch.int32}
    return {name: torch.frombuffer(bytearray(data[slice(*entry["data_offsets"])]), dtype=kinds[entry["dtype"]])
            .reshape(entry["shape"]) for name, entry in header.items()}, metadata


def check(path, tensors, metadata):
    """The committed file is what this script computes, to fp32 rounding; a sum in another order may round a bf16 result of
    the naive version the other way."""
    stored_tensors, stored_metadata = read_safetensors(path)
    if list(stored_tensors) != list(tensors) or set(stored_metadata) != set(metadata):
        sys.exit(f"{path}: other tensors than the script's; run make_golden.py and commit the files")
    for name, t in tensors.items():
        gap = (stored_tensors[name].double() - t).abs().max() / max(float(t.double().abs().max()), 1e-30)
        if not gap <= 2.0 ** -23:
            sys.exit(f"{path}: {name} is off by {float(gap):.2g}; run make_golden.py and commit the files")
    for key, value in metadata.items():
        same = value == stored_metadata[key]
        if not same and not (key.startswith("bf16.") and abs(float(value) / float(stored_metadata[key]) - 1) < 0.02):
            sys.exit(f"{path}: {key} is {stored_metadata[key]}, not {value}; run make_golden.py and commit the files")


def main():
    os.makedirs(FOLDER, exist_ok=True)
    for name, overrides in CASES.items():
        c = resolve(overrides)
        path, (tensors, off) = os.path.join(FOLDER, name + ".safetensors"), compute(name, c)
        metadata = {"settings": "\n".join(settings(c)), "batch": str(c.batch)}
        metadata.update({"bf16." + k: f"{v:.3g}" for k, v in off.items()})
        if "--check" in sys.argv[1:]:
            check(path, tensors, metadata)
        else:
            write_safetensors(path, tensors, metadata)
        print(f"{name}: loss {float(tensors['loss']):.6f}, naive bf16 off by {off['losses']:.2g} in the tokens' losses, "
              f"{max(off.values()):.2g} at most, {os.path.getsize(path):,} bytes")


if __name__ == "__main__":
    main()
