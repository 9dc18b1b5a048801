"""The tables of tests/answers hold what other people's code says of the same outputs.

Compares with lm-evaluation-harness where it is installed (GSM8K's filters and metric, the string
rule of MATH, the choice rules of numpy's argmax), and with the rules' own expressions. Exit 77 says
that the package is missing.
"""
import json
import os
import re
import sys

try:
    import numpy as np
    from lm_eval.api.metrics import exact_match_hf_evaluate
    from lm_eval.filters.extraction import RegexFilter
    from lm_eval.tasks.hendrycks_math.utils import is_equiv
except ImportError as e:
    print(f"[SKIP] verdicts: {e}")
    sys.exit(77)

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "answers")
bad = 0
compared = 0


def rows(task):
    with open(os.path.join(FOLDER, task + ".jsonl"), encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def expect(task, row, what, got):
    global bad, compared
    compared += 1
    if got != row[what]:
        bad += 1
        print(f"{task}: {row}: {what} is {got} there")


STRICT = RegexFilter(r"#### (\-?[0-9\.\,]+)", 0)
FLEXIBLE = RegexFilter(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", -1)
for r in rows("gsm8k"):
    for what, rule in (("strict", STRICT), ("flexible", FLEXIBLE)):
        found = rule.apply([[r["output"]]], [{}])[0][0]
        score = exact_match_hf_evaluate(
            [found], [r["answer"]], [",", r"\$", r"(?s).*#### ", r"\.$"], ignore_case=True)
        expect("gsm8k", r, what, bool(score["exact_match"] == 1))


def boxed(text):
    """The content of the last box: what the MATH dataset's authors score."""
    at = text.rfind("\\boxed")
    if at < 0 or not text.startswith("\\boxed{", at):
        return None
    depth = 0
    for i in range(at, len(text)):
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0 and text[i] == "}":
            return text[at + 7:i]
    return None


for r in rows("math"):
    if "harness" in r["why"]:  # it lets an exception pass that the dataset's code catches
        continue
    answer = boxed(r["output"])
    expect("math", r, "string", answer is not None and is_equiv(answer, r["answer"]))

for r in rows("gpqa"):
    match = re.search(r"(?i)Answer[ \t]*:[ \t]*\$?([A-D])\$?", r["output"])
    expect("gpqa", r, "right", bool(match and match.group(1) == r["answer"]))

for r in rows("ruler"):
    text = re.sub(r"[\x00-\x1f]", "\n", r["output"].strip()).strip().lower()
    hits = [ref.lower() in text for ref in r["outputs"]]
    expect("ruler", r, "all", sum(hits) / len(hits))
    expect("ruler", r, "part", max(hits))

for r in rows("choice"):
    lls = np.array(r["ll"], dtype=float)
    lengths = np.array([float(len(c)) for c in r["choices"]])
    expect("choice", r, "acc", bool(np.argmax(lls) == r["label"]))
    expect("choice", r, "acc_norm", bool(np.argmax(lls / lengths) == r["label"]))

for r in rows("code"):
    lines = r["output"].split("\n")
    fences = [i for i, line in enumerate(lines) if "```" in line]
    code = "\n".join(lines[fences[-2] + 1:fences[-1]]) if len(fences) > 1 else ""
    expect("code", r, "code", code)

print(f"{compared} verdicts compared, {bad} differ")
sys.exit(1 if bad else 0)
