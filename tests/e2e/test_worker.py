"""The diagnostics work in its own process: whatever it dies of is recorded, it is started again, no row is lost or comes
twice, and training does not notice."""
import os
import random
import resource
import signal
import subprocess
import time
import unittest
import unittest.mock

from harness import BULKHEAD, RunTest
from test_database import TABLES, rows

IO = 74


def processes():
    """pid: (parent, command line) of all that run."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as f, open(f"/proc/{pid}/stat") as g:
                found[int(pid)] = (int(g.read().rsplit(")", 1)[1].split()[1]), f.read().replace(b"\0", b" ").decode())
        except OSError:
            pass  # it has ended meanwhile
    return found


def workers(job):
    """The diagnostics workers of a job that mpirun runs, as (pid, supervisor)."""
    all_of_them = processes()

    def is_of_job(pid):
        while pid in all_of_them and pid != job.pid:
            pid = all_of_them[pid][0]
        return pid == job.pid

    return [(pid, parent) for pid, (parent, line) in sorted(all_of_them.items())
            if "diagnostics-worker" in line and is_of_job(pid)]


class Worker(RunTest):
    time_limit_s = 100

    def setUp(self):
        super().setUp()
        self.dataset()

    def busy_config(self, **diagnostics):
        """Steps that take a while, a snapshot at each."""
        return self.config(model=dict(width=64, ffn=96), attention=dict(variant="mla-decoupled"),
                           train=dict(steps=24, global_batch=24), diagnostics=dict(every=1, esd_every=5, **diagnostics))

    def test_a_signal_ends_the_wait_for_ensembles(self):
        """Of a run that is at its end: more draws than there is time for."""
        config = self.config(diagnostics=dict(null_draws=100_000_000))
        os.environ["BULKHEAD_CACHE"] = self.path("cache")
        self.addCleanup(os.environ.pop, "BULKHEAD_CACHE")
        job = self.in_background(2, config, "run")
        self.wait_for_database("run", "SELECT 1 FROM events WHERE kind = 'checkpoint'").close()
        time.sleep(1)
        begun = time.monotonic()
        job.send_signal(signal.SIGUSR1)
        _, err = job.communicate(timeout=60)
        self.assertLess(time.monotonic() - begun, 20)
        self.assertEqual(job.returncode, 0, err)
        self.assertIn("columns against nulls stay NULL", err)
        self.assertEqual(self.database("run").execute("SELECT status FROM runs").fetchall(), [("finished",)])

    def check_same(self, run, undisturbed):
        """All rows of both runs, without gaps in what the events say of themselves."""
        for table in (*TABLES, "vectors", "gains", "nulls"):
            self.assertEqual(rows(run, table), rows(undisturbed, table), table)
        self.assertEqual(run.execute("SELECT status, (SELECT count(*) FROM sessions) FROM runs").fetchall(), [("finished", 1)])
        self.assertEqual(run.execute("PRAGMA integrity_check").fetchone(), ("ok",))

    def check_last_word(self, db):
        """The supervisor's: how the run ended, and why rows are missing."""
        self.assertEqual(db.execute("SELECT status, ended_at IS NULL FROM runs").fetchall(), [("finished", 0)])
        self.assertEqual(db.execute("SELECT exit_code FROM sessions").fetchall(), [(IO,)])
        (step, message), = self.events(db, "fault")
        self.assertEqual(step, 24)
        self.assertIn("is not started again: rows behind step", message)
        self.assertEqual(db.execute("PRAGMA integrity_check").fetchone(), ("ok",))

    def events(self, db, kind):
        return db.execute("SELECT step, message FROM events WHERE kind = ? ORDER BY seq", (kind,)).fetchall()

    def finish(self, job, code=0):
        """Returns what it said."""
        _, err = job.communicate(timeout=self.time_limit_s)
        self.assertEqual(job.returncode, code, err)
        return err

    def one_worker(self, job, which=0):
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            found = workers(job)
            if len(found) > which:
                return found[which]
            time.sleep(0.005)
        self.fail("there is no worker")

    def hurt(self, how, **more):
        """The environment in which that befalls the worker (tests/fault/hurt_worker.c)."""
        return unittest.mock.patch.dict(os.environ, LD_PRELOAD=os.environ["HURT_WORKER"], BULKHEAD_HURT=how,
                                        ASAN_OPTIONS="verify_asan_link_order=0:handle_segv=0", **more)

    def test_a_killed_worker_is_started_again(self):
        """At random moments, with one rank and with two, of which either is hit."""
        seed = random.randrange(1 << 30)
        print("seed", seed)
        rng = random.Random(seed)
        config = self.busy_config()
        # Each checkpoint is an event; and there are steps left after the last kill, however fast they are.
        settings = ("checkpoint.every=2", "checkpoint.keep=1", "train.steps=60")
        undisturbed = self.train(2, config, "undisturbed", *settings)
        self.assertEqual(len(self.events(undisturbed, "restart")), 0)
        for ranks in (1, 2):
            run = f"killed-{ranks}"
            job = self.in_background(1 + ranks, config, run, f"diagnostics.ranks={ranks}", *settings)
            for after in (3, 10, 17):
                self.wait_for_database(run, f"SELECT 1 FROM train_metrics WHERE step >= {after}").close()
                time.sleep(rng.random() * 0.1)
                os.kill(self.one_worker(job, rng.randrange(ranks))[0], signal.SIGKILL)
            err = self.finish(job)
            db = self.database(run)
            self.assertEqual(len(self.events(db, "restart")), 3, err)
            self.assertIn("signal 9", self.events(db, "restart")[0][1])
            saved = [sorted(self.events(of, "checkpoint")) for of in (db, undisturbed)]
            self.assertEqual(saved[0], saved[1])
            self.check_same(db, undisturbed)

    def test_signals_to_the_job_leave_the_worker_alone(self):
        job = self.in_background(2, self.busy_config(), "run")
        self.wait_for_database("run", "SELECT 1 FROM train_metrics WHERE step >= 3").close()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            os.kill(self.one_worker(job)[0], number)
        self.finish(job)
        self.assertEqual(self.events(self.database("run"), "restart"), [])

    def test_a_snapshot_at_which_workers_die_is_left_out(self):
        config = self.busy_config()
        undisturbed = self.train(2, config, "undisturbed")
        with self.hurt("row 7"):
            db = self.train(2, config, "run")
        self.assertEqual([step for step, _ in self.events(db, "restart")], [7, 7])
        left_out = self.events(db, "drop")
        self.assertEqual([step for step, _ in left_out], [7])
        self.assertIn("signal 11", left_out[0][1])
        told = "SELECT step, status FROM snapshots WHERE status <> 'done'"
        self.assertEqual(db.execute(told).fetchall(), [(7, "dropped")])
        for table in ("train_metrics", "eval_metrics"):
            self.assertEqual(rows(db, table), rows(undisturbed, table))
        columns = "SELECT step, form, layer, head, lambda_max, effective_rank FROM v_spectra"
        want = [row for row in undisturbed.execute(columns) if row[0] != 7]
        self.assertEqual(sorted(db.execute(columns)), sorted(want))
        self.assertEqual(self.losses(db), self.losses(undisturbed))

    def test_no_memory_is_recorded_and_passes(self):
        """Snapshots fail for want of memory, each with its reason, until there is some again."""
        with open(BULKHEAD, "rb") as f:
            if b"__asan_init" in f.read():
                self.skipTest("the address sanitizer has taken all memory beforehand")
        config = self.config(model=dict(layers=2, width=128, heads=4, ffn=96), train=dict(steps=60, global_batch=8),
                             diagnostics=dict(every=1))
        with self.hurt("memory 4"):
            job = self.in_background(2, config, "run")
            self.wait_for_database("run", "SELECT 1 FROM snapshots WHERE status = 'done' AND step = 3").close()
            worker = self.one_worker(job)[0]
            self.wait_for_database("run", "SELECT 1 FROM train_metrics WHERE step >= 12").close()
            if worker in processes():  # otherwise it ended, and the next one has no limit
                resource.prlimit(worker, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            self.finish(job)
        db = self.database("run")
        told = [message for kind in ("restart", "snapshot", "fault") for _, message in self.events(db, kind)]
        self.assertTrue(any("memory" in message for message in told), told)
        self.assertEqual(len(self.losses(db)), 60)
        done = [step for step, in db.execute("SELECT step FROM snapshots WHERE status = 'done'")]
        self.assertLess(len(done), 61)
        self.assertLessEqual({0, 1, 2, 3, 4, 59, 60}, set(done))

    def test_work_that_never_succeeds_ends_for_good(self):
        """Each worker dies at its first spectrum: training comes to its end, and the job says what is missing. What is told
        in between stands behind the snapshots that came before it, so none lives to record it."""
        config = self.busy_config()
        with self.hurt("solver"):
            code, out, err = self.launch(2, config, "run")
        self.assertEqual(code, IO, err)
        self.assertIn("step 24/24", err)
        self.assertIn("is not started again", err)
        db = self.database("run")
        self.assertIn("the snapshot of step 0 is left out", err)
        self.check_last_word(db)

    def test_a_further_rank_whose_work_never_succeeds(self):
        """The first rank records which snapshots lack the other's spectra, and everything else."""
        with self.hurt("further"):
            code, out, err = self.launch(3, self.busy_config(), "run", "diagnostics.ranks=2")
        self.assertEqual(code, IO, err)
        db = self.database("run")
        self.assertEqual(db.execute("SELECT status, count(*) FROM snapshots GROUP BY 1").fetchall(), [("failed", 25)])
        told = [message for _, message in self.events(db, "snapshot")]
        self.assertEqual(len([message for message in told if "diagnostics rank 1" in message]), 25, told)
        self.assertEqual(len(self.events(db, "restart")), 4)
        self.assertEqual(len(self.losses(db)), 24)
        self.assertEqual(db.execute("SELECT status FROM runs").fetchone(), ("finished",))

    def test_a_worker_that_cannot_start_again(self):
        with self.hurt("start", BULKHEAD_HURT_MARK=self.path("mark")):
            job = self.in_background(2, self.busy_config(), "run")
            self.wait_for_database("run", "SELECT 1 FROM train_metrics WHERE step >= 3").close()
            os.kill(self.one_worker(job)[0], signal.SIGKILL)
            self.assertIn("is not started again", self.finish(job, IO))
        self.check_last_word(self.database("run"))

    def test_a_worker_that_hangs_is_started_again(self):
        """While training waits for it; rows are those of a run without it."""
        config = self.busy_config()
        undisturbed = self.train(2, config, "undisturbed")
        job = self.in_background(2, config, "run", "diagnostics.patience=4")
        self.wait_for_database("run", "SELECT 1 FROM train_metrics WHERE step >= 3").close()
        os.kill(self.one_worker(job)[0], signal.SIGSTOP)
        self.assertIn("no sign of life for 4 s (diagnostics.patience)", self.finish(job))
        db = self.database("run")
        (_, message), = self.events(db, "restart")
        self.assertIn("no sign of life for 4 s", message)
        self.check_same(db, undisturbed)

    def test_a_slow_worker_is_left_alone(self):
        """Snapshots of which each takes longer than the patience, but no layer does."""
        config = self.config(model=dict(layers=8), train=dict(steps=1, warmup=0),
                             diagnostics=dict(every=1, patience=4))
        with self.hurt("slow 180"):
            db = self.train(2, config, "run")
        self.assertEqual(self.events(db, "restart"), [])
        took = [ms for ms, in db.execute("SELECT compute_ms FROM snapshots WHERE status = 'done'")]
        self.assertEqual(len(took), 2)
        self.assertGreater(min(took), 4000)

    def test_a_worker_that_hangs_as_it_starts(self):
        """The job does not begin, and says why."""
        with self.hurt("stuck"):
            self.refused(70, 2, self.busy_config(), "run", "diagnostics.patience=2",
                         says=("diagnostics worker", "no sign of life for 2 s", "as it started"))

    def test_a_database_that_others_hold_loses_nothing(self):
        """For 30 s, much longer than opening it waits; and the worker dies meanwhile."""
        config = self.busy_config()
        undisturbed = self.train(2, config, "undisturbed")
        job = self.in_background(2, config, "run")
        held = self.wait_for_database("run", "SELECT 1 FROM train_metrics WHERE step >= 3")
        held.execute("BEGIN IMMEDIATE")
        time.sleep(1)
        os.kill(self.one_worker(job)[0], signal.SIGKILL)
        time.sleep(29)
        held.execute("ROLLBACK")
        held.close()
        self.assertIn("does not start again yet", self.finish(job))
        db = self.database("run")
        self.assertEqual(len(self.events(db, "restart")), 1)
        self.check_same(db, undisturbed)

    def test_a_database_that_is_free_again_is_written_at_once(self):
        """Training waits for its last checkpoint's rows by then, and sends nothing more."""
        job = self.in_background(2, self.busy_config(), "run")
        held = self.wait_for_database("run", "SELECT 1 FROM train_metrics WHERE step >= 3")
        held.execute("BEGIN IMMEDIATE")
        with open(self.path("run", "log.txt")) as log:
            while not any("step 24/24" in line for line in log):
                time.sleep(0.05)
        time.sleep(3)
        self.assertIsNone(job.poll())
        held.execute("ROLLBACK")
        held.close()
        free = time.monotonic()
        self.finish(job)
        self.assertLess(time.monotonic() - free, 15)
        told = self.database("run").execute("SELECT level, message FROM events WHERE kind = 'checkpoint'").fetchall()
        self.assertEqual(told, [("info", "step-00000024")])

    def test_a_killed_diagnostics_rank_ends_the_job(self):
        """docs/cases.md 20: mpirun ends the others; the worker goes with its rank; what was committed can be read."""
        job = self.in_background(2, self.busy_config(), "run", "train.steps=100000")
        self.wait_for_database("run", "SELECT 1 FROM train_metrics WHERE step >= 5").close()
        worker, rank = self.one_worker(job)
        os.kill(worker, signal.SIGSTOP)  # it does not see that its socket has no other end
        os.kill(rank, signal.SIGKILL)
        started = time.monotonic()
        _, err = job.communicate(timeout=60)
        self.assertNotEqual(job.returncode, 0)
        self.assertLess(time.monotonic() - started, 20)
        self.assertIn("signal 9", err)
        self.assertNotIn(worker, processes())
        db = self.database("run")
        self.assertEqual(db.execute("PRAGMA integrity_check").fetchone(), ("ok",))
        self.assertGreaterEqual(len(self.losses(db)), 5)

    def test_the_command_is_not_for_people(self):
        done = subprocess.run([BULKHEAD, "diagnostics-worker"], capture_output=True, text=True, timeout=20)
        self.assertNotEqual(done.returncode, 0)


if __name__ == "__main__":
    unittest.main()
