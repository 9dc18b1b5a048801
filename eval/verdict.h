/* From answers to metrics: what each kind of item takes for right. */
#ifndef DMS_VERDICT_H
#define DMS_VERDICT_H

#include "eval/jobs.h"
#include "eval/task.h"
#include "tasks/code.h"
#include "tasks/pass.h"

/* Running means of a task; the caller fills in the first four. */
typedef struct {
    const dms_tokenizer *tokenizer;
    int samples;          /* answers an item */
    FILE *log;            /* a JSON line an answer, or NULL */
    dms_sandbox *sandbox; /* for items of code */
    dms_mean means[DMS_MAX_METRICS];
    const char *names[DMS_MAX_METRICS];
    int n;
} dms_verdicts;

/* Judges one item by its jobs: those of its choices, or its samples. Errors: those of the rules;
 * DMS_ERR_IO, DMS_ERR_NOMEM. */
dms_status dms_verdicts_add(dms_verdicts *v, const dms_item *item, const dms_job *jobs,
                            int64_t n_jobs);
/* Writes the metrics and returns how many there are. */
int dms_verdicts_metrics(dms_metric *out, const dms_verdicts *v);

#endif
