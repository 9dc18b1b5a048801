/* Vocabulary losses against their definition in double, and the compression loss. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/bf16.h"
#include "tests/rig.h"

typedef struct {
    int64_t rows, vocab, dim;
} size3;

/* Around a chunk of 128 rows and a tile of 512 tokens (CPU), a chunk of at most 1024 rows, 8 tokens
 * a thread and 4096 a block (CUDA). */
static const size3 sizes[] = {{1, 1, 1},    {1, 7, 5},     {7, 513, 33},   {16, 512, 1},
                              {17, 31, 64}, {127, 97, 17}, {128, 511, 16}, {130, 1031, 7},
                              {261, 5, 31}, {30, 4801, 8}, {3, 4095, 2},   {2, 4096, 9},
                              {3, 4097, 3}, {1100, 9, 3},  {4, 8, 8}};

typedef struct {
    dms_distill_in in;
    dms_tensor xs, ws, xt, wt, weight, kl, dxs, dws;
} problem;

static dms_tensor matrix(int64_t rows, int64_t cols, dms_dtype dtype)
{
    dms_tensor shape = rig_shape(rows, cols, 0, 0);
    shape.dtype = dtype;
    return shape;
}

/* Noise times `scale`, so that logits reach about +-30 at the largest. */
static dms_tensor scaled(rig *r, dms_tensor shape, float scale)
{
    dms_tensor t = rig_noise(r, shape);
    float *host = rig_read(&t);
    for (int64_t i = 0; i < dms_count(&t); i++)
        host[i] *= scale;
    must(r->dev->upload(r->dev, t.data, host, dms_tensor_bytes(&t)));
    free(host);
    return t;
}

/* Every third weight is 0, the others are 0.25 to 1.25. */
static dms_tensor some_weights(rig *r, int64_t rows)
{
    float *host = malloc((size_t)rows * sizeof(float));
    for (int64_t i = 0; i < rows; i++)
        host[i] = i % 3 == 1 ? 0 : 0.75f + 0.5f * rig_random(r);
    const dms_tensor t = rig_upload(r, rig_shape(rows, 0, 0, 0), host);
    free(host);
    return t;
}

static void make_problem(problem *p, rig *r, size3 s, dms_dtype dtype)
{
    const float scale = 12.0f / sqrtf((float)s.dim);
    *p = (problem){.xs = scaled(r, rig_shape(s.rows, s.dim, 0, 0), scale),
                   .xt = scaled(r, rig_shape(s.rows, s.dim, 0, 0), scale),
                   .ws = rig_noise(r, matrix(s.vocab, s.dim, dtype)),
                   .wt = rig_noise(r, matrix(s.vocab, s.dim, dtype)),
                   .weight = some_weights(r, s.rows),
                   .kl = rig_noise(r, rig_shape(s.rows, 0, 0, 0)),
                   .dxs = rig_noise(r, rig_shape(s.rows, s.dim, 0, 0)),
                   .dws = rig_noise(r, rig_shape(s.vocab, s.dim, 0, 0))};
    p->in = (dms_distill_in){&p->xs, &p->ws, &p->xt, &p->wt, &p->weight};
}

/* Logarithms of the probabilities of each row, [rows, V], in double. */
static double *log_probabilities(const dms_tensor *x, const dms_tensor *w)
{
    const int64_t rows = dms_rows(x), vocab = w->shape[0], dim = w->shape[1];
    float *hidden = rig_read(x), *head = rig_read(w);
    double *out = malloc((size_t)(rows * vocab) * sizeof(double));
    for (int64_t i = 0; w->dtype == DMS_BF16 && i < rows * dim; i++)
        hidden[i] = dms_bf16_to_f32(dms_bf16_from_f32(hidden[i]));
    for (int64_t n = 0; n < rows; n++) {
        double *row = out + n * vocab, top = -INFINITY, sum = 0;
        for (int64_t v = 0; v < vocab; v++) {
            row[v] = 0;
            for (int64_t k = 0; k < dim; k++)
                row[v] += (double)hidden[n * dim + k] * (double)head[v * dim + k];
            top = fmax(top, row[v]);
        }
        for (int64_t v = 0; v < vocab; v++)
            sum += exp(row[v] - top);
        for (int64_t v = 0; v < vocab; v++)
            row[v] -= top + log(sum);
    }
    free(hidden);
    free(head);
    return out;
}

