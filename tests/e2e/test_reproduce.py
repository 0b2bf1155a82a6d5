"""End to end: deploy/reproduce from a text to a verdict, at a size that takes seconds, stopped in the middle and gone on with."""
import glob
import gzip
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import time
import unittest

from harness import BULKHEAD, RunTest

ROOT = os.path.realpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
FOLDER = os.path.join(ROOT, "deploy", "reproduce")
sys.path.insert(0, FOLDER)
import summary  # noqa: E402

SMALL = {"run.device": "cpu", "run.threads": 1, "model.layers": 2, "model.width": 32, "model.heads": 2, "model.ffn": 48, "model.context": 32,
         "train.global_batch": 2, "train.warmup": 2, "train.eval_every": 50, "train.eval_tokens": 64, "diagnostics.null_draws": 0}


class ReproduceTest(RunTest):
    time_limit_s = 100

    def setUp(self):
        super().setUp()
        self.environment = dict(os.environ, BULKHEAD=os.path.realpath(BULKHEAD))

    def begin(self, words):
        """A script in a session of its own, which ends with the test: so do the runs of its sweep, when that is gone."""
        job = subprocess.Popen(words, cwd=self.dir, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               start_new_session=True)
        self.addCleanup(self.end, job)
        return job

    @staticmethod
    def end(job):
        try:
            os.killpg(job.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        job.communicate()

    def script(self, name, *arguments):
        words = [os.path.join(FOLDER, name), *arguments]
        job = self.begin(words)
        out, err = job.communicate(timeout=self.time_limit_s)
        return subprocess.CompletedProcess(words, job.returncode, out, err)

    def words(self, *arguments, steps=100):
        settings = [part for key, value in {**SMALL, "train.steps": steps}.items() for part in ("--set", f"{key}={value}")]
        return [os.path.join(FOLDER, "run"), "--study", "tiny", "--folder", "out", *settings, *arguments]

    def run_all(self, *arguments, code=0, **how):
        done = self.script(*self.words(*arguments, **how))
        self.assertEqual(done.returncode, code, done.stderr)
        return done

    def write_text(self):
        draw = random.Random(7)
        words = ["".join(draw.choice("abcdefghijklmnop") for _ in range(draw.randint(3, 9))) for _ in range(5000)]
        with open(self.path("text.txt"), "w") as f:
            for _ in range(4000):
                f.write(" ".join(draw.choice(words) for _ in range(12)) + "\n")

    def prepared(self, **how):
        """What `bulkhead prepare` would have made, in the test's folder."""
        self.dataset(**how)
        with open(self.path("dataset.json"), "w") as f:
            json.dump({"train": {"tokens": 20000}}, f)

    def look(self, *parts):
        db = sqlite3.connect(f"file:{self.path('out', *parts)}?mode=ro", uri=True)
        self.addCleanup(db.close)
        return db

    def ask(self, parts, sql):
        return self.look(*parts).execute(sql).fetchall()


class Study(ReproduceTest):
    def test_from_text_to_verdict_over_a_kill(self):
        self.write_text()
        two = ("--text", "text.txt", "--variants", "mha,mla-decoupled")
        job = self.begin(self.words(*two))
        self.wait_for_database("out/runs/seed1-mla-decoupled", "SELECT 1 FROM train_metrics WHERE step >= 3").close()
        job.send_signal(signal.SIGTERM)
        said, err = job.communicate(timeout=self.time_limit_s)
        self.assertEqual(job.returncode, 75, err)
        self.assertIn("the same line goes on", err)
        self.assertRegex(said, "onset +mha +undetermined")  # what there is so far
        tokens = self.read("data", "dataset.json")

        self.run_all(*two)
        self.assertEqual(self.read("data", "dataset.json"), tokens)
        sessions = {name: [code for code, in self.ask(("runs", name, "run.db"), "SELECT exit_code FROM sessions ORDER BY attempt")]
                    for name in ("seed1-mha", "seed1-mla-decoupled", "seed2-mha", "seed2-mla-decoupled")}
        self.assertEqual(sessions, {"seed1-mha": [0], "seed1-mla-decoupled": [75, 0], "seed2-mha": [0], "seed2-mla-decoupled": [0]})

        more = self.run_all(*two, "--seeds", "3")
        self.assertIn("6 runs: 4 done, 0 failed before, 2 to do, 1 at a time", more.stderr)
        self.assertRegex(more.stdout, "prevented +mla-decoupled +undetermined")
        self.assertRegex(more.stdout, r"mla-decoupled +3 +\d")  # the comparison's row: three runs
        self.assertIn("verdict", json.loads(self.read("findings.json"))["findings"][0])
        self.assertIn("prevented, mla-decoupled: undetermined", self.read("findings.txt"))
        self.assertGreater(os.path.getsize(self.path("out", "report.html")), 50000)
        self.is_summary()
        self.answers_a_page()

    def read(self, *parts):
        with open(self.path("out", *parts)) as f:
            return f.read()

    def is_summary(self):
        """What it keeps is what the heads' own rows come to."""
        runs = dict(self.ask(("summary.db",), "SELECT run_id, name FROM runs"))
        self.assertEqual(len(runs), 6)
        steps = [s for s in range(0, 101) if s <= 20 or s % 10 == 0]
        for run, name in runs.items():
            rows = self.ask(("runs", name, "run.db"), "SELECT step, layer, stable_rank, tw_score FROM v_spectra WHERE form = 'channel' AND part = 'full'"
                            " AND scope = 'head'")
            heads = {(s, layer): [r[2] for r in rows if r[:2] == (s, layer)] for s in steps for layer in (0, 1)}
            for stat, of in (("median", statistics.median), ("max", max)):
                kept = dict(((s, layer), x) for s, layer, x in self.ask(
                    ("summary.db",), f"SELECT step, layer, stable_rank FROM layer_spectra WHERE run_id = {run} AND form = 'channel' AND stat = '{stat}'"))
                self.assertEqual(sorted(kept), sorted(heads), name)
                for key in kept:
                    self.assertAlmostEqual(kept[key], of(heads[key]), places=12)
            crossed = self.ask(("runs", name, "run.db"), "SELECT form, layer, min(step) FROM v_spectra WHERE part = 'full' AND scope = 'head' AND mp_gap > 1"
                               " GROUP BY form, layer ORDER BY form, layer")
            self.assertEqual(self.ask(("summary.db",), f"SELECT form, layer, step FROM naive_onsets WHERE run_id = {run} ORDER BY form, layer"), crossed)
        with open(self.path("out", "data", "dataset.json")) as f:
            tokens = json.load(f)["train"]["tokens"]
        self.assertEqual(self.ask(("summary.db",), "SELECT value FROM study WHERE key = 'train_tokens'"), [(tokens,)])
        with open(self.path("out", "summary.db"), "rb") as f:
            self.assertNotIn(self.dir.encode(), f.read())  # it says nothing of where it was made

        small = self.path("small.db")
        bytes_of = os.path.getsize(self.path("out", "summary.db"))
        words = [self.path("out", *parts) for parts in (("runs", "sweep.db"), ("findings.json",), ("data", "dataset.json"))]
        done = self.script("summary.py", *words, small, "--limit", str(bytes_of - 1))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertLess(os.path.getsize(small), bytes_of)
        kept = [s for s, in sqlite3.connect(small).execute("SELECT DISTINCT step FROM layer_spectra ORDER BY step")]
        share = 0.01 * int(re.search(r"snapshots that are (\d+)% apart", done.stderr)[1])
        self.assertEqual(kept, summary.spaced(steps, share))
        self.assertLess(len(kept), len(steps))
        self.assertEqual(summary.spaced([0, 1, 2, 3, 4, 5, 10, 20, 30], 1), [0, 1, 2, 4, 10, 20, 30])
        self.assertEqual(summary.spaced(steps, 0), steps)
        for broken in ([words[0], words[1], self.path("text.txt")], [self.path("text.txt"), *words[1:]], [self.path("none.db"), *words[1:]]):
            done = self.script("summary.py", *broken, self.path("no.db"))
            self.assertEqual(done.returncode, 1)
            self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
            self.assertFalse(os.path.exists(self.path("no.db")))
        self.assertFalse(os.path.exists(self.path("none.db")))

    def answers_a_page(self):
        page = self.path("page.md")
        with open(os.path.join(ROOT, "docs", "reproduction.md"), encoding="utf-8") as f:
            text = f.read()
        os.mkdir(self.path("page"))
        shutil.copy(self.path("out", "summary.db"), self.path("page", "try.db"))
        filled = []
        for _ in range(2):
            with open(page, "w", encoding="utf-8") as f:
                f.write(filled[-1] if filled else text)
            done = self.script("page.py", "--page", page)
            self.assertEqual(done.returncode, 0, done.stderr)
            with open(page, encoding="utf-8") as f:
                filled.append(f.read())
        self.assertEqual(filled[0], filled[1])
        queries = re.findall(r"```sql\n(.*?)```\n\n<!-- answers -->\ntry:\n\n```\n(.*?)```\n<!-- end -->", filled[0], re.S)
        self.assertEqual(len(queries), text.count("```sql"))
        self.assertGreater(len(queries), 9)
        self.assertIn("![try](page/try.svg)", filled[0])
        with open(self.path("page", "try.svg")) as f:
            picture = f.read()
        self.assertEqual([picture.count(f">seed{n}-mha<") for n in (1, 2)], [2, 0])
        answer = next(answer for sql, answer in queries if "of_seeds" not in sql and "most_norm" in sql).splitlines()
        self.assertEqual(len(answer), 7)
        head, first = (line.split() for line in answer[:2])
        losses = self.ask(("runs", first[0], "run.db"), "SELECT loss, grad_norm FROM train_metrics ORDER BY step")
        want = {"training": statistics.fmean(x for x, _ in losses[-50:]), "most_norm": max(x for _, x in losses[2:]),
                "most_rise": max(losses[i][0] - statistics.fmean(x for x, _ in losses[max(0, i - 20):i]) for i in range(2, 100))}
        for name, value in want.items():
            self.assertAlmostEqual(float(first[head.index(name)]), value, delta=1e-3)

    def test_a_time_limit_stops_it(self):
        self.prepared()
        begun = time.monotonic()
        done = self.run_all("--data", ".", "--minutes", "0.05", steps=1000000, code=75)
        self.assertLess(time.monotonic() - begun, 40)
        self.assertIn("the same line goes on", done.stderr)
        self.assertEqual(self.ask(("runs", "seed1-mha", "run.db"), "SELECT status FROM runs"), [("interrupted",)])
        self.assertEqual(len(glob.glob(self.path("out", "runs", "*", "run.db"))), 1)


class Around(ReproduceTest):
    def test_bad_input_is_refused_in_one_line(self):
        self.prepared()
        os.mkdir(self.path("empty"))
        for code, says, arguments in (
                (64, "--nothing", ("--nothing",)), (64, "--seeds wants a value", ("--seeds",)), (64, "not '1'", ("--seeds", "1")),
                (64, "not 'x'", ("--seeds", "x")), (64, "not '-1'", ("--minutes", "-1")), (64, "no study 'huge'", ("--study", "huge")),
                (64, "no study '../configs/tiny'", ("--study", "../configs/tiny")), (66, "none.txt", ("--text", "none.txt")),
                (66, "dataset.json", ("--data", "empty")), (66, "dataset.json", ("--data", "none")),
                (64, "not both", ("--data", ".", "--text", "dataset.json"))):
            done = self.script("run", "--folder", "out", *arguments)
            self.assertEqual(done.returncode, code, done.stderr)
            self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
            self.assertIn(says, done.stderr)
            self.assertEqual(done.stdout, "")
        self.assertFalse(os.path.exists(self.path("out")))
        done = self.script("run", "--data", ".", "--study", "tiny", "--folder", "out", "--variants", "mha,gqa")
        self.assertEqual(done.returncode, 78, done.stderr)
        self.assertIn("gqa", done.stderr)
        shown = self.script("run", "--help")
        self.assertEqual((shown.returncode, shown.stderr), (0, ""))
        self.assertLessEqual(len(shown.stdout.splitlines()), 24)

    def test_the_text_is_what_packages_hold(self):
        root = self.path("root")
        want = b""
        for path, text in (("usr/share/dictd/gcide.dict.dz", b"a\n"), ("usr/share/dictd/vera.dict.dz", b"b\n"),
                           ("usr/share/doc/anarchism/markdown/secB.md.gz", b"d\n"), ("usr/share/doc/anarchism/markdown/secA.md.gz", b"c\n")):
            os.makedirs(os.path.dirname(os.path.join(root, path)), exist_ok=True)
            with gzip.open(os.path.join(root, path), "wb") as f:
                f.write(text)
        for path, text in (("usr/share/games/fortunes/art", b"e\n"), ("usr/share/games/fortunes/art.dat", b"no\n"),
                           ("usr/share/perl/5.36.0/pod/perl.pod", b"f\n")):
            os.makedirs(os.path.dirname(os.path.join(root, path)), exist_ok=True)
            with open(os.path.join(root, path), "wb") as f:
                f.write(text)
        os.symlink("5.36.0", os.path.join(root, "usr", "share", "perl", "5.36"))
        done = self.script("text", root)
        self.assertEqual((done.returncode, done.stdout), (0, "a\nb\nc\nd\ne\nf\n"))
        self.assertIn("4  anarchism\n", done.stderr)
        self.assertEqual(self.script("text", "--x").returncode, 64)
        self.assertEqual(self.script("text", self.path("nowhere")).returncode, 66)

    def test_the_page_has_the_answers_of_its_databases(self):
        folder, page = os.path.join(ROOT, "docs", "reproduction"), self.path("reproduction.md")
        shutil.copy(folder + ".md", page)
        if os.path.isdir(folder):
            shutil.copytree(folder, self.path("reproduction"))
        done = self.script("page.py", "--page", page)
        self.assertEqual(done.returncode, 0, done.stderr)
        with open(page) as made, open(folder + ".md") as kept:
            self.assertEqual(made.read(), kept.read())


class Beside(ReproduceTest):
    def test_the_peer_reaches_the_same_losses(self):
        python = os.environ.get("PEER_PYTHON", sys.executable)
        if subprocess.run([python, "-c", "import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, ('numpy', 'torch'))))"]).returncode:
            self.skipTest(f"skipped: {python} has no PyTorch and NumPy")
        self.prepared(train=6000, validation=600)
        self.environment.update(OMP_NUM_THREADS="1", PEER_PYTHON=python)
        words = ("--data", ".", "--size", "tiny", "--steps", "5", "--batch", "2", "--variants", "mla-decoupled", "--folder", "out")
        done = self.script("beside-pytorch", *words, "--limit", "1e-5")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        said = json.loads(done.stdout)
        self.assertEqual(said["steps"], 5)
        validated = self.ask(("mla-decoupled", "run", "run.db"), "SELECT count(*) FROM eval_metrics WHERE split = 'validation'")
        self.assertEqual(validated, [(5,)])
        self.assertLess(said["last_validation"], said["first_loss"])
        with sqlite3.connect(self.path("out", "mla-decoupled", "run", "run.db")) as db:
            db.execute("UPDATE eval_metrics SET loss = 1.01 * loss WHERE step = 3")
        db.close()
        done = self.script("beside-pytorch", *words)  # nothing is trained again
        self.assertEqual(done.returncode, 1, done.stderr)
        said = json.loads(done.stdout)
        self.assertAlmostEqual(said["validation_difference"], 0.01, places=4)
        self.assertEqual(said["validation_at_step"], 3)
        for code, bad in ((64, ("--steps", "0")), (64, ("--size", "7b")), (64, ("--x",)), (66, ("--data", "out"))):
            done = self.script("beside-pytorch", *words, *bad)
            self.assertEqual((done.returncode, done.stdout), (code, ""), done.stderr)


if __name__ == "__main__":
    unittest.main()
