#!/usr/bin/env python3
"""Others load what we write: transformers, safetensors, tokenizers and h5py read our exports.

others_load.py PROGRAMS PRINT_LOGITS FIXTURES: PROGRAMS is the folder of dms-export, PRINT_LOGITS
the program of tests/print_logits.c. Exit 77 where a package is missing, with its name.
"""
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TQDM_DISABLE="1")
missing = []
for package in ("torch", "transformers", "safetensors", "tokenizers", "h5py", "numpy"):
    try:
        __import__(package)
    except ImportError:
        missing.append(package)
if "numpy" in missing or "safetensors" in missing or (
        "transformers" in missing and "h5py" in missing):
    print(f"[SKIP] others_load: Python has no {', '.join(missing)}")
    sys.exit(77)

import numpy as np
from safetensors.numpy import load_file, save_file

programs, print_logits, fixtures = (Path(p).resolve() for p in sys.argv[1:4])
docs = Path(__file__).resolve().parent.parent / "docs"
failed, checks = [], 0


def check(what, ok, detail=""):
    global checks
    checks += 1
    print(f"{'ok  ' if ok else 'FAIL'} {what} {detail}")
    if not ok:
        failed.append(what)


def run(*command):
    done = subprocess.run([str(c) for c in command], capture_output=True)
    if done.returncode:
        print(done.stderr.decode())
        raise SystemExit(f"{command} failed")
    return done.stdout


def export(source, to, output, *options):
    run(programs / "dms-export", source, "--to", to, "-o", output, *options)
    return output


def weights(folder):
    tensors = {}
    for file in sorted(folder.glob("model*.safetensors")):
        tensors.update(load_file(file))
    return tensors


def gated(folder, family, gate):
    """A retrofitted model: a fixture with the keys of a gate and, for the adapter, its tensors."""
    tensors = weights(fixtures / "tiny" / family)
    if gate == "adapter":
        more = load_file(fixtures / "tiny" / family / "dms_adapter.safetensors")
        tensors.update({k: v for k, v in more.items() if k.startswith("model.layers.")})
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((fixtures / "tiny" / family / "config.json").read_text())
    config.update(dms_window_size=512, dms_alpha_scale=4.0, dms_initial_alpha_offset=1.0, dms_cr=4,
                  dms_separate_alpha=gate == "adapter")
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = fixtures / "tiny" / family / "tokenizer.json"
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    (folder / "generation_config.json").write_text('{"eos_token_id": 2, "top_p": 0.9}')
    return folder


def ours(folder, ids, *options):
    (folder.parent / "ids").write_text(" ".join(map(str, ids)))
    raw = run(print_logits, folder, folder.parent / "ids", *options)
    return np.frombuffer(raw, np.float32).reshape(len(ids), -1)


def borrowed(config):
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    return [g * (heads // groups) * width + width - 1 for g in range(groups)]


def zero_borrowed(source, folder):
    """A copy whose borrowed rows are zero: the neuron gate's dense form."""
    run("cp", "-r", source, folder)
    config = json.loads((folder / "config.json").read_text())
    tensors = weights(folder)
    for name, value in tensors.items():
        if re.search(r"q_proj\.(weight|bias)$", name):
            value = tensors[name] = value.copy()
            value[borrowed(config)] = 0
    for file in folder.glob("model*"):
        file.unlink()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def theirs(folder, ids, dtype):
    import torch
    from transformers import AutoModelForCausalLM
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, output_loading_info=True, attn_implementation="eager")
    lacks = [k for k in info["missing_keys"]]
    extra = [k for k in info["unexpected_keys"] if ".dms_proj_alpha" not in k]
    with torch.no_grad():
        logits = model.float().eval()(torch.tensor([list(ids)])).logits[0].numpy()
    return logits, not lacks and not extra, f"lacks {lacks}, does not know {extra}"


def neuron_gate(folder, ids):
    """transformers with the channel taken away before and after RoPE (method.md section 1): what
    our gated model computes while nothing has left the window."""
    import importlib
    import torch
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32,
                                                 attn_implementation="eager").eval()
    module = importlib.import_module(type(model).__module__)
    rope, ratio = module.apply_rotary_pos_emb, (model.config.num_attention_heads //
                                                model.config.num_key_value_heads)

    def without(q, k, *rest, **named):
        q = q.clone()
        q[:, ::ratio, :, -1] = 0
        q, k = rope(q, k, *rest, **named)
        q[:, ::ratio, :, -1] = 0
        return q, k

    module.apply_rotary_pos_emb = without
    try:
        with torch.no_grad():
            return model(torch.tensor([list(ids)])).logits[0].numpy()
    finally:
        module.apply_rotary_pos_emb = rope


def compare(what, a, b, limit=2e-4):
    worst = float(np.abs(a - b).max())
    check(what, worst <= limit, f"logits within {worst:.1e} (bar {limit:g})")


