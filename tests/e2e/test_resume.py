"""Runs that stop and go on: the same run as without a stop, at the same shape bit for bit, at another within rounding."""
import json
import os
import shutil
import signal
import sqlite3
import struct
import time
import unittest

import harness

VARIANTS = ("mha", "mla-prerope", "mla-decoupled")
STATE = "SELECT step, loss, grad_norm, lr, tokens FROM train_metrics ORDER BY step"


class Resume(harness.RunTest):
    def checkpoints(self, run="run"):
        folder = self.path(run, "checkpoints")
        return sorted(n for n in os.listdir(folder) if n.startswith("step-")) if os.path.isdir(folder) else []

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
        return [m for (m,) in self.database(run).execute("SELECT message FROM events WHERE kind = ? ORDER BY attempt, seq", (kind,))]

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

    def goes_on(self, variant, tensor, data, watchers=1):
        self.dataset()
        config = self.config(attention=dict(variant=variant), model=dict(layers=3),
                             train=dict(steps=12, warmup=6, eval_every=3), checkpoint=dict(every=5, keep=9),
                             diagnostics=dict(ranks=watchers, esd_every=4) if watchers else dict(ranks=0))
        ranks, settings = tensor * data + watchers, (f"parallel.tensor={tensor}",)
        want = self.rows(self.train(ranks, config, "whole", *settings))
        self.assertEqual(self.saved("whole"), [5, 10, 12])
        self.cut("run", 5, of="whole")
        db = self.go_on(ranks, config, "run", *settings)
        for got, wanted in zip(self.rows(db), want, strict=True):
            self.assertEqual(got, wanted)
        self.assertEqual(self.saved("run"), [5, 10, 12])
        for step in (10, 12):
            ours, theirs = self.manifest("run", step), self.manifest("whole", step)
            self.assertEqual(ours["boxes"], theirs["boxes"])
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



class OtherShapes(Resume):
    """Saved by P x Q ranks, read by others."""
    SHAPES = ((1, 1), (2, 1), (1, 2), (2, 2))

    def at(self, shape, config, run, *settings, resume=None):
        code, out, err = self.launch(shape[0] * shape[1], config, run, f"parallel.tensor={shape[0]}", *settings, resume=resume)
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
        """docs/cases.md 10: five layers, by (2, 2) at step 5; on at (1, 1), (4, 1), (1, 3) and (2, 2). Shares of F and V
        are uneven at 4, those of a batch of 12 even at 3."""
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
            self.assertIn("parallel.tensor", "".join(self.events(run, "resume")) if shape[0] != 2 else "parallel.tensor")

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
            self.assertEqual(self.tensors(run, 3), want)

    def tensors(self, run, step):
        """(name, kind) -> rows of the whole tensor, put together from its boxes."""
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
        return whole


if __name__ == "__main__":
    unittest.main()
