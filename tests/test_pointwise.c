/* Element by element ops and the embedding against their definitions in double. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "autograd/ad.h"
#include "kernels/bf16.h"
#include "tests/rig.h"

/* One below, at and above a vector of 16, and enough to be shared by a team of threads. */
static const int64_t sizes[] = {1, 13, 15, 16, 17, 257, 40009};

/* ---- axpy, cast --------------------------------------------------------------------- */

ParameterizedTestParameters(pointwise, axpy_follows_its_definition)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, pointwise, axpy_follows_its_definition)
{
    rig r = rig_open(*kind);
    for (size_t s = 0; s < COUNT(sizes); s++) {
        const int64_t n = sizes[s];
        dms_tensor a = rig_noise(&r, rig_shape(n, 0, 0, 0)), b = rig_noise(&r, a);
        float *ha = rig_read(&a), *hb = rig_read(&b);
        float *scaled = malloc((size_t)n * sizeof(float));
        for (int64_t i = 0; i < n; i++)
            scaled[i] = (float)((double)hb[i] - 0.3 * (double)ha[i]);
        must(dms_axpy(&b, -0.3f, &a));
        rig_expect("b - 0.3a", &b, scaled, 1e-6f, 1e-7f);
        free(ha);
        free(hb);
        free(scaled);
    }
    rig_close(&r);
}

static float from_bits(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof(f));
    return f;
}

ParameterizedTestParameters(pointwise, cast_rounds_to_nearest_even)
{
    return rig_devices();
}

/* Below, at and above a tie with an even and an odd last bit; carry into the exponent and into
 * infinity; subnormals; signs; infinities; NaN whose payload lies in the bits that fall away. */
ParameterizedTest(dms_device_kind *kind, pointwise, cast_rounds_to_nearest_even)
{
    static const struct {
        uint32_t from;
        uint16_t to;
    } cases[] = {
        {0x3f800000, 0x3f80}, {0x3f807fff, 0x3f80}, {0x3f808000, 0x3f80}, {0x3f808001, 0x3f81},
        {0x3f817fff, 0x3f81}, {0x3f818000, 0x3f82}, {0x3f818001, 0x3f82}, {0xbf808000, 0xbf80},
        {0xbf818000, 0xbf82}, {0x3fff8000, 0x4000}, {0x7f7fffff, 0x7f80}, {0xff7f8000, 0xff80},
        {0x7f7f7fff, 0x7f7f}, {0x00000000, 0x0000}, {0x80000000, 0x8000}, {0x00008000, 0x0000},
        {0x00008001, 0x0001}, {0x00018000, 0x0002}, {0x7f800000, 0x7f80}, {0xff800000, 0xff80}};
    static const uint32_t nans[] = {0x7fc00000, 0x7f800001, 0xff80ffff, 0x7fffffff};
    enum { N = COUNT(cases) + COUNT(nans) };
    float from[N];
    uint16_t to[N];
    for (size_t i = 0; i < N; i++)
        from[i] = from_bits(i < COUNT(cases) ? cases[i].from : nans[i - COUNT(cases)]);
    rig r = rig_open(*kind);
    dms_tensor x = rig_upload(&r, rig_shape(N, 0, 0, 0), from), like = x, back = rig_empty(&r, x);
    like.dtype = DMS_BF16;
    dms_tensor y = rig_empty(&r, like);
    must(dms_cast(&y, &x));
    must(r.dev->download(r.dev, to, y.data, sizeof(to)));
    for (size_t i = 0; i < COUNT(cases); i++)
        cr_assert(to[i] == cases[i].to, "%08x becomes %04x, expected %04x", cases[i].from, to[i],
                  cases[i].to);
    must(dms_cast(&back, &y));
    float *wide = rig_read(&back);
    for (size_t i = 0; i < N; i++)
        cr_assert(i < COUNT(cases) ? wide[i] == from_bits((uint32_t)cases[i].to << 16)
                                   : isnan(wide[i]),
                  "case %zu comes back as %g", i, (double)wide[i]);
    free(wide);
    rig_close(&r);
}