static double divergence(const double *a, const double *b, int64_t vocab)
{
    double kl = 0;
    for (int64_t v = 0; v < vocab; v++)
        kl += exp(a[v]) * (a[v] - b[v]);
    return kl;
}

/* Derivative of weight*kl of a row by its student logits, in place of `s`. */
static void logit_gradient(double *s, const double *t, int64_t vocab, bool reverse, double weight)
{
    const double kl = divergence(s, t, vocab);
    for (int64_t v = 0; v < vocab; v++)
        s[v] = weight * (reverse ? exp(s[v]) * (s[v] - t[v] - kl) : exp(s[v]) - exp(t[v]));
}

/* The same as kl, dxs and dws of the op: the gradients are added to what is there. */
typedef struct {
    float *kl, *dxs, *dws;
} answer;

static answer define(const problem *p, bool reverse)
{
    const int64_t rows = dms_rows(&p->xs), vocab = p->ws.shape[0], dim = p->ws.shape[1];
    double *s = log_probabilities(&p->xs, &p->ws), *t = log_probabilities(&p->xt, &p->wt);
    float *x = rig_read(&p->xs), *w = rig_read(&p->ws), *weight = rig_read(&p->weight);
    answer a = {rig_read(&p->kl), rig_read(&p->dxs), rig_read(&p->dws)};
    double *dws = calloc((size_t)(vocab * dim), sizeof(double));
    for (int64_t n = 0; n < rows; n++) {
        double *row = s + n * vocab;
        const double *other = t + n * vocab;
        a.kl[n] = weight[n] == 0 ? 0
                                 : (float)(reverse ? divergence(row, other, vocab)
                                                   : divergence(other, row, vocab));
        logit_gradient(row, other, vocab, reverse, (double)weight[n]);
        for (int64_t k = 0; k < dim; k++) {
            double sum = 0;
            for (int64_t v = 0; v < vocab; v++) {
                sum += row[v] * (double)w[v * dim + k];
                dws[v * dim + k] += row[v] * (double)x[n * dim + k];
            }
            a.dxs[n * dim + k] = (float)((double)a.dxs[n * dim + k] + sum);
        }
    }
    for (int64_t i = 0; i < vocab * dim; i++)
        a.dws[i] = (float)((double)a.dws[i] + dws[i]);
    free(s);
    free(t);
    free(x);
    free(w);
    free(weight);
    free(dws);
    return a;
}

static void free_answer(answer a)
{
    free(a.kl);
    free(a.dxs);
    free(a.dws);
}

/* Logits of up to 40 carry an error of about 40 * 2^-24 = 2e-6 each; the divergence is a mean of
 * their differences. In bf16 the gradient by the logits is itself rounded to 8 bits before it is
 * multiplied, and the rows too: 2^-8 of terms whose sum of magnitudes is below 64. */
static void check_distill(rig *r, dms_dtype dtype, dms_kl_direction direction)
{
    const float slack = dtype == DMS_BF16 ? 0.06f : 3e-4f;
    for (size_t i = 0; i < COUNT(sizes); i++) {
        const size_t mark = r->arena.used;
        problem p;
        make_problem(&p, r, sizes[i], dtype);
        const answer want = define(&p, direction == DMS_KL_REVERSE);
        must(dms_distill(&(dms_distill_out){&p.kl, &p.dxs, &p.dws, direction}, &p.in));
        rig_expect("kl", &p.kl, want.kl, 2e-6f, 5e-6f);
        rig_expect("dxs", &p.dxs, want.dxs, slack / 10, slack);
        rig_expect("dws", &p.dws, want.dws, slack / 10, slack);
        free_answer(want);
        r->arena.used = mark;
    }
}

ParameterizedTestParameters(loss, distils_by_the_definition_in_f32)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, loss, distils_by_the_definition_in_f32)
{
    rig r = rig_open(*kind);
    check_distill(&r, DMS_F32, DMS_KL_REVERSE);
    check_distill(&r, DMS_F32, DMS_KL_FORWARD);
    rig_close(&r);
}

ParameterizedTestParameters(loss, distils_by_the_definition_in_bf16)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, loss, distils_by_the_definition_in_bf16)
{
    rig r = rig_open(*kind);
    check_distill(&r, DMS_BF16, DMS_KL_REVERSE);
    check_distill(&r, DMS_BF16, DMS_KL_FORWARD);
    rig_close(&r);
}

