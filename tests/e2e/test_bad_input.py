"""End to end: bad input ends every rank with one line that says what to do, the right exit code, and no trace."""
import json
import os
import re
import shlex
import signal
import subprocess
import unittest
import unittest.mock

import harness

USAGE, DATA, NO_INPUT, INTERNAL, IO, CONFIG = 64, 65, 66, 70, 74, 78


class BadInput(harness.RunTest):
    def setUp(self):
        super().setUp()
        self.dataset()

    def test_missing_config(self):
        self.refused(NO_INPUT, 2, self.path("absent.yaml"), "run", says=["absent.yaml"])

    def test_unknown_key_names_line_and_nearest(self):
        config = self.config(text="train:\n  steps: 3\n  learning_rat: 1\n")
        self.refused(CONFIG, 2, config, "run", says=["config.yaml:3", "learning_rat"])

    def test_missing_shards(self):
        self.refused(NO_INPUT, 2, self.config(data=dict(train=self.path("none-*.bin"))), "run", says=["none-*.bin"])

    def test_no_shards_named(self):
        self.refused(CONFIG, 2, self.config(data=dict(train="")), "run", says=["data.train"])

    def test_shard_shorter_than_one_sample(self):
        harness.write_shard(self.path("train-00000.bin"), [1] * harness.CONTEXT)
        self.refused(DATA, 2, self.config(), "run", says=["train-00000.bin"])

    def test_truncated_shard(self):
        harness.write_shard(self.path("train-00000.bin"), [1] * 500, count=600)
        self.refused(DATA, 2, self.config(), "run", says=["train-00000.bin", "600", "500"])

    def test_foreign_shard(self):
        with open(self.path("train-00000.bin"), "wb") as f:
            f.write(b"PK\x03\x04" + bytes(5000))
        self.refused(DATA, 2, self.config(), "run", says=["train-00000.bin"])

    def test_token_beyond_the_vocabulary_is_named(self):
        harness.write_shard(self.path("train-00000.bin"), [1] * 100 + [harness.VOCAB] + [1] * 400)
        self.refused(DATA, 2, self.config(), "run", says=["train-00000.bin", "100"])

    def test_heads_not_divisible(self):
        self.refused(CONFIG, 4, self.config(), "run", "parallel.tensor=3", says=["heads", "3"])

    def test_kv_heads_not_divisible(self):
        """docs/cases.md 3: G = 2 over P = 4 is refused, naming both."""
        self.refused(CONFIG, 5, self.config(model=dict(kv_heads=2)), "run", "parallel.tensor=4", says=["kv_heads", "2", "4"])

    def test_too_few_ranks_shows_the_launch_line(self):
        self.refused(CONFIG, 2, self.config(), "run", "parallel.tensor=2", "parallel.data=1", says=["mpirun -n 3"])

    def test_batch_not_divisible(self):
        self.refused(CONFIG, 4, self.config(train=dict(global_batch=4)), "run", says=["global_batch", "4", "3"])

    def test_run_folder_that_cannot_be_made(self):
        config = self.config()
        with open(self.path("file"), "w"):
            pass
        self.refused(IO, 2, config, "file/run", says=["file"])

    def test_bf16_is_refused_on_a_cpu(self):
        self.refused(CONFIG, 2, self.config(), "run", "run.device=cpu", "train.precision=bf16", says=["train.precision", "bf16"])

    def test_a_gpu_that_is_not_there(self):
        self.refused(CONFIG, 2, self.config(), "run", "run.device=cuda", says=["run.device: cpu"])

    def test_database_that_cannot_be_opened(self):
        """Whether a diagnostics rank keeps it or compute rank 0: every rank ends at once, and no folder stays."""
        for ranks, settings in ((3, ["parallel.tensor=2"]), (2, ["diagnostics.ranks=0"])):
            # The sanitizer's library may come second here: it still watches the program.
            with unittest.mock.patch.dict(os.environ, LD_PRELOAD=os.environ["NO_DATABASE"],
                                          ASAN_OPTIONS="verify_asan_link_order=0"):
                self.refused(IO, ranks, self.config(), "run", *settings, says=["run.db"])

    def test_run_folder_is_never_overwritten(self):
        config = self.config(train=dict(steps=1, warmup=0))
        before = self.losses(self.train(2, config, "run"))
        code, _, err = self.launch(2, config, "run")
        self.assertEqual(code, CONFIG, err)
        self.assertIn("exists and is not overwritten", err)
        self.assertEqual(self.losses(self.database("run")), before)

    def test_end_of_data_stops_all_ranks_at_one_step(self):
        """docs/cases.md 13: one global batch and 3 samples, Q = 2."""
        harness.write_shard(self.path("train-00000.bin"), harness.markov_tokens((4 + 3) * harness.CONTEXT + 1))
        config = self.config(train=dict(steps=5, global_batch=4))
        code, _, err = self.launch(3, config, "once", "data.repeat=false")
        self.assertEqual(code, 0, err)
        self.assertIn("the data ends after step 1 of 5", err)
        self.assertEqual(len(self.losses(self.database("once"))), 1)
        self.assertEqual(len(self.losses(self.train(3, config, "again"))), 5)

    def test_divergence_stops_with_an_event(self):
        config = self.config(train=dict(steps=30, lr="1e30", warmup=0, clip=0))
        code, _, err = self.launch(2, config, "run")
        self.assertEqual(code, INTERNAL, err)
        self.assertIn("not finite", err)
        db = self.database("run")
        self.assertEqual(db.execute("SELECT count(*) FROM events WHERE kind = 'nan'").fetchone()[0], 1)
        self.assertEqual(db.execute("SELECT status FROM runs").fetchone()[0], "failed")

    def test_divergence_is_not_skipped_for_ever(self):
        config = self.config(train=dict(steps=30, lr="1e30", warmup=0, clip=0, on_nan="skip"))
        code, _, err = self.launch(2, config, "run")
        self.assertEqual(code, 70, err)
        self.assertIn("the 10th in a row", err)
        db = self.database("run")
        self.assertEqual(db.execute("SELECT count(*) FROM events WHERE kind = 'nan'").fetchone()[0], 10)
        self.assertEqual(db.execute("SELECT status FROM runs").fetchone()[0], "failed")
        self.assertLess(len(self.losses(db)), 30)

    def test_an_end_by_force_leaves_a_whole_database(self):
        """A killed rank ends the job; so does a signal to mpirun. What was recorded stays and can be asked."""
        config = self.config(train=dict(steps=1000000, log_every=1000000))
        for number, (victim, how) in enumerate((("rank", signal.SIGKILL), ("diagnostics", signal.SIGKILL),
                                                ("mpirun", signal.SIGINT), ("mpirun", signal.SIGTERM))):
            run = f"run-{number}"
            with self.in_background(3, config, run, "parallel.tensor=2") as job:
                self.wait_for_database(run, "SELECT 1 FROM snapshots WHERE step >= 4 AND status = 'done'").close()
                children = subprocess.run(["pgrep", "-P", str(job.pid)], capture_output=True, text=True).stdout.split()
                self.assertEqual(len(children), 3)
                os.kill({"rank": int(children[1]), "diagnostics": int(children[2]), "mpirun": job.pid}[victim], how)
                job.communicate(timeout=30)
            self.assertNotEqual(job.returncode, 0)
            asked = subprocess.run([harness.BULKHEAD, "query", self.path(run), "layers", "--json"], capture_output=True)
            self.assertEqual(asked.returncode, 0, asked.stderr)
            self.assertGreaterEqual(json.loads(asked.stdout)[0]["step_last"], 4)
            db = self.database(run)
            self.assertEqual(db.execute("PRAGMA integrity_check").fetchone()[0], "ok")
            # mpirun passes SIGTERM on, a second before it kills: that may be enough for a checkpoint.
            self.assertIn(db.execute("SELECT status FROM runs").fetchone()[0],
                          ("running", "interrupted") if victim == "mpirun" else ("running",))

    def test_lost_records_are_told_at_the_end(self):
        """Training goes on while the database refuses rows, but the job does not end as if all were well."""
        for ranks, settings in ((2, []), (1, ["diagnostics.ranks=0"])):
            run = f"run-{ranks}"
            config = self.config(train=dict(steps=4000, log_every=1000), diagnostics=dict(every=1000))
            with self.in_background(ranks, config, run, *settings) as job:
                db = self.wait_for_database(run, "SELECT 1 FROM train_metrics WHERE step > 10")
                db.execute("CREATE TRIGGER refuse BEFORE INSERT ON eval_metrics BEGIN SELECT raise(ABORT, 'no'); END")
                out, err = job.communicate(timeout=60)
            self.assertEqual(job.returncode, IO, err)
            self.assertIn("4000 steps", out)
            self.assertEqual([line for line in err.splitlines() if line.startswith("bulkhead train: ")],
                             [f"bulkhead train: {self.path(run)}/run.db: 1 records were lost; log.txt says why"])
            with open(self.path(run, "log.txt")) as log:
                self.assertIn("refuses a record", log.read())


