#include "tasks/pass.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

double dms_pass_at(int64_t n, int64_t c, int64_t k)
{
    if (k < 1 || k > n || c < 0 || c > n)
        return NAN;
    if (k == 1)
        return (double)c / (double)n;
    if (n - c < k)
        return 1;
    /* C(n-c, k)/C(n, k) is a product of k ratios, and also of c; the shorter one. */
    double misses = 1;
    if (k <= c)
        for (int64_t i = 0; i < k; i++)
            misses *= (double)(n - c - i) / (double)(n - i);
    else
        for (int64_t i = 0; i < c; i++)
            misses *= (double)(n - k - i) / (double)(n - i);
    return 1 - misses;
}

typedef struct {
    const char *answer;
    int64_t index;
} vote;

static int by_answer(const void *a, const void *b)
{
    const vote *x = a, *y = b;
    const int order = strcmp(x->answer, y->answer);
    return order ? order : (x->index > y->index) - (x->index < y->index);
}

dms_status dms_majority(double *score, const char *const *answers, const bool *right, int64_t n)
{
    int64_t votes = 0, most = 0, leaders = 0, winners = 0;
    vote *all = malloc((size_t)n * sizeof(*all) + 1);
    if (!all)
        return dms_fail(DMS_ERR_NOMEM, "no memory to count the votes of %lld answers",
                        (long long)n);
    for (int64_t i = 0; i < n; i++)
        if (answers[i])
            all[votes++] = (vote){answers[i], i};
    qsort(all, (size_t)votes, sizeof(*all), by_answer);
    for (int64_t i = 0, end; i < votes; i = end) {
        end = i + 1;
        while (end < votes && !strcmp(all[i].answer, all[end].answer))
            end++;
        if (end - i > most) {
            most = end - i;
            leaders = winners = 0;
        }
        if (end - i == most) {
            leaders++;
            winners += right[all[i].index];
        }
    }
    free(all);
    *score = leaders ? (double)winners / (double)leaders : 0;
    return DMS_OK;
}

void dms_mean_add(dms_mean *m, double value)
{
    const double off = value - m->mean; /* Welford's recurrence */
    m->n++;
    m->mean += off / (double)m->n;
    m->squares += off * (value - m->mean);
}

double dms_mean_error(const dms_mean *m)
{
    return m->n < 2 ? 0 : sqrt(m->squares / (double)(m->n - 1) / (double)m->n);
}

dms_pooled dms_mean_pool(const dms_mean *groups, int64_t n)
{
    dms_pooled p = {0};
    double squares = 0, sum = 0;
    int64_t filled = 0;
    for (int64_t i = 0; i < n; i++) {
        squares += groups[i].squares;
        sum += groups[i].mean * (double)groups[i].n;
        p.n += groups[i].n;
        filled += groups[i].n > 0;
    }
    p.mean = p.n ? sum / (double)p.n : 0;
    if (p.n > filled)
        p.error = sqrt(squares / (double)(p.n - filled) / (double)p.n);
    return p;
}
