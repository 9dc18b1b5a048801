/* pass@k, votes and standard errors against exact values. */
#include <math.h>

#include "tasks/pass.h"
#include "tests/rig.h"

/* C(n, k) exactly; what is asked for stays below 2^63. */
static unsigned long long choose(unsigned n, unsigned k)
{
    unsigned long long c = 1;
    if (k > n)
        return 0;
    for (unsigned i = 1; i <= k; i++)
        c = c * (n - k + i) / i;
    return c;
}

Test(pass, at_k_is_the_ratio_of_binomials_for_every_n_up_to_20)
{
    for (unsigned n = 1; n <= 20; n++)
        for (unsigned c = 0; c <= n; c++)
            for (unsigned k = 1; k <= n; k++) {
                /* Numerator and denominator are exact in a double: below 2^53. */
                const double want =
                    (double)(choose(n, k) - choose(n - c, k)) / (double)choose(n, k);
                /* A product of at most 10 ratios, each rounded twice. */
                cr_assert_float_eq(dms_pass_at(n, c, k), want, 1e-14, "n %u c %u k %u", n, c, k);
            }
}

Test(pass, at_one_is_the_fraction_and_ends_are_exact)
{
    cr_assert_eq(dms_pass_at(3, 1, 1), 1.0 / 3.0);
    cr_assert_eq(dms_pass_at(200, 0, 100), 0);
    cr_assert_eq(dms_pass_at(200, 200, 100), 1);
    cr_assert_eq(dms_pass_at(200, 101, 100), 1); /* fewer wrong ones than draws */
    cr_assert_eq(dms_pass_at(1, 1, 1), 1);
}

Test(pass, large_numbers_neither_overflow_nor_lose_digits)
{
    /* c = 1: k/n. c = 2: 1 - (n-k)(n-k-1)/(n(n-1)). */
    cr_assert_float_eq(dms_pass_at(1000000, 1, 1000), 1e-3, 1e-15);
    cr_assert_float_eq(dms_pass_at(100000, 2, 50000), 1 - 50000.0 * 49999.0 / (100000.0 * 99999.0),
                       1e-15);
    /* k = 2: 1 - (n-c)(n-c-1)/(n(n-1)). */
    cr_assert_float_eq(dms_pass_at(100000, 40000, 2), 1 - 60000.0 * 59999.0 / (100000.0 * 99999.0),
                       1e-15);
}

Test(pass, what_has_no_meaning_is_not_a_number)
{
    cr_assert(isnan(dms_pass_at(3, 1, 4)));
    cr_assert(isnan(dms_pass_at(3, 4, 1)));
    cr_assert(isnan(dms_pass_at(3, -1, 1)));
    cr_assert(isnan(dms_pass_at(3, 1, 0)));
    cr_assert(isnan(dms_pass_at(0, 0, 1)));
}

static double majority(const char *const *answers, const char *truth, int64_t n)
{
    bool right[16];
    double score;
    for (int64_t i = 0; i < n; i++)
        right[i] = answers[i] && !strcmp(answers[i], truth);
    must(dms_majority(&score, answers, right, n));
    return score;
}

Test(pass, the_majority_wins_and_ties_share)
{
    cr_assert_eq(majority((const char *[]){"5", "6", "5"}, "5", 3), 1);
    cr_assert_eq(majority((const char *[]){"5", "6", "6"}, "5", 3), 0);
    cr_assert_eq(majority((const char *[]){"5", "6"}, "5", 2), 0.5);
    cr_assert_eq(majority((const char *[]){"5", "6", "7"}, "6", 3), 1.0 / 3.0);
    cr_assert_eq(majority((const char *[]){"5", "6", "7", "7", "6", "8"}, "6", 6), 0.5);
    cr_assert_eq(majority((const char *[]){"5", "6", "7", "7", "6", "8"}, "5", 6), 0);
    cr_assert_eq(majority((const char *[]){NULL, NULL, NULL, "5"}, "5", 4), 1);
    cr_assert_eq(majority((const char *[]){NULL, NULL}, "5", 2), 0);
    cr_assert_eq(majority((const char *[]){NULL}, "5", 0), 0);
    cr_assert_eq(majority((const char *[]){""}, "", 1), 1);
}

Test(pass, the_standard_error_is_that_of_the_sample_mean)
{
    dms_mean m = {0};
    dms_mean_add(&m, 1);
    cr_assert_eq(dms_mean_error(&m), 0);
    dms_mean_add(&m, 0);
    dms_mean_add(&m, 0);
    dms_mean_add(&m, 1);
    /* variance 4 * 0.25/3 = 1/3, of the mean 1/12 */
    cr_assert_eq(m.mean, 0.5);
    cr_assert_float_eq(dms_mean_error(&m), sqrt(1.0 / 12.0), 1e-15);
}

Test(pass, a_large_offset_does_not_spoil_the_error)
{
    dms_mean m = {0};
    for (int i = 0; i < 1000; i++)
        dms_mean_add(&m, 1e9 + i % 2);
    /* variance 250/999; the values' spacing is 1.2e-7 */
    cr_assert_float_eq(dms_mean_error(&m), sqrt(250.0 / 999.0 / 1000.0), 1e-8);
}

Test(pass, groups_are_weighted_by_their_items)
{
    dms_mean groups[3] = {{0}};
    for (int i = 0; i < 4; i++)
        dms_mean_add(&groups[0], i % 2); /* 0.5, squares 1 */
    for (int i = 0; i < 3; i++)
        dms_mean_add(&groups[1], i == 0); /* 1/3, squares 2/3 */
    dms_mean_add(&groups[2], 1);
    const dms_pooled p = dms_mean_pool(groups, 3);
    cr_assert_eq(p.n, 8);
    cr_assert_float_eq(p.mean, 4.0 / 8.0, 1e-15);
    cr_assert_float_eq(p.error, sqrt((1 + 2.0 / 3.0) / (8 - 3) / 8), 1e-15);
    cr_assert_eq(dms_mean_pool(groups + 2, 1).error, 0);
    cr_assert_eq(dms_mean_pool(NULL, 0).n, 0);
}
