"""End to end: what `bulkhead convert` writes is read back by readers of this file's own, and where READERS_PYTHON names a Python that
has them by TensorBoard, MLflow, pandas and pyarrow."""
import csv
import glob
import json
import os
import shutil
import sqlite3
import struct
import subprocess
import unittest

import harness

USAGE, DATA, NO_INPUT = 64, 65, 66
READERS = os.environ.get("READERS_PYTHON", "python3")


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data):
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def records(path):
    """The records of a TFRecord file, checksums tried."""
    with open(path, "rb") as f:
        data = f.read()
    at = 0
    while at < len(data):
        length, crc = struct.unpack_from("<QI", data, at)
        assert masked(data[at:at + 8]) == crc, at
        record = data[at + 12:at + 12 + length]
        assert masked(record) == struct.unpack_from("<I", data, at + 12 + length)[0], at
        yield record
        at += 16 + length


def fields(message):
    """{number: [values]} of a protocol buffer's message."""
    found, at = {}, 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        tag = varint()
        wire = tag & 7
        if wire == 0:
            value = varint()
        else:
            size = {1: 8, 5: 4}.get(wire) or varint()
            value = message[at:at + size]
            at += size
        found.setdefault(tag >> 3, []).append(value)
    return found


def read_events(path):
    """({(tag, step): value}, {(tag, step): histogram's fields}), after the version."""
    scalars, histograms = {}, {}
    first, *rest = (fields(record) for record in records(path))
    assert first[3] == [b"brain.Event:2"], first
    for event in rest:
        (value,) = fields(event[5][0])[1]
        value = fields(value)
        key = value[1][0].decode(), event[2][0]
        if 2 in value:
            scalars[key] = struct.unpack("<f", value[2][0])[0]
        else:
            histograms[key] = fields(value[5][0])
    return scalars, histograms


BY_READERS = """
import json, os, sys
os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
import numpy, pandas, pyarrow, pyarrow.csv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from mlflow.tracking import MlflowClient
folder, said = sys.argv[1], {}
events = EventAccumulator(os.path.join(folder, "tensorboard", "config"), size_guidance=dict(scalars=0, histograms=0))
events.Reload()
said["tensorboard"] = {tag: [[e.step, e.value] for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
said["histograms"] = [len(events.Histograms(tag)) for tag in events.Tags()["histograms"]]
client = MlflowClient(os.path.join(folder, "mlflow"))
(run,) = client.search_runs(["1"])
said["mlflow"] = {key: [[m.step, m.value] for m in client.get_metric_history(run.info.run_id, key)] for key in run.data.metrics}
said["status"], said["params"] = run.info.status, run.data.params
with open(os.path.join(folder, "csv", "schema.json")) as f:
    tables = json.load(f)["tables"]
for name, table in tables.items():
    path = os.path.join(folder, "csv", table["file"])
    types = {c["name"]: dict(int64="Int64").get(c["type"], c["type"]) for c in table["columns"]}
    assert len(pandas.read_csv(path, dtype=types, encoding_errors="replace")) == table["rows"], name
    convert = pyarrow.csv.ConvertOptions(column_types={c["name"]: getattr(pyarrow, c["type"])() for c in table["columns"]},
                                         strings_can_be_null=True, quoted_strings_can_be_null=False, null_values=[""])
    assert pyarrow.csv.read_csv(path, convert_options=convert, parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True)).num_rows == table["rows"], name
said["npy"] = float(numpy.load(os.path.join(folder, "csv", "esd.singular_values.npy")).sum())
print(json.dumps(said))
"""

CURVES = ("mp_gap", "outlier_energy", "stable_rank", "effective_rank", "null_gap", "tw_score")


