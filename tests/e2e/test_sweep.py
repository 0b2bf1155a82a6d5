"""End to end: `bulkhead sweep`: grids, what is refused before anything starts, failures, and stops at any moment."""
import glob
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import unittest

from harness import BULKHEAD, RunTest

STATE = "SELECT step, loss, grad_norm, lr, tokens FROM train_metrics ORDER BY step"
MEASURED = ("validation_loss", "perplexity", "tokens_per_s", "outlier_energy", "mp_gap", "stable_rank", "effective_rank",
            "layers_with_spikes")
GRID = "grid:\n  attention.variant: [mha, mla-decoupled]\n  run.seed: [1, 2]\n"
GRID_NAMES = ("mha-seed1", "mha-seed2", "mla-decoupled-seed1", "mla-decoupled-seed2")


class Sweep(RunTest):
    time_limit_s = 120

    def sweep_file(self, text=GRID, name="study.yaml", config="config: config.yaml\n"):
        path = self.path(name)
        with open(path, "w") as f:
            f.write(f"folder: {self.path('out')}\n{config}{text}")
        return path

    def sweep(self, *arguments, code=0, says=()):
        done = self.bulkhead("sweep", self.path("study.yaml"), *arguments)
        self.assertEqual(done.returncode, code, done.stderr)
        for word in says:
            self.assertIn(word, done.stderr)
        return done

    def answer(self, *arguments, **how):
        return json.loads(self.sweep(*arguments, "--json", **how).stdout)

    def begin(self, *arguments):
        """The sweep in the background, in a session of its own."""
        job = subprocess.Popen([BULKHEAD, "sweep", self.path("study.yaml"), *arguments], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, start_new_session=True)
        for stream in (job.stdout, job.stderr):
            self.addCleanup(stream.close)
        self.addCleanup(job.kill)
        return job

    def program(self, name, text):
        with open(self.path(name), "w") as f:
            f.write(f"#!/bin/sh\n{text}\n")
        os.chmod(self.path(name), 0o755)

    def long_runs(self, steps, **sections):
        """Runs that take a while: some thousand steps a second."""
        self.dataset()
        self.config(train=dict(steps=steps, log_every=1000, **sections.pop("train", {})), checkpoint=dict(every=1000),
                    diagnostics=dict(every=1000, null_draws=0), **sections)

    def trains(self, name, steps=20):
        self.wait_for_database(os.path.join("out", name), f"SELECT 1 FROM train_metrics WHERE step >= {steps}").close()

    def ask(self, name, question):
        return self.database(os.path.join("out", name)).execute(question).fetchall()

    def statuses(self):
        return {run["name"]: run["status"] for run in json.loads(self.sweep("--dry-run", "--json").stdout)}

    def as_never_stopped(self, name, ranks, *settings):
        """The run of the sweep is, bit for bit, the one that `train` makes in one go."""
        want = self.train(ranks, self.path("config.yaml"), "whole-" + name, *settings).execute(STATE).fetchall()
        got = self.ask(name, STATE)
        self.assertEqual(len(got), len(want))
        self.assertTrue(got == want, "the rows are others")


