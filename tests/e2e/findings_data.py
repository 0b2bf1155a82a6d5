"""Made-up studies for the tests of `bulkhead findings`, and the same findings computed a second time from the same arrays.

The second computation follows docs/design.md section 6.5 with NumPy and SciPy and shares nothing with the C program. A run
is a dict of arrays [layers, heads, snapshots]; write() makes a database of it, judge() reads the arrays alone.
"""
import itertools
import json
import math
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import unittest
import uuid

try:
    import numpy as np
    from scipy import optimize, stats
except ImportError:
    print("skipped: no NumPy and SciPy")
    sys.exit(0)

BULKHEAD = os.environ.get("BULKHEAD", "build/release/bulkhead")

TW_SD, TW_MEAN = 1.26799, -1.20653
THETAS = (1.25, 1.5, 2.0, 3.0, 5.0)
R = 16  # rows and columns of every core
COLUMNS = ("lambda_max lambda_sum tw_score tw_score_gains effective_rank_rest z_effective_rank_rest z_effective_rank_rest_gains "
           "top_overlap").split()

SCHEMA = f"""
CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT);
CREATE TABLE runs(run_id INTEGER PRIMARY KEY, uuid TEXT UNIQUE, name TEXT, variant TEXT, status TEXT, seed INTEGER);
CREATE TABLE params(run_id INTEGER, key TEXT, value TEXT, PRIMARY KEY(run_id, key));
CREATE TABLE snapshots(snapshot_id INTEGER PRIMARY KEY, run_id INTEGER, step INTEGER, status TEXT, UNIQUE(run_id, step));
CREATE TABLE matrices(matrix_id INTEGER PRIMARY KEY, run_id INTEGER, form TEXT, part TEXT, scope TEXT, layer INTEGER, head INTEGER,
                      tensor TEXT, rows INTEGER, cols INTEGER);
CREATE TABLE spectra(snapshot_id INTEGER, matrix_id INTEGER, {' REAL, '.join(COLUMNS)} REAL, null_id INTEGER, status TEXT, PRIMARY KEY(snapshot_id, matrix_id)) WITHOUT ROWID;
CREATE TABLE nulls(null_id INTEGER PRIMARY KEY, key TEXT UNIQUE, m REAL, s REAL, effective_rank_rest_mean REAL);
CREATE TABLE eval_metrics(run_id INTEGER, step INTEGER, split TEXT, loss REAL);
CREATE TABLE layer_spectra(run_id INTEGER, mp_gap REAL);
INSERT INTO meta VALUES('schema_version', '1');
"""


def noise_run(rng, variant="mha", seed=1, layers=4, heads=3, every=10, steps=300, m=0.7, s=0.05, drift=0.0):
    """An untrained run whose heads stay noise: tw_score is Tracy-Widom 1 (a shifted gamma law has its first three moments), one
    value a head and an Ornstein-Uhlenbeck walk around it where drift > 0."""
    at = np.arange(0, steps + 1, every)
    shape = (layers, heads, len(at))

    def scores(keep):
        z = rng.normal(size=shape)
        for k in range(1, len(at)):
            z[..., k] = keep * z[..., k - 1] + math.sqrt(1 - keep * keep) * z[..., k]
        return z

    keep = 1.0 if drift == 0 else math.exp(-drift)
    tw = stats.gamma.ppf(stats.norm.cdf(scores(keep)), 46.446, scale=0.186054) - 9.84801
    z = scores(keep)
    return dict(variant=variant, seed=seed, layers=layers, heads=heads, every=every, steps=at, last=steps, m=m, s=s, log_excess=s * (tw - TW_MEAN) / TW_SD, gains_tw=np.where(tw > 3, tw, np.nan), z=z,
                gains_z=np.where(z < -3, z, np.nan), rest_mean=12.0, rest_sd=0.25, overlap=np.full(shape, np.nan),
                recorded=np.ones(len(at), bool), loss=3.0 + 0.01 * rng.normal(), planned=len(at), name=f"{variant}-{seed}")


def tw_of(run):
    return TW_SD * run["log_excess"] / run["s"] + TW_MEAN


def plant(run, layer, head, first, excess=2.0, until=None, overlap=0.9):
    """From snapshot `first` on the head's largest eigenvalue is `excess` times e^m."""
    cut = slice(first, until)
    run["log_excess"][layer, head, cut] = math.log(excess)
    run["gains_tw"][layer, head, cut] = tw_of(run)[layer, head, cut] - 1
    run["overlap"][layer, head, first:] = overlap


