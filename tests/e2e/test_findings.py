"""End to end: `bulkhead findings` on made-up studies, against a second computation with NumPy and SciPy (findings_data.py)."""
import math
import os
import sqlite3
import unittest

import numpy as np

import findings_data as data

VARIANTS = ("mha", "mla-prerope", "mla-decoupled")


def random_study(seed, seeds=8, layers=5, heads=3):
    """Three variants with spikes and collapses at random, some of them short, rotated away, late or none."""
    rng = np.random.default_rng(seed)
    runs = []
    for variant in VARIANTS:
        for s in range(1, seeds + 1):
            run = data.noise_run(rng, variant, s, layers, heads, m=rng.uniform(0.5, 1), s=rng.uniform(0.02, 0.05))
            for layer in range(layers):
                if rng.random() < 0.85:
                    start, head = int(rng.integers(1, 25)), int(rng.integers(heads))
                    until = None if rng.random() < 0.7 else start + int(rng.integers(1, 6))
                    data.plant(run, layer, head, start, rng.choice([1.4, 1.7, 2.5, 4.0]), until, rng.choice([0.3, 0.9]))
                    if rng.random() < 0.4:  # not over the limits at every snapshot
                        run["log_excess"][layer, head, start + 2:][rng.random(29 - start) < rng.choice([0.1, 0.3])] = 0
                    if rng.random() < 0.15:  # uneven gains explain it at first
                        run["gains_tw"][layer, head, start:start + 3] = 2
                    if rng.random() < 0.3:  # two heads at once: the one that is farther out counts
                        data.plant(run, layer, (head + 1) % heads, start, rng.choice([1.7, 3.1]))
                    if rng.random() < 0.9:
                        data.collapse(run, layer, head, min(28, max(1, start + int(rng.integers(-4, 5)))), rng.choice([0.6, 0.7, 0.85]))
            run["recorded"][rng.integers(2, 30, size=2)] = False
            runs.append(run)
    return runs


