"""Writes tests/data: tiny models of GPT-2's and of DeepSeek-R1's distils' kind, and what PyTorch and
transformers compute with them.

    python tests/reference/make_families.py tests/data        needs torch, transformers, tokenizers,
                                                              safetensors

GPT-2 under both gates is computed here from the definitions of the method (Dynamic Memory
Sparsification, arXiv 2506.05345), on the weights of the folder, and checked against transformers'
own GPT-2 where no gate is involved. Weights are random, and stored as F16 to be small: all values
are computed in f32 from the rounded ones."""
import json, math, os, sys
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config,
                          Qwen2ForCausalLM)

torch.manual_seed(7)
torch.set_num_threads(1)
LAYERS, TOKENS, WINDOW, TARGET, SCALE, OFFSET, TAU = 2, 24, 5, 0.75, 4.0, 1.0, 0.1
VOCAB = 288
TEXT = """It is a truth universally acknowledged, that a single man in possession of a good fortune,
must be in want of a wife. However little known the feelings or views of such a man may be on his
first entering a neighbourhood, this truth is so well fixed in the minds of the surrounding
families, that he is considered as the rightful property of some one or other of their daughters.
"""  # Jane Austen, Pride and Prejudice (public domain)

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
DEEPSEEK = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<think>",
            "</think>"]


def tokenizer(pattern, special):
    t = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel
    t.pre_tokenizer = (level(add_prefix_space=False, use_regex=True) if pattern is None else
                       pre_tokenizers.Sequence([
                           pre_tokenizers.Split(Regex(pattern), "isolated"),
                           level(add_prefix_space=False, use_regex=False)]))
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator([TEXT], trainers.BpeTrainer(
        vocab_size=VOCAB, initial_alphabet=level.alphabet(), special_tokens=special,
        show_progress=False))
    return t


def randomise(model, seed):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=g)
            if p.dim() == 1 and name.endswith("weight"):
                p.copy_(1 + 0.2 * noise)
            else:
                p.copy_(noise * (0.3 if p.dim() == 1 else 1.2 / min(p.shape) ** 0.5))
            p.copy_(p.half().float())


def write_model(folder, model, config, tok):
    os.makedirs(folder, exist_ok=True)
    tied = model.config.tie_word_embeddings
    weights = {n: v.half().contiguous() for n, v in model.state_dict().items()
               if not (tied and n == "lm_head.weight") and not n.endswith((".attn.bias", ".masked_bias"))}
    save_file(weights, folder + "/model.safetensors", metadata={"format": "pt"})
    with open(folder + "/config.json", "w") as f:
        json.dump(config, f, indent=2)
        f.write("\n")
    tok.save(folder + "/tokenizer.json", pretty=False)


def write_dense(folder, model, tok):
    """Hidden states after the final norm, [B, T, D], and the logits of the last four tokens; a text
    with special tokens, and its ids."""
    special = [t.content for t in tok.get_added_tokens_decoder().values()]
    text = "I've 1234 wives,\n\n  don't you?" + "".join(special) + " a truth\n" + special[0]
    text_ids = torch.tensor(tok.encode(text, add_special_tokens=False).ids)
    ids = torch.tensor(tok.encode(TEXT).ids[:2 * TOKENS]).view(2, TOKENS)
    with torch.no_grad():
        o = model(ids, output_hidden_states=True)
    save_file({"ids": ids.int(), "hidden": o.hidden_states[-1].contiguous(),
               "last_logits": o.logits[:, -4:].contiguous(), "text_ids": text_ids.int()},
              folder + "/dense.safetensors", metadata={"text": text})
    return ids, o.logits


# ---- GPT-2 with a gate ---------------------------------------------------------------------------

