"""End to end: Hugging Face's tokenizer.json from text to training, evaluation, generation and export; ids against the package
tokenizers and against transformers' AutoTokenizer, by the Python that TRANSFORMERS_PYTHON names, skipped where it has none."""
import json
import os
import random
import shutil
import struct
import subprocess
import unittest

import harness

DATA, NO_INPUT = 65, 66
PYTHON = os.environ.get("TRANSFORMERS_PYTHON", "python3")
HERE = os.path.dirname(os.path.abspath(__file__))
GOLDEN = os.path.join(HERE, "..", "golden", "tokenizers")

BY_TOKENIZERS = """
import json, os, random, sys
sys.path.insert(0, sys.argv[1])
import make_tokenizers as make
folder, rng = sys.argv[2], random.Random(int(sys.argv[3]))
kinds = dict(make.KINDS, prefixed=lambda: make.gpt2(prefix=True), words=lambda: make.metaspace(scheme="always", split=True),
             middle=lambda: make.with_middle(make.llama2()), never=lambda: make.metaspace(scheme="never"))
texts = [t for t in (make.random_text(rng).replace(chr(0), "") for _ in range(400)) if t and t[0] != chr(0xfeff)]
ids = {}
for name, kind in kinds.items():
    t = kind()
    t.save(os.path.join(folder, name + ".json"))
    ids[name] = [make.ids(t, text) for text in texts]
print(json.dumps(dict(texts=texts, ids=ids)))
"""

BY_TRANSFORMERS = """
import json, sys
from transformers import AutoTokenizer
for line in sys.stdin:
    folder, texts = json.loads(line)
    t = AutoTokenizer.from_pretrained(folder)
    ids = [t.encode(text, add_special_tokens=False) for text in texts]
    print(json.dumps(dict(ids=ids, eos=t.eos_token_id, bos=t.bos_token_id, back=[t.decode(i) for i in ids])))
"""


