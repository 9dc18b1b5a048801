/* The eviction gate against the definition in double (method.md sections 1 and 3). */
#include <math.h>
#include <stdlib.h>

#include "kernels/rng.h"
#include "tests/rig.h"

static const float tau = 0.1f;
static const struct {
    int64_t batch, groups, tokens;
} shapes[] = {{1, 1, 1}, {2, 3, 17}, {3, 2, 2}, {1, 5, 131}, {1, 1, 256}, {2, 2, 513}};

Test(gate, philox_gives_the_known_answers_of_random123)
{
    cr_assert(dms_philox(0, 0, 0, 0, 0) == 0x6627e8d5u);
    cr_assert(dms_philox(UINT64_MAX, UINT32_MAX, UINT32_MAX, UINT32_MAX, UINT32_MAX) ==
              0x408f276du);
    cr_assert(dms_philox(0x299f31d0a4093822u, 0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u) ==
              0xd16cfe09u);
}

/* The noise that gate_soft draws for all tokens of a row but the first, whose bias no key takes;
 * the caller frees it. With z = 0 and a tau of 2^-40 every u is a long way from 0 and the bias,
 * -softplus(u), is a ramp: exactly -n * 2^40 where n > 0; with -2^-40 it is the ramp of n < 0. */
static float *drawn(rig *r, dms_tensor shape, const dms_noise_spec *spec)
{
    const size_t count = (size_t)dms_count(&shape);
    dms_tensor z = rig_zero(r, shape), bias = rig_empty(r, shape), d = rig_empty(r, shape);
    float *noise = calloc(count, sizeof(float));
    for (int side = -1; side <= 1; side += 2) {
        must(dms_gate_soft(&bias, &d, &z,
                           &(dms_relaxed_gate){.tau = (float)side * 0x1p-40f, .noise = *spec}));
        float *ramp = rig_read(&bias);
        for (size_t i = 0; i + 1 < count; i++)
            noise[i + 1] -= (float)side * 0x1p-40f * ramp[i];
        free(ramp);
    }
    return noise;
}

ParameterizedTestParameters(gate, noise_follows_its_definition)
{
    return rig_devices();
}

/* Every part of the counter is seen: other rows, other steps and a sequence that does not start at
 * 0 give other words. The gradient, p(1 - p), sees the noise of every token again. */
ParameterizedTest(dms_device_kind *kind, gate, noise_follows_its_definition)
{
    const dms_noise_spec spec = {0x123456789abcdef0u, 7, 40, 5};
    rig r = rig_open(*kind);
    for (size_t s = 0; s < COUNT(shapes); s++) {
        const int64_t B = shapes[s].batch, G = shapes[s].groups, T = shapes[s].tokens;
        const dms_tensor shape = rig_shape(B, G, T, 0);
        dms_tensor z = rig_zero(&r, shape), bias = rig_empty(&r, shape), d = rig_empty(&r, shape);
        dms_tensor dz = rig_zero(&r, shape);
        dms_tensor pressure = rig_upload(&r, rig_shape(B, 0, 0, 0), (float[]){1, 1, 1});
        float *got = drawn(&r, shape, &spec), *slope = malloc((size_t)(B * G * T) * sizeof(float));
        float *sign = malloc((size_t)(B * G * T) * sizeof(float));
        for (int64_t i = 0; i < B * G * T; i++) {
            const uint32_t x = dms_philox(spec.seed, 7, (uint32_t)(40 + i / (G * T)),
                                          (uint32_t)(5 * G + i / T % G), (uint32_t)(i % T));
            const double u = ((double)(x >> 9) + 0.5) * 0x1p-23, n = log(u) - log(1.0 - u);
            cr_assert(i % T == 0 || fabs((double)got[i] - n) <= 1e-6 + 1e-6 * fabs(n),
                      "noise %lld is %g, expected %g", (long long)i, (double)got[i], n);
            slope[i] = (float)(u * (1.0 - u)); /* sigmoid(n) = u */
            sign[i] = u > 0.5;
        }
        const dms_relaxed_gate plain = {.tau = 1.0f, .noise = spec};
        must(dms_gate_soft(&bias, &d, &z, &plain));
        must(dms_gate_soft_bwd(&dz, &z, &pressure, &z, &plain));
        rig_expect("d", &d, sign, 0, 0);
        rig_expect("dz", &dz, slope, 2e-6f, 0); /* n within 1e-6 as above, and that of expf */
        free(got);
        free(slope);
        free(sign);
    }
    rig_close(&r);
}