class Findings(data.FindingsTest):
    def same(self, got, want, what):
        if want is None or (isinstance(want, float) and math.isnan(want)):
            self.assertIsNone(got, what)
        else:
            self.assertIsNotNone(got, what)
            self.assertAlmostEqual(got, want, delta=1e-9 * max(1, abs(want)), msg=what)

    def same_p(self, got, want, what, draws=4000):
        """Two random p of 10,000 and of `draws` draws: within 5 standard errors."""
        error = math.sqrt(max(want * (1 - want), 1 / draws) * (1 / draws + 1e-4))
        self.assertLess(abs(got - want), 5 * error + 2e-4, f"{what}: {got} {want}")

    # ------------------------------------------------------------ against the second computation

    def check_layers(self, answer, variant, runs, u, z_limit, theta):
        onset, fall = self.finding(answer, "onset", variant), self.finding(answer, "collapse", variant)
        for f, key, events in ((onset, "onsets", [data.onsets(r, u, theta) for r in runs]),
                               (fall, "collapses", [data.collapses(r, z_limit) for r in runs])):
            for row, run, want in zip(f["numbers"][key], runs, events):
                self.assertEqual(row["seed"], run["seed"])
                self.assertEqual(row["steps_by_layer"], [e and int(run["steps"][e[0]]) for e in want], (variant, key, run["seed"]))
                self.assertEqual(row["heads_by_layer"], [e and e[1] for e in want], (variant, key, run["seed"]))
            count = sum(e is not None for run in events for e in run)
            self.assertEqual(f["verdict"], "found" if count else "not found")
        for point in onset["numbers"]["curve"]:
            shares = [np.mean([e is not None for e in data.onsets(r, u, point["theta"])]) for r in runs]
            self.same(point["share_of_layers"], float(np.mean(shares)), "curve")
            self.same(point["least"], float(min(shares)), "curve")
            self.same(point["most"], float(max(shares)), "curve")

    def check_persistence(self, answer, variant, runs, u, theta):
        f = self.finding(answer, "persistence", variant)
        want, lasted = [], []
        for run in runs:
            for layer, onset in enumerate(data.onsets(run, u, theta)):
                if onset is None:
                    continue
                keeps, after, over = data.persists(run, u, theta, layer, onset)
                want.append((layer, onset[1], after, over, {True: "yes", False: "no", None: "unknown"}[keeps]))
                later = [k for k in np.flatnonzero(data.seen(run)) if k > onset[0]]
                lost = [k for k in later if not data.over_limits(run, u, theta)[layer, onset[1], k]]
                end = lost[0] if lost else later[-1]
                lasted.append((float(run["steps"][end] - run["steps"][onset[0]]), bool(lost)))
        got = [(r["layer"], r["head"], r["snapshots_after"], r["over_limits"], r["persists"]) for r in f["numbers"]["by_layer"]]
        self.assertEqual(got, want, variant)
        curve = data.kaplan_meier(*zip(*lasted))
        self.assertEqual([(r["steps"], r["at_risk"], r["events"]) for r in f["numbers"]["kaplan_meier"]], [c[:3] for c in curve])
        for row, c in zip(f["numbers"]["kaplan_meier"], curve):
            self.same(row["share_without"], c[3], "Kaplan-Meier")

    def check_comparisons(self, answer, variant, runs, u, z_limit, theta):
        rng = np.random.default_rng(7)

        def steps_of(events):
            return np.array([[r["steps"][e[0]] if e else np.inf for e in es] for r, es in zip(runs, events)], float)

        spikes = steps_of([data.onsets(r, u, theta) for r in runs])
        falls = steps_of([data.collapses(r, z_limit) for r in runs])
        f = self.finding(answer, "propagation", variant)
        q, p = data.propagation(rng, spikes)
        lag = data.sign_flip(data.upward(spikes))
        self.same(f["numbers"]["covariance_q"], float(q), "Q")
        self.same_p(f["numbers"]["p_covariance"], p, "propagation")
        self.same(f["numbers"]["p_upward"], lag, "signed lag")
        self.assertEqual(f["numbers"]["censored"], int(np.isinf(spikes).sum()))
        self.same(f["tests"][0]["p"], max(f["numbers"]["p_covariance"], lag), "both must hold")
        f = self.finding(answer, "coincidence", variant)
        total, p = data.coincidence(rng, spikes, falls)
        both = np.isfinite(spikes) & np.isfinite(falls)
        self.assertEqual(f["numbers"]["pairs"], int(both.sum()))
        self.assertEqual(f["numbers"]["seeds_with_pairs"], int(both.any(axis=1).sum()))
        self.same(f["numbers"]["mean_distance_steps"], total / both.sum() if both.any() else None, "coincidence")
        permutations = math.prod(math.factorial(n) for n in both.sum(axis=0))
        if both.any(axis=1).sum() < 6 or permutations < 100:
            self.assertEqual((f["verdict"], f["tests"]), ("undetermined", []))
        else:
            self.same_p(f["numbers"]["p"], p, "coincidence")

    def check_study(self, seed, theta=1.5):
        runs = random_study(seed)
        answer = self.judge(self.database(runs, f"study-{seed}.db"), "--theta", str(theta))
        tests = sum(r["layers"] * r["heads"] * r["planned"] for r in runs)
        u, z_limit = data.threshold(tests), data.stats.norm.ppf(0.01 / tests)
        self.same(answer["study"]["m"], float(tests), "M")
        self.same(answer["study"]["tw_threshold"], u, "u*")
        self.same(answer["study"]["z_threshold"], z_limit, "z*")
        for variant in VARIANTS:
            mine = [r for r in runs if r["variant"] == variant]
            self.check_layers(answer, variant, mine, u, z_limit, theta)
            events = [data.onsets(r, u, theta) for r in mine]
            told = [next(row for row in answer["runs"] if row["run"] == r["name"]) for r in mine]
            self.assertEqual([row["steps_by_layer"] for row in told], [[None if e is None else int(r["steps"][e[0]]) for e in es] for r, es in zip(mine, events)])
            self.assertEqual([row["heads_by_layer"] for row in told], [[None if e is None else e[1] for e in es] for es in events])
            self.check_persistence(answer, variant, mine, u, theta)
            self.check_comparisons(answer, variant, mine, u, z_limit, theta)
        listed = [t for f in answer["findings"] for t in f["tests"]]
        for t, want in zip(listed, data.holm([t["p"] for t in listed])):
            self.same(t["p_holm"], want, "Holm")

    def test_random_studies_agree(self):
        for seed in range(1, 4):
            self.check_study(seed)

    def test_other_effect_sizes_agree(self):
        self.check_study(11, theta=2.2)

    # ------------------------------------------------------------ what is planted is found, and nothing else

    def cascade(self, variant="mha", seeds=7, layers=5, offset=None, until=None):
        """Each seed starts at its own step and climbs a layer every two snapshots, with some jitter."""
        rng = np.random.default_rng(3)
        runs = [data.noise_run(rng, variant, s, layers) for s in range(1, seeds + 1)]
        for run in runs:
            start = int(rng.integers(2, 6))
            for layer in range(layers):
                k = start + 2 * layer + int(rng.integers(0, 2))
                data.plant(run, layer, layer % 3, k, 2.0, until and k + until)
                if offset is not None:
                    data.collapse(run, layer, layer % 3, k + offset)
        return runs

    def test_a_spike_that_climbs(self):
        runs = self.cascade(offset=1)
        answer = self.judge(self.database(runs))
        u = data.threshold(sum(r["layers"] * r["heads"] * r["planned"] for r in runs))
        for row, run in zip(self.finding(answer, "onset", "mha")["numbers"]["onsets"], runs):
            self.assertEqual(row["steps_by_layer"], [int(run["steps"][k]) for k, _ in data.onsets(run, u, 1.5)])
            self.assertEqual(row["heads_by_layer"], [0, 1, 2, 0, 1])
        for name in ("onset", "persistence", "collapse", "coincidence"):
            self.assertEqual(self.finding(answer, name, "mha")["verdict"], "found", name)
        self.assertEqual(self.finding(answer, "persistence", "mha")["numbers"]["persistent"], 35)
        # Onsets that climb in every seed alike have a direction but no covariance of ranks within layers.
        self.assertLessEqual(self.finding(answer, "propagation", "mha")["numbers"]["p_upward"], 1 / 2 ** 7)

    def front(self, origins, layers=8):
        """A spike that begins in another layer in each seed and goes up from there, a layer every two snapshots."""
        rng, runs = np.random.default_rng(4), []
        for s, origin in enumerate(origins, 1):
            run = data.noise_run(rng, "mha", s, layers, heads=1, steps=400)
            for layer in range(origin, layers):
                data.plant(run, layer, 0, 3 + 2 * (layer - origin) + int(rng.integers(0, 2)))
            runs.append(run)
        return runs

    def test_a_front_that_spreads_from_layer_to_layer(self):
        f = self.finding(self.judge(self.database(self.front([0, 3, 1, 4, 2, 0, 3, 1, 4, 2]))), "propagation", "mha")
        self.assertEqual(f["verdict"], "found")
        self.assertLessEqual(f["numbers"]["p_covariance"], 0.001)
        self.assertEqual(f["numbers"]["p_upward"], 1 / 2 ** 10)
        self.assertEqual((f["numbers"]["censored"], f["numbers"]["median_lag_steps"]), (20, 20))

    def test_a_front_that_goes_down_is_not_upward(self):
        runs = self.front([0, 3, 1, 4, 2, 0, 3, 1, 4, 2])
        for run in runs:
            for key in ("log_excess", "gains_tw", "overlap"):
                run[key] = run[key][::-1]
        f = self.finding(self.judge(self.database(runs)), "propagation", "mha")
        self.assertLessEqual(f["numbers"]["p_covariance"], 0.001)
        self.assertEqual((f["verdict"], f["numbers"]["p_upward"]), ("not found", 1))

    def test_one_order_in_all_seeds_decides_nothing(self):
        """A cascade and a trend with depth that all seeds share look the same then."""
        rng, runs = np.random.default_rng(4), []
        for s in range(1, 8):
            run = data.noise_run(rng, "mha", s, layers=5, heads=1)
            for layer in range(5):
                data.plant(run, layer, 0, 1 + s % 3 + 2 * layer)
            runs.append(run)
        f = self.finding(self.judge(self.database(runs)), "propagation", "mha")
        self.assertEqual((f["verdict"], f["numbers"]["p_upward"]), ("undetermined", 1 / 2 ** 7))
        self.assertIn("same in every seed", f["reason"])

    def test_a_spike_that_goes_does_not_persist(self):
        answer = self.judge(self.database(self.cascade(until=3)))
        f = self.finding(answer, "persistence", "mha")
        self.assertEqual((f["verdict"], f["numbers"]["persistent"], f["numbers"]["not_persistent"]), ("not found", 0, 35))
        self.assertEqual(f["numbers"]["median_steps_to_the_end"], 30)

    def test_a_direction_that_turns_does_not_persist(self):
        runs = self.cascade()
        for run in runs:
            run["overlap"][:] = 0.4
        self.assertEqual(self.finding(self.judge(self.database(runs)), "persistence", "mha")["verdict"], "not found")

    def test_a_dropped_snapshot_breaks_the_pair(self):
        """Whether the table says so or its event was lost with it: the plan knows that a snapshot was due."""
        for gone, want in ((True, 50), (False, 60), (None, 60)):
            run = data.noise_run(np.random.default_rng(1), layers=1, heads=1)
            data.plant(run, 0, 0, 5)
            run["recorded"] = [True] * len(run["steps"])
            run["recorded"][6] = gone
            answer = self.judge(self.database([run], f"{gone}.db"))
            steps = self.finding(answer, "onset", "mha")["numbers"]["onsets"][0]["steps_by_layer"]
            self.assertEqual(steps, [want if gone else 70])

    def test_the_plan_counts_and_not_what_was_reached(self):
        run = data.noise_run(np.random.default_rng(1), layers=2, heads=3)
        run["recorded"] = [True] * 12 + [None] * 19  # killed in mid-run
        path = self.database([run])
        self.assertEqual(self.judge(path)["study"]["m"], 2 * 3 * 31)
        self.change(path, "UPDATE params SET value = '7' WHERE key = 'diagnostics.every'",
                    "UPDATE params SET value = '20' WHERE key = 'diagnostics.dense_until'")
        # 0 to 20, 21, 28 ... 294, and 300
        answer = self.judge(path)
        self.assertEqual((answer["study"]["m"], answer["runs"][0]["planned"]), (6 * (21 + 40 + 1), 62))
        self.change(path, "DELETE FROM params")  # no plan is known: what is recorded
        self.assertEqual(self.judge(path)["study"]["m"], 2 * 3 * 12)

    def test_one_snapshot_is_no_onset(self):
        run = data.noise_run(np.random.default_rng(1), layers=1, heads=1)
        data.plant(run, 0, 0, 5, until=6)
        self.assertEqual(self.finding(self.judge(self.database([run])), "onset", "mha")["verdict"], "not found")

    def test_a_start_that_is_no_noise_is_rejected(self):
        runs = [data.noise_run(np.random.default_rng(s), seed=s) for s in (1, 2)]
        data.plant(runs[1], 2, 1, 0)
        answer = self.judge(self.database(runs))
        self.assertEqual([r["judged"] for r in answer["runs"]], ["yes", "rejected"])
        self.assertEqual(self.finding(answer, "onset", "mha")["numbers"]["runs"], 1)
        self.assertIn("rejected: mha-2", self.ask(os.path.join(self.dir, "study.db")))

    # ------------------------------------------------------------ what cannot be decided

    def change(self, path, *statements):
        db = sqlite3.connect(path)
        for statement in statements:
            db.execute(statement)
        db.commit()
        db.close()

    def test_missing_values_are_never_a_no(self):
        path = self.database(self.cascade(offset=1))
        self.change(path, "UPDATE spectra SET tw_score_gains = NULL, z_effective_rank_rest_gains = NULL")
        answer = self.judge(path)
        for f in answer["findings"]:
            self.assertEqual(f["verdict"], "undetermined", f["finding"])
            self.assertTrue(f["reason"], f["finding"])
        self.change(path, "UPDATE spectra SET tw_score = NULL WHERE snapshot_id % 10000 > 0")
        self.assertEqual(self.finding(self.judge(path), "onset", "mha")["verdict"], "undetermined")
        self.change(path, "UPDATE spectra SET tw_score = NULL")
        self.assertIn("step 0", self.judge(path)["runs"][0]["why"])

    def test_missing_columns_are_named(self):
        path = self.database(self.cascade())
        self.change(path, "ALTER TABLE spectra DROP COLUMN tw_score_gains")
        answer = self.judge(path)
        self.assertIn("tw_score_gains", answer["runs"][0]["why"])
        self.assertEqual({f["verdict"] for f in answer["findings"]}, {"undetermined"})

    def test_too_little_is_undetermined(self):
        def reason(runs, name, variant="mha"):
            f = self.finding(self.judge(self.database(runs, f"{self.id()}-{name}-{len(runs)}-{runs[0]['layers']}.db")), name, variant)
            self.assertEqual(f["verdict"], "undetermined")
            return f["reason"]

        self.assertIn("5 seeds", reason(self.cascade(seeds=5), "propagation"))
        self.assertIn("3 layers", reason(self.cascade(layers=3), "propagation"))
        twice = self.cascade()
        twice[3]["seed"] = twice[4]["seed"]
        self.assertIn("seed 5", reason(twice, "coincidence"))
        short = [data.noise_run(np.random.default_rng(1), steps=10)]
        self.assertIn("none of its 1 runs", reason(short, "onset"))
        late = data.noise_run(np.random.default_rng(1))
        data.plant(late, 0, 0, 25)
        self.assertIn("fewer than 10", reason([late], "persistence"))

    # ------------------------------------------------------------ prevention

    def prevention(self, loss=3.0, extra=0, sd=0.03, seeds=8):
        """Baselines with persistent onsets in most layers; mla-decoupled with `extra` of them in its first seed."""
        rng = np.random.default_rng(9)
        runs = []
        for variant in VARIANTS:
            for s in range(1, seeds + 1):
                run = data.noise_run(rng, variant, s, layers=4, s=sd if variant == "mla-decoupled" else 0.03)
                candidate = variant == "mla-decoupled"
                for layer in range((extra if s == 1 else 0) if candidate else 2 + s % 3):
                    data.plant(run, layer, 0, 4 + layer)
                run["loss"] = loss if candidate else 3.0
                runs.append(run)
        f = self.finding(self.judge(self.database(runs, f"{loss}-{extra}-{sd}-{seeds}.db"), "--theta", "1.45"), "prevented", "mla-decoupled")
        return f

    def test_prevention(self):
        f = self.prevention()
        self.assertEqual(f["verdict"], "found", f)
        self.assertAlmostEqual(f["numbers"]["none_bounds_the_rate_at"], 1 - 0.05 ** (1 / 8))
        for test, row in zip(f["tests"], f["numbers"]["baselines"]):
            self.assertEqual(test["p"], data.sign_flip([(2 + s % 3) / 4 for s in range(1, 9)]))
            self.assertAlmostEqual(row["mean_difference"], np.mean([(2 + s % 3) / 4 for s in range(1, 9)]))
        self.assertEqual(self.prevention(extra=1)["verdict"], "found")
        self.assertEqual(self.prevention(extra=2)["verdict"], "not found")
        self.assertEqual(self.prevention(loss=3.02)["verdict"], "found")
        self.assertEqual(self.prevention(loss=3.04)["verdict"], "not found")
        self.assertEqual(self.prevention(sd=0.07)["verdict"], "not found")
        five = self.prevention(seeds=5)
        self.assertIn("5 seeds", five["reason"])
        self.assertTrue(five["wants_seeds"])
        six = self.prevention(seeds=6)  # 1/64 is the least p, and four tests share 0.05
        self.assertEqual((six["verdict"], six["tests"][0]["p"], six["tests"][0]["p_holm"]), ("not found", 1 / 64, 4 / 64))
        self.assertIn("Holm", six["reason"])
        self.assertFalse(six["wants_seeds"])

    # ------------------------------------------------------------ the command

    def test_the_same_data_gives_the_same_answer(self):
        path = self.database(random_study(5))
        self.assertEqual(self.ask(path, "--json"), self.ask(path, "--json"))
        once = self.judge(path)
        again = self.judge(path, path)  # the same runs, named twice
        self.assertEqual(once["study"], again["study"])

    def test_wrong_usage(self):
        path = self.database([data.noise_run(np.random.default_rng(1))])
        self.assertIn("no database", self.ask(code=64))
        self.assertIn("--theta", self.ask(path, "--theta", "1", code=64))
        self.assertIn("--alpha", self.ask(path, "--alpha", "nan", code=64))
        self.assertIn("absent.db", self.ask(os.path.join(self.dir, "absent.db"), code=66))
        foreign = os.path.join(self.dir, "foreign.db")
        self.change(foreign, "CREATE TABLE t(x)")
        self.ask(foreign, code=65)
        with open(os.path.join(self.dir, "text.db"), "w") as f:
            f.write("no database at all " * 100)
        self.ask(os.path.join(self.dir, "text.db"), code=65)


if __name__ == "__main__":
    unittest.main()
