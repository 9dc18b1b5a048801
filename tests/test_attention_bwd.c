/* Attention's backward pass against the definition in double (method.md section 3, "Gradients"),
 * with o and lse computed in double too: nothing here depends on the forward pass. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernels/bf16.h"
#include "tests/rig.h"

typedef enum { NO_BIAS, SOFT, HARD, ALL_EVICTED, FIRST_HALF_EVICTED } bias_kind;

typedef struct {
    int64_t batch, tokens, heads, groups, width, window;
    bias_kind bias;
} bwd_case;

enum { Q, K, V, BIAS, DOUT, O, LSE, INPUTS };
enum { DQ, DK, DV, DBIAS, GRADS };
static const char *const grad_names[GRADS] = {"dq", "dk", "dv", "dbias"};

/* One problem in double, and on the device. `terms` and `squares` hold, for each element of a
 * gradient, the sum of the sizes of its terms and of their squares. */
typedef struct {
    bwd_case of;
    bool bf16;
    int64_t count[INPUTS];
    double *in[INPUTS], *want[GRADS], *terms[GRADS], *squares[GRADS];
    float *before[GRADS];
    dms_tensor device[INPUTS], grad[GRADS];
} problem;

/* What a gradient has the shape of. */
static const int shape_of[GRADS] = {Q, K, V, BIAS};

static dms_tensor shape(const bwd_case *c, int what)
{
    switch (what) {
    case Q:
    case DOUT:
    case O:
        return rig_shape(c->batch, c->tokens, c->heads * c->width, 0);
    case K:
    case V:
        return rig_shape(c->batch, c->tokens, c->groups * c->width, 0);
    case BIAS:
        return rig_shape(c->batch, c->groups, c->tokens, 0);
    default:
        return rig_shape(c->batch, c->heads, c->tokens, 0);
    }
}

static double bias_value(rig *r, const bwd_case *c, int64_t i)
{
    const float x = rig_random(r);
    if (c->bias == SOFT)
        return (double)-log1pf(expf(10.0f * x));
    if (c->bias == FIRST_HALF_EVICTED)
        return i % c->tokens < c->tokens / 2 ? -INFINITY : (double)x;
    return c->bias == ALL_EVICTED || x > -0.6f ? -INFINITY : 0.0;
}

static double *doubles(int64_t n)
{
    double *p = calloc((size_t)n, sizeof(*p));
    cr_assert(p);
    return p;
}

static void upload(problem *p, rig *r, int what)
{
    float *narrow = malloc((size_t)p->count[what] * sizeof(float));
    for (int64_t i = 0; i < p->count[what]; i++)
        narrow[i] = (float)p->in[what][i];
    p->device[what] = rig_upload(r, shape(&p->of, what), narrow);
    free(narrow);
}

/* Inputs as noise, gradients as noise, since backward adds. With bf16 the device gets f32 values
 * and the definition gets them rounded, as the device rounds its operands; o and lse follow from
 * the rounded ones. */
static void make(problem *p, rig *r, const bwd_case *c, bool bf16)
{
    *p = (problem){.of = *c, .bf16 = bf16};
    for (int i = 0; i < INPUTS; i++) {
        const dms_tensor s = shape(c, i);
        p->count[i] = dms_count(&s);
        p->in[i] = doubles(p->count[i]);
    }
    for (int i = Q; i <= DOUT; i++) {
        for (int64_t n = 0; n < p->count[i]; n++)
            p->in[i][n] = i == BIAS ? bias_value(r, c, n) : (double)rig_random(r);
        upload(p, r, i);
        for (int64_t n = 0; bf16 && i != BIAS && n < p->count[i]; n++)
            p->in[i][n] = (double)dms_bf16_to_f32(dms_bf16_from_f32((float)p->in[i][n]));
    }
    for (int i = 0; i < GRADS; i++) {
        const int64_t n = p->count[shape_of[i]];
        p->grad[i] = rig_noise(r, shape(c, shape_of[i]));
        p->before[i] = rig_read(&p->grad[i]);
        p->want[i] = doubles(n);
        p->terms[i] = doubles(n);
        p->squares[i] = doubles(n);
    }
}

static void drop(problem *p)
{
    for (int i = 0; i < INPUTS; i++)
        free(p->in[i]);
    for (int i = 0; i < GRADS; i++) {
        free(p->before[i]);
        free(p->want[i]);
        free(p->terms[i]);
        free(p->squares[i]);
    }
}

