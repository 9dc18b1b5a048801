/* Pareto runs: a line a result, taken up where an earlier run stopped; configurations that are
 * refused. */
#include <math.h>

#include "eval/pareto.h"
#include "tests/files.h"
#include "tests/fixtures.h"

/* ---- runs ----------------------------------------------------------------------------------- */

enum { LINES = 4 };

typedef struct {
    scratch s;
    dms_device *dev;
    int said;
} lab;

/* A text, two items, and a configuration of two policies and two tasks. */
static lab lab_open(void)
{
    static const char items[] =
        "{\"id\": 1, \"context\": \"one two\", \"choices\": [\"three\", \"x\"], \"label\": 0}\n"
        "{\"id\": 2, \"context\": \"a b\", \"choices\": [\"c\", \"yes\"], \"label\": 1}\n";
    lab l = {.s = scratch_open()};
    static char text[600];
    for (size_t i = 0; i < sizeof(text); i++)
        text[i] = " eaitnos"[(i * 7 + i / 5) % 8];
    write_bytes(scratch_path(&l.s, "text.txt"), text, sizeof(text));
    write_bytes(scratch_path(&l.s, "items.jsonl"), items, sizeof(items) - 1);
    must(dms_device_from_name(&l.dev, "cpu", 1));
    return l;
}

static void lab_close(lab *l)
{
    l->dev->close(l->dev);
    scratch_close(&l->s);
}

static const char *write_config(const lab *l, const char *dtype, const char *seed)
{
    char text[4096], model[1024];
    const int n =
        snprintf(text, sizeof(text),
                 "model: %s\n"
                 "policies: [dense, {window: [4]}]\n"
                 "output: %s/out\n"
                 "dtype: %s\n"
                 "seed: %s\n"
                 "tasks:\n"
                 "- {task: kld, text: %s/text.txt, context: 16, prompt: 8, sequences: 3,"
                 " batch: 2}\n"
                 "- {task: items, name: choices, file: %s/items.jsonl, temperature:"
                 " 0.123456789012}\n",
                 fixture(model, "tiny/llama"), l->s.folder, dtype, seed, l->s.folder, l->s.folder);
    const char *path = scratch_path(&l->s, "pareto.yaml");
    write_bytes(path, text, (size_t)n);
    return path;
}

static void say(void *context, const char *line)
{
    lab *l = context;
    char want[16];
    snprintf(want, sizeof(want), "%d/", ++l->said);
    cr_expect(!strncmp(line, want, strlen(want)), "%s", line);
}

/* Runs the configuration; returns how many results were new. */
static int run(lab *l, const char *dtype, const char *seed)
{
    dms_pareto *p = calloc(1, sizeof(*p));
    must(dms_pareto_read(p, write_config(l, dtype, seed)));
    l->said = 0;
    must(dms_pareto_run(p, l->dev, say, l));
    dms_pareto_close(p);
    free(p);
    return l->said;
}

/* The lines of results.jsonl as an array, which the caller ends. */
static json_t *results(const lab *l)
{
    size_t n;
    char *text = read_bytes(scratch_path(&l->s, "out/results.jsonl"), &n);
    json_t *all = json_array();
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
        cr_assert(!json_array_append_new(all, json_loads(line, 0, NULL)), "%s", line);
    free(text);
    return all;
}

static const char *text_of(const json_t *all, size_t i, const char *key)
{
    return json_string_value(json_object_get(json_array_get(all, i), key));
}

/* Lines are the same but for the clock. */
static void expect_same(json_t *a, json_t *b)
{
    static const char *const times[] = {"prefill_tok_s", "decode_tok_s", "seconds"};
    cr_assert(json_array_size(a) == json_array_size(b));
    for (size_t i = 0; i < json_array_size(a); i++) {
        for (size_t k = 0; k < COUNT(times); k++) {
            json_object_del(json_array_get(a, i), times[k]);
            json_object_del(json_array_get(b, i), times[k]);
        }
        cr_expect(json_equal(json_array_get(a, i), json_array_get(b, i)), "line %zu", i);
    }
}

