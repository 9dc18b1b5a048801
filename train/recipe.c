/* A recipe's defaults, overrides, cross-checks and its written form. */
#include "train/recipe.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "data/utf8.h"
#include "train/recipe_keys.h"

dms_recipe dms_recipe_defaults(void)
{
    dms_recipe r = {0};
    const dms_gate gate = dms_gate_defaults();
    r.data.context = 512;
    r.dms.gate = DMS_GATE_NEURON;
    r.dms.window = 256;
    r.dms.tau = 0.1;
    r.dms.alpha_scale = (double)gate.alpha_scale;
    r.dms.alpha_offset = (double)gate.alpha_offset;
    r.schedule.steps = 1000;
    r.schedule.cr = 8;
    r.schedule.ramp_steps = 700;
    r.loss.direction = DMS_KL_REVERSE;
    r.loss.lambda = 1;
    r.optim.train = DMS_TRAIN_ALL;
    r.optim.lr = 3e-5;
    r.optim.beta1 = 0.9;
    r.optim.beta2 = 0.95;
    r.optim.eps = 1e-8;
    r.optim.clip = 1;
    strcpy(r.run.folder, "runs/run");
    r.run.batch = 1;
    r.run.accumulate = 1;
    r.run.save_every = 100;
    r.run.keep = 2;
    r.run.eval_sequences = 16;
    return r;
}

/* A list in brackets, by the rules of the file's lists: quotes, spaces. Without k: of tasks. */
static dms_status set_flow(dms_recipe *recipe, const dms_recipe_key *k, const char *value)
{
    char *text = NULL;
    size_t length = 0;
    FILE *out = open_memstream(&text, &length);
    if (!out)
        return dms_fail(DMS_ERR_NOMEM, "no memory for an override");
    if (k)
        fprintf(out, "{%s: {%s: %s}}", k->section, k->key, value);
    else
        fprintf(out, "{eval: %s}", value);
    if (fclose(out)) {
        free(text);
        return dms_fail(DMS_ERR_NOMEM, "no memory for an override");
    }
    const dms_status status = dms_recipe_parse(recipe, text, length, "the override");
    free(text);
    return status;
}

dms_status dms_recipe_set(dms_recipe *recipe, const char *assignment)
{
    char section[64], key[64];
    int used = 0;
    if (!strncmp(assignment, "eval=", 5))
        return set_flow(recipe, NULL, assignment + 5);
    if (sscanf(assignment, "%63[a-z_].%63[a-z0-9_]=%n", section, key, &used) != 2 || !used)
        return dms_fail(DMS_ERR_ARG, "override is \"%s\", expected section.key=value", assignment);
    const dms_recipe_key *k = dms_recipe_find(section, key);
    if (!k)
        return dms_recipe_unknown(section, key);
    const char *value = assignment + used;
    if (!dms_recipe_key_is_list(k))
        return dms_recipe_assign(recipe, k, value, false);
    if (value[0] == '[' && value[strlen(value) - 1] == ']')
        return set_flow(recipe, k, value);
    for (bool append = false; value; append = true) {
        char item[DMS_PATH_SIZE];
        const char *comma = strchr(value, ',');
        const size_t length = comma ? (size_t)(comma - value) : strlen(value);
        if (!length || length >= sizeof(item))
            return dms_fail(DMS_ERR_ARG, "%s.%s has an item of %zu characters, expected 1 to %zu",
                            section, key, length, sizeof(item) - 1);
        snprintf(item, sizeof(item), "%.*s", (int)length, value);
        DMS_TRY(dms_recipe_assign(recipe, k, item, append));
        value = comma ? comma + 1 : NULL;
    }
    return DMS_OK;
}

static dms_status check_schedule(const dms_recipe *r)
{
    if (r->schedule.fade_steps >= r->schedule.steps)
        return dms_fail(DMS_ERR_ARG,
                        "schedule.fade_steps is %" PRId64 ", expected less than schedule.steps, "
                        "which is %" PRId64,
                        r->schedule.fade_steps, r->schedule.steps);
    if (r->schedule.fade_steps && r->dms.gate == DMS_GATE_ADAPTER)
        return dms_fail(DMS_ERR_ARG,
                        "schedule.fade_steps is %" PRId64
                        ", expected 0: the adapter gate borrows no channel",
                        r->schedule.fade_steps);
    return DMS_OK;
}