static double dot(const double *a, const double *b, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

/* A query of the problem, and where its row and its keys lie. */
typedef struct {
    int64_t b, h, t, row, group;
} query;

static int64_t key_at(const problem *p, const query *q, int64_t k)
{
    const bwd_case *c = &p->of;
    return ((q->b * c->tokens + k) * c->groups + q->group) * c->width;
}

static int64_t bias_at(const problem *p, const query *q, int64_t k)
{
    return (q->b * p->of.groups + q->group) * p->of.tokens + k;
}

/* weights[0..t] and o, lse of one query. */
static void define_forward(problem *p, const query *q, double *weights)
{
    const bwd_case *c = &p->of;
    double max = -INFINITY, sum = 0, *o = p->in[O] + q->row;
    for (int64_t k = 0; k <= q->t; k++) {
        weights[k] =
            dot(p->in[Q] + q->row, p->in[K] + key_at(p, q, k), c->width) / sqrt((double)c->width);
        if (c->bias != NO_BIAS && q->t - k > c->window)
            weights[k] += p->in[BIAS][bias_at(p, q, k)];
        max = weights[k] > max ? weights[k] : max;
    }
    for (int64_t k = 0; k <= q->t; k++)
        sum += exp(weights[k] - max);
    p->in[LSE][(q->b * c->heads + q->h) * c->tokens + q->t] = max + log(sum);
    for (int64_t k = 0; k <= q->t; k++) {
        weights[k] = exp(weights[k] - max) / sum;
        for (int64_t e = 0; e < c->width; e++)
            o[e] += weights[k] * p->in[V][key_at(p, q, k) + e];
    }
}

static void add(problem *p, int grad, int64_t at, double term)
{
    p->want[grad][at] += term;
    p->terms[grad][at] += fabs(term);
    p->squares[grad][at] += term * term;
}

static void define_backward(problem *p, const query *q, const double *weights)
{
    const bwd_case *c = &p->of;
    const double *dout = p->in[DOUT] + q->row, scale = 1 / sqrt((double)c->width);
    const double mean = dot(dout, p->in[O] + q->row, c->width);
    for (int64_t k = 0; k <= q->t; k++) {
        const int64_t at = key_at(p, q, k);
        const double ds = weights[k] * (dot(dout, p->in[V] + at, c->width) - mean);
        for (int64_t e = 0; e < c->width; e++) {
            add(p, DQ, q->row + e, scale * ds * p->in[K][at + e]);
            add(p, DK, at + e, scale * ds * p->in[Q][q->row + e]);
            add(p, DV, at + e, weights[k] * dout[e]);
        }
        if (q->t - k > c->window)
            add(p, DBIAS, bias_at(p, q, k), ds);
    }
}

/* Fills o, lse and the gradients, and gives o and lse to the device. */
static void define(problem *p, rig *r)
{
    const bwd_case *c = &p->of;
    double *weights = doubles(c->tokens);
    for (int64_t i = 0; i < c->batch * c->heads * c->tokens; i++) {
        query q = {
            .b = i / c->tokens / c->heads, .h = i / c->tokens % c->heads, .t = i % c->tokens};
        q.row = ((q.b * c->tokens + q.t) * c->heads + q.h) * c->width;
        q.group = q.h / (c->heads / c->groups);
        define_forward(p, &q, weights);
        define_backward(p, &q, weights);
    }
    free(weights);
    upload(p, r, O);
    upload(p, r, LSE);
}

static dms_status run(problem *p, unsigned wanted)
{
    const bool biased = p->of.bias != NO_BIAS;
    const dms_attention_in in = {
        &p->device[Q], &p->device[K],    &p->device[V], biased ? &p->device[BIAS] : NULL,
        p->of.window,  (int)p->of.width, p->bf16};
    const dms_attention_grads grads = {&p->device[O],
                                       &p->device[LSE],
                                       &p->device[DOUT],
                                       wanted & 1u << DQ ? &p->grad[DQ] : NULL,
                                       wanted & 1u << DK ? &p->grad[DK] : NULL,
                                       wanted & 1u << DV ? &p->grad[DV] : NULL,
                                       wanted & 1u << DBIAS && biased ? &p->grad[DBIAS] : NULL};
    return dms_attention_bwd(&grads, &in);
}

/* In f32: sums of up to 1000 products of size 1 err by a few 1e-6; scores enter an exponential,
 * and gradients of keys add the queries of R heads (as in test_attention.c).
 *
 * In bf16 the operands are exact here, and sums are f32; only P (in dv) and dS (in dq, dk) are
 * rounded, each by at most 2^-8 of itself. So a gradient errs by at most 2^-8 of the sum of the
 * sizes of its terms; and as the roundings are independent and of both signs, by hardly more than
 * 3 * 2^-8 of the root of the sum of their squares: an error is spread evenly within +-2^-8 of a
 * term at most, which is a standard deviation of 0.58 * 2^-8, and 3/0.58 is 5 of those. dbias adds
 * dS before it is rounded: f32. */
static double tolerance(const problem *p, int grad, int64_t i)
{
    const double f32 = 1e-5 + 1e-5 * fabs(p->want[grad][i]) + (grad == DQ ? 0 : 1e-5);
    const double most = p->terms[grad][i], likely = 3 * sqrt(p->squares[grad][i]);
    return f32 + (p->bf16 && grad != DBIAS ? 0x1p-8 * (most < likely ? most : likely) : 0);
}

static void expect(const problem *p, unsigned wanted)
{
    const bwd_case *c = &p->of;
    for (int grad = 0; grad < GRADS; grad++) {
        float *got = rig_read(&p->grad[grad]);
        const bool adds = wanted & 1u << grad && (grad != DBIAS || c->bias != NO_BIAS);
        for (int64_t i = 0; i < p->count[shape_of[grad]]; i++) {
            const double want = (double)p->before[grad][i] + (adds ? p->want[grad][i] : 0);
            const double off = fabs((double)got[i] - want);
            cr_assert(adds ? off <= tolerance(p, grad, i) : got[i] == p->before[grad][i],
                      "T %lld H %lld G %lld E %lld w %lld bias %d %s: %s[%lld] is %.8g, expected "
                      "%.8g +- %.2g",
                      (long long)c->tokens, (long long)c->heads, (long long)c->groups,
                      (long long)c->width, (long long)c->window, c->bias, p->bf16 ? "bf16" : "f32",
                      grad_names[grad], (long long)i, (double)got[i], want, tolerance(p, grad, i));
        }
        free(got);
    }
}

enum { ALL = (1u << GRADS) - 1 };

static void check(rig *r, const bwd_case *c, bool bf16)
{
    const size_t mark = r->arena.used;
    problem p;
    make(&p, r, c, bf16);
    define(&p, r);
    must(run(&p, ALL));
    expect(&p, ALL);
    drop(&p);
    r->arena.used = mark;
}

/* The GPU's f32 form has tiles of 32 (16 beyond E = 128) on both sides. */
static const bwd_case f32_cases[] = {
    {1, 1, 1, 1, 1, 0, SOFT},
    {2, 2, 3, 3, 2, 0, HARD},
    {1, 31, 7, 1, 5, 0, SOFT},
    {1, 32, 2, 1, 24, 16, HARD},
    {2, 33, 4, 2, 8, 1, SOFT},
    {1, 63, 6, 2, 40, 16, SOFT},
    {1, 64, 3, 1, 64, 63, HARD},
    {1, 65, 3, 3, 63, 0, HARD},
    {1, 97, 2, 2, 65, 64, SOFT},
    {2, 127, 3, 1, 8, 65, SOFT},
    {1, 129, 4, 2, 24, 1, FIRST_HALF_EVICTED},
    {1, 131, 3, 1, 8, 16, NO_BIAS},
    {1, 130, 2, 1, 8, 0, ALL_EVICTED},
    {1, 70, 3, 1, 40, 1000, HARD},
    {1, 67, 2, 1, 128, 16, SOFT},
    {1, 49, 2, 1, 129, 15, HARD},
    {1, 35, 1, 1, 256, 6, SOFT},
    {1, 70, 3, 1, 4, INT64_MAX, SOFT},
};

ParameterizedTestParameters(attention_bwd, follows_its_definition_in_f32)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, attention_bwd, follows_its_definition_in_f32)
{
    rig r = rig_open(*kind);
    for (size_t i = 0; i < COUNT(f32_cases); i++)
        check(&r, &f32_cases[i], false);
    rig_close(&r);
}

