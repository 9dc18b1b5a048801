"""Makes cases.jsonl: what models' chat templates render, with jinja2 set up as transformers does.

    python3 make.py NAME=TEMPLATE.jinja ...

TEMPLATE is the chat_template of the model's tokenizer_config.json, which is not kept here. Each line has
name, messages, answer (add_generation_prompt), thinking (enable_thinking), text. Dates are 26 Jul 2024.
"""
import json
import os
import sys

from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

THOUGHT = "<think>\n2 and 2\n</think>\n\nIt is 4."
CONVERSATIONS = [
    [("user", "Hello, world!")],
    [("system", "Be brief."), ("user", " 2 + 2?\n")],
    [("system", ""), ("user", "Hi")],
    [("user", "Hi"), ("assistant", "Good day."), ("user", "And now?")],
    [("user", "2 + 2?"), ("assistant", THOUGHT)],
    [("user", "2 + 2?"), ("assistant", THOUGHT), ("user", "Sure?"), ("assistant", "\n<think>\n\n</think>\nYes.\n")],
    [("system", " S \n"), ("user", "a"), ("assistant", "b"), ("system", "mind"), ("user", "c"), ("assistant", " d ")],
    [("user", "a"), ("assistant", "b", "because\n"), ("assistant", "c"), ("assistant", "d", "")],
    [("user", "a"), ("assistant", "x</think>y</think>\n\nz"), ("user", "<tool_response>4</tool_response>"),
     ("assistant", "<think>u<think>\nv</think>w")],
    [("assistant", "first"), ("user", "é 日本語 😀\t")],
]
BOS = {"deepseek": "<｜begin▁of▁sentence｜>", "llama": "<|begin_of_text|>"}


def render(name, template, messages, answer, thinking):
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    bos = next((b for family, b in BOS.items() if name.startswith(family)), "")
    options = {} if thinking else {"enable_thinking": False}
    if "strftime_now" in template:
        options["date_string"] = "26 Jul 2024"
    return environment.from_string(template).render(
        messages=messages, bos_token=bos, add_generation_prompt=answer, **options)


def main():
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "cases.jsonl"), "w") as f:
        for argument in sys.argv[1:]:
            name, path = argument.split("=")
            template = open(path).read()
            for n, conversation in enumerate(CONVERSATIONS):
                messages = [dict(zip(("role", "content", "reasoning_content"), m)) for m in conversation]
                for answer, thinking in ((True, True), (False, True), (True, False)):
                    if not thinking and (n > 0 or name != "qwen3"):
                        continue
                    case = {"name": name, "messages": messages, "answer": answer, "thinking": thinking,
                            "text": render(name, template, messages, answer, thinking)}
                    f.write(json.dumps(case, ensure_ascii=False, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
