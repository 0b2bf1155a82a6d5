"""train --profile N: what it prints and records, held against the clock of train_metrics and counts of its own."""
import os
import sqlite3
import unittest

import harness

VARIANTS = ("mha", "mla-prerope", "mla-decoupled")
PHASES = ("embedding", "projections", "attention", "mlp", "head and loss", "optimizer", "communication exposed",
          "snapshot", "idle")
OTHERS = ("step", "communication hidden", "ceiling")
WARM_UP, STEPS, F32 = 2, 6, 4

# SMALL's dimensions, and how a step is cut.
L, D, H, F, V, T = 2, 32, 4, 48, harness.VOCAB, harness.CONTEXT
HEAD, ROPE, LATENT = 8, 4, 16
MICRO, ACCUMULATION = 2, 2
N = MICRO * T


def products(variant, tp):
    """Multiplications and additions of rank 0's projections in a step. Backward has two products for each one."""
    heads = H // tp
    inner = heads * HEAD
    weights = D * inner  # W_O
    if variant == "mha":
        weights += D * 3 * inner
    elif variant == "mla-prerope":
        weights += D * 3 * inner + 2 * inner * LATENT + LATENT * 2 * inner
    else:
        weights += D * heads * (HEAD + ROPE) + D * LATENT + LATENT * 2 * inner
    flops = 3 * 2 * N * weights * L
    if variant == "mla-decoupled":
        owned = sum(layer % tp == 0 for layer in range(L))  # layers whose rotary key rank 0 computes
        flops += 2 * N * D * ROPE * (owned + 2 * L)
    return flops * ACCUMULATION


