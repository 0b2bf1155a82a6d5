"""End to end: spectra of checkpoints, in the layouts that people have, against a run's own and against each other."""
import glob
import json
import math
import os
import shutil
import sqlite3
import struct
import subprocess
import unittest

import checkpoints
import harness
from checkpoints import DEEPSEEK, LLAMA

USAGE, DATA, NO_INPUT, CONFIG = 64, 65, 66, 78
KEYS = ("step", "form", "part", "scope", "layer", "head", "tensor")
ALL_FORMS = ["--set", "diagnostics.forms=score,channel,weight", "--set", "diagnostics.parts=full,content,rope,ov"]


class AnalyzeTest(harness.RunTest):
    def run_program(self, *words):
        done = subprocess.run([harness.BULKHEAD, *words], capture_output=True, text=True, timeout=self.time_limit_s)
        return done.returncode, done.stdout, done.stderr

    def open(self, path):
        db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        db.row_factory = sqlite3.Row
        self.addCleanup(db.close)
        return db

    def analyze(self, out, *models, options=()):
        """An analysis that must succeed; its database."""
        if not any("null_draws" in option for option in options):
            options = ["--set", "diagnostics.null_draws=0", *options]
        code, _, err = self.run_program("analyze", *models, "-o", self.path(out), "--threads", "1", *options)
        self.assertEqual(code, 0, err)
        return self.open(self.path(out))

    def refused(self, code, *models, says=(), options=()):
        """Exit code and one line that says why; no database is left."""
        got, out, err = self.run_program("analyze", *models, "-o", self.path("refused.db"), *options)
        self.assertEqual(got, code, err)
        self.assertEqual(out, "")
        self.assertEqual(len(err.splitlines()), 1, err)
        self.assertTrue(err.startswith("bulkhead analyze: "), err)
        for word in says:
            self.assertIn(word, err)
        self.assertFalse(os.path.exists(self.path("refused.db")))

    def rows(self, db, where="1"):
        return {tuple(row[k] for k in KEYS): dict(row)
                for row in db.execute(f"SELECT * FROM v_spectra WHERE {where}")}

    def same(self, got, want, tolerance):
        """The same matrices with the same numbers; a count is the same or it is not."""
        self.assertGreater(len(want), 0)
        self.assertEqual(set(got), set(want))
        for key, row in want.items():
            for column in row:
                if column in ("run", "run_id", "tokens", "step", "variant"):
                    continue
                a, b = got[key][column], row[column]
                if isinstance(a, float) and isinstance(b, float):
                    self.assertLessEqual(abs(a - b), tolerance * max(abs(a), abs(b)), f"{key} {column}: {a}, {b}")
                else:
                    self.assertEqual(a, b, f"{key} {column}")


