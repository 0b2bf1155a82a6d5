"""End to end: every column, singular value and top pair of every matrix of random small models, against the definitions of
docs/design.md section 6 in NumPy (spectra_oracle.py). New models every day; a failure names the seed that makes its model.

Needs a Python with NumPy, named by SPECTRA_PYTHON.
"""
import json
import os
import subprocess
import time
import unittest

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
