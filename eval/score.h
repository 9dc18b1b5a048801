/* Scores text under several eviction policies in one sweep of masked passes, beside the dense
 * teacher. */
#ifndef DMS_SCORE_H
#define DMS_SCORE_H

#include "eval/tally.h"
#include "infer/policy.h"
#include "model/dms.h"

typedef struct dms_scorer dms_scorer;

typedef struct {
    const dms_model *student;   /* retrofitted; or the teacher itself where no policy is "dms" */
    const dms_model *teacher;   /* the original: run without gate, and evicted by the others */
    int64_t batch, context;     /* B, T of a pass */
    int64_t sequences;          /* the most that will be scored between two resets */
    const dms_policy *policies; /* of those that are the law's alone: dms_policy_is_law */
    int n_policies;
    uint64_t seed; /* of random policies */
} dms_score_options;

typedef struct {
    dms_scores scores;
    double decision_cr; /* 1/(1 - fraction evicted) */
    double cache_cr;    /* tokens/live slots at the end of the sequences: keys that the last query
                         * sees, mean over sequences, layers and KV heads */
    double read_ratio;  /* visible keys of all queries/those of dense */
    int64_t window;     /* of the law it ran under; -1: dense */
} dms_score_report;

/* Allocates everything; the models are borrowed, the policies copied. Errors: DMS_ERR_ARG (a
 * policy that the models cannot run, a context longer than their positions), DMS_ERR_NOMEM. */
dms_status dms_scorer_open(dms_scorer **out, const dms_score_options *options);
/* NULL is legal. */
void dms_scorer_close(dms_scorer *s);

/* Scores n <= B more sequences. ids, next: host, [n, T]; next[t] < 0 where it is not known.
 * Allocates nothing. DMS_ERR_ARG beyond options.sequences. */
dms_status dms_scorer_add(dms_scorer *s, const int32_t *ids, const int32_t *next, int64_t n);
/* Forgets what was scored. */
void dms_scorer_reset(dms_scorer *s);
/* Policy i, over everything added since the last reset; zeros where nothing was counted. */
dms_score_report dms_scorer_report(dms_scorer *s, int i);

/* Where a sweep's text comes from, and who watches it. */
typedef struct {
    /* Sequences first .. first + n - 1: ids, next [n, T], as dms_scorer_add takes them. */
    dms_status (*read)(void *context, int64_t first, int64_t n, int32_t *ids, int32_t *next);
    void (*progress)(void *context, int64_t done, int64_t total); /* may be NULL */
    void *context;
    int64_t sequences;
} dms_score_feed;
/* Resets, then adds all sequences of the feed in order. */
dms_status dms_scorer_sweep(dms_scorer *s, const dms_score_feed *feed);

#endif
