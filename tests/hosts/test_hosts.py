"""A run over two hosts, of which one is cut off: a clean end with one message, and the same run afterwards."""
import os
import shutil
import subprocess
import sys
import time
import unittest

import hosts

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "e2e"))
import harness  # noqa: E402

# The learning rate is the same whatever the number of steps.
ENDLESS, MORE_STEPS = 1000000, 20
STATE = "SELECT step, loss, grad_norm, tokens FROM train_metrics ORDER BY step"


class Hosts(harness.RunTest):
    time_limit_s = 60

    def setUp(self):
        super().setUp()
        self.hosts = hosts.TwoHosts()
        self.addCleanup(self.hosts.stop)
        reason = self.hosts.start()
        if reason:
            print(f"skipped: {reason}")
            self.skipTest(reason)
        self.dataset()

    def over(self, ranks, run, steps):
        """Starts the run with that many ranks on each host: tensor parallel 2, on one host each, data parallel 2."""
        config = self.config(train=dict(steps=steps, min_lr_ratio=1, log_every=100), checkpoint=dict(every=10),
                             diagnostics=dict(every=50), parallel=dict(tensor=2))
        command = self.hosts.command(ranks, os.path.abspath(harness.BULKHEAD), "train", config, "--set",
                                     f"run.dir={self.path(run)}", "--resume", "auto")
        job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=self.dir,
                               env=dict(self.hosts.environment(), TMPDIR=self.dir))
        self.addCleanup(job.wait)
        self.addCleanup(job.kill)
        return job

    def finish(self, ranks, run, steps):
        job = self.over(ranks, run, steps)
        _, err = job.communicate(timeout=self.time_limit_s)
        self.assertEqual(job.returncode, 0, err)
        return self.database(run)

    def latest(self, run):
        with open(self.path(run, "checkpoints", "latest")) as f:
            return int(f.read().strip()[5:])

    def test_a_host_is_cut_off(self):
        job = self.over((3, 2), "run", ENDLESS)
        self.wait_for_database("run", "SELECT 1 FROM events WHERE kind = 'checkpoint' AND step >= 20").close()
        self.hosts.cable("down")
        cut = time.monotonic()
        out, err = job.communicate(timeout=self.time_limit_s)
        self.assertNotEqual(job.returncode, 0)
        self.assertEqual(err.count("lost communication with a remote daemon"), 1, err)
        self.assertNotIn("has waited", err)  # the watchdog's message would be a second one
        while self.hosts.processes() and time.monotonic() - cut < self.time_limit_s:
            time.sleep(0.1)
        self.assertEqual(self.hosts.processes(), [])
        print(f"over after {time.monotonic() - cut:.0f} s")

        self.hosts.cable("up")
        saved = self.latest("run")
        end = saved + MORE_STEPS
        shutil.copytree(self.path("run"), self.path("one-host"))
        # The other layout has the diagnostics rank on the other host, and the same compute ranks.
        want = self.finish((2, 3), "whole", end).execute(STATE).fetchall()
        self.assertEqual(len(want), end)
        db = self.finish((3, 2), "run", end)
        self.assertEqual(db.execute(STATE).fetchall(), want)
        self.assertEqual(db.execute("SELECT status FROM runs").fetchall(), [("finished",)])
        self.assertEqual(db.execute("SELECT first_step FROM sessions ORDER BY attempt").fetchall(), [(1,), (saved + 1,)])
        both = db.execute("SELECT hosts FROM sessions").fetchone()[0].split(",")
        self.assertEqual(len(set(both)), 2, both)
        self.assertEqual(db.execute("PRAGMA integrity_check").fetchall(), [("ok",)])

        code, _, err = self.launch(5, self.path("config.yaml"), "one-host", resume="auto")
        self.assertEqual(code, 0, err)
        got = self.losses(self.database("one-host"))
        for (_, loss, _, _), moved in zip(want, got, strict=True):
            self.assertAlmostEqual(loss, moved, delta=1e-5 * loss)


if __name__ == "__main__":
    unittest.main()
