"""End to end, slow: what a first run promises, with the quickstart's own configuration on the dictionary that it reads."""
import gzip
import json
import os
import subprocess
import unittest

import harness

DICTIONARY = "/usr/share/dictd/gcide.dict.dz"
CONFIG = os.path.join(os.path.dirname(__file__), "../../deploy/configs/quickstart.yaml")


class Learning(harness.RunTest):
    time_limit_s = 600

    def setUp(self):
        super().setUp()
        if not os.path.exists(DICTIONARY):
            self.skipTest("the package dict-gcide is not installed")
        with gzip.open(DICTIONARY) as text:
            subprocess.run([harness.BULKHEAD, "prepare", "-", "-o", self.path("data"), "--vocab", "4096", "--invalid",
                            "latin1"], input=text.read(), check=True, capture_output=True)
        with open(self.path("data/dataset.json")) as f:
            self.entropy = json.load(f)["validation"]["unigram_entropy_nats"]

    def learns(self, variant):
        db = self.train(3, CONFIG, "run", f"attention.variant={variant}", f"data.train={self.path('data/train-*.bin')}",
                        f"data.validation={self.path('data/val-*.bin')}")
        (loss,) = db.execute("SELECT loss FROM eval_metrics WHERE split = 'validation'").fetchone()
        self.assertLess(loss, self.entropy)
        last = db.execute("SELECT loss FROM train_metrics ORDER BY step DESC LIMIT 10").fetchall()
        self.assertLess(sum(row[0] for row in last) / 10, self.entropy)
        self.assertEqual(db.execute("SELECT count(*) FROM snapshots WHERE status != 'done'").fetchone()[0], 0)

    def test_mha_beats_the_unigram_entropy(self):
        self.learns("mha")

    def test_prerope_beats_the_unigram_entropy(self):
        self.learns("mla-prerope")

    def test_decoupled_beats_the_unigram_entropy(self):
        self.learns("mla-decoupled")


if __name__ == "__main__":
    unittest.main()