def gpt2_forward(c, w, ids, gate=None, noise=None, hard=False, fade=None):
    """The hidden states after the final norm, eviction logits z and decisions of each layer."""
    B, T = ids.shape
    H, E = c.n_head, c.n_embd // c.n_head
    q_at, k_at = torch.arange(T)[:, None], torch.arange(T)[None, :]
    zs, ds = [], []

    def norm(x, name):
        return F.layer_norm(x, (c.n_embd,), w[name + ".weight"], w[name + ".bias"],
                            c.layer_norm_epsilon)

    def conv(x, name):
        return x @ w[name + ".weight"] + w[name + ".bias"]

    x = w["transformer.wte.weight"][ids] + w["transformer.wpe.weight"][:T]
    for i in range(c.n_layer):
        p = f"transformer.h.{i}."
        q, k, v = (t.view(B, T, H, E).transpose(1, 2)
                   for t in conv(norm(x, p + "ln_1"), p + "attn.c_attn").split(c.n_embd, -1))
        if gate == "neuron":
            z = SCALE * q[..., -1] - OFFSET
            keep = torch.ones(E)
            keep[-1] = 0 if fade is None else fade * fade
            q = q * keep
        if gate == "adapter":
            a = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + c.layer_norm_epsilon)
            a = a * w[p + "attn.dms_proj_alpha_norm.weight"]
            z = SCALE * (a @ w[p + "attn.dms_proj_alpha.weight"].T).transpose(1, 2) - OFFSET
        s = q @ k.transpose(-1, -2) / math.sqrt(E)
        if gate and fade is None:
            u = z if hard else (z + noise[i]) / TAU
            soft = torch.sigmoid(u)
            d = (z > 0).float() if hard else ((soft > 0.5).float() - soft.detach()) + soft
            late = torch.where(d[..., 1:] > 0, -math.inf, 0.0) if hard else -F.softplus(u[..., 1:])
            bias = torch.cat([late, torch.zeros(B, H, 1)], -1)[:, :, None, :]
            s = torch.where(q_at - k_at > WINDOW, s + bias, s)
            zs.append(z)
            ds.append(d)
        s = s.masked_fill(q_at < k_at, -math.inf)
        o = (s.softmax(-1) @ v).transpose(1, 2).reshape(B, T, -1)
        x = x + conv(o, p + "attn.c_proj")
        h = F.gelu(conv(norm(x, p + "ln_2"), p + "mlp.c_fc"), approximate="tanh")
        x = x + conv(h, p + "mlp.c_proj")
    return norm(x, "transformer.ln_f"), zs, ds


def add_adapter(c, w, seed):
    g = torch.Generator().manual_seed(seed)
    for i in range(c.n_layer):
        p = f"transformer.h.{i}.attn.dms_proj_alpha"
        w[p + ".weight"] = 0.1 * torch.randn(c.n_head, c.n_embd, generator=g)
        w[p + "_norm.weight"] = 1 + 0.1 * torch.randn(c.n_embd, generator=g)


