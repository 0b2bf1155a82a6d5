"""The documents say what the program says: help texts, the pages and man pages made from them, completion, and every command line
and link in a page that people read."""
import glob
import os
import re
import shlex
import shutil
import subprocess
import sys
import unittest

from harness import BULKHEAD, RunTest

ROOT = os.path.realpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
sys.path.insert(0, os.path.join(ROOT, "docs"))
import generate  # noqa: E402

LINES, COLUMNS = 24, 80
PAGES = [path for pattern in ("*.md", "docs/*.md", "*/README.md", "bench/peer/README.md") for path in glob.glob(os.path.join(ROOT, pattern))]


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def name_of(path):
    return os.path.relpath(path, ROOT)


def code_of(page):
    """The page's code: fenced blocks without their continuations, and what stands in backticks."""
    fenced = [block.replace("\\\n", " ") for block in re.findall(r"^```[a-z ]*\n(.*?)^```", page, re.M | re.S)]
    rest = re.sub(r"^```.*?^```", "", page, flags=re.M | re.S)
    return [line for block in fenced for line in block.split("\n")] + \
        [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", rest)]


def command_lines(page):
    """The calls of the program in a page's code: [(command, arguments)]."""
    calls = []
    for line in code_of(page):
        line = re.sub(r"docs/generate\.py \S+", "", line)
        for call in re.findall(r"(?:^|[\s/(])bulkhead ((?:[a-z]+|--[a-z]+)\b[^|;&)]*)", line):
            call = re.sub(r"[…]|\[|\]|(?<= )#.*", " ", call)
            try:
                words = shlex.split(call)
            except ValueError:  # a quotation that goes on in the next line
                words = call.split()
            calls.append((words[0], words[1:]))
    return calls


class DocumentsTest(RunTest):
    @classmethod
    def setUpClass(cls):
        cls.program = generate.Program(BULKHEAD)  # each help text is of the strict form, or this fails

    def need(self, program):
        if not shutil.which(program):
            print(f"skipped: {program} is not installed")
            self.skipTest(f"{program} is not installed")

    def test_each_help_fits_a_screen(self):
        for arguments in [["--help"]] + [[name, "--help"] for name in self.program.commands]:
            lines = self.program.say(*arguments).split("\n")[:-1]
            self.assertLessEqual(len(lines), LINES, arguments)
            for line in lines:
                self.assertLessEqual(len(line), COLUMNS, line)

    def test_help_lists_the_options_that_a_command_takes(self):
        for name, text in self.program.help.items():
            source = read(os.path.join(ROOT, "trainer", "cli", f"cmd_{name}.c"))
            for part in re.findall(r'#include "(trainer/cli/\w+)\.h"', source):
                source += "".join(read(path) for path in glob.glob(os.path.join(ROOT, part + ".[ch]")))
            taken = {"--" + option for option in re.findall(r'\{[\s\\]*"([a-z-]+)",\s*(?:required|no|optional)_argument', source)} - {"--help"}
            others = {"plan": {"--resume", "--profile"}, "train": {"--keys", "--json"}}  # they share a reader, which refuses these
            listed = {option for names, _, _ in text.options() for option in names if option.startswith("--")}
            self.assertEqual(listed, taken - others.get(name, set()) if name != "version" else {"--verbose"}, name)
            for names, value, _ in text.options():
                for option in names:
                    said = self.bulkhead(name, option, *(["1"] if value else [])).stderr
                    self.assertNotIn("is not understood", said, (name, option))
                    self.assertNotIn("wants a value", said, (name, option))
            said = self.bulkhead(name, "--no-such-option")
            self.assertEqual(said.returncode, 64, name)

    def test_plan_tells_the_keys(self):
        lines = self.program.say("plan", "--keys").split("\n")[:-1]
        self.assertEqual([line.split()[0] for line in lines], [key["key"] for key in self.program.keys])
        for line, key in zip(lines, self.program.keys):
            self.assertTrue(line.endswith(key["meaning"]), line)
        for wrong in (["plan", "--keys", "x.yaml"], ["plan", "--keys", "--set", "run.seed=1"], ["plan", "x.yaml", "--json"],
                      ["train", "--keys"], ["train", "x.yaml", "--json"]):
            said = self.bulkhead(*wrong)
            self.assertEqual((said.returncode, said.stdout, said.stderr.count("\n")), (64, "", 1), wrong)

    def test_exit_codes_are_those_of_the_program(self):
        codes = dict(re.findall(r"X\(\w+, (\d+), \"(.*?)\"\)", read(os.path.join(ROOT, "core", "status.h"))))
        self.assertEqual({code for code, _ in self.program.top.codes}, set(codes))
        words = dict(self.program.top.codes)
        for name, text in self.program.help.items():
            for code, meaning in text.codes:
                self.assertEqual(meaning, words[code], name)
        for code in codes:
            self.assertTrue(re.search(rf"(?m)^\| {code} \|", read(os.path.join(ROOT, "docs", "operations.md"))), code)

    def test_pages_are_made_of_what_the_program_says(self):
        for name, text in generate.pages(self.program).items():
            self.assertEqual(read(os.path.join(ROOT, "docs", name)), text, f"run docs/generate.py {BULKHEAD} pages")

    def test_man_pages_are_clean(self):
        self.need("groff")
        pages = {name: text for name, text in generate.installed(self.program).items() if name.startswith("man")}
        self.assertEqual(len(pages), len(self.program.commands) + 2)
        for name, text in pages.items():
            done = subprocess.run(["groff", "-ww", "-man", "-Tutf8", "-P-c"], input=text, capture_output=True, text=True)
            self.assertEqual((done.returncode, done.stderr), (0, ""), name)
        train = subprocess.run(["groff", "-man", "-Tascii", "-P-c"], input=pages["man1/bulkhead-train.1"], capture_output=True, text=True).stdout
        plain = re.sub(r".\x08", "", train)
        for words in ("--resume auto|DIR", "mpirun -n W bulkhead train CONFIG", "EXIT STATUS"):
            self.assertIn(words, plain)

    def complete(self, line):
        """What bash offers behind the line."""
        script = generate.installed(self.program)["completion/bulkhead"]
        call = f"COMP_LINE={shlex.quote(line)} COMP_POINT={len(line)}\n_bulkhead 2> /dev/null\nprintf '%s\\n' \"${{COMPREPLY[@]}}\""
        done = subprocess.run(["bash", "--norc", "-c", f"compopt() {{ :; }}\n{script}\n{call}"], capture_output=True, text=True, check=True)
        self.assertEqual(done.stderr, "")
        return done.stdout.split()

    def test_bash_completes_commands_options_and_keys(self):
        self.assertEqual(self.complete("bulkhead "), list(self.program.commands) + ["--help", "--version"])
        self.assertEqual(self.complete("bulkhead ge"), ["generate"])
        self.assertEqual(self.complete("bulkhead train c.yaml --re"), ["--resume"])
        self.assertEqual(self.complete("bulkhead train c.yaml --set diagnostics.when"),
                         ["diagnostics.when_behind=", "diagnostics.when_behind=drop", "diagnostics.when_behind=wait"])
        self.assertEqual(self.complete("bulkhead train c.yaml --set diagnostics.when_behind=w"), ["wait"])
        self.assertEqual(len(self.complete("bulkhead plan --set run.")),
                         len([word for word in generate.settings(self.program) if word.startswith("run.")]))
        self.assertIn("layers", self.complete("bulkhead query runs/x "))
        self.assertEqual(self.complete("bulkhead query runs/x --layer "), [])
        self.assertEqual(self.complete("bulkhead analyze x -"), [o for n, _, _ in self.program.help["analyze"].options() for o in n] + ["--help"])

    def test_zsh_reads_its_completion(self):
        self.need("zsh")
        with open(self.path("_bulkhead"), "w") as file:
            file.write(generate.installed(self.program)["completion/_bulkhead"])
        done = subprocess.run(["zsh", "-n", self.path("_bulkhead")], capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        # The real machinery is asked: a shell of its own, whose completion of a line is printed.
        script = r"""
            zmodload zsh/zpty; zpty shell zsh -f -i
            zpty -w shell "fpath=($1 \$fpath); PS1=; autoload -U compinit; compinit -u -d $1/dump; zstyle ':completion:*' list-colors; setopt no_beep; print READY"
            zpty -r shell out '*READY*READY*'
            zpty -w -n shell $'bulkhead train x --set diagnostics.when_behind=d\t'
            zpty -r -m shell out '*drop*' && print found"""
        done = subprocess.run(["timeout", "20", "zsh", "-f", "-c", script, "zsh", self.dir], capture_output=True, text=True)
        self.assertIn("found", done.stdout, done.stderr)

    def test_command_lines_in_documents_exist(self):
        keys = {key["key"] for key in self.program.keys}
        seen = 0
        for path in PAGES:
            for command, words in command_lines(read(path)):
                where = f"{name_of(path)}: bulkhead {command} {' '.join(words)}"
                if command in ("--help", "--version", "diagnostics-worker"):
                    continue
                self.assertIn(command, self.program.commands, where)
                known = {option for names, _, _ in self.program.help[command].options() for option in names} | {"--help", "-h"}
                values = {option for names, value, _ in self.program.help[command].options() for option in names if value}
                before = ""
                for word in words:
                    if before == "--set" and "=" in word and not word.startswith(("section.", "KEY", "a.b")):
                        self.assertIn(word.split("=")[0], keys, where)
                    elif re.match(r"--?[a-z]", word) and before not in values:
                        self.assertIn(word.rstrip(",.:").split("=")[0], known, where)
                        seen += 1
                    before = word
        self.assertGreater(seen, 50)

    def test_links_and_files_in_documents_exist(self):
        for path in PAGES:
            page = read(path)
            for link in re.findall(r"\]\((?!https?:|mailto:|#)([^)#\s]+)", page):
                self.assertTrue(os.path.exists(os.path.join(os.path.dirname(path), link)), f"{name_of(path)}: {link}")

    def test_functions_and_files_that_guides_name_exist(self):
        code = "".join(read(path) for folder in ("core", "attention", "comm", "data", "diag", "trainer", "tests")
                       for path in glob.glob(os.path.join(ROOT, folder, "**", "*.[ch]*"), recursive=True) + glob.glob(
                           os.path.join(ROOT, folder, "**", "*.py"), recursive=True))
        for page in ("docs/tour.md", "docs/extending.md"):
            text = read(os.path.join(ROOT, page))
            named = re.findall(r"`([a-z_]+)\(\)`", text)
            self.assertTrue(named)
            for function in named:
                self.assertTrue(re.search(rf"\b{function}\(", code), f"{page}: {function}()")
            examples = re.findall(r"^Example: `(\w+)`", text, re.M)
            for path in re.findall(r"`([\w/.-]+/[\w.-]*)`", text):
                if not any(example in path for example in examples + ["build/"]):
                    self.assertTrue(os.path.exists(os.path.join(ROOT, path)), f"{page}: {path}")


if __name__ == "__main__":
    unittest.main()
