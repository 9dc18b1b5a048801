/* The configuration of a Pareto run. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "eval/pareto.h"
#include "eval/task_spec.h"
#include "eval/yaml_tree.h"
#include "kernels/nearest.h"

/* ---- tasks ---------------------------------------------------------------------------------- */

static dms_status take_task(dms_pareto *p, dms_task_paths *paths, const json_t *tree, uint64_t seed)
{
    dms_task_spec *spec = &p->tasks[p->n_tasks];
    int64_t unused;
    *spec = dms_task_spec_defaults();
    spec->seed = seed;
    DMS_TRY(dms_task_spec_read(spec, &p->task_names[p->n_tasks], paths, tree, NULL));
    DMS_TRY(dms_task_positions(&unused, spec));
    p->task_trees[p->n_tasks] = tree;
    if (!p->task_names[p->n_tasks])
        p->task_names[p->n_tasks] = spec->task;
    p->n_tasks++;
    return DMS_OK;
}

static dms_status take_tasks(dms_pareto *p, const json_t *list, uint64_t seed)
{
    if (!json_array_size(list) || json_array_size(list) > DMS_PARETO_MOST)
        return dms_fail(DMS_ERR_ARG, "tasks is no list of 1 to %d tasks", DMS_PARETO_MOST);
    p->paths = calloc(DMS_PARETO_MOST, sizeof(*p->paths));
    if (!p->paths)
        return dms_fail(DMS_ERR_NOMEM, "no memory for the tasks");
    dms_task_paths paths = {p->paths, 0, DMS_PARETO_MOST};
    for (size_t i = 0; i < json_array_size(list); i++)
        DMS_TRY(take_task(p, &paths, json_array_get(list, i), seed));
    return DMS_OK;
}

/* ---- policies ------------------------------------------------------------------------------- */

static dms_status add_policy(dms_pareto *p, const char *text)
{
    if (p->n_policies == DMS_PARETO_MOST)
        return dms_fail(DMS_ERR_ARG, "more than %d policies", DMS_PARETO_MOST);
    return dms_policy_parse(&p->policies[p->n_policies++], text);
}

/* {name: [budget, ...]}: name:budget each. */
static dms_status add_budgets(dms_pareto *p, const char *name, const json_t *budgets)
{
    if (!json_array_size(budgets))
        return dms_fail(DMS_ERR_ARG,
                        "policies has %.40s without a list of budgets, expected {%.40s: [64, 128]}",
                        name, name);
    for (size_t i = 0; i < json_array_size(budgets); i++) {
        const json_t *b = json_array_get(budgets, i);
        char text[64];
        if (json_is_string(b))
            snprintf(text, sizeof(text), "%s:%s", name, json_string_value(b));
        else if (json_is_integer(b))
            snprintf(text, sizeof(text), "%s:%" JSON_INTEGER_FORMAT, name, json_integer_value(b));
        else
            snprintf(text, sizeof(text), "%s:%.6g", name, json_number_value(b));
        DMS_TRY(add_policy(p, text));
    }
    return DMS_OK;
}

static dms_status take_policies(dms_pareto *p, const json_t *list)
{
    if (!json_array_size(list))
        return dms_fail(DMS_ERR_ARG, "policies is no list, expected [dense, dms, \"tova:256\", "
                                     "{window: [64, 128]}, ...]");
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *entry = json_array_get(list, i);
        const char *name;
        json_t *budgets;
        if (json_is_string(entry)) {
            DMS_TRY(add_policy(p, json_string_value(entry)));
            continue;
        }
        if (!json_is_object(entry))
            return dms_fail(DMS_ERR_ARG, "policies has an entry that is neither a name nor {name: "
                                         "[budget, ...]}");
        json_object_foreach((json_t *)entry, name, budgets) DMS_TRY(add_budgets(p, name, budgets));
    }
    return DMS_OK;
}

/* ---- the file ------------------------------------------------------------------------------- */

static dms_status take_small(int64_t *out, const json_t *value, const char *key, int64_t high)
{
    DMS_TRY(dms_value_whole(out, value, key, 0));
    if (*out > high)
        return dms_fail(DMS_ERR_ARG, "%s is %" PRId64 ", expected 0 to %" PRId64, key, *out, high);
    return DMS_OK;
}

static dms_status take_top(dms_pareto *p, const char *key, const json_t *value, int64_t *seed)
{
    static const char *const names[] = {"models",  "model",  "teacher",  "policies",
                                        "tasks",   "output", "device",   "dtype",
                                        "threads", "seed",   "dms_shift"};
    const char *dtype;
    if (!strcmp(key, "models") || !strcmp(key, "model"))
        return dms_value_texts(p->models, &p->n_models, DMS_PARETO_MOST, value, key);
    if (!strcmp(key, "teacher"))
        return dms_value_text(&p->teacher, value, key);
    if (!strcmp(key, "output"))
        return dms_value_text(&p->output, value, key);
    if (!strcmp(key, "device"))
        return dms_value_text(&p->device, value, key);
    if (!strcmp(key, "threads"))
        return take_small(&p->threads, value, key, 1024);
    if (!strcmp(key, "dms_shift"))
        return take_small(&p->shift, value, key, 1);
    if (!strcmp(key, "seed"))
        return dms_value_whole(seed, value, key, 0);
    if (!strcmp(key, "policies"))
        return take_policies(p, value);
    if (!strcmp(key, "tasks"))
        return DMS_OK; /* after the seed is known */
    if (strcmp(key, "dtype") != 0)
        return dms_fail(DMS_ERR_ARG, "the file has no key \"%.60s\"; the nearest known key is %s",
                        key, dms_nearest(key, names, sizeof(names) / sizeof(names[0])));
    DMS_TRY(dms_value_text(&dtype, value, key));
    return dms_compute_from_name(&p->compute, dtype);
}

static dms_status take_all(dms_pareto *p)
{
    int64_t seed = 0;
    const char *key;
    json_t *value;
    if (!json_is_object(p->tree))
        return dms_fail(DMS_ERR_ARG, "the file is no mapping of keys");
    json_object_foreach(p->tree, key, value) DMS_TRY(take_top(p, key, value, &seed));
    DMS_TRY(take_tasks(p, json_object_get(p->tree, "tasks"), (uint64_t)seed));
    if (!p->n_models || !p->n_policies || !p->output)
        return dms_fail(DMS_ERR_ARG, "%s is missing",
                        !p->n_models ? "models"
                        : !p->output ? "output"
                                     : "policies");
    return DMS_OK;
}

dms_status dms_pareto_read(dms_pareto *out, const char *path)
{
    dms_pareto *p = calloc(1, sizeof(*p));
    if (!p)
        return dms_fail(DMS_ERR_NOMEM, "no memory for %s", path);
    p->device = "auto";
    p->shift = -1;
    dms_status status = dms_yaml_read(&p->tree, path);
    if (!status) {
        status = take_all(p);
        if (status)
            dms_trail_note("%s", path);
    }
    if (status)
        dms_pareto_close(p);
    else
        *out = *p;
    free(p);
    return status;
}

void dms_pareto_close(dms_pareto *p)
{
    json_decref(p->tree);
    free(p->paths);
    p->tree = NULL;
    p->paths = NULL;
}