class Usage(harness.RunTest):
    def run_alone(self, *arguments):
        done = subprocess.run([harness.BULKHEAD, *arguments], capture_output=True, text=True, timeout=20)
        return done.returncode, done.stdout, done.stderr

    def test_usage_errors(self):
        for arguments in ((), ("fly",), ("train",), ("train", "a", "b"), ("train", "--set"), ("plan", "--what", "c"),
                          ("version", "x")):
            code, out, err = self.run_alone(*arguments)
            self.assertEqual((code, out), (USAGE, ""), arguments)
            self.assertTrue(err.strip(), arguments)

    def test_wrong_questions_say_what_is_wrong(self):
        for arguments, says in ((("layer",), "layer is neither a question nor a database"),
                                ((self.dir,), "no question"),
                                (("layers",), "no database"),
                                ((self.dir, "layers", "heads"), "one question at a time: layers, or heads"),
                                ((self.dir, "--sql", "SELECT 1", "heads"), "one question at a time: --sql, or heads"),
                                ((self.dir, "--sql"), "--sql wants a value"),
                                ((self.dir, "layers", "--form", "scores"), 'there is no "scores"')):
            code, out, err = self.run_alone("query", *arguments)
            self.assertEqual((code, out), (USAGE, ""), arguments)
            self.assertIn(says, err)

    def test_help_of_every_command(self):
        code, out, _ = self.run_alone("--help")
        self.assertEqual(code, 0)
        commands = [line.split()[0] for line in out.splitlines() if line.startswith("  ")]
        self.assertEqual(commands, ["prepare", "plan", "train", "watch", "sweep", "merge", "query", "findings", "report", "analyze",
                                    "eval", "generate", "export", "import", "convert", "version"])
        for command in commands:
            code, out, err = self.run_alone(command, "--help")
            self.assertEqual((code, err), (0, ""), command)
            self.assertIn("usage:", out)

    def test_plan_prints_the_launch_line_and_starts_nothing(self):
        code, out, err = self.run_alone("plan", self.config(), "--set", "parallel.tensor=2", "--set", "parallel.data=3",
                                        "--set", "train.global_batch=6")
        self.assertEqual(code, 0, err)
        self.assertIn("mpirun -n 7", out)
        self.assertIn("--set parallel.tensor=2 --set parallel.data=3 --set train.global_batch=6", out)
        self.assertEqual(sorted(os.listdir(self.dir)), ["config.yaml"])

    def test_plan_compares_recomputations(self):
        code, out, err = self.run_alone("plan", self.config(), "--set", "train.recompute=full", "--set",
                                        "model.context=512")
        self.assertEqual(code, 0, err)
        line = r"%s +(\d+\.\d) MiB, +(\d+\.\d)%% more operations%s\n"
        lines = (line % ("recompute +none", "") + " +" + line % ("attention", "") + " +" + line % ("full", r" \(as configured\)"))
        found = re.search(lines, out)
        self.assertIsNotNone(found, out)
        memory, more = [float(x) for x in found.groups()[::2]], [float(x) for x in found.groups()[1::2]]
        self.assertEqual(memory, sorted(set(memory), reverse=True))
        self.assertEqual(more, sorted(set(more)))
        self.assertEqual(more[0], 0)
        self.assertIn(f"memory         {found[5]} MiB a compute rank", out)

    def test_the_launch_line_can_be_pasted_into_a_shell(self):
        config = self.config("a run's config.yaml")
        settings = ["data.train=$HOME/*.bin", "run.tags=it's; `x`, \"y\"", "run.name=plain"]
        words = ["plan", config] + [word for setting in settings for word in ("--set", setting)]
        code, out, err = self.run_alone(*words)
        self.assertEqual(code, 0, err)
        (line,) = [line for line in out.splitlines() if line.startswith("  mpirun")]
        want = ["bulkhead", "train"] + words[1:]
        self.assertEqual(shlex.split(line)[-len(want):], want)
        (line,) = [line for line in out.splitlines() if line.startswith("  sbatch")]
        self.assertEqual(shlex.split(shlex.split(line)[-1])[-len(want):], want)


if __name__ == "__main__":
    unittest.main()
