#include "eval/tally.h"

#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

dms_status dms_tally_open(dms_tally *out, int64_t positions, int64_t sequences)
{
    dms_tally t = {.positions = positions, .limit = sequences};
    t.kl = malloc((size_t)positions * sizeof(*t.kl));
    t.means = malloc((size_t)sequences * sizeof(*t.means));
    if (!t.kl || !t.means) {
        dms_tally_close(&t);
        return dms_fail(DMS_ERR_NOMEM, "no memory for the scores of %" PRId64 " tokens", positions);
    }
    *out = t;
    return DMS_OK;
}

void dms_tally_close(dms_tally *t)
{
    free(t->kl);
    free(t->means);
    *t = (dms_tally){0};
}

void dms_tally_reset(dms_tally *t)
{
    memset(t->sums, 0, sizeof(t->sums));
    t->counted = t->predicted = t->sequences = 0;
}

void dms_tally_add(dms_tally *t, const dms_tally_rows *rows)
{
    double sums[DMS_N_SCORES] = {0};
    int64_t counted = 0, predicted = 0;
    for (int64_t i = 0; i < rows->n * rows->stride; i += rows->stride) {
        if (rows->weight[i] == 0)
            continue;
        const bool known = rows->next[i] >= 0;
        for (int k = 0; k < DMS_N_SCORES; k++)
            sums[k] += k > DMS_SCORE_NLL_TEACHER || known ? (double)rows->scores[k][i] : 0;
        t->kl[t->counted + counted++] = rows->scores[DMS_SCORE_KL_FORWARD][i];
        predicted += known;
    }
    const double c = counted ? (double)counted : 1, p = predicted ? (double)predicted : 1;
    double *means = t->means[t->sequences++];
    means[0] = sums[DMS_SCORE_NLL] / p;
    means[1] = sums[DMS_SCORE_KL_FORWARD] / c;
    means[2] = sums[DMS_SCORE_AGREE] / c;
    for (int k = 0; k < DMS_N_SCORES; k++)
        t->sums[k] += sums[k];
    t->counted += counted;
    t->predicted += predicted;
}

static int by_value(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static double quantile(const float *sorted, int64_t n, double p)
{
    const int64_t rank = (int64_t)ceil(p * (double)n);
    return (double)sorted[rank > 0 ? rank - 1 : 0];
}

/* Of the mean of column `which` over sequences. */
static double standard_error(const dms_tally *t, int which)
{
    const double n = (double)t->sequences;
    double mean = 0, squares = 0;
    if (t->sequences < 2)
        return 0;
    for (int64_t i = 0; i < t->sequences; i++)
        mean += t->means[i][which] / n;
    for (int64_t i = 0; i < t->sequences; i++)
        squares += (t->means[i][which] - mean) * (t->means[i][which] - mean);
    return sqrt(squares / (n - 1) / n);
}

dms_scores dms_tally_report(dms_tally *t)
{
    const int64_t n = t->counted;
    const double c = (double)n, p = t->predicted ? (double)t->predicted : 1;
    if (!n)
        return (dms_scores){0};
    qsort(t->kl, (size_t)n, sizeof(*t->kl), by_value);
    return (dms_scores){.nll = t->sums[DMS_SCORE_NLL] / p,
                        .nll_teacher = t->sums[DMS_SCORE_NLL_TEACHER] / p,
                        .kl_forward = t->sums[DMS_SCORE_KL_FORWARD] / c,
                        .kl_median = quantile(t->kl, n, 0.5),
                        .kl_p90 = quantile(t->kl, n, 0.9),
                        .kl_p99 = quantile(t->kl, n, 0.99),
                        .kl_p999 = quantile(t->kl, n, 0.999),
                        .kl_max = (double)t->kl[n - 1],
                        .kl_reverse = t->sums[DMS_SCORE_KL_REVERSE] / c,
                        .agreement = t->sums[DMS_SCORE_AGREE] / c,
                        .nll_se = standard_error(t, 0),
                        .kl_forward_se = standard_error(t, 1),
                        .agreement_se = standard_error(t, 2),
                        .counted = n,
                        .predicted = t->predicted,
                        .sequences = t->sequences};
}
