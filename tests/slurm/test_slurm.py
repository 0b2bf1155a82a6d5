"""The batch scripts of deploy/slurm under a Slurm of this machine's own: the warning before the time limit, the checkpoint,
the next turn, and the same run as without any of it, bit for bit."""
import os
import signal
import sqlite3
import sys
import time
import unittest

import cluster

SOURCES = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path[:0] = [os.path.join(SOURCES, "tests", folder) for folder in ("e2e", "hosts")]
import harness  # noqa: E402
import hosts  # noqa: E402

# The learning rate is the same whatever the number of steps: a run that has no end of its own while it is to be
# interrupted gets one afterwards.
ENDLESS, MORE_STEPS = 1000000, 30
STATE = "SELECT step, loss, grad_norm, lr, tokens FROM train_metrics WHERE step <= ? ORDER BY step"
RANKS = 3  # data parallel 2, diagnostics


class Slurm(harness.RunTest):
    hosts = None  # this machine

    def setUp(self):
        super().setUp()
        self.may_skip(cluster.why_not())
        self.cluster = cluster.Cluster(self.hosts)
        self.addCleanup(self.cluster.stop)
        self.cluster.environment.update(BULKHEAD=os.path.abspath(harness.BULKHEAD), OMPI_ALLOW_RUN_AS_ROOT="1",
                                        OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", OMPI_MCA_mpi_yield_when_idle="1",
                                        TMPDIR=self.dir)
        self.cluster.start()
        self.dataset()

    def may_skip(self, reason):
        if reason:
            print(f"skipped: {reason}")
            self.skipTest(reason)

    def endless(self, steps=ENDLESS):
        """A configuration whose runs do not end by themselves; with steps, the same file with an end for later."""
        return self.config(train=dict(steps=steps, min_lr_ratio=1, log_every=100),
                           checkpoint=dict(every=100), diagnostics=dict(every=500))

    def submit(self, script, *arguments, options=()):
        """sbatch as a person says it, but with more ranks than cores, and its output where the test can read it."""
        out = self.cluster.run("sbatch", "--parsable", f"--chdir={SOURCES}", "--overcommit", "--cpus-per-task=1",
                               f"--ntasks={RANKS}", f"--output={self.path('%x.out')}", *options,
                               os.path.join(SOURCES, "deploy", "slurm", script), *arguments)
        return out.strip()

    def show(self, job):
        """What Slurm knows of a job or of one task of an array."""
        fields = (f.partition("=") for f in self.cluster.run("scontrol", "--oneliner", "show", "job", job).split())
        return {key: value for key, _, value in fields}

    def said(self, name):
        try:
            with open(self.path(name), errors="replace") as f:
                return f.read()
        except FileNotFoundError:
            return ""

    def reaches(self, job, *states, limit_s=90):
        self.cluster.wait(lambda: self.show(job)["JobState"] in states, f"job {job} does not become {states}", limit_s)
        return self.show(job)

    def trains(self, run, steps=20):
        """Waits until the run has made that many steps."""
        self.wait_for_database(run, f"SELECT 1 FROM train_metrics WHERE step >= {steps}")

    def ask(self, run, question, *values):
        db = sqlite3.connect(f"file:{self.path(run, 'run.db')}?mode=ro", uri=True)
        try:
            return db.execute(question, values).fetchall()
        finally:
            db.close()

    def latest(self, run):
        return int(self.said(os.path.join(run, "checkpoints", "latest")).strip()[5:])

    def partition(self, state):
        """DOWN: jobs that run go on, none is started."""
        self.cluster.run("scontrol", "update", "PartitionName=main", f"State={state}")


