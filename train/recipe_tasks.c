#include "train/recipe_tasks.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { LIST, TASK, KEY, VALUE, ITEMS };

void dms_recipe_tasks_begin(dms_recipe_tasks *r, dms_recipe *recipe)
{
    *r = (dms_recipe_tasks){.recipe = recipe, .at = LIST};
    memset(&recipe->eval, 0, sizeof(recipe->eval));
}

static dms_eval_task *current(const dms_recipe_tasks *r)
{
    return &r->recipe->eval.task[r->recipe->eval.n - 1];
}

static dms_status append(const dms_recipe_tasks *r, const char *text, size_t n)
{
    char *spec = current(r)->spec;
    const size_t used = strlen(spec);
    if (used + n >= DMS_EVAL_SPEC)
        return dms_fail(DMS_ERR_ARG, "a task of eval takes more than %d characters, expected less",
                        DMS_EVAL_SPEC - 1);
    memcpy(spec + used, text, n);
    return DMS_OK;
}

/* A scalar in double quotes, as YAML and JSON both read it. */
static dms_status append_quoted(const dms_recipe_tasks *r, const char *text)
{
    DMS_TRY(append(r, "\"", 1));
    for (; *text; text++) {
        char code[8];
        const bool control = (unsigned char)*text < ' ' || *text == 0x7f;
        const char *form = control ? "\\u%04x" : *text == '"' || *text == '\\' ? "\\%c" : "%c";
        DMS_TRY(append(r, code, (size_t)snprintf(code, sizeof(code), form, *text)));
    }
    return append(r, "\"", 1);
}

/* Numbers, true, false and nothing are what a plain scalar says; all else is text. */
static bool is_bare(const yaml_event_t *e)
{
    const char *text = (const char *)e->data.scalar.value;
    char *end;
    if (e->data.scalar.style != YAML_PLAIN_SCALAR_STYLE)
        return false;
    if (!strcmp(text, "true") || !strcmp(text, "false") || !strcmp(text, "null"))
        return true;
    (void)strtod(text, &end);
    return *text && !*end && strspn(text, "+-.0123456789eE") == strlen(text);
}

static dms_status append_value(const dms_recipe_tasks *r, const yaml_event_t *e)
{
    const char *text = (const char *)e->data.scalar.value;
    return is_bare(e) ? append(r, text, strlen(text)) : append_quoted(r, text);
}

static dms_status take_every(const dms_recipe_tasks *r, const char *text)
{
    char *end;
    errno = 0;
    const long long n = strtoll(text, &end, 10);
    if (end == text || *end || errno || n < 0 || n > 1000000000)
        return dms_fail(DMS_ERR_ARG,
                        "every is \"%s\", expected a whole number from 0 to 1e9 (0: at the end)",
                        text);
    current(r)->every = n;
    return DMS_OK;
}

static dms_status take_name(const dms_recipe_tasks *r, const char *text)
{
    if (!text[0] || strlen(text) >= sizeof(current(r)->name))
        return dms_fail(DMS_ERR_ARG, "a task's %s is \"%.80s\", expected 1 to %zu characters",
                        r->key, text, sizeof(current(r)->name) - 1);
    strcpy(current(r)->name, text);
    return DMS_OK;
}

static dms_status on_value(dms_recipe_tasks *r, const yaml_event_t *e)
{
    const char *text = (const char *)e->data.scalar.value;
    r->at = KEY;
    if (!strcmp(r->key, "every"))
        return take_every(r, text);
    if (!strcmp(r->key, "name") || (!strcmp(r->key, "task") && !current(r)->name[0]))
        DMS_TRY(take_name(r, text));
    return append_value(r, e);
}

/* `every` is the recipe's own; all other keys are handed on as they are. */
static dms_status on_key(dms_recipe_tasks *r, const char *text)
{
    r->at = VALUE;
    if (strlen(text) >= sizeof(r->key))
        return dms_fail(DMS_ERR_ARG, "a task of eval has no key \"%.60s...\"", text);
    strcpy(r->key, text);
    if (!strcmp(text, "every")) {
        if (r->every)
            return dms_fail(DMS_ERR_ARG, "every is given twice in a task of eval, expected once");
        r->every = true;
        return DMS_OK;
    }
    if (current(r)->spec[1])
        DMS_TRY(append(r, ", ", 2));
    DMS_TRY(append_quoted(r, text));
    return append(r, ": ", 2);
}

static dms_status on_scalar(dms_recipe_tasks *r, const yaml_event_t *e)
{
    const char *text = (const char *)e->data.scalar.value;
    if (r->at == KEY)
        return on_key(r, text);
    if (r->at == VALUE)
        return on_value(r, e);
    if (r->at != ITEMS)
        return dms_fail(DMS_ERR_ARG,
                        "eval has \"%.60s\", expected a list of tasks: "
                        "[{task: kld, every: 20}, ...]",
                        text);
    if (r->listed)
        DMS_TRY(append(r, ", ", 2));
    r->listed = true;
    return append_value(r, e);
}

static dms_status on_task(dms_recipe_tasks *r)
{
    if (r->at != TASK)
        return dms_fail(DMS_ERR_ARG, "eval has a mapping where none belongs, expected a list of "
                                     "tasks: [{task: kld, every: 20}, ...]");
    if (r->recipe->eval.n == DMS_MAX_EVAL)
        return dms_fail(DMS_ERR_ARG, "eval has more than %d tasks", DMS_MAX_EVAL);
    r->recipe->eval.n++;
    r->every = false;
    r->at = KEY;
    return append(r, "{", 1);
}

static dms_status on_list(dms_recipe_tasks *r)
{
    if (r->at == LIST) {
        r->at = TASK;
        return DMS_OK;
    }
    if (r->at != VALUE || !strcmp(r->key, "every"))
        return dms_fail(DMS_ERR_ARG, "eval has a list where none belongs, expected tasks: "
                                     "[{task: kld, every: 20}, ...]");
    r->at = ITEMS;
    r->listed = false;
    return append(r, "[", 1);
}

dms_status dms_recipe_tasks_event(dms_recipe_tasks *r, const yaml_event_t *e, bool *done)
{
    *done = false;
    switch (e->type) {
    case YAML_SCALAR_EVENT:
        if (strlen((const char *)e->data.scalar.value) != e->data.scalar.length)
            return dms_fail(DMS_ERR_ARG, "found a zero byte in a value");
        return on_scalar(r, e);
    case YAML_MAPPING_START_EVENT:
        return on_task(r);
    case YAML_MAPPING_END_EVENT:
        r->at = TASK;
        return append(r, "}", 1);
    case YAML_SEQUENCE_START_EVENT:
        return on_list(r);
    case YAML_SEQUENCE_END_EVENT:
        *done = r->at == TASK;
        if (*done)
            return DMS_OK;
        r->at = KEY;
        return append(r, "]", 1);
    case YAML_ALIAS_EVENT:
        return dms_fail(DMS_ERR_ARG, "found a YAML alias, expected a plain value");
    default:
        return DMS_OK;
    }
}
