"""What the tests of `bulkhead report` share: its page's data, made-up databases, its queries."""
import array
import base64
import csv
import html.parser
import io
import json
import math
import os
import random
import shlex
import sqlite3
import subprocess

from harness import BULKHEAD, RunTest

HERE = os.path.dirname(os.path.abspath(__file__))
COLUMNS = ("effective_rank", "effective_rank_rest", "stable_rank", "outlier_energy", "mp_gap", "null_gap", "tw_score",
           "top_overlap")
HOSTILE = "a\"b'c </script><script>window.broken=1</script> <!-- ü \x01\x1b \u2028 & \\"


class Page(html.parser.HTMLParser):
    """The page's data, and its tags in order."""

    def __init__(self, path):
        super().__init__(convert_charrefs=True)
        self.tags, self.inside, self.text, self.addresses = [], False, "", []
        with open(path, encoding="utf-8") as f:
            self.source = f.read()
        self.feed(self.source)
        self.data = json.loads(self.text)
        self.runs = self.data["runs"]

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.inside = dict(attributes).get("id") == "data"
        self.addresses += [value for key, value in attributes if key in ("src", "href")]

    def handle_data(self, data):
        self.text += data if self.inside else ""

    def handle_endtag(self, tag):
        self.inside = False


def floats(text):
    return [None if math.isnan(x) else x for x in array.array("f", base64.b64decode(text))]


def codes(values):
    """Each value, or None, and half a code."""
    low, high = values["low"], values["high"]
    return [None if c == 0 else low + (c - 1) * (high - low) / 254 for c in base64.b64decode(values["codes"])], \
        (high - low) / 508 * (1 + 1e-9)


def bins(steps):
    """The steps by bin, by the same rule: equal numbers of rows."""
    count = min(200, len(steps))
    found = [[] for _ in range(count)]
    for i, step in enumerate(steps):
        found[i * count // len(steps)].append(step)
    return found


class ReportTest(RunTest):
    def report(self, *arguments, code=0, says=()):
        done = self.bulkhead("report", *arguments)
        self.assertEqual(done.returncode, code, done.stderr)
        for word in says:
            self.assertIn(word, done.stdout + done.stderr)
        if code:
            self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
            self.assertEqual(done.stdout, "")
        return done

    def made(self, *databases, options=()):
        self.report(*databases, "-o", self.path("page.html"), *options)
        return Page(self.path("page.html"))

    def a_run(self, name="run", **sections):
        self.dataset()
        self.train(2, self.config(**sections), name, "train.eval_every=2").close()
        return self.path(name)

    def long_run(self, name, layers, snapshots, steps, seed=0):
        """A database with the schema of a real one, filled with random values, a fifth of them NULL."""
        rng = random.Random(seed)
        if not os.path.exists(self.path("run")):
            self.a_run()
        db = sqlite3.connect(self.path(name))
        with sqlite3.connect(self.path("run", "run.db")) as small:
            small.backup(db)
        for table in ("snapshots", "matrices", "spectra", "layer_spectra", "train_metrics", "eval_metrics", "events"):
            db.execute(f"DELETE FROM {table}")
        value = lambda scale: None if rng.random() < 0.2 else rng.gauss(0, 1) * scale
        db.execute("UPDATE runs SET uuid = ?, name = ?", (f"{name}-{seed}", name))
        db.executemany("INSERT INTO train_metrics(run_id, step, loss, grad_norm) VALUES(1, ?, ?, ?)",
                       ((s, value(1), value(5)) for s in range(1, steps + 1)))
        db.executemany("INSERT INTO snapshots(run_id, step, status) VALUES(1, ?, ?)",
                       ((s * 10, "dropped" if s % 7 == 3 else "done") for s in range(snapshots)))
        db.executemany("INSERT INTO matrices(run_id, form, part, scope, layer, head, tensor, rows, cols)"
                       " VALUES(1, 'score', 'full', 'head', ?, ?, '', 8, 8)",
                       ((layer, head) for layer in range(layers) for head in range(5)))
        db.executemany(
            f"INSERT INTO layer_spectra(run_id, form, part, stat, step, layer, {', '.join(COLUMNS)})"
            f" VALUES(1, 'score', 'full', ?, ?, ?{', ?' * 8})",
            ((stat, s * 10, layer, *(value(10.0 ** c) for c in range(8)))
             for stat in ("max", "median") for s in range(snapshots) if s % 7 != 3 for layer in range(layers)))
        db.commit()
        return db

    def from_sql(self, path=None):
        """A database as the first version of the schema had it, plain.db or path."""
        with open(os.path.join(HERE, "..", "golden", "rundb-1.sql"), encoding="utf-8") as f:
            db = sqlite3.connect(path or self.path("plain.db"))
            db.executescript(f.read())
            db.close()

    def run_query(self, chromium, plot):
        """The query of the first such plot, run by a shell; its rows."""
        command = chromium.value(f"document.querySelector('{plot} pre code').textContent")
        self.assertEqual(shlex.split(command)[:2], ["bulkhead", "query"])
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60,
                              env=dict(os.environ, PATH=f"{os.path.dirname(BULKHEAD)}:{os.environ['PATH']}"))
        self.assertEqual(done.returncode, 0, done.stderr)
        return list(csv.DictReader(io.StringIO(done.stdout)))

    def choose(self, chromium, name, value):
        chromium.value(f"(() => {{ const c = document.getElementById('{name}'); c.value = '{value}';"
                       " c.dispatchEvent(new Event('change')); })()")
