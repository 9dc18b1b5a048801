/* Candidates are a heap ordered by weight, so that only those the filters keep are ever sorted. */
#include "infer/sampler.h"

#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

#include "kernels/rng.h"

struct dms_sampler {
    dms_sampler_options options;
    int64_t vocab;
    float *weight; /* [V], exp((logit - largest)/temperature) */
    int32_t *heap; /* [V], token ids; what was popped lies, in order, at the end */
};

dms_sampler_options dms_sampler_defaults(void)
{
    return (dms_sampler_options){.top_p = 1};
}

static dms_status check(const dms_sampler_options *o)
{
    if (!(o->temperature >= 0) || isinf(o->temperature))
        return dms_fail(DMS_ERR_ARG, "temperature is %g, expected 0 or more",
                        (double)o->temperature);
    if (o->top_k < 0)
        return dms_fail(DMS_ERR_ARG, "top-k is %" PRId64 ", expected 0 (all) or more", o->top_k);
    if (!(o->top_p > 0 && o->top_p <= 1))
        return dms_fail(DMS_ERR_ARG, "top-p is %g, expected above 0, up to 1", (double)o->top_p);
    if (!(o->min_p >= 0 && o->min_p < 1))
        return dms_fail(DMS_ERR_ARG, "min-p is %g, expected 0 or more, below 1", (double)o->min_p);
    return DMS_OK;
}

dms_status dms_sampler_open(dms_sampler **out, const dms_sampler_options *options, int64_t vocab)
{
    DMS_TRY(check(options));
    if (vocab < 1)
        return dms_fail(DMS_ERR_ARG, "a vocabulary of %" PRId64 ", expected 1 or more", vocab);
    dms_sampler *s = calloc(1, sizeof(*s));
    if (!s)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a sampler");
    s->options = *options;
    s->vocab = vocab;
    s->weight = malloc((size_t)vocab * sizeof(*s->weight));
    s->heap = malloc((size_t)vocab * sizeof(*s->heap));
    if (!s->weight || !s->heap) {
        dms_sampler_close(s);
        return dms_fail(DMS_ERR_NOMEM, "no memory for a sampler of %" PRId64 " tokens", vocab);
    }
    *out = s;
    return DMS_OK;
}

void dms_sampler_close(dms_sampler *sampler)
{
    if (!sampler)
        return;
    free(sampler->weight);
    free(sampler->heap);
    free(sampler);
}

static int32_t most_probable(const float *logits, int64_t n)
{
    int32_t best = -1;
    for (int64_t i = 0; i < n; i++)
        if (!isnan(logits[i]) && (best < 0 || logits[i] > logits[best]))
            best = (int32_t)i;
    return best;
}

/* Whether token a comes before token b. */
static bool precedes(const dms_sampler *s, int32_t a, int32_t b)
{
    return s->weight[a] > s->weight[b] || (s->weight[a] == s->weight[b] && a < b);
}

static void sift_down(dms_sampler *s, int64_t i, int64_t n)
{
    const int32_t moved = s->heap[i];
    for (;;) {
        int64_t child = 2 * i + 1;
        if (child >= n)
            break;
        if (child + 1 < n && precedes(s, s->heap[child + 1], s->heap[child]))
            child++;
        if (!precedes(s, s->heap[child], moved))
            break;
        s->heap[i] = s->heap[child];
        i = child;
    }
    s->heap[i] = moved;
}

/* Takes the first of n candidates out; it then lies at heap[n - 1]. */
static int32_t pop(dms_sampler *s, int64_t n)
{
    const int32_t first = s->heap[0];
    s->heap[0] = s->heap[n - 1];
    s->heap[n - 1] = first;
    sift_down(s, 0, n - 1);
    return first;
}

/* Weights of all tokens; returns their sum. */
static double weigh(dms_sampler *s, const float *logits, float largest)
{
    double sum = 0;
    for (int64_t i = 0; i < s->vocab; i++) {
        const float w = expf((logits[i] - largest) / s->options.temperature);
        s->weight[i] = isnan(logits[i]) ? 0.0f : w;
        s->heap[i] = (int32_t)i;
        sum += (double)s->weight[i];
    }
    for (int64_t i = s->vocab / 2 - 1; i >= 0; i--)
        sift_down(s, i, s->vocab);
    return sum;
}

/* How many candidates the filters keep; they lie at the end of the heap, the first one last.
 * *sum: in, of all weights; out, of those kept. */
static int64_t filter(dms_sampler *s, double *sum)
{
    const dms_sampler_options *o = &s->options;
    const int64_t most = o->top_k && o->top_k < s->vocab ? o->top_k : s->vocab;
    int64_t popped = 0, kept = 0;
    double total = *sum, reached = 0;
    if (most < s->vocab)
        for (total = 0; popped < most; popped++)
            total += (double)s->weight[pop(s, s->vocab - popped)];
    while (kept < most && reached < (double)o->top_p * total) {
        if (kept == popped)
            pop(s, s->vocab - popped++);
        const float w = s->weight[s->heap[s->vocab - 1 - kept]];
        if (w < o->min_p || w <= 0) /* the largest weight is 1 */
            break;
        reached += (double)w;
        kept++;
    }
    *sum = reached;
    return kept;
}

dms_status dms_sampler_pick(dms_sampler *sampler, int32_t *token, const float *logits,
                            uint32_t stream, int64_t position)
{
    const int32_t best = most_probable(logits, sampler->vocab);
    if (best < 0 || isinf(logits[best]))
        return dms_fail(DMS_ERR_ARG, "logits of token %" PRId64 " have no finite largest value",
                        position);
    *token = best;
    if (sampler->options.temperature <= 0)
        return DMS_OK;
    double sum = weigh(sampler, logits, logits[best]);
    const int64_t kept = filter(sampler, &sum);
    const uint32_t word = dms_philox(sampler->options.seed, (uint32_t)position,
                                     (uint32_t)((uint64_t)position >> 32), stream, 0);
    double left = (double)dms_uniform(word) * sum;
    for (int64_t i = 0; i < kept; i++) {
        *token = sampler->heap[sampler->vocab - 1 - i];
        left -= (double)sampler->weight[*token];
        if (left < 0)
            break;
    }
    return DMS_OK;
}