/* The tensor-core form holds 64 rows (16 a warp) and walks over tiles of 32. */
static const bwd_case bf16_cases[] = {
    {1, 1, 1, 1, 64, 0, SOFT},
    {2, 7, 3, 1, 96, 1, HARD},
    {1, 17, 2, 2, 128, 0, SOFT},
    {1, 31, 2, 1, 64, 1, SOFT},
    {1, 32, 3, 3, 96, 16, HARD},
    {1, 33, 2, 1, 128, 16, SOFT},
    {1, 63, 7, 1, 64, 0, HARD},
    {2, 64, 4, 2, 64, 16, SOFT},
    {1, 65, 3, 1, 128, 1, HARD},
    {2, 65, 2, 2, 96, 16, NO_BIAS},
    {1, 127, 2, 1, 64, 63, SOFT},
    {1, 129, 3, 1, 64, 64, SOFT},
    {1, 129, 2, 1, 96, 65, HARD},
    {1, 131, 2, 1, 128, 63, SOFT},
    {1, 193, 2, 2, 64, 16, FIRST_HALF_EVICTED},
    {1, 197, 2, 1, 64, 1, ALL_EVICTED},
    {1, 200, 1, 1, 128, 0, ALL_EVICTED},
    {1, 131, 3, 1, 64, 16, NO_BIAS},
    {1, 67, 2, 1, 128, 1000, HARD},
    {1, 70, 3, 1, 96, INT64_MAX, SOFT},
    {1, 211, 4, 2, 64, 0, SOFT},
};