class Grid(Sweep):
    def test_a_grid_is_trained_merged_and_compared(self):
        try:
            import scipy.stats
        except ImportError:
            print("skipped: the intervals are held against SciPy's")
            self.skipTest("no SciPy")
        self.dataset()
        self.config()
        self.sweep_file(GRID + "include:\n  - {attention.variant: mla-decoupled, run.seed: [3, 4, 5]}\n")
        done = self.sweep()
        self.assertEqual(re.findall(r"^(mha|mla-decoupled) +(\d)  ", done.stdout, re.M), [("mha", "2"), ("mla-decoupled", "5")])
        names = GRID_NAMES + tuple(f"mla-decoupled-seed{s}" for s in (3, 4, 5))
        for name in names:
            variant, seed = name.split("-seed")
            self.assertEqual(self.ask(name, "SELECT name, variant, seed, run_group, status FROM runs"),
                             [(name, variant, int(seed), "study", "finished")])
        merged = sqlite3.connect(self.path("out", "sweep.db"))
        self.assertEqual(sorted(r for (r,) in merged.execute("SELECT name FROM runs")), sorted(names))
        merged.close()

        # Values that no run has made, so that each column has some of its own.
        rng = random.Random()
        for name in names:
            db = sqlite3.connect(self.path("out", name, "run.db"))
            db.execute("UPDATE eval_metrics SET loss = ?, perplexity = ?", (rng.gauss(3, 1), rng.uniform(1, 1e4)))
            db.execute("UPDATE layer_spectra SET stable_rank = ?, effective_rank = ?", (rng.gauss(0, 1e-3), rng.gauss(5, 2)))
            if name.endswith("seed5"):
                db.execute("UPDATE layer_spectra SET effective_rank = NULL")
            db.commit()
            db.close()
        said = self.answer()
        self.assertEqual([run["status"] for run in said["runs"]], ["finished"] * 7)
        for row, variant, seeds in zip(said["comparison"], ("mha", "mla-decoupled"), ((1, 2), (1, 2, 3, 4, 5)), strict=True):
            self.assertEqual((row["attention.variant"], row["runs"]), (variant, len(seeds)))
            told = [json.loads(self.bulkhead("query", self.path("out", f"{variant}-seed{s}"), "compare", "--json").stdout)[0]
                    for s in seeds]
            for column in MEASURED:
                values = [t[column] for t in told if t[column] is not None]
                self.assertEqual(len(values), len(seeds) - (column == "effective_rank" and len(seeds) == 5))
                mean = sum(values) / len(values)
                half = scipy.stats.t.ppf(0.975, len(values) - 1) * scipy.stats.sem(values)
                self.assertAlmostEqual(row[column], mean, delta=1e-12 * abs(mean))
                self.assertAlmostEqual(row[column + "_ci95"], half, delta=1e-9 * half + 1e-15)
        lines = self.sweep("--csv").stdout.splitlines()
        self.assertEqual(lines[0].split(",")[:4], ["attention.variant", "runs", "validation_loss", "validation_loss_ci95"])
        self.assertEqual(len(lines), 3)
        for name in names:  # passed over
            self.assertEqual(self.ask(name, "SELECT count(*) FROM sessions"), [(1,)])

    def test_a_dry_run_prints_and_starts_nothing(self):
        self.dataset()
        self.config(train=dict(lr="1e-3"))
        self.sweep_file("grid:\n  attention.variant: [mha, mla-prerope]\n  train.lr: [1e-3, 3e-3]\n  data.train: ["
                        + self.path("train-*.bin") + "]\nexclude:\n  - {attention.variant: mha, train.lr: 3e-3}\n"
                        "launcher: mpirun --allow-run-as-root  --oversubscribe -n {ranks} --tag-output\n", "study.yaml")
        done = self.sweep("--dry-run", "--set", "parallel.tensor=2", "--set", "diagnostics.ranks=2")
        runs = re.findall(r"^ +\d  (\S+) +new +- +4 ", done.stdout, re.M)
        self.assertEqual([re.sub("-train_.*", "", run) for run in runs], ["mha-lr1e-3", "mla-prerope-lr1e-3", "mla-prerope-lr3e-3"])
        self.assertFalse(os.path.exists(self.path("out")))
        command = re.search(r"^  (mpirun .*lr=3e-3.*)$", done.stdout, re.M).group(1)
        subprocess.run(command, shell=True, check=True, capture_output=True, timeout=60)
        self.assertEqual(self.ask(runs[2], "SELECT status FROM runs"), [("finished",)])
        listed = {run["name"]: run for run in json.loads(self.sweep("--dry-run", "--json").stdout)}
        self.assertEqual((listed[runs[2]]["status"], listed[runs[2]]["train.lr"]), ("finished", "3e-3"))

    def test_one_run_alone_and_a_base_inside_the_file(self):
        self.dataset()
        path = self.config()
        with open(path) as f:
            text = "config:\n" + "".join("  " + line for line in f)
        os.remove(path)
        self.sweep_file("grid: {run.seed: [7, 8], diagnostics.parts: ['full', 'full,ov']}\n", config=text)
        done = self.sweep("--only", "seed8-partsfull")
        self.assertEqual(done.stdout, "")
        self.assertEqual(self.ask("seed8-partsfull", "SELECT seed FROM runs"), [(8,)])
        self.assertEqual(glob.glob(self.path("out", "*", "run.db")), [self.path("out", "seed8-partsfull", "run.db")])
        self.sweep("--only", "1")
        self.assertEqual(self.ask("seed7-partsfull", "SELECT status FROM runs"), [("finished",)])
        for wrong in ("0", "5", "seed9", ""):
            self.sweep("--only", wrong, code=64, says=("1 to 4",))

    def test_jobs_share_the_cores(self):
        """Where run.threads is derived, it comes from a run's share; two go on at once, and more wait."""
        if len(os.sched_getaffinity(0)) < 2:
            print("skipped: one core cannot be shared")
            self.skipTest("one core")
        self.long_runs(500, run=dict(threads=None))
        self.sweep_file("grid: {run.seed: [1, 2, 3]}\n")
        done = self.sweep("--jobs", "2")
        for seed in (1, 2, 3):
            self.assertEqual(self.ask(f"seed{seed}", "SELECT threads FROM sessions"), [(len(os.sched_getaffinity(0)) // 2,)])
        told = re.findall(r"(seed\d): (begins|finished)", done.stderr)
        self.assertEqual([what for _, what in told[:3]], ["begins", "begins", "finished"])


class Refused(Sweep):
    def refuse(self, text, *says, code=78, config="config: config.yaml\n", options=()):
        self.sweep_file(text, config=config)
        done = self.sweep(*options, code=code)
        self.assertEqual(done.stdout, "")
        self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
        for word in says:
            self.assertIn(word, done.stderr)
        self.assertFalse(os.path.exists(self.path("out")))

    def test_what_cannot_be_is_refused_before_anything_starts(self):
        self.dataset()
        self.config()
        for text, *says in (
                ("grid:\n  run.seed: [1]\n  attention.varian: [mha]\n", "run seed1-varianmha: ", "attention.variant"),
                ("grid:\n  attention.variant: [mha, mla]\n", "run mla: ", "the nearest is"),
                ("grid:\n  attention.variant: [mha, mla-decoupled]\n  model.kv_heads: [4, 2]\n",
                 "run mla-decoupled-kv_heads2: ", "needs as many as model.heads"),
                ("grid:\n  train.global_batch: [4, 3]\n  parallel.data: [2]\n", "run global_batch3-data2: "),
                ("grid:\n  run.seed: [1]\n  run.name: [x]\n", "run.name is set twice"),
                ("grid:\n  run.seed: [1, 1]\n", "study.yaml:4: ", "twice"),
                ("grid:\n  run.seed: []\n", "no values"),
                ("grid:\n  run.seed: [[1, 2]]\n", "a list"),
                ("grid:\n  run.seed: [~]\n", "one value"),
                ("grid:\n  run.seed: 1\n  run.seed: 2\n", "study.yaml:5: ", "twice"),
                ("gird:\n  run.seed: [1]\n", "study.yaml:3: ", "no key gird; the nearest is grid"),
                ("grid: [1]\n", "wants keys with values"),
                ("", "grid is missing"),
                (GRID + "exclude:\n  - {run.sed: 1}\n", "the grid has no key run.sed"),
                (GRID + "exclude:\n  - {run.seed: 3}\n", "run.seed has no value 3"),
                (GRID + "exclude:\n  - {run.seed: [1, 2]}\n", "leaves no run"),
                (GRID + "include:\n  - {attention.variant: mha, run.seed: 2}\n", "two runs would be named mha-seed2"),
                (GRID + "name: ../x\n", "cannot name a folder"),
                (GRID + "name: a\nname: b\n", "name is there twice"),
                (GRID + "launcher: {}\n", "one value"),
                ("grid: {run.seed: [1\n", "study.yaml:")):
            self.refuse(text, *says)
        self.refuse(GRID, "config is missing", config="")
        self.refuse(GRID, "nothing.yaml", code=66, config="config: nothing.yaml\n")
        self.refuse(GRID, "there is no section modle", config="config: {modle: {size: tiny}}\n")
        self.refuse(GRID, "sections", config="config: {model: tiny}\n")
        self.refuse(GRID, "run.seed is set twice", options=("--set", "run.seed=3"))
        for options in (("--jobs", "0"), ("--jobs", "x"), ("--submit",), ("--slurm", "--dry-run"), ("--nothing",), ("more",)):
            self.refuse(GRID, code=64, options=options)
        self.assertEqual(self.bulkhead("sweep", self.path("none.yaml")).returncode, 66)
        self.assertEqual(self.bulkhead("sweep").returncode, 64)
        shown = self.bulkhead("sweep", "--help")
        self.assertEqual(shown.returncode, 0)
        self.assertLessEqual(len(shown.stdout.splitlines()), 24)
        self.assertLessEqual(max(map(len, shown.stdout.splitlines())), 80)

    def test_a_finished_run_of_another_configuration_is_not_compared(self):
        self.dataset()
        self.config()
        self.sweep_file("grid: {run.seed: [1]}\n")
        self.sweep()
        self.config(train=dict(lr="4e-3"))
        self.sweep(code=78, says=("run seed1: ", "train.lr", "\"0.003\"", "\"0.004\""))
        self.config(train=dict(log_every=1), run=dict(tags="a"))  # says nothing about the result
        self.sweep()


class Failures(Sweep):
    def test_a_failure_is_listed_and_stops_no_other(self):
        self.dataset()
        self.config(train=dict(steps=12, warmup=0))
        self.sweep_file("grid: {train.lr: [1e25, 1e-3], run.seed: [1, 2]}\nexclude: [{train.lr: 1e25, run.seed: 1}]\n")
        said = self.answer(code=70, says=("1 of 3 runs failed", "lr1e25-seed2 failed, exit code 70: bulkhead train: "))
        self.assertEqual([(run["name"], run["status"], run["exit_code"]) for run in said["runs"]],
                         [("lr1e25-seed2", "failed", 70), ("lr1e-3-seed1", "finished", 0), ("lr1e-3-seed2", "finished", 0)])
        self.assertIn("not finite", said["runs"][0]["last_line"])
        self.assertEqual([(row["train.lr"], row["runs"]) for row in said["comparison"]], [("1e25", 0), ("1e-3", 2)])
        sessions = "SELECT count(*) FROM sessions"
        again = self.answer(code=70, says=("1 failed before, 0 to do",))
        self.assertEqual(again["runs"], said["runs"])
        self.assertEqual(self.ask("lr1e25-seed2", sessions), [(1,)])
        self.sweep("--retry-failed", code=70)
        self.assertEqual(self.ask("lr1e25-seed2", sessions), [(2,)])
        self.assertEqual(self.ask("lr1e-3-seed1", sessions), [(1,)])

    def test_a_run_that_never_begins_is_a_failure_of_its_own_code(self):
        self.config()  # no data
        self.sweep_file("grid: {run.seed: [1]}\n")
        self.sweep(code=66, says=("seed1 failed, exit code 66: bulkhead train: ", "train-*.bin"))
        self.assertEqual(self.statuses(), {"seed1": "new"})

    def test_launchers_that_do_not_do_it(self):
        self.dataset()
        self.config()
        self.program("saved", "exit 75")
        for launcher, code, says in (("true", 70, "exit code 0"), ("/nowhere/mpirun -n {ranks}", 70, "cannot start /nowhere/mpirun"),
                                     (self.path("saved"), 75, "exit code 75")):
            self.sweep_file(f"grid: {{run.seed: [1]}}\nlauncher: {launcher}\n")
            self.sweep(code=code, says=(says,))

    def test_a_lost_rank_is_no_failure_whatever_the_database_heard(self):
        self.dataset()
        self.config()
        self.program("crash", f"""[ ! -e {self.path("once")} ] || exec "$@"
touch {self.path("once")}
"$@" && python3 -c 'import sqlite3; sqlite3.connect("{self.path("out", "seed1", "run.db")}", isolation_level=None).execute(
    "UPDATE runs SET status = \\"failed\\"")' && exit 139""")
        self.sweep_file(f"grid: {{run.seed: [1]}}\nlauncher: {self.path('crash')} mpirun --allow-run-as-root -n {{ranks}} "
                        "--oversubscribe --bind-to none\n")
        self.sweep(says=("a rank has died (exit code 139); it is started again",))
        self.assertEqual(self.ask("seed1", "SELECT status FROM runs"), [("finished",)])

    def test_an_mpirun_that_stays_alone_is_ended(self):
        self.dataset()
        self.config()
        os.mkdir(self.path("bin"))
        self.program("bin/mpirun", "sleep 0.5\nexec python3 -c 'import signal; signal.pause()'")
        self.sweep_file(f"grid: {{run.seed: [1]}}\nlauncher: {self.path('bin', 'mpirun')}\n")
        job = self.begin()
        said = ""
        for line in job.stderr:
            said += line
            if "started again" in line:
                break
        self.assertIn("has nobody left to run", said)
        self.assertIn("a rank has died (exit code 137)", said)
        job.send_signal(signal.SIGTERM)
        self.assertEqual(job.wait(timeout=30), 75)


class Stops(Sweep):
    def test_a_signal_stops_with_checkpoints_and_the_next_call_goes_on(self):
        self.long_runs(1000000, train=dict(min_lr_ratio=1))  # the learning rate is the same whatever the end
        self.sweep_file()
        for number, names in ((signal.SIGINT, GRID_NAMES[:2]), (signal.SIGTERM, GRID_NAMES[:2])):
            job = self.begin("--jobs", "2")
            before = [self.last_step(name) for name in names]
            for name, step in zip(names, before):
                self.trains(name, step + 20)
            if number == signal.SIGINT:
                os.killpg(job.pid, number)  # as Ctrl-C on a terminal
            else:
                job.send_signal(number)
            _, err = job.communicate(timeout=60)
            self.assertEqual(job.returncode, 75, err)
            self.assertIn("4 runs are to do", err)
            self.assertEqual(err.count("ended with exit code 75"), 2, err)  # 1: mpirun heard of Ctrl-C too
            self.assertEqual(self.statuses(), dict(zip(GRID_NAMES, ["interrupted"] * 2 + ["new"] * 2)))
        self.long_runs(max(map(self.last_step, names)) + 100, train=dict(min_lr_ratio=1))
        self.sweep("--jobs", "2")
        for name in GRID_NAMES:
            want = [(75,), (75,), (0,)] if name in names else [(0,)]
            self.assertEqual(self.ask(name, "SELECT exit_code FROM sessions ORDER BY attempt"), want)
            self.assertEqual(self.ask(name, "SELECT status FROM runs"), [("finished",)])
        self.as_never_stopped("mha-seed2", 2, "run.seed=2")

    def last_step(self, name):
        if not os.path.exists(self.path("out", name, "run.db")):
            return 0
        return self.ask(name, "SELECT coalesce(max(step), 0) FROM train_metrics")[0][0]

    def test_a_killed_sweep_leaves_one_writer(self):
        """SIGKILL: the launcher is told by the kernel. The next call, at once, waits until it has ended."""
        self.long_runs(800)
        self.sweep_file("grid: {run.seed: [1, 2]}\n")
        job = self.begin()
        self.trains("seed1")
        job.kill()
        job.wait()
        done = self.sweep()
        self.assertIn("in the hands of another process", done.stderr)
        self.assertEqual(self.ask("seed1", "SELECT exit_code FROM sessions ORDER BY attempt"), [(75,), (0,)])
        self.assertEqual(self.ask("seed2", "SELECT exit_code FROM sessions"), [(0,)])
        self.as_never_stopped("seed1", 2, "run.seed=1")

    def test_two_sweeps_at_once_share_the_runs(self):
        self.long_runs(600)
        self.sweep_file("grid: {run.seed: [1, 2, 3]}\n")
        jobs = [self.begin(), self.begin()]
        for job in jobs:
            out, err = job.communicate(timeout=60)
            self.assertEqual(job.returncode, 0, err)
            self.assertRegex(out, r"(?m)^ *3 ")
        for seed in (1, 2, 3):
            self.assertEqual(self.ask(f"seed{seed}", "SELECT exit_code FROM sessions"), [(0,)])

    def test_a_run_that_is_stopped_or_loses_a_rank_is_started_again(self):
        self.long_runs(2000)
        self.sweep_file("grid: {run.seed: [1]}\n")
        job = self.begin()
        self.trains("seed1")
        launcher, = self.children(job.pid)
        os.kill(launcher, signal.SIGUSR1)
        self.wait_for_database("out/seed1", "SELECT 1 FROM sessions WHERE attempt = 2").close()
        self.trains("seed1", 1 + self.last_step("seed1"))
        launcher, = self.children(job.pid)
        os.kill(self.children(launcher)[0], signal.SIGKILL)
        _, err = job.communicate(timeout=90)
        self.assertEqual(job.returncode, 0, err)
        self.assertIn("stopped with a checkpoint; it is started again", err)
        self.assertIn("a rank has died (exit code 137); it is started again", err)
        self.assertEqual(self.ask("seed1", "SELECT exit_code FROM sessions ORDER BY attempt"), [(75,), (None,), (0,)])
        self.as_never_stopped("seed1", 2, "run.seed=1")


class Script(Sweep):
    def test_a_job_array_has_a_task_for_each_run_to_do(self):
        self.dataset()
        self.config()
        self.sweep_file(GRID + "include: [{attention.variant: mha, parallel.tensor: 2, run.threads: 3}]\n")
        self.sweep("--only", "2")
        done = self.sweep("--slurm", "--jobs", "3", "--set", "run.tags=a 'b'", says=("sbatch ",))
        script = self.path("out", "array.sbatch")
        self.assertEqual(done.stdout, script + "\n")
        self.assertEqual(subprocess.run(["bash", "-n", script]).returncode, 0)
        with open(script) as f:
            text = f.read()
        given = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", text, re.M))
        for key, value in (("job-name", "study"), ("array", "1,3-5%3"), ("nodes", "1"), ("ntasks", "3"), ("cpus-per-task", "3"),
                           ("signal", "B:USR1@300"), ("requeue", ""), ("output", self.path("out", "slurm-%a.out"))):
            self.assertEqual(given[key], value)
        self.assertNotIn("gpus-per-node", given)
        os.mkdir(self.path("slurm"))
        self.program("slurm/launch", "printf '%s\\n' \"$@\"")
        words = subprocess.run(["bash", "-c", text],
                               env=dict(os.environ, SLURM_ARRAY_TASK_ID="4", BULKHEAD="", BULKHEAD_SLURM=self.path("slurm")), capture_output=True, text=True)
        self.assertEqual(words.stdout.splitlines(),
                         ["sweep", os.path.realpath(BULKHEAD), "sweep", self.path("study.yaml"), "--only", "4", "--set",
                          "run.tags=a 'b'"])
        self.sweep("--slurm", "--set", "run.device=cuda")
        with open(script) as f:
            self.assertIn("#SBATCH --gpus-per-node=2\n", f.read())
        os.mkdir(self.path("bin"))
        self.program("bin/sbatch", 'echo sent "$@"')
        sent = subprocess.run([BULKHEAD, "sweep", self.path("study.yaml"), "--slurm", "--submit"], capture_output=True, text=True,
                              env=dict(os.environ, PATH=self.path("bin") + ":" + os.environ["PATH"]))
        self.assertEqual((sent.returncode, sent.stdout), (0, f"{script}\nsent {script}\n"), sent.stderr)


if __name__ == "__main__":
    unittest.main()
