#!/usr/bin/env python3
"""A study's database without its heads: what the tables of docs/reproduction.md are asked of, small enough to be kept.

usage: summary.py STUDY.db FINDINGS.json DATASET.json OUT.db [--limit BYTES]

OUT.db is a database of Bulkhead's, for `bulkhead query`: runs, params, snapshots, train_metrics, eval_metrics and events from
warnings on are whole, without paths; layer_spectra has COLUMNS alone, of the part full, medians and maxima over the heads of a
layer. Where that passes the limit (5 MB) snapshots are left out of layer_spectra that are not later than the one before by 1%, 2%, ...
of its step; the last stays.
Its own tables: `findings`, `onsets` and `study` (what `findings --json` says; `train_tokens` of the dataset), `naive_onsets`
(v_spike_onset of all steps). OUT.db is replaced.
"""
import argparse
import json
import os
import sqlite3
import sys

COLUMNS = ("mp_gap", "null_gap", "tw_score", "outlier_energy", "null_outlier_energy", "stable_rank", "effective_rank",
           "effective_rank_rest", "z_effective_rank_rest", "top_overlap")
WHOLE = ("meta", "snapshots", "params", "train_metrics", "eval_metrics")
VIEWS = ("v_layer_step", "v_metrics", "v_spike_onset", "v_variant_compare")
PATHS = ("run.dir", "data.train", "data.validation", "data.tokenizer")
MOST_SHARE = 1.0

OWN = """
CREATE TABLE study(key TEXT PRIMARY KEY, value);
CREATE TABLE findings(finding TEXT, variant TEXT, verdict TEXT, reason TEXT, tests TEXT, numbers TEXT, PRIMARY KEY(finding, variant));
CREATE TABLE onsets(run TEXT, variant TEXT, seed INTEGER, layer INTEGER, step INTEGER, head INTEGER, PRIMARY KEY(run, layer));
"""


def copy_tables(db):
    """Those of `whole`, into the empty main database."""
    made = dict(db.execute("SELECT name, sql FROM whole.sqlite_schema WHERE type IN ('table', 'view')"))
    for table in WHOLE + ("runs", "events", "layer_spectra"):
        db.execute(made[table])
    for view in VIEWS:
        db.execute(made[view])
    for table in WHOLE:
        db.execute(f"INSERT INTO {table} SELECT * FROM whole.{table}")
    db.execute("INSERT INTO runs SELECT * FROM whole.runs")
    db.execute("UPDATE runs SET config_yaml = NULL")
    db.execute(f"DELETE FROM params WHERE key IN {PATHS}")
    db.execute("INSERT INTO events SELECT * FROM whole.events WHERE level != 'info'")
    db.execute("CREATE TABLE naive_onsets AS SELECT run_id, variant, form, layer, step FROM whole.v_spike_onset WHERE part = 'full'")


def spaced(steps, share):
    """Of ascending steps those that are later than the one kept before by that share of it, and the last."""
    kept = []
    for step in steps:
        if not kept or step >= kept[-1] * (1 + share) or step == steps[-1]:
            kept.append(step)
    return kept


def copy_spectra(db, share):
    names = [row[1] for row in db.execute("PRAGMA whole.table_info(layer_spectra)")]
    key = names[:names.index("layer") + 1]
    values = ", ".join(name if name in key or name in COLUMNS else "NULL" for name in names)
    db.execute("DELETE FROM layer_spectra")
    for run, in db.execute("SELECT run_id FROM runs").fetchall():
        steps = [step for step, in db.execute("SELECT step FROM snapshots WHERE run_id = ? AND status = 'done' ORDER BY step", (run,))]
        db.execute(f"""INSERT INTO layer_spectra SELECT {values} FROM whole.layer_spectra
            WHERE run_id = ? AND part = 'full' AND stat IN ('median', 'max') AND step IN (SELECT value FROM json_each(?))""",
                   (run, json.dumps(spaced(steps, share))))


def write_findings(db, said, train_tokens):
    for statement in OWN.split(";"):
        db.execute(statement)
    db.executemany("INSERT INTO study VALUES(?, ?)", {**said["study"], "train_tokens": train_tokens}.items())
    for f in said["findings"]:
        db.execute("INSERT INTO findings VALUES(?, ?, ?, ?, ?, ?)",
                   (f["finding"], f["variant"], f["verdict"], f["reason"], json.dumps(f["tests"]), json.dumps(f["numbers"])))
    for run in said["runs"]:
        for layer, (step, head) in enumerate(zip(run.get("steps_by_layer", []), run.get("heads_by_layer", []))):
            db.execute("INSERT INTO onsets VALUES(?, ?, ?, ?, ?, ?)", (run["run"], run["variant"], run["seed"], layer, step, head))


def read_json(path):
    try:
        with open(path, encoding="utf-8") as f:
            return json.load(f)
    except (OSError, ValueError) as e:
        sys.exit(f"{path}: {e}")


def write(db, findings, dataset, limit, path):
    """Returns the share by which snapshots are apart."""
    db.execute("BEGIN")
    copy_tables(db)
    write_findings(db, findings, dataset["train"]["tokens"])
    db.execute("COMMIT")
    share = 0.0
    while share <= MOST_SHARE:
        db.execute("BEGIN")
        copy_spectra(db, share)
        db.execute("COMMIT")
        db.execute("VACUUM main")
        if os.path.getsize(path) <= limit:
            return share
        share += 0.01
    sys.exit(f"{path}: over {limit} bytes; give a larger --limit")


def main():
    p = argparse.ArgumentParser(usage=__doc__.split("\n\n")[1].removeprefix("usage: "))
    p.add_argument("study")
    p.add_argument("findings")
    p.add_argument("dataset")
    p.add_argument("out")
    p.add_argument("--limit", type=int, default=5_000_000)
    a = p.parse_args()
    findings, dataset = read_json(a.findings), read_json(a.dataset)
    part = a.out + ".part"
    if os.path.exists(part):
        os.remove(part)
    try:
        db = sqlite3.connect(f"file:{part}?mode=rwc", uri=True, isolation_level=None)
        db.execute("ATTACH ? AS whole", (f"file:{a.study}?mode=ro",))
        share = write(db, findings, dataset, a.limit, part)
        db.close()
    except sqlite3.Error as e:
        sys.exit(f"{a.study}: {e}")
    os.replace(part, a.out)
    kept = "each snapshot" if share == 0 else f"snapshots that are {100 * share:.0f}% apart"
    print(f"{a.out}: {os.path.getsize(a.out) / 1e6:.1f} MB, {kept}", file=sys.stderr)


if __name__ == "__main__":
    main()
