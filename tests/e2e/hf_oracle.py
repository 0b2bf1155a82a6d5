"""What a model in Hugging Face's format computes, in NumPy and float64, from config.json and the tensors alone, written from the
published definitions of LlamaForCausalLM and DeepseekV3ForCausalLM and from nothing in this repository."""
import json
import os
import struct

import numpy as np


def read_tensors(path):
    """The file's tensors by name, as float64."""
    with open(path, "rb") as f:
        content = f.read()
    length, = struct.unpack_from("<Q", content)
    header = json.loads(content[8:8 + length])
    header.pop("__metadata__", None)
    data = content[8 + length:]
    return {name: np.frombuffer(data[slice(*e["data_offsets"])], {"F32": "<f4"}[e["dtype"]]).reshape(e["shape"]).astype(float)
            for name, e in header.items()}


def load(folder):
    with open(os.path.join(folder, "config.json")) as f:
        return json.load(f), read_tensors(os.path.join(folder, "model.safetensors"))


def norm(x, gain, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * gain


def halves(x, theta):
    """[T, D]: pairs (j, j + D/2)."""
    half = x.shape[-1] // 2
    angle = np.arange(len(x))[:, None] * theta ** (-np.arange(half) / half)
    a, b = x[:, :half], x[:, half:]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1)


def pairs(x, theta):
    """[T, D]: pairs (2j, 2j + 1), the result as halves have it."""
    return halves(np.concatenate([x[:, 0::2], x[:, 1::2]], -1), theta)


def attend(q, k, v, scale):
    s = q @ k.T * scale
    s = np.where(np.tri(len(q)), s, -np.inf)
    p = np.exp(s - s.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True) @ v


def llama_attention(c, w, x):
    heads, kv, theta = c["num_attention_heads"], c["num_key_value_heads"], c["rope_theta"]
    dim = c.get("head_dim") or c["hidden_size"] // heads
    q, k, v = (np.split(x @ w[n + "_proj.weight"].T, count, -1) for n, count in (("q", heads), ("k", kv), ("v", kv)))
    out = [attend(halves(q[h], theta), halves(k[h * kv // heads], theta), v[h * kv // heads], dim ** -0.5)
           for h in range(heads)]
    return np.concatenate(out, -1) @ w["o_proj.weight"].T


def deepseek_attention(c, w, x, rotate):
    heads, theta, rank = c["num_attention_heads"], c["rope_theta"], c["kv_lora_rank"]
    nope, rope = c["qk_nope_head_dim"], c["qk_rope_head_dim"]
    if c["q_lora_rank"] is None:
        q = x @ w["q_proj.weight"].T
    else:
        q = norm(x @ w["q_a_proj.weight"].T, w["q_a_layernorm.weight"], 1e-6) @ w["q_b_proj.weight"].T
    both = x @ w["kv_a_proj_with_mqa.weight"].T
    kv = norm(both[:, :rank], w["kv_a_layernorm.weight"], 1e-6) @ w["kv_b_proj.weight"].T
    shared = rotate(both[:, rank:], theta)
    out = []
    for qh, kvh in zip(np.split(q, heads, -1), np.split(kv, heads, -1)):
        qh = np.concatenate([qh[:, :nope], rotate(qh[:, nope:], theta)], -1)
        out.append(attend(qh, np.concatenate([kvh[:, :nope], shared], -1), kvh[:, nope:], (nope + rope) ** -0.5))
    return np.concatenate(out, -1) @ w["o_proj.weight"].T


def logits(folder, tokens, always_interleaves=False):
    """[T, V]. always_interleaves: as by a program that does not look at rope_interleave."""
    c, tensors = load(folder)
    eps = c["rms_norm_eps"]
    latent = c["architectures"] == ["DeepseekV3ForCausalLM"]
    assert latent or c["architectures"] == ["LlamaForCausalLM"]
    rotate = pairs if always_interleaves or c.get("rope_interleave", True) else halves
    x = tensors["model.embed_tokens.weight"][tokens]
    for layer in range(c["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        w = {k[len(prefix):]: v for k, v in tensors.items() if k.startswith(prefix)}
        own = {k[len("self_attn."):]: v for k, v in w.items() if k.startswith("self_attn.")}
        y = norm(x, w["input_layernorm.weight"], eps)
        x = x + (deepseek_attention(c, own, y, rotate) if latent else llama_attention(c, own, y))
        y = norm(x, w["post_attention_layernorm.weight"], eps)
        gate = y @ w["mlp.gate_proj.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * (y @ w["mlp.up_proj.weight"].T)) @ w["mlp.down_proj.weight"].T
    head = tensors["model.embed_tokens.weight" if c["tie_word_embeddings"] else "lm_head.weight"]
    return norm(x, tensors["model.norm.weight"], eps) @ head.T
