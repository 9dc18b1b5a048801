#include "tasks/code.h"

#include <string.h>

#include "tasks/long_decimal.h"

/* The modules that LiveCodeBench's programs find imported, in its order: all their names, then
 * those of the modules themselves. Lines of the driver before the code. */
#define PRELUDE                                                                                    \
    "import sys\n"                                                                                 \
    "names = 'string re datetime collections heapq bisect copy math random statistics itertools '" \
    "'functools operator io sys json'.split()\n"                                                   \
    "before = ''.join(f'from {m} import *\\n' for m in names + ['builtins', 'typing'])\n"          \
    "before += ''.join(f'import {m}\\n' for m in names)\n"                                         \
    "if hasattr(sys, 'set_int_max_str_digits'):\n"                                                 \
    "    sys.set_int_max_str_digits(50000)\n"                                                      \
    "with open('code.py', encoding='utf-8') as f:\n"                                               \
    "    source = f.read()\n"                                                                      \
    "program = compile(before + 'sys.setrecursionlimit(50000)\\n' + source, 'code.py', 'exec')\n"

/* A program that ends itself is judged by its output, as the original does. */
static const char run_program[] = PRELUDE "try:\n"
                                          "    exec(program, {'__name__': '__main__'})\n"
                                          "except SystemExit:\n"
                                          "    pass\n";

/* Prints to where the answer is not. A tuple within the answer is not what JSON can be equal to,
 * and no more are keys that are no text. */
static const char run_function[] =
    "import json, os\n" PRELUDE "answer = os.dup(1)\n"
    "os.dup2(2, 1)\n"
    "values = [json.loads(line) for line in sys.stdin.read().split('\\n')]\n"
    "space = {'__name__': 'code'}\n"
    "exec(program, space)\n"
    "owner = space['Solution']() if 'class Solution' in source else None\n"
    "name = sys.argv[1]\n"
    "function = getattr(owner, name) if owner is not None else space[name]\n"
    "result = function(*values)\n"
    "if isinstance(result, tuple):\n"
    "    result = list(result)\n"
    "def plain(x):\n"
    "    if isinstance(x, list):\n"
    "        return all(map(plain, x))\n"
    "    if isinstance(x, dict):\n"
    "        return all(isinstance(k, str) for k in x) and all(map(plain, x.values()))\n"
    "    return x is None or isinstance(x, (str, int, float, bool))\n"
    "text = json.dumps(result) if plain(result) else 'other'\n"
    "data = text.encode()\n"
    "while data:\n"
    "    data = data[os.write(answer, data):]\n";

/* Knows nothing of the code: what it returned, and what it should have. */
static const char compare_values[] =
    "import json, sys\n"
    "if hasattr(sys, 'set_int_max_str_digits'):\n"
    "    sys.set_int_max_str_digits(50000)\n"
    "with open('result', encoding='utf-8') as f:\n"
    "    text = f.read()\n"
    "print('same' if text != 'other' and json.loads(text) == json.loads(sys.stdin.read()) else "
    "'different')\n";

static dms_sandbox_limits limits_of(const dms_item *item)
{
    return (dms_sandbox_limits){
        .seconds = item->timeout + 1, .memory = (int64_t)4 << 30, .output = 16 << 20};
}

/* The next line without white space at its ends. */
static dms_span next_line(dms_span *rest)
{
    const char *end = rest->n ? memchr(rest->bytes, '\n', rest->n) : NULL;
    const dms_span line = {rest->bytes, end ? (size_t)(end - rest->bytes) : rest->n};
    const size_t step = line.n + (end != NULL);
    *rest = (dms_span){rest->bytes + step, rest->n - step};
    return dms_span_strip(line);
}

/* The next word of a line; n = 0 where there is none. */
static dms_span next_word(dms_span *line)
{
    static const char spaces[] = " \t\n\v\f\r\x1C\x1D\x1E\x1F";
    size_t start = 0;
    while (start < line->n && memchr(spaces, line->bytes[start], sizeof(spaces) - 1))
        start++;
    size_t end = start;
    while (end < line->n && !memchr(spaces, line->bytes[end], sizeof(spaces) - 1))
        end++;
    const dms_span word = {line->bytes + start, end - start};
    *line = (dms_span){line->bytes + end, line->n - end};
    return word;
}

/* As lists of decimal numbers: as many, and each equal. */
static bool same_numbers(dms_span a, dms_span b)
{
    for (;;) {
        bool equal;
        const dms_span x = next_word(&a), y = next_word(&b);
        if (x.n == 0 || y.n == 0)
            return x.n == y.n;
        if (!dms_decimal_equal(&equal, x, y) || !equal)
            return false;
    }
}

