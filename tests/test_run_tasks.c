/* Tasks of a recipe's `eval` in runs of dms-train: what they leave in the log, and that they leave
 * the training alone. */
#include <jansson.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "checkpoints/checkpoint.h"
#include "data/shard.h"
#include "tests/fixtures.h"
#include "tests/rig.h"

static char folder[] = "/tmp/dms-tasks-XXXXXX";

static const char three_tasks[] =
    "eval:\n"
    "  - {task: kld, every: 3}\n"
    "  - {task: ppl, text: [heldout.tok], sequences: 2, batch: 2, prompt: 8, name: second}\n"
    "  - task: items\n    file: items.jsonl\n    every: 4\n";

/* Runs `format` in the folder, $BIN set; returns the exit code. Output goes to the file "log". */
static int run(const char *format, ...)
{
    char command[2048], line[4096];
    va_list list;
    va_start(list, format);
    vsnprintf(command, sizeof(command), format, list);
    va_end(list);
    snprintf(line, sizeof(line), "cd %s && BIN=%s && { %s ; } >log 2>&1", folder, DMS_BINARY_DIR,
             command);
    const int state = system(line);
    cr_assert(WIFEXITED(state), "%s was killed", command);
    return WEXITSTATUS(state);
}

static bool says(const char *text)
{
    char command[1024];
    snprintf(command, sizeof(command), "grep -qF -- '%s' %s/log", text, folder);
    return system(command) == 0;
}

static void write_shard(const char *name, uint32_t seed, int n)
{
    char path[1024];
    int32_t ids[4096];
    dms_shard_writer *w = NULL;
    for (int i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        ids[i] = (int32_t)(seed >> 8) % 317 + 3;
    }
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    must(dms_shard_writer_open(&w, path, 320, 0));
    must(dms_shard_writer_append(w, ids, n));
    must(dms_shard_writer_commit(w));
    dms_shard_writer_close(w);
}

static FILE *create(const char *name)
{
    char path[1024];
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    FILE *out = fopen(path, "w");
    cr_assert(out);
    return out;
}

/* name.yaml, a run of 8 steps into the run folder `name`. */
static void write_config(const char *name, const char *tasks)
{
    char model[1024], file[64];
    snprintf(file, sizeof(file), "%s.yaml", name);
    FILE *out = create(file);
    fprintf(out,
            "model: {path: %s}\ndata: {train: data.tok, heldout: heldout.tok, context: 32}\n"
            "dms: {gate: neuron, window: 4, alpha_scale: 4, alpha_offset: -1}\n"
            "schedule: {steps: 8, fade_steps: 2, cr: 4, ramp_steps: 4}\n"
            "optim: {train: all, lr: 1.0e-3}\n"
            "run: {folder: %s, batch: 2, save_every: 1, compute: f32, eval_sequences: 4}\n"
            "device: {kind: %s, threads: 1}\n%s",
            fixture(model, "tiny/llama"), name, rig_device_name(), tasks);
    fclose(out);
}

static void set_up(void)
{
    cr_assert(mkdtemp(folder));
    write_shard("data.tok", 7, 4096);
    write_shard("heldout.tok", 8, 512);
    FILE *items = create("items.jsonl");
    for (int i = 0; i < 3; i++)
        fprintf(items,
                "{\"kind\": \"multiple-choice\", \"context\": \"one two\", \"choices\": "
                "[\"three\", \"four\"], \"label\": %d}\n",
                i % 2);
    fclose(items);
}

static void tear_down(void)
{
    char command[1200];
    snprintf(command, sizeof(command), "rm -rf '%s'", folder);
    cr_assert_eq(system(command), 0);
}

TestSuite(run_tasks, .init = set_up, .fini = tear_down);

/* Lines of a run's metrics.jsonl; the caller ends it with json_decref. */
static json_t *read_log(const char *name)
{
    char path[1024], line[4096];
    json_t *all = json_array();
    snprintf(path, sizeof(path), "%s/%s/metrics.jsonl", folder, name);
    FILE *in = fopen(path, "r");
    cr_assert(in);
    while (fgets(line, sizeof(line), in)) {
        json_t *object = json_loads(line, 0, NULL);
        cr_assert(object, "no JSON: %s", line);
        json_array_append_new(all, object);
    }
    fclose(in);
    return all;
}

static double number(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    cr_assert(json_is_number(value), "no number %s", key);
    return json_number_value(value);
}

/* "task step" of each task line in order, with commas. */
static void list_tasks(char out[512], const json_t *log)
{
    out[0] = 0;
    for (size_t i = 0; i < json_array_size(log); i++) {
        const json_t *line = json_array_get(log, i);
        const char *task = json_string_value(json_object_get(line, "task"));
        const size_t used = strlen(out);
        if (task)
            snprintf(out + used, 512 - used, "%s%s %d", used ? ", " : "", task,
                     (int)number(line, "step"));
    }
}

