"""End to end: `bulkhead prepare` as a person or a script meets it: what it says, where, and with which exit code."""
import gzip
import json
import os
import stat
import struct
import subprocess
import unittest

import harness

USAGE, DATA, NO_INPUT, IO = 64, 65, 66, 74
LINES = ["the keel of the ship is laid", "  a bulkhead divides her hull", "no sea comes through, none", ""]
TEXT = "".join(f"{LINES[i % 4]} {i}\n" for i in range(6000))


class Prepare(harness.RunTest):
    def prepare(self, *arguments, code=0, data=None, user=None):
        done = subprocess.run([harness.BULKHEAD, "prepare", *arguments], input=data, capture_output=True, timeout=60,
                              cwd=self.dir, user=user)
        self.assertEqual(done.returncode, code, done.stderr.decode())
        return done.stdout.decode(), done.stderr.decode()

    def refused(self, code, *arguments, says, data=None, user=None):
        """One line that names the command, nothing on stdout, nothing made."""
        before = sorted(os.listdir(self.dir))
        out, err = self.prepare(*arguments, code=code, data=data, user=user)
        self.assertEqual(out, "")
        last = err.splitlines()[-1]
        self.assertTrue(last.startswith("bulkhead prepare: "), err)
        for words in says:
            self.assertIn(words, last)
        self.assertEqual(sorted(os.listdir(self.dir)), before)

    def write(self, name, data):
        with open(self.path(name), "wb") as f:
            f.write(data)

    def test_help_is_on_stdout(self):
        out, err = self.prepare("--help")
        self.assertIn("usage: bulkhead prepare", out)
        self.assertEqual(err, "")

    def test_a_pipe_becomes_a_dataset(self):
        out, err = self.prepare("-", "-o", "out", "--vocab", "330", data=TEXT.encode())
        self.assertEqual(sorted(os.listdir(self.path("out"))),
                         ["dataset.json", "tokenizer.model", "train-00000.bin", "val-00000.bin"])
        with open(self.path("out/dataset.json")) as f:
            info = json.load(f)
        self.assertEqual((info["vocab"], info["document_token"], info["tokenizer"], info["lossless"]),
                         (330, "ends", "tokenizer.model", True))
        self.assertEqual(info["train"]["bytes"] + info["validation"]["bytes"], len(TEXT.encode()))
        for split, name in (("train", "train-00000.bin"), ("validation", "val-00000.bin")):
            with open(self.path("out", name), "rb") as f:
                shard = f.read()
            self.assertEqual(struct.unpack_from("<3i", shard), (20240520, 1, info[split]["tokens"]))
            tokens = struct.unpack(f"<{(len(shard) - 1024) // 2}H", shard[1024:])
            self.assertEqual(len(tokens), info[split]["tokens"])
            self.assertLess(max(tokens), 330)
            self.assertEqual(tokens.count(info["eos_id"]), info[split]["documents"])
        self.assertIn(f"{info['train']['tokens']} tokens", out)
        self.assertNotIn("tokens", err.splitlines()[0])

    def test_files_of_several_kinds(self):
        self.write("a.txt", TEXT.encode())
        self.write("b.txt.gz", gzip.compress(TEXT.encode()))
        self.write("c.jsonl", b"".join(json.dumps({"body": TEXT[i : i + 500]}).encode() + b"\n" for i in range(9)))
        with gzip.open(self.path("c4-train.00000-of-01024.json.gz"), "wt") as f:
            f.writelines(json.dumps({"body": f"page {i}", "timestamp": "2019-04-25T12:57:54Z", "url": "https://x"}) + "\n" for i in range(5))
        self.prepare("a.txt", "b.txt.gz", "c.jsonl", "c4-train.00000-of-01024.json.gz", "-o", "out", "--vocab", "330", "--field", "body")
        with open(self.path("out/dataset.json")) as f:
            info = json.load(f)
        self.assertEqual([s["documents"] for s in info["sources"]], [1, 1, 9, 5])
        self.prepare("a.txt", "-o", "again", "--tokenizer", "out/tokenizer.model")
        with open(self.path("again/dataset.json")) as f:
            self.assertEqual(json.load(f)["tokenizer_xxh3_128"], info["tokenizer_xxh3_128"])

    def test_latin1_lines_are_named_then_read(self):
        data = TEXT.encode() + b"a fa\xe7ade\n"
        offset = len(TEXT.encode()) + 4
        self.refused(DATA, "-", "-o", "out", data=data, says=["standard input", "line 6001", f"byte {offset}", "--invalid latin1"])
        _, err = self.prepare("-", "-o", "out", "--vocab", "330", "--invalid", "latin1", "--val-fraction", "0", data=data)
        self.assertIn(f"byte {offset}", err)
        with open(self.path("out/dataset.json")) as f:
            self.assertEqual(json.load(f)["train"]["bytes"], len(data) + 1)

    def test_wrong_usage(self):
        self.write("a.txt", TEXT.encode())
        self.refused(USAGE, says=["name the text"])
        self.refused(USAGE, "a.txt", says=["-o DIR"])
        self.refused(USAGE, "a.txt", "-o", says=["-o wants a value"])
        self.refused(USAGE, "a.txt", "-o", "out", "--vocabulary", "5", says=["--vocabulary"])
        self.refused(USAGE, "a.txt", "-o", "out", "-x", says=["-x"])
        self.refused(USAGE, "a.txt", "-o", "out", "--vocab", "4k", says=["--vocab", "4k", "whole number"])
        self.refused(USAGE, "a.txt", "-o", "out", "--vocab", "0", says=["--vocab", '"0"'])
        self.refused(USAGE, "a.txt", "-o", "out", "--val-fraction", "1", says=["--val-fraction", '"1"'])
        self.refused(USAGE, "a.txt", "-o", "out", "--val-fraction", "nan", says=["--val-fraction", "nan"])
        self.refused(USAGE, "a.txt", "-o", "out", "--invalid", "replace", says=["latin1"])
        self.refused(USAGE, "a.txt", "-o", "out", "--vocab", "9", "--tokenizer", "m", says=["only one"])
        self.refused(USAGE, "-", "-", "-o", "out", says=["only once"])
        self.refused(USAGE, "a.txt", "-o", ".", says=["not empty"])

    def test_bad_input(self):
        self.write("empty.txt", b"")
        self.write("binary.txt", bytes(range(256)) * 40)
        self.write("cut.txt.gz", gzip.compress(TEXT.encode())[:-9])
        self.write("bad.jsonl", b'{"text": "fine"}\n{"text": \n')
        self.refused(NO_INPUT, "none.txt", "-o", "out", says=["none.txt"])
        self.refused(NO_INPUT, ".", "-o", "out", says=["folder"])
        self.refused(DATA, "empty.txt", "-o", "out", says=["no text"])
        self.refused(DATA, "-", "-o", "out", data=b"", says=["no text"])
        self.refused(DATA, "binary.txt", "-o", "out", says=["binary.txt", "binary"])
        self.refused(DATA, "cut.txt.gz", "-o", "out", says=["cut.txt.gz", "truncated", f"byte {len(gzip.compress(TEXT.encode())) - 9}"])
        self.refused(DATA, "bad.jsonl", "-o", "out", says=["bad.jsonl:2"])
        self.refused(DATA, "-", "-o", "out", data=b"one line\n", says=["vocabulary of 32000", "or less"])
        self.refused(NO_INPUT, "bad.jsonl", "-o", "out", "--tokenizer", "none.model", says=["none.model"])
        self.refused(DATA, "bad.jsonl", "--format", "text", "-o", "out", "--tokenizer", "empty.txt", says=["empty.txt"])

    @unittest.skipIf(os.geteuid() != 0, "needs root to become somebody else")
    def test_a_folder_of_somebody_else(self):
        self.write("a.txt", TEXT.encode())
        os.chmod(self.dir, 0o755)
        nobody = 65534
        self.refused(IO, "a.txt", "-o", "out", "--vocab", "330", says=["out", "Permission denied"], user=nobody)
        os.chmod(self.path("a.txt"), stat.S_IRUSR)
        self.refused(NO_INPUT, "a.txt", "-o", "out", says=["a.txt", "Permission denied"], user=nobody)


if __name__ == "__main__":
    unittest.main()