Test(pareto, is_a_line_for_each_policy_and_task)
{
    lab l = lab_open();
    cr_expect(run(&l, "f32", "7") == LINES);
    json_t *all = results(&l);
    static const char *const want[LINES][2] = {
        {"dense", "kld"}, {"window:4", "kld"}, {"dense", "choices"}, {"window:4", "choices"}};
    cr_assert(json_array_size(all) == LINES);
    for (size_t i = 0; i < LINES; i++) {
        const json_t *line = json_array_get(all, i);
        const char *metric = i < 2 ? "kl" : "acc";
        cr_expect_str_eq(text_of(all, i, "policy"), want[i][0]);
        cr_expect_str_eq(text_of(all, i, "task"), want[i][1]);
        cr_expect_str_eq(text_of(all, i, "dtype"), "f32");
        cr_expect_str_eq(text_of(all, i, "device"), "cpu");
        cr_expect_str_eq(text_of(all, i, "better"), i < 2 ? "lower" : "higher");
        cr_expect(json_integer_value(json_object_get(line, "seed")) == 7);
        cr_expect(json_integer_value(json_object_get(line, "items")) == (i < 2 ? 3 : 2));
        cr_expect(json_object_get(json_object_get(line, "metrics"), metric), "no %s", metric);
        cr_expect(json_number_value(json_object_get(line, "read_ratio")) <= 1);
    }
    const json_t *window = json_array_get(all, 1);
    /* steps after prompts of 8 of 16 tokens see 9 to 16 keys of a dense cache, and 4 of this one */
    cr_expect(fabs(json_number_value(json_object_get(window, "read_ratio")) - 32.0 / 100) < 1e-8);
    cr_expect(json_number_value(json_object_get(window, "peak_ratio")) == 4.0 / 16);
    json_decref(all);
    lab_close(&l);
}

Test(pareto, a_second_run_runs_what_is_missing)
{
    lab l = lab_open();
    size_t n;
    cr_expect(run(&l, "f32", "7") == LINES);
    json_t *first = results(&l);
    char *text = read_bytes(scratch_path(&l.s, "out/results.jsonl"), &n);
    cr_expect(run(&l, "f32", "7") == 0);
    json_t *second = results(&l);
    cr_expect(json_equal(first, second), "a run without work changes nothing");
    json_decref(second);
    const size_t line = strcspn(text, "\n") + 1;
    write_bytes(scratch_path(&l.s, "out/results.jsonl"), text, line); /* killed after one */
    cr_expect(run(&l, "f32", "7") == LINES - 1);
    second = results(&l);
    expect_same(first, second);
    json_decref(second);
    for (int cut = 1; cut < 40; cut += 19) { /* killed inside the last line */
        write_bytes(scratch_path(&l.s, "out/results.jsonl"), text, n - (size_t)cut);
        cr_expect(run(&l, "f32", "7") == 1, "cut by %d", cut);
        second = results(&l);
        expect_same(first, second);
        json_decref(second);
    }
    json_decref(first);
    free(text);
    lab_close(&l);
}

Test(pareto, another_type_or_seed_is_another_result)
{
    lab l = lab_open();
    cr_expect(run(&l, "f32", "7") == LINES);
    cr_expect(run(&l, "f32", "8") == LINES);
    cr_expect(run(&l, "bf16", "8") == LINES);
    cr_expect(run(&l, "bf16", "8") == 0);
    json_t *all = results(&l);
    cr_assert(json_array_size(all) == 3 * LINES);
    cr_expect_str_eq(text_of(all, 3 * LINES - 1, "dtype"), "bf16");
    json_decref(all);
    lab_close(&l);
}

/* ---- configurations ------------------------------------------------------------------------- */

static dms_status read_config(dms_pareto *p, const char *text)
{
    scratch s = scratch_open();
    const char *path = scratch_path(&s, "bad.yaml");
    write_bytes(path, text, strlen(text));
    const dms_status status = dms_pareto_read(p, path);
    scratch_close(&s);
    return status;
}

#define MODEL "model: m\noutput: o\n"
#define POLICIES "policies: [dense]\n"
#define TASKS "tasks: [{text: t}]\n"