/* Lines of the log tell tasks apart by name. */
static dms_status check_tasks(const dms_recipe *r)
{
    for (int i = 0; i < r->eval.n; i++) {
        const char *name = r->eval.task[i].name;
        if (!name[0])
            return dms_fail(DMS_ERR_ARG, "entry %d of eval has no task, expected {task: kld, ...}",
                            i + 1);
        for (int j = 0; j < i; j++)
            if (!strcmp(name, r->eval.task[j].name))
                return dms_fail(DMS_ERR_ARG,
                                "eval has two tasks named %s; give one of them a name: of its own",
                                name);
    }
    return DMS_OK;
}

/* A checkpoint keeps its recipe as YAML, which is UTF-8. */
static dms_status check_text(const dms_recipe_key *key, const char *text)
{
    const size_t n = strlen(text), valid = dms_utf8_valid(text, n);
    if (valid == n)
        return DMS_OK;
    return dms_fail(DMS_ERR_ARG,
                    "%s.%s is \"%s\", expected UTF-8 (byte %zu is 0x%02X): give the file or folder "
                    "another name",
                    key->section, key->key, text, valid, (unsigned char)text[valid]);
}

static dms_status check_texts(const dms_recipe *r)
{
    size_t n;
    const dms_recipe_key *keys = dms_recipe_keys(&n);
    for (size_t i = 0; i < n; i++) {
        const void *field = (const char *)r + keys[i].offset;
        const dms_paths *paths = field;
        if (keys[i].type == DMS_KEY_TEXT)
            DMS_TRY(check_text(&keys[i], field));
        for (int k = 0; keys[i].type == DMS_KEY_PATHS && k < paths->n; k++)
            DMS_TRY(check_text(&keys[i], paths->path[k]));
    }
    return DMS_OK;
}

dms_status dms_recipe_check(const dms_recipe *r)
{
    DMS_TRY(check_texts(r));
    if (!r->model.path[0])
        return dms_fail(DMS_ERR_ARG, "model.path is missing, expected a model's file or folder");
    if (!r->data.train.n)
        return dms_fail(DMS_ERR_ARG, "data.train is missing, expected token shards; make them with "
                                     "dms-tokenize");
    if (r->data.weights.n && r->data.weights.n != r->data.train.n)
        return dms_fail(DMS_ERR_ARG,
                        "data.weights has %d numbers, expected one for each of the %d shards of "
                        "data.train",
                        r->data.weights.n, r->data.train.n);
    if (r->dms.gate == DMS_GATE_NONE)
        return dms_fail(DMS_ERR_ARG, "dms.gate is none, expected neuron or adapter");
    if (r->dms.window >= r->data.context)
        return dms_fail(DMS_ERR_ARG,
                        "dms.window is %" PRId64 ", expected less than data.context, which is "
                        "%" PRId64 ": nothing would ever be evicted",
                        r->dms.window, r->data.context);
    if (!r->run.folder[0])
        return dms_fail(DMS_ERR_ARG, "run.folder is empty, expected where to put the run");
    DMS_TRY(check_tasks(r));
    return check_schedule(r);
}

/* What YAML 1.1 (5.1, 5.4) does not have in a file, or takes for the end of a line. */
static bool is_escaped(int32_t code)
{
    return code < 0x20 || (code >= 0x7F && code < 0xA0) || code == 0x2028 || code == 0x2029 ||
           code == 0xFEFF || code == 0xFFFE || code == 0xFFFF;
}

/* A YAML double-quoted scalar of UTF-8. */
static void write_quoted(const char *text, FILE *out)
{
    fputc('"', out);
    for (int length = 1; *text; text += length) {
        const int32_t code = dms_utf8_code(text, &length);
        if (is_escaped(code))
            fprintf(out, "\\u%04X", (unsigned)code);
        else
            fprintf(out, "%s%.*s", code == '"' || code == '\\' ? "\\" : "", length, text);
    }
    fputc('"', out);
}

static void write_paths(const dms_paths *paths, FILE *out)
{
    fputc('[', out);
    for (int i = 0; i < paths->n; i++) {
        if (i)
            fputs(", ", out);
        write_quoted(paths->path[i], out);
    }
    fputc(']', out);
}

static void write_weights(const dms_weights *weights, FILE *out)
{
    fputc('[', out);
    for (int i = 0; i < weights->n; i++)
        fprintf(out, "%s%.17g", i ? ", " : "", weights->value[i]);
    fputc(']', out);
}

static void write_value(const dms_recipe *recipe, const dms_recipe_key *key, FILE *out)
{
    const void *field = (const char *)recipe + key->offset;
    switch (key->type) {
    case DMS_KEY_TEXT:
        write_quoted(field, out);
        break;
    case DMS_KEY_PATHS:
        write_paths(field, out);
        break;
    case DMS_KEY_REALS:
        write_weights(field, out);
        break;
    case DMS_KEY_WHOLE:
        fprintf(out, "%" PRId64, *(const int64_t *)field);
        break;
    case DMS_KEY_REAL:
        fprintf(out, "%.17g", *(const double *)field);
        break;
    case DMS_KEY_BOOL:
        fputs(*(const bool *)field ? "true" : "false", out);
        break;
    case DMS_KEY_CHOICE:
        fputs(key->choices[*(const int *)field], out);
        break;
    }
}

