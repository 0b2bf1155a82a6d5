"""train --profile N on GPUs: its phases by events of the queue, held against the host's clock and counts as on the CPU."""
import os
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
from harness import need_gpus
from test_profile import VARIANTS, Profiles

GPU = dict(run=dict(device="cuda"), train=dict(steps=10, global_batch=4, micro_batch=2, eval_every=3, precision="fp32"))


class ProfileOnGpus(Profiles):
    slack = 0.1, 0.5  # the queue may be behind its host where a step begins or ends

    def test_one_gpu(self):
        need_gpus(self, 1)
        for variant in VARIANTS:
            self.check_variant(variant, splits=(1,), **GPU)

    def test_two_gpus(self):
        need_gpus(self, 2)
        for variant in VARIANTS:
            self.check_variant(variant, splits=(2,), **GPU)


if __name__ == "__main__":
    unittest.main()
