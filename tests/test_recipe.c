/* Recipes, schedules: what a user's YAML file can say, and every way it can be wrong. */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "tests/rig.h"
#include "train/recipe.h"
#include "train/schedule.h"

static const char *const whole = "model:\n  path: m.gguf\n"
                                 "data:\n  train: [a.tok, 'b c.tok']\n  context: 128\n"
                                 "dms:\n  gate: adapter\n  window: 16\n"
                                 "schedule: {steps: 20, cr: 4.5, ramp_steps: 10}\n"
                                 "optim:\n  train: gate\n  lr: 1.0e-4\n"
                                 "run:\n  replay: true\n";

static dms_status read_text(dms_recipe *recipe, const char *text)
{
    char path[] = "/tmp/dms-recipe-XXXXXX";
    FILE *out = fdopen(mkstemp(path), "w");
    fputs(text, out);
    fclose(out);
    *recipe = dms_recipe_defaults();
    const dms_status status = dms_recipe_read(recipe, path);
    unlink(path);
    return status;
}

Test(recipe, reads_sections_lists_and_flow_style)
{
    dms_recipe r;
    must(read_text(&r, whole));
    must(dms_recipe_check(&r));
    cr_assert_str_eq(r.model.path, "m.gguf");
    cr_assert_eq(r.data.train.n, 2);
    cr_assert_str_eq(r.data.train.path[1], "b c.tok");
    cr_assert_eq(r.dms.gate, DMS_GATE_ADAPTER);
    cr_assert_eq(r.optim.train, DMS_TRAIN_GATE);
    cr_assert_eq(r.optim.lr, 1e-4);
    cr_assert_eq(r.schedule.cr, 4.5);
    cr_assert(r.run.replay);
    cr_assert_eq(r.optim.beta2, 0.95, "what the file leaves out keeps its default");
}

Test(recipe, is_written_so_that_it_reads_back_the_same)
{
    dms_recipe r, again;
    char *text = NULL;
    size_t length = 0;
    must(read_text(&r, whole));
    must(dms_recipe_set(&r, "model.path=a \"quoted\\\" name"));
    FILE *out = open_memstream(&text, &length);
    must(dms_recipe_write(&r, out));
    fclose(out);
    must(read_text(&again, text));
    cr_assert(!memcmp(&r, &again, sizeof(r)), "%s", text);
    free(text);
}

/* Which YAML has only as escapes, and at whose raw ends of lines it would put spaces. */
Test(recipe, is_written_so_that_odd_characters_of_a_path_read_back_too)
{
    dms_recipe r, again;
    char *text = NULL;
    size_t length = 0;
    must(read_text(&r, whole));
    must(dms_recipe_set(&r, "model.path=a\n\tb\x7f\xc2\x85\u2028\ufeff\uffff\u00e9\U0001f600"));
    must(dms_recipe_check(&r));
    FILE *out = open_memstream(&text, &length);
    must(dms_recipe_write(&r, out));
    fclose(out);
    must(read_text(&again, text));
    cr_assert(!memcmp(&r, &again, sizeof(r)), "%s", text);
    free(text);
}

Test(recipe, refuses_texts_that_are_not_utf8_by_name)
{
    static const char *const wrong[][2] = {{"run.folder=r\xff", "run.folder"},
                                           {"model.path=\xe9t\xe9", "model.path"},
                                           {"data.heldout=\xc3", "data.heldout"},
                                           {"data.train=a.tok,\x80", "data.train"}};
    for (size_t i = 0; i < COUNT(wrong); i++) {
        dms_recipe r;
        must(read_text(&r, whole));
        must(dms_recipe_set(&r, wrong[i][0]));
        cr_expect_eq(dms_recipe_check(&r), DMS_ERR_ARG);
        cr_expect(strstr(dms_error_message(), wrong[i][1]) &&
                      strstr(dms_error_message(), "expected UTF-8"),
                  "%s", dms_error_message());
    }
}

Test(recipe, takes_overrides_from_the_command_line)
{
    dms_recipe r = dms_recipe_defaults();
    must(dms_recipe_set(&r, "optim.lr=2e-3"));
    must(dms_recipe_set(&r, "data.train=x.tok,y.tok,z.tok"));
    must(dms_recipe_set(&r, "run.seed=0"));
    cr_assert_eq(r.optim.lr, 2e-3);
    cr_assert_eq(r.data.train.n, 3);
    cr_assert_str_eq(r.data.train.path[2], "z.tok");
    cr_assert_eq(r.run.seed, 0);
}

