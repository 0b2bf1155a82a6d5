"""What the end-to-end tests share: a small learnable dataset, a small model, and the program under mpirun.

The program's path comes from the environment variable BULKHEAD. Each test works in a folder of its own.
"""
import json
import os
import random
import re
import shutil
import sqlite3
import struct
import subprocess
import tempfile
import time
import unittest

BULKHEAD = os.environ.get("BULKHEAD", "build/release/bulkhead")
VOCAB, CONTEXT = 64, 32

SMALL = {
    "model": dict(layers=2, width=32, heads=4, ffn=48, vocab=VOCAB, context=CONTEXT),
    "attention": dict(kv_lora_rank=16, qk_rope_head_dim=4),
    "train": dict(steps=6, global_batch=4, lr="3e-3", warmup=2, log_every=1, eval_tokens=256),
    "diagnostics": dict(every=2, when_behind="wait", null_draws=0),
    "run": dict(threads=1),
}


def write_shard(path, tokens, magic=20240520, version=1, count=None):
    header = [magic, version, len(tokens) if count is None else count] + [0] * 253
    with open(path, "wb") as f:
        f.write(struct.pack("<256i", *header))
        f.write(struct.pack(f"<{len(tokens)}H", *tokens))


def markov_tokens(count, vocab=VOCAB, seed=1):
    """Each token has two likely followers: the entropy rate is far below the unigram entropy."""
    rng = random.Random(0)
    followers = [(rng.randrange(vocab), rng.randrange(vocab)) for _ in range(vocab)]
    rng = random.Random(seed)
    tokens, t = [], 0
    for _ in range(count):
        tokens.append(t)
        t = rng.randrange(vocab) if rng.random() < 0.1 else followers[t][rng.random() < 0.3]
    return tokens


def need_gpus(test, count):
    """How many GPUs the program sees; skips the test, and says why, where they are fewer."""
    said = subprocess.run([BULKHEAD, "version", "--verbose"], capture_output=True, text=True).stdout
    found = int(re.search(r"(\d+) NVIDIA GPU", said).group(1))
    if found < count:
        print(f"skipped: {found} of {count} NVIDIA GPUs on this machine")
        test.skipTest("too few GPUs")
    return found


class RunTest(unittest.TestCase):
    time_limit_s = 60

    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="bulkhead-")
        self.addCleanup(shutil.rmtree, self.dir, ignore_errors=True)

    def path(self, *parts):
        return os.path.join(self.dir, *parts)

    def dataset(self, train=20000, validation=2000, vocab=VOCAB):
        write_shard(self.path("train-00000.bin"), markov_tokens(train, vocab))
        write_shard(self.path("val-00000.bin"), markov_tokens(validation, vocab, seed=2))

    def config(self, name="config.yaml", text=None, **sections):
        """SMALL with the given sections' keys over it, as a YAML file; a key that is None is left out."""
        merged = {k: dict(v) for k, v in SMALL.items()}
        merged["data"] = dict(train=self.path("train-*.bin"), validation=self.path("val-*.bin"))
        for section, keys in sections.items():
            merged.setdefault(section, {}).update(keys)
        merged = {section: {k: v for k, v in keys.items() if v is not None} for section, keys in merged.items()}
        path = self.path(name)
        with open(path, "w") as f:
            f.write(text if text is not None else "".join(
                f"{section}:\n" + "".join(f"  {k}: {json.dumps(v)}\n" for k, v in keys.items())
                for section, keys in merged.items() if keys))
        return path

    def command(self, ranks, config, run, *settings, resume=None, profile=None):
        """mpirun -n ranks bulkhead train config; the run folder is DIR/run. resume: auto or a path; profile: a number."""
        command = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n", str(ranks), BULKHEAD,
                   "train", config, "--set", f"run.dir={self.path(run)}"]
        for setting in settings:
            command += ["--set", setting]
        command += ["--resume", resume] if resume else []
        return command + (["--profile", str(profile)] if profile is not None else [])

    def launch(self, *launch, **how):
        """Runs such a command. Returns (exit code, stdout, stderr)."""
        done = subprocess.run(self.command(*launch, **how), capture_output=True, text=True, timeout=self.time_limit_s)
        return done.returncode, done.stdout, done.stderr

    def in_background(self, *launch, **how):
        """Starts such a command; it is killed when the test ends."""
        job = subprocess.Popen(self.command(*launch, **how), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(job.kill)
        return job

    def children(self, pid):
        """The processes that it has started, in that order: mpirun's are the ranks."""
        said = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout
        return sorted(int(line) for line in said.split())

    def bulkhead(self, *arguments):
        """Another command of the program, run to its end."""
        return subprocess.run([BULKHEAD, *arguments], capture_output=True, text=True, timeout=self.time_limit_s)

    def wait_for_database(self, run, sql):
        """The run's database, open for writing, as soon as that question has an answer."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if os.path.exists(self.path(run, "run.db")):
                db = sqlite3.connect(self.path(run, "run.db"), isolation_level=None)
                try:
                    if db.execute(sql).fetchone():
                        self.addCleanup(db.close)
                        return db
                except sqlite3.OperationalError:
                    pass  # its tables are not there yet
                db.close()
            time.sleep(0.05)
        self.fail(f"nothing answers {sql}")

    def train(self, ranks, config, run, *settings):
        """The same for a run that must succeed. Returns the run's open database."""
        code, out, err = self.launch(ranks, config, run, *settings)
        self.assertEqual(code, 0, err)
        self.assertIn(self.path(run), out)
        return self.database(run)

    def database(self, run):
        db = sqlite3.connect(f"file:{self.path(run, 'run.db')}?mode=ro", uri=True)
        self.addCleanup(db.close)
        return db

    def losses(self, db):
        return [row[0] for row in db.execute("SELECT loss FROM train_metrics ORDER BY step")]

    def refused(self, code, ranks, config, run, *settings, says=()):
        """The launch ends with that code, says why in one line of the program's, and leaves no run folder."""
        got, _, err = self.launch(ranks, config, run, *settings)
        self.assertEqual(got, code, err)
        ours = [line for line in err.splitlines() if line.startswith("bulkhead train: ")]
        self.assertEqual(len(ours), 1, err)
        for word in says:
            self.assertIn(word, ours[0])
        self.assertFalse(os.path.exists(self.path(run)), "a run that never began left its folder behind")
