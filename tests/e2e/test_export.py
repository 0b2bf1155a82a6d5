"""End to end: exports in Hugging Face's format compute what we compute, by an oracle and by transformers itself, contradict
themselves nowhere, and come back bit for bit; models that are refused."""
import glob
import json
import math
import os
import random
import shutil
import subprocess
import unittest

import checkpoints
import harness
import random_models

try:
    import numpy
    import hf_oracle
except ImportError:
    numpy = None

USAGE, DATA, NO_INPUT, CONFIG = 64, 65, 66, 78
LOGITS = os.environ.get("LOGITS", "build/release/tests/e2e/logits")
TRANSFORMERS = os.environ.get("TRANSFORMERS_PYTHON", "python3")

DECOUPLED = dict(variant="mla-decoupled", layers=2, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=6, v_head_dim=12)
MODELS = {
    "mha": dict(layers=2, kv_heads=2, head_dim=12, norm_eps=1e-5, rope_theta=500000.0),
    "mha_tied": dict(kv_heads=1, tie_embeddings=True),
    "decoupled": DECOUPLED,
    "decoupled_q_latent": dict(DECOUPLED, q_lora_rank=20),
    "decoupled_tied": dict(DECOUPLED, heads=2, tie_embeddings=True),
    "prerope_key": dict(variant="mla-prerope", layers=2, kv_lora_rank=16),
    "prerope_hidden": dict(variant="mla-prerope", kv_lora_rank=12, prerope_source="hidden", latent_norm=False,
                           tie_embeddings=True),
}

BY_TRANSFORMERS = """
import json, sys, torch
from transformers import AutoModelForCausalLM
torch.set_num_threads(1)
for line in sys.stdin:
    folder, tokens = json.loads(line)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
    tokens = torch.tensor([tokens])
    with torch.no_grad():
        logits = model(tokens).logits[0]
        start = tokens[:, :4]
        more = model.generate(start, attention_mask=torch.ones_like(start), max_new_tokens=5, do_sample=False, pad_token_id=0)
    print(json.dumps([type(model).__name__, logits.tolist(), more[0].tolist()]))
"""


