"""The commands of README, docs/tutorial.md and docs/queries.md do what they are there for: the pages' ```sh blocks are run, one behind
the other, as they stand, in a fresh folder that has the sources' folders beside it.

Only training is made short: a `bulkhead` in front of the real one changes settings of `train` and `sweep` (SHORT below).
"""
import glob
import os
import re
import subprocess
import sys
import unittest
import xml.etree.ElementTree

from harness import BULKHEAD, RunTest

ROOT = os.path.realpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
SHORT = {"train.steps": 6, "train.warmup": 2, "train.global_batch": 2, "train.eval_tokens": 256, "train.eval_every": 3,
         "diagnostics.every": 2, "diagnostics.esd_every": 2, "diagnostics.dense_until": 0, "diagnostics.null_draws": 0, "run.threads": 1}

IN_FRONT = f"""#!{sys.executable}
import os, sys
words, short = sys.argv[1:], {SHORT!r}
if words[0] in ("train", "sweep"):
    kept, i = words[:2], 2
    while i < len(words):
        take = 2 if words[i] == "--set" else 1
        if take == 1 or words[i + 1].split("=")[0] not in short:
            kept += words[i:i + take]
        i += take
    words = kept + [part for key, value in short.items() for part in ("--set", f"{{key}}={{value}}")]
os.execv({os.path.realpath(BULKHEAD)!r}, ["bulkhead"] + words)
"""


def blocks(*page):
    """[(language, text)]"""
    with open(os.path.join(ROOT, *page), encoding="utf-8") as file:
        return re.findall(r"^```([a-z]*)\n(.*?)^```", file.read(), re.M | re.S)


class TutorialTest(RunTest):
    time_limit_s = 150

    def run_page(self, *page):
        """Returns what its blocks print."""
        for name in os.listdir(ROOT):
            if name not in ("build", "runs", ".git"):
                os.symlink(os.path.join(ROOT, name), self.path(name))
        os.makedirs(self.path("build", "release"))
        with open(self.path("build", "release", "bulkhead"), "w") as program:
            program.write(IN_FRONT)
        os.chmod(program.name, 0o755)
        script = "\n".join(["set -euo pipefail"] + [text for language, text in blocks(*page) if language == "sh"])
        environment = dict(os.environ, PATH=os.path.dirname(program.name) + ":" + os.environ["PATH"], OMPI_ALLOW_RUN_AS_ROOT="1",
                           OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", OMPI_MCA_rmaps_base_oversubscribe="1")
        done = subprocess.run(["bash", "-c", script], cwd=self.dir, env=environment, capture_output=True, text=True, timeout=self.time_limit_s)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout

    def test_the_readme(self):
        with open(self.path("TEXT.txt"), "w") as text:
            for name in sorted(glob.glob(os.path.join(ROOT, "*", "*.c"))):
                with open(name, encoding="utf-8") as source:
                    text.write(source.read(100000))
        said = self.run_page("README.md")
        self.assertIn("effective rank", said)
        self.assertTrue(os.path.exists(self.path("report.html")))
        picture = self.path("picture.svg")
        subprocess.run([sys.executable, os.path.join(ROOT, "docs", "picture.py"), picture, self.path("runs", "mine", "run.db")], check=True)
        words = [word.text for word in xml.etree.ElementTree.parse(picture).iter("{http://www.w3.org/2000/svg}text")]
        self.assertEqual((words.count("mine"), words.count("training loss")), (2, 1))  # beside its curve, over its map
        self.assertEqual([row[0] for row in self.database("runs/mine").execute("SELECT status FROM runs")], ["finished"])

    def test_the_tutorial(self):
        said = self.run_page("docs", "tutorial.md")
        tutorial = self.path("runs", "tutorial")
        for made in ("runs/first/run.db", "sweeps/study/sweep.db", "report.html", "again.db", "events", "hf/config.json"):
            self.assertTrue(os.path.exists(os.path.join(tutorial, made)), made)
        for words in ("undetermined", "perplexity", "static status"):
            self.assertIn(words, said)

    def test_the_ten_questions(self):
        self.run_page("docs", "queries.md")
        os.chdir(self.path("runs", "questions"))
        self.addCleanup(os.chdir, ROOT)
        answered = 0
        found = blocks("docs", "queries.md")
        for (language, text), (_, answer) in zip(found, found[1:]):
            if language == "python":
                self.assertIn("0.", subprocess.run([sys.executable, "-c", text.replace("s.step = 200", f"s.step = {SHORT['train.steps']}")],
                                                   check=True, capture_output=True, text=True).stdout)
            if language == "sql":
                names = [f"runs/{name}" for name in ("mha", "mla-prerope", "mla-decoupled")] if answer.startswith("database") else ["runs/mla-decoupled"]
                said = self.bulkhead("query", *names, "--sql", text)
                self.assertEqual(said.returncode, 0, said.stderr)
                self.assertEqual(said.stdout.split("\n")[0].split(), answer.split("\n")[0].split())
                answered += 1
        self.assertEqual(answered, 9)


if __name__ == "__main__":
    unittest.main()
