"""The training loop over a GPU's queue, where the host is a step ahead of what it knows: ends at a loss that is not finite,
and runs that stop and go on."""
import os
import shutil
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
from harness import RunTest, need_gpus

MOST_LEFT_OUT = 10
ROWS = "SELECT step, loss, grad_norm, lr, tokens FROM train_metrics ORDER BY step"


class LoopTest(RunTest):
    def diverge(self, policy):
        """A run whose first update ruins the weights."""
        need_gpus(self, 1)
        self.dataset()
        config = self.config(train=dict(steps=40, lr=1e30, warmup=0, clip=0, on_nan=policy), run=dict(device="cuda"),
                             diagnostics=dict(ranks=0))
        code, _, err = self.launch(1, config, "run")
        self.assertEqual(code, 70, err)
        db = self.database("run")
        self.assertEqual(db.execute("SELECT status FROM runs").fetchone()[0], "failed")
        bad = [step for step, in db.execute("SELECT step FROM events WHERE kind = 'nan' ORDER BY step")]
        steps = db.execute("SELECT step, loss IS NULL OR grad_norm IS NULL FROM train_metrics ORDER BY step").fetchall()
        self.assertEqual(steps, [(step, step in bad) for step in range(1, bad[-1] + 1)])
        self.assertEqual(bad, list(range(bad[0], bad[0] + len(bad))))
        self.assertGreater(bad[0], 1)
        return bad, err

    def test_stop(self):
        bad, err = self.diverge("stop")
        self.assertEqual(len(bad), 1)
        self.assertIn("the update is left out", err)

    def test_skip_to_the_end(self):
        bad, err = self.diverge("skip")
        self.assertEqual(len(bad), MOST_LEFT_OUT)
        self.assertIn(f"the {MOST_LEFT_OUT}th in a row", err)

    def check_going_on(self, precision):
        need_gpus(self, 1)
        self.dataset()
        config = self.config(train=dict(steps=12, micro_batch=2, eval_every=5, precision=precision),
                             run=dict(device="cuda"), checkpoint=dict(every=4, keep=10), diagnostics=dict(ranks=0))
        whole = self.train(1, config, "whole").execute(ROWS).fetchall()
        self.assertEqual([row[0] for row in whole], list(range(1, 13)))
        shutil.copytree(self.path("whole"), self.path("cut"))
        shutil.rmtree(self.path("cut", "checkpoints", "step-00000012"))
        with open(self.path("cut", "checkpoints", "latest"), "w") as f:
            f.write("step-00000008\n")
        code, _, err = self.launch(1, config, "cut", resume="auto")
        self.assertEqual(code, 0, err)
        self.assertEqual(self.database("cut").execute(ROWS).fetchall(), whole)

    def test_goes_on_bit_for_bit_in_bf16(self):
        self.check_going_on("bf16")

    def test_goes_on_bit_for_bit_in_fp32(self):
        self.check_going_on("fp32")


if __name__ == "__main__":
    unittest.main()
