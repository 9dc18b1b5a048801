"""Makes the files beside it: small tokenizers of each kind, and what Hugging Face tokenizers does.

KIND.json is a tokenizer.json, KIND.jsonl has a line for each text: text, ids (no special tokens
added), decoded (special tokens kept). pieces.jsonl: pre_tokenizer, text, pieces.
Needs the Python package tokenizers (0.23): python3 make.py
"""
import json
import os
import random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers as pre
from tokenizers import trainers

HERE = os.path.dirname(os.path.abspath(__file__))
SAMPLE = """It was a bright cold day in April, and the clocks weren't striking thirteen; they'd stopped.
The letter said: "We've 1234 reasons (and 56.78% doubts) -- don't you?" I'll answer, she'd said.
int main(void)\n{\n    for (int i = 0; i < 10; i++)\n\t\tprintf("%d\\n", i);\n    return 0;\n}
Größe, naïve café, señor; Ελληνικά, русский текст, 日本語のテキスト, 中文分词, 한국어, العربية हिन्दी.
WE'VE SHOUTED: IT'S THEIR'S. emoji 😀😃 👩‍👩‍👧 x² ½ Ⅷ ١٢٣ ﬁne ＡＢＣ.
"""
WORDS = ["the ", " a", "it's", "IT'S ", "'ll", "'ſ", "don't", "12345", " 7", "x1", "½", "Ⅷ", "١٢", "\n", "\n\n",
         "\r\n", "  ", "   ", "\t", " \n ", "\u00a0", "\u3000", "\u1680", "\u200b", "!", "...", " --", "({[", "_", "é",
         "e\u0301", "Å", "ﬁ", "ＡＢ", "日本語", "テキスト", "中文", "ひらがな", "한국", "русский ", "हिन्दी", "العربية", "😀",
         "👩‍👧", "\u0000", "\u007f", "\u180e", "ß", "İ", "ﷺ", "\ufffd", "▁", " ▁ ", "<0x0A>", "clocks ", "printf(", "i++", ";"]
QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
         r"|\s*[\r\n]+|\s+(?!\S)|\s+")
LLAMA3 = QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)
DEEPSEEK = [r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
            r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
            r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""]


def train(pre_tokenizer, size, alphabet=None, special=()):
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet or [], special_tokens=list(special),
                                  show_progress=False)
    t.train_from_iterator([SAMPLE] * 2, trainer)
    return json.loads(t.to_str())["model"]


def byte_bpe(splits, size=420, **options):
    steps = [pre.Split(Regex(s), "isolated") for s in splits]
    steps.append(pre.ByteLevel(add_prefix_space=False, use_regex=False))
    sequence = pre.Sequence(steps)
    model = train(sequence, size, pre.ByteLevel.alphabet())
    merges = [tuple(m) for m in model["merges"]]
    t = Tokenizer(models.BPE(vocab=model["vocab"], merges=merges, **options))
    t.pre_tokenizer = sequence
    t.decoder = decoders.ByteLevel()
    return t


def add(t, contents, **flags):
    t.add_tokens([AddedToken(c, **flags) for c in contents])


def specials(t, contents):
    t.add_special_tokens([AddedToken(c, normalized=False, special=True) for c in contents])


def qwen3():
    t = byte_bpe([QWEN2])
    t.normalizer = normalizers.NFC()
    specials(t, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    add(t, ["<think>", "</think>", "<tool_call>"], normalized=False)
    return t


def deepseek_r1_qwen():
    t = byte_bpe([QWEN2])
    specials(t, ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"])
    add(t, ["<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"], normalized=False)
    return t


def deepseek_r1_llama():
    t = byte_bpe([LLAMA3], ignore_merges=True)
    specials(t, ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"])
    add(t, ["<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"], normalized=False)
    return t


def deepseek_v3():
    t = byte_bpe(DEEPSEEK)
    specials(t, ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"])
    return t


def llama2():
    """A tokenizer.model of SentencePiece as transformers converts it (legacy=True)."""
    model = train(pre.Metaspace(), 300)
    size = len(model["vocab"])
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocab.update({"<0x%02X>" % b: 3 + b for b in range(256)})
    for text in sorted(model["vocab"], key=model["vocab"].get):
        if text not in "日本語のテキスト中文分词":  # some characters are left to the bytes
            vocab[text] = len(vocab)
    merges = [tuple(m) for m in model["merges"] if m[0] in vocab and m[1] in vocab and m[0] + m[1] in vocab]
    assert len(vocab) > size
    t = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                   decoders.Strip(" ", 1, 0)])
    specials(t, ["<unk>", "<s>", "</s>"])
    return t


def characters():
    """Characters without a fallback: what the vocabulary lacks is unknown."""
    splits = pre.Split(Regex(r"\s+|\w+|[^\w\s]+"), "isolated")
    model = train(splits, 200, special=["[UNK]"])
    merges = [tuple(m) for m in model["merges"]]
    vocab = {text: i for text, i in model["vocab"].items() if text not in "日語テスĀ😀½"}
    vocab = {text: n for n, text in enumerate(sorted(vocab, key=vocab.get))}
    merges = [m for m in merges if m[0] in vocab and m[1] in vocab and m[0] + m[1] in vocab]
    t = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="[UNK]"))
    t.pre_tokenizer = splits
    t.normalizer = normalizers.NFKC()
    t.decoder = decoders.Sequence([decoders.Fuse()])
    return t