static void expect_tasks(const char *name, const char *want)
{
    char got[512];
    json_t *log = read_log(name);
    list_tasks(got, log);
    cr_expect_str_eq(got, want);
    json_decref(log);
}

/* Steps and held-out results alike, but for the time they took. */
static json_t *training_of(const char *name)
{
    json_t *log = read_log(name), *kept = json_array();
    for (size_t i = 0; i < json_array_size(log); i++) {
        json_t *line = json_array_get(log, i);
        json_object_del(line, "seconds");
        if (!json_object_get(line, "task"))
            json_array_append(kept, line);
    }
    json_decref(log);
    return kept;
}

static void expect_same_end(const char *a, const char *b)
{
    char path[1024];
    dms_checkpoint *left = NULL, *right = NULL;
    snprintf(path, sizeof(path), "%s/%s/latest", folder, a);
    must(dms_checkpoint_open(&left, path));
    snprintf(path, sizeof(path), "%s/%s/latest", folder, b);
    must(dms_checkpoint_open(&right, path));
    cr_assert_eq(dms_checkpoint_count(left), dms_checkpoint_count(right));
    for (int64_t i = 0; i < dms_checkpoint_count(left); i++) {
        const dms_checkpoint_tensor *x = dms_checkpoint_info(left, i);
        const dms_checkpoint_tensor *y = dms_checkpoint_find(right, x->group, x->name);
        cr_assert(y && x->bytes == y->bytes && !memcmp(x->data, y->data, x->bytes), "%s/%s differs",
                  x->group, x->name);
    }
    dms_checkpoint_close(left);
    dms_checkpoint_close(right);
}

Test(run_tasks, leave_losses_and_weights_as_they_are_without_them)
{
    write_config("plain", "");
    write_config("with", three_tasks);
    cr_assert_eq(run("$BIN/dms-train plain.yaml"), 0);
    cr_assert_eq(run("$BIN/dms-train with.yaml"), 0);
    json_t *plain = training_of("plain"), *with = training_of("with");
    cr_assert_eq(json_array_size(plain), 9, "8 steps and the held-out text");
    cr_assert(json_equal(plain, with), "a loss differs");
    expect_same_end("plain", "with");
    json_decref(plain);
    json_decref(with);
}

/* After 3, 4 and 6 steps and the last; none while the gate is faded in. */
Test(run_tasks, run_when_they_are_due_and_say_what_they_cost)
{
    write_config("with", three_tasks);
    cr_assert_eq(run("$BIN/dms-train with.yaml"), 0);
    cr_assert(says("kld after 3 steps, 4 items: kl "));
    expect_tasks("with", "kld 2, items 3, kld 5, kld 7, second 7, items 7");
    json_t *log = read_log("with");
    for (size_t i = 0; i < json_array_size(log); i++) {
        const json_t *line = json_array_get(log, i);
        const char *task = json_string_value(json_object_get(line, "task"));
        if (!task)
            continue;
        const char *score = !strcmp(task, "kld") ? "kl" : !strcmp(task, "items") ? "acc" : "nll";
        const json_t *metric = json_object_get(json_object_get(line, "metrics"), score);
        cr_expect(number(metric, "value") >= 0 && number(metric, "error") >= 0);
        cr_expect(number(line, "read_ratio") > 0 && number(line, "read_ratio") <= 1);
        cr_expect(number(line, "peak_ratio") > 0 && number(line, "peak_ratio") <= 1);
        cr_expect_eq(number(line, "items"), !strcmp(task, "second")  ? 2
                                            : !strcmp(task, "items") ? 3
                                                                     : 4);
    }
    json_decref(log);
}

static double last_value(const char *name, const char *task, const char *score)
{
    double value = NAN;
    json_t *log = read_log(name);
    for (size_t i = 0; i < json_array_size(log); i++) {
        const json_t *line = json_array_get(log, i);
        const char *of = json_string_value(json_object_get(line, "task"));
        if (of && !strcmp(of, task))
            value = number(json_object_get(json_object_get(line, "metrics"), score), "value");
    }
    json_decref(log);
    return value;
}

/* What the task says of the weights in training is what dms-eval says of the checkpoint of them.
 * Both in f32 by the same code; the checkpoint holds f32, so to the last printed digit. */