Test(gate, noise_is_logistic)
{
    enum { COUNTED = 1 << 18 };
    rig r = rig_open(rig_device());
    const dms_tensor shape = rig_shape(1, 2, COUNTED / 2 + 1, 0);
    float *host = drawn(&r, shape, &(dms_noise_spec){.seed = 1});
    double below = 0, square = 0;
    for (int64_t i = 0; i < dms_count(&shape); i++) {
        if (i % dms_cols(&shape) == 0)
            continue;
        below += (double)host[i] < -2;
        square += (double)host[i] * (double)host[i] / COUNTED;
    }
    /* sigmoid(-2) = 0.1192 and pi^2/3 = 3.290, each within 5 standard errors */
    cr_assert(fabs(below / COUNTED - 0.1192) < 5 * sqrt(0.1192 * 0.8808 / COUNTED));
    cr_assert(fabs(square - 3.290) < 5 * sqrt((21.0 / 5 - 1) * 3.29 * 3.29 / COUNTED));
    free(host);
    rig_close(&r);
}

ParameterizedTestParameters(gate, logit_and_its_gradient_follow_their_definitions)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, gate, logit_and_its_gradient_follow_their_definitions)
{
    rig r = rig_open(*kind);
    for (size_t s = 0; s < COUNT(shapes); s++) {
        const int64_t B = shapes[s].batch, G = shapes[s].groups, T = shapes[s].tokens;
        const dms_logit_spec spec = {100.0f, 5.0f};
        dms_tensor y = rig_noise(&r, rig_shape(B, T, G, 0)), dy = rig_noise(&r, y);
        dms_tensor z = rig_empty(&r, rig_shape(B, G, T, 0)), dz = rig_noise(&r, z);
        float *hy = rig_read(&y), *hdz = rig_read(&dz), *want_dy = rig_read(&dy);
        float *want_z = malloc((size_t)(B * G * T) * sizeof(float));
        for (int64_t i = 0; i < B * G * T; i++) {
            const int64_t b = i / (G * T), g = i / T % G, t = i % T;
            const int64_t at = (b * T + t) * G + g;
            want_z[i] = (float)(100.0 * (double)hy[at] - 5.0);
            want_dy[at] = (float)((double)want_dy[at] + 100.0 * (double)hdz[i]);
        }
        must(dms_eviction_logit(&z, &y, &spec));
        must(dms_eviction_logit_bwd(&dy, &dz, &spec));
        rig_expect("z", &z, want_z, 1e-6f, 1e-5f);
        rig_expect("dy", &dy, want_dy, 1e-6f, 1e-5f);
        free(hy);
        free(hdz);
        free(want_dy);
        free(want_z);
    }
    rig_close(&r);
}

/* z within +-100 of 0 for some tokens, within +-1 for others: u goes up to +-1000, and to 0. */
static dms_tensor logits(rig *r, dms_tensor shape)
{
    const int64_t n = dms_count(&shape);
    float *host = malloc((size_t)n * sizeof(float));
    for (int64_t i = 0; i < n; i++)
        host[i] = (i % 3 ? 1.0f : 100.0f) * rig_random(r);
    const dms_tensor z = rig_upload(r, shape, host);
    free(host);
    return z;
}

/* u in f32, as the op computes it: the rest of the definition is in double. */
static double argument(const float *z, const float *n, int64_t i)
{
    return (double)((z[i] + n[i]) / tau);
}

static double sigmoid(double u)
{
    return u > 0 ? 1 / (1 + exp(-u)) : exp(u) / (1 + exp(u));
}

static double softplus(double u)
{
    return (u > 0 ? u : 0) + log1p(exp(-fabs(u)));
}

