"""Runs that stop and go on: the run is the one without a stop, at the same shape bit for bit, at others to rounding."""
import glob
import json
import os
import re
import shutil
import signal
import sqlite3
import struct
import subprocess
import time
import unittest

import harness

VARIANTS = ("mha", "mla-prerope", "mla-decoupled")
STATE = "SELECT step, loss, grad_norm, lr, tokens FROM train_metrics ORDER BY step"


class Resume(harness.RunTest):
    def checkpoints(self, run="run"):
        found = [os.path.basename(path) for path in glob.glob(self.path(run, "checkpoints", "step-*"))]
        return sorted(name for name in found if name[5:].isdigit())

    def saved(self, run="run"):
        return [int(n[5:]) for n in self.checkpoints(run)]

    def manifest(self, run, step):
        with open(self.path(run, "checkpoints", f"step-{step:08d}", "manifest.json")) as f:
            return json.load(f)["content"]

    def go_on(self, ranks, config, run, *settings, how="auto"):
        """A start with --resume that must succeed. Returns the run's open database."""
        code, out, err = self.launch(ranks, config, run, *settings, resume=how)
        self.assertEqual(code, 0, err)
        return self.database(run)

    def events(self, run, kind):
        told = self.database(run).execute("SELECT message FROM events WHERE kind = ? ORDER BY attempt, seq", (kind,))
        return [message for (message,) in told]

    def same(self, got, want):
        """Two lists of rows: the first that differs is named. (What assertEqual tells of long lists takes minutes.)"""
        self.assertEqual(len(got), len(want))
        for a, b in zip(got, want):
            if a != b:
                self.fail(f"{a}\nis not\n{b}")

    def cut(self, run, step, *, of):
        """A run as it stands after its checkpoint of that step, as if it had been lost there: its later checkpoints are
        not there yet; the database is ahead."""
        shutil.copytree(self.path(of), self.path(run))
        for later in self.saved(run):
            if later > step:
                shutil.rmtree(self.path(run, "checkpoints", f"step-{later:08d}"))
        with open(self.path(run, "checkpoints", "latest"), "w") as f:
            f.write(f"step-{step:08d}\n")


class SameShape(Resume):
    def rows(self, db):
        """All that a run records, but times and what says how it came about."""
        spectra = [d[1] for d in db.execute("PRAGMA table_info(spectra)") if d[1] not in ("snapshot_id",)]
        return [db.execute(q).fetchall() for q in (
            STATE, "SELECT step, split, loss, perplexity, tokens FROM eval_metrics ORDER BY step, split",
            "SELECT step, tokens, status FROM snapshots ORDER BY step",
            f"SELECT p.step, {', '.join('s.' + c for c in spectra)} FROM spectra s JOIN snapshots p USING(snapshot_id)"
            " ORDER BY p.step, s.matrix_id",
            "SELECT p.step, matrix_id, n, singular_values FROM esd JOIN snapshots p USING(snapshot_id) ORDER BY 1, 2",
            "SELECT p.step, matrix_id, u, v FROM vectors JOIN snapshots p USING(snapshot_id) ORDER BY 1, 2",
            "SELECT * FROM layer_spectra ORDER BY run_id, form, part, stat, step, layer")]

    def goes_on(self, variant, tensor, data, watchers=1, then=()):
        self.dataset()
        config = self.config(attention=dict(variant=variant), model=dict(layers=3),
                             train=dict(steps=12, warmup=6, eval_every=3), checkpoint=dict(every=5, keep=9),
                             diagnostics=dict(ranks=watchers, esd_every=4) if watchers else dict(ranks=0))
        ranks, settings = tensor * data + watchers, (f"parallel.tensor={tensor}",)
        want = self.rows(self.train(ranks, config, "whole", *settings))
        self.assertEqual(self.saved("whole"), [5, 10, 12])
        self.cut("run", 5, of="whole")
        db = self.go_on(ranks, config, "run", *settings, *then)
        for got, wanted in zip(self.rows(db), want, strict=True):
            self.same(got, wanted)
        self.assertEqual(self.saved("run"), [5, 10, 12])
        for step in (10, 12):
            ours, theirs = self.manifest("run", step), self.manifest("whole", step)
            self.same(ours["boxes"], theirs["boxes"])
            for key in ("updates", "tokens", "loss", "spikes"):
                self.assertEqual(ours[key], theirs[key])
        self.assertEqual(db.execute("SELECT count(*), max(attempt) FROM sessions").fetchone(), (2, 2))
        self.assertEqual(db.execute("SELECT status FROM runs").fetchall(), [("finished",)])

    def test_mha_goes_on_bit_for_bit(self):
        self.goes_on("mha", 2, 1)

    def test_prerope_goes_on_bit_for_bit(self):
        self.goes_on("mla-prerope", 1, 2)

    def test_decoupled_goes_on_bit_for_bit(self):
        self.goes_on("mla-decoupled", 2, 2)

    def test_a_run_without_diagnostics_goes_on(self):
        self.goes_on("mla-decoupled", 1, 1, watchers=0)

    def test_other_recomputation_is_the_same_run(self):
        self.goes_on("mla-decoupled", 2, 1, then=("train.recompute=full",))
        self.assertEqual(self.database("run").execute("SELECT value FROM params WHERE key = 'train.recompute'").fetchall(),
                         [("full",)])