Test(loss, distils_bf16_heads_on_a_processor_without_bf16)
{
    rig r = rig_open(DMS_CPU);
    r.dev->has_bf16 = false;
    check_distill(&r, DMS_BF16, DMS_KL_REVERSE);
    check_distill(&r, DMS_BF16, DMS_KL_FORWARD);
    rig_close(&r);
}

ParameterizedTestParameters(loss, measures_divergences_of_a_millionth)
{
    return rig_devices();
}

/* Teacher and student share one head, and their hidden states differ by 3e-3: the divergence is
 * 1e-7 to 1e-5. It is the difference of three numbers of logits up to 30, whose sums of
 * exponentials are right to two or three units of 2^-24 each: 5e-7. A log-sum-exp in f32 would be
 * wrong by 2e-6. */
ParameterizedTest(dms_device_kind *kind, loss, measures_divergences_of_a_millionth)
{
    rig r = rig_open(*kind);
    problem p;
    make_problem(&p, &r, (size3){24, 1500, 16}, DMS_F32);
    float *x = rig_read(&p.xs);
    for (int64_t i = 0; i < dms_count(&p.xs); i++)
        x[i] += 3e-3f * rig_random(&r);
    must(r.dev->upload(r.dev, p.xt.data, x, dms_tensor_bytes(&p.xt)));
    free(x);
    p.wt = p.ws;
    for (int reverse = 0; reverse < 2; reverse++) {
        const answer want = define(&p, reverse);
        float largest = 0;
        for (int64_t i = 0; i < dms_count(&p.kl); i++)
            largest = fmaxf(largest, want.kl[i]);
        cr_assert(largest > 1e-6f && largest < 1e-4f, "the case is not small: %g", (double)largest);
        must(dms_distill(
            &(dms_distill_out){&p.kl, NULL, NULL, reverse ? DMS_KL_REVERSE : DMS_KL_FORWARD},
            &p.in));
        rig_expect("kl", &p.kl, want.kl, 0, 5e-7f);
        free_answer(want);
    }
    rig_close(&r);
}

/* Gives the problem these weights, and NaN in both hidden states of the rows that are skipped. */
static void skip_rows(rig *r, const problem *p, const float *weight)
{
    const int64_t dim = dms_cols(&p->xs);
    for (int side = 0; side < 2; side++) {
        const dms_tensor *t = side ? &p->xt : &p->xs;
        float *x = rig_read(t);
        for (int64_t i = 0; i < dms_count(t); i++)
            x[i] = weight[i / dim] == 0 ? NAN : x[i];
        must(r->dev->upload(r->dev, t->data, x, dms_tensor_bytes(t)));
        free(x);
    }
    must(r->dev->upload(r->dev, p->weight.data, weight, dms_tensor_bytes(&p->weight)));
}

/* Skipped rows have neither divergence nor gradient, and the head has one only from the others. */
static void check_skipping(rig *r, dms_dtype dtype, const float *weight, bool all)
{
    enum { N = 130, V = 600, D = 8 };
    problem p;
    make_problem(&p, r, (size3){N, V, D}, dtype);
    skip_rows(r, &p, weight);
    float *before = rig_read(&p.dxs), *head = rig_read(&p.dws);
    must(dms_distill(&(dms_distill_out){&p.kl, &p.dxs, &p.dws, DMS_KL_REVERSE}, &p.in));
    float *kl = rig_read(&p.kl), *dxs = rig_read(&p.dxs), *dws = rig_read(&p.dws);
    for (int n = 0; n < N; n++)
        for (int k = 0; k < D; k++)
            cr_assert(weight[n] == 0 ? kl[n] == 0 && dxs[n * D + k] == before[n * D + k]
                                     : kl[n] > 0 && isfinite(dxs[n * D + k]),
                      "row %d", n);
    for (int i = 0; i < V * D; i++)
        cr_assert(all ? dws[i] == head[i] : isfinite(dws[i]));
    float *used[] = {before, head, kl, dxs, dws};
    for (size_t i = 0; i < COUNT(used); i++)
        free(used[i]);
}

ParameterizedTestParameters(loss, does_not_read_rows_of_weight_zero)
{
    return rig_devices();
}

/* The first, the last and every third; then all. */
ParameterizedTest(dms_device_kind *kind, loss, does_not_read_rows_of_weight_zero)
{
    rig r = rig_open(*kind);
    const float none[130] = {0};
    float weight[130] = {0};
    for (int n = 1; n < 129; n++)
        weight[n] = n % 3 == 1 ? 0 : 0.5f;
    for (int i = 0; i < 2; i++) {
        check_skipping(&r, i ? DMS_BF16 : DMS_F32, weight, false);
        check_skipping(&r, i ? DMS_BF16 : DMS_F32, none, true);
    }
    rig_close(&r);
}

