"""End to end: `bulkhead watch` against SQL on the same database, in a pipe and on a terminal."""
import json
import os
import random
import signal
import sqlite3
import statistics
import subprocess
import termios
import time
import unittest

from harness import BULKHEAD, RunTest
from terminal import Terminal


class Watch(RunTest):
    def make_run(self, steps=8, rows=0):
        """A finished run in `run`; with rows that many more steps, of random losses."""
        self.dataset()
        self.train(2, self.config(train=dict(steps=steps, eval_every=4)), "run")
        with sqlite3.connect(self.path("run", "run.db")) as db:
            rng = random.Random()
            db.executemany("INSERT INTO train_metrics(run_id, step, loss, tokens_per_s, step_ms) VALUES(1, ?, ?, ?, ?)",
                           [(steps + 1 + i, rng.gauss(3, 1), rng.uniform(1, 9e4), rng.uniform(1, 99)) for i in range(rows)])
            db.execute("UPDATE params SET value = 5000 WHERE key = 'train.steps'")
            for step, layer in db.execute("SELECT step, layer FROM layer_spectra WHERE stat = 'median'").fetchall():
                db.execute("UPDATE layer_spectra SET stable_rank = ? WHERE stat = 'median' AND step = ? AND layer = ?",
                           (None if rng.random() < 0.2 else rng.uniform(1, 9), step, layer))
        db.close()
        return self.database("run")

    def change(self, *statements):
        db = sqlite3.connect(self.path("run", "run.db"), isolation_level=None)
        for sql in statements:
            db.execute(sql)
        db.close()

    def terminal(self, *arguments, rows=24, columns=80, **environment):
        environment = dict(dict(TERM="vt100", LC_ALL="C.UTF-8"), **environment)
        t = Terminal([os.path.abspath(BULKHEAD), "watch", *arguments], rows, columns, **environment)
        self.addCleanup(t.close)
        return t