class Run(AnalyzeTest):
    """The weights that a run starts from and, with a learning rate of 0, ends with."""

    DRAWS = 20

    def setUp(self):
        super().setUp()
        # each draws its own ensembles, from the same seed
        self.addCleanup(os.environ.pop, "BULKHEAD_CACHE", None)

    def own_tensors(self, variant, q_lora=0, kv_heads=4):
        d, heads, dim, latent, rope = 32, 4, 8, 16, 4
        attention = {"mha": {"W_Q": (d, d), "W_K": (kv_heads * dim, d), "W_V": (kv_heads * dim, d), "W_O": (d, d)},
                     "mla-prerope": {"W_Q": (d, d), "W_K": (d, d), "W_V": (d, d), "W_DK": (latent, d),
                                     "W_DV": (latent, d), "latent_norm": (1, latent), "W_UK": (d, latent),
                                     "W_UV": (d, latent), "W_O": (d, d)},
                     "mla-decoupled": {"W_DKV": (latent, d), "W_KR": (rope, d), "latent_norm": (1, latent),
                                       "W_UKV": (2 * d, latent), "W_O": (d, d)}}[variant]
        if variant == "mla-decoupled":
            queries = heads * (dim + rope)
            attention.update({"W_DQ": (q_lora, d), "q_latent_norm": (1, q_lora), "W_UQ": (queries, q_lora)}
                             if q_lora else {"W_Q": (queries, d)})
        shapes = {"embedding": (harness.VOCAB, d), "norm": (1, d), "lm_head": (harness.VOCAB, d)}
        for layer in range(2):
            p = f"layers.{layer}."
            shapes.update({p + "attention." + name: shape for name, shape in attention.items()})
            shapes.update({p + "attention_norm": (1, d), p + "mlp_norm": (1, d), p + "mlp.W_gate": (48, d),
                           p + "mlp.W_up": (48, d), p + "mlp.W_down": (d, 48)})
        return checkpoints.random_tensors(shapes)

    def run_on(self, tensors, variant, **attention):
        """The last snapshot's rows of a run that does not move from these weights."""
        self.dataset()
        checkpoints.write(self.path("own.safetensors"), tensors)
        model = {"kv_heads": attention.pop("kv_heads", None)}
        config = self.config(attention=dict(variant=variant, **attention), model=model,
                             train=dict(init_from=self.path("own.safetensors"), lr=0, steps=2),
                             diagnostics=dict(forms=["score", "channel", "weight"], null_draws=self.DRAWS,
                                              parts=["full", "content", "rope", "ov"]))
        os.environ["BULKHEAD_CACHE"] = self.path("cache-run")
        self.train(2, config, "run")
        os.environ["BULKHEAD_CACHE"] = self.path("cache-analyze")
        return self.rows(self.open(self.path("run", "run.db")), "step = 2")

    def as_llama(self, own):
        names = {"W_Q": "q_proj", "W_K": "k_proj", "W_V": "v_proj", "W_O": "o_proj"}
        theirs = {}
        for layer in range(2):
            for name, hf in names.items():
                theirs[f"model.layers.{layer}.self_attn.{hf}.weight"] = own[f"layers.{layer}.attention.{name}"]
            shape, gain = own[f"layers.{layer}.attention_norm"]
            theirs[f"model.layers.{layer}.input_layernorm.weight"] = (shape[1:], gain)
        return theirs

    def as_deepseek(self, own):
        names = {"W_Q": "q_proj", "W_DQ": "q_a_proj", "W_UQ": "q_b_proj", "W_UKV": "kv_b_proj", "W_O": "o_proj"}
        gains = {"attention_norm": "input_layernorm", "attention.latent_norm": "self_attn.kv_a_layernorm",
                 "attention.q_latent_norm": "self_attn.q_a_layernorm"}
        theirs = {}
        for layer in range(2):
            for name, hf in names.items():
                if f"layers.{layer}.attention.{name}" in own:
                    theirs[f"model.layers.{layer}.self_attn.{hf}.weight"] = own[f"layers.{layer}.attention.{name}"]
            for name, hf in gains.items():
                if f"layers.{layer}.{name}" in own:
                    shape, gain = own[f"layers.{layer}.{name}"]
                    theirs[f"model.layers.{layer}.{hf}.weight"] = (shape[1:], gain)
            (latent, d), down = own[f"layers.{layer}.attention.W_DKV"]
            (rope, _), key = own[f"layers.{layer}.attention.W_KR"]
            theirs[f"model.layers.{layer}.self_attn.kv_a_proj_with_mqa.weight"] = ((latent + rope, d), down + key)
        return theirs

    SIZES = dict(num_hidden_layers=2, hidden_size=32, num_attention_heads=4, intermediate_size=48,
                 vocab_size=harness.VOCAB, max_position_embeddings=harness.CONTEXT, rms_norm_eps=1e-6)

    def compare(self, want, model):
        options = ["--step", "2", "--set", f"diagnostics.null_draws={self.DRAWS}", *ALL_FORMS,
                   "--set", "train.steps=2", "--set", "diagnostics.every=2"]  # as many tests as the run makes
        got = self.rows(self.analyze("a.db", model, options=options))
        self.same(got, want, 1e-5)
        self.assertTrue(all(row["tw_score"] is not None for row in got.values() if row["part"] == "full"))

    def test_grouped_heads_as_llama(self):
        own = self.own_tensors("mha", kv_heads=2)
        want = self.run_on(own, "mha", kv_heads=2)
        config = dict(self.SIZES, model_type="llama", num_key_value_heads=2)
        self.compare(want, checkpoints.write_folder(self.path("hf"), config, self.as_llama(own)))

    def test_decoupled_as_deepseek(self):
        for q_lora in (0, 20):
            with self.subTest(q_lora=q_lora):
                self.setUp()
                own = self.own_tensors("mla-decoupled", q_lora)
                want = self.run_on(own, "mla-decoupled", q_lora_rank=q_lora)
                self.assertEqual({key[2] for key in want}, {"full", "content", "rope", "ov"})
                config = dict(self.SIZES, model_type="deepseek_v3", num_key_value_heads=4, kv_lora_rank=16,
                              q_lora_rank=q_lora or None, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8)
                self.compare(want, checkpoints.write_folder(self.path("hf"), config, self.as_deepseek(own)))

    def test_own_names_with_the_runs_configuration(self):
        own = self.own_tensors("mla-prerope")
        want = self.run_on(own, "mla-prerope")
        db = self.analyze("a.db", self.path("own.safetensors"),
                          options=["--step", "2", "--config", self.path("run", "config.yaml"), "--set",
                                   f"diagnostics.null_draws={self.DRAWS}"])
        self.same(self.rows(db), want, 1e-5)
        os.makedirs(self.path("alone"))
        os.rename(self.path("own.safetensors"), self.path("alone", "own.safetensors"))
        self.refused(NO_INPUT, self.path("alone", "own.safetensors"), says=["config.yaml beside"])
        model = checkpoints.write_folder(self.path("hf"), LLAMA)
        self.refused(NO_INPUT, os.path.join(model, "model.safetensors"), says=["config.json is named by its folder"])


    def test_checkpoints_of_a_run(self):
        """Boxes of four ranks, with ZeRO: the rows that the run recorded at those steps, alone and as a history."""
        self.dataset()
        for variant in ("mha", "mla-prerope", "mla-decoupled"):
            with self.subTest(variant):
                config = self.config(attention=dict(variant=variant), model=dict(layers=3),
                                     train=dict(steps=4), checkpoint=dict(every=2, keep=9),
                                     diagnostics=dict(every=2, forms=["score", "channel", "weight"]))
                self.train(5, config, variant, "parallel.tensor=2")
                run = self.open(self.path(variant, "run.db"))
                want = self.rows(run, "step > 0")
                self.same(self.rows(self.analyze(f"{variant}.db", self.path(variant))), want, 1e-10)
                one = self.analyze(f"{variant}-2.db", self.path(variant, "checkpoints", "step-00000002"))
                self.same(self.rows(one), self.rows(run, "step = 2"), 1e-10)
                self.assertEqual(one.execute("SELECT status FROM runs").fetchone()[0], "finished")

    def test_damaged_checkpoints_are_refused(self):
        self.dataset()
        self.train(4, self.config(train=dict(steps=1, warmup=0), diagnostics=dict(ranks=0)), "run", "parallel.tensor=2")
        whole = self.path("run", "checkpoints", "step-00000001")

        def copy():
            shutil.rmtree(self.path("bad"), ignore_errors=True)
            shutil.copytree(whole, self.path("bad"))

        def edit(change, files="rank-*.safetensors"):
            """A function of a file's bytes on a copy, wherever it changes something."""
            copy()
            changed = 0
            for path in glob.glob(self.path("bad", files)):
                with open(path, "rb") as f:
                    data = f.read()
                if change(data) != data:
                    changed += 1
                    with open(path, "wb") as f:
                        f.write(change(data))
            self.assertGreater(changed, 0)

        def flip(data):
            """A bit of an attention matrix's weights."""
            (length,) = struct.unpack("<Q", data[:8])
            for name, entry in json.loads(data[8:8 + length]).items():
                if ".attention.W_Q/master@" in name:
                    at = 8 + length + entry["data_offsets"][0]
                    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1:]
            return data

        edit(flip)
        code, _, err = self.run_program("analyze", self.path("bad"), "-o", self.path("bad.db"))  # seen when it is read
        self.assertEqual(code, DATA, err)
        self.assertRegex(err, "rank-0000.* does not have its hash")
        self.assertEqual(self.open(self.path("bad.db")).execute("SELECT status FROM runs").fetchone()[0], "failed")
        # a box one row up: over the last row of another rank's, and a row of its own is nowhere
        edit(lambda data: data.replace(b"W_gate/master@4:0", b"W_gate/master@3:0"))
        self.refused(DATA, self.path("bad"), says=["W_gate do not make a tensor of 48 x 32"])
        edit(lambda data: data.replace(b" x 32", b" x 33"))  # all agree on a column that none has
        self.refused(DATA, self.path("bad"), says=["do not make a tensor of", "x 33"])
        edit(lambda data: data.replace(b"xxh3 ", b"xxh2 "))
        self.refused(DATA, self.path("bad"), says=["is no box"])
        edit(lambda data: data.replace(b"rank-00001", b"../00001xx"), "manifest.json")
        self.refused(DATA, self.path("bad"), says=["is no name"])
        edit(lambda data: data.replace(b"bulkhead-checkpoint", b"something-else"), "manifest.json")
        self.refused(DATA, self.path("bad"), says=["manifest"])
        copy()
        os.remove(self.path("bad", "rank-00001.safetensors"))
        self.refused(DATA, self.path("bad"), says=["rank-00001.safetensors"])