Test(pointwise, cast_to_the_same_type_copies_and_every_length_is_whole)
{
    rig r = rig_open(rig_device());
    for (size_t s = 0; s < COUNT(sizes); s++) {
        dms_tensor x = rig_noise(&r, rig_shape(sizes[s], 0, 0, 0)), copy = rig_empty(&r, x);
        dms_tensor half = x;
        half.dtype = DMS_BF16;
        half = rig_empty(&r, half);
        float *want = rig_read(&x);
        must(dms_cast(&copy, &x));
        rig_expect("copy", &copy, want, 0, 0);
        must(dms_cast(&half, &x));
        must(dms_cast(&copy, &half));
        rig_expect("there and back", &copy, want, 0x1p-8f, 0);
        free(want);
    }
    rig_close(&r);
}

/* ---- swiglu ------------------------------------------------------------------------------ */

/* Gates from the noise of the rig, stretched to where exp leaves the normal numbers. */
static dms_tensor wide_noise(rig *r, int64_t n, float width)
{
    float *host = malloc((size_t)n * sizeof(float));
    for (int64_t i = 0; i < n; i++)
        host[i] = width * rig_random(r);
    const dms_tensor t = rig_upload(r, rig_shape(n, 0, 0, 0), host);
    free(host);
    return t;
}

/* Into bf16: to the bit as if its f32 were cast. */
static void expect_rounded(rig *r, const dms_tensor *y, const dms_tensor *gate,
                           const dms_tensor *up)
{
    dms_tensor half = *y;
    half.dtype = DMS_BF16;
    dms_tensor cast = rig_empty(r, half);
    half = rig_empty(r, half);
    must(dms_cast(&cast, y));
    must(dms_swiglu(&half, gate, up));
    float *want = rig_read(&cast);
    rig_expect("y in bf16", &half, want, 0, 0);
    free(want);
}

ParameterizedTestParameters(pointwise, swiglu_and_its_gradient_follow_their_definitions)
{
    return rig_devices();
}

/* 1e-6 relative to the terms: exp is good to 2 units in the last place. The sums start from
 * noise: a backward pass adds. */
ParameterizedTest(dms_device_kind *kind, pointwise,
                  swiglu_and_its_gradient_follow_their_definitions)
{
    rig r = rig_open(*kind);
    for (size_t s = 0; s < COUNT(sizes); s++) {
        const int64_t n = sizes[s];
        dms_tensor gate = wide_noise(&r, n, s % 2 ? 120.0f : 4.0f), up = rig_noise(&r, gate);
        dms_tensor dy = rig_noise(&r, gate), dgate = rig_noise(&r, gate), dup = rig_noise(&r, gate);
        dms_tensor y = rig_empty(&r, gate);
        float *g = rig_read(&gate), *u = rig_read(&up), *d = rig_read(&dy), *want = rig_read(&y);
        float *dg = rig_read(&dgate), *du = rig_read(&dup);
        for (int64_t i = 0; i < n; i++) {
            const double x = (double)g[i], p = 1 / (1 + exp(-x)), v = (double)u[i];
            want[i] = (float)(x * p * v);
            dg[i] += (float)((double)d[i] * v * p * (1 + x * (1 - p)));
            du[i] += (float)((double)d[i] * x * p);
        }
        must(dms_swiglu(&y, &gate, &up));
        must(dms_swiglu_bwd(&dgate, &dup, &dy, &gate, &up));
        rig_expect("y", &y, want, 2e-6f, 1e-30f);
        expect_rounded(&r, &y, &gate, &up);
        rig_expect("dgate", &dgate, dg, 2e-6f, 1e-6f);
        rig_expect("dup", &dup, du, 2e-6f, 1e-6f);
        must(dms_swiglu_bwd(NULL, NULL, &dy, &gate, &up));
        rig_expect("dgate that nobody asked for", &dgate, dg, 2e-6f, 1e-6f);
        free(g);
        free(u);
        free(d);
        free(want);
        free(dg);
        free(du);
    }
    rig_close(&r);
}