def collapse(run, layer, head, first, share=0.6):
    """From snapshot `first` on the effective rank of the rest is that share of the null's."""
    run["z"][layer, head, first:] = (share - 1) * run["rest_mean"] / run["rest_sd"]
    run["gains_z"][layer, head, first:] = run["z"][layer, head, first:] + 1


def write(path, runs):
    db = sqlite3.connect(path)
    db.execute("PRAGMA synchronous = OFF")
    db.executescript(SCHEMA)
    for run_id, run in enumerate(runs, 1):
        db.execute("INSERT INTO runs VALUES(?, ?, ?, ?, 'finished', ?)",
                   (run_id, str(uuid.uuid4()), run["name"], run["variant"], run["seed"]))
        db.executemany("INSERT INTO params VALUES(?, ?, ?)",
                       [(run_id, "diagnostics.every", str(run["every"])), (run_id, "diagnostics.dense_until", "0"),
                        (run_id, "train.steps", str(run["last"]))])
        db.execute("INSERT INTO eval_metrics VALUES(?, ?, 'validation', ?)", (run_id, run["last"], run["loss"]))
        db.execute("INSERT INTO nulls VALUES(?, ?, ?, ?, ?)", (run_id, f"null {run_id}", run["m"], run["s"], run["rest_mean"]))
        for layer in range(run["layers"]):
            for head in range(run["heads"]):
                db.execute("INSERT INTO matrices VALUES(?, ?, 'score', 'full', 'head', ?, ?, '', ?, ?)",
                           (1000 * run_id + layer * run["heads"] + head, run_id, layer, head, R, R))
        tw = tw_of(run)
        for k, step in enumerate(run["steps"]):
            if run["recorded"][k] is None:
                continue  # not even a row: its event was lost
            snapshot = 10000 * run_id + k
            db.execute("INSERT INTO snapshots VALUES(?, ?, ?, ?)",
                       (snapshot, run_id, int(step), "done" if run["recorded"][k] else "dropped"))
            if not run["recorded"][k]:
                continue
            for layer in range(run["layers"]):
                for head in range(run["heads"]):
                    i = (layer, head, k)
                    mean = 0.01
                    rest = run["rest_mean"] + run["z"][i] * run["rest_sd"]
                    values = [mean * math.exp(run["m"] + run["log_excess"][i]), mean * R, tw[i], run["gains_tw"][i], rest,
                              run["z"][i], run["gains_z"][i], run["overlap"][i]]
                    db.execute(f"INSERT INTO spectra VALUES({', '.join('?' * 12)})",
                               [snapshot, 1000 * run_id + layer * run["heads"] + head] +
                               [None if np.isnan(v) else float(v) for v in values] +
                               [run_id, "ok"])
    db.commit()
    db.close()


# ---------------------------------------------------------------- the second computation

def threshold(tests):
    return optimize.brentq(lambda u: -2 / 3 * u ** 1.5 - math.log(4 * math.sqrt(math.pi)) - 0.75 * math.log(u) -
                           math.log(0.01 / tests), 1, 100, xtol=1e-13)


def seen(run):
    return np.array([bool(x) for x in run["recorded"]])


def pairs(run, over, at=None):
    """[layers, heads, snapshots]: over at t >= 1 and at the next planned snapshot, both recorded; `at` only at t."""
    over = over & seen(run)
    now, after = over[..., :-1], over[..., 1:]
    both = now & after & (run["steps"][:-1] >= 1)
    return both if at is None else both & at[..., :-1]


def first(run, both, size):
    """By layer: (index of the snapshot, head) or None."""
    out = []
    for layer in range(run["layers"]):
        found = np.flatnonzero(both[layer].any(axis=0))
        if len(found) == 0:
            out.append(None)
            continue
        k = found[0]
        out.append((int(k), int(np.argmax(np.where(both[layer, :, k], size[layer, :, k], -np.inf)))))
    return out


def over_limits(run, u, theta):
    return (tw_of(run) >= u) & (run["log_excess"] >= math.log(theta))


def onsets(run, u, theta):
    return first(run, pairs(run, over_limits(run, u, theta), run["gains_tw"] >= u), run["log_excess"])