class Tokenizers(harness.RunTest):
    time_limit_s = 120

    def bulkhead(self, *arguments, code=0):
        done = subprocess.run([harness.BULKHEAD, *arguments], capture_output=True, text=True, timeout=self.time_limit_s)
        self.assertEqual(done.returncode, code, done.stderr)
        return done

    def need(self, package):
        if subprocess.run([PYTHON, "-c", f"import {package}"], capture_output=True).returncode != 0:
            print(f"skipped: {PYTHON} has no {package}; TRANSFORMERS_PYTHON names one that has")
            self.skipTest(f"no {package}")

    def by(self, program, *arguments, given=None):
        done = subprocess.run([PYTHON, "-c", program, *arguments], capture_output=True, text=True, input=given,
                              env=dict(os.environ, HF_HUB_OFFLINE="1", HF_HOME=self.path("cache")))
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def encoded(self, tokenizer, texts, name):
        """The ids of each text by `bulkhead prepare`."""
        with open(self.path(name + ".jsonl"), "w") as f:
            f.writelines(json.dumps(dict(text=text)) + "\n" for text in texts)
        self.bulkhead("prepare", self.path(name + ".jsonl"), "-o", self.path(name), "--tokenizer", tokenizer, "--val-fraction", "0")
        with open(self.path(name, "dataset.json")) as f:
            info = json.load(f)
        self.assertEqual(info["tokenizer"], os.path.basename(tokenizer) if "model" in tokenizer else "tokenizer.json")
        with open(self.path(name, "train-00000.bin"), "rb") as f:
            data = f.read()[1024:]
        lists = [[]]
        for token in struct.unpack(f"<{len(data) // 2}H", data):
            if token == info["eos_id"]:
                lists.append([])
            else:
                lists[-1].append(token)
        return lists[:-1]

    def test_ids_are_those_of_tokenizers(self):
        self.need("tokenizers")
        seed = random.SystemRandom().randrange(1 << 30)
        want = json.loads(self.by(BY_TOKENIZERS, os.path.join(HERE, "..", "golden"), self.dir, str(seed)))
        for name, ids in want["ids"].items():
            got = self.encoded(self.path(name + ".json"), want["texts"], name)
            self.assertEqual(len(got), len(ids), name)
            for text, ours, theirs in zip(want["texts"], got, ids):
                self.assertEqual(ours, theirs, f"{name}, seed {seed}: {text!r}")

    def trained(self, tokenizer, name, variant):
        """A run; tokenizer: a file, or how many ids to learn."""
        with open(self.path("text.txt"), "w") as f:
            f.writelines(f"the cat {i} sat on the mat and went home, didn't it?\n" for i in range(400))
        self.bulkhead("prepare", self.path("text.txt"), "-o", self.path(name + "-data"), "--vocab" if isinstance(tokenizer, int)
                      else "--tokenizer", str(tokenizer))
        config = self.config(name + ".yaml", model=dict(vocab=None), train=dict(steps=3), attention=dict(variant=variant),
                             diagnostics=dict(ranks=0),
                             data=dict(train=self.path(name + "-data", "train-*.bin"), validation=self.path(name + "-data", "val-*.bin")))
        self.train(1, config, name)
        return self.path(name)

    def test_from_text_to_export(self):
        """Training takes its vocabulary, text is evaluated and gone on with, and it goes along out and back."""
        for kind, variant in (("llama3", "mla-decoupled"), ("llama2", "mha")):
            golden = os.path.join(GOLDEN, kind + ".json")
            run = self.trained(golden, kind, variant)
            said = json.loads(self.bulkhead("generate", run, "--prompt", "the cat", "--max", "5", "--json").stdout)
            self.assertEqual(said["prompt"], "the cat")
            scored = json.loads(self.bulkhead("eval", run, "--text", self.path("text.txt"), "--json").stdout)
            self.assertGreater(scored["tokens"], 400)
            self.bulkhead("export", run, "-o", self.path(kind + "-out"))
            self.bulkhead("import", self.path(kind + "-out"), "-o", self.path(kind + "-in"))
            for folder in ("-out", "-in"):
                with open(golden, "rb") as a, open(self.path(kind + folder, "tokenizer.json"), "rb") as b:
                    self.assertEqual(a.read(), b.read())
                again = json.loads(self.bulkhead("generate", self.path(kind + folder), "--prompt", "the cat", "--max", "5", "--json").stdout)
                self.assertEqual(again["prompt_tokens"], said["prompt_tokens"])
            with open(self.path(kind + "-out", "tokenizer_config.json")) as f:
                described = json.load(f)
            self.assertEqual((described["tokenizer_class"], described["eos_token"]),
                             ("PreTrainedTokenizerFast", dict(llama3="<|end_of_text|>", llama2="</s>")[kind]))

    def test_transformers_gives_the_same_ids(self):
        self.need("transformers")
        with open(os.path.join(GOLDEN, "cases.json")) as f:
            texts = [t for t in json.load(f)["texts"] if t and "\0" not in t and "<" not in t and t[0] != "\ufeff"]
        exports = {}
        texts = [t for t in texts if "\u2581" not in t]  # which SentencePiece reads as a space, and our own models keep
        for kind in ("gpt2", "llama3", "llama2", "pieces"):
            run = self.trained(300 if kind == "pieces" else os.path.join(GOLDEN, kind + ".json"), kind, "mha")
            self.bulkhead("export", run, "-o", self.path(kind + "-out"))
            exports[kind] = self.path(kind + "-out")
        said = self.by(BY_TRANSFORMERS, given="".join(json.dumps([out, texts]) + "\n" for out in exports.values()))
        for (kind, out), line in zip(exports.items(), said.splitlines(), strict=True):
            theirs = json.loads(line)
            self.assertEqual(theirs["ids"], self.encoded(os.path.join(out, "tokenizer.model" if kind == "pieces" else "tokenizer.json"), texts,
                                                          kind + "-ids"), kind)
            with open(os.path.join(out, "config.json")) as f:
                config = json.load(f)
            self.assertEqual((theirs["bos"], theirs["eos"]), (config["bos_token_id"], config["eos_token_id"]))

    def test_what_is_refused(self):
        with open(os.path.join(GOLDEN, "gpt2.json")) as f:
            broken = json.load(f)
        broken["normalizer"] = {"type": "NFKC"}
        with open(self.path("tokenizer.json"), "w") as f:
            json.dump(broken, f)
        with open(self.path("text.txt"), "w") as f:
            f.write("some text\n")
        done = self.bulkhead("prepare", self.path("text.txt"), "-o", self.path("out"), "--tokenizer", self.path("tokenizer.json"), code=DATA)
        self.assertEqual((done.stdout, len(done.stderr.splitlines())), ("", 1))
        self.assertIn("tokenizer.json: the normalizer \"NFKC\"", done.stderr)
        self.assertFalse(os.path.exists(self.path("out")))
        run = self.trained(os.path.join(GOLDEN, "gpt2.json"), "run", "mha")
        shutil.copy(os.path.join(GOLDEN, "gemma.json"), self.path("run-data", "tokenizer.json"))
        done = self.bulkhead("generate", run, "--prompt", "a", code=DATA)
        self.assertIn("not the tokenizer that the dataset was made with", done.stderr)
        os.remove(self.path("run-data", "tokenizer.json"))
        done = self.bulkhead("generate", run, "--prompt", "a", code=NO_INPUT)
        self.assertIn("tokenizer.json", done.stderr)


if __name__ == "__main__":
    unittest.main()
