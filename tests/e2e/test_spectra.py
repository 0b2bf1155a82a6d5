"""End to end: every column, singular value and top pair of every matrix of random small models, against the definitions of
docs/design.md section 6 in NumPy (spectra_oracle.py). New models every day; a failure names the seed that makes its model.

Needs a Python with NumPy, named by SPECTRA_PYTHON.
"""
import json
import os
import subprocess
import time
import unittest

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
