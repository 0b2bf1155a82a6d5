"""The same run on one GPU, on two by tensor parallelism, on two by data parallelism with and without ZeRO-1, and on the
CPU: fp32 losses of 50 steps, for each variant, with a diagnostics rank that computes spectra beside them. Two GPUs."""
import os
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
from harness import RunTest, need_gpus

STEPS, TOLERANCE = 50, 1e-5


class SameRunTest(RunTest):
    time_limit_s = 120

    def check_variant(self, variant):
        need_gpus(self, 2)
        self.dataset()
        config = self.config(model=dict(layers=3, width=64, ffn=90),
                             attention=dict(variant=variant, kv_lora_rank=32),
                             train=dict(steps=STEPS, global_batch=8, micro_batch=4, warmup=5, precision="fp32"),
                             diagnostics=dict(every=10))
        runs = {"one GPU": (2, "run.device=cuda"),
                "TP 2": (3, "run.device=cuda", "parallel.tensor=2", "parallel.halves=off"),
                "TP 2 in halves": (3, "run.device=cuda", "parallel.tensor=2"),
                "DP 2": (3, "run.device=cuda", "parallel.zero=0"),
                "DP 2 ZeRO": (3, "run.device=cuda", "parallel.zero=1"),
                "CPU": (2, "run.device=cpu")}
        losses = {}
        for name, (ranks, *settings) in runs.items():
            db = self.train(ranks, config, name.replace(" ", "-"), *settings)
            losses[name] = self.losses(db)
            self.assertEqual(len(losses[name]), STEPS)
            device = db.execute("SELECT device FROM sessions").fetchone()[0]
            self.assertEqual("NVIDIA" in device, name != "CPU", device)
            self.assertEqual(db.execute("SELECT count(*) FROM snapshots WHERE status = 'done'").fetchone()[0], 6)
        want = losses.pop("one GPU")
        self.assertLess(want[-1], want[0] - 0.3, "nothing was learned")
        for name, got in losses.items():
            worst = max((abs(a - b) / b, step) for step, (a, b) in enumerate(zip(got, want), 1))
            print(f"{variant}: {name} is off one GPU by {worst[0]:.2g} at most, at step {worst[1]}")
            self.assertLessEqual(worst[0], TOLERANCE, f"{name}, step {worst[1]}")

    def test_zero_in_bf16(self):
        """Losses of bf16 copies that were gathered, beside those of copies that each GPU made itself; and the same bits
        again."""
        need_gpus(self, 2)
        self.dataset()
        config = self.config(model=dict(layers=3, width=64, ffn=90), attention=dict(variant="mla-decoupled", kv_lora_rank=32),
                             train=dict(steps=STEPS, global_batch=8, micro_batch=2, warmup=5), run=dict(device="cuda"),
                             diagnostics=dict(every=10))
        losses = {name: self.losses(self.train(3, config, name, f"parallel.zero={zero}"))
                  for name, zero in (("whole", 0), ("cut", 1), ("again", 1))}
        self.assertEqual(losses["cut"], losses["again"])
        # Two ranks' sums are the same in either order: so are gradients, and updates are made element by element. The
        # norms that clip are added in another order.
        worst = max(abs(a - b) / b for a, b in zip(losses["cut"], losses["whole"], strict=True))
        print(f"bf16: with ZeRO-1 losses are off by {worst:.2g} at most")
        self.assertLessEqual(worst, 1e-3)

    def test_mha(self):
        self.check_variant("mha")

    def test_prerope(self):
        self.check_variant("mla-prerope")

    def test_decoupled(self):
        self.check_variant("mla-decoupled")


if __name__ == "__main__":
    unittest.main()
