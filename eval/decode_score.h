/* Scores text over the freed cache, the way every policy can be scored: the first part of a context
 * is a prompt, the policy cuts, and the rest is fed token by token and scored. */
#ifndef DMS_DECODE_SCORE_H
#define DMS_DECODE_SCORE_H

#include "eval/cost.h"
#include "eval/score.h"

typedef struct dms_decode_scorer dms_decode_scorer;

typedef struct {
    const dms_model *student; /* retrofitted, runs "dms"; or the teacher itself */
    const dms_model *teacher; /* the original, which all other policies evict */
    int64_t context, prompt;  /* T tokens, of which the first P (1 to T - 1) are the prompt */
    int64_t sequences;        /* contexts that are scored */
    int batch;                /* contexts decoded side by side */
    dms_dtype kv_dtype;
    uint64_t seed; /* of random policies */
} dms_decode_score_options;

/* Allocates, reads the text and runs the teacher over it. feed->sequences is at least
 * options->sequences. The models are borrowed; the feed is read in this call only. Errors:
 * DMS_ERR_ARG (a context beyond the models' positions, no token to predict), DMS_ERR_NOMEM, those
 * of the feed. */
dms_status dms_decode_scorer_open(dms_decode_scorer **out, const dms_decode_score_options *options,
                                  const dms_score_feed *feed);
/* NULL is legal. */
void dms_decode_scorer_close(dms_decode_scorer *s);

/* Scores one policy; a fraction is taken of the prompt. Peaks in *cost are of one context: of
 * decode the mean over those side by side, of prefill that of a context alone in the cache.
 * progress may be NULL: it is told of the steps done. Errors: what dms_session_open and the policy
 * refuse. */
dms_status dms_decode_scorer_run(dms_scores *scores, dms_run_cost *cost, dms_decode_scorer *s,
                                 const dms_policy *policy,
                                 void (*progress)(void *context, int64_t done, int64_t total),
                                 void *context);

#endif
