#include "tests/rig.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/bf16.h"

static const char *const device_names[] = {
    [DMS_CPU] = "cpu", [DMS_CUDA] = "cuda", [DMS_CUDA_EMU] = "cuda_emu"};

dms_device_kind rig_device(void)
{
    const char *name = getenv("DMS_TEST_DEVICE");
    size_t kind = 0;
    while (name && kind < COUNT(device_names) && strcmp(name, device_names[kind]) != 0)
        kind++;
    cr_assert(kind < COUNT(device_names), "DMS_TEST_DEVICE is %s, expected cpu, cuda or cuda_emu",
              name);
    return (dms_device_kind)kind;
}

const char *rig_device_name(void)
{
    return device_names[rig_device()];
}

struct criterion_test_params rig_devices(void)
{
    static dms_device_kind kinds[1];
    kinds[0] = rig_device();
    return cr_make_param_array(dms_device_kind, kinds, COUNT(kinds));
}

dms_device *rig_open_device(dms_device_kind kind, int threads)
{
    dms_device *dev = NULL;
    const dms_status status = dms_device_open(&dev, kind, threads);
    if (status == DMS_ERR_NODEVICE && kind == DMS_CUDA)
        cr_skip_test("%s", dms_error_text());
    must(status);
    return dev;
}

rig rig_open_threads(dms_device_kind kind, int threads)
{
    rig r = {.seed = 1};
    r.dev = rig_open_device(kind, threads);
    must(dms_arena_open(&r.arena, r.dev, (size_t)64 << 20));
    return r;
}

rig rig_open(dms_device_kind kind)
{
    return rig_open_threads(kind, 2);
}

void rig_close(rig *r)
{
    dms_arena_close(&r->arena);
    r->dev->close(r->dev);
}

dms_tensor rig_shape(int64_t a, int64_t b, int64_t c, int64_t d)
{
    return (dms_tensor){.dtype = DMS_F32,
                        .rank = 1 + (b > 0) + (b > 0 && c > 0) + (b > 0 && c > 0 && d > 0),
                        .shape = {a, b, c, d}};
}

dms_tensor rig_shape_i32(int64_t batch, int64_t tokens)
{
    dms_tensor t = rig_shape(batch, tokens, 0, 0);
    t.dtype = DMS_I32;
    return t;
}

dms_tensor rig_empty(rig *r, dms_tensor shape)
{
    must(dms_arena_place(&r->arena, &shape));
    return shape;
}

dms_tensor rig_upload(rig *r, dms_tensor shape, const void *host)
{
    dms_tensor t = rig_empty(r, shape);
    must(r->dev->upload(r->dev, t.data, host, dms_tensor_bytes(&t)));
    return t;
}

float rig_random(rig *r)
{
    r->seed = r->seed * 1664525u + 1013904223u;
    return (float)(r->seed >> 8) / 8388608.0f - 1.0f;
}

dms_tensor rig_noise(rig *r, dms_tensor shape)
{
    float *host = malloc((size_t)dms_count(&shape) * sizeof(float));
    for (int64_t i = 0; i < dms_count(&shape); i++) {
        host[i] = rig_random(r);
        if (shape.dtype == DMS_BF16)
            ((uint16_t *)host)[i] = dms_bf16_from_f32(host[i]);
    }
    dms_tensor t = rig_upload(r, shape, host);
    free(host);
    return t;
}

dms_tensor rig_zero(rig *r, dms_tensor shape)
{
    dms_tensor t = rig_empty(r, shape);
    must(r->dev->zero(r->dev, t.data, dms_tensor_bytes(&t)));
    return t;
}

dms_var rig_var(rig *r, dms_tensor shape)
{
    dms_tensor grad = shape;
    grad.dtype = DMS_F32;
    return (dms_var){rig_noise(r, shape), rig_zero(r, grad), true};
}

