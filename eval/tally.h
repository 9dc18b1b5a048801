/* Sums the scores of single predictions into means, quantiles and standard errors. */
#ifndef DMS_TALLY_H
#define DMS_TALLY_H

#include <stdint.h>

#include "kernels/status.h"

/* Scores of one row, in the order of dms_score_out. */
enum {
    DMS_SCORE_NLL,
    DMS_SCORE_NLL_TEACHER,
    DMS_SCORE_KL_FORWARD,
    DMS_SCORE_KL_REVERSE,
    DMS_SCORE_AGREE,
    DMS_N_SCORES
};

/* What was done to a text, in nats. Counted: positions whose input is not end-of-text (method.md
 * section 3); nll besides wants a known next token. Quantiles are the nearest rank. Standard errors
 * are those of the mean over sequences: the deviation of the sequences' means (n - 1) over the root
 * of their number, 0 for a single sequence. */
typedef struct {
    double nll, nll_teacher; /* means over `predicted`; perplexity is exp of them */
    double kl_forward;       /* mean KL(teacher||student) over `counted` */
    double kl_median, kl_p90, kl_p99, kl_p999, kl_max; /* of KL(teacher||student) */
    double kl_reverse;                                 /* mean KL(student||teacher) */
    double agreement; /* fraction of `counted` with the same most likely token */
    double nll_se, kl_forward_se, agreement_se;
    int64_t counted, predicted, sequences;
} dms_scores;

typedef struct {
    double sums[DMS_N_SCORES];
    float *kl;                /* [positions], KL(teacher||student) of every counted position */
    double (*means)[3];       /* [sequences]: nll, KL, agreement of each */
    int64_t positions, limit; /* of the two arrays */
    int64_t counted, predicted, sequences;
} dms_tally;

/* For at most `positions` positions in `sequences` sequences. The caller ends it with
 * dms_tally_close, which zeroes it. DMS_ERR_NOMEM. */
dms_status dms_tally_open(dms_tally *out, int64_t positions, int64_t sequences);
void dms_tally_close(dms_tally *t);
void dms_tally_reset(dms_tally *t);

/* The rows of one sequence: row i of its n lies at i*stride of each of these arrays. */
typedef struct {
    const float *scores[DMS_N_SCORES];
    const float *weight; /* 0: not counted */
    const int32_t *next; /* < 0: not known */
    int64_t n, stride;
} dms_tally_rows;
void dms_tally_add(dms_tally *t, const dms_tally_rows *rows);

/* Over all that was added; zeros where nothing was counted. Sorts t->kl. */
dms_scores dms_tally_report(dms_tally *t);

#endif
