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
    char path[DMS_PATH_SIZE + 32];
};

/* The step a line is of, or -1 for a line that is cut off or not ours. */
static int64_t step_of(const char *line, bool *is_eval)
{
    json_t *tree = json_loads(line, 0, NULL);
    const json_t *step = json_object_get(tree, "step");
    const int64_t n = json_is_integer(step) ? json_integer_value(step) : -1;
    *is_eval = json_object_get(tree, "eval") != NULL;
    json_decref(tree);
    return n;
}

static void copy_before(FILE *out, FILE *in, int64_t step, int64_t *last_eval)
{
    char *line = NULL;
    size_t size = 0;
    bool is_eval = false;
    while (getline(&line, &size, in) > 0) {
        const int64_t n = step_of(line, &is_eval);
        if (n < 0 || n >= step)
            continue;
        fputs(line, out);
        *last_eval = is_eval ? n : *last_eval;
    }
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
        copy_before(out, in, step, &m->last_eval);
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
    m->last_eval = -1;
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
