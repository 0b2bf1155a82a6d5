"""deploy/slurm/launch where mpirun itself does not end: without a Slurm, with an mpirun made for it."""
import os
import stat
import subprocess
import tempfile
import time
import unittest

LAUNCH = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "deploy", "slurm", "launch")

# The first one stays when its only child has ended; the second one takes longer than that, but has one that lives.
MPIRUN = """#!/bin/bash
cd "$(dirname "$0")"
if mkdir first 2> /dev/null; then
    sleep 2 &
    exec sleep 1000
fi
sleep 25
echo done
"""


class Launch(unittest.TestCase):
    def test_an_mpirun_that_stays_alone_is_ended(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "mpirun")
            with open(path, "w") as f:
                f.write(MPIRUN)
            os.chmod(path, stat.S_IRWXU)
            begun = time.monotonic()
            done = subprocess.run([LAUNCH, "mpirun", "program"], capture_output=True, text=True, timeout=80,
                                  env=dict(os.environ, PATH=f"{folder}:{os.environ['PATH']}", SLURM_NTASKS="1"))
            self.assertEqual((done.returncode, done.stdout), (0, "done\n"), done.stderr)
            self.assertIn("mpirun has nobody left to run", done.stderr)
            self.assertIn("the run is started again", done.stderr)
            self.assertGreater(time.monotonic() - begun, 45)


if __name__ == "__main__":
    unittest.main()