ParameterizedTestParameters(loss, measures_divergences_of_huge_logits)
{
    return rig_devices();
}

/* Logits of up to 3e4, whose exponentials overflow; each carries an error of 3e4 * 2^-22 = 0.007.
 */
ParameterizedTest(dms_device_kind *kind, loss, measures_divergences_of_huge_logits)
{
    rig r = rig_open(*kind);
    problem p;
    make_problem(&p, &r, (size3){5, 1500, 4}, DMS_F32);
    must(dms_axpy(&p.xs, 1e3f, &p.xs));
    must(dms_axpy(&p.xt, 1e3f, &p.xt));
    for (int reverse = 0; reverse < 2; reverse++) {
        const answer want = define(&p, reverse);
        must(dms_distill(
            &(dms_distill_out){&p.kl, &p.dxs, &p.dws, reverse ? DMS_KL_REVERSE : DMS_KL_FORWARD},
            &p.in));
        rig_expect("kl", &p.kl, want.kl, 1e-6f, 0.02f);
        float *dws = rig_read(&p.dws);
        for (int64_t i = 0; i < dms_count(&p.dws); i++)
            cr_assert(isfinite(dws[i]));
        free(dws);
        free_answer(want);
    }
    rig_close(&r);
}

ParameterizedTestParameters(loss, hands_a_nan_on)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, loss, hands_a_nan_on)
{
    rig r = rig_open(*kind);
    problem p;
    make_problem(&p, &r, (size3){3, 1100, 8}, DMS_F32);
    float *xs = rig_read(&p.xs);
    xs[0] = NAN;
    must(r.dev->upload(r.dev, p.xs.data, xs, dms_tensor_bytes(&p.xs)));
    must(dms_distill(&(dms_distill_out){&p.kl, NULL, NULL, DMS_KL_REVERSE}, &p.in));
    float *kl = rig_read(&p.kl);
    cr_assert(isnan(kl[0]) && kl[2] > 0, "%g %g", (double)kl[0], (double)kl[2]);
    free(kl);
    free(xs);
    rig_close(&r);
}

/* Three gradients asked for together are those asked for one by one, with any number of threads:
 * kl, dxs, dws, one after the other. */
static char *distil_with(int threads, dms_device_kind kind, bool apart, dms_dtype dtype,
                         size_t *bytes)
{
    rig r = rig_open_threads(kind, threads);
    problem p;
    make_problem(&p, &r, (size3){150, 1700, 64}, dtype);
    if (apart) {
        must(dms_distill(&(dms_distill_out){&p.kl, &p.dxs, NULL, DMS_KL_REVERSE}, &p.in));
        must(dms_distill(&(dms_distill_out){&p.kl, NULL, &p.dws, DMS_KL_REVERSE}, &p.in));
    } else {
        must(dms_distill(&(dms_distill_out){&p.kl, &p.dxs, &p.dws, DMS_KL_REVERSE}, &p.in));
    }
    const dms_tensor *outputs[] = {&p.kl, &p.dxs, &p.dws};
    char *all = NULL;
    *bytes = 0;
    for (size_t i = 0; i < COUNT(outputs); i++) {
        const size_t more = dms_tensor_bytes(outputs[i]);
        all = realloc(all, *bytes + more);
        must(r.dev->download(r.dev, all + *bytes, outputs[i]->data, more));
        *bytes += more;
    }
    rig_close(&r);
    return all;
}

static void expect_same_bits(dms_device_kind kind, int most_threads)
{
    for (int i = 0; i < 2; i++) {
        const dms_dtype dtype = i ? DMS_BF16 : DMS_F32;
        size_t bytes = 0, again = 0;
        char *one = distil_with(1, kind, false, dtype, &bytes);
        for (int threads = 1; threads <= most_threads; threads++) {
            char *many = distil_with(threads, kind, threads == 1, dtype, &again);
            cr_assert(bytes == again && memcmp(one, many, bytes) == 0, "%d threads", threads);
            free(many);
        }
        free(one);
    }
}

Test(loss, gives_the_same_bits_for_any_number_of_threads)
{
    expect_same_bits(DMS_CPU, 3);
}

Test(loss, gives_the_same_bits_for_gradients_together_and_apart)
{
    expect_same_bits(rig_device(), 1);
}

