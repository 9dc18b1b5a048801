#include "train/metrics.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct dms_metrics {
    FILE *out;
    int64_t last_eval; /* step of the last evaluation found at the opening, -1 for none */
    int64_t last_task; /* the same of tasks, and which there were after it */
    json_t *tasks;     /* object, by name; NULL: none */
    char path[DMS_PATH_SIZE + 32];
};

static void note_task(dms_metrics *m, int64_t step, json_t *name)
{
    if (!json_is_string(name))
        return;
    if (step != m->last_task) {
        json_decref(m->tasks);
        m->tasks = json_object();
        m->last_task = step;
    }
    json_object_set_new(m->tasks, json_string_value(name), json_true());
}

/* Whether a line is of a step before `step`: not one that is cut off or not ours. */
static bool is_kept(dms_metrics *m, const char *line, int64_t step)
{
    json_t *tree = json_loads(line, 0, NULL);
    const json_t *number = json_object_get(tree, "step");
    const int64_t n = json_is_integer(number) ? json_integer_value(number) : -1;
    const bool kept = n >= 0 && n < step;
    if (kept && json_object_get(tree, "eval"))
        m->last_eval = n;
    if (kept)
        note_task(m, n, json_object_get(tree, "task"));
    json_decref(tree);
    return kept;
}

static void copy_before(dms_metrics *m, FILE *out, FILE *in, int64_t step)
{
    char *line = NULL;
    size_t size = 0;
    while (getline(&line, &size, in) > 0)
        if (is_kept(m, line, step))
            fputs(line, out);
    free(line);
}

/* Keeps the lines of steps before `step`, through a temporary file. */
static dms_status truncate_log(dms_metrics *m, int64_t step)
{
    char temporary[DMS_PATH_SIZE + 40];
    FILE *in = fopen(m->path, "r");
    if (!in && errno == ENOENT)
        return DMS_OK;
    if (!in)
        return dms_fail(DMS_ERR_IO, "%s cannot be read: %s", m->path, strerror(errno));
    snprintf(temporary, sizeof(temporary), "%s.tmp", m->path);
    FILE *out = fopen(temporary, "w");
    if (out)
        copy_before(m, out, in, step);
    const bool failed = ferror(in) || !out || ferror(out);
    fclose(in);
    if ((out && fclose(out)) || failed || rename(temporary, m->path)) {
        unlink(temporary);
        return dms_fail(DMS_ERR_IO, "%s cannot be written: %s", m->path, strerror(errno));
    }
    return DMS_OK;
}

dms_status dms_metrics_open(dms_metrics **out, const char *folder, int64_t step)
{
    dms_metrics *m = calloc(1, sizeof(*m));
    if (!m)
        return dms_fail(DMS_ERR_NOMEM, "no memory for the metrics");
    snprintf(m->path, sizeof(m->path), "%s/metrics.jsonl", folder);
    m->last_eval = m->last_task = -1;
    dms_status status = truncate_log(m, step);
    if (!status) {
        m->out = fopen(m->path, "a");
        if (!m->out)
            status = dms_fail(DMS_ERR_IO, "%s cannot be written: %s", m->path, strerror(errno));
    }
    if (status) {
        dms_metrics_close(m);
        return status;
    }
    *out = m;
    return DMS_OK;
}

void dms_metrics_close(dms_metrics *m)
{
    if (!m)
        return;
    if (m->out)
        fclose(m->out);
    json_decref(m->tasks);
    free(m);
}

static dms_status flush(dms_metrics *m)
{
    if (fflush(m->out) || ferror(m->out))
        return dms_fail(DMS_ERR_IO,
                        "%s cannot be written: %s; make room and start again: the run "
                        "resumes",
                        m->path, strerror(errno));
    return DMS_OK;
}

bool dms_metrics_evaluated(const dms_metrics *m, int64_t step)
{
    return m->last_eval == step;
}

bool dms_metrics_has_task(const dms_metrics *m, int64_t step, const char *name)
{
    return m->last_task == step && json_object_get(m->tasks, name);
}

/* , "name": value; JSON has no infinity and no NaN: null stands for them. */
static void put(const dms_metrics *m, const char *name, double value)
{
    if (isfinite(value))
        fprintf(m->out, ", \"%s\": %.9g", name, value);
    else
        fprintf(m->out, ", \"%s\": null", name);
}

dms_status dms_metrics_step(dms_metrics *m, const dms_step_report *r, double lr)
{
    fprintf(m->out, "{\"step\": %" PRId64, r->step);
    put(m, "loss", r->loss);
    put(m, "kl", r->losses.kl);
    put(m, "compress", r->losses.compress);
    put(m, "target", (double)r->stage.target);
    put(m, "evicted", r->losses.evicted);
    put(m, "target_cr", r->stage.cr);
    put(m, "cr", 1 / (1 - r->losses.evicted));
    put(m, "keep", (double)r->stage.keep);
    put(m, "lr", lr);
    put(m, "grad_norm", r->grad_norm);
    fprintf(m->out, ", \"tokens\": %" PRId64, r->tokens);
    put(m, "seconds", r->seconds);
    fputs("}\n", m->out);
    return flush(m);
}

dms_status dms_metrics_eval(dms_metrics *m, int64_t step, const dms_eval_report *r)
{
    fprintf(m->out, "{\"step\": %" PRId64 ", \"eval\": {\"positions\": %" PRId64, step,
            r->positions);
    put(m, "nll", r->nll);
    put(m, "nll_teacher", r->nll_teacher);
    put(m, "kl_forward", r->kl_forward);
    put(m, "kl_reverse", r->kl_reverse);
    put(m, "agreement", r->agreement);
    put(m, "decision_cr", r->decision_cr);
    put(m, "cache_cr", r->cache_cr);
    put(m, "read_ratio", r->read_ratio);
    fputs("}}\n", m->out);
    return flush(m);
}

static json_t *real(double x)
{
    return isfinite(x) ? json_real(x) : json_null();
}

dms_status dms_task_report_print(FILE *out, int64_t step, const char *name,
                                 const dms_task_report *r)
{
    json_t *scores = json_object();
    for (int i = 0; i < r->n_scores; i++)
        json_object_set_new(scores, r->scores[i].name,
                            json_pack("{so so}", "value", real(r->scores[i].value), "error",
                                      real(r->scores[i].error)));
    json_t *line =
        json_pack("{sI ss so sI so so so}", "step", (json_int_t)step, "task", name, "metrics",
                  scores, "items", (json_int_t)r->items, "read_ratio", real(r->read_ratio),
                  "peak_ratio", real(r->peak_ratio), "seconds", real(r->seconds));
    if (!line)
        return dms_fail(DMS_ERR_NOMEM, "no memory for the result of task %s", name);
    json_dumpf(line, out, JSON_REAL_PRECISION(9));
    json_decref(line);
    fputc('\n', out);
    return DMS_OK;
}

dms_status dms_metrics_task(dms_metrics *m, int64_t step, const char *name,
                            const dms_task_report *report)
{
    DMS_TRY(dms_task_report_print(m->out, step, name, report));
    return flush(m);
}
