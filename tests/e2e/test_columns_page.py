"""docs/spectra.md explains every column that the program records, and no other."""
import os
import re
import unittest

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")


def read(*parts):
    with open(os.path.join(ROOT, *parts), encoding="utf-8") as f:
        return f.read()


class SpectraPage(unittest.TestCase):
    def test_every_column_has_a_row(self):
        columns = set(re.findall(r"^    X\((\w+), (?:REAL|INTEGER)\)", read("diag", "spectrum.h"), re.M))
        self.assertGreater(len(columns), 30)
        rows = [line.split(" | ") for line in read("docs", "spectra.md").splitlines() if line.startswith("| ")]
        described = {}
        for row in rows:
            name = row[0].strip("| ")
            if len(row) == 4 and re.fullmatch(r"[a-z0-9_]+", name) and name not in ("column", "map"):
                self.assertNotIn(name, described)
                described[name] = row
        self.assertEqual(set(described) - {"mp_softrank"}, columns)  # a column of the views
        for name, (_, formula, span, reading) in described.items():
            for part in (formula, span, reading.strip(" |")):
                self.assertTrue(part.strip(), name)

    def test_every_status_is_named(self):
        statuses = re.search(r"#define SPECTRUM_STATUSES\(X\)(.*)", read("diag", "spectrum.h")).group(1)
        page = read("docs", "spectra.md").split("## Status")[1]
        for status in re.findall(r"X\((\w+)\)", statuses):
            self.assertIn(f"`{status}`", page)


if __name__ == "__main__":
    unittest.main()