static dms_var *swiglu(dms_tape *tape, dms_var **in)
{
    return dms_ad_swiglu(tape, in[0], in[1], DMS_F32);
}

Test(pointwise, gradients_agree_with_finite_differences)
{
    rig r = rig_open(rig_device());
    dms_var gate = rig_var(&r, rig_shape(3, 7, 0, 0)), up = rig_var(&r, gate.value);
    rig_expect_gradient(&r, swiglu, (dms_var *[]){&gate, &up}, 2, 1e-2f, 1e-3f);
    rig_close(&r);
}

/* ---- gelu -------------------------------------------------------------------------------- */

static double gelu_of(double x)
{
    return x / 2 * (1 + tanh(sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x)));
}

ParameterizedTestParameters(pointwise, gelu_and_its_gradient_follow_their_definitions)
{
    return rig_devices();
}

/* The derivative by central differences of the definition in double, good to 1e-9. */
ParameterizedTest(dms_device_kind *kind, pointwise, gelu_and_its_gradient_follow_their_definitions)
{
    rig r = rig_open(*kind);
    for (size_t s = 0; s < COUNT(sizes); s++) {
        const int64_t n = sizes[s];
        dms_tensor x = wide_noise(&r, n, s % 2 ? 60.0f : 4.0f), dy = rig_noise(&r, x), half = x;
        dms_tensor dx = rig_noise(&r, x), y = rig_empty(&r, x), cast = x;
        half.dtype = cast.dtype = DMS_BF16;
        half = rig_empty(&r, half);
        cast = rig_empty(&r, cast);
        float *in = rig_read(&x), *d = rig_read(&dy), *want = rig_read(&y), *grad = rig_read(&dx);
        for (int64_t i = 0; i < n; i++) {
            const double at = (double)in[i], h = 1e-5;
            want[i] = (float)gelu_of(at);
            grad[i] += (float)((double)d[i] * (gelu_of(at + h) - gelu_of(at - h)) / (2 * h));
        }
        must(dms_gelu(&y, &x));
        must(dms_gelu_bwd(&dx, &dy, &x));
        /* where tanh is near -1 the definition's own 1 + tanh loses what a sigmoid keeps */
        rig_expect("y", &y, want, 2e-6f, 1e-6f);
        rig_expect("dx", &dx, grad, 2e-6f, 2e-6f);
        must(dms_gelu(&half, &x));
        must(dms_cast(&cast, &y));
        float *rounded = rig_read(&cast);
        rig_expect("y in bf16", &half, rounded, 0, 0);
        must(dms_gelu_bwd(NULL, &dy, &x));
        free(in);
        free(d);
        free(want);
        free(grad);
        free(rounded);
    }
    rig_close(&r);
}

static dms_var *gelu(dms_tape *tape, dms_var **in)
{
    return dms_ad_gelu(tape, in[0], DMS_F32);
}

Test(pointwise, gradient_of_gelu_agrees_with_finite_differences)
{
    rig r = rig_open(rig_device());
    dms_var x = rig_var(&r, rig_shape(3, 7, 0, 0));
    rig_expect_gradient(&r, gelu, (dms_var *[]){&x}, 1, 1e-2f, 1e-3f);
    rig_close(&r);
}

/* ---- embedding --------------------------------------------------------------------------- */

ParameterizedTestParameters(pointwise, embedding_looks_rows_up_and_adds_repeated_tokens)
{
    return rig_devices();
}

