"""End to end: what a trained model writes, by which seed, and models and prompts that are refused."""
import glob
import json
import os
import random
import shutil
import unittest

import harness

USAGE, DATA, NO_INPUT, CONFIG = 64, 65, 66, 78
FLOAT = 4
MODEL = harness.SMALL["model"]


def words(count, seed=3):
    """Text of a few words in random order."""
    rng = random.Random(seed)
    stock = ["the", "cat", "sat", "on", "a", "mat", "and", "then", "it", "went", "für", "home"]
    return " ".join(rng.choice(stock) for _ in range(count)) + ".\n"


class Generate(harness.RunTest):
    def trained(self, run, **sections):
        self.train(2, self.config(f"{run}.yaml", **sections), run)
        return self.path(run)

    def generate(self, model, *arguments):
        done = self.bulkhead("generate", model, *arguments, "--threads", "1")
        self.assertEqual(done.returncode, 0, done.stderr)
        return done

    def said(self, model, *arguments):
        return json.loads(self.generate(model, "--json", *arguments).stdout)

    def refused(self, code, *arguments, says=()):
        done = self.bulkhead("generate", *arguments)
        self.assertEqual(done.returncode, code, done.stderr)
        self.assertEqual(done.stdout, "")
        self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
        for word in says:
            self.assertIn(word, done.stderr)

    def test_every_variant_writes(self):
        self.dataset()
        d, layers, heads = MODEL["width"], MODEL["layers"], MODEL["heads"]
        mha = 2 * d * layers * FLOAT
        for variant, attention, cache in (("mha", {}, mha), ("mla-prerope", {}, 16 * layers * FLOAT),
                                          ("mla-prerope", {"prerope_source": "hidden"}, 16 * layers * FLOAT),
                                          ("mla-decoupled", {}, (16 + 4) * layers * FLOAT),
                                          ("mla-decoupled", {"latent_norm": False, "q_lora_rank": 8},
                                           (16 + 4) * layers * FLOAT)):
            run = self.trained(f"{variant}-{len(attention)}", attention=dict(variant=variant, **attention),
                               train=dict(steps=2))
            greedy = self.said(run, "--tokens", "1,2,3", "--max", "8", "--temperature", "0")
            self.assertEqual(greedy["prompt_tokens"], [1, 2, 3])
            self.assertEqual((len(greedy["tokens"]), greedy["ended"]), (8, "max"))
            self.assertEqual(greedy["cache"], {"bytes_per_token": cache, "mha_bytes_per_token": mha})
            # a step further at a time: the cache says what the whole text at once does
            text = [1, 2, 3]
            for token in greedy["tokens"]:
                one = self.said(run, "--tokens", ",".join(map(str, text)), "--max", "1", "--temperature", "0")
                self.assertEqual(one["tokens"], [token])
                text.append(token)

    def test_a_seed_is_a_text(self):
        self.dataset()
        run = self.trained("run")
        first = self.said(run, "--tokens", "5", "--max", "20")
        again = self.said(os.path.join(run, "checkpoints", "step-00000006"), "--tokens", "5", "--max", "20", "--seed", "1")
        other = self.said(run, "--tokens", "5", "--max", "20", "--seed", "2")
        self.assertEqual(first["tokens"], again["tokens"])
        self.assertNotEqual(first["tokens"], other["tokens"])
        few = self.said(run, "--tokens", "5", "--max", "20", "--top-k", "1", "--seed", "2")
        greedy = self.said(run, "--tokens", "5", "--max", "20", "--temperature", "0")
        self.assertEqual(few["tokens"], greedy["tokens"])
        done = self.generate(run, "--tokens", "5", "--max", "20")
        self.assertEqual(done.stdout, ",".join(map(str, [5] + first["tokens"])) + "\n")
        self.assertIn("bytes a token", done.stderr)

    def test_the_context_is_the_end(self):
        self.dataset()
        run = self.trained("run")
        full = self.said(run, "--tokens", ",".join(["7"] * 30), "--max", "20")
        self.assertEqual((len(full["tokens"]), full["ended"]), (2, "context"))
        self.refused(DATA, run, "--tokens", ",".join(["7"] * 32), says=["32 tokens", "no room"])

    def test_text(self):
        with open(self.path("text.txt"), "w") as f:
            f.write("".join(words(12, seed) for seed in range(300)))
        done = self.bulkhead("prepare", self.path("text.txt"), "-o", self.path("data"), "--vocab", "290")
        self.assertEqual(done.returncode, 0, done.stderr)
        run = self.trained("run", model=dict(vocab=None), data=dict(train=self.path("data", "train-*.bin"),
                                                                    validation=self.path("data", "val-*.bin")),
                           train=dict(steps=40))
        plain = self.generate(run, "--prompt", "the cat", "--max", "12", "--temperature", "0")
        self.assertTrue(plain.stdout.startswith("the cat"), plain.stdout)
        said = self.said(run, "--prompt", "the cat", "--max", "12", "--temperature", "0")
        self.assertEqual(said["prompt"], "the cat")
        self.assertEqual("the cat" + said["text"] + "\n", plain.stdout)
        self.assertEqual(said["prompt_tokens"][0], 1)
        self.assertEqual(self.said(run, "--max", "3")["prompt"], "")
        self.refused(DATA, run, "--prompt", os.fsdecode(b"\xff"), says=["UTF-8"])
        moved = self.path("moved.model")
        shutil.move(self.path("data", "tokenizer.model"), moved)
        self.refused(NO_INPUT, run, "--prompt", "a", says=["tokenizer.model"])
        self.assertEqual(self.said(run, "--prompt", "the cat", "--max", "12", "--temperature", "0", "--tokenizer", moved), said)
        with open(self.path("data", "tokenizer.model"), "w") as f:
            f.write("no model")
        self.refused(DATA, run, "--prompt", "a", says=["SentencePiece"])

    def test_what_is_refused(self):
        self.dataset()
        run = self.trained("run")
        self.refused(USAGE, says=["one MODEL"])
        self.refused(USAGE, run, "--tokens", "1", "--prompt", "a", says=["--prompt and --tokens"])
        self.refused(USAGE, run, "--tokens", "1;2", says=["commas"])
        self.refused(USAGE, run, "--tokens", "1", "--top-p", "1.5", says=["--top-p"])
        self.refused(USAGE, run, "--tokens", "1", "--temperature", "nan", says=["--temperature"])
        self.refused(DATA, run, "--tokens", "1,64", says=["no token 64"])
        self.refused(NO_INPUT, run, "--prompt", "a", says=["tokenizer", "--tokenizer"])
        self.refused(NO_INPUT, self.path("absent"), "--tokens", "1", says=["absent"])
        self.refused(NO_INPUT, self.dir, "--tokens", "1", says=["config.yaml"])
        self.refused(CONFIG, run, "--tokens", "1", "--device", "abacus", says=["run.device"])
        checkpoint = os.path.join(run, "checkpoints", "step-00000006")
        (shard,) = glob.glob(os.path.join(checkpoint, "rank-*.safetensors"))
        with open(shard, "r+b") as f:
            f.truncate(os.path.getsize(shard) - 100)
        self.refused(DATA, run, "--tokens", "1", says=["rank-00000.safetensors", "bytes"])
        with open(os.path.join(checkpoint, "config.yaml")) as f:
            text = f.read()
        with open(os.path.join(checkpoint, "config.yaml"), "w") as f:
            f.write(text.replace("ffn: 48", "ffn: 40"))
        self.refused(DATA, checkpoint, "--tokens", "1")
        os.remove(os.path.join(run, "checkpoints", "latest"))
        self.refused(NO_INPUT, run, "--tokens", "1", says=["no whole checkpoint"])


if __name__ == "__main__":
    unittest.main()
