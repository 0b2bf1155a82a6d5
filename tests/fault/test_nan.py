"""docs/cases.md 16: a value that is not finite on one rank in mid-run."""
import json
import os
import signal
import unittest
import unittest.mock

import harness


class Nan(harness.RunTest):
    def setUp(self):
        super().setUp()
        self.dataset()
        os.environ["NAN_FILE"] = self.path("nan")

    def start(self, policy, rank, ranks, tensor):
        """A run in whose course that rank gets a NaN."""
        config = self.config(train=dict(steps=1000000, log_every=1000000, on_nan=policy),
                             attention=dict(variant="mla-decoupled"), checkpoint=dict(every=1, keep=100000),
                             diagnostics=dict(ranks=0))
        with unittest.mock.patch.dict(os.environ, LD_PRELOAD=os.environ["NAN_ONCE"],
                                      ASAN_OPTIONS="verify_asan_link_order=0"):
            job = self.in_background(ranks, config, "run", f"parallel.tensor={tensor}")
        self.wait_for_database("run", "SELECT 1 FROM train_metrics WHERE step >= 5").close()
        with open(self.path("nan.new"), "w") as f:
            f.write(str(rank))
        os.rename(self.path("nan.new"), self.path("nan"))
        return job

    def manifest(self, step):
        with open(self.path("run", "checkpoints", f"step-{step:08d}", "manifest.json")) as f:
            return json.load(f)["content"]

    def saved(self):
        return sorted(int(n[5:]) for n in os.listdir(self.path("run", "checkpoints")) if n.startswith("step-"))

    def the_step(self):
        """The one step that has an event, and no loss or, where the product was one of the backward pass, no norm. Keeps what
        the event says."""
        db = self.database("run")
        (self.told,) = db.execute("SELECT message FROM events WHERE kind = 'nan'").fetchone()
        steps = db.execute("SELECT step FROM events WHERE kind = 'nan'").fetchall()
        self.assertEqual(len(steps), 1)
        self.assertEqual(db.execute("SELECT step FROM train_metrics WHERE loss IS NULL OR grad_norm IS NULL").fetchall(),
                         steps)
        return steps[0][0]

    def test_stop(self):
        """By data-parallel ranks: the one that was hurt is named, and no other."""
        job = self.start("stop", rank=1, ranks=2, tensor=1)
        _, err = job.communicate(timeout=60)
        self.assertEqual(job.returncode, 70, err)
        step = self.the_step()
        self.assertRegex(self.told, f"step {step}: loss .*: not finite on rank 1; the update is left out")
        self.assertIn(self.told, err)
        self.assertEqual(self.database("run").execute("SELECT status FROM runs").fetchone()[0], "failed")
        with open(self.path("run", "checkpoints", "latest")) as f:
            self.assertEqual(f.read(), f"step-{step - 1:08d}\n")
        self.assertEqual(self.saved()[-1], step - 1)

    def test_skip(self):
        """By tensor-parallel ranks, which have each other's NaN as soon as they have summed."""
        job = self.start("skip", rank=1, ranks=2, tensor=2)
        self.wait_for_database("run", "SELECT 1 FROM events WHERE kind = 'nan'").close()
        step = self.the_step()
        self.assertRegex(self.told, "not finite on ranks? (0, )?1;")
        self.wait_for_database("run", f"SELECT 1 FROM train_metrics WHERE step >= {step + 3}").close()
        job.send_signal(signal.SIGUSR1)
        _, err = job.communicate(timeout=60)
        self.assertEqual(job.returncode, 75, err)
        before, skipped, after = (self.manifest(step + i) for i in (-1, 0, 1))
        self.assertTrue(skipped["boxes"] == before["boxes"], "weights or moments have changed")
        self.assertTrue(after["boxes"] != before["boxes"])
        self.assertEqual([m["updates"] for m in (before, skipped, after)], [step - 1, step - 1, step])
        self.assertEqual([m["left_out"] for m in (before, skipped, after)], [0, 1, 0])


if __name__ == "__main__":
    unittest.main()
