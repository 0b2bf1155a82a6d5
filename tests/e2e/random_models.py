"""Models with fresh random weights in folders that eval, generate, export and import take, made with tests/golden's float64
model, which also says what they compute. golden is None where PyTorch is missing."""
import importlib.util
import os

GOLDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden", "make_golden.py")
try:
    spec = importlib.util.spec_from_file_location("make_golden", GOLDEN)
    golden = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(golden)
    import torch
except SystemExit:
    golden = None


def skip_without_pytorch(test):
    if not golden:
        print("skipped: no PyTorch")
        test.skipTest("no PyTorch")


def write_model(folder, seed, **overrides):
    """Its configuration and weights."""
    c = golden.resolve(overrides)
    parameters = golden.draw_parameters(c, torch.Generator().manual_seed(seed))
    os.makedirs(folder)
    golden.write_safetensors(os.path.join(folder, "model.safetensors"), parameters, {"format": "test"})
    sections = {}
    for setting in golden.settings(c):
        section, key = setting.split(".", 1)
        sections.setdefault(section, []).append("  " + key.replace("=", ": ", 1))
    with open(os.path.join(folder, "config.yaml"), "w") as f:
        f.write("".join(f"{section}:\n" + "\n".join(lines) + "\n" for section, lines in sections.items()))
    return c, parameters


def losses_of(c, parameters, tokens):
    """The loss of each token but the first, all in one window."""
    t = torch.tensor([tokens])
    return golden.model(c, parameters, t[:, :-1], t[:, 1:])[1][0].tolist()
