/* Scores of several samples a prompt, and means with their standard errors. */
#ifndef DMS_PASS_H
#define DMS_PASS_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/status.h"

/* pass@k of n samples of which c are right: 1 - C(n-c, k)/C(n, k) (arXiv:2107.03374), as a product
 * without large numbers; pass@1 = c/n. 1 <= k <= n, 0 <= c <= n; else NaN. */
double dms_pass_at(int64_t n, int64_t c, int64_t k);

/* maj@n: `answers` are normalised (dms_answer_normalise), NULL for a sample without an answer,
 * which has no vote. Where several answers lead, the fraction of them that are right; 0 without
 * votes. right[i] is the verdict of answer i; equal answers share that of the first. Errors:
 * DMS_ERR_NOMEM. */
dms_status dms_majority(double *score, const char *const *answers, const bool *right, int64_t n);

/* Mean and the standard error of the mean, sqrt(sum (x - mean)^2/(n - 1)/n), in one pass; the error
 * is 0 for fewer than two values. */
typedef struct {
    int64_t n;
    double mean;
    double squares; /* sum of squared differences from the mean */
} dms_mean;
void dms_mean_add(dms_mean *m, double value);
double dms_mean_error(const dms_mean *m);

/* The mean over groups weighted by their items, which is the mean over items, and its standard
 * error from the variances within the groups, pooled as lm-evaluation-harness does:
 * sqrt(sum s_i^2 (n_i - 1)/(sum n_i - groups)/sum n_i), s_i^2 the sample variance of group i.
 * Groups of one item have none; 0 where there is no other. */
typedef struct {
    double mean, error;
    int64_t n;
} dms_pooled;
dms_pooled dms_mean_pool(const dms_mean *groups, int64_t n);

#endif