ParameterizedTestParameters(attention_bwd, follows_its_definition_in_bf16)
{
    return rig_devices();
}

/* A device without bf16 ignores the permission: it would compute with what was not rounded. */
ParameterizedTest(dms_device_kind *kind, attention_bwd, follows_its_definition_in_bf16)
{
    rig r = rig_open(*kind);
    for (size_t i = 0; i < COUNT(bf16_cases); i++)
        check(&r, &bf16_cases[i], *kind != DMS_CPU);
    rig_close(&r);
}

ParameterizedTestParameters(attention_bwd, adds_to_the_gradients_that_are_wanted_and_no_others)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, attention_bwd,
                  adds_to_the_gradients_that_are_wanted_and_no_others)
{
    static const bwd_case both[] = {{1, 35, 4, 2, 8, 3, HARD}, {1, 67, 2, 1, 64, 3, SOFT}};
    rig r = rig_open(*kind);
    for (int bf16 = 0; bf16 < 2; bf16++) {
        problem p;
        make(&p, &r, &both[bf16], bf16 && *kind != DMS_CPU);
        define(&p, &r);
        for (unsigned wanted = 0; wanted <= ALL; wanted++) {
            for (int i = 0; i < GRADS; i++)
                must(r.dev->upload(r.dev, p.grad[i].data, p.before[i],
                                   dms_tensor_bytes(&p.grad[i])));
            must(run(&p, wanted));
            expect(&p, wanted);
        }
        drop(&p);
    }
    rig_close(&r);
}

/* Runs one case in a process of its own under a schedule of the emulator (a device that has none
 * ignores it): all gradients, one after the other, in `out`. */
static void run_scheduled(const char *schedule, const bwd_case *c, bool bf16, float *out)
{
    const pid_t child = fork();
    cr_assert(child >= 0);
    if (!child) {
        rig r = {.seed = 1};
        problem p;
        setenv("CUDA_EMU_SCHED", schedule, 1);
        if (dms_device_open(&r.dev, rig_device(), 2) != DMS_OK ||
            dms_arena_open(&r.arena, r.dev, (size_t)64 << 20) != DMS_OK)
            _exit(1);
        make(&p, &r, c, bf16);
        define(&p, &r);
        if (run(&p, ALL) != DMS_OK)
            _exit(1);
        for (int i = 0; i < GRADS; i++) {
            float *got = rig_read(&p.grad[i]);
            memcpy(out, got, dms_tensor_bytes(&p.grad[i]));
            out += dms_count(&p.grad[i]);
            free(got);
        }
        _exit(0);
    }
    int status = 1;
    cr_assert(waitpid(child, &status, 0) == child && status == 0, "schedule %s failed", schedule);
}

