"""End to end: checkpoints that are broken or made to do harm end `bulkhead analyze` with one line and its exit code, before
a database is written. docs/cases.md 22."""
import json
import os
import struct
import unittest

import checkpoints
from checkpoints import DEEPSEEK, LLAMA
from test_analyze import CONFIG, DATA, NO_INPUT, USAGE, AnalyzeTest

Q = "model.layers.0.self_attn.q_proj.weight"


class Hostile(AnalyzeTest):
    def setUp(self):
        super().setUp()
        self.made = 0

    def folder(self, config=LLAMA, **keywords):
        self.made += 1
        return checkpoints.write_folder(self.path(f"m{self.made}"), config, **keywords)

    def header(self, model):
        with open(os.path.join(model, "model.safetensors"), "rb") as f:
            length, = struct.unpack("<Q", f.read(8))
            return json.loads(f.read(length)), f.read()

    def put(self, model, header, data, length=None):
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        with open(os.path.join(model, "model.safetensors"), "wb") as f:
            f.write(struct.pack("<Q", len(text) if length is None else length) + text + data)

    def test_safetensors_headers(self):
        model = self.folder()
        header, data = self.header(model)
        text = json.dumps(header).encode()

        def changed(**entry):
            return {**header, Q: {**header[Q], **entry}}

        first, last = header[Q]["data_offsets"]
        double = text[:-1] + b', ' + json.dumps(Q).encode() + b": " + json.dumps(header[Q]).encode() + b"}"
        for given, length, tail, says in (
                (text, len(text) + len(data) + 1, data, "past the end of the file"),
                (text, 2**63, data, "past the end of the file"),
                (text, 2**64 - 1, data, "past the end of the file"),
                (b"{" + text[2:], None, data, "no JSON"),
                (b"[" * 100000, None, b"", "no list of tensors"),
                (b"[" * 60 + b"]" * 60, None, b"", "no JSON object"),
                (b"[]", None, b"", "no JSON object"),
                (b"", 0, b"", "no JSON"),
                (double, None, data, "duplicate"),
                (changed(data_offsets=[first - 4, last - 4]), None, data, "overlaps"),
                (changed(data_offsets=[len(data) - 1, len(data) + last - first - 1]), None, data, "cut off"),
                (changed(data_offsets=[last, first]), None, data, "no range"),
                (changed(data_offsets=[-1, 3]), None, data, "no range"),
                (changed(data_offsets=[first, last + 4]), None, data, "need"),
                (changed(shape=[2**62, 4]), None, data, "overflows"),
                (changed(shape=[16, -16]), None, data, "not a count"),
                (changed(shape=[1] * 9), None, data, "dimensions"),
                (changed(dtype="F4"), None, data, "unknown dtype"),
                (header, None, data + b"\0", "follow the last tensor"),
                (header, None, data[:-1], "cut off"),
                ({**{k: v for k, v in header.items() if k != Q}}, None, data, "hole")):
            with self.subTest(says=says, length=length):
                self.put(model, given, tail, length)
                self.refused(DATA, model, says=["model.safetensors", says])

    def test_a_header_over_the_formats_limit(self):
        model = self.folder()
        with open(os.path.join(model, "model.safetensors"), "wb") as f:
            f.write(struct.pack("<Q", 100000001))
            f.truncate(110000000)
        self.refused(DATA, model, says=["100000001"])

    def test_a_file_that_ends_early(self):
        model = self.folder()
        path = os.path.join(model, "model.safetensors")
        size = os.path.getsize(path)
        for length in (0, 7, 8, 9, size // 2, size - 1):
            os.truncate(path, length)
            self.refused(DATA, model, says=["model.safetensors"])
            model = self.folder()
            path = os.path.join(model, "model.safetensors")

    def test_odd_headers_that_are_valid(self):
        model = self.folder()
        header, data = self.header(model)
        header["empty"] = {"dtype": "F32", "shape": [0, 4], "data_offsets": [len(data), len(data)]}
        text = json.dumps(header).encode()
        self.put(model, text + b" " * ((3 - len(text)) % 8), data)
        want = self.rows(self.analyze("plain.db", self.folder()))
        self.same(self.rows(self.analyze("odd.db", model)), want, 0)

    def test_configurations(self):
        model = self.folder()
        llama = dict(LLAMA)

        def refused(config, *says):
            text = config if isinstance(config, str) else json.dumps(config)
            with open(os.path.join(model, "config.json"), "w") as f:
                f.write(text)
            self.refused(DATA, model, says=["config.json", *says])

        refused({**llama, "model_type": "\x1b[31mother\n"}, "not known")
        refused({k: v for k, v in llama.items() if k != "model_type"}, "model_type")
        refused({**llama, "model_type": 3}, "model_type")
        refused({k: v for k, v in llama.items() if k != "hidden_size"}, "hidden_size is missing")
        for bad in (0, -1, 1.5, "16", True, [16], 2**63 - 1):
            refused({**llama, "hidden_size": bad})
        refused({**llama, "num_hidden_layers": 2000000}, "model.layers")
        refused({**llama, "num_key_value_heads": 3}, "kv_heads")
        refused({**llama, "num_attention_heads": 3, "num_key_value_heads": 3}, "head_dim")
        refused({**llama, "quantization_config": {"quant_method": "fp8"}}, "quantized (fp8)")
        refused({**DEEPSEEK, "rope_scaling": {"type": "yarn", "mscale": 1, "mscale_all_dim": 0.7}}, "YaRN")
        refused({**DEEPSEEK, "rope_scaling": {"rope_type": "longrope"}}, "longrope")
        refused({**DEEPSEEK, "kv_lora_rank": None}, "kv_lora_rank")
        refused("[]", "no JSON object")
        refused("{", "no JSON")
        refused('{"a":' * 100000, "no JSON")
        refused('{"model_type": "llama", "model_type": "qwen2"}', "duplicate")
        refused('{"hidden_size": 1e999}', "no JSON")
        refused('{"hidden_size": 99999999999999999999}', "no JSON")

    def test_tensors_that_are_not_the_configurations(self):
        self.refused(DATA, self.folder({**LLAMA, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 4},
                                       tensors=checkpoints.random_tensors(checkpoints.shapes_of(LLAMA))),
                     says=[Q, "16 x 16", "8 x 16"])
        shapes = checkpoints.shapes_of(LLAMA)
        missing = {k: v for k, v in shapes.items() if k != "model.layers.1.self_attn.k_proj.weight"}
        self.refused(DATA, self.folder(tensors=checkpoints.random_tensors(missing)),
                     says=["no tensor model.layers.1.self_attn.k_proj.weight"])
        self.refused(DATA, self.folder({**DEEPSEEK, "qk_rope_head_dim": 6, "qk_nope_head_dim": 4},
                                       tensors=checkpoints.random_tensors(checkpoints.shapes_of(DEEPSEEK))),
                     says=["kv_a_proj_with_mqa", "16 x 24", "18 x 24"])
        model = self.folder()
        header, data = self.header(model)
        first, last = header[Q]["data_offsets"]
        for dtype, shape in (("F8_E4M3", [64, 16]), ("I32", [16, 16])):
            self.put(model, {**header, Q: {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}}, data)
            self.refused(DATA, model, says=[Q, dtype])
        self.put(model, {**header, Q: {"dtype": "F32", "shape": [256], "data_offsets": [first, last]}}, data)
        self.refused(DATA, model, says=[Q, "is 256;"])

    def index(self, model, change):
        path = os.path.join(model, "model.safetensors.index.json")
        with open(path) as f:
            index = json.load(f)
        index = change(index)
        with open(path, "w") as f:
            f.write(index if isinstance(index, str) else json.dumps(index))

    def test_indices(self):
        outside = checkpoints.write_folder(self.path("outside"), LLAMA)
        stolen = os.path.join(outside, "model.safetensors")

        def places(name):
            return lambda index: {**index, "weight_map": {**index["weight_map"], Q: name}}

        for change, says in (
                (places("../outside/model.safetensors"), "no name of a file"),
                (places(stolen), "no name of a file"),
                (places(".."), "no name of a file"), (places("."), "no name of a file"), (places(""), "no name of a file"),
                (places("a\nb"), "no name of a file"), (places("x" * 300), "no name of a file"),
                (places("model-00009-of-00002.safetensors"), "which the index names"),
                (places("config.json"), "config.json"), (places(7), "no file's name"),
                (places("model-00001-of-00002.safetensors"), "is not in"),
                (lambda index: {**index, "weight_map": []}, "weight_map"), (lambda index: {"metadata": {}}, "weight_map"),
                (lambda index: {"weight_map": {}}, "names no tensor"), (lambda index: '{"a":' * 100000, "no JSON"),
                (lambda index: [], "weight_map")):
            with self.subTest(says=says):
                model = self.folder(shards=2)
                where = checkpoints.shapes_of(LLAMA)
                self.assertEqual(list(where).index(Q) % 2, 1)  # in the second shard
                self.index(model, change)
                self.refused(DATA, model, says=[says])

    def test_links_that_leave_the_folder(self):
        outside = checkpoints.write_folder(self.path("outside"), LLAMA)
        for name in ("model.safetensors", "config.json"):
            model = self.folder()
            os.remove(os.path.join(model, name))
            os.symlink(os.path.join(outside, name), os.path.join(model, name))
            self.refused(DATA, model, says=[name, "outside of its folder"])
        model = self.folder()
        os.rename(os.path.join(model, "model.safetensors"), os.path.join(model, "weights"))
        os.symlink("weights", os.path.join(model, "model.safetensors"))
        self.analyze("inside.db", model)

    def test_what_is_not_there(self):
        self.refused(NO_INPUT, self.path("absent"), says=["absent"])
        os.makedirs(self.path("empty"))
        self.refused(NO_INPUT, self.path("empty"), says=["model.safetensors"])
        model = self.folder()
        os.remove(os.path.join(model, "config.json"))
        self.refused(NO_INPUT, model, says=["config.json"])
        self.refused(USAGE, says=["no model"])

    def test_settings_that_are_wrong(self):
        model = self.folder()
        for setting, says in (("diagnostics.forms=scores", "scores"), ("diagnostics.parts=rope", "only full and ov"),
                              ("diagnostic.parts=full", "diagnostics"), ("model.layers=1", "model.layers")):
            self.refused(CONFIG, model, says=[says], options=["--set", setting])
        self.refused(USAGE, model, says=["threads"], options=["--threads", "0"])

    def test_a_database_is_never_written_over(self):
        model = self.folder()
        self.analyze("a.db", model)
        code, _, err = self.run_program("analyze", model, "-o", self.path("a.db"))
        self.assertEqual((code, len(err.splitlines())), (USAGE, 1))
        self.assertIn("is there already", err)


if __name__ == "__main__":
    unittest.main()
