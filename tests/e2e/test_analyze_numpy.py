"""`bulkhead analyze` against NumPy, from what the published layouts mean: each head's query and key (and value and output) is
computed the way the model's own code does, by feeding it the unit vectors, and the maps are made from that in full."""
import unittest

try:
    import numpy as np
except ImportError:
    np = None

import checkpoints
from checkpoints import DEEPSEEK, LLAMA
from test_analyze import AnalyzeTest

FORMS = ["--set", "diagnostics.parts=full,content,rope,ov", "--set", "diagnostics.esd_every=1"]


def grouped(config, tensor, x):
    """Queries, keys [H, tokens, D] and values of normalized tokens x, outputs of values: Llama at position 0."""
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    x = x * tensor("input_layernorm.weight")
    split = lambda y, n: y.reshape(len(y), n, -1).transpose(1, 0, 2)
    query = split(x @ tensor("self_attn.q_proj.weight").T, heads)
    key = np.repeat(split(x @ tensor("self_attn.k_proj.weight").T, kv), heads // kv, axis=0)
    value = np.repeat(split(x @ tensor("self_attn.v_proj.weight").T, kv), heads // kv, axis=0)
    return {"full": (query, key)}, value


def latent(config, tensor, x):
    """The same for DeepSeek-V2 and -V3; the latents' norms by their gains alone, and the content key's factor for tokens
    without direction."""
    heads, nope, rope = config["num_attention_heads"], config["qk_nope_head_dim"], config["qk_rope_head_dim"]
    rank = config["kv_lora_rank"]
    x = x * tensor("input_layernorm.weight")
    if config["q_lora_rank"]:
        query = (x @ tensor("self_attn.q_a_proj.weight").T * tensor("self_attn.q_a_layernorm.weight")
                 ) @ tensor("self_attn.q_b_proj.weight").T
    else:
        query = x @ tensor("self_attn.q_proj.weight").T
    query = query.reshape(len(x), heads, nope + rope).transpose(1, 0, 2)
    compressed = x @ tensor("self_attn.kv_a_proj_with_mqa.weight").T
    c, rotary_key = compressed[:, :rank], compressed[:, rank:]
    rms = np.linalg.norm(c) / np.sqrt(rank)
    both = (c * tensor("self_attn.kv_a_layernorm.weight")) @ tensor("self_attn.kv_b_proj.weight").T
    both = both.reshape(len(x), heads, nope + config["v_head_dim"]).transpose(1, 0, 2)
    content, value = both[:, :, :nope], both[:, :, nope:]
    rotary_key = np.repeat(rotary_key[None], heads, axis=0)
    return {"full": (query, np.concatenate([content / rms, rotary_key], axis=2)), "content": (query[:, :, :nope], content),
            "rope": (query[:, :, nope:], rotary_key)}, value


class NumpyTest(AnalyzeTest):
    def setUp(self):
        super().setUp()
        if np is None:
            print("skipped: this Python has no NumPy")
            self.skipTest("no NumPy")


class AgainstNumpy(NumpyTest):
    def singular_values(self, db):
        return {tuple(row)[:5]: np.frombuffer(row["singular_values"]) for row in db.execute(
            "SELECT form, part, scope, layer, head, singular_values FROM esd JOIN matrices USING (matrix_id)")}

    def check(self, config, dtype):
        weights = checkpoints.random_tensors(checkpoints.shapes_of(config))
        model = checkpoints.write_folder(self.path("m"), config, weights, dtype=dtype, shards=2)
        got, seen = self.singular_values(self.analyze("a.db", model, options=FORMS)), 0
        for layer in range(config["num_hidden_layers"]):
            def tensor(name):
                shape, numbers = weights[f"model.layers.{layer}.{name}"]
                return np.array(numbers).reshape(shape)

            read = latent if "kv_lora_rank" in config else grouped
            maps, value = read(config, tensor, np.eye(config["hidden_size"]))
            heads = len(value)
            out = tensor("self_attn.o_proj.weight").reshape(config["hidden_size"], heads, -1)
            maps["ov"] = (out.transpose(1, 0, 2), value)
            for part, (a, b) in maps.items():
                whole = sum(a[h] @ b[h].T for h in range(heads))
                want = {("score", part, "layer", layer, -1): whole}
                want |= {("score", part, "head", layer, h): a[h] @ b[h].T for h in range(heads)}
                want |= {("channel", part, "head", layer, h): a[h].T @ b[h] for h in range(heads)}
                for key, matrix in want.items():
                    s, seen = got[key], seen + 1
                    np.testing.assert_allclose(s, np.linalg.svd(matrix, compute_uv=False)[:len(s)], rtol=1e-6,
                                               atol=1e-6 * s[0], err_msg=str(key))
        self.assertEqual(seen, len(got))

    def test_grouped_heads(self):
        self.check(LLAMA, "BF16")

    def test_latent_without_query_latent(self):
        self.check(DEEPSEEK, "F32")

    def test_latent_with_query_latent(self):
        self.check(dict(DEEPSEEK, q_lora_rank=20), "F16")


class Noise(NumpyTest):
    """docs/cases.md 17: one head a map of 144, d = 768, D = 64. What to expect comes from simulations of many more heads."""

    CONFIG = dict(LLAMA, num_hidden_layers=12, hidden_size=768, num_attention_heads=12, num_key_value_heads=12)

    def shares(self, spike):
        """Of 144 heads: the share over the naive edge and over the product's, in score and in channel form."""
        draw, tensors = np.random.default_rng(17), {}
        for layer in range(12):
            p = f"model.layers.{layer}."
            tensors[p + "input_layernorm.weight"] = ((768,), np.ones(768))
            # a direction of each head's 64 that queries and keys share
            u = draw.standard_normal((12, 64, 1))
            u /= np.linalg.norm(u, axis=1, keepdims=True)
            for letter in "qk":
                w = draw.standard_normal((12, 64, 768))
                w += spike * u @ (u.transpose(0, 2, 1) @ w)
                tensors[p + f"self_attn.{letter}_proj.weight"] = ((768, 768), w.ravel())
        name = f"spike{spike}"
        model = checkpoints.write_folder(self.path(name), self.CONFIG, tensors)
        db = self.analyze(name + ".db", model, options=["--set", "diagnostics.scopes=head"])
        return {row["form"]: (row[1] / 144, row[2] / 144) for row in db.execute(
            "SELECT form, sum(outliers_above > 0), sum(null_outliers > 0) FROM v_spectra GROUP BY form")}

    def test_noise_is_judged_by_the_laws_of_products(self):
        shares = self.shares(0)
        naive, null = shares["channel"]
        self.assertAlmostEqual(naive, 0.57, delta=0.15)  # 57 in 100, and the error of 144 heads
        self.assertLess(null, 0.22)
        naive, null = shares["score"]
        self.assertEqual(naive, 0)
        self.assertLess(null, 0.22)

    def test_a_spike_that_the_naive_edge_does_not_see(self):
        self.assertEqual(self.shares(0.25)["score"], (0, 1))


if __name__ == "__main__":
    unittest.main()