def gate_case(folder, c, base, ids, gate):
    eos = c.eos_token_id
    ids = ids.clone()
    ids[0, 5] = ids[1, 11] = ids[1, 12] = eos
    counted = (ids != eos).float()
    w = {n: v.clone() for n, v in base.items()}
    out = {}
    if gate == "adapter":
        add_adapter(c, w, 12)
        out.update({n: v.clone() for n, v in w.items() if "dms_" in n})
    for v in w.values():
        v.requires_grad_(True)
    g = torch.Generator().manual_seed(11 if gate == "neuron" else 13)
    u = torch.rand((c.n_layer, 2, c.n_head, TOKENS), generator=g).clamp(1e-7, 1 - 1e-7)
    noise = torch.log(u) - torch.log1p(-u)
    head = "transformer.wte.weight"
    xs, zs, ds = gpt2_forward(c, w, ids, gate, noise)
    with torch.no_grad():
        lt = F.log_softmax(gpt2_forward(c, base, ids)[0] @ base[head].T, -1)
    ls = F.log_softmax(xs @ w[head].T, -1)
    kl = ((ls.exp() * (ls - lt)).sum(-1) * counted).sum() / counted.sum()
    frac = torch.stack(ds).mean((0, 2, 3))
    compress = (TARGET - frac).clamp(min=0).mean()
    (kl + compress).backward()
    with torch.no_grad():
        xh, zh, dh = gpt2_forward(c, w, ids, gate, hard=True)
        if gate == "neuron":
            out["fade_0.4_hidden"] = gpt2_forward(c, w, ids, gate, fade=0.4)[0]
    out.update({"ids": ids.int(), "counted": counted, "noise": noise,
                "z": torch.stack(zs).detach(), "decision": torch.stack(ds).detach().round(),
                "hidden": xs.detach(), "kl": kl.detach().reshape(1),
                "compress": compress.detach().reshape(1), "hard_z": torch.stack(zh),
                "hard_decision": torch.stack(dh), "hard_hidden": xh})
    # a matrix's gradient as its projections on two fixed directions: all of it counts, and is small
    for n, v in w.items():
        r, s = (torch.cos(torch.arange(m) * 0.7 + 0.3) for m in (v.shape[0], v.shape[-1]))
        if v.dim() == 1:
            out["grad." + n] = v.grad
        else:
            out["grad_rows." + n] = v.grad @ s
            out["grad_cols." + n] = r @ v.grad
    save_file({n: v.contiguous() for n, v in out.items()}, f"{folder}/dms_{gate}.safetensors",
              metadata=dict(gate=gate, window=str(WINDOW), tau=str(TAU), alpha_scale=str(SCALE),
                            alpha_offset=str(OFFSET), target=str(TARGET)))
    print(folder, gate, f"kl {kl:.4f} compress {compress:.4f} evicted {torch.stack(dh).mean():.3f}")


def make_gpt2(folder):
    tok = tokenizer(None, ["<|endoftext|>"])
    c = GPT2Config(n_embd=32, n_head=4, n_layer=LAYERS, n_positions=64, vocab_size=VOCAB,
                   bos_token_id=0, eos_token_id=0, attn_implementation="eager")
    model = GPT2LMHeadModel(c).float().eval()
    randomise(model, 3)
    write_model(folder, model, {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 32, "n_head": 4,
        "n_layer": LAYERS, "n_positions": 64, "n_inner": None, "vocab_size": VOCAB,
        "layer_norm_epsilon": 1e-05, "activation_function": "gelu_new", "bos_token_id": 0,
        "eos_token_id": 0, "torch_dtype": "float16"}, tok)
    ids, logits = write_dense(folder, model, tok)
    base = {n: v.detach().clone() for n, v in model.state_dict().items() if n != "lm_head.weight"}
    with torch.no_grad():
        ours = gpt2_forward(c, base, ids)[0] @ base["transformer.wte.weight"].T
    print("gpt2 against transformers:", float((ours - logits).abs().max()))
    assert (ours - logits).abs().max() < 1e-5
    for gate in ("neuron", "adapter"):
        gate_case(folder, c, base, ids, gate)


def make_distil(folder, config, model_class, pattern):
    tok = tokenizer(pattern, DEEPSEEK)
    c = config(vocab_size=VOCAB, hidden_size=16, intermediate_size=40, num_hidden_layers=LAYERS,
               num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
               rms_norm_eps=1e-6, tie_word_embeddings=False, attn_implementation="eager",
               rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    model = model_class(c).float().eval()
    randomise(model, 5)
    keys = {"architectures": [model_class.__name__], "model_type": c.model_type, "hidden_size": 16,
            "intermediate_size": 40, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": VOCAB, "rms_norm_eps": 1e-06,
            "max_position_embeddings": 256, "rope_theta": 10000.0, "hidden_act": "silu",
            "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 1,
            "torch_dtype": "float16"}
    if c.model_type == "llama":
        keys["attention_bias"] = False
    write_model(folder, model, keys, tok)
    write_dense(folder, model, tok)


out = sys.argv[1]
make_gpt2(out + "/gpt2")
make_distil(out + "/deepseek-qwen2", Qwen2Config, Qwen2ForCausalLM, QWEN2)
make_distil(out + "/deepseek-llama", LlamaConfig, LlamaForCausalLM, LLAMA3)
