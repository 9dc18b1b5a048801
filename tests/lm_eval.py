"""dms-eval weighs and answers as lm-evaluation-harness does, item by item.

lm_eval.py DMS_EVAL MODEL...: each MODEL is a Hugging Face folder with a tokenizer. The same items run
through `dms-eval MODEL items FILE --log` and through HFLM (loglikelihood, generate_until) of the
harness, in f32 on the CPU. Likelihoods may differ by 1e-3: single precision, summed in another
order. Contexts fit: where they do not, the harness keeps one token more, as the last one of a
continuation is not fed. Exit 77 says that a package is missing.
"""
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_VERBOSITY="error",
                  TQDM_DISABLE="1", TOKENIZERS_PARALLELISM="false")
sys.path.pop(0)  # this file's folder: its name is that of the package
try:
    import torch
    import transformers
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
except ImportError as e:
    print(f"[SKIP] lm_eval: {e}")
    sys.exit(77)

TOLERANCE = 1e-3
PROGRAM, MODELS = sys.argv[1], sys.argv[2:]
WORDS = ("the a river stone light under walks seven 7 12 green quickly of and to is was she he it "
         "Why? no, yes. naïve Über 東京 λx (a+b) 3.14 \\boxed{4} don't CAPS").split()
failed = 0


def check(what, ok, detail=""):
    global failed
    if not ok:
        failed += 1
        print(f"FAIL {what} {detail}")


def text(draw, low, high):
    return " ".join(draw.choice(WORDS) for _ in range(draw.randint(low, high)))


def choice_items(draw, n):
    """Contexts with and without white space at their ends, choices of one token and of many."""
    items = []
    for i in range(n):
        context = text(draw, 1, 25) + draw.choice(["", "", " ", "\n", "  ", " \n\t", "\nAnswer:"])
        items.append({"id": f"c{i}", "context": context,
                      "choices": [text(draw, 1, 1 + i % 9) for _ in range(draw.randint(2, 5))],
                      "delimiter": draw.choice([" ", " ", "", "\n"]), "norm": "char"})
        items[-1]["label"] = draw.randrange(len(items[-1]["choices"]))
    items[0]["context"] = ""
    items[1].update(context=items[1]["context"].rstrip(), choices=[" A", " B", " C", " D"],
                    delimiter="", label=2)
    return items


def answer_items(draw, n, stop):
    return [{"id": f"g{i}", "prompt": text(draw, 1, 30), **({"stop": stop} if i % 2 else {}),
             "max_new_tokens": 4 + i % 13, "answer": "?", "extractor": "whole", "equality": "text"}
            for i in range(n)]


