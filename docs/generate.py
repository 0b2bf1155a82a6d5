#!/usr/bin/env python3
"""Makes what is said about commands and configuration keys, out of what the program says itself.

usage: docs/generate.py BULKHEAD pages             docs/commands.md and docs/configuration.md
       docs/generate.py BULKHEAD install FOLDER    FOLDER/man1, FOLDER/man5 and FOLDER/completion, for cmake --install

The source is `bulkhead --help`, each command's `--help` and `bulkhead plan --keys --json`. A help text is made of blocks with an
empty line between them: first the usage; then paragraphs, and lists whose lines are "  TERM  MEANING", continued by deeper lines,
under a title that ends in a colon or none; last the exit codes.
"""
import gzip
import json
import os
import re
import subprocess
import sys

DOCS = os.path.dirname(os.path.abspath(__file__))
FILES = {"FILE", "DIR", "DB", "FOLDER", "GLOB", "FILE.html", "MODEL"}  # what a shell completes by names of files


class Help:
    """A help text, taken apart; ValueError where it is not made as it should be."""

    def __init__(self, text):
        blocks = text.rstrip("\n").split("\n\n")
        if len(blocks) < 3 or not blocks[0].startswith("usage: ") or not blocks[-1].startswith("Exit codes: "):
            raise ValueError("a help text begins with \"usage: \" and ends with a paragraph \"Exit codes: \"")
        self.usage = [line[len("usage: "):] for line in blocks[0].split("\n")]
        self.codes = re.findall(r"(\d+) ([^,.]+)", " ".join(blocks[-1].split("\n")))
        self.blocks = [self.block(block) for block in blocks[1:-1]]

    @staticmethod
    def block(text):
        """("text", lines) or ("list", title, [(term, meaning)])."""
        lines = text.split("\n")
        title = lines.pop(0)[:-1] if lines[0].endswith(":") and len(lines) > 1 and lines[1].startswith("  ") else None
        if title is None and not lines[0].startswith("  "):
            if any(line.startswith(" ") for line in lines):
                raise ValueError(f"a paragraph's lines are not indented: {text!r}")
            return "text", lines
        items = []
        for line in lines:
            item = re.fullmatch(r"  (\S(?: ?\S)*) {2,}(\S.*)", line)
            if item:
                items.append((item[1], item[2]))
            elif items and re.match(r" {4,}\S", line):
                items[-1] = (items[-1][0], items[-1][1] + " " + line.strip())
            else:
                raise ValueError(f"a list's line is \"  TERM  MEANING\" or continues one: {line!r}")
        return "list", title, items

    def items(self):
        return [item for block in self.blocks if block[0] == "list" for item in block[2]]

    def options(self):
        """[(names, what their value is called or "", meaning)]."""
        found = []
        for term, meaning in self.items():
            if term.startswith("-"):
                names = [part.split(" ", 1) for part in term.split(", ")]
                found.append(([name[0] for name in names], names[-1][1] if len(names[-1]) > 1 else "", meaning))
        return found

    def words(self):
        """What stands in lists and is no option: a question's name."""
        return [term for term, _ in self.items() if not term.startswith("-")]


class Program:
    """What a bulkhead says about itself."""

    def __init__(self, path):
        self.path = path
        top = self.say("--help")
        self.version = self.say("version").split()[1]
        self.top = Help(top)
        self.commands = {name: summary for name, summary in self.top.items()}
        self.help = {name: Help(self.say(name, "--help")) for name in self.commands}
        self.keys = json.loads(self.say("plan", "--keys", "--json"))

    def say(self, *arguments):
        return subprocess.run([self.path, *arguments], check=True, capture_output=True, text=True).stdout


def limits(key):
    if key["choices"]:
        return ", ".join(key["choices"])
    if key["least"] is None:
        return ""
    return f"{key['least']:.16g} to {key['most']:.16g}"


def by_section(keys):
    sections = {}
    for key in keys:
        section, name = key["key"].split(".")
        sections.setdefault(section, []).append((name, key))
    return sections


# ---- pages ----