dms_status dms_recipe_write(const dms_recipe *recipe, FILE *out)
{
    size_t n;
    const dms_recipe_key *keys = dms_recipe_keys(&n);
    for (size_t i = 0; i < n; i++) {
        if (!i || strcmp(keys[i].section, keys[i - 1].section) != 0)
            fprintf(out, "%s:\n", keys[i].section);
        fprintf(out, "  %s: ", keys[i].key);
        write_value(recipe, &keys[i], out);
        fputc('\n', out);
    }
    if (recipe->eval.n)
        fputs("eval:\n", out);
    for (int i = 0; i < recipe->eval.n; i++)
        fprintf(out, "  - {\"every\": %" PRId64 ", %s\n", recipe->eval.task[i].every,
                recipe->eval.task[i].spec + 1); /* behind its opening brace */
    return ferror(out) ? dms_fail(DMS_ERR_IO, "writing the recipe failed") : DMS_OK;
}

/* Whole numbers, numbers and choices, the types of the keys that must not change. */
static bool same_value(const dms_recipe *a, const dms_recipe *b, const dms_recipe_key *key)
{
    const void *x = (const char *)a + key->offset, *y = (const char *)b + key->offset;
    if (key->type == DMS_KEY_WHOLE)
        return *(const int64_t *)x == *(const int64_t *)y;
    if (key->type == DMS_KEY_REAL)
        return memcmp(x, y, sizeof(double)) == 0;
    return *(const int *)x == *(const int *)y;
}

static void value_text(char *out, size_t size, const dms_recipe *recipe, const dms_recipe_key *key)
{
    FILE *stream = fmemopen(out, size, "w");
    if (stream) {
        write_value(recipe, key, stream);
        fclose(stream);
    }
}

bool dms_recipe_same_data(const dms_recipe *a, const dms_recipe *b)
{
    const dms_paths *x = &a->data.train, *y = &b->data.train;
    bool same = x->n == y->n;
    for (int i = 0; same && i < x->n; i++)
        same = !strcmp(x->path[i], y->path[i]);
    return same;
}

void dms_recipe_data_text(char out[DMS_DATA_TEXT], const dms_recipe *recipe)
{
    const dms_paths *paths = &recipe->data.train;
    const int more = paths->n - 1;
    const int n = snprintf(out, DMS_DATA_TEXT, "%s", paths->n ? paths->path[0] : "no shard");
    if (more > 0)
        snprintf(out + n, (size_t)(DMS_DATA_TEXT - n), " and %d more", more);
}

/* A blend's shares decide which context comes when. */
static dms_status check_weights(const dms_recipe *recipe, const dms_recipe *before)
{
    const dms_weights *now = &recipe->data.weights, *then = &before->data.weights;
    bool same = now->n == then->n;
    for (int i = 0; same && i < now->n; i++)
        same = memcmp(&now->value[i], &then->value[i], sizeof(now->value[i])) == 0;
    if (same)
        return DMS_OK;
    return dms_fail(DMS_ERR_ARG,
                    "data.weights are not those that the run in %s began with (its config.yaml); "
                    "give them or another run.folder",
                    recipe->run.folder);
}

dms_status dms_recipe_continues(const dms_recipe *recipe, const dms_recipe *before)
{
    static const char *const fixed[][2] = {
        {"data", "context"}, {"dms", "gate"},        {"dms", "window"},
        {"dms", "tau"},      {"dms", "alpha_scale"}, {"dms", "alpha_offset"},
        {"optim", "train"},  {"loss", "direction"},  {"run", "seed"},
        {"run", "batch"},    {"run", "accumulate"},  {"run", "compute"}};
    for (size_t i = 0; i < sizeof(fixed) / sizeof(fixed[0]); i++) {
        const dms_recipe_key *key = dms_recipe_find(fixed[i][0], fixed[i][1]);
        char now[64] = "", then[64] = "";
        if (same_value(recipe, before, key))
            continue;
        value_text(now, sizeof(now), recipe, key);
        value_text(then, sizeof(then), before, key);
        return dms_fail(DMS_ERR_ARG,
                        "%s.%s is %s, but the run in %s began with %s; give that value or another "
                        "run.folder",
                        key->section, key->key, now, recipe->run.folder, then);
    }
    return check_weights(recipe, before);
}