dms_status dms_code_same_output(bool *same, dms_span output, dms_span expected)
{
    dms_status status = DMS_OK;
    dms_text store_a = {0}, store_b = {0};
    dms_span a, b;
    DMS_TRY_OR(end, dms_span_valid(&a, &store_a, output));
    DMS_TRY_OR(end, dms_span_valid(&b, &store_b, expected));
    a = dms_span_strip(a);
    b = dms_span_strip(b);
    *same = true;
    while (*same && (a.n > 0 || b.n > 0)) {
        *same = a.n > 0 && b.n > 0;
        const dms_span x = next_line(&a), y = next_line(&b);
        if (*same && !dms_span_equal(x, y))
            *same = same_numbers(x, y);
    }
end:
    dms_text_free(&store_a);
    dms_text_free(&store_b);
    return status;
}

static dms_status compare_result(bool *same, dms_sandbox *s, const dms_run *run,
                                 const dms_code_test *test)
{
    const char *python;
    DMS_TRY(dms_sandbox_python(s, &python));
    const char *const argv[] = {python, "-I", "-B", "-X", "utf8", "-c", compare_values, NULL};
    const dms_span result = {run->output.bytes, run->output.n};
    dms_run comparison;
    /* Equal text is an equal value, but for NaN. */
    *same = dms_span_equal(result, dms_span_strip(dms_span_of(test->output))) &&
            dms_span_find(result, "NaN") == SIZE_MAX;
    if (*same)
        return DMS_OK;
    DMS_TRY(dms_sandbox_put(s, "result", result));
    DMS_TRY(dms_sandbox_run(
        s, &comparison, argv, dms_span_of(test->output),
        (dms_sandbox_limits){.seconds = 10, .memory = (int64_t)4 << 30, .output = 1 << 16}));
    *same = dms_span_equal((dms_span){comparison.output.bytes, comparison.output.n},
                           dms_span_of("same\n"));
    dms_run_free(&comparison);
    return DMS_OK;
}

/* The last line of standard error. */
static void note(dms_code_result *out, const dms_run *run)
{
    dms_span s = dms_span_strip_end((dms_span){run->errors.bytes, run->errors.n});
    const char *line = s.n ? memrchr(s.bytes, '\n', s.n) : NULL;
    if (line)
        s = (dms_span){line + 1, s.n - (size_t)(line + 1 - s.bytes)};
    snprintf(out->note, sizeof(out->note), "%.*s", (int)(s.n < 255 ? s.n : 255),
             s.n ? s.bytes : "");
}

static dms_status judge_test(dms_code_result *out, dms_sandbox *s, const dms_item *item,
                             const dms_code_test *test)
{
    const char *driver = item->function ? run_function : run_program, *python;
    DMS_TRY(dms_sandbox_python(s, &python));
    const char *const argv[] = {python, "-I",   "-B",           "-X", "utf8",
                                "-c",   driver, item->function, NULL};
    dms_status status = DMS_OK;
    dms_run run;
    bool same = false;
    DMS_TRY(dms_sandbox_run(s, &run, argv, dms_span_of(test->input), limits_of(item)));
    note(out, &run);
    if (run.end == DMS_RUN_TOO_LONG)
        out->verdict = DMS_CODE_TOO_LONG;
    else if (run.end == DMS_RUN_TOO_MUCH)
        out->verdict = DMS_CODE_TOO_MUCH;
    else if (run.end == DMS_RUN_KILLED || run.code != 0)
        out->verdict = DMS_CODE_FAILED;
    else {
        status = item->function
                     ? compare_result(&same, s, &run, test)
                     : dms_code_same_output(&same, (dms_span){run.output.bytes, run.output.n},
                                            dms_span_of(test->output));
        out->verdict = same ? DMS_CODE_PASSED : DMS_CODE_WRONG;
    }
    dms_run_free(&run);
    return status;
}

dms_status dms_code_judge(dms_code_result *out, dms_sandbox *s, const dms_item *item, dms_span code)
{
    *out = (dms_code_result){.verdict = DMS_CODE_FAILED};
    if (item->kind != DMS_ITEM_CODE)
        return dms_fail(DMS_ERR_ARG, "item %s has no tests to run", item->id);
    if (code.n == 0) {
        snprintf(out->note, sizeof(out->note), "the answer has no code");
        return DMS_OK;
    }
    DMS_TRY(dms_sandbox_put(s, "code.py", code));
    for (; out->test < item->n_tests; out->test++) {
        DMS_TRY(judge_test(out, s, item, &item->tests[out->test]));
        if (out->verdict != DMS_CODE_PASSED)
            break;
    }
    return DMS_OK;
}
