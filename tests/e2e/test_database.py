"""The run's database end to end: several diagnostics ranks that share the work, and databases united by merge."""
import unittest

from harness import RunTest

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
        for variant, tensor in (("mha", 2), ("mla-decoupled", 1)):
            config = self.config(model=dict(layers=3), attention=dict(variant=variant),
                                 diagnostics=dict(esd_every=4), parallel=dict(tensor=tensor))
            one = self.train(tensor + 1, config, f"{variant}-1")
            self.assertEqual(len(rows(one, "snapshots")), 4)
            self.assertEqual({layer for layer, in one.execute("SELECT layer FROM v_spectra WHERE step = 6")}, {0, 1, 2})
            for ranks in (2, 3):
                more = self.train(tensor + ranks, config, f"{variant}-{ranks}", f"diagnostics.ranks={ranks}")
                for table in TABLES:
                    self.assertEqual(rows(more, table), rows(one, table), f"{variant}, {ranks} ranks: {table}")
                self.assertEqual(more.execute("SELECT count(*) FROM events").fetchone(), (0,))

    def test_more_diagnostics_ranks_than_layers_are_refused(self):
        self.refused(78, 4, self.config(), "run", "diagnostics.ranks=3", says=("diagnostics.ranks", "2"))


if __name__ == "__main__":
    unittest.main()
