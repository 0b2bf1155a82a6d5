"""End to end: runs of each variant under mpirun, what they write, and that the same config is the same run."""
import math
import socket
import unittest
from collections import Counter

import harness

VARIANTS = ("mha", "mla-prerope", "mla-decoupled")


def entropy(tokens):
    counts = Counter(tokens)
    return -sum(n / len(tokens) * math.log(n / len(tokens)) for n in counts.values())


class Train(harness.RunTest):
    def learns(self, variant):
        self.dataset()
        config = self.config(attention=dict(variant=variant), train=dict(steps=150, lr="1e-2", log_every=50, global_batch=8),
                             diagnostics=dict(every=50))
        db = self.train(3, config, "run", "parallel.tensor=2")
        losses = self.losses(db)
        self.assertEqual(len(losses), 150)
        self.assertAlmostEqual(losses[0], math.log(harness.VOCAB), delta=0.05)
        (validation,) = db.execute("SELECT loss FROM eval_metrics ORDER BY step DESC LIMIT 1").fetchone()
        self.assertLess(validation, entropy(harness.markov_tokens(20000)) - 0.2)
        steps = [row[0] for row in db.execute("SELECT step FROM snapshots WHERE status = 'done' ORDER BY step")]
        self.assertEqual(steps, [0, 50, 100, 150])
        parts = 3 if variant == "mla-decoupled" else 1
        rows = 2 * parts * (4 * 2 + 1)  # layers, parts, heads in two forms and the layer
        for (count,) in db.execute("SELECT count(*) FROM spectra GROUP BY snapshot_id"):
            self.assertEqual(count, rows)
        # A square map may come close to singular: its numbers are valid.
        bad = db.execute("SELECT count(*) FROM spectra WHERE status NOT IN ('ok', 'rank_deficient') OR lambda_max IS NULL"
                         ).fetchone()[0]
        self.assertEqual(bad, 0)
        self.assertEqual(db.execute("SELECT status FROM runs").fetchone()[0], "finished")
        self.assertEqual(db.execute("PRAGMA integrity_check").fetchone()[0], "ok")

    def test_mha_learns_and_is_recorded(self):
        self.learns("mha")

    def test_prerope_learns_and_is_recorded(self):
        self.learns("mla-prerope")

    def test_decoupled_learns_and_is_recorded(self):
        self.learns("mla-decoupled")

    def test_the_same_config_is_the_same_run_bit_for_bit(self):
        self.dataset()
        for variant in VARIANTS:
            config = self.config(attention=dict(variant=variant))
            first = self.losses(self.train(3, config, variant + "-1", "parallel.tensor=2"))
            again = self.losses(self.train(3, config, variant + "-2", "parallel.tensor=2"))
            self.assertEqual(first, again)

    def test_the_database_holds_what_was_derived(self):
        """Whoever keeps it, a diagnostics rank or compute rank 0."""
        self.dataset()
        for ranks, watchers in ((3, 1), (2, 0)):
            name = f"watched-by-{watchers}"
            config = self.config(train=dict(micro_batch=None), run=dict(threads=None),
                                 diagnostics=dict(ranks=watchers))
            db = self.train(ranks, config, name)
            values = dict(db.execute("SELECT key, value FROM params"))
            self.assertEqual((values["train.micro_batch"], values["parallel.data"]), ("2", "2"))
            self.assertGreater(int(values["run.threads"]), 0)
            with open(self.path(name, "config.yaml")) as f:
                self.assertEqual(db.execute("SELECT config_yaml FROM runs").fetchone()[0], f.read())
            session = db.execute("SELECT threads, dp, device, hosts FROM sessions").fetchone()
            self.assertEqual(session, (int(values["run.threads"]), 2, "cpu", socket.gethostname()))

    def test_diagnostics_do_not_change_the_run(self):
        """The number of threads is given, or follows from the compute ranks alone."""
        self.dataset()
        for threads in (1, None):
            for tensor in (1, 2):
                config = self.config(f"{threads}-{tensor}.yaml", attention=dict(variant="mla-decoupled"), run=dict(threads=threads),
                                     parallel=dict(tensor=tensor))
                watched = self.losses(self.train(tensor + 1, config, f"on-{threads}-{tensor}", "diagnostics.every=1"))
                alone = self.losses(self.train(tensor, config, f"off-{threads}-{tensor}", "diagnostics.ranks=0"))
                self.assertEqual(watched, alone)

    def test_micro_batches_do_not_change_the_run(self):
        """docs/cases.md 5, through the program: a global batch of 8 in micro-batches of every size, over 1 and 2 ranks."""
        self.dataset()
        losses = []
        for ranks, micro in ((1, 8), (1, 4), (1, 1), (2, 4), (2, 1)):
            config = self.config(train=dict(global_batch=8, micro_batch=micro, clip=0), diagnostics=dict(ranks=0))
            losses.append(self.losses(self.train(ranks, config, f"run-{ranks}-{micro}")))
        for got in losses[1:]:
            for a, b in zip(got, losses[0], strict=True):
                self.assertAlmostEqual(a, b, delta=1e-5 * b)

    def test_losses_agree_over_tensor_and_data_parallel_shapes(self):
        self.dataset()
        for variant in VARIANTS:
            config = self.config(attention=dict(variant=variant), diagnostics=dict(ranks=0))
            want = self.losses(self.train(1, config, variant + "-1x1"))
            for tensor, data, halves in ((2, 1, "off"), (2, 1, "on"), (1, 2, "on"), (2, 2, "on"), (4, 1, "auto")):
                run = f"{variant}-{tensor}x{data}-{halves}"
                got = self.losses(self.train(tensor * data, config, run, f"parallel.tensor={tensor}",
                                             f"parallel.halves={halves}"))
                for a, b in zip(got, want, strict=True):
                    self.assertAlmostEqual(a, b, delta=2e-5 * want[0])

    def spectra(self, db):
        """{(step, matrix): (lambda_max, stable_rank, effective_rank)}"""
        return {tuple(row[:7]): row[7:] for row in db.execute(
            "SELECT step, form, part, scope, layer, head, tensor, lambda_max, stable_rank, effective_rank "
            "FROM spectra JOIN snapshots USING (snapshot_id) JOIN matrices USING (matrix_id)")}

    def test_what_is_observed_does_not_depend_on_where_weights_are_kept(self):
        """Master weights whole on every data-parallel rank, or cut into pieces that split rows (ZeRO-1)."""
        self.dataset()
        for variant in VARIANTS:
            config = self.config(attention=dict(variant=variant), diagnostics=dict(every=5),
                                 train=dict(steps=10, global_batch=12, micro_batch=2))
            want = None
            for tensor, data, zero in ((1, 1, 1), (1, 2, 0), (1, 2, 1), (1, 3, 1), (2, 2, 1)):
                db = self.train(tensor * data + 1, config, f"{variant}-{tensor}x{data}-{zero}",
                                f"parallel.tensor={tensor}", f"parallel.zero={zero}")
                got = self.spectra(db)
                want = want or got
                self.assertEqual(got.keys(), want.keys())
                for (step, *matrix), values in got.items():
                    for a, b in zip(values, want[(step, *matrix)], strict=True):
                        # Before the first update they are the same bits; then weights differ by rounding.
                        self.assertAlmostEqual(a, b, delta=1e-4 * b if step else 0, msg=(step, matrix))

    def test_no_steps_record_the_untrained_model(self):
        self.dataset()
        code, out, err = self.launch(2, self.config(train=dict(steps=0, warmup=0)), "run")
        self.assertEqual(code, 0, err)
        db = self.database("run")
        (loss,) = db.execute("SELECT loss FROM eval_metrics WHERE split = 'validation'").fetchone()
        self.assertAlmostEqual(loss, math.log(harness.VOCAB), delta=0.05)
        self.assertEqual(out, f"run config: mha, 0 steps, validation loss {loss:.4f}\n{self.path('run')}/run.db\n")
        self.assertEqual(db.execute("SELECT step, status FROM snapshots").fetchall(), [(0, "done")])

    def test_vocabulary_that_ranks_do_not_divide(self):
        """docs/cases.md 4: V = 509, the last id in the data."""
        vocab = 509
        self.dataset(vocab=vocab)
        harness.write_shard(self.path("train-00000.bin"), ([508] + harness.markov_tokens(60, vocab)) * 50)
        config = self.config(model=dict(vocab=vocab), diagnostics=dict(ranks=0), train=dict(steps=2))
        losses = {p: self.losses(self.train(p, config, f"p{p}", f"parallel.tensor={p}")) for p in (1, 2, 4)}
        self.assertAlmostEqual(losses[1][0], math.log(vocab), delta=0.05)
        for p in (2, 4):
            self.assertAlmostEqual(losses[p][0], losses[1][0], delta=1e-6 * losses[1][0])

    def test_validation_weighs_every_token_the_same(self):
        """docs/cases.md 14: 29 windows in batches of 1, 3 and 8, over 1 and 2 data-parallel ranks."""
        self.dataset(validation=29 * harness.CONTEXT + 1)
        values = []
        for ranks, batch, micro in ((1, 1, 1), (1, 3, 3), (1, 8, 8), (2, 4, 2)):
            config = self.config(train=dict(steps=1, lr=0, global_batch=batch, micro_batch=micro, warmup=0, eval_tokens=100000),
                                 diagnostics=dict(ranks=0))
            db = self.train(ranks, config, f"run{ranks}-{batch}")
            values.append(db.execute("SELECT loss, tokens FROM eval_metrics").fetchone())
        for loss, tokens in values:
            self.assertEqual(tokens, 29 * harness.CONTEXT)
            self.assertAlmostEqual(loss, values[0][0], delta=1e-6 * values[0][0])

    def test_learning_rates_are_recorded_as_scheduled(self):
        """docs/cases.md 9, in the database."""
        self.dataset()
        config = self.config(train=dict(steps=6, warmup=2, lr="1e-3", min_lr_ratio=0.1), diagnostics=dict(ranks=0))
        got = [r[0] for r in self.train(1, config, "run").execute("SELECT lr FROM train_metrics ORDER BY step")]
        want = [5e-4, 1e-3] + [1e-3 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * k / 4))) for k in range(1, 5)]
        for a, b in zip(got, want, strict=True):
            self.assertAlmostEqual(a, b, delta=1e-12)


if __name__ == "__main__":
    unittest.main()
