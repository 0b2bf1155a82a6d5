"""The README's tables are what bench/table.py makes of bench/results."""
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")


class TableTest(unittest.TestCase):
    def test_the_readme_shows_the_results(self):
        readme = os.path.join(ROOT, "README.md")
        with tempfile.TemporaryDirectory() as folder:
            copy = shutil.copy(readme, folder)
            subprocess.run([sys.executable, os.path.join(ROOT, "bench", "table.py"), os.path.join(ROOT, "bench", "results"),
                            "--into", copy], check=True)
            with open(copy) as made, open(readme) as shown:
                self.assertEqual(made.read(), shown.read(), "run bench/table.py bench/results --into README.md")


if __name__ == "__main__":
    unittest.main()
