"""Checkpoints for the tests of `bulkhead analyze`: safetensors files, and folders in Hugging Face's layout, with small
random weights. A value is a function of its tensor's name alone, and is exact in bf16 and in fp16, so that every type
holds the same."""
import json
import os
import random
import struct

LLAMA = dict(model_type="llama", num_hidden_layers=2, hidden_size=16, num_attention_heads=4, num_key_value_heads=2,
             intermediate_size=24, vocab_size=64, max_position_embeddings=32, rms_norm_eps=1e-6, rope_theta=10000.0)
DEEPSEEK = dict(model_type="deepseek_v3", num_hidden_layers=2, hidden_size=24, num_attention_heads=3,
                num_key_value_heads=3, intermediate_size=24, vocab_size=64, max_position_embeddings=32, kv_lora_rank=12,
                q_lora_rank=None, qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=5, rms_norm_eps=1e-6)


def values(name, count, mean=0.0):
    """Multiples of 1/64 up to 2: 8 bits."""
    draw = random.Random(name)
    return [max(-128, min(128, round(64 * draw.gauss(mean, 0.5)))) / 64 for _ in range(count)]


def pack(dtype, numbers):
    if hasattr(numbers, "astype"):  # NumPy's
        assert dtype == "F32"
        return numbers.astype("<f4").tobytes()
    if dtype == "BF16":
        return b"".join(struct.pack("<f", x)[2:] for x in numbers)
    return struct.pack(f"<{len(numbers)}{dict(F16='e', F32='f', F64='d')[dtype]}", *numbers)


def write(path, tensors, dtype="F32", metadata=None):
    """tensors: name to (shape, values)."""
    header, blobs, offset = {}, [], 0
    if metadata:
        header["__metadata__"] = metadata
    for name, (shape, numbers) in tensors.items():
        blob = pack(dtype, numbers)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + len(blob)]}
        offset += len(blob)
        blobs.append(blob)
    text = json.dumps(header).encode()
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def random_tensors(shapes, seed=""):
    tensors = {}
    for name, shape in shapes.items():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        tensors[name] = (shape, values(seed + name, count, mean=1.0 if "norm" in name else 0.0))
    return tensors


def shapes_of(config):
    """What a layer of the architecture is made of, and a few tensors that the spectra do not need."""
    d, heads = config["hidden_size"], config["num_attention_heads"]
    found = {"model.embed_tokens.weight": (config["vocab_size"], d), "model.norm.weight": (d,)}
    for layer in range(config["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        a = p + "self_attn."
        found.update({p + "input_layernorm.weight": (d,), p + "post_attention_layernorm.weight": (d,),
                      p + "mlp.up_proj.weight": (config["intermediate_size"], d)})
        if "kv_lora_rank" not in config:
            dim = config.get("head_dim") or d // heads
            kv = config.get("num_key_value_heads", heads)
            found.update({a + "q_proj.weight": (heads * dim, d), a + "k_proj.weight": (kv * dim, d),
                          a + "v_proj.weight": (kv * dim, d), a + "o_proj.weight": (d, heads * dim)})
            if config["model_type"].startswith("qwen3"):
                found.update({a + "q_norm.weight": (dim,), a + "k_norm.weight": (dim,)})
            if config["model_type"] == "qwen2":
                found.update({a + "q_proj.bias": (heads * dim,), a + "k_proj.bias": (kv * dim,)})
            continue
        latent, nope, rope, value = (config[k] for k in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim",
                                                         "v_head_dim"))
        if config["q_lora_rank"]:
            found.update({a + "q_a_proj.weight": (config["q_lora_rank"], d),
                          a + "q_a_layernorm.weight": (config["q_lora_rank"],),
                          a + "q_b_proj.weight": (heads * (nope + rope), config["q_lora_rank"])})
        else:
            found[a + "q_proj.weight"] = (heads * (nope + rope), d)
        found.update({a + "kv_a_proj_with_mqa.weight": (latent + rope, d), a + "kv_a_layernorm.weight": (latent,),
                      a + "kv_b_proj.weight": (heads * (nope + value), latent),
                      a + "o_proj.weight": (d, heads * value)})
    return found


def write_folder(folder, config, tensors=None, dtype="F32", shards=1, seed=""):
    """A model in Hugging Face's layout; with shards > 1 its tensors take turns. Returns the folder."""
    tensors = tensors or random_tensors(shapes_of(config), seed)
    os.makedirs(folder)
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(config, f)
    if shards == 1:
        write(os.path.join(folder, "model.safetensors"), tensors, dtype, {"format": "pt"})
        return folder
    names = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    where = {tensor: names[i % shards] for i, tensor in enumerate(tensors)}
    for name in names:
        write(os.path.join(folder, name), {t: v for t, v in tensors.items() if where[t] == name}, dtype)
    with open(os.path.join(folder, "model.safetensors.index.json"), "w") as f:
        json.dump({"metadata": {}, "weight_map": where}, f)
    return folder
