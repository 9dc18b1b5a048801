/* From answers to metrics: what each kind of item takes for right. */
#ifndef DMS_VERDICT_H
#define DMS_VERDICT_H

#include "eval/jobs.h"
#include "eval/task.h"
#include "tasks/code.h"
#include "tasks/pass.h"

/* One item's figure of one metric, and the group that its score is averaged with. */
typedef struct {
    int metric;
    const char *group; /* of the item; "" where it has none */
    double value;
} dms_verdict;

/* What was found of a task's items; the caller fills in the first four fields, and ends it with
 * dms_verdicts_close. The items, whose groups it borrows, must live until then. */
typedef struct {
    const dms_tokenizer *tokenizer;
    int samples;          /* answers an item */
    FILE *log;            /* a JSON line an answer, or NULL */
    dms_sandbox *sandbox; /* for items of code */
    const char *names[DMS_MAX_METRICS];
    int n; /* metrics */
    dms_verdict *all;
    int64_t n_all, room;
} dms_verdicts;

/* Judges one item by its jobs: those of its choices, or its samples. Errors: those of the rules;
 * DMS_ERR_IO, DMS_ERR_NOMEM. */
dms_status dms_verdicts_add(dms_verdicts *v, const dms_item *item, const dms_job *jobs,
                            int64_t n_jobs);
/* out: [DMS_MAX_METRICS], of which v->n are written: means over items, with the error that is
 * pooled over the groups (dms_mean_pool). Sorts v->all. DMS_ERR_NOMEM. */
dms_status dms_verdicts_metrics(dms_metric *out, dms_verdicts *v);
void dms_verdicts_close(dms_verdicts *v);

#endif