def collapses(run, z_limit):
    rest = 1 + run["z"] * run["rest_sd"] / run["rest_mean"]
    return first(run, pairs(run, (rest <= 0.8) & (run["gains_z"] <= z_limit)), -rest)


def persists(run, u, theta, layer, onset):
    """(True, False or None; how many after; how many over)."""
    k, head = onset
    later = np.flatnonzero(seen(run))
    later = later[later > k]
    over = over_limits(run, u, theta)[layer, head, later]
    overlap = run["overlap"][layer, head, later]
    if len(later) < 10:
        return None, len(later), int(over.sum())
    return bool(over.mean() >= 0.9 - 1e-12 and np.median(overlap) >= 0.5), len(later), int(over.sum())


def midranks(x):
    return stats.rankdata(np.where(np.isfinite(x), x, 1e300), method="average")


def covariance_q(ranks):
    """Of ranks [seeds, layers], or of many such [..., seeds, layers]."""
    x = ranks - ranks.mean(axis=-2, keepdims=True)
    c = np.einsum("...sa,...sb->...ab", x, x) / (ranks.shape[-2] - 1)
    a, b = np.triu_indices(ranks.shape[-1], 1)
    near = b - a == 1
    return c[..., a[near], b[near]].mean(axis=-1) - c[..., a[~near], b[~near]].mean(axis=-1)


def permuted(rng, x, draws):
    """[draws, seeds, layers]: each layer's seeds in a random order of its own."""
    order = np.argsort(rng.random((draws,) + x.shape), axis=1)
    return np.take_along_axis(np.broadcast_to(x, order.shape), order, axis=1)


def propagation(rng, steps, draws=4000):
    ranks = np.array([midranks(row) for row in steps])
    q = covariance_q(ranks)
    return q, (covariance_q(permuted(rng, ranks, draws)) >= q - 1e-9).mean()


def sign_flip(d):
    d = np.asarray(d, float)
    sums = np.array([np.dot(d, s) for s in itertools.product((1, -1), repeat=len(d))])
    return (sums >= d.sum() - 1e-9).mean()


def upward(steps):
    with np.errstate(invalid="ignore"):
        lag = np.where(np.isinf(steps[:, 1:]) & np.isinf(steps[:, :-1]), 0, np.sign(steps[:, 1:] - steps[:, :-1]))
    return lag.mean(axis=1)


def coincidence(rng, spikes, falls, draws=4000):
    total, null = 0.0, np.zeros(draws)
    for layer in range(spikes.shape[1]):
        both = np.isfinite(spikes[:, layer]) & np.isfinite(falls[:, layer])
        a, b = spikes[both, layer], falls[both, layer]
        total += np.abs(a - b).sum()
        null += np.abs(a - permuted(rng, b[:, None], draws)[:, :, 0]).sum(axis=1)
    return total, (null <= total + 1e-9).mean()


def holm(p):
    p = np.asarray(p, float)
    order = np.argsort(p, kind="stable")
    out = np.empty(len(p))
    out[order] = np.maximum.accumulate(np.minimum(1, p[order] * np.arange(len(p), 0, -1)))
    return out


def kaplan_meier(times, happened):
    """[(time, at risk, events, share)]."""
    out, share = [], 1.0
    for t in sorted(set(np.asarray(times)[np.asarray(happened, bool)])):
        at_risk = sum(x >= t for x in times)
        events = sum(x == t and h for x, h in zip(times, happened))
        share *= 1 - events / at_risk
        out.append((t, at_risk, events, share))
    return out


# ---------------------------------------------------------------- what the tests share

class FindingsTest(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="bulkhead-")
        self.addCleanup(shutil.rmtree, self.dir, ignore_errors=True)

    def database(self, runs, name="study.db"):
        path = os.path.join(self.dir, name)
        write(path, runs)
        return path

    def ask(self, *arguments, code=0):
        done = subprocess.run([BULKHEAD, "findings", *arguments], capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, code, done.stderr)
        return done.stdout if code == 0 else done.stderr

    def judge(self, *arguments):
        return json.loads(self.ask(*arguments, "--json"), parse_constant=lambda x: self.fail(x))

    def finding(self, answer, name, variant):
        found = [f for f in answer["findings"] if f["finding"] == name and f["variant"] == variant]
        self.assertEqual(len(found), 1, (name, variant))
        return found[0]
