/* One result: a policy on a task, its metrics and what they cost, as one line of JSON. */
#ifndef DMS_RESULT_H
#define DMS_RESULT_H

#include <jansson.h>

#include "eval/tally.h"
#include "eval/task.h"

typedef struct {
    const char *policy, *model, *task; /* as the user named them */
    dms_metric metrics[DMS_MAX_METRICS];
    int n_metrics; /* the first is what is plotted */
    bool lower;    /* smaller values of it are better */
    int64_t items; /* contexts or items */
    int64_t truncated;
    dms_run_cost cost;
    const char *dtype, *device; /* "bf16", "cpu" */
    const char *style;          /* template, begin-of-text: how prompts were made */
    uint64_t seed;
} dms_result;

/* A new object; what is not finite is null. DMS_ERR_NOMEM. Keys: policy, model, task, metrics (name
 * to {value, error}), better, items, truncated, kv_reads, dense_reads, bound_reads, read_ratio,
 * total_read_ratio (with the bounds), kv_peak_tokens, dense_peak_tokens, peak_ratio, kv_peak_bytes,
 * kv_prefill_peak_tokens, kv_prefill_peak_bytes, prefill_tok_s, decode_tok_s, seconds, dtype,
 * device, style, seed. */
dms_status dms_result_to_json(json_t **out, const dms_result *r);
/* The line of an object and a line break. DMS_ERR_IO. */
dms_status dms_result_print(FILE *file, const json_t *line);

/* The metrics of scored text, KL first or nll first; returns how many. */
int dms_result_metrics(dms_metric *out, const dms_scores *scores, bool kld);

#endif