class Turns(Slurm):
    def test_the_time_limit_costs_nothing(self):
        """One job by mpirun and one by srun: warned, stopped with a checkpoint, queued again, finished."""
        config = self.endless()
        names = {"one-node.sbatch": "by-mpirun", "one-node-srun.sbatch": "by-srun"}
        jobs = {}
        for script, run in names.items():
            # The scripts want to be warned 5 minutes before the end. Slurm knows whole minutes and looks every 30 s, with
            # 30 s to spare: the warning comes 30 to 60 s after the start.
            jobs[run] = self.submit(script, config, "--set", f"run.dir={self.path(run)}",
                                    options=("--time=6", f"--job-name={run}"))
        for run, job in jobs.items():
            self.reaches(job, "RUNNING")
            self.trains(run)
        self.partition("DOWN")
        at = {}
        for run, job in jobs.items():
            waiting = self.reaches(job, "PENDING")
            self.assertEqual(waiting["Restarts"], "1")
            at[run] = self.latest(run)
            self.assertIn(f"checkpoint step-{at[run]:08d}", self.said(f"{run}.out"))
            self.assertEqual(self.ask(run, "SELECT status FROM runs"), [("interrupted",)])
            self.assertEqual(self.ask(run, "SELECT exit_code, slurm_job_id FROM sessions"), [(75, job)])
            self.assertEqual(self.ask(run, "SELECT max(step) FROM train_metrics"), [(at[run],)])
        end = max(at.values()) + MORE_STEPS
        self.endless(steps=end)
        self.partition("UP")
        want = self.train(RANKS, config, "whole").execute(STATE, (end,)).fetchall()
        self.assertEqual(len(want), end)
        for run, job in jobs.items():
            done = self.reaches(job, "COMPLETED", "FAILED", "TIMEOUT")
            output = self.said(f"{run}.out")
            self.assertEqual((done["JobState"], done["ExitCode"]), ("COMPLETED", "0:0"), output)
            self.assertEqual(self.ask(run, STATE, end), want)
            self.assertEqual(self.ask(run, "SELECT status FROM runs"), [("finished",)])
            self.assertEqual(self.ask(run, "SELECT attempt, slurm_job_id, first_step, exit_code FROM sessions ORDER BY 1"),
                             [(1, job, 1, 75), (2, job, at[run] + 1, 0)])
            self.assertEqual(self.ask(run, "PRAGMA integrity_check"), [("ok",)])
            for words in ("waits for its next turn", f"stopped behind step {at[run]}", f"step {end}/{end}"):
                self.assertIn(words, output)

    def test_a_cancelled_job_keeps_what_it_has_done(self):
        """scancel --batch --signal=TERM, and under srun scancel itself: a checkpoint, and no next turn."""
        config = self.endless()
        cases = (("one-node.sbatch", "mpirun-term", ("--batch", "--signal=TERM")),
                 ("one-node-srun.sbatch", "srun-term", ("--batch", "--signal=TERM")),
                 ("one-node-srun.sbatch", "srun-cancel", ()))
        for script, run, how in cases:
            job = self.submit(script, config, "--set", f"run.dir={self.path(run)}", options=(f"--job-name={run}",))
            self.trains(run)
            self.cluster.run("scancel", *how, job)
            done = self.reaches(job, "FAILED", "CANCELLED")
            self.cluster.wait(lambda: not self.cluster.run("squeue", "-h").strip(), "the queue does not become empty")
            self.assertEqual(done["Restarts"], "0")
            self.assertEqual(done["JobState"], "FAILED" if how else "CANCELLED")
            if how:
                self.assertEqual(done["ExitCode"], "75:0")
            self.assertEqual(self.ask(run, "SELECT status FROM runs"), [("interrupted",)])
            self.assertEqual(self.ask(run, "SELECT max(step) FROM train_metrics"), [(self.latest(run),)])


    def test_a_run_whose_rank_dies_is_started_again(self):
        """Twice; the third time it is over."""
        job = self.submit("one-node.sbatch", self.endless(), "--set", f"run.dir={self.path('run')}",
                          options=("--job-name=run",))
        for session in (1, 2, 3):
            self.wait_for_database("run", f"SELECT 1 FROM sessions WHERE attempt = {session}").close()
            self.trains("run")
            os.kill(self.rank(1, "run"), signal.SIGKILL)
        done = self.reaches(job, "FAILED", "COMPLETED")
        self.assertEqual((done["ExitCode"], done["Restarts"]), ("137:0", "0"), self.said("run.out"))
        self.assertEqual(self.ask("run", "SELECT max(attempt) FROM sessions"), [(3,)])

    def rank(self, number, run):
        """The process of that rank of a run that mpirun has started."""
        for process in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{process}/cmdline", "rb") as f:
                    if not f.read().endswith(f"run.dir={self.path(run)}\0--resume\0auto\0".encode()):
                        continue
                with open(f"/proc/{process}/environ", "rb") as f:
                    if f"\0OMPI_COMM_WORLD_RANK={number}\0".encode() in f.read():
                        return int(process)
            except (FileNotFoundError, ProcessLookupError):
                pass  # it has ended
        self.fail(f"{run} has no rank {number}")