def flags():
    t = byte_bpe([LLAMA3])
    t.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.Replace(Regex(r"\d+"), "#")])
    t.add_special_tokens([AddedToken("<mask>", lstrip=True, normalized=False), AddedToken("<r>", rstrip=True),
                          AddedToken("<both>", lstrip=True, rstrip=True, normalized=False)])
    # In normal form: what a normalized token's own text becomes differs between versions of tokenizers.
    add(t, ["clocks", "e\u0301"], normalized=True)
    add(t, ["the"], single_word=True, normalized=False)
    add(t, ["i", "fi"], single_word=True, normalized=True)
    return t


def texts(t, rng):
    parts = WORDS + [v.content for v in t.get_added_tokens_decoder().values()] * 2
    yield from ["", " ", "  a", SAMPLE, "Hello, world!", "a\n", " the  clocks", "日本語", "\u0301", "<s>", "x" * 50]
    for _ in range(110):
        yield "".join(rng.choice(parts) for _ in range(rng.randint(1, 14)))


def write(kind, t):
    rng = random.Random(kind)
    t.save(os.path.join(HERE, kind + ".json"), pretty=False)
    with open(os.path.join(HERE, kind + ".jsonl"), "w") as f:
        for text in texts(t, rng):
            ids = t.encode(text, add_special_tokens=False).ids
            case = {"text": text, "ids": ids, "decoded": t.decode(ids, skip_special_tokens=False)}
            f.write(json.dumps(case, ensure_ascii=False, separators=(",", ":")) + "\n")


def write_pieces():
    rng = random.Random(1)
    behaviors = ["isolated", "removed", "merged_with_previous", "merged_with_next", "contiguous"]
    patterns = [Regex(r"\s+"), Regex("[A-Za-z]+"), Regex(r"\d"), " ", "'", ".", Regex(r"\w+"), Regex(r"\b"),
                Regex(r"^."), Regex(r".$"), Regex(r"\h+"), Regex(r"(?m:e.)"), Regex(r"[^\S\n]+"), Regex(r"\p{Han}+"),
                Regex(r"x*"), Regex(r"(?<=[a-z])(?=[A-Z])"), Regex(r"\u00e9|\W\B"), Regex(QWEN2), Regex(LLAMA3),
                Regex(r"[\p{Lu}\p{Lt}]?[\p{Ll}\p{M}]+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s+(?!\S)|\s+")]
    steps = [pre.Split(p, b, invert=v) for p in patterns for b in behaviors for v in (False, True)]
    steps += [pre.Sequence([pre.Split(Regex(r"\s"), "merged_with_next"), pre.Digits(individual_digits=i)])
              for i in (False, True)]
    steps += [pre.Sequence([pre.Split(Regex(d), "isolated") for d in DEEPSEEK])]
    with open(os.path.join(HERE, "pieces.jsonl"), "w") as f:
        for step in steps:
            t = Tokenizer(models.BPE())
            t.pre_tokenizer = step
            for _ in range(3):
                text = "".join(rng.choice(WORDS) for _ in range(rng.randint(1, 12)))
                case = {"pre_tokenizer": json.loads(t.to_str())["pre_tokenizer"], "text": text,
                        "pieces": [piece for piece, _ in step.pre_tokenize_str(text)]}
                f.write(json.dumps(case, ensure_ascii=False, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    for make in (qwen3, deepseek_r1_qwen, deepseek_r1_llama, deepseek_v3, llama2, characters, flags):
        write(make.__name__, make())
    write_pieces()