/* Widths around the 32 channels that one thread owns; 7 tokens of a vocabulary of 5 repeat. */
ParameterizedTest(dms_device_kind *kind, pointwise,
                  embedding_looks_rows_up_and_adds_repeated_tokens)
{
    static const int64_t widths[] = {1, 31, 32, 33, 67};
    const int32_t tokens[] = {4, 0, 2, 4, 4, 1, 0};
    rig r = rig_open(*kind);
    dms_tensor ids = rig_upload(&r, rig_shape_i32(1, COUNT(tokens)), tokens);
    for (size_t s = 0; s < COUNT(widths); s++)
        for (int half = 0; half < 2; half++) {
            const int64_t dim = widths[s];
            dms_tensor shape = rig_shape(5, dim, 0, 0);
            shape.dtype = half ? DMS_BF16 : DMS_F32;
            dms_tensor w = rig_noise(&r, shape), dw = rig_noise(&r, rig_shape(5, dim, 0, 0));
            dms_tensor y = rig_empty(&r, rig_shape(1, COUNT(tokens), dim, 0));
            dms_tensor dy = rig_noise(&r, y);
            float *rows = rig_read(&w), *grad = rig_read(&dw), *up = rig_read(&dy);
            float *want = malloc(dms_tensor_bytes(&y));
            for (int64_t i = 0; i < (int64_t)COUNT(tokens) * dim; i++) {
                want[i] = rows[tokens[i / dim] * dim + i % dim];
                grad[tokens[i / dim] * dim + i % dim] += up[i]; /* in the order of the tokens */
            }
            must(dms_embedding(&y, &ids, &w));
            must(dms_embedding_bwd(&dw, &dy, &ids));
            rig_expect("y", &y, want, 0, 0);
            rig_expect("dw", &dw, grad, 0, 0);
            free(rows);
            free(grad);
            free(up);
            free(want);
        }
    rig_close(&r);
}

static const dms_tensor *gradient_ids;

static dms_var *embedding(dms_tape *tape, dms_var **in)
{
    return dms_ad_embedding(tape, gradient_ids, in[0], in[1]);
}

Test(pointwise, embedding_gradient_agrees_with_finite_differences)
{
    rig r = rig_open(rig_device());
    const dms_tensor ids = rig_upload(&r, rig_shape_i32(2, 3), (int32_t[]){1, 1, 3, 0, 1, 3});
    dms_var w = rig_var(&r, rig_shape(4, 5, 0, 0)), other = rig_var(&r, w.value);
    dms_var residual = rig_var(&r, rig_shape(2, 3, 5, 0));
    gradient_ids = &ids;
    rig_expect_gradient(&r, embedding, (dms_var *[]){&w, NULL}, 1, 1e-2f, 1e-3f);
    rig_expect_gradient(&r, embedding, (dms_var *[]){&other, &residual}, 2, 1e-2f, 1e-3f);
    rig_close(&r);
}

Test(pointwise, tokens_outside_the_vocabulary_are_refused)
{
    static const int32_t bad[] = {-1, 5, INT32_MAX, INT32_MIN};
    rig r = rig_open(DMS_CPU);
    dms_tensor w = rig_noise(&r, rig_shape(5, 3, 0, 0)), dw = rig_zero(&r, w);
    dms_tensor y = rig_zero(&r, rig_shape(1, 2, 3, 0));
    for (size_t i = 0; i < COUNT(bad); i++) {
        char text[80];
        const dms_tensor ids = rig_upload(&r, rig_shape_i32(1, 2), (int32_t[]){4, bad[i]});
        snprintf(text, sizeof(text), "token id is %d, expected 0 to 4", bad[i]);
        rig_expect_failure(dms_embedding(&y, &ids, &w), DMS_ERR_ARG, text);
        rig_expect_failure(dms_embedding_bwd(&dw, &y, &ids), DMS_ERR_ARG, text);
    }
    rig_close(&r);
}

/* ---- all of them ------------------------------------------------------------------------- */

enum { OUTPUTS = 10, VOCAB = 40 };

