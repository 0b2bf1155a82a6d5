"""docs/cases.md 21, on four GPUs: sums of tensor- and data-parallel groups under way at once, in runs of 500 steps, again and
again; and the same losses as on one GPU."""
import os
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
from harness import RunTest, need_gpus

STEPS, REPEATS, SAME_STEPS, TOLERANCE = 500, 20, 50, 1e-5
FOUR = ("parallel.tensor=2", "parallel.data=2")


class FourGpus(RunTest):
    time_limit_s = 120

    def setUp(self):
        super().setUp()
        need_gpus(self, 4)
        self.dataset()

    def small(self, steps, precision):
        return self.config(model=dict(layers=3, width=64, ffn=90), attention=dict(variant="mla-decoupled", kv_lora_rank=32),
                           train=dict(steps=steps, global_batch=8, micro_batch=2, warmup=5, precision=precision),
                           run=dict(device="cuda"), diagnostics=dict(every=25))

    def test_two_by_two_never_hangs(self):
        """Halves, buckets and ZeRO-1 are the default, so both groups' sums run beside computation and each other."""
        config = self.small(STEPS, "bf16")
        losses = []
        for repeat in range(REPEATS):
            db = self.train(5, config, f"run-{repeat}", *FOUR)
            losses.append(self.losses(db))
            self.assertEqual(len(losses[-1]), STEPS)
            self.assertEqual(losses[-1], losses[0], f"repeat {repeat}")
            print(f"run {repeat + 1} of {REPEATS} is over", flush=True)

    def test_same_as_one(self):
        config = self.small(SAME_STEPS, "fp32")
        want, got = self.losses(self.train(2, config, "one")), self.losses(self.train(5, config, "four", *FOUR))
        worst = max(abs(a - b) / b for a, b in zip(got, want, strict=True))
        print(f"two by two GPUs are off one by {worst:.2g} at most")
        self.assertLessEqual(worst, TOLERANCE)


if __name__ == "__main__":
    unittest.main()