def escape_md(text):
    """Text for Markdown: what stands in backticks stays as it is."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([*_<>|\[\]])", r"\\\1", part) for part in parts)


def codes_md(codes):
    return "Exit codes: " + ", ".join(f"{code} {meaning}" for code, meaning in codes) + "."


def block_md(block):
    if block[0] == "text":
        return escape_md("\n".join(block[1]))
    rows = [f"| `{term}` | {escape_md(meaning)} |" for term, meaning in block[2]]
    return "\n".join([f"| {block[1] or 'option'} | |", "|---|---|", *rows])


def commands_page(program):
    page = ["# Commands", "Made by `docs/generate.py` from what each command's `--help` says; change it there.",
            block_md(("list", "command", [(name, summary) for name, summary in program.commands.items()])),
            codes_md(program.top.codes)]
    for name, summary in program.commands.items():
        text = program.help[name]
        page += [f"## {name}", escape_md(summary[0].upper() + summary[1:]) + ".", "```\n" + "\n".join(text.usage) + "\n```",
                 *(block_md(block) for block in text.blocks), codes_md(text.codes)]
    return "\n\n".join(page) + "\n"


def configuration_page(program):
    page = ["# Configuration keys",
            "Made by `docs/generate.py` from `core/config_keys.h` (`bulkhead plan --keys` prints the same); change it there. Letters are\n"
            "those of [the design](design.md), section 2. An empty default is derived, or nothing.",
            "A value's type comes from the key, not from YAML: `1e-4`, `.5`, `1_000` and `1e3` are numbers, quoted or not; a flag is\n"
            "true or false, yes or no, on or off; a name `no` is a name. A list is `[a, b]`, or `a,b` behind `--set`. `--set\n"
            "section.key=value` overrides the file. An unknown key or a value out of its limits is an error that names file, line and\n"
            "the nearest valid key (exit code 78)."]
    for section, keys in by_section(program.keys).items():
        rows = [f"| `{name}` | {key['type']} | {'`' + key['default'] + '`' if key['default'] else ''} | {limits(key)} | "
                f"{escape_md(key['meaning'])} |" for name, key in keys]
        page += [f"## {section}", "\n".join(["| key | type | default | limits | meaning |", "|---|---|---|---|---|", *rows])]
    return "\n\n".join(page) + "\n"


# ---- man pages ----

def roff(text):
    return re.sub(r"^([.'])", r"\\&\1", text.replace("\\", "\\e").replace("-", "\\-"))


def codes_roff(codes):
    return [".SH EXIT STATUS"] + [line for code, meaning in codes for line in (".TP", f".B {code}", roff(meaning))]


def list_roff(items):
    return [line for term, meaning in items for line in (".TP", ".B " + roff(term), roff(meaning))]


def man_page(program, name, section, summary, body):
    head = [f'.TH {name.upper()} {section} "" "bulkhead {program.version}" "Bulkhead"', ".nh", ".ad l", ".SH NAME", f"{roff(name)} \\- {roff(summary)}"]
    return "\n".join(head + body) + "\n"


def command_man(program, name):
    text = program.help[name]
    body = [".SH SYNOPSIS", ".nf"] + [".B " + roff(line) for line in text.usage] + [".fi", ".SH DESCRIPTION"]
    paragraphs = [block[1] for block in text.blocks if block[0] == "text"]
    for i, lines in enumerate(paragraphs):
        body += ([".PP"] if i else []) + [roff(line) for line in lines]
    if not paragraphs:
        body.append(roff(program.commands[name]) + ".")
    for block in text.blocks:
        if block[0] == "list":
            body += [".SH " + (block[1] or "options").upper()] + list_roff(block[2])
    return man_page(program, f"bulkhead-{name}", 1, program.commands[name],
                    body + codes_roff(text.codes) + [".SH SEE ALSO", ".BR bulkhead (1),", ".BR bulkhead\\-configuration (5)"])


def program_man(program):
    body = [".SH SYNOPSIS", ".B bulkhead", ".I COMMAND", ".RI [ ARGUMENT ...]", ".SH DESCRIPTION",
            "Pretrains LLaMA\\-like transformers and watches the spectrum of every attention head while it does.",
            "Each command has a page of its own, bulkhead\\-COMMAND(1), and", ".BR \\-\\-help .", ".SH COMMANDS"]
    body += list_roff(program.commands.items()) + codes_roff(program.top.codes)
    body += [".SH SEE ALSO", ".BR bulkhead\\-configuration (5),", ".BR mpirun (1)"]
    return man_page(program, "bulkhead", 1, "pretrains transformers and watches the spectra of their attention heads", body)


def configuration_man(program):
    body = [".SH DESCRIPTION", "A YAML file of sections with keys beneath them;",
            ".B \\-\\-set section.key=value", "overrides one."]
    for section, keys in by_section(program.keys).items():
        items = []
        for name, key in keys:
            more = [key["type"], limits(key), f"default {key['default']}" if key["default"] else ""]
            items.append((name, f"{key['meaning']} ({'; '.join(part for part in more if part)})"))
        body += [f".SH {section.upper()}"] + list_roff(items)
    return man_page(program, "bulkhead-configuration", 5, "configuration of a training run",
                    body + [".SH SEE ALSO", ".BR bulkhead\\-train (1),", ".BR bulkhead\\-plan (1)"])


# ---- completion ----

def takes_file(value):
    return not FILES.isdisjoint(value.split("|"))


def settings(program):
    """What may stand behind --set: each key up to its =, and whole where it has choices."""
    words = []
    for key in program.keys:
        words += [key["key"] + "="]
        words += [f"{key['key']}={value}" for value in key["choices"] or (("true", "false") if key["type"] == "flag" else ())]
    return words


def bash_completion(program):
    out = ["# bash completion of bulkhead; made by docs/generate.py.",
           "_bulkhead() {",
           "    # words hold an = of their own, at which bash cuts them",
           "    local line=${COMP_LINE:0:COMP_POINT} words=() options='' with_value='' before=''",
           "    local word=${line##*[[:space:]]}",
           "    COMPREPLY=()",
           "    read -r -a words <<< \"$line\"",
           "    [ \"$word\" ] && unset 'words[-1]'",
           "    [ ${#words[@]} -gt 0 ] && before=${words[-1]}",
           "    if [ ${#words[@]} -le 1 ]; then",
           f"        mapfile -t COMPREPLY < <(compgen -W '{' '.join(program.commands)} --help --version' -- \"$word\")",
           "        return",
           "    fi",
           "    case ${words[1]} in"]
    for name, text in program.help.items():
        options = [option for names, _, _ in text.options() for option in names] + ["--help"]
        opaque = [option for names, value, _ in text.options() for option in names if value and not takes_file(value) and option != "--set"]
        out += [f"    {name})", f"        options='{' '.join(text.words() + options)}'", f"        with_value=' {' '.join(opaque)} '", "        ;;"]
    out += ["    esac",
            "    if [ \"$before\" = --set ]; then",
            f"        mapfile -t COMPREPLY < <(compgen -W '{' '.join(settings(program))}' -- \"$word\")",
            "        [[ ${COMPREPLY[0]-} != *= ]] || compopt -o nospace",
            "        case $COMP_WORDBREAKS in *=*) COMPREPLY=(\"${COMPREPLY[@]#\"${word%\"${word##*=}\"}\"}\") ;; esac",
            "    elif [[ $with_value == *\" $before \"* ]]; then",
            "        compopt +o default +o bashdefault",
            "    else",
            "        mapfile -t COMPREPLY < <(compgen -W \"$options\" -- \"$word\")",
            "    fi",
            "}",
            "complete -o bashdefault -o default -F _bulkhead bulkhead"]
    return "\n".join(out) + "\n"


def quoted_zsh(text):
    return "'" + text.replace("'", "'\\''") + "'"


def zsh_option(names, value, meaning):
    meaning = re.sub(r"([\[\]:\\])", r"\\\1", meaning)
    action = ":_bulkhead_settings" if "--set" in names else ":_files" if takes_file(value) else ": " if value else ""
    value = re.sub(r"([:\\])", r"\\\1", value)
    return [quoted_zsh(f"*{name}[{meaning}]" + (f":{value}{action}" if value else "")) for name in names]


def zsh_completion(program):
    out = ["#compdef bulkhead", "# zsh completion of bulkhead; made by docs/generate.py.", "",
           "_bulkhead_settings() {", f"    compadd -S '' -- {' '.join(settings(program))}", "}", "",
           "_bulkhead() {", "    local -a commands=("]
    out += ["        " + quoted_zsh(f"{name}:{summary}") for name, summary in program.commands.items()]
    out += ["    )", "    if (( CURRENT == 2 )); then", "        _describe command commands", "        return", "    fi",
            "    shift words", "    (( CURRENT-- ))", "    case $words[1] in"]
    for name, text in program.help.items():
        specs = [spec for option in text.options() for spec in zsh_option(*option)]
        specs.append("'--help[what this command does]'")
        if text.words():
            specs.append(f"'1:word:({' '.join(text.words())})'")
        out += [f"    {name})", "        _arguments \\", *(f"            {spec} \\" for spec in specs), "            '*:file:_files'", "        ;;"]
    return "\n".join(out + ["    esac", "}", "", "_bulkhead \"$@\""]) + "\n"


# ---- files ----

def pages(program):
    return {"commands.md": commands_page(program), "configuration.md": configuration_page(program)}


def installed(program):
    """{path: text}; man pages are to be packed."""
    files = {"man1/bulkhead.1": program_man(program), "man5/bulkhead-configuration.5": configuration_man(program)}
    files.update({f"man1/bulkhead-{name}.1": command_man(program, name) for name in program.commands})
    files["completion/bulkhead"] = bash_completion(program)
    files["completion/_bulkhead"] = zsh_completion(program)
    return files


def main(arguments):
    if len(arguments) < 2 or (arguments[1] != "pages" and (arguments[1] != "install" or len(arguments) != 3)):
        sys.exit(__doc__)
    program = Program(arguments[0])
    if arguments[1] == "pages":
        for name, text in pages(program).items():
            with open(os.path.join(DOCS, name), "w", encoding="utf-8") as page:
                page.write(text)
        return
    for name, text in installed(program).items():
        path = os.path.join(arguments[2], name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        packed = name.startswith("man")
        with open(path + (".gz" if packed else ""), "wb") as file:
            file.write(gzip.compress(text.encode(), mtime=0) if packed else text.encode())


if __name__ == "__main__":
    main(sys.argv[1:])