typedef struct {
    dms_tensor next, nll, nll_teacher, forward, reverse, agree;
} scores;

/* Every fifth row has no next token. */
static scores make_scores(rig *r, int64_t rows, int64_t vocab)
{
    const dms_tensor row = rig_shape(rows, 0, 0, 0);
    dms_tensor ids = row;
    int32_t *next = malloc((size_t)rows * sizeof(*next));
    for (int64_t n = 0; n < rows; n++)
        next[n] = n % 5 == 2 ? -1 : (int32_t)(n * 7919 % vocab);
    ids.dtype = DMS_I32;
    scores s = {rig_upload(r, ids, next), rig_noise(r, row), rig_noise(r, row),
                rig_noise(r, row),        rig_noise(r, row), rig_noise(r, row)};
    free(next);
    return s;
}

static int64_t first_largest(const double *x, int64_t n)
{
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++)
        best = x[i] > x[best] ? i : best;
    return best;
}

static void check_scores(const problem *p, const scores *got)
{
    const int64_t rows = dms_rows(&p->xs), vocab = p->ws.shape[0];
    double *s = log_probabilities(&p->xs, &p->ws), *t = log_probabilities(&p->xt, &p->wt);
    float *next = rig_read(&got->next), *weight = rig_read(&p->weight), *want[5];
    for (int i = 0; i < 5; i++)
        want[i] = calloc((size_t)rows, sizeof(float));
    for (int64_t n = 0; n < rows; n++) {
        const double *a = s + n * vocab, *b = t + n * vocab;
        if (weight[n] == 0)
            continue;
        if (next[n] >= 0) {
            want[0][n] = (float)-a[(int64_t)next[n]];
            want[1][n] = (float)-b[(int64_t)next[n]];
        }
        want[2][n] = (float)divergence(b, a, vocab);
        want[3][n] = (float)divergence(a, b, vocab);
        want[4][n] = first_largest(a, vocab) == first_largest(b, vocab);
    }
    const dms_tensor *all[] = {&got->nll, &got->nll_teacher, &got->forward, &got->reverse,
                               &got->agree};
    const char *names[] = {"nll", "nll_teacher", "kl_forward", "kl_reverse", "agree"};
    for (size_t i = 0; i < COUNT(all); i++) {
        rig_expect(names[i], all[i], want[i], 2e-6f, 1e-5f);
        free(want[i]);
    }
    free(s);
    free(t);
    free(next);
    free(weight);
}

ParameterizedTestParameters(loss, scores_by_the_definition)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, loss, scores_by_the_definition)
{
    rig r = rig_open(*kind);
    for (size_t i = 0; i < 2 * COUNT(sizes); i++) {
        const size_t mark = r.arena.used;
        problem p;
        make_problem(&p, &r, sizes[i / 2], i % 2 ? DMS_BF16 : DMS_F32);
        scores s = make_scores(&r, sizes[i / 2].rows, sizes[i / 2].vocab);
        if (i % 4 < 2) /* a teacher near the student, so that some first tokens agree */
            must(dms_axpy(&p.xt, 9.0f, &p.xs));
        must(dms_score(
            &(dms_score_out){&s.nll, &s.nll_teacher, &s.forward, &s.reverse, &s.agree, &s.next},
            &p.in));
        check_scores(&p, &s);
        r.arena.used = mark;
    }
    rig_close(&r);
}

/* Row 0 has the teacher's first place at token 3, row 1 at the tied token `second`. */
static void check_tie(rig *r, int second)
{
    enum { V = 4400 };
    float x[] = {1, 0, 0, 1}, weight[] = {1, 1}, ws[2 * V] = {0}, wt[2 * V] = {0};
    ws[6] = ws[7] = ws[2 * second] = ws[2 * second + 1] = 5;
    wt[6] = wt[2 * second + 1] = 5;
    const dms_tensor xs = rig_upload(r, rig_shape(2, 2, 0, 0), x);
    const dms_tensor heads[] = {rig_upload(r, rig_shape(V, 2, 0, 0), ws),
                                rig_upload(r, rig_shape(V, 2, 0, 0), wt)};
    const dms_tensor ones = rig_upload(r, rig_shape(2, 0, 0, 0), weight);
    dms_tensor agree = rig_noise(r, ones);
    must(dms_score(&(dms_score_out){.agree = &agree},
                   &(dms_distill_in){&xs, &heads[0], &xs, &heads[1], &ones}));
    rig_expect("agree", &agree, (const float[]){1, 0}, 0, 0);
}