def check_transformers(folder, family):
    import torch
    rng = np.random.default_rng(1)
    vocab = json.loads((fixtures / "tiny" / family / "config.json").read_text())["vocab_size"]
    ids = rng.integers(3, vocab, 48)
    for gate in ("adapter", "neuron"):
        source = gated(folder / f"{family}-{gate}", family, gate)
        for to in ("hf", "nvidia-dms"):
            for kind, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16),
                                ("f16", torch.float16)):
                name = f"{family}-{gate}-{to}-{kind}"
                made = export(source, to, folder / name, "--type", kind, "--shard-size", "100KB")
                got, whole, why = theirs(made, ids, dtype)
                check(f"{name}: every tensor known and found", whole, why)
                compare(f"{name}: dense", got, ours(made, ids, "dense"))
                if gate == "adapter" and kind == "f32":
                    compare(f"{name}: gate on, nothing evicted", got, ours(made, ids))
        if gate == "neuron":
            made = folder / f"{family}-{gate}-hf-f32"
            compare(f"{made.name}: the channel taken away", neuron_gate(made, ids), ours(made, ids))
        if gate == "neuron" and family != "qwen3":
            zeroed = zero_borrowed(folder / f"{family}-{gate}-hf-f32", folder / f"{family}-zeroed")
            got, _, _ = theirs(zeroed, ids, torch.float32)
            compare(f"{family}: borrowed rows zeroed", got, ours(zeroed, ids, "dense"))


def check_gpt2(folder):
    """Names, transposed and fused matrices: what was trained here, under a Llama's names, goes out
    as transformers has it; the neuron gate's rows are zeroed by training."""
    import torch
    source = Path(__file__).resolve().parent / "data" / "gpt2"
    ids = np.random.default_rng(1).integers(1, 288, 48)
    run("cp", "-r", source, folder / "gpt2")
    compare("gpt2: as it came", theirs(source, ids, torch.float32)[0], ours(folder / "gpt2", ids))
    (folder / "t.txt").write_text("a single man in possession of a good fortune " * 20)
    run(programs / "dms-tokenize", source, "-o", folder / "t.tok", folder / "t.txt")
    for gate, trained in (("neuron", "all"), ("adapter", "gate")):
        (folder / "gpt2.yaml").write_text(json.dumps({
            "model": {"path": str(source)}, "data": {"train": str(folder / "t.tok"), "context": 32},
            "dms": {"gate": gate, "window": 6}, "schedule": {"steps": 3, "ramp_steps": 1},
            "optim": {"train": trained, "lr": 1e-3}, "device": {"kind": "cpu"},
            "run": {"batch": 1, "folder": str(folder / f"run-{gate}")}}))
        run(programs / "dms-train", folder / "gpt2.yaml")
        made = export(folder / f"run-{gate}" / "latest", "hf", folder / f"gpt2-{gate}", "--type",
                      "f32")
        got, whole, why = theirs(made, ids, torch.float32)
        check(f"gpt2-{gate}: every tensor known and found", whole, why)
        compare(f"gpt2-{gate}: dense", got, ours(made, ids, "dense"))
        gguf = export(made, "gguf", folder / f"gpt2-{gate}.gguf", "--type", "f32")
        compare(f"gpt2-{gate}: gate on, from GGUF", ours(made, ids), ours(gguf, ids), 0)


def check_tokenizers(folder, family):
    from tokenizers import Tokenizer
    made = export(fixtures / "tiny" / family, "hf", folder / f"{family}-plain")
    text = "It was the best of times, and 123 ünïcode words\n\n  more."
    a = Tokenizer.from_file(str(fixtures / "tiny" / family / "tokenizer.json")).encode(text).ids
    b = Tokenizer.from_file(str(made / "tokenizer.json")).encode(text).ids
    check(f"{family}: tokenizers reads our tokenizer.json", a == b)
    if "transformers" not in missing:
        from transformers import AutoTokenizer, GenerationConfig
        auto = AutoTokenizer.from_pretrained(made)
        check(f"{family}: AutoTokenizer", auto(text, add_special_tokens=False)["input_ids"] == a)
        GenerationConfig.from_pretrained(made)


def check_h5py(folder, family):
    """The example of docs/format.md, run on files of ours."""
    text = (docs / "format.md").read_text()
    example = re.search(r"```python\n(.*?)```", text, re.S).group(1)
    wanted = weights(fixtures / "tiny" / family)
    for name, options in (("plain", ()), ("packed", ("--compress",))):
        for kind in ("f32", "f16", "bf16"):
            file = export(fixtures / "tiny" / family, "hdf5", folder / f"{family}-{kind}-{name}.h5",
                          "--type", kind, *options)
            space = {}
            exec(compile(example, "docs/format.md", "exec"), space)
            got, config, tokenizer, _ = space["read"](file)
            limit = {"f32": 0, "f16": 2**-11, "bf16": 2**-8}[kind]
            same = got.keys() == wanted.keys() and all(
                np.all(np.abs(got[k] - v) <= limit * np.abs(v) + 1e-7 * (limit > 0))
                for k, v in wanted.items())
            check(f"{file.name}: h5py reads it as docs/format.md says", same)
            model = fixtures / "tiny" / family
            check(f"{file.name}: texts", config["hidden_size"] == json.loads(
                (model / "config.json").read_text())["hidden_size"] and
                  tokenizer == (model / "tokenizer.json").read_bytes())


with tempfile.TemporaryDirectory() as temporary:
    here = Path(temporary)
    for family in ("llama", "llama3", "qwen2", "qwen3"):
        if "transformers" not in missing and "torch" not in missing:
            check_transformers(here, family)
        if "tokenizers" not in missing:
            check_tokenizers(here, family)
        if "h5py" not in missing:
            check_h5py(here, family)
    if "transformers" not in missing and "torch" not in missing:
        check_gpt2(here)
if missing:
    print(f"[SKIP] others_load: without {', '.join(missing)}, what needs them was not checked")
print(f"{checks - len(failed)} passed, {len(failed)} failed")
sys.exit(1 if failed else 0)
