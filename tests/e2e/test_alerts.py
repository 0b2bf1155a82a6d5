"""End to end: alerts log, start programs and end a run on all ranks at one step; wrong ones are refused before it begins."""
import os
import subprocess
import time
import unittest

import harness

CONFIG = 78


class Alerts(harness.RunTest):
    def setUp(self):
        super().setUp()
        self.dataset()

    def with_rules(self, *rules, **train):
        diagnostics = dict(every=1, alerts=list(rules))
        return self.config(diagnostics=diagnostics, train=dict(steps=40, eval_tokens=64, **train))

    def test_a_stop_ends_all_ranks_at_one_step(self):
        """The record is whole: as many steps as it says, a validation at the end, and the numbers of a run that goes on."""
        rule = "lambda_max > 0 for 4 snapshots then stop"
        stopped = self.train(3, self.with_rules(rule), "stopped", "parallel.tensor=2")
        (last, code), = stopped.execute("SELECT last_step, exit_code FROM sessions").fetchall()
        self.assertEqual(code, 0)
        self.assertEqual(stopped.execute("SELECT status FROM runs").fetchall(), [("stopped",)])
        self.assertTrue(3 <= last < 40, last)
        losses = self.losses(stopped)
        self.assertEqual(len(losses), last)
        self.assertEqual(stopped.execute("SELECT max(step) FROM eval_metrics").fetchone()[0], last)
        events = stopped.execute("SELECT step, kind, message FROM events WHERE level = 'warn' ORDER BY seq").fetchall()
        self.assertEqual([e[1] for e in events], ["alert", "stop"])
        self.assertEqual(events[0][0], 3)  # the fourth snapshot is that of step 3
        self.assertIn(rule, events[0][2])
        self.assertEqual(events[1][0], last)
        whole = self.train(3, self.config(train=dict(steps=40, eval_tokens=64), diagnostics=dict(every=40)), "whole",
                           "parallel.tensor=2")
        self.assertEqual(self.losses(whole)[:last], losses)

    def test_a_program_is_started_and_a_log_line_written(self):
        """In mpirun's job, where it must be no rank; what it prints goes into the run folder. Rules survive the YAML file."""
        config = self.with_rules("stable_rank > 0 then run: sh -c 'echo $BULKHEAD_RUN $BULKHEAD_STEP, [$OMPI_COMM_WORLD_RANK]'",
                                 "stable_rank of channel < 1e9 for 2 snapshots")
        db = self.train(2, config, "run", "run.name=watched", "train.steps=3")
        self.assertEqual(db.execute("SELECT count(*) FROM events WHERE kind = 'alert'").fetchone()[0], 2)
        self.assertEqual(db.execute("SELECT status FROM runs").fetchall(), [("finished",)])
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and not os.path.exists(self.path("run", "alerts.log")):
            time.sleep(0.02)
        time.sleep(0.1)
        with open(self.path("run", "alerts.log")) as f:
            self.assertEqual(f.read(), "watched 0, []\n")
        with open(self.path("run", "log.txt")) as f:
            self.assertIn("alert, step 1: stable_rank of channel", f.read())
        again = subprocess.run([harness.BULKHEAD, "plan", self.path("run", "config.yaml")], capture_output=True, text=True)
        self.assertEqual(again.returncode, 0, again.stderr)

    def test_a_checkpoint_is_made_when_it_is_asked_for(self):
        """Once a firing, a few steps behind it, on all ranks; the run goes on as if nothing had been."""
        rules = [f"lambda_max > 0 for {n} snapshots then checkpoint" for n in (2, 20)]
        db = self.train(3, self.with_rules(*rules), "run", "parallel.tensor=2", "checkpoint.keep=9")
        saved = sorted(int(n[5:]) for n in os.listdir(self.path("run", "checkpoints")) if n.startswith("step-"))
        self.assertEqual(len(saved), 3, saved)
        first, second, last = saved
        self.assertTrue(1 <= first < 19 <= second < 40 == last, saved)
        alerts = db.execute("SELECT step, message FROM events WHERE kind = 'alert' ORDER BY seq").fetchall()
        self.assertEqual([step for step, _ in alerts], [1, 19])
        self.assertIn("a checkpoint is asked for", alerts[0][1])
        self.assertEqual(db.execute("SELECT status FROM runs").fetchall(), [("finished",)])
        self.assertEqual(len(self.losses(db)), 40)

    def test_wrong_rules_are_refused(self):
        self.refused(CONFIG, 2, self.with_rules("tw_score > 7 then save"), "run", says=["diagnostics.alerts", "save"])
        self.refused(CONFIG, 2, self.with_rules("tw_score of rope > 7"), "run", says=["diagnostics.alerts", "rope"])

    def test_the_plan_refuses_them_too(self):
        for rule, settings, word in (("tw_scor > 7", [], "tw_scor"), ("tw_score > 7", ["--set", "diagnostics.ranks=0"], "alerts")):
            plan = subprocess.run([harness.BULKHEAD, "plan", self.with_rules(rule), *settings], capture_output=True, text=True)
            self.assertEqual(plan.returncode, CONFIG, plan.stderr)
            self.assertIn(word, plan.stderr)


if __name__ == "__main__":
    unittest.main()
