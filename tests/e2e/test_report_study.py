"""End to end: what `bulkhead report` shows of a study: findings as `bulkhead findings` has them, onsets on the maps, means over
seeds; and that its plots and queries can be taken along."""
import json
import os
import random
import re
import sqlite3
import statistics
import struct
import time
import unittest
import xml.etree.ElementTree as ElementTree

import browser
import findings_data as data
from report_page import ReportTest, codes, floats


class Study(ReportTest):
    def study(self, name, runs, seed=1):
        """A database with all tables: made-up heads for the findings, random layers and losses for the rest."""
        rng = random.Random(seed)
        self.from_sql(self.path(name))
        data.write(self.path(f"heads-{name}"), runs)
        db = sqlite3.connect(self.path(name))
        self.addCleanup(db.close)
        for table, in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table' AND name <> 'meta'").fetchall():
            db.execute(f"DELETE FROM {table}")
        db.execute("ATTACH ? AS heads", (self.path(f"heads-{name}"),))
        for table in ("runs", "params", "snapshots", "matrices", "spectra", "nulls", "eval_metrics"):
            columns = ", ".join(row[1] for row in db.execute(f"PRAGMA heads.table_info({table})"))
            db.execute(f"INSERT INTO main.{table}({columns}) SELECT {columns} FROM heads.{table}")
        for run_id, run in enumerate(runs, 1):
            db.executemany("INSERT INTO train_metrics(run_id, step, loss, grad_norm) VALUES(?, ?, ?, ?)",
                           ((run_id, s, 4 - s / 100 + rng.gauss(0, 0.1), rng.lognormvariate(0, 1)) for s in range(1, 31)))
            db.executemany("INSERT INTO layer_spectra(run_id, form, part, stat, step, layer, stable_rank) VALUES(?, 'score', 'full', ?, ?, ?, ?)",
                           ((run_id, stat, int(step), layer, rng.gauss(8, 2) if rng.random() < 0.9 else None)
                            for stat in ("max", "median") for step in run["steps"] for layer in range(run["layers"])))
        db.commit()
        return self.path(name)

    def runs(self, seeds, variants=("mha", "mla-prerope", "mla-decoupled"), seed=5):
        rng = data.np.random.default_rng(seed)
        runs = [data.noise_run(rng, v, s, layers=4, heads=2) for v in variants for s in range(1, seeds + 1)]
        for run in runs:
            for layer in range(4) if run["variant"] != "mla-decoupled" else ():
                if rng.random() < 0.8:
                    data.plant(run, layer, int(rng.integers(2)), int(rng.integers(3, 9)) + layer)
        return runs

    def judged(self, *arguments):
        return json.loads(self.bulkhead("findings", *arguments, "--json").stdout)

    def page_in(self, chromium, *databases, options=()):
        page = self.made(*databases, options=options)
        chromium.open(self.path("page.html"))
        return page

    def a_browser(self):
        if not browser.CHROMIUM:
            print("skipped: no chromium on this machine")
            self.skipTest("no chromium")
        chromium = browser.Browser()
        self.addCleanup(chromium.close)
        return chromium

    def cells(self, chromium, selector):
        return chromium.value(f"[...document.querySelectorAll('{selector} tr')].map((r) => [...r.cells].map((c) => c.textContent))")

    def test_the_findings_are_those_of_findings(self):
        many, one = self.study("many.db", self.runs(6)), self.study("one.db", self.runs(1, ["mha"]))
        for databases, options in (([many], []), ([one, many], ["--theta", "2.5", "--alpha", "0.01"]), ([one], [])):
            page = self.made(*databases, options=options)
            self.assertEqual(page.data["findings"], self.judged(*databases, *options))
            self.assertEqual([run["run"] for run in page.data["findings"]["runs"]], [run["name"] for run in page.runs])
        self.assertIsNone(self.made(many, options=["--no-findings"]).data["findings"])
        self.assertIn("--theta", self.report(many, "-o", "x.html", "--theta", "1", code=64).stderr)
        self.assertIn("--alpha", self.report(many, "-o", "x.html", "--alpha", "2", code=64).stderr)

    def test_verdicts_are_said(self):
        chromium = self.a_browser()
        page = self.page_in(chromium, self.study("many.db", self.runs(6)))
        rows = self.cells(chromium, "#verdicts > .whole tbody")
        self.assertEqual(len(rows), len(page.data["findings"]["findings"]))
        tested = 0
        for row, f in zip(rows, page.data["findings"]["findings"]):
            self.assertEqual(row[:3], [f["finding"], f["variant"], f["verdict"]])
            for cell, key in ((row[3], "p"), (row[4], "p_holm")):
                numbers = [float(n.split(": ")[-1]) for n in cell.split("; ") if n != "–"]
                self.assertEqual(len(numbers), len(f["tests"]))
                for number, test in zip(numbers, f["tests"]):
                    self.assertAlmostEqual(number, test[key], delta=6e-4 * test[key])
                tested += len(numbers)
            for key, value in f["numbers"].items():
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    said = re.search(rf"(?:^|; ){re.escape(key.replace('_', ' '))}: (-?[0-9.e-]+)", row[5])
                    self.assertIsNotNone(said, (key, row[5]))
                    self.assertAlmostEqual(float(said[1]), value, delta=6e-4 * abs(value))
            self.assertIn(f["reason"] or "", row[5])
        self.assertGreater(tested, 5)
        self.assertEqual(chromium.value("document.querySelectorAll('#verdicts path.median').length"), 3)
        self.assertIsNone(chromium.value("document.getElementById('more-runs')"))
        details = chromium.value("document.querySelectorAll('#verdicts details > summary').length")
        self.assertGreater(details, 9)

        self.page_in(chromium, self.study("one.db", self.runs(1)))
        self.assertIn("propagation, coincidence, prevented", chromium.value("document.getElementById('more-runs').textContent"))
        self.assertEqual(sum(row[2] == "undetermined" and "1 seeds of at least 6" in row[5] for row in self.cells(chromium, "#verdicts > .whole tbody")), 7)
        self.page_in(chromium, self.path("one.db"), options=["--no-findings"])
        self.assertIn("--no-findings", chromium.value("document.getElementById('verdicts').textContent"))
        self.assertEqual(chromium.complaints, [])

    def test_onsets_are_marked(self):
        chromium = self.a_browser()
        runs = self.runs(2)
        runs[1]["recorded"][0] = False  # its start is unknown: it is not judged, and has no mark
        page = self.page_in(chromium, self.study("a.db", runs), options=["--columns", "stable_rank"])
        marks = chromium.value("[...document.querySelectorAll('#maps figure')].map((f) => f.querySelectorAll('.onset').length)")
        want = [sum(s is not None for s in run.get("steps_by_layer", [])) for run in page.data["findings"]["runs"]]
        self.assertEqual(marks, want)
        self.assertEqual((want[1], want[4:]), (0, [0, 0]))
        self.assertGreater(want[0], 0)
        # Every cell of the first map, by keys: those with an onset say so, and no others do.
        chromium.value("document.querySelector('#maps .plot').focus()")
        chromium.press("ArrowRight")
        judged, told = page.data["findings"]["runs"][0], {}
        for layer in range(4):
            for k in range(31):
                said = chromium.value("document.querySelector('#maps output').textContent")
                self.assertTrue(said.startswith(f"layer {layer}, step {10 * k}: "), said)
                found = re.search(r"onset at step (\d+) in head (\d+)", said)
                if found:
                    self.assertEqual(int(found[1]), 10 * k)
                    told[layer] = int(found[1]), int(found[2])
                chromium.press("ArrowRight")
            chromium.press("ArrowUp")
            for k in range(30):
                chromium.press("ArrowLeft")
        self.assertEqual(told, {layer: (s, judged["heads_by_layer"][layer]) for layer, s in enumerate(judged["steps_by_layer"]) if s is not None})
        self.page_in(chromium, self.path("a.db"), options=["--form", "channel"])
        self.assertEqual(chromium.value("document.querySelectorAll('#maps .onset').length"), 0)
        self.assertEqual(chromium.complaints, [])

    def test_means_and_spread_over_seeds(self):
        chromium = self.a_browser()
        runs = self.runs(3, ["mha", "mla-decoupled"])
        path = self.study("a.db", runs)
        with sqlite3.connect(path) as db:  # another setting: it is no replicate
            db.execute("INSERT INTO params VALUES(6, 'train.lr', '1')")
            db.executemany("INSERT INTO params VALUES(?, 'run.seed', ?)", ((i, str(i)) for i in range(1, 7)))
        db.close()
        page = self.page_in(chromium, path, options=["--columns", "stable_rank"])
        for over, reduce in (("mean", statistics.mean), ("spread", lambda x: statistics.stdev(x) if len(x) > 1 else None)):
            self.choose(chromium, "over", over)
            self.assertEqual(chromium.value("document.querySelectorAll('#maps canvas').length"), 2)
            for figure, some in ((1, page.runs[:3]), (2, page.runs[3:5])):
                each = [codes(run["spectra"]["values"]["stable_rank"]["median"])[0] for run in some]
                chromium.value(f"(() => {{ const d = document.querySelector('#maps figure:nth-child({figure}) details'); d.open = true;"
                               " d.dispatchEvent(new Event('toggle')); })()")
                rows = self.cells(chromium, f"#maps figure:nth-child({figure}) tbody")
                self.assertEqual(len(rows), 31)
                for bin, row in enumerate(rows):
                    for layer in range(4):
                        known = [values[layer * 31 + bin] for values in each if values[layer * 31 + bin] is not None]
                        want = reduce(known) if known else None
                        self.assertEqual(row[1 + layer] == "–", want is None)
                        if want is not None:
                            self.assertAlmostEqual(float(row[1 + layer]), want, delta=2e-3 * abs(want) + 1e-6)
        self.choose(chromium, "seeds", "mean")
        self.assertEqual(chromium.value("[...document.querySelectorAll('#legend li')].map((l) => l.textContent)"),
                         ["mha, 3 seeds", "mla-decoupled, 2 seeds", "mla-decoupled-3 (mla-decoupled)"])
        self.assertEqual(chromium.value("document.querySelectorAll('#curves figure:first-child .band').length"), 4)
        chromium.value("document.querySelector('#curves .plot').focus()")
        for _ in range(5):
            chromium.press("ArrowRight")
        losses = [floats(run["train"]["values"]["loss"]["median"])[4] for run in page.runs[:3]]
        said = chromium.value("document.querySelector('#curves output').textContent")
        found = re.fullmatch(r"mha, 3 seeds, train: step 5, (\S+) \(mean of 3 seeds, standard deviation (\S+)\), loss \(nats per token\)", said)
        self.assertAlmostEqual(float(found[1]), statistics.mean(losses), delta=1e-3)
        self.assertAlmostEqual(float(found[2]), statistics.stdev(losses), delta=1e-3)
        # Of one seed there is nothing to choose.
        self.page_in(chromium, self.study("one.db", self.runs(1)))
        self.assertEqual(chromium.value("['training-form', 'over-label'].map((id) => getComputedStyle(document.getElementById(id)).display)"), ["none"] * 2)
        self.assertEqual(chromium.complaints, [])

    def kept(self, folder, ending):
        """The one file of that ending in the folder, once it is whole."""
        for _ in range(200):
            names = [name for name in os.listdir(folder) if name.endswith(ending)]
            if names:
                with open(os.path.join(folder, names[0]), "rb") as f:
                    self.addCleanup(os.remove, os.path.join(folder, names[0]))
                    return names[0], f.read()
            time.sleep(0.05)
        self.fail(f"no {ending} came")

    def test_plots_and_queries_can_be_taken_along(self):
        chromium = self.a_browser()
        self.page_in(chromium, self.study("a.db", self.runs(1)), options=["--columns", "stable_rank"])
        folder = self.path("kept")
        os.mkdir(folder)
        chromium.keep_downloads(folder)
        press = lambda label: (chromium.value(f"document.querySelector('#maps button[aria-label^=\"{label}\"]').focus()"), chromium.press("Enter", 13, "\r"))
        press("Save as SVG")
        name, text = self.kept(folder, ".svg")
        self.assertIn("stable-rank", name)
        picture = ElementTree.fromstring(text)
        tags = [node.tag.split("}")[1] for node in picture.iter()]
        self.assertEqual((tags[0], tags.count("image")), ("svg", 1))
        self.assertNotIn(b"var(--", text)
        words = " ".join(node.text or "" for node in picture.iter())
        self.assertIn("mha-1 (mha), stable_rank", words)
        self.assertIn("stable rank (directions): ", words)
        press("Save as PNG")
        name, pixels = self.kept(folder, ".png")
        width, height = struct.unpack(">II", pixels[16:24])
        self.assertEqual((pixels[:8], width), (b"\x89PNG\r\n\x1a\n", 1280))
        self.assertAlmostEqual(width / height, float(picture.get("width")) / float(picture.get("height")), places=2)
        chromium.value("document.addEventListener('copy', () => { window.copied = getSelection().toString(); })")
        press("Copy the query")
        self.assertEqual(chromium.value("window.copied"), chromium.value("document.querySelector('#maps pre code').textContent"))
        self.assertIn("copied", chromium.value("document.querySelector('#maps output').textContent"))
        self.assertEqual({row["run"] for row in self.run_query(chromium, "#maps figure:nth-child(2)")}, {"mla-prerope-1"})
        self.assertEqual(chromium.complaints, [])


if __name__ == "__main__":
    unittest.main()