def work(variant, tp):
    """What a step of rank 0 computes, by phase."""
    qk, v = HEAD + (ROPE if variant == "mla-decoupled" else 0), HEAD
    pairs = MICRO * H // tp * T * T / 2  # causal
    core = 2 * pairs * (qk + v) + 2 * pairs * (3 * qk + 2 * v)
    return {"projections": products(variant, tp), "attention": ACCUMULATION * L * core,
            "mlp": ACCUMULATION * L * 3 * 2 * N * 3 * D * F // tp, "head and loss": ACCUMULATION * 3 * 2 * N * D * V // tp}


class Profiles(harness.RunTest):
    slack = 0.02, 0.1  # between two clocks: of the step, and milliseconds

    def cut(self, name, variant, **sections):
        settings = dict(attention=dict(variant=variant), train=dict(steps=10, global_batch=4, micro_batch=MICRO, eval_every=3),
                        diagnostics=dict(every=4), checkpoint=dict(every=5))
        for section, keys in sections.items():
            settings.setdefault(section, {}).update(keys)
        return self.config(f"{name}.yaml", **settings)

    def profiled(self, ranks, config, run, *settings, steps=STEPS):
        """Returns (database, {phase: row}, stdout)."""
        code, out, err = self.launch(ranks, config, run, *settings, profile=steps)
        self.assertEqual(code, 0, err)
        db = self.database(run)
        db.row_factory = sqlite3.Row
        return db, {r["phase"]: r for r in db.execute("SELECT * FROM profile")}, out

    def check_time(self, db, rows):
        """The phases fill the step, which the host's clock has measured without them."""
        step = rows["step"]["ms"]
        self.assertEqual({r["step"] for r in rows.values()}, {WARM_UP + STEPS})
        self.assertEqual({r["steps"] for r in rows.values()}, {STEPS})
        times = [rows[p]["ms"] for p in PHASES]
        self.assertGreaterEqual(min(times), 0)
        slack = self.slack[0] * step + self.slack[1]
        self.assertAlmostEqual(sum(times), step, delta=slack)
        self.assertAlmostEqual(sum(rows[p]["share"] for p in PHASES), 1, delta=slack / step)
        for phase in ("embedding", "projections", "attention", "mlp", "head and loss", "optimizer", "snapshot"):
            self.assertGreater(rows[phase]["ms"], 0, phase)
        # Steps with a snapshot and an agreement behind the update, without validations and checkpoints.
        (least,) = db.execute("SELECT avg(step_ms) FROM train_metrics WHERE step > ? AND step <= ?",
                              (WARM_UP, WARM_UP + STEPS)).fetchone()
        self.assertGreaterEqual(step, least)
        for phase in ("projections", "attention", "mlp", "head and loss"):
            r = rows[phase]
            self.assertAlmostEqual(r["tflops"], r["flops"] / r["ms"] / 1e9, delta=1e-9 * r["tflops"])
            self.assertAlmostEqual(r["ratio"], r["tflops"] / rows["ceiling"]["tflops"], delta=1e-9 * r["ratio"])
        for phase in ("embedding", "optimizer"):
            r = rows[phase]
            self.assertAlmostEqual(r["gb_per_s"], r["bytes"] / r["ms"] / 1e6, delta=1e-9 * r["gb_per_s"])
            self.assertAlmostEqual(r["ratio"], r["gb_per_s"] / rows["ceiling"]["gb_per_s"], delta=1e-9 * r["ratio"])

    def check_variant(self, variant, splits=(1, 2), **sections):
        self.dataset()
        for tp in splits:
            config = self.cut(f"{variant}-{tp}", variant, parallel=dict(tensor=tp), **sections)
            plain = self.train(tp + 1, config, f"plain-{tp}")
            db, rows, out = self.profiled(tp + 1, config, f"profiled-{tp}")
            self.assertEqual([r[0] for r in db.execute("SELECT loss FROM train_metrics ORDER BY step")], self.losses(plain))
            self.assertEqual(plain.execute("SELECT count(*) FROM profile").fetchone(), (0,))
            self.assertEqual(set(rows), set(PHASES + OTHERS))
            self.check_time(db, rows)
            want = work(variant, tp)
            self.assertEqual({p: rows[p]["flops"] for p in want}, want)
            self.assertEqual(rows["step"]["flops"], sum(want.values()))
            for phase in PHASES + ("step", "communication hidden"):
                self.assertIn(f"\n{phase} ", out)
            self.check_communication(variant, tp, rows)

    def check_communication(self, variant, tp, rows):
        if tp == 1:
            for phase in ("communication exposed", "communication hidden"):
                self.assertEqual((rows[phase]["ms"], rows[phase]["bytes"]), (0, None))
            return
        stream, scalar, agreement = N * D * F32, 8, 5 * 8
        sums = ACCUMULATION * (2 * stream + 4 * L * stream + 3 * N * F32) + scalar + agreement
        if variant == "mla-prerope":
            sums += ACCUMULATION * 2 * L * N * LATENT * F32
        if variant == "mla-decoupled":
            partial = L * (LATENT * D + ROPE * D + LATENT)  # W_DKV, W_KR, the latent norm
            self.assertAlmostEqual(rows["communication exposed"]["bytes"] - sums, partial * F32, delta=256 * L)
            self.assertEqual(rows["communication hidden"]["bytes"], ACCUMULATION * L * N * ROPE * F32)
        else:
            self.assertEqual(rows["communication exposed"]["bytes"], sums)
            self.assertIsNone(rows["communication hidden"]["bytes"])
        self.assertGreater(rows["communication exposed"]["ms"], 0)


class Profile(Profiles):
    def test_mha_is_counted_and_its_run_the_same(self):
        self.check_variant("mha")

    def test_prerope_is_counted_and_its_run_the_same(self):
        self.check_variant("mla-prerope")

    def test_decoupled_is_counted_and_its_run_the_same(self):
        self.check_variant("mla-decoupled")

    def test_bytes_of_memory_bound_phases(self):
        self.dataset()
        config = self.cut("bytes", "mha", diagnostics=dict(every=1, ranks=1))
        _, rows, out = self.profiled(2, config, "run")
        parameters = 2 * V * D + L * (4 * D * D + 3 * D * F + 2 * D) + D
        # Gradients of the embedding and the gains zeroed, all of them squared; weights and two moments read and written,
        # gradients read.
        want = F32 * (8 * parameters + V * D + (2 * L + 1) * D)
        self.assertAlmostEqual(rows["optimizer"]["bytes"], want, delta=0.01 * want)
        # x written and its row read; dx read, its row read and written.
        self.assertEqual(rows["embedding"]["bytes"], ACCUMULATION * N * D * 5 * F32)
        chain = L * (2 * D * D + D) * F32  # W_Q, W_K and the norm, read and written
        self.assertAlmostEqual(rows["snapshot"]["bytes"], 2 * chain, delta=0.3 * chain)

    def test_gradients_hidden_under_the_backward_pass(self):
        """Data parallel: what of the reduction, and of bringing new weights, goes on beside other work."""
        self.dataset()
        parameters = 2 * V * D + L * (4 * D * D + 3 * D * F + 2 * D) + D
        for zero in (0, 1):
            config = self.cut("data", "mha", parallel=dict(data=2, zero=zero), train=dict(micro_batch=1))
            db, rows, _ = self.profiled(3, config, f"zero-{zero}")
            self.check_time(db, rows)
            hidden, want = rows["communication hidden"], F32 * parameters * (1 + zero)
            self.assertAlmostEqual(hidden["bytes"], want, delta=0.02 * want)
            self.assertGreater(hidden["ms"], 0)
            # Its rate is over all the time under way; of that, its own calls and the wait at the end are exposed.
            self.assertLess(hidden["ms"], hidden["bytes"] / hidden["gb_per_s"] / 1e6)
            self.assertLess(hidden["share"], 1)

    def test_what_is_computed_again_counts_again(self):
        self.dataset()
        config = self.cut("again", "mha", train=dict(recompute="full"))
        _, rows, _ = self.profiled(2, config, "run")
        want = work("mha", 1)  # and, of all layers but the last, one more forward pass up to the products of W_down
        want["projections"] += ACCUMULATION * (L - 1) * 2 * N * 4 * D * D
        want["attention"] += ACCUMULATION * (L - 1) * MICRO * H * T * T * 2 * HEAD
        want["mlp"] += ACCUMULATION * (L - 1) * 2 * N * 2 * D * F
        self.assertEqual({p: rows[p]["flops"] for p in want}, want)

    def test_validation_and_checkpoints_are_no_part_of_a_step(self):
        """They cost many times what a step does, and are left out; limits are wide, for a busy machine."""
        self.dataset(validation=60000)
        config = self.cut("apart", "mha", train=dict(eval_every=1, eval_tokens=60000), checkpoint=dict(every=1))
        db, rows, _ = self.profiled(2, config, "run")
        self.check_time(db, rows)
        want = work("mha", 1)
        self.assertEqual({p: rows[p]["flops"] for p in want}, want)
        (least,) = db.execute("SELECT avg(step_ms) FROM train_metrics WHERE step > 2 AND step <= 8").fetchone()
        self.assertLess(rows["step"]["ms"], 20 * least)
        self.assertLess(rows["idle"]["share"], 0.9)

    def test_a_run_that_ends_before(self):
        self.dataset()
        _, rows, _ = self.profiled(2, self.cut("short", "mha", train=dict(steps=5)), "short", steps=100)
        self.assertEqual((rows["mlp"]["step"], rows["mlp"]["steps"]), (5, 3))
        _, rows, out = self.profiled(2, self.cut("shorter", "mha", train=dict(steps=2)), "shorter", steps=1)
        self.assertEqual((rows, out.count("\n")), ({}, 2))

    def test_numbers_of_steps_that_are_none(self):
        self.dataset()
        config = self.cut("bad", "mha")
        for number in ("0", "-1", "1001", "3.5", "many", ""):
            code, _, err = self.launch(2, config, "run", profile=number)
            self.assertEqual(code, 64, err)
            self.assertIn(f'--profile wants a whole number from 1 to 1000, not "{number}"', err)
            self.assertFalse(os.path.exists(self.path("run")))
        self.assertEqual(self.bulkhead("plan", config, "--profile", "3").returncode, 64)


if __name__ == "__main__":
    unittest.main()