class OtherShapes(Resume):
    """Saved by P x Q ranks, read by others."""
    SHAPES = ((1, 1), (2, 1), (1, 2), (2, 2))

    def at(self, shape, config, run, *settings, resume=None):
        ranks, tensor = shape[0] * shape[1], f"parallel.tensor={shape[0]}"
        code, _, err = self.launch(ranks, config, run, tensor, *settings, resume=resume)
        self.assertEqual(code, 0, err)
        return self.losses(self.database(run))

    def close(self, got, want, saved):
        """Up to the checkpoint both are one run; then rounding parts them."""
        self.assertEqual(got[:saved], want[:saved])
        for a, b in zip(got, want, strict=True):
            self.assertAlmostEqual(a, b, delta=1e-5 * b)

    def every_way(self, variant, savers=SHAPES, readers=SHAPES):
        self.dataset()
        config = self.config(attention=dict(variant=variant), train=dict(steps=25), checkpoint=dict(every=5, keep=9),
                             diagnostics=dict(ranks=0))
        for saver in savers:
            whole = "whole-%dx%d" % saver
            want = self.at(saver, config, whole)
            for reader in readers:
                run = whole + "-%dx%d" % reader
                self.cut(run, 5, of=whole)
                got = self.at(reader, config, run, resume="auto")
                if reader == saver:
                    self.assertEqual(got, want)
                self.close(got, want, 5)

    def test_down_and_up(self):
        self.every_way("mla-decoupled", savers=((2, 2),), readers=((1, 1), (2, 2)))
        self.every_way("mla-decoupled", savers=((1, 1),), readers=((2, 1),))

    def test_every_shape_of_mha(self):
        self.every_way("mha")

    def test_every_shape_of_prerope(self):
        self.every_way("mla-prerope")

    def test_every_shape_of_decoupled(self):
        self.every_way("mla-decoupled")

    def test_layers_and_shares_that_do_not_divide(self):
        """docs/cases.md 10: five layers, by (2, 2) at step 5; on at (1, 1), (4, 1), (1, 3) and (2, 2). Shares of F and
        V are uneven at 4, those of a batch of 12 even at 3."""
        self.dataset(vocab=61)
        config = self.config(model=dict(layers=5, ffn=45, vocab=61), train=dict(steps=10, global_batch=12),
                             attention=dict(variant="mla-decoupled"), checkpoint=dict(every=5, keep=9),
                             diagnostics=dict(ranks=0))
        want = self.at((2, 2), config, "whole")
        for shape in ((1, 1), (4, 1), (1, 3), (2, 2)):
            run = "%dx%d" % shape
            self.cut(run, 5, of="whole")
            got = self.at(shape, config, run, resume="auto")
            self.close(got, want, 5)
            if shape == (2, 2):
                self.assertEqual(got, want)
            told = any(m.startswith("parallel.tensor:") for m in self.events(run, "resume"))
            self.assertEqual(told, shape[0] != 2)

    def test_a_shape_changes_no_value(self):
        """A checkpoint that another shape reads and saves again, without a step in between, holds the same values."""
        self.dataset()
        config = self.config(model=dict(ffn=45), attention=dict(variant="mla-decoupled"), train=dict(steps=3),
                             diagnostics=dict(ranks=0))
        self.at((2, 2), config, "whole")
        want = self.tensors("whole", 3)
        for shape in ((1, 1), (4, 1), (1, 2)):
            run = "%dx%d" % shape
            self.at(shape, config, run, resume=self.path("whole", "checkpoints", "step-00000003"))
            self.same(self.tensors(run, 3), want)

    def tensors(self, run, step):
        """(name, kind, number of a row, its values) of the whole tensors, put together from their boxes."""
        manifest, whole = self.manifest(run, step), {}
        for b in manifest["boxes"]:
            rows = whole.setdefault((b["name"], b["kind"]), [[None] * b["cols"] for _ in range(b["rows"])])
            path = self.path(run, "checkpoints", f"step-{step:08d}", manifest["files"][b["file"]]["name"])
            with open(path, "rb") as f:
                (length,) = struct.unpack("<Q", f.read(8))
                header = json.loads(f.read(length))
                entry = header[f"{b['name']}/{b['kind']}@{b['row']}:{b['col']}"]
                self.assertEqual(entry["shape"], [b["n_rows"], b["n_cols"]])
                f.seek(8 + length + entry["data_offsets"][0])
                values = struct.unpack(f"<{b['n_rows'] * b['n_cols']}f", f.read(4 * b["n_rows"] * b["n_cols"]))
            for r in range(b["n_rows"]):
                for c in range(b["n_cols"]):
                    self.assertIsNone(rows[b["row"] + r][b["col"] + c], "an element twice")
                    rows[b["row"] + r][b["col"] + c] = values[r * b["n_cols"] + c]
        for (name, kind), rows in whole.items():
            self.assertNotIn(None, [v for row in rows for v in row], name)
        return sorted((*key, row, tuple(values)) for key, rows in whole.items() for row, values in enumerate(rows))