/* Brackets mean on the command line what they mean in the file. */
Test(recipe, takes_lists_in_brackets_as_the_file_has_them)
{
    dms_recipe r, file;
    must(read_text(&r, whole));
    must(dms_recipe_set(&r, "data.weights=[3,1]"));
    must(dms_recipe_set(&r, "data.train=[x.tok, 'y, z.tok']"));
    must(dms_recipe_check(&r));
    must(read_text(&file, "data: {weights: [3,1], train: [x.tok, 'y, z.tok']}"));
    cr_assert_eq(r.data.weights.n, file.data.weights.n);
    cr_assert(r.data.weights.value[0] == 3 && r.data.weights.value[1] == 1);
    cr_assert(dms_recipe_same_data(&r, &file));
    cr_assert_str_eq(r.data.train.path[1], "y, z.tok");
    must(dms_recipe_set(&r, "data.weights=[]"));
    cr_assert_eq(r.data.weights.n, 0);
    must(dms_recipe_set(&r, "data.train=[x].tok"));
    cr_assert_str_eq(r.data.train.path[0], "[x].tok");
    const dms_recipe before = r;
    cr_assert_eq(dms_recipe_set(&r, "data.weights=[3,0]"), DMS_ERR_ARG);
    cr_assert(strstr(dms_error_message(), "data.weights is \"0\""), "%s", dms_error_message());
    cr_assert_eq(dms_recipe_set(&r, "data.weights=[3,[1]]"), DMS_ERR_ARG);
    cr_assert(!memcmp(&r, &before, sizeof(r)), "a failed override changed the recipe");
}

Test(recipe, takes_weights_for_the_shards_of_a_blend)
{
    dms_recipe r, again;
    char *text = NULL;
    size_t length = 0;
    must(read_text(&r, whole));
    must(dms_recipe_set(&r, "data.weights=3,0.5"));
    must(dms_recipe_check(&r));
    FILE *out = open_memstream(&text, &length);
    must(dms_recipe_write(&r, out));
    fclose(out);
    must(read_text(&again, text));
    cr_expect(again.data.weights.n == 2 && again.data.weights.value[0] == 3 &&
              again.data.weights.value[1] == 0.5);
    must(dms_recipe_set(&r, "data.weights=3"));
    cr_expect_eq(dms_recipe_check(&r), DMS_ERR_ARG);
    cr_expect(strstr(dms_error_text(), "data.weights has 1 numbers"), "%s", dms_error_text());
    cr_expect_eq(dms_recipe_set(&r, "data.weights=3,0"), DMS_ERR_ARG);
    cr_expect(strstr(dms_error_text(), "data.weights is \"0\""), "%s", dms_error_text());
    free(text);
}

static const char *const tasks = "model:\n  path: m.gguf\n"
                                 "eval:\n"
                                 "  - {task: kld, every: 20, text: [a.txt, 'b, c.txt']}\n"
                                 "  - name: \"two \\\"words\\\"\"\n    task: ppl\n    chat: true\n"
                                 "    temperature: 0.5\n    text: \"12\"\n"
                                 "data: {train: a.tok}\n";

Test(recipe, keeps_tasks_of_eval_with_how_often_and_what)
{
    dms_recipe r;
    must(read_text(&r, tasks));
    must(dms_recipe_check(&r));
    cr_assert_eq(r.eval.n, 2);
    cr_expect_eq(r.eval.task[0].every, 20);
    cr_expect_str_eq(r.eval.task[0].name, "kld");
    cr_expect_str_eq(r.eval.task[0].spec,
                     "{\"task\": \"kld\", \"text\": [\"a.txt\", \"b, c.txt\"]}");
    cr_expect_eq(r.eval.task[1].every, 0);
    cr_expect_str_eq(r.eval.task[1].name, "two \"words\"");
    cr_expect_str_eq(r.eval.task[1].spec,
                     "{\"name\": \"two \\\"words\\\"\", \"task\": \"ppl\", \"chat\": true, "
                     "\"temperature\": 0.5, \"text\": \"12\"}");
    cr_expect_eq(r.data.train.n, 1, "sections go on behind the list");
}

Test(recipe, writes_tasks_so_that_they_read_back_the_same)
{
    dms_recipe r, again;
    char *text = NULL;
    size_t length = 0;
    must(read_text(&r, tasks));
    FILE *out = open_memstream(&text, &length);
    must(dms_recipe_write(&r, out));
    fclose(out);
    must(read_text(&again, text));
    cr_assert(!memcmp(&r, &again, sizeof(r)), "%s", text);
    free(text);
    must(dms_recipe_set(&again, "eval=[{task: cwe, every: 7}]"));
    cr_assert(again.eval.n == 1 && again.eval.task[0].every == 7, "an override replaces the list");
    must(dms_recipe_set(&again, "eval=[]"));
    cr_assert_eq(again.eval.n, 0);
}