Test(run_tasks, score_the_student_as_dms_eval_scores_its_checkpoint)
{
    char out[8192], path[1024];
    write_config("with", "eval: [{task: kld, batch: 2, prompt: 12}]\n");
    cr_assert_eq(run("$BIN/dms-train with.yaml"), 0);
    cr_assert_eq(run("$BIN/dms-eval with/latest kld heldout.tok --policies dms --context 32 "
                     "--prompt 12 --sequences 4 --batch 2 --dtype f32 --device %s --json "
                     "2>/dev/null",
                     rig_device_name()),
                 0);
    snprintf(path, sizeof(path), "%s/log", folder);
    FILE *in = fopen(path, "r");
    out[fread(out, 1, sizeof(out) - 1, in)] = 0;
    fclose(in);
    json_t *result = json_loads(out, JSON_DISABLE_EOF_CHECK, NULL);
    cr_assert(result, "%s", out);
    const json_t *kl = json_object_get(json_object_get(result, "metrics"), "kl");
    cr_assert_float_eq(last_value("with", "kld", "kl"), number(kl, "value"), 1e-8);
    json_decref(result);
}

Test(run_tasks, go_on_with_a_run_that_goes_on)
{
    write_config("whole", three_tasks);
    write_config("parts", three_tasks);
    cr_assert_eq(run("$BIN/dms-train whole.yaml"), 0);
    cr_assert_eq(run("$BIN/dms-train parts.yaml schedule.steps=5"), 0);
    expect_tasks("parts", "kld 2, items 3, kld 4, second 4, items 4");
    cr_assert_eq(run("$BIN/dms-train parts.yaml"), 0);
    expect_tasks("parts", "kld 2, items 3, kld 4, second 4, items 4, kld 5, kld 7, second 7, "
                          "items 7");
    expect_same_end("whole", "parts");
    cr_assert_eq(run("$BIN/dms-train parts/config.yaml"), 0, "the resolved config is one");
    expect_tasks("parts", "kld 2, items 3, kld 4, second 4, items 4, kld 5, kld 7, second 7, "
                          "items 7");
    /* Cut off between the last save and its tasks. */
    cr_assert_eq(run("sed -i '/\"second\"/d' parts/metrics.jsonl"), 0);
    cr_assert_eq(run("$BIN/dms-train parts.yaml"), 0);
    expect_tasks("parts", "kld 2, items 3, kld 4, items 4, kld 5, kld 7, items 7, second 7");
}

/* Nothing is trained and no folder is made where a task cannot be run. */
Test(run_tasks, that_cannot_be_run_are_refused_before_the_first_step)
{
    static const struct {
        const char *tasks, *message;
        int code;
    } cases[] = {
        {"[{task: kld, evry: 3}]", "no key \"evry\"; the nearest known key is every", 2},
        {"[{task: kld, contxt: 3}]", "no key \"contxt\"; the nearest known key is context", 2},
        {"[{task: kdl}]", "the task is \"kdl\", expected ppl, kld", 2},
        {"[{task: kld, text: absent.txt}]", "absent.txt", 1},
        {"[{task: items, file: absent.jsonl}]", "absent.jsonl", 1},
        {"[{task: items}]", "task items has 0 paths, expected one JSON Lines file", 2},
        {"[{task: kld, context: 64}]", "takes 64 tokens, the models are open for 32", 2},
        {"[{task: kld, prompt: 32}]", "expected at least one token after the prompt", 2},
        {"[{task: kld, text: short.tok}]", "the text has 20 tokens, one context takes 32", 2},
        {"[{task: niah_single_1}]", "length is 32 tokens", 2},
        {"[{task: items, file: answers.jsonl, max_new: 40}]", "wants an answer of 40 tokens", 2},
        {"[{task: items, file: code.jsonl, max_new: 4}]", "wants code", 2},
        {"[{task: items, file: empty.jsonl}]", "there are no items to run", 2},
        {"[{task: kld, batch: x}]", "batch is no whole number", 2},
        {"[{task: kld}, {task: kld}]", "eval has two tasks named kld", 2},
    };
    write_config("run", "");
    write_shard("short.tok", 9, 20);
    cr_assert_eq(run("printf '{\"prompt\": \"a\", \"answer\": \"1\", \"extractor\": \"whole\", "
                     "\"equality\": \"text\"}\\n' >answers.jsonl; "
                     ": >empty.jsonl; printf '{\"prompt\": \"a\", \"tests\": [{\"input\": \"1\", "
                     "\"output\": \"1\"}]}\\n' >code.jsonl"),
                 0);
    for (size_t i = 0; i < COUNT(cases); i++)
        for (int check = 0; check < 2; check++) {
            cr_expect_eq(
                run("$BIN/dms-train run.yaml 'eval=%s' %s", cases[i].tasks, check ? "--check" : ""),
                cases[i].code, "%s", cases[i].tasks);
            cr_expect(says(cases[i].message), "%s: %s", cases[i].tasks, cases[i].message);
            cr_expect_eq(run("test -e run"), 1);
        }
    cr_assert_eq(run("$BIN/dms-train run.yaml 'eval=[{task: kld, every: 3}]' --check"), 0);
    cr_assert(says("kld every 3 steps; not counted: their caches"));
}