class Signals(Resume):
    """A scheduler's warning: one checkpoint at one step, exit code 75, and the run goes on as if nothing had been."""

    def start(self, **checkpoint):
        self.dataset()
        self.long = self.config(train=dict(steps=1000000, log_every=1000000), checkpoint=checkpoint,
                                diagnostics=dict(every=50, when_behind="wait"))
        job = self.in_background(3, self.long, "run", "parallel.tensor=2")
        self.wait_for_database("run", "SELECT 1 FROM train_metrics WHERE step >= 60").close()
        return job

    def ranks_of(self, job):
        """Process ids by rank: compute ranks first."""
        return self.children(job.pid)

    def interrupted(self, job):
        """It has ended as asked; its one checkpoint's step."""
        _, err = job.communicate(timeout=40)
        self.assertEqual(job.returncode, 75, err)
        self.assertIn("stopped behind step", err)
        db = self.database("run")
        (step,) = db.execute("SELECT max(step) FROM train_metrics").fetchone()
        self.assertEqual(self.saved(), [step])
        self.assertEqual(db.execute("SELECT status FROM runs").fetchone()[0], "interrupted")
        self.assertEqual(db.execute("SELECT exit_code, last_step FROM sessions").fetchone(), (75, step))
        # The diagnostics rank has finished its queue.
        self.assertEqual(db.execute("SELECT count(*) FROM snapshots WHERE status <> 'done'").fetchone()[0], 0)
        self.assertEqual(db.execute("SELECT max(step) FROM snapshots").fetchone()[0], step // 50 * 50)
        return step

    def test_a_warning_to_mpirun(self):
        job = self.start()
        job.send_signal(signal.SIGUSR1)
        step = self.interrupted(job)
        # The rest of a run that ends soon is that of one that was never stopped; the schedule follows train.steps.
        settings = ("parallel.tensor=2", f"train.steps={step + 20}")
        first = self.go_on(3, self.long, "run", *settings)
        self.assertEqual([r[0] for r in first.execute("SELECT step FROM train_metrics ORDER BY step")],
                         list(range(1, step + 21)))
        self.assertEqual(first.execute("SELECT status FROM runs").fetchone()[0], "finished")
        self.assertTrue(any("train.steps" in m for m in self.events("run", "resume")))

    def test_a_signal_to_one_rank_twice(self):
        for number in (signal.SIGTERM, signal.SIGUSR1):
            job = self.start()
            compute = self.ranks_of(job)[1]
            os.kill(compute, number)
            os.kill(compute, number)
            self.interrupted(job)
            shutil.rmtree(self.path("run"))

    def test_the_diagnostics_rank_leaves_it_to_the_others(self):
        job = self.start()
        watcher = self.ranks_of(job)[2]
        os.kill(watcher, signal.SIGUSR1)
        os.kill(watcher, signal.SIGTERM)
        before = self.database("run").execute("SELECT max(step) FROM train_metrics").fetchone()[0]
        self.wait_for_database("run", f"SELECT 1 FROM train_metrics WHERE step > {before + 100}").close()
        job.send_signal(signal.SIGUSR1)
        self.interrupted(job)

    def test_a_checkpoint_waits_for_the_database(self):
        """While the diagnostics rank stands still, rows are missing: the checkpoint does not appear."""
        job = self.start()
        watcher = self.ranks_of(job)[2]
        os.kill(watcher, signal.SIGSTOP)
        job.send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + 30
        written = self.path("run", "checkpoints", "step-*", "manifest.json")
        while not glob.glob(written):
            self.assertLess(time.monotonic(), deadline, "no checkpoint is written")
            time.sleep(0.01)
        time.sleep(2)
        self.assertEqual(self.saved(), [])
        self.assertIsNone(job.poll())
        os.kill(watcher, signal.SIGCONT)
        self.interrupted(job)
        self.assertEqual([m for m in self.events("run", "checkpoint") if "behind" in m], [])

    def test_a_second_signal_ends_it_at_once(self):
        """A stopped peer holds the step up: the first signal waits, so does its repetition; a later one is obeyed."""
        job = self.start()
        first, peer = self.ranks_of(job)[:2]
        os.kill(peer, signal.SIGSTOP)
        os.kill(first, signal.SIGUSR1)
        time.sleep(2)
        os.kill(first, signal.SIGUSR1)
        time.sleep(1)
        self.assertIsNone(job.poll())
        time.sleep(3)
        os.kill(first, signal.SIGUSR1)
        os.kill(peer, signal.SIGCONT)
        job.communicate(timeout=20)
        self.assertEqual(job.returncode, 128 + signal.SIGUSR1)
        self.assertEqual(self.saved(), [])

    def test_one_job_at_a_time(self):
        """Another job in the same folder is refused, and the one that has it does not notice; the next waits for its
        end, and goes on from where that was."""
        job = self.start(every=100)
        went_on = (3, self.long, "run", "parallel.tensor=2")
        code, _, err = self.launch(*went_on, resume="auto")
        self.assertEqual(code, 74, err)
        self.assertEqual(len(re.findall("^bulkhead train: the run folder .* is in use by another job", err, re.M)), 1, err)
        next_job = self.in_background(*went_on, "train.steps=2", resume="auto")
        self.assertIn("another job has the run folder", next_job.stderr.readline())
        job.send_signal(signal.SIGUSR1)
        job.communicate(timeout=40)
        self.assertEqual(job.returncode, 75)
        next_job.communicate(timeout=40)
        self.assertEqual(next_job.returncode, 0)
        db = self.database("run")
        count, last = db.execute("SELECT count(*), max(step) FROM train_metrics").fetchone()
        self.assertEqual(count, last)
        self.assertEqual(db.execute("SELECT attempt, exit_code FROM sessions").fetchall(), [(1, 75), (2, 0)])
        self.assertTrue(any(f"step-{last:08d}" in m for m in self.events("run", "resume")))
        self.assertEqual(glob.glob(self.path("run", "checkpoints", "*.left*")), [])
        self.assertEqual(glob.glob(self.path("run", "checkpoints", "*.partial*")), [])


class Kept(Resume):
    """Which checkpoints stay, which one a run goes on from, and what a disk can do to them."""

    def small(self, **sections):
        self.dataset()
        sections.setdefault("diagnostics", dict(ranks=0))
        return self.config(**sections)

    def test_the_newest_and_each_kth_stay(self):
        config = self.small(train=dict(steps=13), checkpoint=dict(every=2, keep=2, keep_every=6))
        self.train(1, config, "run")
        self.assertEqual(self.saved(), [6, 12, 13])
        with open(self.path("run", "checkpoints", "latest")) as f:
            self.assertEqual(f.read(), "step-00000013\n")

    def test_zero_is_at_the_end_only(self):
        self.train(1, self.small(), "run")
        self.assertEqual(self.saved(), [6])

    def test_rotation_counts_its_own(self):
        """docs/cases.md 11: a later step of another run in the folder neither goes nor pushes out the newest, nor is it
        what the run goes on from."""
        config = self.small(checkpoint=dict(keep=1, every=2))
        self.train(1, config, "other", "train.steps=8")
        self.train(1, config, "run", "train.steps=4")
        foreign = self.path("run", "checkpoints", "step-00000008")
        shutil.copytree(self.path("other", "checkpoints", "step-00000008"), foreign)
        with open(os.path.join(foreign, "manifest.json")) as f:
            before = f.read()
        os.remove(self.path("run", "checkpoints", "latest"))
        db = self.go_on(1, config, "run", "train.steps=6")
        self.assertEqual(self.saved(), [6, 8])
        with open(os.path.join(foreign, "manifest.json")) as f:
            self.assertEqual(f.read(), before)
        self.assertTrue(any("another run" in m for m in self.events("run", "resume")))
        self.assertEqual(db.execute("SELECT max(step) FROM train_metrics").fetchone()[0], 6)
        # Where its own is to stand: not written over.
        code, _, err = self.launch(1, config, "run", "train.steps=8", resume="auto")
        self.assertEqual(code, 74, err)
        self.assertIn("is not this run's", err)
        self.assertIn("--resume auto goes on from the one before", err)
        with open(self.path("run", "checkpoints", "latest")) as f:
            self.assertEqual(f.read(), "step-00000006\n")
        with open(os.path.join(foreign, "manifest.json")) as f:
            self.assertEqual(f.read(), before)

    def spoil(self, run, step, how):
        folder = self.path(run, "checkpoints", f"step-{step:08d}")
        shard = os.path.join(folder, "rank-00000.safetensors")
        manifest = os.path.join(folder, "manifest.json")
        if how == "shard cut off":
            os.truncate(shard, os.path.getsize(shard) - 4)
        elif how == "byte flipped":
            with open(shard, "r+b") as f:
                f.seek(os.path.getsize(shard) - 1001)
                byte = f.read(1)[0]
                f.seek(-1, os.SEEK_CUR)
                f.write(bytes([byte ^ 1]))
        elif how == "manifest missing":
            os.remove(manifest)
        elif how == "number changed":
            with open(manifest) as f:
                text = f.read()
            with open(manifest, "w") as f:
                f.write(text.replace(f'"updates": {step}', f'"updates": {step - 1}'))
        elif how == "shard missing":
            os.remove(shard)
        elif how == "half written":
            os.rename(folder, folder + ".partial")
            shutil.copytree(folder + ".partial", self.path(run, "checkpoints", "step-00000007.partial"))

    def left(self, run="run"):
        return sorted(n for n in os.listdir(self.path(run, "checkpoints")) if ".left" in n)

    def test_a_damaged_one_does_not_count_among_the_newest(self):
        config = self.small(train=dict(steps=9), checkpoint=dict(every=3, keep=9))
        self.train(1, config, "run")
        self.spoil("run", 9, "byte flipped")
        db = self.go_on(1, config, "run", "train.steps=8", "checkpoint.keep=2")
        self.assertEqual(self.saved(), [6, 8])
        self.assertEqual(self.left(), ["step-00000009.left"])
        notes = db.execute("SELECT level, message FROM events WHERE kind = 'resume' ORDER BY seq").fetchall()
        about = [m for _, m in notes if m.startswith(("train.steps:", "checkpoint.keep:"))]
        self.assertEqual(len(about), 2, notes)  # of the checkpoint that was taken, not of the other as well
        self.assertEqual([level for level, m in notes if "left out" in m], ["warn"])

    def test_a_damaged_one_is_left_out(self):
        config = self.small(train=dict(steps=9), checkpoint=dict(every=3, keep=9))
        want = self.losses(self.train(2, config, "whole"))
        for how in ("shard cut off", "byte flipped", "manifest missing", "number changed", "shard missing",
                    "half written"):
            run = how.replace(" ", "-")
            self.cut(run, 6, of="whole")
            self.spoil(run, 6, how)
            code, _, err = self.launch(2, config, run, resume="auto")
            self.assertEqual(code, 0, err)
            self.assertEqual(self.losses(self.database(run)), want)
            told = self.events(run, "resume")
            self.assertTrue(any("step-00000003" in m and "goes on from" in m for m in told), told)
            with open(self.path(run, "log.txt")) as f:
                log = f.read()
            for message in told:
                self.assertEqual(log.count(message), 1, message)
            if how != "half written":
                self.assertTrue(any("left out" in m and "step-00000006" in m for m in told), (how, told))
                self.assertTrue(any("to be removed by hand" in m for m in told), (how, told))
            self.assertEqual(self.saved(run), [3, 6, 9])
            self.assertEqual(self.left(run), [] if how == "half written" else ["step-00000006.left"])
            self.assertEqual([n for n in os.listdir(self.path(run, "checkpoints")) if "partial" in n], [])

    def test_none_is_whole(self):
        config = self.small(train=dict(steps=4), checkpoint=dict(every=2, keep=9))
        self.train(1, config, "run")
        for step in (2, 4):
            self.spoil("run", step, "byte flipped")
        code, _, err = self.launch(1, config, "run", "train.steps=8", resume="auto")
        self.assertEqual(code, 65, err)
        self.assertIn("no checkpoint is whole", err)
        self.assertEqual(self.saved(), [2, 4])

    def test_what_must_match(self):
        config = self.small(train=dict(steps=4), checkpoint=dict(every=2, keep=9))
        self.train(1, config, "run")
        for key, value in (("run.seed", 2), ("model.layers", 3), ("model.rope_theta", 5000),
                           ("attention.variant", "mla-decoupled"), ("data.repeat", "false")):
            code, _, err = self.launch(1, config, "run", f"{key}={value}", resume="auto")
            self.assertEqual(code, 78, err)
            self.assertIn(key + ":", err)
        harness.write_shard(self.path("train-00001.bin"), harness.markov_tokens(2000))
        code, _, err = self.launch(1, config, "run", resume="auto")
        self.assertEqual(code, 78, err)
        self.assertIn("data.train:", err)
        os.remove(self.path("train-00001.bin"))
        self.go_on(1, config, "run", "train.steps=6", "train.lr=1e-3", "checkpoint.keep=1")
        told = self.events("run", "resume")
        for key in ("train.steps", "train.lr", "checkpoint.keep"):
            self.assertTrue(any(m.startswith(key + ":") for m in told), (key, told))

    def test_a_database_that_is_gone(self):
        """A new one begins, and says that the rows of before are lost."""
        config = self.small(train=dict(steps=9), checkpoint=dict(every=3, keep=9))
        self.train(1, config, "whole")
        self.cut("run", 6, of="whole")
        os.remove(self.path("run", "run.db"))
        db = self.go_on(1, config, "run")
        self.assertEqual([s for (s,) in db.execute("SELECT step FROM train_metrics ORDER BY step")], [7, 8, 9])
        told = db.execute("SELECT message FROM events WHERE kind = 'resume' AND level = 'warn'").fetchall()
        self.assertEqual(told, [(self.path("run", "run.db") + " is gone: rows up to step 6 are lost",)])

    def test_a_start_by_name(self):
        config = self.small(train=dict(steps=9), checkpoint=dict(every=3, keep=9))
        want = self.losses(self.train(1, config, "run"))
        # Back to one of its own: the later ones are another future's and keep their files under another name.
        back = self.path("run", "checkpoints", "step-00000003")
        db = self.go_on(1, config, "run", "train.lr=0", "train.steps=5", how=back)
        self.assertEqual(len(self.losses(db)), 5)
        self.assertEqual(self.losses(db)[:4], want[:4])
        self.assertEqual(self.saved(), [3, 5])
        self.assertEqual(self.left(), ["step-00000006.left", "step-00000009.left"])
        latest = self.path("run", "checkpoints", "latest")
        db = self.go_on(1, config, "run", "train.lr=0", "train.steps=7", how=latest)
        self.assertTrue(any("from" in m and "step-00000005" in m for m in self.events("run", "resume")))
        self.assertEqual(self.saved(), [3, 5, 6, 7])
        # A run of its own from another one's checkpoint.
        db = self.go_on(1, config, "branch", "train.steps=8", how=self.path("run"))
        self.assertEqual([s for (s,) in db.execute("SELECT step FROM train_metrics ORDER BY step")], [8])
        self.assertEqual(self.saved("branch"), [7, 8])
        told = db.execute("SELECT level, message FROM events WHERE kind = 'resume'").fetchall()
        self.assertIn(("info", "the database is new: its rows begin behind step 7"), told)
        self.assertNotIn("warn", [level for level, _ in told])
        for path in (self.path("nowhere"), self.path("run", "checkpoints", "step-00000004")):
            code, _, err = self.launch(1, config, "more", resume=path)
            self.assertEqual(code, 66, err)
            self.assertIn(path, err)
            self.assertFalse(os.path.exists(self.path("more")))
        code, _, err = self.launch(1, config, "branch", resume=self.path("run"))
        self.assertEqual(code, 78, err)
        self.assertIn("another run", err)

    def test_auto_begins_where_there_is_nothing(self):
        config = self.small(train=dict(steps=5), checkpoint=dict(every=2))
        want = self.losses(self.go_on(1, config, "run"))
        # Lost before its first checkpoint, with a snapshot's and steps' rows in the database.
        shutil.rmtree(self.path("run", "checkpoints"))
        db = self.go_on(1, config, "run", "train.steps=3")
        self.assertEqual(self.losses(db)[:2], want[:2])
        self.assertEqual(db.execute("SELECT max(step) FROM train_metrics").fetchone()[0], 3)
        # A folder that somebody made for the job's output.
        os.mkdir(self.path("mine"))
        open(self.path("mine", "slurm.out"), "w").close()
        self.assertEqual(self.losses(self.go_on(1, config, "mine")), want)
        # One that is something else.
        os.mkdir(self.path("else"))
        open(self.path("else", "config.yaml"), "w").close()
        code, _, err = self.launch(1, config, "else", resume="auto")
        self.assertEqual(code, 78, err)
        self.assertIn("run-id", err)

    def test_a_finished_run_has_nothing_to_do(self):
        config = self.small()
        want = self.losses(self.train(1, config, "run"))
        db = self.go_on(1, config, "run")
        self.assertEqual(self.losses(db), want)
        self.assertEqual(db.execute("SELECT status FROM runs").fetchone()[0], "finished")

    def test_replayed_steps(self):
        """docs/cases.md 19: saved at 5, lost at 12, on to 20; then merged twice."""
        config = self.config(train=dict(steps=20), checkpoint=dict(every=5, keep=9), diagnostics=dict(ranks=1, every=4))
        self.dataset()
        rows = self.train(2, config, "whole").execute(STATE).fetchall()
        self.cut("run", 5, of="whole")
        lost = sqlite3.connect(self.path("run", "run.db"))
        lost.execute("DELETE FROM train_metrics WHERE step > 12")
        lost.execute("UPDATE train_metrics SET loss = 99 WHERE step > 5")
        lost.commit()
        lost.close()
        self.assertEqual(self.go_on(2, config, "run").execute(STATE).fetchall(), rows)
        for _ in range(2):
            done = self.bulkhead("merge", self.path("run", "run.db"), "-o", self.path("all.db"))
            self.assertEqual(done.returncode, 0, done.stderr)
            merged = sqlite3.connect(self.path("all.db"))
            self.assertEqual(merged.execute(STATE).fetchall(), rows)
            merged.close()

    def test_the_schedule_goes_on(self):
        """docs/cases.md 9: a stop one step before the end of warm-up."""
        config = self.small(train=dict(steps=8, warmup=4), checkpoint=dict(every=3, keep=9))
        want = [r[0] for r in self.train(1, config, "whole").execute("SELECT lr FROM train_metrics ORDER BY step")]
        self.cut("run", 3, of="whole")
        got = [r[0] for r in self.go_on(1, config, "run").execute("SELECT lr FROM train_metrics ORDER BY step")]
        self.assertEqual(got, want)
        self.assertEqual(max(got), got[3])


class Disk(Resume):
    """What a disk can do while a run writes to it: training goes on, it is told, and the next checkpoint is tried."""

    def start(self, run="run"):
        self.dataset()
        config = self.config(train=dict(steps=1000000, log_every=1000000), checkpoint=dict(every=50),
                             diagnostics=dict(ranks=1, every=1000))
        job = self.in_background(2, config, run)
        self.wait_for_database(run, "SELECT 1 FROM events WHERE kind = 'checkpoint'").close()
        return job

    def failed_then_saved(self, job, run, why, repair):
        """A checkpoint is said not to be written, those before it stay; after the repair the run saves again and ends
        with one."""
        told = self.wait_for_database(run, f"SELECT 1 FROM events WHERE message LIKE 'not written%{why}%'")
        (written,) = told.execute("SELECT count(*) FROM events WHERE message LIKE 'step-%'").fetchone()
        told.close()
        if os.path.isdir(self.path(run, "checkpoints")):
            with open(self.path(run, "checkpoints", "latest")) as f:
                latest = f.read().strip()
            self.assertIn(latest, self.checkpoints(run))
            self.assertGreaterEqual(len(self.checkpoints(run)), min(2, written))
        repair()
        (last,) = self.database(run).execute("SELECT max(step) FROM train_metrics").fetchone()
        self.wait_for_database(run, f"SELECT 1 FROM events WHERE message LIKE 'step-%' AND step > {last}").close()
        self.end(job, run, failed=True)

    def end(self, job, run, failed=False):
        job.send_signal(signal.SIGUSR1)
        _, err = job.communicate(timeout=60)
        self.assertEqual(job.returncode, 75, err)
        if failed:
            self.assertRegex(err, "the checkpoint could not be written: .*; training goes on")
        db = self.database(run)
        self.assertEqual(db.execute("PRAGMA integrity_check").fetchone()[0], "ok")
        count, last = db.execute("SELECT count(*), max(step) FROM train_metrics").fetchone()
        self.assertEqual(count, last)
        self.assertEqual(self.saved(run)[-1], last)
        self.assertEqual([n for n in os.listdir(self.path(run, "checkpoints")) if "partial" in n], [])

    def mount(self, *arguments, at):
        if os.geteuid() != 0 or subprocess.run(["mount", *arguments, at], capture_output=True).returncode != 0:
            print("skipped: file systems cannot be mounted here")
            self.skipTest("no mount")
        self.addCleanup(subprocess.run, ["umount", "-l", at], capture_output=True)

    def test_the_folder_is_removed_meanwhile(self):
        job = self.start()
        shutil.rmtree(self.path("run", "checkpoints"), ignore_errors=True)
        (last,) = self.database("run").execute("SELECT max(step) FROM train_metrics").fetchone()
        later = f"SELECT 1 FROM events WHERE message LIKE 'step-%' AND step > {last + 100}"
        self.wait_for_database("run", later).close()
        self.end(job, "run")

    def test_no_folder_can_be_made(self):
        job = self.start()
        folder = self.path("run", "checkpoints")
        while os.path.isdir(folder):
            shutil.rmtree(folder, ignore_errors=True)
            try:
                open(folder, "x").close()
            except FileExistsError:
                pass
        self.failed_then_saved(job, "run", "Not a directory", lambda: os.remove(folder))

    def make_read_only(self, *folder):
        """Returns what undoes it."""
        path = self.path(*folder)
        self.mount("--bind", path, at=path)
        for _ in range(500):  # a file that is just being written there has it busy
            if subprocess.run(["mount", "-o", "remount,bind,ro", path], capture_output=True).returncode == 0:
                break
            time.sleep(0.01)
        else:
            self.fail(f"{path} stays busy")
        return lambda: subprocess.run(["umount", "-l", path], check=True)

    def test_a_disk_that_cannot_be_written(self):
        job = self.start()
        self.failed_then_saved(job, "run", "Read-only", self.make_read_only("run", "checkpoints"))

    def test_a_run_folder_that_becomes_read_only(self):
        """What is open, database and log, stays so; nothing new can be made."""
        job = self.start()
        self.failed_then_saved(job, "run", "Read-only", self.make_read_only("run"))

    def test_a_run_folder_that_is_read_only_does_not_go_on(self):
        self.dataset()
        config = self.config(train=dict(steps=8), checkpoint=dict(every=3), diagnostics=dict(ranks=1))
        self.train(2, config, "run")
        self.cut("lost", 6, of="run")
        repair = self.make_read_only("lost")
        code, _, err = self.launch(2, config, "lost", resume="auto")
        self.assertEqual(code, 74, err)
        self.assertRegex(err, "lost.*Read-only file system")
        repair()
        self.same(self.go_on(2, config, "lost").execute(STATE).fetchall(),
                  self.database("run").execute(STATE).fetchall())

    def test_a_full_disk(self):
        """Database, log and checkpoints on one small disk, which is full for a while."""
        os.mkdir(self.path("disk"))
        self.mount("-t", "tmpfs", "-o", "size=24m", "bulkhead-test", at=self.path("disk"))
        job = self.start("disk/run")
        with open(self.path("disk", "ballast"), "wb") as f:
            try:
                while f.write(bytes(65536)):
                    f.flush()
            except OSError:
                pass
        time.sleep(2)
        os.remove(self.path("disk", "ballast"))
        self.failed_then_saved(job, "disk/run", "No space", lambda: None)


if __name__ == "__main__":
    unittest.main()