ParameterizedTestParameters(attention_bwd, gives_the_same_bits_in_any_order_of_threads)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, attention_bwd, gives_the_same_bits_in_any_order_of_threads)
{
    enum { RUNS = 3 };
    static const char *const schedules[RUNS] = {"fwd", "rev", "rand:7"};
    static const bwd_case both[] = {{1, 67, 6, 2, 40, 16, SOFT}, {1, 131, 4, 2, 64, 16, SOFT}};
    const size_t most = 131 * (4 + 2 + 2) * 64 + 2 * 131;
    if (*kind == DMS_CPU)
        cr_skip_test("test_attention.c has this for the CPU");
    float *out = mmap(NULL, RUNS * most * sizeof(float), PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    cr_assert(out != MAP_FAILED);
    for (int bf16 = 0; bf16 < 2; bf16++)
        for (size_t i = 0; i < RUNS; i++) {
            run_scheduled(schedules[i], &both[bf16], bf16, out + i * most);
            cr_assert(!memcmp(out, out + i * most, most * sizeof(float)), "%s, %s", schedules[i],
                      bf16 ? "bf16" : "f32");
        }
    munmap(out, RUNS * most * sizeof(float));
}

ParameterizedTestParameters(attention_bwd, survives_scores_that_overflow_an_exponential)
{
    return rig_devices();
}

/* Scores of hundreds: exp(score) alone is infinite. The weights are close to 0 and 1 and err as
 * the scores do, by 1e-4 in f32. */
ParameterizedTest(dms_device_kind *kind, attention_bwd,
                  survives_scores_that_overflow_an_exponential)
{
    static const bwd_case both[] = {{1, 67, 2, 1, 24, 16, HARD}, {1, 67, 2, 1, 64, 16, HARD}};
    rig r = rig_open(*kind);
    for (int bf16 = 0; bf16 < 2; bf16++) {
        problem p;
        make(&p, &r, &both[bf16], bf16 && *kind != DMS_CPU);
        for (int64_t i = 0; i < p.count[Q]; i++)
            p.in[Q][i] *= 512;
        upload(&p, &r, Q);
        define(&p, &r);
        must(run(&p, ALL));
        for (int grad = 0; grad < GRADS; grad++) {
            float *got = rig_read(&p.grad[grad]);
            for (int64_t i = 0; i < p.count[shape_of[grad]]; i++) {
                const double want = (double)p.before[grad][i] + p.want[grad][i];
                const double off = 1e-3 * (1 + p.terms[grad][i]);
                cr_assert(fabs((double)got[i] - want) <= off + tolerance(&p, grad, i),
                          "%s[%lld] is %.8g, expected %.8g", grad_names[grad], (long long)i,
                          (double)got[i], want);
            }
            free(got);
        }
        drop(&p);
    }
    rig_close(&r);
}

ParameterizedTestParameters(attention_bwd, of_no_tokens_is_no_work)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, attention_bwd, of_no_tokens_is_no_work)
{
    static const bwd_case one = {1, 1, 2, 1, 64, 0, SOFT};
    static const int token_axis[INPUTS] = {
        [BIAS] = 2, [LSE] = 2, [Q] = 1, [K] = 1, [V] = 1, [DOUT] = 1, [O] = 1};
    rig r = rig_open(*kind);
    for (int bf16 = 0; bf16 < 2; bf16++) {
        problem p;
        make(&p, &r, &one, bf16);
        define(&p, &r);
        for (int i = 0; i < INPUTS; i++)
            p.device[i].shape[token_axis[i]] = 0;
        for (int i = 0; i < GRADS; i++)
            p.grad[i].shape[token_axis[shape_of[i]]] = 0;
        must(run(&p, ALL));
        drop(&p);
    }
    rig_close(&r);
}

ParameterizedTestParameters(attention_bwd, refuses_heads_wider_than_a_gpu_takes)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, attention_bwd, refuses_heads_wider_than_a_gpu_takes)
{
    static const bwd_case wide = {1, 3, 1, 1, 257, 0, SOFT};
    if (*kind == DMS_CPU)
        cr_skip_test("the CPU takes any width");
    rig r = rig_open(*kind);
    problem p;
    make(&p, &r, &wide, false);
    define(&p, &r);
    cr_assert(run(&p, ALL) == DMS_ERR_SHAPE);
    cr_assert(strstr(dms_error_text(), "is 257, expected at most 256"), "%s", dms_error_text());
    expect(&p, 0);
    drop(&p);
    rig_close(&r);
}