float *rig_read(const dms_tensor *t)
{
    const int64_t n = dms_count(t);
    float *host = malloc((size_t)n * sizeof(float));
    must(t->device->download(t->device, host, t->data, dms_tensor_bytes(t)));
    if (t->dtype == DMS_BF16)
        for (int64_t i = n - 1; i >= 0; i--)
            host[i] = dms_bf16_to_f32(((uint16_t *)host)[i]);
    if (t->dtype == DMS_I32)
        for (int64_t i = 0; i < n; i++)
            host[i] = (float)((int32_t *)host)[i];
    return host;
}

void rig_expect(const char *what, const dms_tensor *got, const float *want, float rtol, float atol)
{
    float *host = rig_read(got);
    for (int64_t i = 0; i < dms_count(got); i++)
        cr_assert(fabsf(host[i] - want[i]) <= atol + rtol * fabsf(want[i]),
                  "%s[%lld] is %.8g, expected %.8g on %s", what, (long long)i, (double)host[i],
                  (double)want[i], got->device->name);
    free(host);
}

static double weighted_sum(const dms_tensor *t, const float *weights)
{
    float *host = rig_read(t);
    double sum = 0;
    for (int64_t i = 0; i < dms_count(t); i++)
        sum += (double)host[i] * (double)weights[i];
    free(host);
    return sum;
}

typedef dms_var *build_fn(dms_tape *tape, dms_var **in);

typedef struct {
    dms_tape *tape;
    build_fn *build;
    dms_var **in;
    const float *weights;
    float step;
} probe;

/* (f(x + step) - f(x - step))/(2 step) for element i of `v`, f = weights . build(in). */
static double slope(const probe *p, dms_tensor *v, int64_t i)
{
    double loss[2];
    float *at = rig_read(v);
    const float here = at[i];
    for (int side = 0; side < 2; side++) {
        at[i] = here + (side ? p->step : -p->step);
        must(v->device->upload(v->device, v->data, at, dms_tensor_bytes(v)));
        dms_tape_reset(p->tape);
        loss[side] = weighted_sum(&p->build(p->tape, p->in)->value, p->weights);
    }
    at[i] = here;
    must(v->device->upload(v->device, v->data, at, dms_tensor_bytes(v)));
    free(at);
    return (loss[1] - loss[0]) / (2.0 * (double)p->step);
}

void rig_expect_gradient(rig *r, build_fn *build, dms_var **in, int n_in, float step, float rtol)
{
    dms_tape *tape = NULL;
    must(dms_tape_open(&tape, &(dms_tape_options){.device = r->dev,
                                                  .max_nodes = 64,
                                                  .keep_bytes = 1 << 22,
                                                  .scratch_bytes = 1 << 22,
                                                  .recording = true}));
    dms_var *out = build(tape, in);
    must(dms_tape_status(tape));
    dms_tensor seed = rig_noise(r, out->value);
    float *weights = rig_read(&seed);
    must(dms_tape_backward(tape, out, &seed));
    const probe p = {tape, build, in, weights, step};

    for (int k = 0; k < n_in; k++) {
        float *analytic = rig_read(&in[k]->grad);
        for (int64_t i = 0; i < dms_count(&in[k]->value); i++) {
            const double numeric = slope(&p, &in[k]->value, i);
            cr_assert(fabs((double)analytic[i] - numeric) <= (double)rtol * (1.0 + fabs(numeric)),
                      "d/d in[%d][%lld] is %g, expected %g", k, (long long)i, (double)analytic[i],
                      numeric);
        }
        free(analytic);
    }
    free(weights);
    dms_tape_close(tape);
}

void rig_expect_bits(float **first, const dms_tensor *const *out, int n)
{
    for (int i = 0; i < n; i++) {
        float *now = rig_read(out[i]);
        if (!first[i]) {
            first[i] = now;
            continue;
        }
        cr_assert(!memcmp(now, first[i], (size_t)dms_count(out[i]) * sizeof(*now)), "output %d", i);
        free(now);
    }
}

void rig_expect_failure(dms_status got, dms_status want, const char *text)
{
    cr_assert(got == want, "%d: %s", (int)got, dms_error_text());
    cr_assert(strstr(dms_error_message(), text), "%s", dms_error_message());
}