def write(folder, items):
    path = os.path.join(folder, "items.jsonl")
    with open(path, "w", encoding="utf-8") as f:
        f.writelines(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
    return path


def run(model, folder, items):
    """Result and log of dms-eval."""
    log = os.path.join(folder, "log.jsonl")
    done = subprocess.run([PROGRAM, model, "items", write(folder, items), "--policies", "dense",
                           "--dtype", "f32", "--device", "cpu", "--json", "--log", log],
                          capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"dms-eval failed: {done.stderr}")
    with open(log, encoding="utf-8") as f:
        return json.loads(done.stdout), [json.loads(line) for line in f]


def instances(kind, arguments):
    return [Instance(request_type=kind, doc={}, arguments=a, idx=i)
            for i, a in enumerate(arguments)]


def best(values):
    return max(range(len(values)), key=lambda i: values[i])  # the first, as numpy.argmax


def check_choices(model, lm, folder):
    items = choice_items(random.Random(4), 40)
    result, log = run(model, folder, items)
    pairs = [(item["context"], item["delimiter"] + choice)
             for item in items for choice in item["choices"]]
    theirs = [value for value, _ in lm.loglikelihood(instances("loglikelihood", pairs),
                                                     disable_tqdm=True)]
    ours = [line["verdict"] for line in log]
    check("likelihoods", len(ours) == len(theirs), f"{len(ours)}, there {len(theirs)}")
    worst = max(abs(a - b) for a, b in zip(ours, theirs))
    check("likelihoods", worst <= TOLERANCE, f"are off by {worst:.2g}")
    acc, norm, at = [], [], 0
    for item in items:
        values = theirs[at:at + len(item["choices"])]
        mine = ours[at:at + len(item["choices"])]
        at += len(values)
        lengths = [len(choice) for choice in item["choices"]]
        acc.append(best(values) == item["label"])
        norm.append(best([v / n for v, n in zip(values, lengths)]) == item["label"])
        check(f"choice {item['id']}", best(mine) == best(values), f"{mine} {values}")
    for name, want in (("acc", acc), ("acc_norm", norm)):
        mean = sum(want) / len(want)
        error = math.sqrt(sum((x - mean) ** 2 for x in want) / (len(want) - 1) / len(want))
        got = result["metrics"][name]
        check(name, abs(got["value"] - mean) < 1e-8 and abs(got["error"] - error) < 1e-8,
              f"is {got}, there {mean} +- {error}")
    print(f"{len(theirs)} likelihoods, off by {worst:.2g} at most; acc {sum(acc)}/{len(acc)}, "
          f"acc_norm {sum(norm)}/{len(norm)}")


def check_answers(model, lm, folder):
    stop = [" the", "e"]
    items = answer_items(random.Random(5), 24, stop)
    requests = [(item["prompt"], {"until": list(item.get("stop", [])), "do_sample": False,
                                  "max_gen_toks": item["max_new_tokens"]}) for item in items]
    theirs = lm.generate_until(instances("generate_until", requests), disable_tqdm=True)
    for i, item in enumerate(items):  # what is said there, and for every third what is not
        item["answer"] = theirs[i].split("\0")[0].strip() + ("" if i % 3 else "?")
    result, log = run(model, folder, items)
    right = [bool(line["verdict"]) for line in log]
    want = [output.strip() == item["answer"] for output, item in zip(theirs, items)]
    check("answers", sum(want) >= 8, f"{sum(want)} right ones are too few")
    for line, output, ours, there in zip(log, theirs, right, want):
        check(f"answer {line['id']}", ours == there, f"{line['output']!r}, there {output!r}")
    check("exact", abs(result["metrics"]["exact"]["value"] - sum(want) / len(want)) < 1e-8)
    print(f"{len(items)} answers, {sum(a == b for a, b in zip(right, want))} verdicts as there")


def ended(model, folder):
    """A copy whose end-of-text is the only token that ends a text: the harness ends there anyway."""
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        shutil.copyfile(os.path.join(model, name), os.path.join(folder, name))
    path = os.path.join(folder, "config.json")
    with open(path, encoding="utf-8") as f:
        keys = json.load(f)
    with open(path, "w", encoding="utf-8") as f:
        json.dump(keys | {"eos_token_id": 0}, f)
    return folder


copies = tempfile.TemporaryDirectory()
for name_of_model in MODELS:
    print(name_of_model)
    folder_of_model = ended(name_of_model, copies.name)
    config = transformers.AutoConfig.from_pretrained(folder_of_model)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=os.path.join(folder_of_model, "tokenizer.json"))
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(config.eos_token_id)
    tokenizer.pad_token = tokenizer.eos_token  # an answer ends at a padding token there
    network = transformers.AutoModelForCausalLM.from_pretrained(folder_of_model,
                                                                dtype=torch.float32).eval()
    harness = HFLM(pretrained=network, tokenizer=tokenizer, batch_size=1, add_bos_token=False,
                   prefix_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
                   max_length=config.max_position_embeddings)
    with tempfile.TemporaryDirectory() as scratch:
        check_choices(folder_of_model, harness, scratch)
        check_answers(folder_of_model, harness, scratch)
sys.exit(1 if failed else 0)