class Arrays(Slurm):
    def test_each_line_is_a_run_and_has_its_own_turns(self):
        """The last task's job number is the array's: when it is interrupted, only it goes back into the queue."""
        lines = [f"{v}-{s} attention.variant={v} run.seed={s} run.dir={self.path(v)}-{s} train.steps="
                 for v in ("mha", "mla-decoupled") for s in (1, 2)]

        def write(*steps):
            with open(self.path("list"), "w") as f:
                f.write("\n".join(line + str(n) for line, n in zip(lines, steps)))  # no new line at the end

        write(40, 40, 40, ENDLESS)
        array = self.submit("array.sbatch", self.endless(), self.path("list"),
                            options=(f"--array=1-{len(lines)}", f"--output={self.path('study-%a.out')}"))
        last = f"{array}_{len(lines)}"
        for i in range(1, len(lines)):
            self.assertEqual(self.reaches(f"{array}_{i}", "COMPLETED", "FAILED")["ExitCode"], "0:0", self.said(f"study-{i}.out"))
        self.trains("mla-decoupled-2")
        self.assertEqual(self.show(last)["JobId"], array)
        self.partition("DOWN")
        self.cluster.run("scancel", "--batch", "--signal=USR1", last)
        self.reaches(last, "PENDING")
        steps = self.latest("mla-decoupled-2") + MORE_STEPS
        write(40, 40, 40, steps)
        self.partition("UP")
        self.assertEqual(self.reaches(last, "COMPLETED", "FAILED")["ExitCode"], "0:0", self.said(f"study-{len(lines)}.out"))
        self.assertEqual([self.show(f"{array}_{i}")["Restarts"] for i in range(1, len(lines) + 1)], ["0", "0", "0", "1"])
        for variant in ("mha", "mla-decoupled"):
            for seed in (1, 2):
                run = f"{variant}-{seed}"
                self.assertEqual(self.ask(run, "SELECT variant, seed, name, status FROM runs"),
                                 [(variant, seed, run, "finished")])
                end = steps if run == "mla-decoupled-2" else 40
                self.assertEqual(self.ask(run, "SELECT count(*), max(step) FROM train_metrics"), [(end, end)])


