#!/usr/bin/env python3
"""Puts into docs/reproduction.md what its queries answer, asked of docs/reproduction/*.db (summaries of deploy/reproduce/run).

usage: page.py [--page FILE]      $BULKHEAD is the program (build/release/bulkhead); the databases lie in FILE's folder of that name

Behind each ```sql block the lines between `<!-- answers -->` and `<!-- end -->` are replaced, and those behind `<!-- state -->`. Each
database gets a picture of its runs of the least seed beside it (docs/picture.py).
"""
import argparse
import glob
import os
import re
import subprocess
import sys

ROOT = os.path.realpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
BULKHEAD = os.environ.get("BULKHEAD", os.path.join(ROOT, "build", "release", "bulkhead"))
NONE_YET = "The runs were not made yet: this page has its queries, and no answers.\n"


def name_of(database):
    return os.path.splitext(os.path.basename(database))[0]


def answer(database, sql):
    done = subprocess.run([BULKHEAD, "query", database, "--sql", sql], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{done.stderr}{database}: {sql}")
    lines = "\n".join(line.rstrip() for line in done.stdout.rstrip().split("\n"))
    return f"{name_of(database)}:\n\n```\n{lines}\n```\n"


def state(databases):
    pictures = [f"![{name_of(d)}]({os.path.basename(os.path.dirname(d))}/{name_of(d)}.svg)\n" for d in databases]
    return "\n".join(pictures) if databases else NONE_YET


def fill(text, databases):
    """The page with these databases' answers."""
    def answers(match):
        given = "\n".join(answer(d, match[2].strip()) for d in databases)
        return f"{match[1]}<!-- answers -->\n{given}<!-- end -->\n"

    text = re.sub(r"<!-- state -->\n.*?<!-- end -->\n", lambda _: f"<!-- state -->\n{state(databases)}<!-- end -->\n", text, flags=re.S)
    return re.sub(r"(```sql\n(.*?)```\n\n)<!-- answers -->\n.*?<!-- end -->\n", answers, text, flags=re.S)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--page", default=os.path.join(ROOT, "docs", "reproduction.md"))
    page = p.parse_args().page
    with open(page, encoding="utf-8") as f:
        text = f.read()
    databases = sorted(glob.glob(os.path.join(os.path.splitext(page)[0], "*.db")))
    for database in databases:
        picture = os.path.splitext(database)[0] + ".svg"
        subprocess.run([sys.executable, os.path.join(ROOT, "docs", "picture.py"), picture, database], check=True)
    filled = fill(text, databases)
    with open(page, "w", encoding="utf-8") as f:
        f.write(filled)


if __name__ == "__main__":
    main()