/* What the file says, and what the message must contain. */
static const struct {
    const char *text, *message;
} wrong[] = {
    {"optim:\n  lrr: 1\n", "unknown key optim.lrr; the nearest known key is optim.lr"},
    {"optin:\n  lr: 1\n", "unknown key optin."},
    {"optim:\n  lr: fast\n", "optim.lr is \"fast\", expected a number from 0 to 10"},
    {"optim:\n  lr: nan\n", "optim.lr is \"nan\""},
    {"optim:\n  lr: 1\n  lr: 2\n", "optim.lr is given twice"},
    {"data:\n  context: 1.5\n", "data.context is \"1.5\", expected a whole number"},
    {"data:\n  context: [1, 2]\n", "found a list in section data"},
    {"dms:\n  gate: neural\n", "dms.gate is \"neural\", expected one of none, neuron, adapter"},
    {"run:\n  replay: yes\n", "run.replay is \"yes\", expected true or false"},
    {"optim: 3\n", "section optim is \"3\", expected keys below it"},
    {"optim:\n  lr: {a: 1}\n", "found a mapping inside section optim"},
    {"just text", "found \"just text\", expected sections of keys"},
    {"optim:\n  lr: 1\n bad: [\n", "line "},
    {"a: &x 1\nb: *x\n", "unknown key a."},
    {"evla: [{task: kld}]\n", "unknown key evla.; the nearest known key is eval"},
    {"eval: 3\n", "eval has \"3\", expected a list of tasks"},
    {"eval: {task: kld}\n", "eval has a mapping where none belongs"},
    {"eval: [kld]\n", "eval has \"kld\", expected a list of tasks"},
    {"eval: [[kld]]\n", "eval has a list where none belongs"},
    {"eval: [{task: kld, every: often}]\n", "every is \"often\", expected a whole number"},
    {"eval: [{task: kld, every: [1]}]\n", "eval has a list where none belongs"},
    {"eval: [{task: kld, every: 1, every: 2}]\n", "every is given twice"},
    {"eval: [{task: kld, text: {a: b}}]\n", "eval has a mapping where none belongs"},
    {"eval: [{task: kld, text: [[a]]}]\n", "eval has a list where none belongs"},
    {"eval: [{task: ''}]\n", "a task's task is \"\", expected 1 to 63 characters"},
    {"eval: []\nrun:\n  batch: 2\neval: []\n", "eval is given twice"},
};

Test(recipe, names_what_is_wrong_in_a_file)
{
    for (size_t i = 0; i < COUNT(wrong); i++) {
        dms_recipe r;
        cr_assert_eq(read_text(&r, wrong[i].text), DMS_ERR_ARG, "%s", wrong[i].text);
        cr_assert(strstr(dms_error_message(), wrong[i].message), "%s: %s", wrong[i].text,
                  dms_error_message());
        const dms_recipe defaults = dms_recipe_defaults();
        cr_assert(!memcmp(&r, &defaults, sizeof(r)), "a failed read changed the recipe");
    }
}

Test(recipe, names_what_no_single_key_can_show)
{
    static const struct {
        const char *set, *message;
    } cases[] = {{"dms.window=128", "dms.window is 128, expected less than data.context"},
                 {"dms.gate=none", "dms.gate is none"},
                 {"schedule.fade_steps=20", "schedule.fade_steps is 20, expected less than"},
                 {"schedule.fade_steps=2", "expected 0: the adapter gate borrows no channel"},
                 {"model.path=", "model.path is missing"},
                 {"run.folder=", "run.folder is empty"},
                 {"eval=[{every: 2}]", "entry 1 of eval has no task"},
                 {"eval=[{task: a}, {task: b, name: a}]", "eval has two tasks named a"}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        dms_recipe r;
        must(read_text(&r, whole));
        must(dms_recipe_set(&r, cases[i].set));
        cr_assert_eq(dms_recipe_check(&r), DMS_ERR_ARG, "%s", cases[i].set);
        cr_assert(strstr(dms_error_message(), cases[i].message), "%s", dms_error_message());
    }
}

Test(recipe, survives_any_cut_and_any_flipped_byte)
{
    char text[1024];
    uint32_t seed = 1;
    for (size_t i = 0; i < 2000; i++) {
        dms_recipe r;
        seed = seed * 1664525u + 1013904223u;
        snprintf(text, sizeof(text), "%s", whole);
        if (i < strlen(whole))
            text[i] = 0;
        else
            text[seed % strlen(whole)] = (char)(seed >> 24);
        (void)read_text(&r, text);
    }
}

Test(schedule, fades_first_and_then_rises_to_the_ratio)
{
    const dms_schedule s = {.steps = 100, .fade_steps = 10, .ramp_steps = 30, .cr = 4};
    for (int64_t step = 0; step < s.steps; step++) {
        const dms_stage stage = dms_schedule_at(&s, step);
        const double way = fmin(1, (double)(step - 10) / 30), cr = 1 + 3 * way;
        cr_assert_eq(stage.fading, step < 10);
        cr_assert_float_eq(stage.keep, fmax(0, 1 - (double)step / 8), step < 10 ? 1e-6 : 2);
        if (!stage.fading) {
            cr_assert_eq(stage.keep, 0);
            cr_assert_float_eq(stage.cr, cr, 1e-12);
            cr_assert_float_eq(stage.target, 1 - 1 / cr, 1e-6);
        }
    }
    cr_assert_eq(dms_schedule_at(&s, 10).target, 0, "the first step after the fade has CR 1");
}
