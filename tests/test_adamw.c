/* AdamW and the global norm against torch's formula in double. */
#include <math.h>
#include <stdlib.h>

#include "kernels/bf16.h"
#include "tests/rig.h"

typedef struct {
    dms_tensor w, copy, m, v, g, norm;
} buffers;

static buffers open_buffers(rig *r, int64_t n)
{
    const dms_tensor shape = rig_shape(n, 0, 0, 0);
    dms_tensor half = shape;
    half.dtype = DMS_BF16;
    return (buffers){rig_noise(r, shape), rig_zero(r, half),  rig_zero(r, shape),
                     rig_zero(r, shape),  rig_zero(r, shape), rig_zero(r, rig_shape(1, 0, 0, 0))};
}

static dms_adamw_state state_of(buffers *b, bool copy)
{
    return (dms_adamw_state){&b->w, copy ? &b->copy : NULL, &b->m, &b->v};
}

/* torch.optim.AdamW (torch/optim/adamw.py, the single-tensor path) after clip_grad_norm_. */
typedef struct {
    double *w, *m, *v;
} moments;

static double define(moments *s, const float *g, int64_t n, const dms_adamw_spec *spec)
{
    double square = 0;
    for (int64_t i = 0; i < n; i++)
        square += (double)g[i] * (double)g[i];
    const double norm = sqrt(square), b1 = (double)spec->beta1, b2 = (double)spec->beta2;
    const double scale = spec->clip > 0 ? fmin(1, (double)spec->clip / (norm + 1e-6)) : 1;
    const double correct1 = 1 - pow(b1, (double)spec->step);
    const double correct2 = 1 - pow(b2, (double)spec->step);
    for (int64_t i = 0; i < n; i++) {
        const double d = (double)g[i] * scale;
        s->w[i] *= 1 - (double)spec->lr * (double)spec->weight_decay;
        s->m[i] = b1 * s->m[i] + (1 - b1) * d;
        s->v[i] = b2 * s->v[i] + (1 - b2) * d * d;
        s->w[i] -= (double)spec->lr / correct1 * s->m[i] /
                   (sqrt(s->v[i]) / sqrt(correct2) + (double)spec->eps);
    }
    return norm;
}

static void expect(const char *what, const dms_tensor *got, const double *want, float rtol,
                   float atol)
{
    const int64_t n = dms_count(got);
    float *narrow = malloc((size_t)n * sizeof(float));
    for (int64_t i = 0; i < n; i++)
        narrow[i] = (float)want[i];
    rig_expect(what, got, narrow, rtol, atol);
    free(narrow);
}

static moments open_moments(const dms_tensor *w)
{
    const int64_t n = dms_count(w);
    moments s = {malloc((size_t)n * sizeof(double)), calloc((size_t)n, sizeof(double)),
                 calloc((size_t)n, sizeof(double))};
    float *host = rig_read(w);
    for (int64_t i = 0; i < n; i++)
        s.w[i] = (double)host[i];
    free(host);
    return s;
}

static void expect_copy(const buffers *b)
{
    float *w = rig_read(&b->w), *copy = rig_read(&b->copy);
    for (int64_t i = 0; i < dms_count(&b->w); i++)
        cr_assert(copy[i] == dms_bf16_to_f32(dms_bf16_from_f32(w[i])), "copy[%lld]", (long long)i);
    free(w);
    free(copy);
}

/* Six steps of fresh gradients. A step moves a weight by about lr = 0.01, so 1e-6 is 1e-5 of all
 * six. */
static void follow(rig *r, int64_t n, const dms_adamw_spec *fixed, bool copy)
{
    buffers b = open_buffers(r, n);
    moments s = open_moments(&b.w);
    const dms_adamw_state state = state_of(&b, copy);
    for (int step = 1; step <= 6; step++) {
        dms_adamw_spec spec = *fixed;
        spec.step = step;
        dms_tensor g = rig_noise(r, b.g);
        float *host = rig_read(&g);
        const double norm = define(&s, host, n, &spec);
        must(dms_l2_norm(&b.norm, &g));
        must(dms_adamw(&state, &g, &b.norm, &spec));
        expect("norm", &b.norm, &norm, 1e-6f, 0);
        free(host);
    }
    expect("w", &b.w, s.w, 1e-6f, 1e-6f);
    expect("m", &b.m, s.m, 1e-5f, 1e-7f);
    expect("v", &b.v, s.v, 1e-5f, 1e-9f);
    if (copy)
        expect_copy(&b);
    free(s.w);
    free(s.m);
    free(s.v);
}

ParameterizedTestParameters(adamw, follows_torch_over_several_steps)
{
    return rig_devices();
}

/* The clip of 1000 never bites, that of 0.01 always does. */
ParameterizedTest(dms_device_kind *kind, adamw, follows_torch_over_several_steps)
{
    static const int64_t sizes[] = {1, 15, 17, 131};
    static const float clips[] = {0, 1000, 0.01f}, decays[] = {0, 0.1f};
    rig r = rig_open(*kind);
    for (size_t i = 0; i < COUNT(sizes); i++)
        for (size_t c = 0; c < COUNT(clips); c++)
            for (size_t d = 0; d < COUNT(decays); d++)
                follow(&r, sizes[i],
                       &(dms_adamw_spec){.lr = 0.01f,
                                         .beta1 = 0.9f,
                                         .beta2 = 0.95f,
                                         .eps = 1e-8f,
                                         .weight_decay = decays[d],
                                         .clip = clips[c]},
                       d > 0);
    rig_close(&r);
}

