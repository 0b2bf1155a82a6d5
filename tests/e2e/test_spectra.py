"""End to end: every column, singular value and top pair of every matrix of random small models, against the definitions of
docs/design.md section 6 in NumPy (spectra_oracle.py). New models every day; a failure names the seed that makes its model.

Needs a Python with NumPy, named by SPECTRA_PYTHON.
"""
import array
import json
import math
import os
import random
import subprocess
import time
import unittest

import checkpoints
import harness

PYTHON = os.environ.get("SPECTRA_PYTHON", "python3")
ROWS = os.environ.get("SPECTRA_ROWS", "build/release/tests/e2e/spectra_rows")
ORACLE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "spectra_oracle.py")


class Spectra(unittest.TestCase):
    def setUp(self):
        if subprocess.run([PYTHON, "-c", "import numpy"], capture_output=True).returncode:
            print(f"skipped: {PYTHON} has no NumPy")
            self.skipTest("no NumPy")

    def agrees(self, variant, cases, seed):
        done = subprocess.run([PYTHON, ORACLE, ROWS, variant, "--cases", str(cases), "--seed", str(seed)],
                              capture_output=True, text=True, env=dict(os.environ, OPENBLAS_NUM_THREADS="1"))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertGreater(json.loads(done.stdout)["matrices"]["ok"], 10)

    def today(self):
        return 1000 * int(time.time() / 86400)

    def test_mha_agrees(self):
        self.agrees("mha", 5, self.today())

    def test_prerope_agrees(self):
        self.agrees("mla-prerope", 5, self.today())

    def test_decoupled_agrees(self):
        self.agrees("mla-decoupled", 5, self.today())


class Runs(harness.RunTest):
    def test_weights_and_values_of_split_tensors(self):
        """The same initial weights over one and over two ranks: W_O is split by columns, W_UKV by rows, W_DKV not at all."""
        self.dataset()
        config = self.config(attention=dict(variant="mla-decoupled", kv_lora_rank=16, qk_rope_head_dim=4),
                             train=dict(steps=2, warmup=0, eval_tokens=64), run=dict(threads=1),
                             diagnostics=dict(every=2, esd_every=2, forms=["score", "weight"], parts=["full", "ov"]))
        found = []
        for tensor in (1, 2):
            db = self.train(tensor + 1, config, f"run-{tensor}", f"parallel.tensor={tensor}")
            found.append(db.execute(
                "SELECT form, part, scope, layer, head, tensor, rows, cols, lambda_max, stable_rank, length(u), length(v), n"
                " FROM spectra JOIN matrices USING(matrix_id) JOIN snapshots USING(snapshot_id)"
                " JOIN vectors USING(snapshot_id, matrix_id) JOIN esd USING(snapshot_id, matrix_id)"
                " WHERE step = 0 ORDER BY form, part, scope, layer, head, tensor").fetchall())
        self.assertEqual(len(found[0]), 2 * (2 * (4 + 1) + (2 * 4 + 2) + 2 * 4))  # maps; W_Q, W_UK, W_DKV, W_KR; W_UV, W_O
        for one, two in zip(*found, strict=True):
            self.assertEqual(one[:8] + one[10:], two[:8] + two[10:])
            for a, b in zip(one[8:10], two[8:10]):
                self.assertAlmostEqual(a / b, 1, delta=1e-12)
        rows = {row[:6]: row for row in found[0]}
        self.assertEqual(rows["weight", "ov", "head", 1, 3, "W_O"][6:8], (32, 8))
        self.assertEqual(rows["score", "ov", "layer", 0, -1, ""][6:8], (16, 16))


    def test_the_onset_of_a_planted_spike(self):
        """Head 2 of four has one strong direction in queries and keys, and nothing learns: its first crossing is step 1 (step 0
        is no onset), step 2 confirms it, and the overlap is 1 from there on. No other head has an onset. The first run makes the
        ensemble that the second finds. The second has uneven gains: that head's rows are written again when the ensemble with
        those gains is made, and keep their overlap."""
        os.environ["BULKHEAD_CACHE"] = self.path("cache")
        self.addCleanup(os.environ.pop, "BULKHEAD_CACHE")
        d, draw = 64, random.Random(7)
        noise = {name: array.array("f", (draw.gauss(0, 0.02) for _ in range(d * d))) for name in ("W_Q", "W_K", "W_V", "W_O")}
        spike = [draw.gauss(0, 1) for _ in range(d)]
        size = math.sqrt(sum(x * x for x in spike))
        spike = [x / size for x in spike]
        for name in ("W_Q", "W_K"):
            for row in range(32, 48):
                for col in range(d):
                    noise[name][row * d + col] += 0.3 * spike[col]
        tensors = {"layers.0.attention." + name: ((d, d), x) for name, x in noise.items()}
        for name, shape in (("embedding", (16, d)), ("lm_head", (16, d)), ("layers.0.mlp.W_gate", (8, d)),
                            ("layers.0.mlp.W_up", (8, d)), ("layers.0.mlp.W_down", (d, 8))):
            tensors[name] = shape, array.array("f", [0.01]) * (shape[0] * shape[1])
        for name in ("norm", "layers.0.attention_norm", "layers.0.mlp_norm"):
            tensors[name] = (1, d), array.array("f", [1]) * d
        checkpoints.write(self.path("even.safetensors"), tensors)
        tensors["layers.0.attention_norm"] = (1, d), array.array("f", (0.9 + 0.2 * (i % 2) for i in range(d)))
        checkpoints.write(self.path("uneven.safetensors"), tensors)
        self.dataset(vocab=16)
        config = self.config(model=dict(layers=1, width=d, ffn=8, vocab=16, context=8), attention=dict(variant="mha"),
                             train=dict(steps=4, lr=0, warmup=0, eval_tokens=16),
                             diagnostics=dict(every=1, forms=["score"], scopes=["head"], null_draws=256))
        self.train(2, config, "first", f"train.init_from={self.path('even.safetensors')}")
        db = self.train(2, config, "run", f"train.init_from={self.path('uneven.safetensors')}")
        self.assertEqual(db.execute("SELECT count(*) FROM spectra WHERE tw_score_gains > 10").fetchone(), (5,))
        rows = db.execute("SELECT step, head, tw_score, top_overlap FROM spectra JOIN matrices USING(matrix_id)"
                          " JOIN snapshots USING(snapshot_id) ORDER BY step, head").fetchall()
        self.assertEqual(len(rows), 5 * 4)
        for step, head, score, overlap in rows:
            self.assertEqual(score > 10, head == 2, (step, head, score))
            if head == 2 and step >= 2:
                self.assertAlmostEqual(overlap, 1, delta=1e-6)
            else:
                self.assertIsNone(overlap)
        kept = db.execute("SELECT step, head, u, v FROM vectors JOIN matrices USING(matrix_id) JOIN snapshots USING(snapshot_id)")
        (step, head, u, v), = kept.fetchall()
        self.assertEqual((step, head), (1, 2))
        for blob in (u, v):
            self.assertGreater(abs(sum(x * y for x, y in zip(array.array("f", blob), spike, strict=True))), 0.95)


class ManySpectra(Spectra):
    """200 models a variant."""

    def test_many_mha_agree(self):
        self.agrees("mha", 200, 1)

    def test_many_prerope_agree(self):
        self.agrees("mla-prerope", 200, 1)

    def test_many_decoupled_agree(self):
        self.agrees("mla-decoupled", 200, 1)


if __name__ == "__main__":
    unittest.main()