static void check_soft(rig *r, dms_tensor shape)
{
    const int64_t T = dms_cols(&shape), count = dms_count(&shape), of_one = count / shape.shape[0];
    dms_tensor z = logits(r, shape), n = rig_noise(r, shape), dz = rig_noise(r, shape);
    dms_tensor bias = rig_empty(r, shape), d = rig_empty(r, shape), dbias = rig_noise(r, shape);
    dms_tensor pressure = rig_noise(r, rig_shape(shape.shape[0], 0, 0, 0));
    float *hz = rig_read(&z), *hn = rig_read(&n), *push = rig_read(&pressure);
    float *up = rig_read(&dbias), *want_dz = rig_read(&dz), *want_d = rig_read(&z);
    float *want_bias = rig_read(&z);
    const dms_relaxed_gate gate = {.tau = tau, .injected = &n};

    for (int64_t i = 0; i < count; i++) {
        const double u = argument(hz, hn, i), p = sigmoid(u);
        const bool first = i % T == 0, last = i % T == T - 1;
        want_d[i] = p > 0.5;
        want_bias[i] = last ? 0 : (float)-softplus(argument(hz, hn, i + 1));
        want_dz[i] += (float)(((first ? 0 : -p * (double)up[i - 1]) +
                               (double)push[i / of_one] * p * (1 - p)) /
                              (double)tau);
    }
    must(dms_gate_soft(&bias, &d, &z, &gate));
    must(dms_gate_soft_bwd(&dz, &dbias, &pressure, &z, &gate));
    rig_expect("bias", &bias, want_bias, 1e-6f, 1e-30f);
    rig_expect("d", &d, want_d, 0, 0);
    rig_expect("dz", &dz, want_dz, 1e-6f, 2e-6f); /* values up to 10, and sums of them */
    float *all[] = {hz, hn, push, up, want_dz, want_d, want_bias};
    for (size_t i = 0; i < COUNT(all); i++)
        free(all[i]);
}

ParameterizedTestParameters(gate, soft_decision_follows_its_definition_and_its_gradient)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, gate,
                  soft_decision_follows_its_definition_and_its_gradient)
{
    rig r = rig_open(*kind);
    for (size_t s = 0; s < COUNT(shapes); s++)
        check_soft(&r, rig_shape(shapes[s].batch, shapes[s].groups, shapes[s].tokens, 0));
    rig_close(&r);
}

/* The gradient is that of sum(dbias*bias) + pressure*sum(p): d passes the gradient of p straight
 * through. */
Test(gate, soft_gradient_agrees_with_finite_differences)
{
    enum { T = 5 };
    const double step = 1e-5;
    rig r = rig_open(rig_device());
    const dms_tensor shape = rig_shape(1, 1, T, 0);
    dms_tensor n = rig_noise(&r, shape), dbias = rig_noise(&r, shape), dz = rig_zero(&r, shape);
    dms_tensor pressure = rig_noise(&r, rig_shape(1, 0, 0, 0));
    const float hz[T] = {0.1f, -0.3f, 0.05f, 0.4f, -0.02f};
    dms_tensor z = rig_upload(&r, shape, hz);
    float *hn = rig_read(&n), *up = rig_read(&dbias), *push = rig_read(&pressure);
    const dms_relaxed_gate gate = {.tau = tau, .injected = &n};

    must(dms_gate_soft_bwd(&dz, &dbias, &pressure, &z, &gate));
    float *got = rig_read(&dz);
    for (int t = 0; t < T; t++) {
        double loss[2];
        for (int side = 0; side < 2; side++) {
            const double at = (double)hz[t] + (side ? step : -step) + (double)hn[t];
            loss[side] = (double)push[0] * sigmoid(at / (double)tau);
            if (t > 0)
                loss[side] -= (double)up[t - 1] * softplus(at / (double)tau);
        }
        const double slope = (loss[1] - loss[0]) / (2 * step);
        cr_assert(fabs((double)got[t] - slope) < 1e-5, "dz[%d] is %g, expected %g", t,
                  (double)got[t], slope);
    }
    free(hn);
    free(up);
    free(push);
    free(got);
    rig_close(&r);
}