class Lines(Watch):
    def test_once_tells_what_the_database_has(self):
        db = self.make_run(rows=993)
        self.change("UPDATE snapshots SET status = 'planned' WHERE step = 8", "UPDATE snapshots SET status = 'dropped' WHERE step = 4")
        said = json.loads(self.bulkhead("watch", self.path("run"), "--once", "--json", "--column", "stable_rank").stdout)
        one = lambda sql: db.execute(sql).fetchone()
        self.assertEqual((said["name"], said["variant"], said["status"], said["attempt"], said["exit_code"]),
                         ("config", "mha", "finished", 1, 0))
        self.assertEqual((said["step"], said["loss"]), one("SELECT step, loss FROM train_metrics ORDER BY step DESC LIMIT 1"))
        self.assertEqual((said["validation_step"], said["validation_loss"]),
                         one("SELECT step, loss FROM eval_metrics WHERE split = 'validation' ORDER BY step DESC LIMIT 1"))
        speed, ms = zip(*db.execute("SELECT tokens_per_s, step_ms FROM train_metrics ORDER BY step DESC LIMIT 20"))
        self.assertAlmostEqual(said["tokens_per_s"], statistics.mean(speed), delta=1e-9 * max(speed))
        self.assertAlmostEqual(said["seconds_left"], (5000 - 1001) * statistics.mean(ms) / 1000, delta=1e-6)
        self.assertEqual((said["snapshots"], said["snapshots_waiting"], said["snapshots_missed"]),
                         tuple(one(f"SELECT count(*) FROM snapshots WHERE {w}")[0] for w in
                               ("status = 'done'", "status = 'planned'", "status = 'dropped'")))
        self.assertEqual((said["snapshot_step"], said["lag_ms"], said["compute_ms"]),
                         one("SELECT step, lag_ms, compute_ms FROM snapshots WHERE status = 'done' ORDER BY step DESC LIMIT 1"))
        losses = [loss for (loss,) in db.execute("SELECT loss FROM train_metrics ORDER BY step")]
        bins = [losses[-(-i * len(losses) // 200):-(-(i + 1) * len(losses) // 200)] for i in range(200)]
        self.assertEqual(len(said["losses"]["median"]), 200)
        self.assertEqual(sum(map(len, bins)), 1001)
        for got, want in zip(said["losses"]["median"], bins):
            self.assertAlmostEqual(got, statistics.median(want), places=12)
        self.assertEqual(said["map"]["column"], "stable_rank")
        steps = [step for (step,) in db.execute("SELECT step FROM snapshots WHERE status <> 'planned' ORDER BY step")]
        self.assertEqual(said["map"]["steps"], steps)
        for layer, values in enumerate(said["map"]["values"]):
            self.assertEqual(values, [one(f"SELECT stable_rank FROM layer_spectra WHERE form = 'score' AND part = 'full' AND "
                                          f"stat = 'median' AND layer = {layer} AND step = {step}")[0] for step in steps])
        self.assertEqual([(e["step"], e["kind"], e["message"]) for e in said["events"]],
                         db.execute("SELECT step, kind, message FROM events ORDER BY attempt, seq").fetchall()[-20:])
        line = self.bulkhead("watch", self.path("run", "run.db"), "--once").stdout
        self.assertEqual(len(line.splitlines()), 1)
        for part in ("config: finished, exit code 0", "step 1001/5000", f"loss {said['loss']:.4f}", f"{said['tokens_per_s']:.0f} tokens/s",
                     f"snapshots {said['snapshots']}, 1 waiting, 1 missed"):
            self.assertIn(part, line)

    def test_a_pipe_gets_lines_until_the_run_ends(self):
        """From before there is a run; the same on a terminal that cannot be drawn on."""
        self.dataset()
        path = self.path("run")
        pipe = subprocess.Popen([BULKHEAD, "watch", path, "--every", "0.1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(pipe.kill)
        dumb = self.terminal(path, "--every", "0.1", TERM="dumb")
        dumb.wait_for("waiting")
        db = self.train(2, self.config(train=dict(steps=1500, log_every=1000), diagnostics=dict(every=500)), "run")
        out, err = pipe.communicate(timeout=20)
        self.assertEqual(pipe.returncode, 0, err)
        for line in err.splitlines():
            self.assertTrue(line.startswith("bulkhead watch: waiting: "), line)
        loss, = db.execute("SELECT loss FROM train_metrics ORDER BY step DESC LIMIT 1").fetchone()
        self.assertIn("running", out.splitlines()[0])
        last = out.splitlines()[-1]
        self.assertIn("config: finished, exit code 0  step 1500/1500  100.0%", last)
        self.assertIn(f"loss {loss:.4f}", last)
        self.assertEqual(os.WEXITSTATUS(dumb.end()), 0)
        self.assertNotIn(b"\x1b", dumb.raw)
        self.assertIn(last.encode(), dumb.raw)

    def test_wrong_input(self):
        self.make_run()
        with open(self.path("no.db"), "w") as f:
            f.write("this is no database " * 100)
        sqlite3.connect(self.path("begins.db")).execute("VACUUM").connection.close()
        run = self.path("run")
        for code, *arguments in ((64,), (64, run, run), (64, run, "--column", "nothing"), (64, run, "--every", "0"), (64, run, "--json"),
                                 (66, self.path("none"), "--once"), (66, self.path("begins.db"), "--once"), (65, self.path("no.db"), "--once"), (65, self.path("no.db"))):
            done = self.bulkhead("watch", *arguments)
            self.assertEqual((done.returncode, done.stdout), (code, ""), (arguments, done.stderr))
            self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)


class Screen(Watch):
    def restored(self, t):
        self.assertEqual(termios.tcgetattr(t.fd), t.before)

    def test_it_shows_the_run_and_leaves_the_terminal_as_it_was(self):
        db = self.make_run(rows=300)
        t = self.terminal(self.path("run"), "--every", "0.2")
        loss, = db.execute("SELECT loss FROM train_metrics ORDER BY step DESC LIMIT 1").fetchone()
        screen = t.wait_for("quits")
        for part in ("config (mha)  finished, exit code 0", "step 308/5000", f"loss {loss:.4f}", "effective_rank, median over heads", "█"):
            self.assertIn(part, screen)
        self.assertNotEqual(termios.tcgetattr(t.fd), t.before)
        self.change("UPDATE train_metrics SET loss = 1.25 WHERE step = 308")
        t.wait_for("loss 1.2500")
        t.press("p")
        t.wait_for("paused")
        self.change("UPDATE train_metrics SET loss = 1.75 WHERE step = 308")
        for _ in range(8):
            t.pump(0.1)
        self.assertIn("loss 1.2500", t.screen)
        t.press("p")
        t.wait_for("loss 1.7500")
        t.press("c")
        t.wait_for(lambda s: "median over heads" in s and "effective_rank," not in s or "no values yet" in s)
        t.press("\x1bOD")  # left, as the terminal sends it
        t.wait_for("effective_rank, median over heads")
        for rows, columns in ((10, 40), (3, 12), (1, 1), (2, 200), (50, 132), (24, 80)):
            t.resize(rows, columns)
            for _ in range(4):
                t.pump(0.1)
        t.wait_for(lambda s: "config (mha)" in s and "quits" in s)
        t.press("q")
        self.assertEqual(t.end(), 0)
        self.restored(t)

    def test_signals_leave_the_terminal_as_it_was(self):
        self.make_run()
        for number in (signal.SIGTERM, signal.SIGINT):
            t = self.terminal(self.path("run"))
            t.wait_for("quits")
            os.kill(t.pid, number)
            status = t.end()
            self.assertTrue(os.WIFSIGNALED(status) and os.WTERMSIG(status) == number, status)
            self.restored(t)

    def test_it_waits_for_what_is_missing_or_locked(self):
        t = self.terminal(self.path("run"), "--every", "0.2", LC_ALL="C")
        t.wait_for("waiting for " + self.path("run")[:40])
        self.make_run()
        t.wait_for("finished, exit code 0")
        self.assertTrue(t.screen.isascii())
        lock = sqlite3.connect(self.path("run", "run.db"), isolation_level=None)
        lock.execute("BEGIN EXCLUSIVE")
        t.wait_for("cannot read")
        self.assertIn("finished, exit code 0", t.screen)
        lock.execute("ROLLBACK")
        lock.close()
        t.wait_for("quits")
        t.press("q")
        self.assertEqual(t.end(), 0)
        t = self.terminal(os.path.abspath(__file__), "--every", "0.1")
        self.assertEqual(os.WEXITSTATUS(t.end()), 65)
        self.assertIn(b"is not a usable SQLite database", t.raw)
        self.restored(t)

    def test_colours_are_for_terminals_that_have_them(self):
        self.make_run()
        for environment, coloured in ((dict(TERM="xterm-256color"), True), (dict(TERM="xterm-256color", NO_COLOR="1"), False),
                                      (dict(TERM="vt100"), False), (dict(TERM="xterm-256color", NO_COLOR=""), True)):
            t = self.terminal(self.path("run"), **environment)
            t.strict = False
            deadline = time.monotonic() + 10
            while b"pause" not in t.raw and time.monotonic() < deadline:
                t.pump(0.1)
            t.press("q")
            self.assertEqual(t.end(), 0)
            self.assertEqual(b"48;5;" in t.raw, coloured, environment)


if __name__ == "__main__":
    unittest.main()
