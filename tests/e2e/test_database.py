"""The run's database end to end: several diagnostics ranks that share the work, and databases united by merge."""
import os
import shutil
import sqlite3
import subprocess
import unittest

from harness import BULKHEAD, RunTest

TABLES = ("snapshots", "matrices", "spectra", "layer_spectra", "esd", "train_metrics", "eval_metrics")
TIMES = {"lag_ms", "compute_ms", "step_ms", "tokens_per_s", "mfu"}


def rows(db, table):
    """All rows, without what two equal runs do not have in common."""
    names = [c[1] for c in db.execute(f"PRAGMA table_info({table})") if c[1] not in TIMES]
    return db.execute(f"SELECT {', '.join(names)} FROM {table} ORDER BY 1, 2, 3, 4").fetchall()


class Database(RunTest):
    def setUp(self):
        super().setUp()
        self.dataset()

    def test_diagnostics_ranks_share_the_layers(self):
        """1, 2 and 3 diagnostics ranks over 3 layers record the same rows, bit for bit."""
        for variant, tensor, ranks in (("mha", 2, 2), ("mla-decoupled", 1, 3)):
            config = self.config(model=dict(layers=3), attention=dict(variant=variant),
                                 diagnostics=dict(esd_every=4, null_draws=64), parallel=dict(tensor=tensor))
            one = self.train(tensor + 1, config, f"{variant}-1")
            self.assertEqual(len(rows(one, "snapshots")), 4)
            told = one.execute("SELECT count(*) FROM spectra WHERE tw_score_gains IS NOT NULL").fetchone()
            self.assertGreater(told[0], 0)
            self.assertEqual({layer for layer, in one.execute("SELECT layer FROM v_spectra WHERE step = 6")}, {0, 1, 2})
            more = self.train(tensor + ranks, config, f"{variant}-{ranks}", f"diagnostics.ranks={ranks}")
            for table in TABLES:
                self.assertEqual(rows(more, table), rows(one, table), f"{variant}, {ranks} ranks: {table}")
            self.assertEqual(more.execute("SELECT * FROM events WHERE level <> 'info'").fetchall(), [])

    def merge(self, *arguments, code=0, says=()):
        done = subprocess.run([BULKHEAD, "merge", *arguments], capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, code, done.stderr)
        for word in says:
            self.assertIn(word, done.stdout + done.stderr)
        if code:
            self.assertEqual(len([line for line in done.stderr.splitlines() if "bulkhead merge: " in line]), 1)
        return done.stdout

    def bytes_of(self, name):
        with open(self.path(name), "rb") as f:
            return f.read()

    def content(self, path):
        """Every table of the file, and that it is one whole file."""
        self.assertFalse(os.path.exists(path + "-wal"))
        db = sqlite3.connect(path)
        self.assertEqual(db.execute("PRAGMA integrity_check").fetchone(), ("ok",))
        names = [row[0] for row in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")]
        tables = {name: db.execute(f"SELECT * FROM {name} ORDER BY 1, 2{', 3' * (name != 'meta')}").fetchall()
                  for name in names}
        db.close()
        return tables

    def test_merge_unites_runs(self):
        config = self.config(diagnostics=dict(esd_every=2), attention=dict(variant="mla-decoupled"))
        merged = self.path("all.db")
        one = self.train(2, config, "one")
        two = self.train(2, config, "two", "run.seed=2", "attention.variant=mha")
        self.merge(self.path("one"), self.path("two", "run.db"), "-o", merged, says=("2 runs added",))
        once = self.content(merged)
        db = sqlite3.connect(merged)
        for run_id, source in ((1, one), (2, two)):
            for view, order in (("v_spectra", "step, form, part, scope, layer, head, tensor"),
                                ("v_layer_step", "form, part, stat, step, layer"), ("v_metrics", "key, step")):
                names = [c[1] for c in source.execute(f"PRAGMA table_info({view})") if c[1] != "run_id"]
                sql = f"SELECT {', '.join(names)} FROM {view} WHERE run_id = ? ORDER BY {order}"
                self.assertEqual(db.execute(sql, (run_id,)).fetchall(), source.execute(sql, (1,)).fetchall())
            values = ("SELECT step, form, part, scope, layer, head, singular_values FROM esd JOIN snapshots "
                      "USING(snapshot_id) JOIN matrices USING(matrix_id) WHERE snapshots.run_id = ? ORDER BY 1, 2, 3, 4, 5, 6")
            self.assertEqual(db.execute(values, (run_id,)).fetchall(), source.execute(values, (1,)).fetchall())
            self.assertGreater(len(source.execute(values, (1,)).fetchall()), 0)
        db.close()
        self.merge(self.path("two"), self.path("one"), "-o", merged, says=("0 runs added, 0 brought up to date, 2 unchanged",))
        self.assertEqual(self.content(merged), once)
        row = "(snapshot_id, matrix_id) = (SELECT min(snapshot_id), 3 FROM esd)"
        later = self.path("later.db")
        shutil.copy(self.path("one", "run.db"), later)
        for change in (f"UPDATE spectra SET stable_rank = stable_rank + 1e-9 WHERE {row}", "UPDATE runs SET tags = 'seen'",
                       f"UPDATE esd SET singular_values = zeroblob(length(singular_values)) WHERE {row}",
                       "UPDATE train_metrics SET mfu = 0 WHERE step = 1"):  # it was NULL
            db = sqlite3.connect(later)
            db.execute(change)
            self.assertEqual(db.total_changes, 1)
            db.commit()
            db.close()
            for says in ("1 brought up to date", "0 brought up to date, 1 unchanged"):
                self.merge(later, "-o", merged, says=(f": 0 runs added, {says}\n",))
        self.merge(self.path("one"), "-o", merged)
        self.assertEqual(self.content(merged), once)
        self.merge(merged, "-o", self.path("copy.db"), says=("2 runs added",))
        self.assertEqual(self.content(self.path("copy.db")), once)
        done = subprocess.run([BULKHEAD, "query", merged, "compare", "--csv"], capture_output=True, text=True)
        self.assertEqual([line.split(",")[1] for line in done.stdout.splitlines()],
                         ["variant", "mha", "mla-decoupled"])

    def old_run(self, name, uuid, *changes):
        """A run's database by an older version, from a file, with changes."""
        with open(os.path.join(os.path.dirname(__file__), "..", "golden", "rundb-1.sql")) as f:
            sql = f.read()
        db = sqlite3.connect(self.path(name))
        db.executescript(sql)
        db.execute("UPDATE runs SET uuid = ?", (uuid,))
        for change in changes:
            db.execute(change)
        db.commit()
        db.close()
        return self.path(name)

    def test_merge_translates_ids(self):
        """The same numbers mean other things in other files: nulls by their key, a column that a source lacks is NULL."""
        null = "INSERT INTO nulls(null_id, key, m) VALUES(%s)"
        one = self.old_run("1.db", "one", null % "5, 'narrow', 0.5", "UPDATE spectra SET null_id = 5",
                           "UPDATE runs SET run_id = 7", "UPDATE snapshots SET run_id = 7",
                           "UPDATE matrices SET run_id = 7", "UPDATE layer_spectra SET run_id = 7")
        two = self.old_run("2.db", "two", null % "5, 'wide', 0.25", null % "6, 'narrow', 0.5",
                           "UPDATE spectra SET null_id = 5 WHERE matrix_id = 1",
                           "UPDATE spectra SET null_id = 6 WHERE matrix_id = 2",
                           "UPDATE matrices SET matrix_id = 3 - matrix_id + 100",
                           "UPDATE spectra SET matrix_id = 3 - matrix_id + 100",
                           "UPDATE snapshots SET snapshot_id = snapshot_id + 40",
                           "UPDATE spectra SET snapshot_id = snapshot_id + 40", "DROP VIEW v_spectra",
                           "ALTER TABLE spectra DROP COLUMN null_ratio")
        merged = self.path("all.db")
        for says in ("2 runs added, 0 brought up to date\n", "0 runs added, 0 brought up to date, 2 unchanged\n"):
            self.merge(one, two, "-o", merged, says=(says,))
            db = sqlite3.connect(merged)
            told = ("SELECT uuid, step, head, key, m, lambda_max FROM spectra JOIN snapshots s USING(snapshot_id) JOIN "
                    "matrices m USING(matrix_id) JOIN nulls USING(null_id) JOIN runs r ON r.run_id = s.run_id AND "
                    "r.run_id = m.run_id ORDER BY 1, 2, 3")
            rows_of = {uuid: [row[1:5] for row in db.execute(told) if row[0] == uuid] for uuid in ("one", "two")}
            self.assertEqual(rows_of["one"], [(s, h, "narrow", 0.5) for s in (0, 2) for h in (0, 1)])
            self.assertEqual(rows_of["two"], [(s, h, *(("wide", 0.25) if h == 0 else ("narrow", 0.5)))
                                              for s in (0, 2) for h in (0, 1)])
            self.assertEqual(db.execute("SELECT count(*) FROM nulls").fetchone(), (2,))
            db.close()
        before = self.content(merged)
        broken = self.old_run("3.db", "three", "DELETE FROM matrices WHERE matrix_id = 2")
        self.merge(broken, "-o", merged, code=65, says=("damaged", "matrix_id 2"))
        self.assertEqual(self.content(merged), before)
        # The run went back and has not reached step 2 again.
        resumed = self.old_run("4.db", "one", "UPDATE sessions SET attempt = 2", "DELETE FROM snapshots WHERE step = 2",
                               "DELETE FROM spectra WHERE snapshot_id = 2", "DELETE FROM train_metrics WHERE step = 2")
        self.merge(resumed, "-o", merged, says=("1 brought up to date",))
        db = sqlite3.connect(merged)
        told = "SELECT r.uuid, s.step, count(*) FROM spectra JOIN snapshots s USING(snapshot_id) JOIN runs r USING(run_id)"
        self.assertEqual(db.execute(told + " GROUP BY 1, 2").fetchall(), [("one", 0, 2), ("two", 0, 2), ("two", 2, 2)])
        self.assertEqual(db.execute("SELECT count(*) FROM snapshots").fetchone(), (3,))
        self.assertEqual(db.execute("SELECT count(*) FROM spectra").fetchone(), (6,))
        db.close()

    def test_merge_refuses_what_is_no_database_of_runs(self):
        db, out = self.path("run", "run.db"), self.path("out.db")
        self.train(2, self.config(), "run").close()
        with open(self.path("text"), "w") as f:
            f.write("no database " * 1000)
        other = sqlite3.connect(self.path("other.db"))
        other.execute("CREATE TABLE people(name)")
        other.commit()
        other.close()
        shutil.copy(db, self.path("newer.db"))
        newer = sqlite3.connect(self.path("newer.db"))
        newer.execute("UPDATE meta SET value = '99' WHERE key = 'schema_version'")
        newer.commit()
        newer.close()
        before = {name: self.bytes_of(name) for name in ("text", "other.db", "newer.db")}
        for arguments, code, word in (((db,), 64, "-o"), (("-o", out), 64, "no database"), ((db, "-o"), 64, "value"),
                                      ((db, "-o", out, "--what"), 64, "--what"), ((db, "-o", db), 64, "output"),
                                      ((self.path("run"), "-o", db), 64, "output"),
                                      ((db, self.path("gone"), "-o", out), 66, "gone")):
            self.merge(*arguments, code=code, says=(word,))
        for name, word in (("text", "not a usable SQLite"), ("other.db", "not of a run"), ("newer.db", "newer version")):
            self.merge(db, self.path(name), "-o", out, code=65, says=(word, name))
            self.merge(db, "-o", self.path(name), code=65, says=(word, name))
            self.assertEqual(self.bytes_of(name), before[name])
        self.merge(db, "-o", self.path("nowhere", "out.db"), code=74, says=("cannot write",))
        self.assertFalse(os.path.exists(out))
        self.assertEqual(sorted(os.listdir(self.dir)), sorted([*before, "config.yaml", "run", "train-00000.bin",
                                                              "val-00000.bin"]))

    def test_merge_reads_a_run_that_goes_on(self):
        """Twice, with the run having gone on between: the output grows, ids stay; an older copy takes nothing away."""
        job = self.in_background(2, self.config(train=dict(steps=100000)), "run", "diagnostics.when_behind=drop")
        self.wait_for_database("run", "SELECT 1 FROM snapshots WHERE step >= 4 AND status = 'done'")
        early, merged = self.path("early.db"), self.path("all.db")
        self.merge(self.path("run"), "-o", early)
        self.merge(early, "-o", merged)
        first = self.content(merged)
        step = first["train_metrics"][-1][1]
        self.wait_for_database("run", f"SELECT 1 FROM snapshots WHERE step > {step} + 4 AND status = 'done'")
        self.merge(self.path("run"), "-o", merged, says=("1 brought up to date",))
        self.assertIsNone(job.poll(), "the run noticed that it was read")
        second = self.content(merged)
        self.assertEqual(second["runs"], first["runs"])
        self.assertGreater(second["train_metrics"][-1][1], step)
        for table in ("snapshots", "matrices", "spectra", "layer_spectra"):
            self.assertLessEqual(set(first[table]), set(second[table]), table)
        done = {row[0] for row in second["snapshots"] if row[4] == "done"}
        rows_of = [row[0] for row in second["spectra"]]
        self.assertEqual({rows_of.count(s) for s in done}, {len(second["matrices"])})
        self.merge(early, "-o", merged, says=("1 left as they were",))
        self.assertEqual(self.content(merged), second)

    def test_more_diagnostics_ranks_than_layers_are_refused(self):
        self.refused(78, 4, self.config(), "run", "diagnostics.ranks=3", says=("diagnostics.ranks", "2"))


if __name__ == "__main__":
    unittest.main()
