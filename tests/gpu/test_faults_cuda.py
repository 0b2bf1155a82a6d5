"""What goes wrong with GPUs ends the whole job within a minute, with one message and the right exit code; and what looks
like it, every rank seeing one GPU of its own, trains."""
import os
import re
import signal
import sys
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
from harness import BULKHEAD, RunTest, need_gpus

CONFIG, INTERNAL = 78, 70
TENSOR = ("run.device=cuda", "parallel.tensor=2")


class Faults(RunTest):
    time_limit_s = 60

    def setUp(self):
        super().setUp()
        self.environment, self.wrapper = {}, []
        self.dataset()

    def command(self, *launch):
        """With self.environment for all ranks, each started by self.wrapper."""
        command = super().command(*launch)
        at = command.index(BULKHEAD)
        return ["env", *(f"{k}={v}" for k, v in self.environment.items()), *command[:at], *self.wrapper, *command[at:]]

    def endless(self, *settings):
        """A run on two GPUs that has done some steps, and the process of its compute rank 1."""
        need_gpus(self, 2)
        config = self.config(train=dict(steps=10 ** 7, log_every=10 ** 6), diagnostics=dict(every=10 ** 6))
        job = self.in_background(3, config, "run", *settings)
        self.wait_for_database("run", "SELECT 1 FROM train_metrics WHERE step >= 5")
        return job, self.process_of_rank(1)

    def process_of_rank(self, rank):
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/cmdline") as f, open(f"/proc/{pid}/environ") as e:
                    command, environment = f.read(), e.read().split("\0")
                if command.startswith(BULKHEAD) and self.dir in command and f"OMPI_COMM_WORLD_RANK={rank}" in environment:
                    return int(pid)
            except OSError:
                pass  # ended, or another user's
        self.fail(f"no process of rank {rank}")

    def ends(self, job, codes, says):
        start = time.monotonic()
        out, err = job.communicate(timeout=self.time_limit_s)
        print(f"{self._testMethodName}: code {job.returncode} after {time.monotonic() - start:.1f} s")
        self.assertIn(job.returncode, codes, err)
        said = [line for line in err.splitlines() if re.search(says, line)]
        self.assertEqual(len(said), 1, err)
        print(said[0])

    # ---- at the start

    def test_a_bad_device_index(self):
        need_gpus(self, 1)
        self.environment = {"CUDA_VISIBLE_DEVICES": "99"}
        self.refused(CONFIG, 2, self.config(), "run", "run.device=cuda",
                     says=("no NVIDIA GPU", "CUDA_VISIBLE_DEVICES"))

    def test_two_ranks_on_one_gpu(self):
        need_gpus(self, 1)
        self.environment = {"CUDA_VISIBLE_DEVICES": "0"}
        self.refused(CONFIG, 3, self.config(), "run", *TENSOR, says=("compute ranks 0 and 1", "the same GPU"))
        self.refused(CONFIG, 3, self.config(), "run", "run.device=cuda", says=("compute ranks 0 and 1", "the same GPU"))

    def test_more_ranks_than_gpus(self):
        gpus = need_gpus(self, 2)
        config = self.config(train=dict(global_batch=gpus + 1))
        self.refused(CONFIG, gpus + 2, config, "run", "run.device=cuda",
                     says=(f"{gpus + 1} compute ranks", f"shows {gpus} GPUs", f"mpirun -n {gpus + 1}"))

    def test_a_gpu_out_of_memory(self):
        need_gpus(self, 1)
        batch = 1 << 19
        config = self.config(model=dict(layers=40, width=64), train=dict(global_batch=batch, micro_batch=batch))
        self.refused(CONFIG, 2, config, "run", "run.device=cuda", "data.repeat=true",
                     says=("GiB of memory cannot be had", "train.micro_batch"))

    def test_a_rank_that_never_joins(self):
        need_gpus(self, 2)
        self.environment = {"LD_PRELOAD": os.environ["NO_PEER"]}
        job = self.in_background(3, self.config(), "run", *TENSOR)
        self.ends(job, [INTERNAL], "rank 0: joining a group of GPUs .* failed: another rank of the group did not come")
        self.assertFalse(os.path.exists(self.path("run")))

    # ---- in a step

    def kills(self, *settings):
        job, pid = self.endless(*settings)
        os.kill(pid, signal.SIGKILL)
        self.ends(job, [128 + signal.SIGKILL], r"mpirun noticed .* rank 1 .*")

    def test_a_killed_rank_of_tensor_parallelism(self):
        self.kills(*TENSOR)

    def test_a_killed_rank_of_data_parallelism(self):
        self.kills("run.device=cuda")

    def test_a_stopped_rank(self):
        job, pid = self.endless(*TENSOR)
        os.kill(pid, signal.SIGSTOP)
        self.ends(job, [INTERNAL], r"rank 0 has waited for 45 s.* in .*step \d+ \((all-reduce|broadcast), collective \d+")

    # ---- no fault

    def test_every_rank_sees_its_own_gpu(self):
        need_gpus(self, 2)
        self.wrapper = ["sh", "-c", 'CUDA_VISIBLE_DEVICES=$OMPI_COMM_WORLD_LOCAL_RANK exec "$@"', "sh"]
        db = self.train(3, self.config(), "run", *TENSOR)
        self.assertEqual(len(self.losses(db)), 6)
        self.assertIn("NVIDIA", db.execute("SELECT device FROM sessions").fetchone()[0])


if __name__ == "__main__":
    unittest.main()
