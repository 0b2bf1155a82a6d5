"""Makes tests/golden/tokenizers: small tokenizer.json files of the kinds that data/tokenizer_json.c knows, trained on this
project's documents, and cases.json, what Hugging Face's tokenizers gives for texts.

usage: python make_tokenizers.py FOLDER     (needs the package tokenizers; made with 0.23)
"""
import glob
import json
import os
import random
import sys

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
MARK = "\u2581"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
DEEPSEEK = ["\\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
            "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
            "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"]


def corpus():
    for path in sorted(glob.glob(os.path.join(ROOT, "docs", "*.md"))):
        with open(path, encoding="utf-8") as f:
            yield f.read()


def bytes_behind(pre_tokenizer, vocab, special, **model):
    t = Tokenizer(models.BPE(**model))
    t.pre_tokenizer = pre_tokenizer
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=vocab, special_tokens=special, show_progress=False,
                                                        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return t


def gpt2(vocab=420, prefix=False):
    return bytes_behind(pre_tokenizers.ByteLevel(add_prefix_space=prefix), vocab, ["<|endoftext|>"])


def llama3(vocab=420):
    steps = [pre_tokenizers.Split(Regex(LLAMA3), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    t = bytes_behind(pre_tokenizers.Sequence(steps), vocab, ["<|begin_of_text|>", "<|end_of_text|>"], ignore_merges=True)
    described = json.loads(t.to_str())
    described["model"]["vocab"]["xyzzy"] = vocab  # no merges make it
    t = Tokenizer.from_str(json.dumps(described))
    t.post_processor = processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)])
    t.add_tokens([AddedToken("<think", normalized=False), AddedToken("<thinking>", normalized=False),
                  AddedToken("   ", normalized=True)])
    return t


def deepseek(vocab=420):
    steps = [pre_tokenizers.Split(Regex(p), "isolated") for p in DEEPSEEK]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    ends = [f"<\uff5c{word}{MARK}of{MARK}sentence\uff5c>" for word in ("begin", "end")]
    return bytes_behind(pre_tokenizers.Sequence(steps), vocab, ends)


def characters(vocab, special, fallback=True):
    """A BPE model of characters with marks for spaces, and bytes for the rest, as SentencePiece's trainer makes them."""
    t = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=fallback, fuse_unk=True))
    t.normalizer = normalizers.Replace(" ", MARK)
    t.pre_tokenizer = pre_tokenizers.Split(MARK, "merged_with_next")  # else training would make tokens of whole lines
    special = special + [f"<0x{byte:02X}>" for byte in range(256) if fallback]
    t.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=vocab, special_tokens=special, show_progress=False))
    described = json.loads(t.to_str())
    described["added_tokens"] = [a for a in described["added_tokens"] if not a["content"].startswith("<0x")]
    described["pre_tokenizer"] = None
    return described


def with_middle(t):
    """A token that any text may have: what stands on either side of it is normalized apart."""
    t.add_tokens([AddedToken("<mid>", normalized=False)])
    return t


def llama2(vocab=520):
    described = characters(vocab, ["<unk>", "<s>", "</s>"])
    t = Tokenizer.from_str(json.dumps(described))
    t.normalizer = normalizers.Sequence([normalizers.Prepend(MARK), normalizers.Replace(" ", MARK)])
    t.decoder = decoders.Sequence([decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse(),
                                   decoders.Strip(" ", 1, 0)])
    return t


def metaspace(vocab=520, scheme="first", split=False):
    described = characters(vocab, ["<unk>", "<s>", "</s>"])
    described["normalizer"] = None
    t = Tokenizer.from_str(json.dumps(described))
    t.pre_tokenizer = pre_tokenizers.Metaspace(replacement=MARK, prepend_scheme=scheme, split=split)
    strip = [decoders.Strip(" ", 1, 0)] if scheme != "never" else []
    t.decoder = decoders.Sequence([decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return with_middle(t)


def gemma(vocab=520):
    described = characters(vocab, ["<pad>", "<eos>", "<bos>", "<unk>"])
    t = Tokenizer.from_str(json.dumps(described))
    t.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    t.decoder = decoders.Sequence([decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse()])
    return t


def unknowns(vocab=200):
    """Characters that training saw; all others are one unknown token, however many stand together."""
    t = Tokenizer.from_str(json.dumps(characters(vocab, ["<unk>", "</s>"], fallback=False)))
    t.decoder = decoders.Replace(MARK, " ")
    return t


KINDS = dict(gpt2=gpt2, llama3=llama3, deepseek=deepseek, llama2=llama2, gemma=gemma, metaspace=metaspace, unknowns=unknowns)

TEXTS = ["", " ", "  ", "\n", "\n\n  \n", "\t\t x", "spectra of every head", " spectra  of\n\nevery   head ", "I'll they'RE can't 'Tis",
         "1234567 and 12,345.678", "a1b22c333d4444", "x = y[0] + {z} # --> !!!\r\n\r\n", "caf\u00e9 na\u00efve \u00c5ngstr\u00f6m e\u0301",
         "\u4e2d\u6587\u304b\u306a\u30ab\u30ca \uac00\ub098", "\U0001f600\U0001f469\u200d\U0001f680 \u00a0\u3000\u2003x\u180ey\u200bz\u0085w\u2028v",
         "<|endoftext|> </s> <unk> <0x41> <|end_of_text|>", "<think>so<thinking>   then   <think", "one<mid> two <mid>three<mid><mid>", f"a{MARK}b {MARK}{MARK} c",
         "\u017ftrange 'S 'LL \u00bd \u2167 \u0663\u0664 \u00b2", "the " * 12 + "end", "a\u0000b", "xyzzy xyzzyx", "aaaaaaaaaaaaaaaaaaaaaaaaaaa", "\ufeffx \ufffd \uffff"]


def random_text(rng):
    often = ["the ", " of", "spectra", " head", "\n", "  ", "'s", "1", "23", ", ", ".", "\u00e9", MARK, "a", "e", "\t", "(", "n't", "<mid>"]
    made = ""
    for _ in range(rng.randrange(1, 40)):
        kind = rng.randrange(10)
        code = rng.randrange(0x110000) if kind == 0 else rng.randrange(0x3000)
        made += rng.choice(often) if kind > 1 else chr(code) if not 0xD800 <= code < 0xE000 else "?"
    return made


def ids(t, text):
    t.encode_special_tokens = True
    return t.encode(text, add_special_tokens=False).ids


def write(folder):
    rng = random.Random(1)
    texts = TEXTS + [random_text(rng) for _ in range(20)]
    cases = {}
    for name, make in KINDS.items():
        t = make()
        with open(os.path.join(folder, name + ".json"), "w") as f:
            json.dump(json.loads(t.to_str()), f, separators=(",", ":"))
            f.write("\n")
        cases[name] = [ids(t, text) for text in texts]
    with open(os.path.join(folder, "cases.json"), "w") as f:
        json.dump(dict(texts=texts, ids=cases), f, separators=(",", ":"))
        f.write("\n")


if __name__ == "__main__":
    write(sys.argv[1])