/* With gradients as small as eps, where eps stands (outside the root) decides the step. */
Test(adamw, puts_eps_outside_the_square_root)
{
    const dms_adamw_spec spec = {
        .lr = 0.01f, .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-3f, .step = 1};
    const float gradient = 1e-3f, weight = 0;
    rig r = rig_open(rig_device());
    buffers b = open_buffers(&r, 1);
    const dms_adamw_state state = state_of(&b, false);
    b.g = rig_upload(&r, b.g, &gradient);
    b.w = rig_upload(&r, b.w, &weight);
    must(dms_l2_norm(&b.norm, &b.g));
    must(dms_adamw(&state, &b.g, &b.norm, &spec));
    rig_expect("w", &b.w, &(float){-0.005f}, 1e-5f, 0);
    rig_close(&r);
}

Test(adamw, norm_sums_as_if_in_double)
{
    /* one below and above the 65,536 elements of a partial sum; on a GPU more than its 1024 blocks
     * of 1024 take in one go; squares that leave f32's range */
    static const int64_t sizes[] = {1, 13, 65535, 65536, 65537, 131101, 1050001};
    rig r = rig_open(rig_device());
    for (size_t s = 0; s < COUNT(sizes); s++) {
        const int64_t n = sizes[s];
        const float size = s % 2 ? 1e25f : 1e-25f;
        float *host = malloc((size_t)n * sizeof(float));
        double square = 0;
        for (int64_t i = 0; i < n; i++) {
            host[i] = rig_random(&r) * size;
            square += (double)host[i] * (double)host[i];
        }
        dms_tensor g = rig_upload(&r, rig_shape(n, 0, 0, 0), host);
        dms_tensor norm = rig_empty(&r, rig_shape(1, 0, 0, 0));
        must(dms_l2_norm(&norm, &g));
        const double want = sqrt(square);
        expect("norm", &norm, &want, 1e-6f, 0);
        free(host);
    }
    rig_close(&r);
}

/* At the first element, inside a vector, in the rest of a row of vectors, in the last chunk. */
Test(adamw, norm_of_anything_not_finite_is_not_finite)
{
    const int64_t n = 65536 + 7, places[] = {0, 21, 65535, 65536, n - 1};
    const float values[] = {INFINITY, -INFINITY, NAN};
    rig r = rig_open(rig_device());
    dms_tensor norm = rig_empty(&r, rig_shape(1, 0, 0, 0));
    float *host = calloc((size_t)n, sizeof(float));
    for (size_t p = 0; p < COUNT(places); p++)
        for (size_t v = 0; v < COUNT(values); v++) {
            host[places[p]] = values[v];
            dms_tensor g = rig_upload(&r, rig_shape(n, 0, 0, 0), host);
            host[places[p]] = 0;
            must(dms_l2_norm(&norm, &g));
            float *got = rig_read(&norm);
            cr_assert(!isfinite(got[0]), "%g at %lld gives %g", (double)values[v],
                      (long long)places[p], (double)got[0]);
            free(got);
        }
    free(host);
    rig_close(&r);
}

Test(adamw, has_the_same_bits_with_any_number_of_threads)
{
    const int64_t n = 200003;
    const dms_adamw_spec spec = {.lr = 0.01f,
                                 .beta1 = 0.9f,
                                 .beta2 = 0.95f,
                                 .eps = 1e-8f,
                                 .weight_decay = 0.1f,
                                 .clip = 1,
                                 .step = 3};
    float *first[5] = {0};
    for (int threads = 1; threads <= 3; threads++) {
        rig r = rig_open_threads(DMS_CPU, threads);
        buffers b = open_buffers(&r, n);
        const dms_adamw_state state = state_of(&b, true);
        dms_tensor g = rig_noise(&r, b.g);
        must(dms_l2_norm(&b.norm, &g));
        must(dms_adamw(&state, &g, &b.norm, &spec));
        const dms_tensor *out[5] = {&b.w, &b.copy, &b.m, &b.v, &b.norm};
        rig_expect_bits(first, out, 5);
        rig_close(&r);
    }
    for (int i = 0; i < 5; i++)
        free(first[i]);
}

Test(adamw, names_the_tensor_that_does_not_fit)
{
    const dms_adamw_spec spec = {.step = 1};
    rig r = rig_open(DMS_CPU);
    buffers b = open_buffers(&r, 6), other = open_buffers(&r, 5);
    dms_adamw_state state = state_of(&b, true);
    state.v = &other.v;
    cr_assert(dms_adamw(&state, &b.g, &b.norm, &spec) == DMS_ERR_SHAPE);
    cr_assert(strstr(dms_error_text(), "v is [5] f32, expected 6 elements of f32"), "%s",
              dms_error_text());
    state = state_of(&b, true);
    state.copy = &b.v;
    cr_assert(dms_adamw(&state, &b.g, &b.norm, &spec) != DMS_OK);
    cr_assert(strstr(dms_error_text(), "copy is [6] f32, expected 6 elements of bf16"), "%s",
              dms_error_text());
    cr_assert(dms_l2_norm(&b.w, &b.g) == DMS_ERR_SHAPE);
    cr_assert(strstr(dms_error_text(), "norm is [6] f32, expected 1 element"), "%s",
              dms_error_text());
    rig_close(&r);
}