ParameterizedTestParameters(loss, puts_the_lowest_of_tied_tokens_first)
{
    return rig_devices();
}

/* In the same thread, warp and block of the CUDA kernel, and beyond each. */
ParameterizedTest(dms_device_kind *kind, loss, puts_the_lowest_of_tied_tokens_first)
{
    static const int seconds[] = {5, 40, 300, 4099, 4399};
    rig r = rig_open(*kind);
    for (size_t i = 0; i < COUNT(seconds); i++)
        check_tie(&r, seconds[i]);
    rig_close(&r);
}

ParameterizedTestParameters(loss, scores_a_student_without_a_teacher)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, loss, scores_a_student_without_a_teacher)
{
    rig r = rig_open(*kind);
    problem p;
    make_problem(&p, &r, (size3){40, 1030, 16}, DMS_F32);
    scores s = make_scores(&r, 40, 1030);
    must(dms_score(&(dms_score_out){.nll = &s.nll, .next = &s.next}, &p.in));
    float *with = rig_read(&s.nll);
    p.in.xt = p.in.wt = NULL;
    must(dms_score(&(dms_score_out){.nll = &s.nll, .next = &s.next}, &p.in));
    rig_expect("nll", &s.nll, with, 0, 0);
    free(with);
    cr_expect(dms_score(&(dms_score_out){.agree = &s.agree}, &p.in) == DMS_ERR_ARG);
    cr_expect(strstr(dms_error_text(), "a comparison wants a teacher, xt is NULL"));
    cr_expect(dms_distill(&(dms_distill_out){.kl = &p.kl}, &p.in) == DMS_ERR_ARG);
    rig_close(&r);
}

ParameterizedTestParameters(loss, names_the_argument_of_the_wrong_shape)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, loss, names_the_argument_of_the_wrong_shape)
{
    rig r = rig_open(*kind);
    problem p;
    make_problem(&p, &r, (size3){4, 7, 5}, DMS_F32);
    dms_tensor wt = p.wt, dws = p.dws;
    wt.shape[0] = 8;
    p.in.wt = &wt;
    cr_expect(dms_distill(&(dms_distill_out){.kl = &p.kl}, &p.in) == DMS_ERR_SHAPE);
    cr_expect(strstr(dms_error_text(), "wt is [8, 5] f32, expected [7, 5] f32"), "%s",
              dms_error_text());
    p.in.wt = &p.wt;
    dws.shape[1] = 4;
    cr_expect(dms_distill(&(dms_distill_out){.kl = &p.kl, .dws = &dws}, &p.in) == DMS_ERR_SHAPE);
    cr_expect(strstr(dms_error_text(), "dws is [7, 4] f32, expected [7, 5] f32"), "%s",
              dms_error_text());
    rig_close(&r);
}

ParameterizedTestParameters(loss, compresses_by_the_definition)
{
    return rig_devices();
}

/* Sequence b evicts b of its 12 decisions. The counts are exact, so equality is too. */
ParameterizedTest(dms_device_kind *kind, loss, compresses_by_the_definition)
{
    rig r = rig_open(*kind);
    enum { L = 2, B = 4, G = 3, T = 2 };
    const float target = 2.0f / 12.0f;
    float d[L * B * G * T], frac[B], loss[B], pressure[B];
    for (int i = 0; i < L * B * G * T; i++) {
        const int layer = i / (B * G * T), b = i / (G * T) % B, at = i % (G * T);
        d[i] = layer * G * T + at < b;
    }
    for (int b = 0; b < B; b++) {
        frac[b] = (float)b / 12.0f;
        loss[b] = frac[b] < target ? target - frac[b] : 0;
        pressure[b] = frac[b] < target ? -0.5f / 12.0f : 0;
    }
    const dms_tensor decisions = rig_upload(&r, rig_shape(L, B, G, T), d);
    dms_tensor got_loss = rig_noise(&r, rig_shape(B, 0, 0, 0)), got_frac = got_loss, got = got_loss;
    got_frac = rig_noise(&r, got_loss);
    got = rig_noise(&r, got_loss);
    must(dms_compression(&(dms_compression_out){&got_loss, &got_frac, &got}, &decisions, target,
                         0.5f));
    rig_expect("frac", &got_frac, frac, 0, 0);
    rig_expect("loss", &got_loss, loss, 0, 0);
    rig_expect("pressure", &got, pressure, 0, 0);
    rig_close(&r);
}