class ExportTest(harness.RunTest):
    time_limit_s = 120

    def setUp(self):
        super().setUp()
        random_models.skip_without_pytorch(self)
        if not numpy:
            print("skipped: no NumPy")
            self.skipTest("no NumPy")
        self.seed = random.SystemRandom().randrange(1 << 30)
        self.draw = random.Random(self.seed)

    def model(self, name, **overrides):
        """A folder with random weights."""
        random_models.write_model(self.path(name), self.draw.randrange(1 << 30), **overrides)
        return self.path(name)

    def done(self, *arguments):
        done = self.bulkhead(*arguments)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done

    def exported(self, name, **overrides):
        """A model, and what it is exported as."""
        model, out = self.model(name, **overrides), self.path(name + "-out")
        self.done("export", model, "-o", out)
        return model, out

    def logits(self, model, tokens):
        done = subprocess.run([LOGITS, model, *map(str, tokens)], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        return numpy.array([[float(x) for x in line.split()] for line in done.stdout.splitlines()])

    def tokens(self, count=20):
        return [self.draw.randrange(53) for _ in range(count)]

    def apart(self, a, b):
        return float(numpy.abs(numpy.array(a) - b).max())

    def refused(self, code, *arguments, says=()):
        done = self.bulkhead(*arguments)
        self.assertEqual((done.returncode, done.stdout), (code, ""), done.stderr)
        self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
        for word in says:
            self.assertIn(word, done.stderr)

    def bytes_of(self, *parts):
        with open(self.path(*parts), "rb") as f:
            return f.read()


class Export(ExportTest):
    def test_an_oracle_computes_the_same(self):
        """docs/cases.md 7: as config.json says, and as programs do that interleave DeepSeek's pairs whatever it says."""
        for name, overrides in MODELS.items():
            if "prerope" in name:
                continue
            model, out = self.exported(name, **overrides)
            tokens = self.tokens()
            want = self.logits(model, tokens)
            for always in (False, True):
                self.assertLess(self.apart(hf_oracle.logits(out, tokens, always), want), 1e-4, f"{name}, seed {self.seed}")

    def test_transformers_computes_the_same(self):
        if subprocess.run([TRANSFORMERS, "-c", "import transformers, torch"], capture_output=True).returncode != 0:
            print(f"skipped: {TRANSFORMERS} has no transformers; TRANSFORMERS_PYTHON names one that has")
            self.skipTest("no transformers")
        exports = {name: (*self.exported(name, **overrides), self.tokens()) for name, overrides in MODELS.items()}
        done = subprocess.run([TRANSFORMERS, "-c", BY_TRANSFORMERS], capture_output=True, text=True,
                              input="".join(json.dumps(e[1:]) + "\n" for e in exports.values()),
                              env=dict(os.environ, HF_HUB_OFFLINE="1", HF_HOME=self.path("cache")))
        self.assertEqual(done.returncode, 0, done.stderr)
        for (name, (model, out, tokens)), line in zip(exports.items(), done.stdout.splitlines(), strict=True):
            kind, logits, more = json.loads(line)
            with open(os.path.join(out, "config.json")) as f:
                self.assertEqual([kind], json.load(f)["architectures"])
            self.assertLess(self.apart(logits, self.logits(model, tokens)), 1e-4, f"{name}, seed {self.seed}")
            greedy = self.done("generate", out, "--tokens", ",".join(map(str, tokens[:4])), "--max", "5", "--temperature", "0")
            self.assertEqual(greedy.stdout.strip(), ",".join(map(str, more)), name)

    def test_names_and_configuration_agree(self):
        """docs/cases.md 8."""
        outside = {"model.embed_tokens.weight", "model.norm.weight"}
        layer = {"input_layernorm", "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
                 "self_attn.o_proj"}
        latent = layer | {"self_attn.kv_a_proj_with_mqa", "self_attn.kv_a_layernorm", "self_attn.kv_b_proj"}
        want = {"mha": layer | {f"self_attn.{x}_proj" for x in "qkv"}, "decoupled": latent | {"self_attn.q_proj"},
                "decoupled_q_latent": latent | {"self_attn.q_a_proj", "self_attn.q_a_layernorm", "self_attn.q_b_proj"}}
        want["mha_tied"], want["decoupled_tied"] = want["mha"], want["decoupled"]
        for name, overrides in MODELS.items():
            _, out = self.exported(name, **overrides)
            config, tensors = hf_oracle.load(out)
            tied = overrides.get("tie_embeddings", False)
            self.assertEqual(config["tie_word_embeddings"], tied)
            self.assertEqual("lm_head.weight" in tensors, not tied)
            if name in want:
                names = {f"model.layers.{i}.{n}.weight" for i in range(overrides.get("layers", 1)) for n in want[name]}
                self.assertEqual(set(tensors), names | outside | (set() if tied else {"lm_head.weight"}))
            if "decoupled" in name:
                self.assertEqual(config["q_lora_rank"], overrides.get("q_lora_rank"))
                self.assertEqual(config["first_k_dense_replace"], config["num_hidden_layers"])
            harness.write_shard(self.path("data.bin"), self.tokens(70))
            self.done("eval", out, "--shards", self.path("data.bin"))
            self.done("analyze", out, "-o", self.path(name + ".db"), "--set", "diagnostics.null_draws=0")

    def test_a_run_exports_the_same_whatever_its_shape(self):
        self.dataset(vocab=51)
        sizes = dict(model=dict(vocab=51), attention=dict(variant="mla-decoupled"))
        self.train(5, self.config("a.yaml", train=dict(steps=3), **sizes), "a", "parallel.tensor=2")
        still = dict(steps=1, lr=0, warmup=0, init_from=self.path("a", "checkpoints", "step-00000003"))
        self.train(2, self.config("b.yaml", train=still, **sizes), "b")
        self.train(5, self.config("c.yaml", train=still, **sizes), "c", "parallel.tensor=4")
        for run in "abc":
            self.done("export", self.path(run), "-o", self.path(run + "-out"))
        self.assertEqual(hf_oracle.load(self.path("a-out"))[1]["model.embed_tokens.weight"].shape, (51, 32))
        for run in "bc":
            for file in ("model.safetensors", "config.json"):
                self.assertEqual(self.bytes_of(run + "-out", file), self.bytes_of("a-out", file))

    def test_the_tokenizer_comes_along(self):
        with open(self.path("text.txt"), "w") as f:
            f.writelines(f"the cat {i} sat on the mat and went home\n" for i in range(400))
        self.done("prepare", self.path("text.txt"), "-o", self.path("data"), "--vocab", "300")
        model = self.model("model", vocab=300)
        shutil.copy(self.path("data", "tokenizer.model"), model)
        self.done("export", model, "-o", self.path("out"))
        self.done("import", self.path("out"), "-o", self.path("back"))
        for folder in ("out", "back"):
            self.assertEqual(self.bytes_of(folder, "tokenizer.model"), self.bytes_of("data", "tokenizer.model"))
        with open(self.path("out", "config.json")) as f:
            config = json.load(f)
        self.assertEqual((config["bos_token_id"], config["eos_token_id"]), (None, 1))
        text = [self.done("generate", m, "--prompt", "the cat", "--max", "4", "--temperature", "0").stdout.split("\n")[0]
                for m in (model, self.path("out"), self.path("back"))]
        self.assertEqual(text[1:], text[:1] * 2)

    def test_what_is_refused(self):
        for says, overrides in ((["attention.v_head_dim 16", "Llama"], dict(v_head_dim=16)),
                                (["latent_norm"], dict(DECOUPLED, latent_norm=False)),
                                (["norm_eps", "1e-05"], dict(DECOUPLED, norm_eps=1e-5))):
            model = self.model(f"model-{says[0]}", **overrides)
            self.assert_refused_export(CONFIG, model, says)
        model = self.model("model")
        os.makedirs(self.path("full", "x"))
        self.refused(USAGE, "export", model, "-o", self.path("full"), says=["not empty"])
        self.refused(USAGE, "export", model, says=["-o"])
        self.refused(NO_INPUT, "export", self.path("absent"), "-o", self.path("out"), says=["absent"])
        with open(os.path.join(model, "tokenizer.model"), "w") as f:
            f.write("none")
        self.refused(DATA, "export", model, "-o", self.path("out"), says=["tokenizer.model"])
        os.remove(os.path.join(model, "tokenizer.model"))
        with open(os.path.join(model, "model.safetensors"), "r+b") as f:
            f.truncate(5000)
        done = self.bulkhead("export", model, "-o", self.path("out"))
        self.assertEqual(done.returncode, DATA, done.stderr)
        self.assertEqual(glob.glob(self.path("out*")), [])

    def assert_refused_export(self, code, model, says):
        done = self.bulkhead("export", model, "-o", self.path("refused"))
        self.assertEqual((done.returncode, done.stdout), (code, ""), done.stderr)
        for word in says:
            self.assertIn(word, done.stderr)
        self.assertEqual(glob.glob(self.path("refused*")), [])


class Import(ExportTest):
    def test_it_undoes_export_bit_for_bit(self):
        for name, overrides in MODELS.items():
            model, out = self.exported(name, **overrides)
            back, again = self.path(name + "-back"), self.path(name + "-again")
            self.done("import", out, "-o", back)
            own, got = (hf_oracle.read_tensors(os.path.join(m, "model.safetensors")) for m in (model, back))
            self.assertEqual(set(own), set(got))
            for tensor, values in own.items():
                self.assertTrue(numpy.array_equal(values, got[tensor]), tensor)
            self.done("export", back, "-o", again)
            for file in os.listdir(out):
                self.assertEqual(self.bytes_of(again, file), self.bytes_of(out, file), f"{name}: {file}")

    def test_training_goes_on(self):
        self.dataset(vocab=53, validation=10 * 33 + 1)
        for name in ("mha", "decoupled_q_latent", "prerope_key"):
            _, out = self.exported(name, context=33, **{k: v for k, v in MODELS[name].items()})
            self.done("import", out, "-o", self.path(name + "-in"))
            data = [f"data.train={self.path('train-*.bin')}", f"data.validation={self.path('val-*.bin')}"]
            db = self.train(3, self.path(name + "-in", "config.yaml"), name + "-run", *data, "parallel.tensor=2"
                            if "mha" in name else "parallel.tensor=1", "train.steps=1", "train.lr=0", "train.global_batch=4",
                            "diagnostics.null_draws=0", "run.threads=1", "train.eval_tokens=330")
            (loss,) = db.execute("SELECT loss FROM eval_metrics WHERE split = 'validation'").fetchone()
            done = self.done("eval", out, "--shards", self.path("val-*.bin"), "--json")
            self.assertAlmostEqual(loss, json.loads(done.stdout)["loss"], delta=1e-5 * loss)
            code, _, err = self.launch(2, self.config(name + ".yaml", model=dict(context=33)), "no-run",
                                       f"train.init_from={out}")
            self.assertEqual(code, CONFIG, err)
            self.assertIn("bulkhead import", err)

    def test_layouts_and_types_of_others(self):
        """A model whose rotary rows are halves; shards; bf16; a base model's tied head that is written out."""
        halves = dict(checkpoints.DEEPSEEK, rope_interleave=False, first_k_dense_replace=2)
        for name, config, options in (("llama", dict(checkpoints.LLAMA), dict(shards=3)),
                                      ("halves", halves, {}), ("pairs", dict(halves, rope_interleave=True), {}),
                                      ("bf16", dict(halves, q_lora_rank=6), dict(dtype="BF16"))):
            shapes = self.whole(config)
            folder = checkpoints.write_folder(self.path(name), config, checkpoints.random_tensors(shapes, str(self.seed)),
                                              **options)
            if not options:
                config = dict(config, architectures=["DeepseekV3ForCausalLM"], tie_word_embeddings=False, rope_theta=10000.0)
                with open(self.path(name, "config.json"), "w") as f:
                    json.dump(config, f)
                tokens = self.tokens()
                self.assertLess(self.apart(hf_oracle.logits(folder, tokens), self.logits(folder, tokens)), 1e-4, name)
            self.done("import", folder, "-o", self.path(name + "-in"))
            own = hf_oracle.read_tensors(self.path(name + "-in", "model.safetensors"))
            want = checkpoints.random_tensors(shapes, str(self.seed))
            for theirs, ours in (("model.embed_tokens.weight", "embedding"),
                                 ("model.layers.1.mlp.up_proj.weight", "layers.1.mlp.W_up"),
                                 ("model.layers.0.self_attn.o_proj.weight", "layers.0.attention.W_O")):
                self.assertEqual(own[ours].ravel().tolist(), want[theirs][1])

    def whole(self, config):
        """All tensors of that architecture; checkpoints.shapes_of leaves some out."""
        shapes = checkpoints.shapes_of(config)
        d, f = config["hidden_size"], config["intermediate_size"]
        shapes["lm_head.weight"] = (config["vocab_size"], d)
        for layer in range(config["num_hidden_layers"]):
            shapes[f"model.layers.{layer}.mlp.gate_proj.weight"] = (f, d)
            shapes[f"model.layers.{layer}.mlp.down_proj.weight"] = (d, f)
        return shapes

    def test_models_that_are_not_ours(self):
        llama, deepseek = dict(checkpoints.LLAMA), dict(checkpoints.DEEPSEEK, first_k_dense_replace=2)
        weights = checkpoints.random_tensors(self.whole(llama))
        up = "model.layers.1.mlp.up_proj.weight"
        shape, values = weights[up]
        bias = "model.layers.0.self_attn.q_proj.bias"
        cases = [
            (dict(llama, model_type="qwen2"), weights, ["qwen2", "Llama"]),
            (dict(llama, model_type="mystery"), weights, ["mystery"]),
            (dict(llama, rope_scaling=dict(rope_type="llama3", factor=8.0)), weights, ["llama3", "scaled"]),
            (dict(llama, attention_bias=True), weights, ["biases"]),
            (dict(llama, hidden_act="gelu"), weights, ["gelu"]),
            (dict(llama, model_type="mistral", sliding_window=16), weights, ["sliding window"]),
            (dict(deepseek, n_routed_experts=4, first_k_dense_replace=1), weights, ["experts"]),
            (dict(deepseek, rms_norm_eps=1e-5), weights, ["rms_norm_eps", "1e-05"]),
            (llama, {**weights, bias: ((16,), [0.0] * 16)}, ["nothing for", bias]),
            (llama, {k: w for k, w in weights.items() if k != "lm_head.weight"}, ["no tensor lm_head.weight"]),
            (llama, {**weights, up: ((shape[1], shape[0]), values)}, [up, "another shape"]),
            (llama, {**weights, up: (shape, values[:-1] + [math.nan])}, [up, "nan"]),
        ]
        for i, (config, tensors, says) in enumerate(cases):
            folder = checkpoints.write_folder(self.path(f"case-{i}"), config, tensors)
            done = self.bulkhead("import", folder, "-o", self.path("refused"))
            self.assertEqual((done.returncode, done.stdout), (DATA, ""), f"{says}: {done.stderr}")
            for word in says:
                self.assertIn(word, done.stderr.splitlines()[-1])
            self.assertEqual(glob.glob(self.path("refused*")), [])
        os.truncate(self.path("case-0", "model.safetensors"), 3000)
        with open(self.path("case-0", "config.json"), "w") as f:
            json.dump(llama, f)
        self.refused(DATA, "import", self.path("case-0"), "-o", self.path("refused"), says=["model.safetensors"])
        os.remove(self.path("case-0", "model.safetensors"))
        self.refused(NO_INPUT, "import", self.path("case-0"), "-o", self.path("refused"), says=["model.safetensors"])


if __name__ == "__main__":
    unittest.main()
