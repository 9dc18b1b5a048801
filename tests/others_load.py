#!/usr/bin/env python3
"""Others load what we write: transformers, safetensors, tokenizers, gguf and h5py read our exports.

others_load.py PROGRAMS PRINT_LOGITS FIXTURES: PROGRAMS is the folder of dms-export, PRINT_LOGITS
the program of tests/print_logits.c. What needs a missing package is named and left out; exit 77
where too little is there to check anything. Without accelerate, transformers reads no GGUF.
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
for package in ("torch", "transformers", "safetensors", "tokenizers", "h5py", "numpy", "gguf",
                "accelerate"):
    try:
        __import__(package)
    except ImportError:
        missing.append(package)
if "numpy" in missing or "safetensors" in missing or (
        "transformers" in missing and "h5py" in missing and "gguf" in missing):
    print(f"[SKIP] others_load: Python has no {', '.join(missing)}")
    sys.exit(77)

import numpy as np
from safetensors.numpy import load_file, save_file

programs, print_logits, fixtures = (Path(p).resolve() for p in sys.argv[1:4])
docs = Path(__file__).resolve().parent.parent / "docs"
data = Path(__file__).resolve().parent / "data"
MODELS = {m: fixtures / "tiny" / m for m in ("llama", "llama3", "qwen2", "qwen3")}
MODELS.update({m: data / m for m in ("deepseek-llama", "deepseek-qwen2", "gpt2")})
failed, checks, worst_logits = [], 0, 0.0


def has(*packages):
    return not set(packages) & set(missing)


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


def adapter(family, config):
    """The adapter's tensors of a fixture, or small ones of the same shapes."""
    file = MODELS[family] / "dms_adapter.safetensors"
    if file.exists():
        return {k: v for k, v in load_file(file).items() if k.startswith("model.layers.")}
    rng, made, width = np.random.default_rng(2), {}, config["hidden_size"]
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}.self_attn.dms_proj_alpha"
        shape = (config["num_key_value_heads"], width)
        made[f"{name}.weight"] = rng.normal(0, 0.1, shape).astype(np.float32)
        made[f"{name}_norm.weight"] = np.ones(width, np.float32)
    return made


def gated(folder, family, gate):
    """A retrofitted model: a fixture with the keys of a gate and, for the adapter, its tensors."""
    tensors = weights(MODELS[family])
    config = json.loads((MODELS[family] / "config.json").read_text())
    if gate == "adapter":
        tensors.update(adapter(family, config))
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    config.update(dms_window_size=512, dms_alpha_scale=4.0, dms_initial_alpha_offset=1.0, dms_cr=4,
                  dms_separate_alpha=gate == "adapter")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_bytes((MODELS[family] / "tokenizer.json").read_bytes())
    (folder / "generation_config.json").write_text('{"eos_token_id": 2, "top_p": 0.9}')
    return folder


def ours(folder, ids, *options):
    (folder.parent / "ids").write_text(" ".join(map(str, ids)))
    raw = run(print_logits, folder, folder.parent / "ids", *options)
    return np.frombuffer(raw, np.float32).reshape(len(ids), -1)