Test(pareto, bad_configurations_name_the_key_and_the_remedy)
{
    static const struct {
        const char *yaml, *key, *remedy;
    } all[] = {
        {MODEL POLICIES TASKS "modle: x\n", "modle", "model"},
        {MODEL POLICIES "tasks: [{text: t, contxt: 8}]\n", "contxt", "context"},
        {POLICIES TASKS "output: o\n", "models", "missing"},
        {POLICIES TASKS "model: m\n", "output", "missing"},
        {MODEL TASKS, "policies", "missing"},
        {MODEL POLICIES, "tasks", "list of 1 to"},
        {MODEL POLICIES "tasks: []\n", "tasks", "list of 1 to"},
        {MODEL POLICIES "tasks: [x]\n", "task", "expected {task: kld"},
        {MODEL "policies: dense\n" TASKS, "policies", "expected [dense"},
        {MODEL "policies: [5]\n" TASKS, "policies", "{name: [budget"},
        {MODEL "policies: [{window: 64}]\n" TASKS, "window", "{window: [64, 128]}"},
        {MODEL "policies: [{window: []}]\n" TASKS, "window", "{window: [64, 128]}"},
        {MODEL "policies: [{window: [0]}]\n" TASKS, "window:0", "window:N"},
        {MODEL "policies: [{window: [true]}]\n" TASKS, "window", "window:N"},
        {MODEL "policies: [tovo]\n" TASKS, "tovo", "tova:N"},
        {MODEL POLICIES "tasks: [{task: mmlu, file: f}]\n", "mmlu", "items"},
        {MODEL POLICIES "tasks: [{task: kld}]\n", "kld", "text"},
        {MODEL POLICIES "tasks: [{task: items}]\n", "items", "one JSON Lines file"},
        {MODEL POLICIES "tasks: [{task: items, file: [a, b]}]\n", "items", "one JSON Lines file"},
        {MODEL POLICIES "tasks: [{text: a, file: b}]\n", "text and file", "one of them"},
        {MODEL POLICIES "tasks: [{task: vt}]\n", "vt", "length"},
        {MODEL POLICIES "tasks: [{task: vt, length: 99, text: t}]\n", "vt", "--essay"},
        {MODEL POLICIES "tasks: [{text: t, context: 1}]\n", "context", "from 2"},
        {MODEL POLICIES "tasks: [{text: t, context: '8'}]\n", "context", "whole number"},
        {MODEL POLICIES "tasks: [{text: t, context: 8.0}]\n", "context", "whole number"},
        {MODEL POLICIES "tasks: [{text: t, context: 8, prompt: 8}]\n", "prompts of 8",
         "at least one token"},
        {MODEL POLICIES "tasks: [{text: t, batch: 5000000000}]\n", "batch", "at most"},
        {MODEL POLICIES "tasks: [{text: t, temperature: hot}]\n", "temperature", "number"},
        {MODEL POLICIES "tasks: [{text: t, chat: 1}]\n", "chat", "true nor false"},
        {MODEL POLICIES TASKS "dtype: f16\n", "f16", "bf16"},
        {MODEL POLICIES TASKS "device: 3\n", "device", "quote it"},
        {MODEL POLICIES TASKS "dms_shift: 2\n", "dms_shift", "0 to 1"},
        {MODEL POLICIES TASKS "threads: 5000000000\n", "threads", "0 to 1024"},
        {MODEL POLICIES TASKS "seed: -1\n", "seed", "whole number from 0"},
        {"- a\n", "mapping", "keys"},
        {MODEL POLICIES TASKS "model: n\n", "line 5", "twice"},
    };
    for (size_t i = 0; i < COUNT(all); i++) {
        dms_pareto *p = calloc(1, sizeof(*p));
        const dms_status status = read_config(p, all[i].yaml);
        const char *message = dms_error_text();
        cr_expect(status == DMS_ERR_ARG && !p->tree, "taken:\n%s", all[i].yaml);
        cr_expect(strstr(message, all[i].key) && strstr(message, all[i].remedy) &&
                      strstr(message, "bad.yaml"),
                  "\"%s\" has no %s or %s", message, all[i].key, all[i].remedy);
        free(p);
    }
}

Test(pareto, configurations_are_read_key_by_key)
{
    dms_pareto *p = calloc(1, sizeof(*p));
    must(read_config(p, "models: [a, b]\nteacher: t\noutput: o\ndevice: cpu\ndtype: bf16\n"
                        "threads: 3\nseed: 9\ndms_shift: 0\n"
                        "policies: [dms, 'tova:25%', {window: [64, 128], random: ['2:3']}]\n"
                        "tasks:\n"
                        "- {text: [x, y], context: 64, prompt: 16, sequences: 5, batch: 4}\n"
                        "- {task: vt, length: 512, limit: 7, essay: e, name: hops}\n"
                        "- {task: items, file: f, samples: 3, temperature: 0.5, top_p: 1,\n"
                        "   max_new: 8, chat: true}\n"));
    static const char *const names[] = {"dms", "tova:25%", "window:64", "window:128", "random:2:3"};
    cr_expect(p->n_models == 2 && !strcmp(p->models[1], "b") && !strcmp(p->teacher, "t"));
    cr_expect(!strcmp(p->output, "o") && !strcmp(p->device, "cpu") && p->threads == 3);
    cr_expect(p->compute == DMS_COMPUTE_BF16 && p->shift == 0);
    cr_assert(p->n_policies == COUNT(names) && p->n_tasks == 3);
    for (size_t i = 0; i < COUNT(names); i++)
        cr_expect_str_eq(p->policies[i].name, names[i]);
    const dms_task_spec *t = p->tasks;
    cr_expect(!strcmp(t[0].task, "kld") && t[0].n_paths == 2 && !strcmp(t[0].paths[1], "y"));
    cr_expect(t[0].context == 64 && t[0].prompt == 16 && t[0].sequences == 5 && t[0].batch == 4);
    cr_expect(t[1].length == 512 && t[1].limit == 7 && !strcmp(t[1].essay, "e"));
    cr_expect(!strcmp(p->task_names[0], "kld") && !strcmp(p->task_names[1], "hops"));
    cr_expect(t[2].n_paths == 1 && !strcmp(t[2].paths[0], "f") && t[2].samples == 3);
    cr_expect(t[2].temperature == 0.5 && t[2].top_p == 1 && t[2].max_new == 8 && t[2].chat);
    cr_expect(t[0].seed == 9 && t[2].seed == 9 && !t[2].run_code && !t[0].chat);
    dms_pareto_close(p);
    free(p);
}
