#include "eval/pareto.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "checkpoints/files.h"

typedef struct {
    const dms_pareto *pareto;
    dms_device *device;
    json_t *done;     /* array of the lines that results.jsonl has */
    json_t *settings; /* of the file, in every line */
    FILE *results;
    void (*say)(void *context, const char *line);
    void *context;
    int64_t finished, total;
} run;

/* ---- what is there -------------------------------------------------------------------------- */

/* A line cut short by a kill is dropped when the file is written anew. */
static dms_status read_results(run *r, const char *path)
{
    FILE *file = fopen(path, "rb");
    char *line = NULL;
    size_t room = 0;
    ssize_t n;
    if (!file)
        return errno == ENOENT
                   ? DMS_OK
                   : dms_fail(DMS_ERR_IO, "%s cannot be read: %s", path, strerror(errno));
    while ((n = getline(&line, &room, file)) > 0) {
        json_t *object = line[n - 1] == '\n' ? json_loadb(line, (size_t)n, 0, NULL) : NULL;
        if (json_is_object(object))
            json_array_append_new(r->done, object);
        else
            json_decref(object);
    }
    free(line);
    fclose(file);
    return DMS_OK;
}

static dms_status write_results(run *r, const char *path)
{
    char temporary[4096];
    if (snprintf(temporary, sizeof(temporary), "%s.new", path) >= (int)sizeof(temporary))
        return dms_fail(DMS_ERR_ARG, "the path %.60s... is too long", path);
    r->results = fopen(temporary, "wb");
    if (!r->results)
        return dms_fail(DMS_ERR_IO, "%s cannot be written: %s", temporary, strerror(errno));
    for (size_t i = 0; i < json_array_size(r->done); i++)
        DMS_TRY(dms_result_print(r->results, json_array_get(r->done, i)));
    if (rename(temporary, path))
        return dms_fail(DMS_ERR_IO, "%s cannot be renamed: %s", temporary, strerror(errno));
    return DMS_OK;
}

static dms_status open_results(run *r)
{
    char path[4096];
    if (snprintf(path, sizeof(path), "%s/results.jsonl", r->pareto->output) >= (int)sizeof(path))
        return dms_fail(DMS_ERR_ARG, "the path %.60s... is too long", r->pareto->output);
    if (mkdir(r->pareto->output, 0777) && errno != EEXIST)
        return dms_fail(DMS_ERR_IO, "%s cannot be made: %s", r->pareto->output, strerror(errno));
    r->done = json_array();
    if (!r->done)
        return dms_fail(DMS_ERR_NOMEM, "no memory for results");
    DMS_TRY(read_results(r, path));
    return write_results(r, path);
}

/* What else a result depends on. */
static dms_status take_settings(run *r)
{
    static const char *const types[] = {
        [DMS_COMPUTE_AUTO] = "auto", [DMS_COMPUTE_F32] = "f32", [DMS_COMPUTE_BF16] = "bf16"};
    const dms_pareto *p = r->pareto;
    r->settings = json_pack("{ss? ss sI}", "teacher", p->teacher, "dtype", types[p->compute],
                            "dms_shift", (json_int_t)p->shift);
    return r->settings ? DMS_OK : dms_fail(DMS_ERR_NOMEM, "no memory for settings");
}

/* Equal as they are printed: numbers lose digits on their way through the file. */
static bool is_equal(const json_t *a, const json_t *b)
{
    enum { FLAGS = JSON_COMPACT | JSON_SORT_KEYS | JSON_ENCODE_ANY | JSON_REAL_PRECISION(9) };
    char *x = json_dumps(a, FLAGS), *y = json_dumps(b, FLAGS);
    const bool equal = x && y && !strcmp(x, y);
    free(x);
    free(y);
    return equal;
}

/* The same policy, model, task as the file has it, seed and settings. */
static bool is_same(const json_t *line, const run *r, int model, int policy, int task)
{
    const dms_pareto *p = r->pareto;
    const char *name = json_string_value(json_object_get(line, "policy"));
    const char *of = json_string_value(json_object_get(line, "model"));
    const json_int_t seed = json_integer_value(json_object_get(line, "seed"));
    return name && of && !strcmp(name, p->policies[policy].name) && !strcmp(of, p->models[model]) &&
           (uint64_t)seed == p->tasks[task].seed &&
           is_equal(json_object_get(line, "spec"), p->task_trees[task]) &&
           is_equal(json_object_get(line, "settings"), r->settings);
}

