"""deploy/slurm/launch where mpirun itself does not end: without a Slurm."""
import os
import stat
import subprocess
import time
import unittest

import harness

LAUNCH = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "deploy", "slurm", "launch")

# The first one stays when its only child has ended; the second one takes longer than that, but has one that lives.
MPIRUN = """#!/bin/bash
cd "$(dirname "$0")"
if mkdir first 2> /dev/null; then
    sleep 2 &
    exec sleep 1000
fi
sleep 13
echo done
"""


class Launch(harness.RunTest):
    def launch(self, *program, **environment):
        return subprocess.run([LAUNCH, "mpirun", *program], capture_output=True, text=True, timeout=60,
                              env=dict(os.environ, **environment))

    def test_an_mpirun_that_stays_alone_is_ended(self):
        with open(self.path("mpirun"), "w") as f:
            f.write(MPIRUN)
        os.chmod(self.path("mpirun"), stat.S_IRWXU)
        begun = time.monotonic()
        done = self.launch("program", PATH=f"{self.dir}:{os.environ['PATH']}", SLURM_NTASKS="1")
        self.assertEqual((done.returncode, done.stdout), (0, "done\n"), done.stderr)
        self.assertIn("mpirun has nobody left to run", done.stderr)
        self.assertIn("the run is started again", done.stderr)
        self.assertGreater(time.monotonic() - begun, 23)

    def test_a_rank_that_dies_as_it_connects(self):
        """PMIx 4.2.2 leaves mpirun hanging in most such cases; the run goes on in all."""
        self.dataset()
        open(self.path("mark"), "x").close()
        done = self.launch(harness.BULKHEAD, "train", self.config(), "--set", f"run.dir={self.path('run')}",
                           "--resume", "auto", LD_PRELOAD=os.environ["PRELOAD"], DIE_CONNECTING=self.path("mark"),
                           ASAN_OPTIONS="verify_asan_link_order=0", SLURM_NTASKS="3", OMPI_ALLOW_RUN_AS_ROOT="1",
                           OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", OMPI_MCA_rmaps_base_oversubscribe="1")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("the run is started again", done.stderr)
        self.assertEqual(len(self.losses(self.database("run"))), 6)


if __name__ == "__main__":
    unittest.main()
