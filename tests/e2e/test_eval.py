"""End to end: perplexity and multiple choice of models with fresh random weights, against tests/golden's float64 model."""
import json
import math
import os
import random
import struct
import unittest

import harness
import random_models
from random_models import losses_of

USAGE, DATA, NO_INPUT = 64, 65, 66

VARIANTS = [dict(variant="mha", layers=2, kv_heads=2, context=24), dict(variant="mla-prerope", kv_lora_rank=16, context=24),
            dict(variant="mla-decoupled", layers=2, kv_lora_rank=16, q_lora_rank=12, qk_nope_head_dim=8, qk_rope_head_dim=4,
                 v_head_dim=6, context=24)]


def nats_of(c, parameters, tokens, stride):
    """The sum over all tokens but the first. A token is predicted in the first window that reaches it."""
    total, reached = 0.0, 0
    while reached < len(tokens) - 1:
        last = min(len(tokens) - 1, reached + (c.context if reached == 0 else stride))
        first = max(0, last - c.context)
        total += sum(losses_of(c, parameters, tokens[first:last + 1])[reached - first:])
        reached = last
    return total


class EvalTest(harness.RunTest):
    def setUp(self):
        super().setUp()
        random_models.skip_without_pytorch(self)
        self.seed = random.SystemRandom().randrange(1 << 30)
        self.draw = random.Random(self.seed)

    def model(self, name, **overrides):
        """Its folder, configuration and weights."""
        return self.path(name), *random_models.write_model(self.path(name), self.draw.randrange(1 << 30), **overrides)

    def said(self, folder, *arguments):
        done = self.bulkhead("eval", folder, "--json", "--threads", "1", *arguments)
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)

    def near(self, got, want, relative=1e-5):
        self.assertLessEqual(abs(got - want), relative * abs(want), f"{got}, not {want} (seed {self.seed})")


class Shards(EvalTest):
    def test_every_token_is_predicted_once(self):
        for overrides in VARIANTS:
            folder, c, parameters = self.model(overrides["variant"], **overrides)
            lengths = [2, c.context + 1, 3 * c.context + 8, 11]
            shards = [[self.draw.randrange(c.vocab) for _ in range(n)] for n in lengths]
            for i, tokens in enumerate(shards):
                harness.write_shard(self.path(f"{c.variant}-{i}.bin"), tokens)
            for stride in (c.context, 7, 1):
                got = self.said(folder, "--shards", self.path(f"{c.variant}-*.bin"), "--stride", str(stride))
                self.assertEqual(got["tokens"], sum(lengths) - len(lengths))
                self.near(got["nats"], sum(nats_of(c, parameters, tokens, stride) for tokens in shards))
                self.near(got["loss"], got["nats"] / got["tokens"], 1e-12)
                self.near(got["perplexity"], math.exp(got["loss"]), 1e-12)
                self.assertIsNone(got["bits_per_byte"])

    def test_the_batch_changes_nothing(self):
        """docs/cases.md 14."""
        folder, c, _ = self.model("model", **VARIANTS[0])
        harness.write_shard(self.path("data.bin"), [self.draw.randrange(c.vocab) for _ in range(29 * c.context + 1)])
        results = [self.said(folder, "--shards", self.path("data.bin"), "--batch", str(b)) for b in (1, 3, 8, 29, 40)]
        for r in results:
            self.assertEqual(r["tokens"], 29 * c.context)
            self.near(r["loss"], results[0]["loss"], 1e-6)

    def test_it_is_the_run_s_own_validation_loss(self):
        self.dataset(validation=10 * harness.CONTEXT + 1)
        db = self.train(5, self.config(train=dict(eval_tokens=10 * harness.CONTEXT)), "run", "parallel.tensor=2",
                        "attention.variant=mla-decoupled")
        want, tokens = db.execute("SELECT loss, tokens FROM eval_metrics ORDER BY step DESC").fetchone()
        got = self.said(self.path("run"), "--shards", self.path("val-*.bin"))
        self.assertEqual(got["tokens"], 10 * harness.CONTEXT)
        self.near(got["loss"], want)


