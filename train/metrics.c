#include "train/metrics.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

struct dms_metrics {
    FILE *out;
    char path[DMS_PATH_SIZE + 32];
};

/* The step a line is of, or -1 for a line that is cut off or not ours. */
static int64_t step_of(const char *line)
{
    json_t *tree = json_loads(line, 0, NULL);
    const json_t *step = json_object_get(tree, "step");
    const int64_t n = json_is_integer(step) ? json_integer_value(step) : -1;
    json_decref(tree);
    return n;
}

static void copy_before(FILE *out, FILE *in, int64_t step)
{
    char *line = NULL;
    size_t size = 0;
    while (getline(&line, &size, in) > 0) {
        const int64_t n = step_of(line);
        if (n >= 0 && n < step)
            fputs(line, out);
    }
    free(line);
}

/* Keeps the lines of steps before `step`, through a temporary file. */
static dms_status truncate_log(const char *path, int64_t step)
{
    char temporary[DMS_PATH_SIZE + 40];
    FILE *in = fopen(path, "r");
    if (!in)
        return DMS_OK;
    snprintf(temporary, sizeof(temporary), "%s.tmp", path);
    FILE *out = fopen(temporary, "w");
    if (out)
        copy_before(out, in, step);
    fclose(in);
    if (!out || fclose(out) || rename(temporary, path))
        return dms_fail(DMS_ERR_IO, "%s cannot be written: %s", path, strerror(errno));
    return DMS_OK;
}

dms_status dms_metrics_open(dms_metrics **out, const char *folder, int64_t step)
{
    dms_metrics *m = calloc(1, sizeof(*m));
    if (!m)
        return dms_fail(DMS_ERR_NOMEM, "no memory for the metrics");
    snprintf(m->path, sizeof(m->path), "%s/metrics.jsonl", folder);
    dms_status status = truncate_log(m->path, step);
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

dms_status dms_metrics_step(dms_metrics *m, const dms_step_report *r, double lr)
{
    fprintf(m->out,
            "{\"step\": %" PRId64 ", \"loss\": %.9g, \"kl\": %.9g, \"compress\": %.9g, "
            "\"target\": %.6g, \"evicted\": %.6g, \"target_cr\": %.6g, \"cr\": %.6g, "
            "\"keep\": %.6g, \"lr\": %.6g, \"grad_norm\": %.9g, \"tokens\": %" PRId64 ", "
            "\"seconds\": %.4f}\n",
            r->step, r->loss, r->losses.kl, r->losses.compress, (double)r->stage.target,
            r->losses.evicted, r->stage.cr, 1 / (1 - r->losses.evicted + 1e-12),
            (double)r->stage.keep, lr, r->grad_norm, r->tokens, r->seconds);
    return flush(m);
}

dms_status dms_metrics_eval(dms_metrics *m, int64_t step, const dms_eval_report *r)
{
    fprintf(m->out,
            "{\"step\": %" PRId64 ", \"eval\": {\"nll\": %.9g, \"nll_teacher\": %.9g, "
            "\"kl_forward\": %.9g, \"kl_reverse\": %.9g, \"agreement\": %.6g, "
            "\"decision_cr\": %.6g, \"cache_cr\": %.6g, \"read_ratio\": %.6g, "
            "\"positions\": %" PRId64 "}}\n",
            step, r->nll, r->nll_teacher, r->kl_forward, r->kl_reverse, r->agreement,
            r->decision_cr, r->cache_cr, r->read_ratio, r->positions);
    return flush(m);
}
