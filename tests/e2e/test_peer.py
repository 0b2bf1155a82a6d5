"""End to end: a whole run follows the PyTorch peer of bench/peer from the same weights over the same batches.

The peer knows docs/design.md and not the C code: this compares the mathematics of the variants, backward passes, AdamW,
clipping, the schedule and the order of the data at once. Needs a Python with PyTorch and NumPy, named by PEER_PYTHON.
"""
import json
import os
import random
import socket
import subprocess
import unittest

import harness

PYTHON = os.environ.get("PEER_PYTHON", "python3")
PEER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "bench", "peer")


class Peer(harness.RunTest):
    def setUp(self):
        super().setUp()
        if subprocess.run([PYTHON, "-c", "import numpy, torch"], capture_output=True).returncode:
            self.skipTest(f"skipped: {PYTHON} has no PyTorch and NumPy")
        # Two shards, and fewer windows than the run takes: a second epoch begins. Some tokens are frequent, most are not. Seven
        # windows of validation, in micro-batches of two or four.
        draw = random.Random(5)
        for shard, count in (("train-00000", 2900), ("train-00001", 1900), ("val-00000", 500)):
            harness.write_shard(self.path(f"{shard}.bin"),
                                [min(4095, int(draw.paretovariate(0.6))) for _ in range(count)])

    def peer(self, program, *arguments):
        done = subprocess.run([PYTHON, os.path.join(PEER, program), *arguments], capture_output=True, text=True,
                              timeout=self.time_limit_s)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout

    def follows(self, variant, ranks, *arguments):
        """Weights three times as large as usual: attention is far from uniform."""
        self.peer("follow.py", self.path("peer"), "--data", self.path("train-*.bin"), "--variant", variant, "--size", "tiny",
                  "--context", "64", "--batch", "4", "--steps", "20", "--warmup", "5", "--device", "cpu", "--precision",
                  "fp32", "--std", "0.06", "--validation", self.path("val-*.bin"), "--eval-every", "8", *arguments)
        self.train(ranks, self.path("peer", "config.yaml"), "run", "diagnostics.ranks=0", f"parallel.tensor={ranks}")
        report = json.loads(self.peer("compare.py", self.path("peer", "peer.jsonl"), self.path("run", "run.db"), "--every", "1",
                                      "--limit", "2e-6", "--norm-limit", "1e-4"))
        self.assertEqual(report["steps"], 20)
        self.assertLess(report["validation_difference"], 2e-6)
        self.assertLess(report["last_validation"], report["first_loss"])
        self.assertLess(report["last_loss"], 0.7 * report["first_loss"])

    def test_cut_over_two_ranks(self):
        """The peer that is timed on several GPUs: it checks its loss and gradients against the whole model's."""
        for variant in ("mha", "mla-prerope", "mla-decoupled"):
            with socket.socket() as s:
                s.bind(("127.0.0.1", 0))
                place = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "TORCHDYNAMO_DISABLE": "1",
                         "MASTER_PORT": str(s.getsockname()[1])}
            words = [PYTHON, os.path.join(PEER, "timed.py"), variant, "tiny", "2", "1", "tensor", "1"]
            ranks = [subprocess.Popen(words, env={**place, "RANK": str(r), "LOCAL_RANK": str(r)}, text=True,
                                      stdin=subprocess.PIPE, stdout=subprocess.PIPE) for r in range(2)]
            try:
                out = [rank.communicate("go\n", timeout=self.time_limit_s)[0] for rank in ranks]
            finally:
                for rank in ranks:
                    rank.kill()
                    rank.wait()
            self.assertEqual([rank.returncode for rank in ranks], [0, 0], variant)
            figures = json.loads(out[0].splitlines()[-1])
            self.assertLess(figures["off_whole"], 1e-4)
            self.assertGreater(figures["tokens_per_s"], 0)

    def test_mha_follows(self):
        self.follows("mha", 1, "--micro-batch", "2", "--beta2", "0.999")

    def test_prerope_follows(self):
        self.follows("mla-prerope", 1, "--decay", "all", "--weight-decay", "1")

    def test_decoupled_follows(self):
        self.follows("mla-decoupled", 2)


if __name__ == "__main__":
    unittest.main()
