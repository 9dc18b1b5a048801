/* The sampler against its definition: what stays, in which order, how often. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "infer/sampler.h"
#include "tests/rig.h"

enum { V = 10, DRAWS = 20000 };

static const float logits[V] = {0, 3, -1, 2.5f, 1, -INFINITY, 3, 0.5f, NAN, -2};

/* How often each token is drawn. */
static void draw(const dms_sampler_options *o, int counts[V])
{
    dms_sampler *s = NULL;
    memset(counts, 0, V * sizeof(int));
    must(dms_sampler_open(&s, o, V));
    for (int i = 0; i < DRAWS; i++) {
        int32_t token = -1;
        must(dms_sampler_pick(s, &token, logits, 0, i));
        counts[token]++;
    }
    dms_sampler_close(s);
}

/* The definition: sort, cut, renormalise. */
static void define(const dms_sampler_options *o, double p[V])
{
    int order[V];
    double sum = 0, total = 0, reached = 0;
    for (int i = 0; i < V; i++) {
        order[i] = i;
        p[i] = isnan(logits[i]) ? 0 : exp((double)logits[i] / (double)o->temperature);
    }
    for (int i = 0; i < V; i++)
        for (int j = V - 1; j > 0; j--)
            if (p[order[j]] > p[order[j - 1]]) {
                const int swapped = order[j];
                order[j] = order[j - 1];
                order[j - 1] = swapped;
            }
    const double largest = p[order[0]];
    const int most = o->top_k ? (int)o->top_k : V;
    for (int i = 0; i < most && i < V; i++)
        total += p[order[i]];
    for (int i = 0; i < V; i++) {
        const bool keep = i < most && reached < (double)o->top_p * total &&
                          p[order[i]] >= (double)o->min_p * largest;
        reached += keep ? p[order[i]] : 0;
        p[order[i]] = keep ? p[order[i]] : 0;
        sum += p[order[i]];
    }
    for (int i = 0; i < V; i++)
        p[i] /= sum;
}

Test(sampler, draws_what_the_filters_keep_as_often_as_it_is_probable)
{
    static const dms_sampler_options cases[] = {
        {1, 0, 1, 0, 1},    {0.5f, 0, 1, 0, 2},  {2, 3, 1, 0, 3},
        {1, 0, 0.8f, 0, 4}, {1, 0, 1, 0.3f, 5},  {1.5f, 4, 0.7f, 0.1f, 6},
        {1, 1, 1, 0, 7},    {1, 0, 0.01f, 0, 8}, {1, 100, 0.999f, 0.01f, 9},
    };
    for (size_t c = 0; c < COUNT(cases); c++) {
        int counts[V];
        double p[V];
        draw(&cases[c], counts);
        define(&cases[c], p);
        for (int i = 0; i < V; i++) {
            /* five standard deviations of a binomial count */
            const double slack = 5 * sqrt(DRAWS * p[i] * (1 - p[i]));
            cr_assert(fabs(counts[i] - DRAWS * p[i]) <= slack + 1e-9,
                      "case %zu: token %d %d times, expected %g", c, i, counts[i], DRAWS * p[i]);
        }
    }
}

Test(sampler, takes_the_first_of_the_most_probable_at_temperature_0)
{
    int counts[V];
    draw(&(dms_sampler_options){0, 5, 0.5f, 0.5f, 9}, counts);
    cr_assert_eq(counts[1], DRAWS);
}

Test(sampler, repeats_by_seed_stream_and_position_whatever_was_drawn_before)
{
    dms_sampler *a = NULL, *b = NULL;
    int differ = 0;
    must(dms_sampler_open(&a, &(dms_sampler_options){1, 0, 1, 0, 42}, V));
    must(dms_sampler_open(&b, &(dms_sampler_options){1, 0, 1, 0, 42}, V));
    for (int i = 99; i >= 0; i--) {
        int32_t x, y, other;
        must(dms_sampler_pick(a, &x, logits, 3, i));
        must(dms_sampler_pick(b, &other, logits, 4, i));
        must(dms_sampler_pick(b, &y, logits, 3, i));
        cr_assert_eq(x, y);
        differ += x != other;
    }
    cr_assert_gt(differ, 20);
    dms_sampler_close(a);
    dms_sampler_close(b);
}

Test(sampler, refuses_options_out_of_range_and_logits_without_a_largest)
{
    static const dms_sampler_options wrong[] = {
        {-1, 0, 1, 0, 0},   {NAN, 0, 1, 0, 0}, {1, -1, 1, 0, 0},    {1, 0, 0, 0, 0},
        {1, 0, 1.1f, 0, 0}, {1, 0, 1, 1, 0},   {1, 0, 1, -0.1f, 0},
    };
    static const char *const names[] = {"temperature", "temperature", "top-k", "top-p",
                                        "top-p",       "min-p",       "min-p"};
    dms_sampler *s = NULL;
    for (size_t i = 0; i < COUNT(wrong); i++) {
        cr_assert_eq(dms_sampler_open(&s, &wrong[i], V), DMS_ERR_ARG);
        cr_assert(strstr(dms_error_text(), names[i]), "%s", dms_error_text());
    }
    const dms_sampler_options plain = dms_sampler_defaults();
    must(dms_sampler_open(&s, &plain, 2));
    int32_t token;
    cr_assert_eq(dms_sampler_pick(s, &token, (float[]){NAN, -INFINITY}, 0, 7), DMS_ERR_ARG);
    dms_sampler_close(s);
}
