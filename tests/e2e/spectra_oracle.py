"""Random small models, their spectra by the definitions of docs/design.md section 6 in NumPy, and the comparison with what the
program computes from the same weights (spectra_rows).

    spectra_oracle.py SPECTRA_ROWS VARIANT [--cases N] [--seed S]      exit status 1 and a message at the first difference

The plainest route: maps are formed in full and decomposed, the Marchenko-Pastur law is integrated. Shares no code
with the program and reads none of its output but the rows.
"""
import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile

import numpy as np

import checkpoints

TW1_95 = 0.9793160535
FP32_EPS = 2.0 ** -23

# ---------------------------------------------------------------- random models


def draw_weight(rng, shape, scale):
    """Noise, noise with a spike, heavy tails, low rank, or zero; fp32."""
    kind = rng.choice(["noise", "spike", "heavy", "low", "zero"], p=[0.5, 0.2, 0.15, 0.1, 0.05])
    x = rng.standard_normal(shape)
    if kind == "spike":
        x += 3 * np.sqrt(max(shape)) * np.outer(*(v / np.linalg.norm(v) for v in map(rng.standard_normal, shape)))
    if kind == "heavy":
        x = rng.standard_t(2, shape)
    if kind == "low":
        k = max(1, min(shape) // 2)
        x = rng.standard_normal((shape[0], k)) @ rng.standard_normal((k, shape[1]))
    return (scale * x * (kind != "zero")).astype(np.float32)


def draw_model(rng, variant):
    """(settings, weights): what the program is told, and tensors by their names within the layer."""
    heads = int(rng.integers(1, 5))
    dim = 2 * int(rng.integers(1, 13))
    m = dict(variant=variant, H=heads, G=heads, D=dim, d=int(rng.integers(4, 65)), R=int(rng.integers(1, 41)), Rq=0,
             latent_norm=bool(rng.random() < 0.7), hidden=variant == "mla-prerope" and rng.random() < 0.4, Dv=dim, Dr=0)
    if variant == "mha":
        m["G"] = int(rng.choice([g for g in range(1, heads + 1) if heads % g == 0]))
    if m["hidden"]:
        m["d"] = heads * dim
    if variant == "mla-decoupled":
        m.update(Dr=2 * int(rng.integers(1, 7)), Dv=int(rng.integers(1, 20)))
        m["Rq"] = int(rng.integers(1, 33)) if rng.random() < 0.4 else 0
    H, G, D, Dv, Dr, d, R, Rq = (m[k] for k in ("H", "G", "D", "Dv", "Dr", "d", "R", "Rq"))
    shapes = {"attention.W_O": (d, H * Dv)}
    if variant == "mha":
        shapes.update({"attention.W_Q": (H * D, d), "attention.W_K": (G * D, d), "attention.W_V": (G * D, d)})
    elif variant == "mla-prerope":
        shapes.update({"attention.W_Q": (H * D, d), "attention.W_UK": (H * D, R), "attention.W_UV": (H * D, R)})
        shapes.update({"attention.W_D": (R, d)} if m["hidden"] else
                      {"attention.W_K": (H * D, d), "attention.W_V": (H * D, d), "attention.W_DK": (R, H * D),
                       "attention.W_DV": (R, H * D)})
    else:
        shapes.update({"attention.W_DKV": (R, d), "attention.W_KR": (Dr, d), "attention.W_UKV": (H * (D + Dv), R)})
        shapes.update({"attention.W_DQ": (Rq, d), "attention.W_UQ": (H * (D + Dr), Rq)} if Rq else
                      {"attention.W_Q": (H * (D + Dr), d)})
    scale = 10.0 ** rng.choice([-12, -2, 0, 12], p=[0.1, 0.6, 0.2, 0.1])
    w = {name: draw_weight(rng, shape, scale) for name, shape in shapes.items()}
    gains = {"attention_norm": d}
    if m["latent_norm"] and variant != "mha":
        gains.update({"attention.latent_norm": R}, **({"attention.q_latent_norm": Rq} if Rq else {}))
    for name, n in gains.items():
        w[name] = np.exp(0.3 * rng.standard_normal((1, n))).astype(np.float32)
    if rng.random() < 0.15:
        name = str(rng.choice(sorted(w)))
        w[name][tuple(int(rng.integers(0, n)) for n in w[name].shape)] = rng.choice([np.nan, np.inf])
    settings = dict(model=dict(layers=1, width=d, heads=H, head_dim=D, kv_heads=G, ffn=8, vocab=16, context=8),
                    attention=dict(variant=variant, latent_norm=str(m["latent_norm"]).lower()))
    if variant != "mha":
        settings["attention"]["kv_lora_rank"] = R
    if variant == "mla-prerope":
        settings["attention"]["prerope_source"] = "hidden" if m["hidden"] else "key"
    if variant == "mla-decoupled":
        settings["attention"].update(qk_nope_head_dim=D, qk_rope_head_dim=Dr, v_head_dim=Dv, q_lora_rank=Rq)
    m["sigma2"] = str(rng.choice(["trace", "median", "fit"]))
    settings["diagnostics"] = dict(sigma2=m["sigma2"], forms="[score, channel, weight]", parts="[full, content, rope, ov]")
    return m, settings, w


# ---------------------------------------------------------------- maps, section 6.1


def matrices(m, w):
    """Every recorded matrix: (form, part, scope, head, tensor) to (X, r, shape of the core)."""
    W = {k.split(".")[-1]: np.asarray(v, float) for k, v in w.items()}
    H, G, D, Dv, Dr, d, R, Rq = (m[k] for k in ("H", "G", "D", "Dv", "Dr", "d", "R", "Rq"))
    g_in = W["attention_norm"][0]
    latent = {"mha": None, "mla-prerope": "W_D" if m["hidden"] else "sum", "mla-decoupled": "W_DKV"}[m["variant"]]
    down = None
    if latent == "sum":
        down = (W["W_DK"] @ W["W_K"] + W["W_DV"] @ W["W_V"]) * g_in
    elif latent:
        down = W[latent] * g_in
    c_rms = 1.0
    if m["variant"] == "mla-decoupled" and m["latent_norm"]:
        size = np.sqrt((down ** 2).sum() / R)
        c_rms = size if np.isfinite(size) and size > 0 else 1.0
    if down is not None and m["latent_norm"]:
        down = W["latent_norm"][0][:, None] * down
    query = W["W_Q"] * g_in if not Rq else W["W_UQ"] @ ((W["q_latent_norm"][0][:, None] if m["latent_norm"] else 1) *
                                                       (W["W_DQ"] * g_in))
    pairs = {}  # (part, head) to (A, B)
    for h in range(H):
        g = h * G // H
        A = query[h * (D + Dr):(h + 1) * (D + Dr)]
        if m["variant"] == "mha":
            pairs["full", h] = A, W["W_K"][g * D:(g + 1) * D] * g_in
            value = W["W_V"][g * D:(g + 1) * D] * g_in
        elif m["variant"] == "mla-prerope":
            pairs["full", h] = A, W["W_UK"][h * D:(h + 1) * D] @ down
            value = W["W_UV"][h * D:(h + 1) * D] @ down
        else:
            both = W["W_UKV"][h * (D + Dv):(h + 1) * (D + Dv)]
            content, rope, value = both[:D] @ down, W["W_KR"] * g_in, both[D:] @ down
            pairs["content", h], pairs["rope", h] = (A[:D], content), (A[D:], rope)
            pairs["full", h] = A, np.vstack([content / c_rms, rope])
        pairs["ov", h] = W["W_O"][:, h * Dv:(h + 1) * Dv].T, value
    limits = [d] + ([R] if down is not None else [])
    least = {"full": min(limits + [D]) + Dr, "content": min(limits + [D]), "rope": Dr, "ov": min(limits + [Dv])}
    wide = {"full": min(limits + [G * D]) + Dr, "content": min(limits + [G * D]), "rope": Dr, "ov": min(limits + [G * Dv])}
    out = {}
    for part in sorted({p for p, _ in pairs}):
        bound = [d] + ([Rq] if Rq and part != "ov" else [])
        r, layer_r = min(bound + [least[part]]), min(bound + [wide[part]])
        for h in range(H):
            A, B = pairs[part, h]
            out["score", part, "head", h, ""] = A.T @ B, r, (r, r)
            out["channel", part, "head", h, ""] = A @ B.T, r, (r, r)
        out["score", part, "layer", -1, ""] = sum(pairs[part, h][0].T @ pairs[part, h][1] for h in range(H)), layer_r, (layer_r,) * 2
    for key, X in single_weights(m, W).items():
        out[key] = X, min(X.shape), X.shape
    return out


def single_weights(m, W):
    H, G, D, Dv, Dr = (m[k] for k in ("H", "G", "D", "Dv", "Dr"))
    out = {}

    def heads(part, tensor, X, count, block, skip=0, used=None):
        for h in range(count):
            out["weight", part, "head", h, tensor] = X[h * block + skip:h * block + skip + (used or block)]
    for name in ("W_DKV", "W_KR", "W_DQ", "W_D", "W_DK", "W_DV"):
        if name in W:
            out["weight", "full", "layer", -1, name] = W[name]
    for name in ("W_Q", "W_UQ"):
        if name in W:
            heads("full", name, W[name], H, D + Dr)
    if m["variant"] == "mha":
        heads("full", "W_K", W["W_K"], G, D)
        heads("ov", "W_V", W["W_V"], G, D)
    elif m["variant"] == "mla-prerope":
        heads("full", "W_UK", W["W_UK"], H, D)
        heads("ov", "W_UV", W["W_UV"], H, D)
        for name in ("W_K", "W_V") if not m["hidden"] else ():
            heads("full", name, W[name], H, D)
    else:
        heads("full", "W_UK", W["W_UKV"], H, D + Dv, 0, D)
        heads("ov", "W_UV", W["W_UKV"], H, D + Dv, D, Dv)
    for h in range(H):
        out["weight", "ov", "head", h, "W_O"] = W["W_O"][:, h * Dv:(h + 1) * Dv]
    return out


# ---------------------------------------------------------------- columns, section 6.3

GAUSS_X, GAUSS_W = np.polynomial.legendre.leggauss(8)


def mp_law(t, gamma):
    """Density of Marchenko-Pastur (ratio gamma, mean 1) in t, 0 < t < pi, lambda = 1 + gamma - 2 sqrt(gamma) cos(t)."""
    q = np.sqrt(gamma)
    return 2 * np.sin(t) ** 2 / (np.pi * ((1 - q) ** 2 + 4 * q * np.sin(t / 2) ** 2))


@functools.lru_cache(None)
def mp_table(gamma):
    """(t, share under t) on points that are dense where the law bends, near t = 1 - sqrt(gamma); each step integrated."""
    width = 1 - np.sqrt(gamma)
    t = width * np.sinh(np.linspace(0, np.arcsinh(np.pi / width), 12000))
    steps = np.diff(t)[:, None]
    law = mp_law(t[:-1, None] + steps * (GAUSS_X + 1) / 2, gamma)
    return t, np.concatenate([[0], np.cumsum((law * GAUSS_W * steps / 2).sum(1))])


def mp_cdf(x, gamma):
    """Share of the law under x: closed form at gamma = 1, else the table, between whose points a cubic follows its slope."""
    q = np.sqrt(gamma)
    end = 2 * np.arcsin(np.sqrt(np.clip((x - (1 - q) ** 2) / (4 * q), 0, 1)))
    if gamma == 1:
        return (end + np.sin(end)) / np.pi
    t, F = mp_table(gamma)
    k = np.clip(np.searchsorted(t, end) - 1, 0, len(t) - 2)
    h, a, b = t[k + 1] - t[k], mp_law(t[k], gamma), mp_law(t[k + 1], gamma)
    z = (end - t[k]) / h
    return (F[k] * (1 + 2 * z) * (1 - z) ** 2 + h * a * z * (1 - z) ** 2 + F[k + 1] * z * z * (3 - 2 * z) +
            h * b * z * z * (z - 1))


def mp_median(gamma):
    low, high = (1 - np.sqrt(gamma)) ** 2, (1 + np.sqrt(gamma)) ** 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if mp_cdf(np.array([middle]), gamma)[0] < 0.5 else (low, middle)
    return low


def distance(x, F):
    n = len(x)
    return max((np.arange(1, n + 1) / n - F).max(), (F - np.arange(n) / n).max())


def fit_variance(x, gamma):
    """x ascending. The variance whose law, cut at its own upper edge, is nearest to the values under that edge."""
    edge, mean, i = (1 + np.sqrt(gamma)) ** 2, x.mean(), np.arange(len(x))

    def nearest(grid):
        F = mp_cdf(x / grid[:, None], gamma)
        n = (x <= edge * grid[:, None]).sum(1)[:, None]
        off = np.where(i < n, np.maximum((i + 1) / n - F, F - i / n), -np.inf).max(1)
        off[2 * n[:, 0] < len(x)] = np.inf
        return None if np.isinf(off).all() else grid[np.argmin(off)]
    step = np.log(40) / 400
    best = nearest(mean * 0.05 * np.exp(step * np.arange(401)))
    return None if best is None else nearest(best * np.exp(step * np.arange(-100, 101) / 100))


def entropy_rank(x):
    p = x[x > 0] / x.sum()
    return np.exp(-(p * np.log(p)).sum())


def tail(x):
    """x ascending, above the noise: (alpha, xmin, D, count) of the best tail, or None."""
    best = None
    for start in range(len(x) - 9):
        t = x[start:]
        total = np.log(t / t[0]).sum()
        if (start and x[start] == x[start - 1]) or total <= 1e-9 * len(t):
            continue
        alpha = 1 + len(t) / total
        D = np.abs(1 - (t / t[0]) ** (1 - alpha) - np.arange(len(t)) / len(t)).max()
        if best is None or D < best[2]:
            best = alpha, t[0], D, len(t)
    return best


def columns(X, r, shape, method):
    """(columns, singular values): a column that does not exist is absent."""
    if not np.isfinite(X).all():
        return dict(status="nonfinite"), None
    s = np.linalg.svd(X, compute_uv=False)[:r]
    if s[0] == 0:
        return dict(status="zero", lambda_max=0, lambda_sum=0, numerical_rank=0), s
    p, n = sorted(shape)
    gamma, noise, t = p / n, n * FP32_EPS, s / s[0]
    x, scale = np.sort(t * t), s[0] ** 2
    rank = int((t > noise).sum())
    c = dict(lambda_max=scale, lambda_sum=scale * x.sum(), numerical_rank=rank, stable_rank=x.sum(),
             participation_ratio=x.sum() ** 2 / (x * x).sum(), effective_rank=entropy_rank(x), effective_rank_rv=entropy_rank(t))
    if r < 2:
        return dict(c, status="too_small"), s
    if rank > 1:
        c.update(spectral_gap=1 / x[-2], effective_rank_rest=entropy_rank(x[:-1]))
    median = float(np.median(x))
    found = dict(trace=x.mean(), median=median / mp_median(gamma) if median > noise ** 2 else None,
                 fit=fit_variance(x, gamma) if rank > r // 2 else None)
    for name in ("median", "fit"):
        if found[name] is not None:
            c["sigma2_" + name] = scale * found[name]
    v = found[method]
    if v is not None:
        low, high = v * (1 - np.sqrt(gamma)) ** 2, v * (1 + np.sqrt(gamma)) ** 2
        a, b = np.sqrt(n - 1), np.sqrt(p)
        edge95 = v / n * ((a + b) ** 2 + TW1_95 * (a + b) * (1 / a + 1 / b) ** (1 / 3))
        c.update(sigma2=scale * v, mp_lambda_minus=scale * low, mp_lambda_plus=scale * high, mp_edge95=scale * edge95,
                 mp_gap=1 / high, outliers_above=int((x > high).sum()), outliers_above95=int((x > edge95).sum()),
                 outlier_energy=x[x > high].sum() / x.sum(), mp_ks=distance(x, mp_cdf(x / v, gamma)))
        if gamma < 1:
            c["outliers_below"] = int((x < low).sum())
    best = tail(x[x > noise ** 2])
    if best:
        c.update(alpha=best[0], alpha_xmin=scale * best[1], alpha_ks=best[2], alpha_n=best[3])
    return dict(c, status="ok" if rank == r else "rank_deficient"), s


# ---------------------------------------------------------------- the comparison

TOLERANCE = dict(sigma2_fit=1e-4, mp_ks=1e-8, alpha=1e-7, alpha_ks=1e-8)  # others 1e-8; relative, but for _ks
NEEDS_A_NULL = ("null_", "tw_", "z_", "top_overlap")


class Difference(Exception):
    pass


def compare_pair(got, X, s):
    u, v = (np.array(got[k], float) for k in "uv")
    if s is None or s[0] == 0:
        if not np.isnan(u).all() or not np.isnan(v).all():
            raise Difference("a top pair of nothing")
        return
    if u.shape + v.shape != X.shape:
        raise Difference(f"a top pair of {u.shape} and {v.shape} for {X.shape}")
    if not abs(np.linalg.norm(u) - 1) < 1e-5 or not abs(np.linalg.norm(v) - 1) < 1e-5:
        raise Difference("a top pair that is not of norm 1")
    off = max(np.linalg.norm(X @ v / s[0] - u), np.linalg.norm(X.T @ u / s[0] - v))
    if off > 2e-6:
        raise Difference(f"a top pair that is off by {off:.2g}")
    if u.max() < np.abs(u).max() * (1 - 1e-5):
        raise Difference("the sign of a top pair")


def compare_row(got, want, s, method, worst):
    for name, x in got.items():
        if name in ("form", "part", "scope", "layer", "head", "tensor", "rows", "cols", "values", "u", "v"):
            continue
        y = want.get(name)
        if name.startswith(NEEDS_A_NULL):
            continue
        if name == "status" or x is None or y is None or isinstance(y, int):
            if x != y:
                raise Difference(f"{name} is {x}, not {y}")
            continue
        fitted = method == "fit" and name.startswith(("sigma2", "mp_", "outlier_energy"))
        allowed = TOLERANCE.get(name, 1e-8) if not fitted else 1e-4
        error = abs(x - y) / (1 if name.endswith("_ks") else abs(y) or 1)
        worst[name] = max(worst.get(name, 0), error)
        if not error <= allowed:
            raise Difference(f"{name} is {x!r}, not {y!r}")
    values = got["values"]
    if s is None:
        if any(v is not None for v in values):
            raise Difference("singular values of nothing")
    elif len(values) != len(s) or np.abs(np.array(values) - s).max() > 1e-12 * s[0]:
        raise Difference("the singular values")


def run_case(program, variant, seed, worst, seen):
    rng = np.random.default_rng(seed)
    m, settings, w = draw_model(rng, variant)
    with tempfile.TemporaryDirectory(prefix="bulkhead-") as folder:
        path = os.path.join(folder, "weights.safetensors")
        checkpoints.write(path, {"layers.0." + k: (v.shape, v.ravel()) for k, v in w.items()})
        words = [f"{a}.{b}={c}" for a, keys in settings.items() for b, c in keys.items()]
        done = subprocess.run([program, path] + words, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise Difference(f"seed {seed}: {done.stderr}")
    wanted = matrices(m, w)
    rows = {tuple(r[k] for k in ("form", "part", "scope", "head", "tensor")): r for r in json.loads(done.stdout)}
    if set(rows) != set(wanted):
        raise Difference(f"seed {seed}, {m}: the matrices differ by {sorted(set(rows) ^ set(wanted))}")
    for key, (X, r, shape) in wanted.items():
        got = rows[key]
        want, s = columns(X, r, shape, m["sigma2"])
        try:
            if (got["rows"], got["cols"]) != tuple(shape):
                raise Difference(f"a core of {got['rows']} x {got['cols']}, not {shape}")
            compare_row(got, want, s, m["sigma2"], worst)
            compare_pair(got, X, s)
        except Difference as e:
            raise Difference(f"seed {seed}, {m}, {key}: {e}") from None
        seen[want["status"]] = seen.get(want["status"], 0) + 1


def main():
    p = argparse.ArgumentParser()
    p.add_argument("program")
    p.add_argument("variant")
    p.add_argument("--cases", type=int, default=10)
    p.add_argument("--seed", type=int, default=0)
    a = p.parse_args()
    worst, seen = {}, {}
    try:
        with np.errstate(all="ignore"):
            for i in range(a.cases):
                run_case(a.program, a.variant, a.seed + i, worst, seen)
    except Difference as e:
        sys.exit(str(e))
    print(json.dumps(dict(cases=a.cases, matrices=seen, worst={k: float(f"{v:.2g}") for k, v in worst.items()})))


if __name__ == "__main__":
    main()
