"""End to end: `bulkhead report` against SQL on the same database, and its page in a headless Chromium."""
import json
import os
import sqlite3
import statistics
import unittest

import browser
from report_page import COLUMNS, HOSTILE, ReportTest, bins, codes, floats


class Report(ReportTest):
    def check_series(self, series, steps):
        binned = bins(steps)
        self.assertEqual(series["first"], [b[0] for b in binned])
        self.assertEqual(series["last"], [b[-1] for b in binned])
        self.assertEqual(series["rows"], [len(b) for b in binned])
        return binned

    def check_metrics(self, db, series, sql, names):
        rows = db.execute(sql).fetchall()
        binned = self.check_series(series, [row[0] for row in rows])
        self.assertEqual(list(series["values"]), names)
        at = {row[0]: row[1:] for row in rows}
        for i, name in enumerate(names):
            for stat, reduce in (("median", statistics.median), ("max", max)):
                got = floats(series["values"][name][stat])
                self.assertEqual(len(got), len(binned))
                for x, steps in zip(got, binned):
                    values = [at[s][i] for s in steps if at[s][i] is not None]
                    want = reduce(values) if values else None
                    self.assertEqual(x is None, want is None)
                    if want is not None:
                        self.assertLessEqual(abs(x - want), 2 ** -24 * abs(want) + 1e-45)

    def check_spectra(self, db, spectra, form, part, columns):
        binned = self.check_series(spectra, [s for s, in db.execute("SELECT step FROM snapshots ORDER BY step")])
        heads = db.execute("SELECT count(*) FROM matrices WHERE form = ? AND part = ? AND scope = 'head'"
                           " GROUP BY layer ORDER BY layer", (form, part)).fetchall()
        self.assertEqual(spectra["heads"], [n for n, in heads])
        self.assertEqual(list(spectra["values"]), list(columns))
        gaps = 0
        for column in columns:
            for stat, reduce in (("median", statistics.median), ("max", max)):
                got, half = codes(spectra["values"][column][stat])
                self.assertEqual(len(got), len(heads) * len(binned))
                rows = {(layer, step): x for layer, step, x in db.execute(
                    f"SELECT layer, step, {column} FROM layer_spectra WHERE form = ? AND part = ? AND stat = ?",
                    (form, part, stat))}
                for layer in range(len(heads)):
                    for bin, steps in enumerate(binned):
                        values = [rows[layer, s] for s in steps if rows.get((layer, s)) is not None]
                        x, want = got[layer * len(binned) + bin], reduce(values) if values else None
                        self.assertEqual(x is None, want is None, f"{column} of layer {layer}, steps {steps}")
                        if want is None:
                            gaps += 1
                        else:
                            self.assertLessEqual(abs(x - want), half + 1e-12 * abs(want))
        return gaps

    def check_run(self, path, run, form="score", part="full", columns=COLUMNS):
        db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        self.addCleanup(db.close)
        self.check_metrics(db, run["train"], "SELECT step, loss, grad_norm FROM train_metrics ORDER BY step",
                           ["loss", "grad_norm"])
        self.check_metrics(db, run["validation"], "SELECT step, loss FROM eval_metrics WHERE split = 'validation'"
                           " ORDER BY step", ["loss"])
        self.assertEqual(run["params"], [list(row) for row in db.execute("SELECT key, value FROM params ORDER BY key")])
        name = db.execute("SELECT name, variant, status, seed FROM runs").fetchone()
        self.assertEqual((run["name"], run["variant"], run["status"], run["seed"]), name)
        return self.check_spectra(db, run["spectra"], form, part, columns)

    def test_the_page_says_what_the_database_says(self):
        run = self.a_run(attention=dict(variant="mla-decoupled"))
        with sqlite3.connect(os.path.join(run, "run.db")) as db:
            db.execute("UPDATE layer_spectra SET effective_rank = NULL WHERE step = 2 AND layer = 1")
            db.execute("UPDATE layer_spectra SET mp_gap = 9e999 WHERE step = 4 AND layer = 0")
            db.execute("UPDATE train_metrics SET loss = NULL WHERE step = 3")
            db.execute("DELETE FROM layer_spectra WHERE step = 4 AND layer = 1")
            db.execute("INSERT INTO events VALUES(1, 9, 9, 4, 'now', 'warn', 'drop', 'a message')")
        db.close()
        page = self.made(run)
        self.assertEqual(page.data["request"]["columns"], list(COLUMNS))
        with sqlite3.connect(os.path.join(run, "run.db")) as db:
            db.execute("UPDATE layer_spectra SET mp_gap = NULL WHERE step = 4 AND layer = 0")  # infinity is no value
        db.close()
        self.assertGreater(self.check_run(os.path.join(run, "run.db"), page.runs[0]), 10)
        self.assertIn([4, "now", "warn", "drop", "a message"], page.runs[0]["events"])
        self.assertEqual(page.runs[0]["events_total"], len(page.runs[0]["events"]))
        page = self.made(run, options=("--part", "rope", "--columns", "alpha,lambda_max"))
        self.check_run(os.path.join(run, "run.db"), page.runs[0], part="rope", columns=("alpha", "lambda_max"))
        self.assertEqual(self.made(run, options=("--form", "channel", "--part", "content")).data["request"]["part"],
                         "content")

    def test_many_steps_become_bins(self):
        """1,000 snapshots of 24 layers take 115 kB, so 100 such runs less than 15 MB."""
        db = self.long_run("long.db", 24, 1000, 4321)
        db.executemany("INSERT INTO events VALUES(1, 1, ?, ?, 'now', ?, 'kind', 'text')",
                       ((i, i, "warn" if i % 100 == 50 else "info") for i in range(700)))
        db.commit()
        db.close()
        page = self.made(self.path("long.db"))
        self.check_run(self.path("long.db"), page.runs[0])
        self.assertLess(len(json.dumps(page.runs[0])), 150000)
        events = page.runs[0]["events"]
        self.assertEqual((len(events), page.runs[0]["events_total"]), (200, 700))
        self.assertEqual([e[0] for e in events if e[2] == "warn"], [50, 150, 250, 350, 450, 550, 650])
        self.assertEqual(events, sorted(events))

    def test_several_databases_and_a_merged_one(self):
        for name, seed in (("a.db", 1), ("b.db", 2)):
            self.long_run(name, 2, 12, 30, seed).close()
        a, b, all = (self.path(name) for name in ("a.db", "b.db", "all.db"))
        self.assertEqual(self.bulkhead("merge", a, b, "-o", all).returncode, 0)
        apart, merged = self.made(a, b).runs, self.made(all).runs
        for run in apart + merged:
            del run["database"], run["run_id"]
        self.assertEqual([run["name"] for run in apart], ["a.db", "b.db"])
        self.assertEqual(apart, merged)
        self.assertEqual(len(self.made(a, all, b).runs), 2)

    def test_no_name_breaks_out(self):
        run = self.a_run()
        with sqlite3.connect(os.path.join(run, "run.db")) as db:
            db.execute("UPDATE runs SET name = ?, variant = ?", (HOSTILE, HOSTILE))
            db.execute("UPDATE params SET key = '__proto__', value = ? WHERE key = 'run.name'", (HOSTILE,))
            db.execute("UPDATE params SET value = CAST(x'ff3c2f736372697074' AS TEXT) WHERE key = 'run.dir'")
            db.execute("INSERT INTO events VALUES(1, 9, 9, 4, ?, ?, ?, ?)", (HOSTILE,) * 4)
        db.close()
        weird = self.path("it's $(x) `y` \"z\".db")
        os.rename(os.path.join(run, "run.db"), weird)
        self.from_sql()
        plain, page = self.made(self.path("plain.db")), self.made(weird)
        self.assertEqual(page.tags, plain.tags)
        self.assertEqual(page.source.count("</script"), 2)
        found, params = page.runs[0], dict(page.runs[0]["params"])
        self.assertEqual((found["name"], found["variant"], found["database"]), (HOSTILE, HOSTILE, weird))
        self.assertEqual((params["__proto__"], params["run.dir"]), (HOSTILE, "?</script"))
        self.assertEqual(found["events"][-1], [4, HOSTILE, HOSTILE, HOSTILE, HOSTILE])
        for address in page.addresses:
            self.assertTrue(address.startswith("data:"), address)
        if browser.CHROMIUM:
            chromium = browser.Browser()
            self.addCleanup(chromium.close)
            chromium.open(self.path("page.html"))
            self.assertEqual(chromium.complaints, [])
            self.assertIsNone(chromium.value("window.broken"))
            self.assertIn(HOSTILE, chromium.value("document.querySelector('#runs td').textContent"))
            self.assertEqual(chromium.value("document.scripts.length"), 2)
            for plot in ("#curves figure", "#maps figure"):
                self.run_query(chromium, plot)

    def test_an_older_database(self):
        self.from_sql()
        db = sqlite3.connect(self.path("plain.db"))
        db.execute("ALTER TABLE layer_spectra RENAME COLUMN tw_score TO since_then")
        db.commit()
        db.close()
        with open(self.path("plain.db"), "rb") as f:
            before = f.read()
        spectra = self.made(self.path("plain.db")).runs[0]["spectra"]
        self.assertEqual(set(codes(spectra["values"]["tw_score"]["median"])[0]), {None})
        self.assertNotIn(None, codes(spectra["values"]["stable_rank"]["median"])[0])
        with open(self.path("plain.db"), "rb") as f:
            self.assertEqual(f.read(), before)

    def test_a_run_with_nothing_recorded(self):
        db = self.long_run("empty.db", 1, 0, 0)
        db.execute("DELETE FROM matrices")
        db.commit()
        db.close()
        page = self.made(self.path("empty.db"))
        self.assertEqual(page.runs[0]["spectra"]["heads"], [])
        if browser.CHROMIUM:
            chromium = browser.Browser()
            self.addCleanup(chromium.close)
            chromium.open(self.path("page.html"))
            self.assertEqual(chromium.complaints, [])
            self.assertIn("not recorded", chromium.value("document.body.innerText"))

    def test_what_is_refused(self):
        self.from_sql()
        db, out = self.path("plain.db"), self.path("page.html")
        with open(out, "w") as f:
            f.write("what was there")
        self.report(code=64, says=["no output"])
        self.report("-o", out, code=64, says=["no database"])
        self.report(db, "-o", out, "-o", out, code=64, says=["one output"])
        self.report(db, "-o", out, "--columns", "loss", code=64, says=["loss", "docs/spectra.md"])
        self.report(db, "-o", out, "--columns", ",", code=64, says=["--columns"])
        self.report(db, "-o", out, "--form", "weight", code=64, says=["--form", "weight"])
        self.report(db, "-o", out, "--part", "", code=64, says=["--part"])
        self.report(db, "-o", out, "--colour", code=64, says=["--colour"])
        self.report(db, "-o", db, code=64, says=["is a database"])
        self.report(self.path("nowhere.db"), "-o", out, code=66, says=["nowhere.db"])
        self.report(db, self.path("nowhere.db"), "-o", out, code=66, says=["nowhere.db"])
        self.report(out, "-o", self.path("other.html"), code=65, says=["page.html"])
        self.report(db, "-o", self.path("no", "folder.html"), code=74, says=["folder.html"])
        broken = sqlite3.connect(db)
        broken.execute("DROP TABLE events")
        broken.commit()
        broken.close()
        self.report(db, "-o", out, code=65, says=["not a whole run database", "events"])
        with open(db, "r+b") as f:
            f.seek(8192)
            f.write(os.urandom(8192))
        self.report(db, "-o", out, code=65, says=["plain.db"])
        with open(out) as f:
            self.assertEqual(f.read(), "what was there")
        self.assertEqual(sorted(os.listdir(self.dir)), ["page.html", "plain.db"])
        shown = self.bulkhead("report", "--help")
        self.assertEqual((shown.returncode, shown.stderr), (0, ""))
        self.assertLessEqual(len(shown.stdout.splitlines()), 24)
        self.assertLessEqual(max(map(len, shown.stdout.splitlines())), 81)

    def test_the_page_in_a_browser(self):
        if not browser.CHROMIUM:
            print("skipped: no chromium on this machine")
            self.skipTest("no chromium")
        narrow = self.long_run("a.db", 3, 12, 30, 1)
        narrow.execute("UPDATE layer_spectra SET tw_score = tw_score / 5")  # one scale for both, though
        narrow.commit()
        narrow.close()
        self.long_run("b.db", 3, 500, 900, 2).close()
        page = self.made(self.path("a.db"), self.path("b.db"))
        chromium = browser.Browser()
        self.addCleanup(chromium.close)
        self.assertEqual([url for url in chromium.open(self.path("page.html")) if not url.startswith("data:")],
                         ["file://" + self.path("page.html")])
        self.assertEqual(chromium.value("document.title"), "Bulkhead report: a.db, b.db")
        self.assertEqual(chromium.value("document.querySelectorAll('#maps canvas').length"), 2)
        self.assertEqual(chromium.value("document.querySelectorAll('#curves path.median').length"), 2 * 2)

        # Another column, on one scale for both runs; the query behind it.
        column = "tw_score"
        self.choose(chromium, "column", column)
        decoded = [codes(run["spectra"]["values"][column]["median"])[0] for run in page.runs]
        every = [x for values in decoded for x in values if x is not None]
        for name, want in (("low", min(every)), ("high", max(every))):
            said = chromium.value(f"document.getElementById('{name}').textContent")
            self.assertEqual(float(said), float(f"{want:.4g}"))
        rows = [row for row in self.run_query(chromium, "#maps figure:nth-child(2)") if row["stat"] == "median"]
        self.assertEqual({row["run"] for row in rows}, {"b.db"})
        want = sqlite3.connect(self.path("b.db")).execute(
            f"SELECT step, layer, {column} FROM layer_spectra WHERE stat = 'median' ORDER BY step, layer").fetchall()
        self.assertEqual([(int(r["step"]), int(r["layer"]), float(r[column]) if r[column] else None) for r in rows], want)

        # Point at the middle of every cell of the first run: it says what it is, and a gap that it is one, unpainted.
        self.choose(chromium, "axis", "bin")
        left, top, width, height = chromium.value(
            "(() => { const c = document.querySelector('#maps canvas'); c.scrollIntoView();"
            " const b = c.getBoundingClientRect(); return [b.left, b.top, b.width, b.height]; })()")
        pixels = chromium.value("[...document.querySelectorAll('#maps canvas')].map((c) => [...new Uint32Array("
                                "c.getContext('2d').getImageData(0, 0, 1200, 3).data.buffer)])")
        colours = {}
        for values, map in zip(decoded, pixels):
            bins = len(values) // 3
            for i, x in enumerate(values):
                pixel = map[1200 * (2 - i // bins) + 1200 * (i % bins) // bins + 600 // bins]
                self.assertEqual(pixel >> 24, 0 if x is None else 255)
                place = 255 * ((x or 0) - min(every)) / (max(every) - min(every))
                if x is not None and abs(place % 1 - 0.5) > 0.01:  # not at the border of two colours
                    colours.setdefault(round(place), set()).add(pixel)
        self.assertGreater(len(colours), 100)
        self.assertEqual({len(shades) for shades in colours.values()}, {1})
        told = set()
        for layer in range(3):
            for bin in range(12):
                value = decoded[0][layer * 12 + bin]
                chromium.point(left + (bin + 0.5) / 12 * width, top + (2.5 - layer) / 3 * height)
                self.check_said(chromium, f"layer {layer}, step {10 * bin}: {column} ", value)
                told.add(value is None)
        self.assertEqual(told, {True, False})

        # The same by keys, and by steps; the other run's largest values; its table.
        self.choose(chromium, "axis", "step")
        chromium.value("document.querySelector('#maps .plot').focus()")
        for key in ("ArrowUp", "ArrowUp", "ArrowRight", "ArrowRight"):
            chromium.press(key)
        self.check_said(chromium, f"layer 1, step 20: {column} ", decoded[0][12 + 2])
        self.choose(chromium, "stat", "max")
        largest = codes(page.runs[1]["spectra"]["values"][column]["max"])[0]
        table = chromium.value("(() => { const d = document.querySelector('#maps figure:nth-child(2) details'); d.open = true;"
                               " d.dispatchEvent(new Event('toggle'));"
                               " return [...d.querySelectorAll('tbody tr')].map((r) => [...r.cells].map((c) => c.textContent)); })()")
        self.assertEqual(len(table), 200)
        for bin, row in enumerate(table):
            self.assertEqual([None if cell == "–" else float(cell) for cell in row[1:]],
                             [None if x is None else float(f"{x:.4g}") for x in largest[bin::200]])
        self.assertIn("group", chromium.value("document.querySelector('#curves .plot').getAttribute('role')"))
        chromium.value("document.querySelector('#curves .plot').focus()")
        chromium.press("ArrowRight")
        loss = floats(page.runs[0]["train"]["values"]["loss"]["median"])[0]
        said = chromium.value("document.querySelector('#curves output').textContent")
        self.assertIn(f"a.db (mha), train: step 1, {'–' if loss is None else ''}", said)
        if loss is not None:
            self.assertEqual(float(said.split("step 1, ")[1].split(",")[0]), float(f"{loss:.4g}"))

        papers = set()
        for scheme in ("light", "dark"):
            chromium.call("Emulation.setEmulatedMedia", features=[dict(name="prefers-color-scheme", value=scheme)])
            papers.add(chromium.value("getComputedStyle(document.body).backgroundColor"))
        self.assertEqual(len(papers), 2)
        self.assertEqual(chromium.complaints, [])

    def check_said(self, chromium, start, value):
        """What the first heat map says of the cell under its cursor."""
        said = chromium.value("document.querySelector('#maps output').textContent")
        self.assertEqual(said[:len(start)], start)
        self.assertIn("of 5 heads", said)
        number = said[len(start):].split()[0]
        self.assertEqual(None if number == "–" else float(number), None if value is None else float(f"{value:.4g}"))
        self.assertEqual("(no value)" in said, value is None)


if __name__ == "__main__":
    unittest.main()
