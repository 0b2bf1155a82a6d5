"""End to end: a run that starts from weights in a safetensors file, and files that it refuses on all ranks alike."""
import json
import random
import struct
import unittest

import harness

DATA, NO_INPUT = 65, 66


def shapes():
    """The parameters of harness.SMALL's mha, [rows, cols]."""
    model = harness.SMALL["model"]
    d, f, v = model["width"], model["ffn"], model["vocab"]
    found = {"embedding": (v, d), "norm": (1, d), "lm_head": (v, d)}
    for layer in range(model["layers"]):
        p = f"layers.{layer}."
        found.update({p + "attention." + name: (d, d) for name in ("W_Q", "W_K", "W_V", "W_O")})
        found.update({p + "attention_norm": (1, d), p + "mlp_norm": (1, d), p + "mlp.W_gate": (f, d), p + "mlp.W_up": (f, d),
                      p + "mlp.W_down": (d, f)})
    return found


def write_weights(path, tensors):
    """Small random values, gains around 1; the same for a name whatever else the file holds."""
    header, blobs, offset = {}, [], 0
    for name, (rows, cols) in tensors.items():
        draw = random.Random(name)
        mean = 1 if name.endswith("norm") else 0
        blob = struct.pack(f"<{rows * cols}f", *(draw.gauss(mean, 0.1) for _ in range(rows * cols)))
        header[name] = {"dtype": "F32", "shape": [rows, cols], "data_offsets": [offset, offset + len(blob)]}
        offset += len(blob)
        blobs.append(blob)
    text = json.dumps(header).encode()
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + b"".join(blobs))


class InitFrom(harness.RunTest):
    def setUp(self):
        super().setUp()
        self.dataset()
        self.file = self.path("weights.safetensors")

    def start(self, **train):
        return self.config(train=dict(init_from=self.file, **train))

    def test_one_file_starts_the_same_run_on_every_layout(self):
        write_weights(self.file, shapes())
        alone = self.losses(self.train(2, self.start(), "alone"))
        for ranks, tensor in ((3, 2), (5, 4), (3, 1), (5, 2)):
            losses = self.losses(self.train(ranks, self.start(), f"run-{ranks}-{tensor}", f"parallel.tensor={tensor}"))
            for a, b in zip(losses, alone, strict=True):
                self.assertAlmostEqual(a, b, delta=1e-5 * b)

    def test_the_seed_orders_the_data_but_does_not_touch_the_weights(self):
        write_weights(self.file, shapes())
        still = dict(steps=1, lr=0, warmup=0)
        read, drawn = self.start(**still), self.config("drawn.yaml", train=still)

        def validation_loss(config, run, seed):
            return self.train(2, config, run, f"run.seed={seed}").execute(
                "SELECT loss FROM eval_metrics WHERE split = 'validation'").fetchone()[0]

        self.assertEqual(validation_loss(read, "read-1", 1), validation_loss(read, "read-2", 2))
        self.assertNotEqual(validation_loss(drawn, "drawn-1", 1), validation_loss(drawn, "drawn-2", 2))

    def test_a_checkpoint_of_a_run_starts_another(self):
        """Its weights alone, at another shape: what the new run finds before it moves is what the old one found last."""
        old = self.config("old.yaml", attention=dict(variant="mla-decoupled"), train=dict(steps=4))
        loss = "SELECT loss FROM eval_metrics WHERE split = 'validation' AND step = ?"
        (want,) = self.train(5, old, "old", "parallel.tensor=2").execute(loss, (4,)).fetchone()
        self.file = self.path("old", "checkpoints", "step-00000004")
        new = self.config("new.yaml", attention=dict(variant="mla-decoupled"),
                          train=dict(init_from=self.file, steps=1, lr=0, warmup=0))
        (got,) = self.train(2, new, "new").execute(loss, (1,)).fetchone()
        self.assertAlmostEqual(got, want, delta=1e-5 * want)
        self.refused(DATA, 2, self.start(), "run", says=["step-00000004", "no parameter", "W_DKV"])
        self.refused(DATA, 2, new, "run", "model.ffn=40", says=["step-00000004", "mlp", "x 32"])
        self.refused(NO_INPUT, 2, new, "run", f"train.init_from={self.dir}", says=["manifest.json"])

    def test_files_of_another_model_are_refused(self):
        whole = shapes()
        missing = {k: s for k, s in whole.items() if k != "layers.1.mlp.W_up"}
        for tensors, says in ((missing, ["no tensor layers.1.mlp.W_up"]),
                              ({**whole, "layers.2.mlp.W_up": (48, 32)}, ["no parameter layers.2.mlp.W_up"]),
                              ({**whole, "lm_head": (32, 64)}, ["lm_head is 32 x 64", "64 x 32"])):
            write_weights(self.file, tensors)
            self.refused(DATA, 3, self.start(), "run", "parallel.tensor=2", says=["weights.safetensors"] + says)

    def test_a_file_that_is_cut_off_or_absent(self):
        write_weights(self.file, shapes())
        with open(self.file, "r+b") as f:
            f.truncate(20000)
        self.refused(DATA, 3, self.start(), "run", "parallel.tensor=2", says=["weights.safetensors"])
        self.refused(NO_INPUT, 3, self.start(), "run", f"train.init_from={self.path('absent')}", says=["absent"])


if __name__ == "__main__":
    unittest.main()