def borrowed(config):
    heads = config.get("num_attention_heads") or config["n_head"]
    groups = config.get("num_key_value_heads", heads)
    width = config.get("head_dim") or (config.get("hidden_size") or config["n_embd"]) // heads
    return [g * (heads // groups) * width + width - 1 for g in range(groups)]


def zero_borrowed(source, folder):
    """A copy whose borrowed rows are zero: the neuron gate's dense form."""
    run("cp", "-r", source, folder)
    config = json.loads((folder / "config.json").read_text())
    tensors = weights(folder)
    for name, value in tensors.items():
        if re.search(r"(q_proj|c_attn)\.(weight|bias)$", name):  # c_attn: query columns come first
            value = tensors[name] = value.copy()
            (value.T if "c_attn" in name else value)[borrowed(config)] = 0
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
    global worst_logits
    worst = float(np.abs(a - b).max())
    worst_logits = max(worst_logits, worst)
    check(what, worst <= limit, f"logits within {worst:.1e} (bar {limit:g})")


def check_transformers(folder, family):
    import torch
    rng = np.random.default_rng(1)
    vocab = json.loads((MODELS[family] / "config.json").read_text())["vocab_size"]
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
    source = MODELS["gpt2"]
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
        if has("gguf"):
            check_gguf(folder, made, ids, gate, n_positions=64)


def gguf_logits(file, ids, **config):
    """transformers reads the file's metadata too; `config`: what it does not take from them."""
    import torch
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, **config,
                                                 dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        return model.eval()(torch.tensor([list(ids)])).logits[0].numpy()


def gguf_type(tensor, kind):
    """Blocks of Q8_0 hold 32 numbers of a row; llama.cpp adds positions in F32."""
    if "position_embd" in tensor.name:
        return "F32"
    return "F16" if kind == "q8_0" and tensor.shape[0] % 32 else kind.upper()


def check_gguf(folder, source, ids, gate, **config):
    """The reader of llama.cpp's package; llama.cpp refuses a tensor that its architecture lacks.
    Others run the dense form: with the neuron gate, borrowed rows are zero on both sides."""
    import gguf
    name, dense = source.name, source
    if gate == "neuron":
        dense = zero_borrowed(source, folder / f"{name}-dense")
    tokens = len(json.loads((source / "tokenizer.json").read_text())["model"]["vocab"])
    for kind in ("f32", "f16", "bf16", "q8_0"):
        file = export(source, "gguf", folder / f"{name}-{kind}.gguf", "--type", kind)
        reader = gguf.GGUFReader(file)
        of = reader.get_field("general.architecture").contents()
        arch = next(a for a, text in gguf.MODEL_ARCH_NAMES.items() if text == of)
        known = {gguf.TENSOR_NAMES[t] for t in gguf.MODEL_TENSORS[arch]}
        strange = [t.name for t in reader.tensors
                   if re.sub(r"blk\.\d+", "blk.{bid}", t.name.rsplit(".", 1)[0]) not in known]
        check(f"{file.name}: gguf reads it, llama.cpp has these tensors", not strange, strange)
        wrong = [t.name for t in reader.tensors
                 if len(t.shape) > 1 and t.tensor_type.name != gguf_type(t, kind)]
        check(f"{file.name}: tensors of their types", not wrong, wrong)
        check(f"{file.name}: tokens",
              len(reader.get_field("tokenizer.ggml.tokens").contents()) >= tokens)
        if has("transformers", "torch", "accelerate"):
            same = export(dense, "gguf", folder / f"{name}-{kind}-dense.gguf", "--type", kind)
            compare(f"{file.name}: transformers reads it", gguf_logits(file, ids, **config),
                    ours(same, ids, "dense"))


def check_gguf_family(folder, family):
    config = json.loads((MODELS[family] / "config.json").read_text())
    ids = np.random.default_rng(1).integers(3, config["vocab_size"], 48)
    more = {"head_dim": config["head_dim"]} if family == "qwen3" else {}
    if config.get("rope_scaling"):
        more["rope_parameters"] = {**config["rope_scaling"], "rope_theta": config["rope_theta"]}
    for gate in ("adapter", "neuron"):
        if gate == "neuron" and family == "qwen3":
            continue  # has no dense form
        source = folder / f"{family}-{gate}"
        if not source.exists():
            gated(source, family, gate)
        check_gguf(folder, source, ids, gate, **more)


def check_tokenizers(folder, family):
    from tokenizers import Tokenizer
    made = export(MODELS[family], "hf", folder / f"{family}-plain")
    text = "It was the best of times, and 123 ünïcode words\n\n  more."
    a = Tokenizer.from_file(str(MODELS[family] / "tokenizer.json")).encode(text).ids
    b = Tokenizer.from_file(str(made / "tokenizer.json")).encode(text).ids
    check(f"{family}: tokenizers reads our tokenizer.json", a == b)
    if has("transformers"):
        from transformers import AutoTokenizer, GenerationConfig
        auto = AutoTokenizer.from_pretrained(made)
        check(f"{family}: AutoTokenizer", auto(text, add_special_tokens=False)["input_ids"] == a)
        GenerationConfig.from_pretrained(made)


def check_h5py(folder, family):
    """The example of docs/format.md, run on files of ours."""
    text = (docs / "format.md").read_text()
    example = re.search(r"```python\n(.*?)```", text, re.S).group(1)
    wanted = weights(MODELS[family])
    for name, options in (("plain", ()), ("packed", ("--compress",))):
        for kind in ("f32", "f16", "bf16"):
            file = export(MODELS[family], "hdf5", folder / f"{family}-{kind}-{name}.h5",
                          "--type", kind, *options)
            space = {}
            exec(compile(example, "docs/format.md", "exec"), space)
            got, config, tokenizer, _ = space["read"](file)
            limit = {"f32": 0, "f16": 2**-11, "bf16": 2**-8}[kind]
            same = got.keys() == wanted.keys() and all(
                np.all(np.abs(got[k] - v) <= limit * np.abs(v) + 1e-7 * (limit > 0))
                for k, v in wanted.items())
            check(f"{file.name}: h5py reads it as docs/format.md says", same)
            model = MODELS[family]
            check(f"{file.name}: texts", config["vocab_size"] == json.loads(
                (model / "config.json").read_text())["vocab_size"] and
                  tokenizer == (model / "tokenizer.json").read_bytes())


with tempfile.TemporaryDirectory() as temporary:
    here = Path(temporary)
    for family in MODELS:
        if has("tokenizers"):
            check_tokenizers(here, family)
        if has("h5py"):
            check_h5py(here, family)
        if family == "gpt2":
            continue  # has other names and a gate of its own kind
        if has("transformers", "torch"):
            check_transformers(here, family)
        if has("gguf"):
            check_gguf_family(here, family)
    if has("transformers", "torch"):
        check_gpt2(here)
if missing:
    print(f"[SKIP] others_load: without {', '.join(missing)}, what needs them was not checked")
print(f"{checks - len(failed)} passed, {len(failed)} failed, logits within {worst_logits:.1e}")
sys.exit(1 if failed else 0)