/* Everything that runs on a team of threads, with lengths that no team divides evenly. */
static void run_all(rig *r, dms_tensor out[OUTPUTS])
{
    const int64_t tokens = 263, cols = 131 * 2;
    dms_tensor a = rig_noise(r, rig_shape(1, tokens, cols, 0)), b = rig_noise(r, a);
    dms_tensor w = rig_noise(r, rig_shape(VOCAB, cols, 0, 0)), half = a;
    int32_t host[263];
    for (int64_t t = 0; t < tokens; t++)
        host[t] = (int32_t)(t * 7 % VOCAB);
    const dms_tensor ids = rig_upload(r, rig_shape_i32(1, tokens), host);
    half.dtype = DMS_BF16;
    for (int i = 0; i < OUTPUTS; i++)
        out[i] = rig_zero(r, i == 0 || i == 2 ? half : i == 1 ? w : a);
    must(dms_cast(&out[0], &a));
    must(dms_embedding_bwd(&out[1], &a, &ids));
    must(dms_swiglu(&out[2], &a, &b));
    must(dms_axpy(&out[3], 0.3f, &a));
    must(dms_axpy(&out[3], 0.7f, &b));
    must(dms_embedding(&out[4], &ids, &w));
    must(dms_swiglu(&out[5], &a, &b));
    must(dms_swiglu_bwd(&out[6], &out[7], &out[5], &a, &b));
    must(dms_gelu(&out[8], &a));
    must(dms_gelu_bwd(&out[9], &b, &a));
}

Test(pointwise, has_the_same_bits_with_any_number_of_threads)
{
    float *first[OUTPUTS] = {0};
    for (int threads = 1; threads <= 3; threads++) {
        rig r = rig_open_threads(DMS_CPU, threads);
        dms_tensor out[OUTPUTS];
        run_all(&r, out);
        for (int i = 0; i < OUTPUTS; i++)
            rig_expect_bits(first + i, &(const dms_tensor *){&out[i]}, 1);
        rig_close(&r);
    }
    for (int i = 0; i < OUTPUTS; i++)
        free(first[i]);
}

Test(pointwise, names_the_tensor_that_does_not_fit)
{
    rig r = rig_open(DMS_CPU);
    dms_tensor a = rig_noise(&r, rig_shape(2, 3, 4, 0)), b = rig_noise(&r, rig_shape(2, 3, 5, 0));
    dms_tensor ids = rig_upload(&r, rig_shape_i32(2, 4), (int32_t[8]){0});
    dms_tensor w = rig_noise(&r, rig_shape(7, 4, 0, 0));
    const char *text = "is [2, 3, 5] f32, expected [2, 3, 4] f32";
    rig_expect_failure(dms_axpy(&b, 1, &a), DMS_ERR_SHAPE, text);
    rig_expect_failure(dms_cast(&b, &a), DMS_ERR_SHAPE, text);
    rig_expect_failure(dms_cast(&ids, &ids), DMS_ERR_DTYPE, "cast is from i32 to i32");
    rig_expect_failure(dms_swiglu(&a, &a, &b), DMS_ERR_SHAPE, "up is [2, 3, 5] f32");
    rig_expect_failure(dms_swiglu(&b, &a, &a), DMS_ERR_SHAPE, "y is [2, 3, 5] f32");
    rig_expect_failure(dms_swiglu_bwd(&a, &b, &a, &a, &a), DMS_ERR_SHAPE, "dup is [2, 3, 5] f32");
    rig_expect_failure(dms_gelu(&b, &a), DMS_ERR_SHAPE, "y is [2, 3, 5] f32");
    rig_expect_failure(dms_gelu_bwd(&b, &a, &a), DMS_ERR_SHAPE, "dx is [2, 3, 5] f32");
    rig_expect_failure(dms_embedding(&a, &ids, &w), DMS_ERR_SHAPE, "ids is [2, 4] i32, expected 6");
    rig_expect_failure(dms_embedding_bwd(&w, &a, &ids), DMS_ERR_SHAPE,
                       "ids is [2, 4] i32, expected 6");
    rig_close(&r);
}