class ConvertTest(harness.RunTest):
    time_limit_s = 60

    def bytes_of(self, *parts):
        with open(self.path(*parts), "rb") as f:
            return f.read()

    def convert(self, *arguments, code=0):
        done = subprocess.run([harness.BULKHEAD, "convert", *arguments], capture_output=True, text=True, timeout=self.time_limit_s)
        self.assertEqual(done.returncode, code, done.stderr)
        return done

    def refused(self, code, *arguments, says):
        before = sorted(os.listdir(self.dir))
        done = self.convert(*arguments, code=code)
        self.assertEqual((done.stdout, len(done.stderr.splitlines())), ("", 1), done.stderr)
        for words in says:
            self.assertIn(words, done.stderr)
        self.assertEqual(sorted(os.listdir(self.dir)), before)


class Databases(ConvertTest):
    def recorded(self, name="run", **more):
        if not os.path.exists(self.path("train-00000.bin")):
            self.dataset()
        config = self.config(train=dict(steps=6, eval_every=3), diagnostics=dict(every=2, esd_every=2), attention=dict(variant="mla-decoupled"), **more)
        return self.train(2, config, name)

    def curves(self, db, run_id=1):
        """What the curves are by SQL."""
        want = {(k, s): v for k, s, v in db.execute("SELECT key, step, value FROM v_metrics WHERE run_id = ? AND value IS NOT NULL", (run_id,))}
        for column in CURVES:
            for form, part, layer, step, value in db.execute(f"SELECT form, part, layer, step, {column} FROM layer_spectra WHERE run_id = ? AND "
                                                             f"stat = 'median' AND {column} IS NOT NULL", (run_id,)):
                want[f"{column}/{form}.{part}/layer{layer:02}", step] = value
        return want

    def test_event_files_hold_the_curves_and_singular_values(self):
        db = self.recorded()
        done = self.convert(self.path("run"), "-o", self.path("out"), "--to", "tensorboard")
        self.assertEqual(os.listdir(self.path("out")), ["config"])
        (path,) = glob.glob(self.path("out", "config", "events.out.tfevents.*"))
        scalars, histograms = read_events(path)
        want = self.curves(db)
        self.assertGreater(len(want), 100)
        self.assertEqual(scalars, {key: struct.unpack("<f", struct.pack("<f", value))[0] for key, value in want.items()})
        rows = db.execute("SELECT form, part, layer, head, tensor, step, singular_values FROM esd JOIN snapshots USING(snapshot_id) "
                          "JOIN matrices USING(matrix_id)").fetchall()
        self.assertEqual(len(histograms), len(rows))
        for form, part, layer, head, tensor, step, blob in rows:
            s = struct.unpack(f"<{len(blob) // 8}d", blob)
            name = f"singular_values/{form}.{part}/layer{layer:02}" + (f"/head{head:02}" if head >= 0 else "") + (f"/{tensor}" if tensor else "")
            h = histograms[name, step]
            for number, value in ((1, min(s)), (2, max(s)), (3, len(s)), (4, sum(s)), (5, sum(x * x for x in s))):
                self.assertAlmostEqual(struct.unpack("<d", h[number][0])[0], value, delta=1e-12 * max(1, abs(value)))
            limits, buckets = (struct.unpack("<30d", h[number][0]) for number in (6, 7))
            edges = [float("-inf"), *limits]
            self.assertEqual(list(buckets), [sum(low < x <= high for x in s) for low, high in zip(edges, limits)])
        self.assertIn(f"1 run, {len(want) + len(rows)} points in 1 file", done.stdout)

    def test_tables_come_back_from_csv(self):
        self.recorded().close()
        with sqlite3.connect(self.path("run", "run.db")) as db:
            db.execute("INSERT INTO events VALUES(1, 9, 1, 2, '', 'info', NULL, 'said \"so\", twice\nand \u00e9')")
            db.execute("INSERT INTO train_metrics VALUES(1, 99, 5, 1e999, 3, 0.1, NULL, -1e-300, 123456789.123456789)")
            db.execute("INSERT INTO params VALUES(1, 'none', NULL)")
        self.convert(self.path("run", "run.db"), "-o", self.path("out"), "--to", "csv")
        with open(self.path("out", "schema.json")) as f:
            tables = json.load(f)["tables"]
        names = {name for name, in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")}
        self.assertEqual(set(tables), names)
        for name, table in tables.items():
            with open(self.path("out", table["file"]), newline="") as f:
                text = f.read()
            header, *rows = csv.reader(text.splitlines(keepends=True))
            self.assertEqual(header, [c["name"] for c in table["columns"]])
            want = db.execute(f"SELECT * FROM {name}")
            columns = [d[0] for d in want.description]
            want = want.fetchall()
            self.assertEqual((len(rows), table["rows"]), (len(want), len(want)), name)
            types = {c["name"]: c for c in table["columns"]}
            for row, values in zip(rows, want):
                row = dict(zip(header, row))
                for column, value in zip(columns, values):
                    if column + "_start" in row:
                        self.assertEqual(self.blob(name, column, row, types), value if value is not None else b"", (name, column))
                    elif value is None:
                        self.assertEqual(row[column], "", (name, column))
                    else:
                        kind = dict(int64=int, float64=float, string=str)[types[column]["type"]]
                        self.assertEqual(kind(row[column]), value if kind is not float else float(value), (name, column))
        self.assertIn('9,1,2,"","info",,"said ""so"", twice\nand \u00e9"\n', self.bytes_of("out", "events.csv").decode())
        self.assertIn("\n1,99,5,inf,3.0,0.10000000000000001,,-1", self.bytes_of("out", "train_metrics.csv").decode())

    def blob(self, table, column, row, types):
        if row[column + "_start"] == "":
            return b""
        with open(self.path("out", types[column + "_start"]["of"]), "rb") as f:
            data = f.read()
        self.assertEqual((data[:8], struct.unpack("<H", data[8:10])[0]), (b"\x93NUMPY\x01\x00", 118))
        header = eval(data[10:128])
        size = int(header["descr"][-1])
        self.assertEqual((header["descr"], header["shape"]), ("<f8" if table == "esd" else "<f4", ((len(data) - 128) // size,)))
        start, count = int(row[column + "_start"]), int(row[column + "_count"])
        return data[128 + start * size:128 + (start + count) * size]

    def test_a_store_of_mlflow(self):
        db = self.recorded()
        self.convert(self.path("run"), "-o", self.path("out"), "--to", "mlflow")
        (uuid, started), = db.execute("SELECT replace(uuid, '-', ''), CAST(strftime('%s', started_at) AS INTEGER) FROM runs")
        found = {}
        root = self.path("out", "1", uuid)
        for folder, _, files in os.walk(os.path.join(root, "metrics")):
            for name in files:
                with open(os.path.join(folder, name)) as f:
                    lines = [line.split() for line in f]
                for ms, value, step in lines:
                    self.assertTrue(started * 1000 <= int(ms) < started * 1000 + 60000)
                    found[os.path.relpath(os.path.join(folder, name), os.path.join(root, "metrics")), int(step)] = float(value)
                self.assertEqual(lines, sorted(lines, key=lambda line: int(line[2])))
        self.assertEqual(found, self.curves(db))
        for key, value in db.execute("SELECT key, value FROM params WHERE value <> ''"):
            with open(os.path.join(root, "params", key)) as f:
                self.assertEqual(f.read(), value)
        with open(os.path.join(root, "meta.yaml")) as f:
            meta = dict(line.rstrip("\n").split(": ", 1) for line in f)
        self.assertEqual((meta["run_id"], meta["status"], meta["start_time"], meta["run_name"]), (uuid, "3", str(started * 1000), '"config"'))

    def test_several_databases_are_one(self):
        self.recorded()
        self.recorded("other", run=dict(seed=2))
        done = self.convert(self.path("run"), self.path("other"), self.path("run"), "-o", self.path("out"), "--to", "tensorboard")
        self.assertIn("2 runs", done.stdout)
        self.assertEqual(len(os.listdir(self.path("out"))), 2)
        for folder in os.listdir(self.path("out")):
            self.assertRegex(folder, "^config-[0-9a-f]{8}$")
        self.convert(self.path("run"), self.path("other"), "-o", self.path("tables"), "--to", "csv")
        with open(self.path("tables", "runs.csv"), newline="") as f:
            self.assertEqual([row["run_id"] for row in csv.DictReader(f)], ["1", "2"])
        self.assertFalse(glob.glob(self.path("tables", "*.db*")))

    def test_other_programs_read_them(self):
        packages = "tensorboard, mlflow, pandas, pyarrow, numpy"
        if subprocess.run([READERS, "-c", f"import {packages}"], capture_output=True).returncode != 0:
            print(f"skipped: {READERS} lacks one of {packages}; READERS_PYTHON names one that has them")
            self.skipTest("no readers")
        db = self.recorded()
        for to in ("csv", "tensorboard", "mlflow"):
            self.convert(self.path("run"), "-o", self.path(to), "--to", to)
        done = subprocess.run([READERS, "-c", BY_READERS, self.dir], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        said, want = json.loads(done.stdout), {}
        for (key, step), value in sorted(self.curves(db).items()):
            want.setdefault(key, []).append([step, value])
        self.assertEqual({key: sorted(points) for key, points in said["mlflow"].items()}, want)
        self.assertEqual({k: [s for s, _ in points] for k, points in said["tensorboard"].items()}, {k: [s for s, _ in points] for k, points in want.items()})
        self.assertEqual(sum(said["histograms"]), db.execute("SELECT count(*) FROM esd").fetchone()[0])
        self.assertEqual((said["status"], said["params"]["model.layers"]), ("FINISHED", "2"))
        total = sum(sum(struct.unpack(f"<{len(blob) // 8}d", blob)) for blob, in db.execute("SELECT singular_values FROM esd"))
        self.assertAlmostEqual(said["npy"], total, delta=1e-9 * total)

    def test_what_is_refused(self):
        self.recorded().close()
        self.refused(USAGE, says=["nothing to convert"])
        self.refused(USAGE, self.path("run"), "--to", "csv", says=["-o"])
        self.refused(USAGE, self.path("run"), "-o", self.path("out"), says=["--to"])
        self.refused(USAGE, self.path("run"), "-o", self.path("out"), "--to", "csv", "--tokenizer", "x", says=["--tokenizer is for"])
        self.refused(USAGE, self.path("run"), "-o", self.path("out"), "--to", "parquet", says=["parquet", "csv, tensorboard, mlflow"])
        self.refused(USAGE, self.path("run"), "-o", self.path("run"), "--to", "csv", says=["not empty"])
        self.refused(USAGE, self.path("run", "checkpoints", "step-00000006"), "-o", self.path("out"), "--to", "csv", says=["bulkhead export", "bulkhead import"])
        self.refused(USAGE, self.path("run"), self.path("run", "checkpoints", "step-00000006"), "-o", self.path("out"), "--to", "csv", says=["one kind at a time"])
        self.refused(NO_INPUT, self.path("absent"), "-o", self.path("out"), "--to", "csv", says=["absent"])
        self.refused(DATA, self.path("config.yaml"), "-o", self.path("out"), "--to", "csv", says=["config.yaml", "--help"])
        shutil.copy(self.path("run", "run.db"), self.path("hostile.db"))
        with sqlite3.connect(self.path("hostile.db")) as db:
            db.execute("UPDATE params SET key = '../../../../../stolen' WHERE key = 'run.name'")
        self.refused(DATA, self.path("hostile.db"), "-o", self.path("out"), "--to", "mlflow", says=["stolen", "leads out"])
        with open(self.path("cut.db"), "wb") as f:
            f.write(self.bytes_of("run", "run.db")[:30000])
        self.refused(DATA, self.path("cut.db"), "-o", self.path("out"), "--to", "csv", says=["cut.db"])


class Shards(ConvertTest):
    TEXTS = ["the cat sat on the mat", "", " a  b\n\nc", "it isn't 1234567, is it?"] * 40

    def write_wide(self, path, tokens):
        with open(path, "wb") as f:
            f.write(struct.pack("<256i", 20240801, 7, len(tokens), *[0] * 253) + struct.pack(f"<{len(tokens)}I", *tokens))

    def test_shards_of_either_width_train_and_are_evaluated_alike(self):
        """Without a dataset.json beside them, as llm.c leaves them."""
        self.dataset()
        narrow = [self.path(f"{split}-00000.bin") for split in ("train", "val")]
        done = self.convert(*narrow, "-o", self.path("wide"), "--to", "uint32")
        self.assertIn("22000 tokens of uint32", done.stdout)
        wide = [self.path("wide", os.path.basename(path)) for path in narrow]
        for a, b in zip(narrow, wide):
            self.write_wide(self.path("want.bin"), struct.unpack(f"<{(os.path.getsize(a) - 1024) // 2}H", self.bytes_of(a)[1024:]))
            self.assertEqual(self.bytes_of(b), self.bytes_of("want.bin"))
            self.convert(b, "-o", self.path("back.bin"), "--to", "uint16")
            self.assertEqual(self.bytes_of("back.bin"), self.bytes_of(a))
        config, losses = self.config(train=dict(steps=3), diagnostics=dict(ranks=0)), []
        for run, files in (("narrow", narrow), ("wide-run", wide)):
            db = self.train(1, config, run, f"data.train={files[0].replace('00000', '*')}", f"data.validation={files[1]}")
            said = subprocess.run([harness.BULKHEAD, "eval", self.path(run), "--shards", files[1].replace("00000", "*"), "--json"], capture_output=True, text=True)
            losses.append((self.losses(db), {k: v for k, v in json.loads(said.stdout).items() if k not in ("model", "data")}))
        self.assertEqual(losses[0], losses[1])
        self.assertIn("loss", losses[0][1])
        code, _, err = self.launch(1, self.config("none.yaml", model=dict(vocab=None), diagnostics=dict(ranks=0)), "none")
        self.assertEqual(code, 78, err)
        self.assertIn("model.vocab is not set and there is no dataset.json", err)

    def test_ids_that_do_not_fit_are_named(self):
        self.write_wide(self.path("a.bin"), [5] * 70000 + [65535, 65536, 7])
        self.refused(DATA, self.path("a.bin"), "-o", self.path("b.bin"), "--to", "uint16", says=["a.bin: token 70001 is id 65536", "0 to 65535"])
        self.write_wide(self.path("a.bin"), [5, 1 << 31])
        self.refused(DATA, self.path("a.bin"), "-o", self.path("b.bin"), "--to", "uint32", says=["a.bin: token 1 is id 2147483648"])
        tokenizer = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden", "tokenizers", "gpt2.json")
        self.write_wide(self.path("a.bin"), [419, 420])
        self.refused(DATA, self.path("a.bin"), "-o", self.path("out"), "--to", "dataset", "--tokenizer", tokenizer, says=["token 1 is id 420", "0 to 419"])
        self.refused(USAGE, self.path("a.bin"), "-o", self.path("out"), "--to", "dataset", says=["--tokenizer"])
        self.refused(USAGE, self.path("a.bin"), self.path("a.bin"), "-o", self.path("out"), "--to", "uint16", says=["two shards are called a.bin"])
        self.refused(USAGE, self.path("a.bin"), "-o", self.path("out"), "--to", "csv", says=["uint16, uint32, dataset"])
        os.truncate(self.path("a.bin"), 1027)
        self.refused(DATA, self.path("a.bin"), "-o", self.path("b.bin"), "--to", "uint16", says=["a.bin is damaged"])

    def test_shards_get_the_dataset_json_that_they_lack(self):
        """What prepare wrote loses its JSON and gets it back; llm.c's order of end tokens is known."""
        with open(self.path("text.jsonl"), "w") as f:
            f.writelines(json.dumps(dict(text=text)) + "\n" for text in self.TEXTS)
        tokenizer = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden", "tokenizers", "gpt2.json")
        done = subprocess.run([harness.BULKHEAD, "prepare", self.path("text.jsonl"), "-o", self.path("data"), "--tokenizer", tokenizer,
                               "--val-fraction", "0.2"], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        with open(self.path("data", "dataset.json")) as f:
            want = json.load(f)
        shards = sorted(glob.glob(self.path("data", "*.bin")))
        self.convert(*shards, "-o", self.path("again"), "--to", "dataset", "--tokenizer", tokenizer)
        with open(self.path("again", "dataset.json")) as f:
            got = json.load(f)
        for key in ("tokenizer", "tokenizer_xxh3_128", "vocab", "eos_id", "document_token", "token_bytes"):
            self.assertEqual(got[key], want[key], key)
        for split in ("train", "validation"):
            for key in ("shards", "documents", "tokens", "bytes", "unigram_entropy_nats"):
                self.assertEqual(got[split][key], want[split][key], (split, key))
        for path in shards:
            self.assertEqual(self.bytes_of("again", os.path.basename(path)), self.bytes_of(path))
        harness.write_shard(self.path("fineweb_val_000000.bin"), [0, 5, 6])
        harness.write_shard(self.path("fineweb_train_000001.bin"), [0, 5, 6, 0, 7])
        self.convert(self.path("fineweb_val_000000.bin"), self.path("fineweb_train_000001.bin"), "-o", self.path("fineweb"), "--to", "dataset",
                     "--tokenizer", tokenizer)
        with open(self.path("fineweb", "dataset.json")) as f:
            got = json.load(f)
        self.assertEqual((got["document_token"], got["train"]["tokens"], got["train"]["documents"], got["validation"]["tokens"]), ("leads", 5, 2, 3))
        self.assertEqual(sorted(os.listdir(self.path("fineweb"))), ["dataset.json", "tokenizer.json", "train-00000.bin", "val-00000.bin"])


class Tokenizers(ConvertTest):
    GOLDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden", "tokenizers")

    def test_there_and_back(self):
        json_file = os.path.join(self.GOLDEN, "llama2.json")
        self.assertIn("the same ids", self.convert(json_file, "-o", self.path("t.model"), "--to", "tokenizer.model").stdout)
        self.convert(self.path("t.model"), "-o", self.path("t.json"), "--to", "tokenizer.json")
        with open(json_file) as a, open(self.path("t.json")) as b:
            want, got = json.load(a), json.load(b)
        for key in ("normalizer", "pre_tokenizer", "decoder", "added_tokens"):
            self.assertEqual(got[key], want[key], key)
        for key in ("vocab", "byte_fallback", "fuse_unk", "unk_token"):
            self.assertEqual(got["model"][key], want["model"][key], key)
        with open(self.path("text.txt"), "w") as f:
            f.writelines(f"spectra of head {i}: it isn't  flat \u4e2d\n" for i in range(300))
        for name, tokenizer in (("a", json_file), ("b", self.path("t.model")), ("c", self.path("t.json"))):
            done = subprocess.run([harness.BULKHEAD, "prepare", self.path("text.txt"), "-o", self.path(name), "--tokenizer", tokenizer], capture_output=True)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertEqual(self.bytes_of(name, "train-00000.bin"), self.bytes_of("a", "train-00000.bin"))

    def test_what_has_no_other_kind(self):
        for kind, says in (("gpt2", "write spaces"), ("gemma", "write spaces"), ("metaspace", "write spaces"), ("unknowns", "each byte")):
            self.refused(DATA, os.path.join(self.GOLDEN, kind + ".json"), "-o", self.path("t.model"), "--to", "tokenizer.model", says=[kind, says])
        with open(self.path("text.txt"), "w") as f:
            f.writelines(f"the cat {i} sat on the mat\n" for i in range(300))
        done = subprocess.run([harness.BULKHEAD, "prepare", self.path("text.txt"), "-o", self.path("data"), "--vocab", "290"], capture_output=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        model = self.path("data", "tokenizer.model")
        self.refused(DATA, model, "-o", self.path("t.json"), "--to", "tokenizer.json", says=["tokenizer.model", "unigram"])
        self.refused(USAGE, model, model, "-o", self.path("t.json"), "--to", "tokenizer.json", says=["one tokenizer at a time"])
        self.refused(USAGE, model, "-o", self.path("t.json"), "--to", "tokenizer.model", says=["a SentencePiece model, which becomes tokenizer.json"])


if __name__ == "__main__":
    unittest.main()