class Text(EvalTest):
    def setUp(self):
        super().setUp()
        stock = ["the", "cat", "sat", "on", "a", "mat", "and", "then", "it", "went", "für", "home", "naïve"]
        with open(self.path("text.txt"), "w") as f:
            for _ in range(200):
                f.write(" ".join(self.draw.choice(stock) for _ in range(9)) + ".\n")
        done = self.bulkhead("prepare", self.path("text.txt"), "-o", self.path("data"), "--vocab", "290")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.tokenizer = self.path("data", "tokenizer.model")
        self.folder, self.c, self.parameters = self.model("model", vocab=290, **VARIANTS[2])
        self.roomy, _, _ = self.model("roomy", vocab=290, context=256)

    def tokens_of(self, text):
        """The end of the document before, and the text's."""
        done = self.bulkhead("generate", self.roomy, "--json", "--prompt", text, "--max", "1", "--tokenizer", self.tokenizer)
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)["prompt_tokens"]

    def test_bits_per_byte(self):
        documents = ["the cat went home.\n", "a naïve mat\tand ☃ then\n", "it sat on the mat and the cat sat on it\n"]
        with open(self.path("some.jsonl"), "w") as f:
            f.writelines(json.dumps({"text": d}) + "\n" for d in documents)
        got = self.said(self.folder, "--text", self.path("some.jsonl"), "--tokenizer", self.tokenizer)
        tokens = [self.tokens_of(d) for d in documents]
        self.assertEqual(got["tokens"], sum(len(t) - 1 for t in tokens))
        self.assertEqual(got["bytes"], sum(len(d.encode()) for d in documents))
        want = sum(nats_of(self.c, self.parameters, t, self.c.context) for t in tokens)
        self.near(got["nats"], want)
        self.near(got["bits_per_byte"], want / math.log(2) / got["bytes"])

    def test_choices(self):
        stock = [" ".join(self.draw.choice(["the", "cat", "mat", "für", "home"]) for _ in range(n)) for n in range(1, 9)]
        questions = [{"context": self.draw.choice(["the cat", "it went ", "", "a mat and then it sat on the cat and the mat"]),
                      "endings": self.draw.sample(stock, self.draw.randrange(2, 6)), "label": 0} for _ in range(25)]
        for q in questions:
            q["label"] = self.draw.randrange(len(q["endings"]))
        with open(self.path("tasks.jsonl"), "w") as f:
            f.write("\n".join(json.dumps(q) for q in questions) + "\n\n")
        got = self.said(self.folder, "--tasks", self.path("tasks.jsonl"), "--tokenizer", self.tokenizer)
        right = {"sum": 0, "per_byte": 0}
        for q in questions:
            context = self.tokens_of(q["context"])
            space = "" if not q["context"] or q["context"].endswith(" ") else " "
            scores = []
            for ending in q["endings"]:
                tokens = self.tokens_of(q["context"] + space + ending)
                known = len(os.path.commonprefix([context, tokens]))
                window = tokens[-self.c.context - 1:]
                fresh = len(tokens) - known
                scores.append(-sum(losses_of(self.c, self.parameters, window)[-fresh:]))
            per_byte = [s / len(e.encode()) for s, e in zip(scores, q["endings"])]
            right["sum"] += scores.index(max(scores)) == q["label"]
            right["per_byte"] += per_byte.index(max(per_byte)) == q["label"]
        self.assertEqual(got["questions"], 25)
        for kind, count in right.items():
            self.assertEqual(got[kind]["right"], count, f"{kind}, seed {self.seed}")
            self.near(got[kind]["share"], count / 25, 1e-12)
            for p in (got[kind]["low"], got[kind]["high"]):  # from there the observed share is 1.96 standard deviations away
                self.assertAlmostEqual((count / 25 - p) ** 2, 1.959963984540054 ** 2 * p * (1 - p) / 25, delta=1e-9)

    def refused(self, code, *arguments, says=()):
        done = self.bulkhead("eval", *arguments)
        self.assertEqual((done.returncode, done.stdout), (code, ""), done.stderr)
        self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
        for word in says:
            self.assertIn(word, done.stderr)

    def test_what_is_refused(self):
        good, tasks = ["--tokenizer", self.tokenizer], self.path("tasks.jsonl")
        self.refused(USAGE, self.folder, says=["--shards, --text and --tasks"])
        self.refused(USAGE, self.folder, "--text", "a", "--tasks", "b", says=["one of"])
        self.refused(USAGE, self.folder, "--text", "a", "--stride", "25", *good, says=["--stride 25", "24"])
        self.refused(NO_INPUT, self.folder, "--text", self.path("text.txt"), says=["--tokenizer"])
        self.refused(NO_INPUT, self.folder, "--text", self.path("absent"), *good, says=["absent"])
        self.refused(NO_INPUT, self.folder, "--shards", self.path("no-*.bin"), says=["no-*.bin"])
        harness.write_shard(self.path("far.bin"), [1, 2, 290])
        self.refused(DATA, self.folder, "--shards", self.path("far.bin"), says=["far.bin", "290"])
        for text, says in (("{\n", ["tasks.jsonl:1", "JSON"]), ('{"context": "a", "endings": ["b"], "label": 0}', ["2 to"]),
                           ('\n{"context": "a", "endings": ["b", "c"], "label": 2}', ["tasks.jsonl:2", "label", "0 to 1"]),
                           ('{"context": "a", "endings": ["b", ""], "label": 0}', ["ending 1"]), ("", ["no question"]),
                           (json.dumps({"context": "a", "endings": ["b", "☃" * 30], "label": 0}), ["more than"])):
            with open(tasks, "w") as f:
                f.write(text)
            self.refused(DATA, self.folder, "--tasks", tasks, *good, says=says)
        with open(self.path("empty.txt"), "w"):
            pass
        self.refused(DATA, self.folder, "--text", self.path("empty.txt"), *good, says=["no text"])
        weights = os.path.join(self.folder, "model.safetensors")
        with open(weights, "r+b") as f:
            f.seek(-4, os.SEEK_END)
            f.write(struct.pack("<f", math.nan))
        self.refused(DATA, self.folder, "--text", self.path("text.txt"), *good, says=["model.safetensors", "nan"])
        with open(weights, "r+b") as f:
            f.truncate(os.path.getsize(weights) - 8)
        self.refused(DATA, self.folder, "--text", self.path("text.txt"), *good, says=["model.safetensors"])


if __name__ == "__main__":
    unittest.main()