static bool is_wanted(const run *r, int model, int policy, int task)
{
    if (model && r->pareto->policies[policy].kind != DMS_POLICY_DMS)
        return false;
    for (size_t i = 0; i < json_array_size(r->done); i++)
        if (is_same(json_array_get(r->done, i), r, model, policy, task))
            return false;
    return true;
}

static int64_t count_wanted(const run *r, int model, int task)
{
    int64_t n = 0;
    for (int i = 0; i < r->pareto->n_policies; i++)
        n += is_wanted(r, model, i, task);
    return n;
}

/* ---- running -------------------------------------------------------------------------------- */

static void tell(run *r, const dms_result *x)
{
    char line[256];
    if (!r->say)
        return;
    snprintf(line, sizeof(line),
             "%" PRId64 "/%" PRId64 "  %s on %s: %s %.4f +- %.4f, reads %.3f, peak %.3f, %.1f s",
             ++r->finished, r->total, x->policy, x->task, x->metrics[0].name, x->metrics[0].value,
             x->metrics[0].error, dms_cost_total_read_ratio(&x->cost),
             dms_cost_peak_ratio(&x->cost), x->cost.prefill_s + x->cost.decode_s);
    r->say(r->context, line);
}

static dms_status run_one(run *r, dms_runner *runner, const dms_pair *pair, const int at[3])
{
    const dms_pareto *p = r->pareto;
    const int model = at[0], policy = at[1], task = at[2];
    dms_result x;
    json_t *line = NULL;
    DMS_TRY(dms_runner_run(&x, runner, &p->policies[policy], NULL));
    x.model = p->models[model];
    x.task = p->task_names[task];
    x.device = r->device->name;
    x.dtype = pair->teacher->matrix_type == DMS_BF16 ? "bf16" : "f32";
    DMS_TRY(dms_result_to_json(&line, &x));
    json_object_set(line, "spec", (json_t *)p->task_trees[task]);
    json_object_set(line, "settings", r->settings);
    const dms_status status = dms_result_print(r->results, line);
    json_decref(line);
    tell(r, &x);
    return status;
}

static dms_status run_task(run *r, const dms_pair *pair, int model, int task)
{
    dms_runner *runner = NULL;
    dms_status status = DMS_OK;
    if (!count_wanted(r, model, task))
        return DMS_OK;
    DMS_TRY(dms_runner_open(&runner, &r->pareto->tasks[task], pair));
    for (int i = 0; i < r->pareto->n_policies && !status; i++)
        if (is_wanted(r, model, i, task))
            status = run_one(r, runner, pair, (int[]){model, i, task});
    dms_runner_close(runner);
    return status;
}

static dms_status longest(int64_t *out, const dms_pareto *p)
{
    *out = 0;
    for (int i = 0; i < p->n_tasks; i++) {
        int64_t n;
        DMS_TRY(dms_task_positions(&n, &p->tasks[i]));
        if (!n) { /* its items decide: what the model can take */
            *out = 0;
            return DMS_OK;
        }
        *out = n > *out ? n : *out;
    }
    return DMS_OK;
}

static dms_status run_model(run *r, int model)
{
    const dms_pareto *p = r->pareto;
    dms_pair pair = {0};
    dms_status status = DMS_OK;
    int64_t wanted = 0;
    dms_pair_options o = {.model = p->models[model],
                          .teacher = p->teacher,
                          .device = r->device,
                          .compute = p->compute,
                          .shift = p->shift};
    for (int i = 0; i < p->n_tasks; i++)
        wanted += count_wanted(r, model, i);
    if (!wanted)
        return DMS_OK;
    DMS_TRY(longest(&o.positions, p));
    DMS_TRY(dms_pair_open(&pair, &o));
    for (int i = 0; i < p->n_tasks && !status; i++)
        status = run_task(r, &pair, model, i);
    dms_pair_close(&pair);
    return status;
}

dms_status dms_pareto_run(const dms_pareto *p, dms_device *device,
                          void (*say)(void *context, const char *line), void *context)
{
    run r = {.pareto = p, .device = device, .say = say, .context = context};
    dms_status status = take_settings(&r);
    if (!status)
        status = open_results(&r);
    for (int m = 0; m < p->n_models && !status; m++)
        for (int i = 0; i < p->n_tasks; i++)
            r.total += count_wanted(&r, m, i);
    for (int m = 0; m < p->n_models && !status; m++)
        status = run_model(&r, m);
    if (r.results && fclose(r.results) && !status)
        status = dms_fail(DMS_ERR_IO, "%s/results.jsonl could not be written", p->output);
    json_decref(r.done);
    json_decref(r.settings);
    return status;
}
