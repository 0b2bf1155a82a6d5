"""A processor that OpenBLAS does not know: its better kernels are asked for by name."""
import os
import subprocess
import unittest

from harness import BULKHEAD


def said(**variables):
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"} | variables
    return subprocess.run([BULKHEAD, "version", "--verbose"], env=environment, capture_output=True, text=True, timeout=60)


class Blas(unittest.TestCase):
    def setUp(self):
        with open("/proc/cpuinfo") as f:
            flags = f.read().split()
        if "avx2" not in flags or "DYNAMIC_ARCH" not in said().stdout:
            self.skipTest("skipped: this OpenBLAS or processor leaves no choice")
        self.best = "SkylakeX" if "avx512vl" in flags else "Haswell"
        self.unknown = dict(LD_PRELOAD=os.environ["OLD_BLAS"], ASAN_OPTIONS="verify_asan_link_order=0")

    def test_better_kernels_are_taken(self):
        done = said(**self.unknown)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stdout, f"built with .*{self.best}")

    def test_a_choice_is_left(self):
        done = said(OPENBLAS_CORETYPE="Nehalem", **self.unknown)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stdout, "built with .*Nehalem")

    def test_a_known_processor_keeps_its_own(self):
        first = said().stdout
        self.assertNotIn("Prescott", first)


if __name__ == "__main__":
    unittest.main()