class Sweeps(Slurm):
    def test_a_sweep_is_an_array_whose_tasks_have_turns(self):
        """Warned, a task comes again and goes on; told to end, it does not, and the sweep itself goes on with its run."""
        self.endless()
        with open(self.path("study.yaml"), "w") as f:
            f.write(f"config: config.yaml\nfolder: {self.path('out')}\ngrid: {{run.seed: [1, 2]}}\n")
        sweep = ("sweep", self.path("study.yaml"))
        self.assertEqual(self.bulkhead(*sweep, "--slurm", "--jobs", "2").returncode, 0)
        array = self.cluster.run("sbatch", "--parsable", f"--chdir={SOURCES}", "--overcommit", "--cpus-per-task=1",
                                 self.path("out", "array.sbatch")).strip()
        runs = [os.path.join("out", f"seed{seed}") for seed in (1, 2)]
        for run in runs:
            self.trains(run)
        self.partition("DOWN")
        self.cluster.run("scancel", "--batch", "--signal=USR1", f"{array}_1")
        self.cluster.run("scancel", "--batch", "--signal=TERM", f"{array}_2")
        self.reaches(f"{array}_1", "PENDING")
        self.assertEqual(self.reaches(f"{array}_2", "FAILED")["ExitCode"], "75:0", self.said("out/slurm-2.out"))
        end = max(map(self.latest, runs)) + MORE_STEPS
        for run in runs:
            self.assertEqual(self.ask(run, "SELECT status FROM runs"), [("interrupted",)])
        self.endless(steps=end)
        self.partition("UP")
        done = self.reaches(f"{array}_1", "COMPLETED", "FAILED")
        self.assertEqual((done["ExitCode"], done["Restarts"]), ("0:0", "1"), self.said("out/slurm-1.out"))
        rest = self.bulkhead(*sweep)
        self.assertEqual(rest.returncode, 0, rest.stderr)
        self.assertIn("2 runs: 1 done, 0 failed before, 1 to do", rest.stderr)
        for run in runs:
            self.assertEqual(self.ask(run, "SELECT exit_code FROM sessions ORDER BY attempt"), [(75,), (0,)])
            self.assertEqual(self.ask(run, "SELECT count(*), max(step) FROM train_metrics"), [(end, end)])


class Nodes(Slurm):
    def setUp(self):
        self.hosts = hosts.TwoHosts()
        self.addCleanup(self.hosts.stop)
        self.may_skip(cluster.why_not() or self.hosts.start())
        super().setUp()

    def over_two(self, run, config):
        """3 + 2 ranks: tensor parallel 2 on each, and the diagnostics rank."""
        return self.submit("nodes.sbatch", config, "--set", f"run.dir={self.path(run)}", "--set", "parallel.tensor=2",
                           options=("--nodes=2", "--ntasks=5", f"--job-name={run}"))

    def test_two_nodes_stop_and_go_on_as_one(self):
        config = self.endless()
        job = self.over_two("run", config)
        self.trains("run")
        self.partition("DOWN")
        self.cluster.run("scancel", "--batch", "--signal=USR1", job)
        self.assertEqual(self.reaches(job, "PENDING")["NumNodes"], "2")
        end = self.latest("run") + MORE_STEPS
        self.endless(steps=end)
        self.partition("UP")
        self.assertEqual(self.reaches(job, "COMPLETED", "FAILED")["ExitCode"], "0:0", self.said("run.out"))
        whole = self.over_two("whole", config)
        self.assertEqual(self.reaches(whole, "COMPLETED", "FAILED")["ExitCode"], "0:0", self.said("whole.out"))
        want = self.ask("whole", STATE, end)
        self.assertEqual(len(want), end)
        self.assertEqual(self.ask("run", STATE, end), want)
        self.assertEqual(self.ask("run", "SELECT attempt, tp, dp, exit_code FROM sessions ORDER BY 1"),
                         [(1, 2, 2, 75), (2, 2, 2, 0)])

    def test_a_node_that_is_cut_off_is_told_once(self):
        """srun does not notice; of the ranks that are left one says what is wrong, and ends the step."""
        job = self.over_two("run", self.endless())
        self.trains("run")
        self.hosts.cable("down")
        cut = time.monotonic()
        self.cluster.wait(lambda: "has waited" in self.said("run.out"), "no rank notices", 60)
        self.assertLess(time.monotonic() - cut, 60)
        self.reaches(job, "FAILED", "COMPLETED", "COMPLETING")
        print(f"over after {time.monotonic() - cut:.0f} s")
        self.assertEqual(self.said("run.out").count("has waited"), 1, self.said("run.out"))


if __name__ == "__main__":
    unittest.main()