ParameterizedTestParameters(gate, hard_decision_governs_the_token_before)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, gate, hard_decision_governs_the_token_before)
{
    const float logit[2][2][3] = {{{1, 0, 2}, {-1, 3, -2}}, {{-1, 0.5f, 0}, {4, 5, 6}}};
    const float inf = INFINITY;
    const float want_d[12] = {1, 0, 1, 0, 1, 0, 0, 1, 0, 1, 1, 1};
    const float want_bias[12] = {0, -inf, 0, -inf, 0, 0, -inf, 0, 0, -inf, -inf, 0};
    rig r = rig_open(*kind);
    dms_tensor z = rig_upload(&r, rig_shape(2, 2, 3, 0), logit);
    dms_tensor bias = rig_empty(&r, z), d = rig_empty(&r, z);

    must(dms_gate_hard(&bias, &d, &z));
    float *got_d = rig_read(&d), *got_bias = rig_read(&bias);
    cr_assert(!memcmp(got_d, want_d, sizeof(want_d)));
    cr_assert(!memcmp(got_bias, want_bias, sizeof(want_bias)));
    free(got_d);
    free(got_bias);
    rig_close(&r);
}

Test(gate, gives_the_same_bits_with_any_number_of_threads)
{
    enum { OUTPUTS = 4 };
    const dms_relaxed_gate gate = {.tau = tau, .noise.seed = 3};
    float *first[OUTPUTS] = {NULL};
    for (int threads = 1; threads <= 3; threads++) {
        rig r = rig_open_threads(DMS_CPU, threads);
        const dms_tensor shape = rig_shape(2, 3, 70, 0);
        dms_tensor y = rig_noise(&r, rig_shape(2, 70, 3, 0)), z = rig_empty(&r, shape);
        dms_tensor bias = rig_empty(&r, shape), d = rig_empty(&r, shape);
        dms_tensor dz = rig_zero(&r, shape), pressure = rig_noise(&r, rig_shape(2, 0, 0, 0));
        must(dms_eviction_logit(&z, &y, &(dms_logit_spec){4.0f, 1.0f}));
        must(dms_gate_soft(&bias, &d, &z, &gate));
        must(dms_gate_soft_bwd(&dz, &bias, &pressure, &z, &gate));
        const dms_tensor *out[OUTPUTS] = {&z, &bias, &d, &dz};
        rig_expect_bits(first, out, OUTPUTS);
        rig_close(&r);
    }
    for (int i = 0; i < OUTPUTS; i++)
        free(first[i]);
}

static void expect_message(dms_status status, const char *text)
{
    cr_assert(status == DMS_ERR_SHAPE, "%d", (int)status);
    cr_assert(strstr(dms_error_text(), text), "%s", dms_error_text());
}

Test(gate, names_the_tensor_that_does_not_fit)
{
    rig r = rig_open(DMS_CPU);
    const dms_tensor shape = rig_shape(2, 3, 5, 0);
    dms_tensor z = rig_noise(&r, shape), bias = z, d = z, flat = z, y = z;
    dms_tensor wrong = rig_noise(&r, rig_shape(2, 3, 4, 0));
    dms_tensor pressure = rig_noise(&r, rig_shape(3, 0, 0, 0));
    const dms_relaxed_gate drawing = {.tau = tau}, injecting = {.tau = tau, .injected = &wrong};
    const dms_logit_spec spec = {1.0f, 0.0f};
    flat.rank = 2;
    y = rig_noise(&r, rig_shape(2, 5, 2, 0));

    expect_message(dms_gate_soft(&wrong, &d, &z, &drawing),
                   "bias is [2, 3, 4] f32, expected [2, 3, 5] f32");
    expect_message(dms_gate_soft(&bias, &d, &z, &injecting),
                   "the injected noise is [2, 3, 4] f32, expected [2, 3, 5] f32");
    expect_message(dms_gate_soft_bwd(&z, &bias, &pressure, &z, &injecting),
                   "the injected noise is [2, 3, 4] f32, expected [2, 3, 5] f32");
    expect_message(dms_gate_soft_bwd(&z, &bias, &pressure, &z, &drawing),
                   "pressure is [3] f32, expected [2] f32");
    expect_message(dms_gate_hard(&bias, &wrong, &z), "d is [2, 3, 4] f32, expected [2, 3, 5] f32");
    expect_message(dms_gate_soft(&bias, &d, &flat, &drawing), "z has 2 dimensions, expected 3");
    expect_message(dms_eviction_logit(&z, &y, &spec), "z is [2, 3, 5] f32, expected [2, 2, 5] f32");
    expect_message(dms_eviction_logit_bwd(&y, &wrong, &spec),
                   "z is [2, 3, 4] f32, expected [2, 2, 5] f32");
    rig_close(&r);
}
