"""kill -9 of any process of a job at random moments: the next start goes on, and the run ends as if nothing had been.

Each kill picks one process among mpirun, the ranks and what they have started, at a random moment of the session, its
start and its checkpoints included. BULKHEAD_SEED repeats a choice of moments."""
import contextlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
import unittest

import harness

ROWS = ("SELECT step, loss, grad_norm, lr, tokens FROM train_metrics ORDER BY step",
        "SELECT step, tokens, status FROM snapshots ORDER BY step",
        "SELECT step, matrix_id, lambda_max, stable_rank, top_overlap FROM spectra JOIN snapshots USING(snapshot_id) ORDER BY 1, 2")


class Kill(harness.RunTest):
    def descendants(self, pid):
        found = [pid]
        for child in self.children(pid):
            found += self.descendants(child)
        return found

    def latest(self, run):
        try:
            with open(self.path(run, "checkpoints", "latest")) as f:
                return int(f.read()[5:])
        except FileNotFoundError:
            return None

    def session(self, run, rng):
        """One session of the run, killed on its way. True when it ended by itself."""
        before = self.latest(run)
        job = self.in_background(3, self.long, run, "parallel.tensor=2", resume="auto")
        start = time.monotonic()
        end = start + rng.uniform(0.05, 1.3 * self.session_s)
        while time.monotonic() < end and job.poll() is None:
            time.sleep(0.005)
        if job.poll() == 0 and before is None:  # how long a whole run takes now, on a machine that others use
            self.session_s = time.monotonic() - start
        family = self.descendants(job.pid)
        killed = "nothing"
        if job.poll() is None:
            victim = rng.choice(family)
            killed = self.describe(victim)
            with contextlib.suppress(ProcessLookupError):  # it was on its way out
                os.kill(victim, signal.SIGKILL)
        err = self.end_of(job, run, killed)
        for pid in family:  # of a killed mpirun they end a moment later
            deadline = time.monotonic() + 30
            while self.alive(pid):
                self.assertLess(time.monotonic(), deadline, f"process {pid} outlives the job")
                time.sleep(0.01)
        self.nothing_is_lost(run, before, err)
        return job.returncode == 0

    def end_of(self, job, run, killed):
        """What the job said. mpirun itself may never end when a rank has died while it connected (docs/operations.md):
        that is the one that may be left."""
        for limit_s in (20, 40):
            try:
                return job.communicate(timeout=limit_s)[1]
            except subprocess.TimeoutExpired:
                left = [pid for pid in self.descendants(job.pid) if self.alive(pid)]
                if left == [job.pid]:
                    print(f"mpirun stays alone after a kill of {killed}")
                    job.kill()
        left = [self.describe(pid) for pid in left]
        kept = tempfile.mkdtemp(prefix="bulkhead-hang-")
        if os.path.exists(self.path(run)):
            shutil.copytree(self.path(run), kept, dirs_exist_ok=True)
        self.fail("\n  ".join([f"{run} goes on 60 s after its kill, of {killed}; its folder is kept as {kept}; there are:", *left]))

    def describe(self, pid):
        """Command, role and what it waits in."""
        said = []
        for name in ("cmdline", "environ", "wchan", "stat"):
            try:
                with open(f"/proc/{pid}/{name}") as f:
                    said.append(f.read())
            except OSError:
                said.append("")
        command, environment, wait, stat = said
        rank = [e for e in environment.split("\0") if e.startswith("OMPI_COMM_WORLD_RANK=")]
        return " ".join([str(pid), *command.split("\0")[:3], *rank, wait, stat.rpartition(")")[2][:3]])

    def alive(self, pid):
        try:
            with open(f"/proc/{pid}/stat") as f:
                return f.read().rsplit(")", 1)[1].split()[0] != "Z"
        except FileNotFoundError:
            return False

    def nothing_is_lost(self, run, before, err):
        """What was announced is there; the database is whole."""
        now = self.latest(run)
        if before is not None:
            self.assertGreaterEqual(now, before, err)
        if now is not None:
            self.assertTrue(os.path.exists(self.path(run, "checkpoints", f"step-{now:08d}", "manifest.json")), err)
        if os.path.exists(self.path(run, "run.db")):
            db = sqlite3.connect(self.path(run, "run.db"))
            self.assertEqual(db.execute("PRAGMA integrity_check").fetchone()[0], "ok")
            if db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'events'").fetchone()[0]:
                told = [int(m[5:]) for (m,) in db.execute("SELECT message FROM events WHERE message LIKE 'step-%'")]
                self.assertGreaterEqual(now if now is not None else -1, max(told, default=-1), err)
            db.close()

    def kill_often(self, kills):
        seed = int(os.environ.get("BULKHEAD_SEED", random.SystemRandom().randrange(1 << 32)))
        print(f"BULKHEAD_SEED={seed}")
        rng = random.Random(seed)
        self.dataset()
        self.long = self.config(train=dict(steps=120, log_every=1000000), attention=dict(variant="mla-decoupled"),
                                checkpoint=dict(every=7, keep=2), diagnostics=dict(every=10, when_behind="wait"))
        start = time.monotonic()
        whole = self.train(3, self.long, "whole", "parallel.tensor=2")
        self.session_s = time.monotonic() - start
        want = [whole.execute(q).fetchall() for q in ROWS]
        runs = 0
        while kills > 0:
            run = f"run-{runs}"
            runs += 1
            while kills > 0 and not self.session(run, rng):
                kills -= 1
            db = self.train_on(run)
            for q, rows in zip(ROWS, want, strict=True):
                self.assertEqual(db.execute(q).fetchall(), rows)
            self.assertEqual(db.execute("SELECT status FROM runs").fetchone()[0], "finished")

    def train_on(self, run):
        code, _, err = self.launch(3, self.long, run, "parallel.tensor=2", resume="auto")
        self.assertEqual(code, 0, err)
        return self.database(run)

    def test_a_few_kills(self):
        self.kill_often(6)

    def test_many_kills(self):
        self.kill_often(50)


if __name__ == "__main__":
    unittest.main()
