/* A benchmark's items, run on a model under a cache policy and judged: from prompts to metrics. */
#ifndef DMS_TASK_H
#define DMS_TASK_H

#include "eval/cost.h"
#include "eval/pair.h"
#include "infer/chat.h"
#include "infer/sampler.h"
#include "tasks/items.h"

typedef struct {
    const dms_pair *pair;     /* borrowed; policy "dms" runs the student, all others the teacher */
    const dms_policy *policy; /* borrowed */
    uint64_t seed;            /* of random policies */
    const dms_chat *chat;     /* prompts are rendered as a user's turn; NULL: plain text, after
                                 begin-of-text where the family has one */
    int batch;                /* sequences side by side */
    int samples;              /* answers an item, >= 1; only those that are drawn */
    dms_sampler_options sampling;
    int64_t max_new; /* of items that do not say */
    bool run_code;   /* code of answers may be executed; else items of that kind are refused */
    FILE *log;       /* a JSON line an answer: id, output, verdict; NULL: none */
    void (*progress)(void *context, int64_t done, int64_t total); /* may be NULL */
    void *context;
} dms_task_options;

typedef struct {
    const char *name;    /* a constant: "acc", "match", "exact", ... */
    double value, error; /* mean over items, in [0, 1], and its standard error */
} dms_metric;

enum { DMS_MAX_METRICS = 6 };

typedef struct {
    dms_metric metrics[DMS_MAX_METRICS]; /* the first is the task's score */
    int n_metrics;
    int64_t items;
    int64_t truncated; /* prompts cut from the left to fit the model's context */
    dms_run_cost cost; /* peaks are of all sequences at once */
} dms_task_result;

/* Where items come from: *item becomes the next one, valid until the next call, NULL after the
 * last. */
typedef struct {
    dms_status (*next)(void *context, const dms_item **item);
    void *context;
} dms_item_feed;

/* Items must be of one kind. Metrics: match: "match". choice: "acc", and "acc_norm" where lengths
 * are to divide. extract: "exact" of the first rule, "flexible" of the second; code: "pass"; with
 * n > 1 samples these are pass@1, and "pass@n" and (extract) "maj@n" come after them. Errors:
 * DMS_ERR_ARG (no items, kinds mixed, code without run_code), those of reading, of tokenising and
 * of dms_jobs_run. */
dms_status dms_task_run(dms_task_result *out, const dms_task_options *options,
                        const dms_item_feed *feed);

#endif