class Layouts(AnalyzeTest):
    def test_types_and_shards_give_the_same(self):
        for config in (LLAMA, dict(DEEPSEEK, q_lora_rank=8)):
            name = config["model_type"]
            want = self.rows(self.analyze(f"{name}.db", checkpoints.write_folder(self.path(name), config)))
            for dtype, shards in (("BF16", 1), ("F16", 3), ("F64", 2)):
                model = checkpoints.write_folder(self.path(name + dtype), config, dtype=dtype, shards=shards)
                self.same(self.rows(self.analyze(f"{name}{dtype}.db", model)), want, 1e-12)

    def test_threads_give_the_same(self):
        model = checkpoints.write_folder(self.path("m"), dict(LLAMA, num_hidden_layers=5))
        want = self.rows(self.analyze("one.db", model))
        code, out, err = self.run_program("analyze", model, "-o", self.path("three.db"), "--threads", "3", "--set",
                                          "diagnostics.null_draws=0")
        self.assertEqual(code, 0, err)
        self.assertIn("layer", out)
        self.same(self.rows(self.open(self.path("three.db"))), want, 0)

    def peak_bytes(self, layers):
        """Of an analysis of 8 MiB of queries and keys a layer, all zero: files of nothing but a header and a hole."""
        config = dict(LLAMA, num_hidden_layers=layers, hidden_size=1024, num_attention_heads=16, num_key_value_heads=16)
        model, header, end = self.path(f"layers{layers}"), {}, 0
        os.makedirs(model)
        with open(os.path.join(model, "config.json"), "w") as f:
            json.dump(config, f)
        for name, shape in checkpoints.shapes_of(config).items():
            header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + 4 * math.prod(shape)]}
            end += 4 * math.prod(shape)
        with open(os.path.join(model, "model.safetensors"), "wb") as f:
            text = json.dumps(header).encode()
            f.write(len(text).to_bytes(8, "little") + text)
            f.truncate(8 + len(text) + end)
        words = [harness.BULKHEAD, "analyze", model, "-o", model + ".db", "--threads", "1", "--set",
                 "diagnostics.null_draws=0", "--set", "diagnostics.scopes=head"]
        job = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               env=dict(os.environ, ASAN_OPTIONS="quarantine_size_mb=1:detect_leaks=0"))
        _, code, used = os.wait4(job.pid, 0)
        job.returncode = os.waitstatus_to_exitcode(code)
        self.assertEqual(job.returncode, 0)
        return 1024 * used.ru_maxrss

    def test_memory_is_that_of_a_layer(self):
        self.assertLess(self.peak_bytes(24) - self.peak_bytes(2), 64 << 20)  # 22 layers are 176 MiB

    def test_a_base_model_has_no_prefix(self):
        want = self.rows(self.analyze("head.db", checkpoints.write_folder(self.path("head"), LLAMA)))
        tensors = {k.removeprefix("model."): v
                   for k, v in checkpoints.random_tensors(checkpoints.shapes_of(LLAMA)).items()}
        self.same(self.rows(self.analyze("base.db", checkpoints.write_folder(self.path("base"), LLAMA, tensors))), want, 0)

    def test_a_download_cache_keeps_its_files_elsewhere(self):
        checkpoints.write_folder(self.path("cache", "blobs"), LLAMA)
        os.makedirs(self.path("cache", "snapshots", "abc"))
        for name in ("config.json", "model.safetensors"):
            os.symlink(f"../../blobs/{name}", self.path("cache", "snapshots", "abc", name))
        self.analyze("a.db", self.path("cache", "snapshots", "abc"))

    def test_gains_are_taken_in_as_the_family_does(self):
        config = dict(LLAMA, head_dim=4)
        tensors = checkpoints.random_tensors(checkpoints.shapes_of(dict(config, model_type="qwen3")))
        folded = dict(tensors)
        for layer in range(2):
            p = f"model.layers.{layer}.self_attn."
            for letter in "qk":
                (rows, cols), weight = tensors[p + letter + "_proj.weight"]
                _, gain = tensors[p + letter + "_norm.weight"]
                folded[p + letter + "_proj.weight"] = ((rows, cols), [
                    x * gain[i // cols % 4] for i, x in enumerate(weight)])
        plain = {k: v for k, v in tensors.items() if "self_attn.q_norm" not in k and "self_attn.k_norm" not in k}
        got = {}
        for name, model_type, weights in (("qwen3", "qwen3", tensors), ("folded", "llama", folded),
                                          ("plain", "llama", plain)):
            model = checkpoints.write_folder(self.path(name), dict(config, model_type=model_type), weights)
            got[name] = self.rows(self.analyze(name + ".db", model))
        self.same(got["qwen3"], got["folded"], 1e-12)
        self.assertNotEqual([r["lambda_max"] for r in got["qwen3"].values()],
                            [r["lambda_max"] for r in got["plain"].values()])
        events = [row["message"] for row in self.open(self.path("qwen3.db")).execute("SELECT message FROM events")]
        self.assertTrue(any("q_norm and k_norm are folded" in message for message in events), events)
        self.refused(CONFIG, self.path("qwen3"), says=["weight", "q_norm"], options=ALL_FORMS)

    def test_gains_that_multiply_by_one_more(self):
        tensors = checkpoints.random_tensors(checkpoints.shapes_of(LLAMA))
        shifted = {k: (shape, [x - 1 for x in numbers] if "input_layernorm" in k else numbers)
                   for k, (shape, numbers) in tensors.items()}
        want = self.rows(self.analyze("llama.db", checkpoints.write_folder(self.path("llama"), LLAMA, tensors)))
        model = checkpoints.write_folder(self.path("gemma"), dict(LLAMA, model_type="gemma", head_dim=4), shifted)
        self.same(self.rows(self.analyze("gemma.db", model)), want, 0)

    def test_biases_are_left_out_and_said(self):
        db = self.analyze("a.db", checkpoints.write_folder(self.path("m"), dict(LLAMA, model_type="qwen2")))
        want = self.rows(self.analyze("b.db", checkpoints.write_folder(self.path("n"), LLAMA)))
        self.same(self.rows(db), want, 0)
        events = [row["message"] for row in db.execute("SELECT message FROM events")]
        self.assertTrue(any("biases" in message for message in events), events)

    def test_checkpoints_are_a_history(self):
        for step in (200, 1000, 0):
            checkpoints.write_folder(self.path("run", f"checkpoint-{step}"), LLAMA, seed=str(step))
        db = self.analyze("all.db", self.path("run"))
        self.assertEqual([tuple(row) for row in db.execute("SELECT step, status, tokens FROM snapshots ORDER BY step")],
                         [(0, "done", None), (200, "done", None), (1000, "done", None)])
        self.assertEqual([tuple(row) for row in db.execute("SELECT name, status FROM runs")], [("run", "finished")])
        alone = self.rows(self.analyze("one.db", self.path("run", "checkpoint-200")))
        self.same(self.rows(db, "step = 200"), alone, 0)
        named = self.analyze("named.db", self.path("run", "checkpoint-1000"), self.path("run", "checkpoint-200"))
        self.same(self.rows(named), self.rows(db, "step > 0"), 0)

    def test_a_history_is_planned_as_it_is(self):
        for step in (10, 30, 40):
            checkpoints.write_folder(self.path("run", f"step-{step}"), LLAMA)
        db = self.analyze("a.db", self.path("run"))
        plan = dict(tuple(row) for row in db.execute("SELECT key, value FROM params"))
        self.assertEqual((plan["train.steps"], plan["diagnostics.every"]), ("2", "1"))  # steps 0, 1, 2: three snapshots

    def test_checkpoints_that_make_no_history(self):
        a = checkpoints.write_folder(self.path("a", "step-1"), LLAMA)
        b = checkpoints.write_folder(self.path("b", "step-1"), LLAMA)
        c = checkpoints.write_folder(self.path("step-2"), dict(LLAMA, num_attention_heads=2))
        d = checkpoints.write_folder(self.path("other"), LLAMA)
        self.refused(USAGE, a, b, says=["same step"])
        self.refused(USAGE, a, d, says=["other"])
        self.refused(DATA, a, c, says=["not checkpoints of one model", "heads 4", "heads 2"])
        self.refused(USAGE, a, c, says=["--step"], options=["--step", "3"])

    def test_values_that_are_no_numbers(self):
        tensors = checkpoints.random_tensors(checkpoints.shapes_of(dict(LLAMA, num_hidden_layers=4)))
        for layer, first in ((0, math.nan), (1, math.inf), (2, 0.0)):
            name = f"model.layers.{layer}.self_attn.q_proj.weight"
            shape, numbers = tensors[name]
            tensors[name] = (shape, [first] * 64 + numbers[64:])  # the first head
        model = checkpoints.write_folder(self.path("m"), dict(LLAMA, num_hidden_layers=4), tensors)
        db = self.analyze("a.db", model)
        for head, want in ((0, ["nonfinite", "nonfinite", "zero", "ok"]), (1, ["ok"] * 4)):
            got = db.execute("SELECT layer, status FROM v_spectra WHERE form = 'score' AND scope = 'head' AND head = ?"
                             " ORDER BY layer", (head,))
            self.assertEqual([row["status"] for row in got], want)
        code, out, err = self.run_program("query", self.path("a.db"), "heads", "--json")
        self.assertEqual(code, 0, err)
        json.loads(out, parse_constant=lambda word: self.fail(f"{word} is no JSON"))

    def test_ensembles_that_are_not_ready_are_said(self):
        os.environ["BULKHEAD_CACHE"] = self.path("cache")
        self.addCleanup(os.environ.pop, "BULKHEAD_CACHE")
        code, out, err = self.run_program("analyze", checkpoints.write_folder(self.path("m"), LLAMA), "-o",
                                          self.path("a.db"), "--null-wait", "0", "--set",
                                          "diagnostics.null_draws=10000000")
        self.assertEqual(code, 0, err)
        late = r"columns( against nulls)? stay NULL in 1 snapshots: [1-9]\d* null ensembles? to make"
        self.assertRegex(err, rf"warn: {late}.*--null-wait allows more than 0 s")
        db = self.open(self.path("a.db"))
        events = dict(tuple(row) for row in db.execute("SELECT level, message FROM events WHERE kind = 'nulls'"))
        self.assertRegex(events["warn"], late)
        self.assertRegex(events["info"], "spectra of step 0 wait for")
        for row in db.execute("SELECT status, null_gap, tw_score, null_id FROM spectra"):
            self.assertEqual((row["status"], row["tw_score"], row["null_id"]), ("ok", None, None))
            self.assertGreater(row["null_gap"], 0)


if __name__ == "__main__":
    unittest.main()
