"""End to end: the singular values in `bulkhead report`'s page against the blobs of the database, and its slider in Chromium."""
import array
import json
import math
import os
import random
import sqlite3
import statistics
import unittest

import browser
from report_page import ReportTest, codes

LOW, BINS, HEADS = 1e-3, 64, 6
EDGES = ("mp_lambda_minus", "mp_lambda_plus", "null_edge", "null_edge95", "tw_score")


class Spectra(ReportTest):
    def with_values(self, name, layers=2, snapshots=4, rank=16, heads=5, seed=0):
        """A database with made-up singular values of every head, some of them missing or useless."""
        rng = random.Random(seed)
        db = self.long_run(name, layers, 0, 20, seed)
        db.execute("UPDATE matrices SET rows = ?, cols = ?", (rank, rank + 3))
        for snapshot in range(1, snapshots + 1):
            db.execute("INSERT INTO snapshots(snapshot_id, run_id, step, status) VALUES(?, 1, ?, 'done')", (snapshot, 30 * snapshot - 30))
            for matrix, in db.execute("SELECT matrix_id FROM matrices ORDER BY matrix_id").fetchall():
                values = sorted((rng.lognormvariate(0, 1.5) for _ in range(rank)), reverse=True)
                spoilt = rng.random()
                if spoilt < 0.05:
                    values = [0.0] * rank
                elif spoilt < 0.1:
                    values[0] = math.inf
                elif spoilt < 0.15:
                    values += [1e-9]  # one more than the matrix has
                elif spoilt < 0.3:
                    values[-1] = 0.0
                value = lambda scale: None if rng.random() < 0.1 else rng.random() * scale
                db.execute("INSERT INTO esd VALUES(?, ?, ?, ?)", (snapshot, matrix, len(values), array.array("d", values).tobytes()))
                if spoilt < 0.9:
                    db.execute(f"INSERT INTO spectra(snapshot_id, matrix_id, {', '.join(EDGES)}, status) VALUES(?, ?, ?, ?, ?, ?, ?, 'ok')",
                               (snapshot, matrix, *(value(40) for _ in EDGES)))
        db.commit()
        self.addCleanup(db.close)
        return db

    def rows(self, db, form="score", part="full"):
        """{step: {(layer, head): (x descending, edges over mean lambda)}}, from the blobs."""
        found = {}
        for step, layer, head, rank, blob, *edges in db.execute(
                f"SELECT step, layer, head, min(rows, cols), singular_values, {', '.join(EDGES)} FROM esd JOIN snapshots USING(snapshot_id)"
                " JOIN matrices m USING(matrix_id) LEFT JOIN spectra USING(snapshot_id, matrix_id)"
                " WHERE form = ? AND part = ? AND scope = 'head' ORDER BY step", (form, part)):
            at = found.setdefault(step, {})
            s = array.array("d", blob)
            mean = math.fsum(x * x for x in s) / len(s)
            if len(s) <= rank and 0 < mean < math.inf:
                edges = [e if e is None or name == "tw_score" else e / mean for name, e in zip(EDGES, edges)]
                at[layer, head] = [x * x / mean for x in s], edges
        return found

    def close_to(self, decoded, i, want):
        got, half = decoded
        self.assertEqual(got[i] is None, want is None, (i, got[i], want))
        if want is not None:
            self.assertLessEqual(abs(got[i] - want), half + 1e-9 * abs(want))

    def check(self, db, run, form="score", part="full"):
        esd, rows = run["esd"], self.rows(db, form, part)
        layers, rank = len(run["spectra"]["heads"]), db.execute(
            "SELECT max(min(rows, cols)) FROM matrices WHERE form = ? AND part = ? AND scope = 'head'", (form, part)).fetchone()[0]
        self.assertEqual((esd["stored"], esd["low"], esd["high"]), (len(rows), LOW, rank))
        width = math.log(rank / LOW) / BINS
        clamped = lambda x: math.log(max(x, LOW))
        shares, edges_of = codes(esd["shares"]), {name: codes(esd["edges"][name]) for name in EDGES}
        for k, step in enumerate(esd["steps"]):
            for layer in range(layers):
                heads = [v for (at, _), v in rows[step].items() if at == layer]
                values = [x for xs, _ in heads for x in xs]
                inside = [min(BINS - 1, int((clamped(x) - math.log(LOW)) / width)) for x in values]
                for bin in range(BINS):
                    self.close_to(shares, (k * layers + layer) * BINS + bin, inside.count(bin) / len(values) if values else None)
                for i, name in enumerate(EDGES):
                    known = [edges[i] for _, edges in heads if edges[i] is not None]
                    self.close_to(edges_of[name], k * layers + layer, statistics.median(known) if known else None)
        scores = {}
        for head, score in db.execute("SELECT layer * 1000 + head, max(tw_score) FROM esd JOIN snapshots USING(snapshot_id) JOIN matrices"
                                      " USING(matrix_id) LEFT JOIN spectra USING(snapshot_id, matrix_id) WHERE form = ? AND part = ? AND"
                                      f" scope = 'head' AND step IN ({', '.join(map(str, esd['steps']))}) GROUP BY 1", (form, part)):
            scores[divmod(head, 1000)] = -math.inf if score is None else score
        chosen = [(h["layer"], h["head"]) for h in esd["heads"]]
        self.assertEqual(len(chosen), min(HEADS, len(scores)))
        self.assertEqual([scores[h] for h in chosen], sorted(scores.values(), reverse=True)[:HEADS])
        for head in esd["heads"]:
            decoded = codes(head["values"])
            for k, step in enumerate(esd["steps"]):
                values, edges = rows[step].get((head["layer"], head["head"]), ([], [None] * len(EDGES)))
                for i in range(rank):
                    self.close_to(decoded, k * rank + i, clamped(values[i]) if i < len(values) else None)
                for name, edge in zip(EDGES, edges):
                    self.close_to(codes(head["edges"][name]), k, edge)
        return esd

    def test_what_is_stored_is_in_the_page(self):
        esd = self.check(self.with_values("a.db", seed=random.randrange(10 ** 6)), self.made(self.path("a.db")).runs[0])
        self.assertEqual(esd["steps"], [0, 30, 60, 90])
        run = self.a_run("real", attention=dict(variant="mla-decoupled"), diagnostics=dict(every=1, esd_every=2))
        with sqlite3.connect(os.path.join(run, "run.db")) as db:
            for form, part in (("score", "full"), ("score", "rope"), ("channel", "content")):
                esd = self.check(db, self.made(run, options=("--form", form, "--part", part)).runs[0], form, part)
                self.assertEqual(esd["steps"], [0, 2, 4, 6])
        db.close()

    def test_many_are_thinned_to_a_budget(self):
        db = self.with_values("many.db", layers=24, snapshots=160, heads=5)
        esd = self.check(db, self.made(self.path("many.db")).runs[0])
        n = len(esd["steps"])
        self.assertTrue(20 < n < 100, n)
        self.assertEqual(esd["steps"], [30 * (i * 159 // (n - 1)) for i in range(n)])
        for i in range(40):
            db.execute("UPDATE runs SET uuid = ?", (f"copy {i}",))
            db.commit()
            with sqlite3.connect(self.path(f"copy-{i}.db")) as copy:
                db.backup(copy)
            copy.close()
        page = self.made(*(self.path(f"copy-{i}.db") for i in range(40)), options=["--no-findings"])
        self.assertLess(sum(len(json.dumps(run["esd"])) for run in page.runs), 2600000)
        self.assertEqual({run["esd"]["steps"][-1] for run in page.runs}, {159 * 30})

    def text(self, chromium, selector):
        return chromium.value(f"document.querySelector('{selector}').textContent")

    def test_the_slider_moves_and_values_are_read(self):
        if not browser.CHROMIUM:
            print("skipped: no chromium on this machine")
            self.skipTest("no chromium")
        db = self.with_values("a.db", rank=24, seed=3)
        page = self.made(self.path("a.db"))
        run, rows = page.runs[0], self.rows(db)
        chromium = browser.Browser()
        self.addCleanup(chromium.close)
        chromium.open(self.path("page.html"))
        first = run["esd"]["heads"][0]
        name = f"layer {first['layer']}, head {first['head']}, step "
        self.assertIn(name + "90", self.text(chromium, "#densities figcaption"))
        drawn = self.text(chromium, "#densities svg"), chromium.value("document.querySelector('#densities .density').getAttribute('d')")
        chromium.value("document.getElementById('stored').focus()")
        for step in (60, 30, 0, 0):  # the slider's own keys
            chromium.press("ArrowLeft", 37)
            self.assertEqual(self.text(chromium, "#storedstep"), f"step {step}")
            self.assertIn(f"step {step}", self.text(chromium, "#densities figcaption") + self.text(chromium, "#densities figure"))
        self.assertNotEqual(drawn[1], chromium.value("document.querySelector('#densities .density')?.getAttribute('d')"))
        chromium.press("ArrowRight", 39)

        # All heads of layer 1 at step 30: every bin says its share, by keys and by the pointer.
        self.choose(chromium, "spectrum", "layer 1")
        values = [x for (layer, _), (xs, _) in rows[30].items() if layer == 1 for x in xs]
        bins = 32 if 5 * 24 >= 128 else 16
        width = math.log(24 / LOW) / bins
        left, top, across, height = chromium.value("(() => { const c = document.querySelector('#densities .plot svg');"
                                                   " c.scrollIntoView(); const b = c.getBoundingClientRect(); return [b.left, b.top, b.width, b.height]; })()")
        half = codes(run["esd"]["shares"])[1]
        for bin in range(bins):
            inside = sum(min(bins - 1, int(math.log(max(x, LOW) / LOW) / width)) == bin for x in values)
            chromium.point(left + across * (62 + 560 * (bin + 0.5) / bins) / 640, top + height / 2)
            said = self.text(chromium, "#densities output")
            self.assertTrue(said.startswith("λ/mean λ "), said)
            start, end = (float(w) for w in (said.split()[2], said.split()[4].rstrip(":")))
            self.assertAlmostEqual(start, 0 if bin == 0 else LOW * math.exp(bin * width), delta=0.006 * start)
            self.assertAlmostEqual(end, LOW * math.exp((bin + 1) * width), delta=0.006 * end)
            self.assertAlmostEqual(float(said.split(": ")[1].split("%")[0]), 100 * inside / len(values), delta=100 * half * 64 / bins + 0.01)
        chromium.value("document.querySelector('#densities .plot').focus()")
        chromium.press("ArrowLeft")
        self.assertIn(f"λ/mean λ {float(f'{LOW * math.exp((bins - 2) * width):.3g}'):g} to ", self.text(chromium, "#densities output"))

        # Marchenko and Pastur's share of a bin, by a sum over the law itself.
        said = chromium.value("(() => { const f = { esd: { low: 1e-3, high: 24 }, bins: 16, edges: { mp_lambda_minus: 0.5, mp_lambda_plus: 6 } };"
                              " return [...Array(16).keys()].map((bin) => expected(f, bin)); })()")
        law = lambda x: math.sqrt(max(0, (6 - x) * (x - 0.5))) / (2 * math.pi * x * ((math.sqrt(6) - math.sqrt(0.5)) / 2) ** 2)
        for bin, share in enumerate(said):
            a, b = (LOW * math.exp((bin + i) * math.log(24 / LOW) / 16) for i in (0, 1))
            self.assertAlmostEqual(share, sum(law(a + (b - a) * (i + 0.5) / 4000) for i in range(4000)) * (b - a) / 4000, delta=2e-3)
        self.assertAlmostEqual(sum(said), 1, delta=5e-3)
        self.assertEqual(len(self.run_query(chromium, "#densities figure")), 4 * 5)
        self.assertEqual(chromium.complaints, [])


if __name__ == "__main__":
    unittest.main()
