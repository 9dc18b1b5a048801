/* Element by element ops on the CPU, and the embedding. */
#include <math.h>
#include <string.h>

#include "kernels/bf16.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/vec.h"

dms_status DMS_CPU(axpy)(dms_tensor *y, float scale, const dms_tensor *x)
{
    const float *in = x->data;
    float *out = y->data;
    const int64_t n = dms_count(x);

#pragma omp parallel for simd schedule(static) if (parallel : n > DMS_CPU_FORK)
    for (int64_t i = 0; i < n; i++)
        out[i] += scale * in[i];
    return DMS_OK;
}

dms_status DMS_CPU(cast)(dms_tensor *y, const dms_tensor *x)
{
    const int64_t n = dms_count(x);

    if (x->dtype == y->dtype) {
        memcpy(y->data, x->data, dms_tensor_bytes(x));
    } else if (y->dtype == DMS_BF16) {
#pragma omp parallel for simd schedule(static) if (parallel : n > DMS_CPU_FORK)
        for (int64_t i = 0; i < n; i++)
            ((uint16_t *)y->data)[i] = dms_bf16_from_f32(((const float *)x->data)[i]);
    } else {
#pragma omp parallel for simd schedule(static) if (parallel : n > DMS_CPU_FORK)
        for (int64_t i = 0; i < n; i++)
            ((float *)y->data)[i] = dms_bf16_to_f32(((const uint16_t *)x->data)[i]);
    }
    return DMS_OK;
}

static void embedding_row(float *out, const dms_tensor *w, int64_t row)
{
    const int64_t dim = dms_cols(w);
    if (w->dtype == DMS_F32) {
        memcpy(out, (const float *)w->data + row * dim, (size_t)dim * sizeof(float));
        return;
    }
    const uint16_t *in = (const uint16_t *)w->data + row * dim;
    for (int64_t i = 0; i < dim; i++)
        out[i] = dms_bf16_to_f32(in[i]);
}

static dms_status check_tokens(const dms_tensor *ids, int64_t vocab)
{
    const int32_t *id = ids->data;
    const int64_t n = dms_count(ids);
    for (int64_t r = 0; r < n; r++)
        if (id[r] < 0 || id[r] >= vocab)
            return dms_fail(DMS_ERR_ARG, "token id is %d, expected 0 to %lld", id[r],
                            (long long)vocab - 1);
    return DMS_OK;
}

dms_status DMS_CPU(embedding)(dms_tensor *y, const dms_tensor *ids, const dms_tensor *w)
{
    const int64_t rows = dms_count(ids), dim = dms_cols(w);
    const int32_t *id = ids->data;

    DMS_TRY(check_tokens(ids, w->shape[0]));
#pragma omp parallel for schedule(static) if (rows * dim > DMS_CPU_FORK)
    for (int64_t r = 0; r < rows; r++)
        embedding_row((float *)y->data + r * dim, w, id[r]);
    return DMS_OK;
}

/* Each thread owns a range of channels, so that a token that occurs twice adds in order. */
dms_status DMS_CPU(embedding_bwd)(dms_tensor *dw, const dms_tensor *dy, const dms_tensor *ids)
{
    enum { CHANNELS = 32 };
    const int64_t rows = dms_count(ids), dim = dms_cols(dw);
    const int32_t *id = ids->data;

    DMS_TRY(check_tokens(ids, dw->shape[0]));
#pragma omp parallel for schedule(static) if (rows * dim > DMS_CPU_FORK)
    for (int64_t first = 0; first < dim; first += CHANNELS) {
        const int64_t end = first + CHANNELS < dim ? first + CHANNELS : dim;
        for (int64_t r = 0; r < rows; r++) {
            float *grad = (float *)dw->data + id[r] * dim;
            const float *up = (const float *)dy->data + r * dim;
            for (int64_t i = first; i < end; i++)
                grad[i] += up[i];
        }
    }
    return DMS_OK;
}

static inline float sigmoid(float x)
{
    return 1.0f / (1.0f + dms_fast_expf(-x));
}

dms_status DMS_CPU(swiglu)(dms_tensor *y, const dms_tensor *gate, const dms_tensor *up)
{
    const float *g = gate->data, *u = up->data;
    const int64_t n = dms_count(gate);

    if (y->dtype == DMS_BF16) {
        uint16_t *out = y->data;
#pragma omp parallel for simd schedule(static) if (parallel : n > DMS_CPU_FORK)
        for (int64_t i = 0; i < n; i++)
            out[i] = dms_bf16_from_f32(g[i] * sigmoid(g[i]) * u[i]);
    } else {
        float *out = y->data;
#pragma omp parallel for simd schedule(static) if (parallel : n > DMS_CPU_FORK)
        for (int64_t i = 0; i < n; i++)
            out[i] = g[i] * sigmoid(g[i]) * u[i];
    }
    return DMS_OK;
}

/* t(x) of GELU's tanh form, which is x*sigmoid(t(x)). */
static inline float gelu_gate(float x)
{
    return 1.5957691216f * (x + 0.044715f * x * x * x); /* 2*sqrt(2/pi) */
}

dms_status DMS_CPU(gelu)(dms_tensor *y, const dms_tensor *x)
{
    const float *in = x->data;
    const int64_t n = dms_count(x);

    if (y->dtype == DMS_BF16) {
        uint16_t *out = y->data;
#pragma omp parallel for simd schedule(static) if (parallel : n > DMS_CPU_FORK)
        for (int64_t i = 0; i < n; i++)
            out[i] = dms_bf16_from_f32(in[i] * sigmoid(gelu_gate(in[i])));
    } else {
        float *out = y->data;
#pragma omp parallel for simd schedule(static) if (parallel : n > DMS_CPU_FORK)
        for (int64_t i = 0; i < n; i++)
            out[i] = in[i] * sigmoid(gelu_gate(in[i]));
    }
    return DMS_OK;
}

/* With s = sigmoid(t(x)): dx = dy*s*(1 + x*(1 - s)*t'(x)). */
dms_status DMS_CPU(gelu_bwd)(dms_tensor *dx, const dms_tensor *dy, const dms_tensor *x)
{
    const float *in = x->data, *d = dy->data;
    float *out = dx->data;
    const int64_t n = dms_count(x);

#pragma omp parallel for simd schedule(static) if (parallel : n > DMS_CPU_FORK)
    for (int64_t i = 0; i < n; i++) {
        const float s = sigmoid(gelu_gate(in[i]));
        const float slope = 1.5957691216f * (1.0f + 0.134145f * in[i] * in[i]);
        out[i] += d[i] * s * (1.0f + in[i] * (1.0f - s) * slope);
    }
    return DMS_OK;
}

/* With s = sigmoid(gate): dgate = dy*up*s*(1 + gate*(1 - s)), dup = dy*gate*s. */
dms_status DMS_CPU(swiglu_bwd)(dms_tensor *dgate, dms_tensor *dup, const dms_tensor *dy,
                               const dms_tensor *gate, const dms_tensor *up)
{
    const float *g = gate->data, *u = up->data, *d = dy->data;
    float *dg = dgate ? dgate->data : NULL, *du = dup ? dup->data : NULL;
    const int64_t n = dms_count(gate);

    if (dg) {
#pragma omp parallel for simd schedule(static) if (parallel : n > DMS_CPU_FORK)
        for (int64_t i = 0; i < n; i++) {
            const float s = sigmoid(g[i]);
            dg[i] += d[i] * u[i] * s * (1.0f + g[i] * (1.0f - s));
        }
    }
    if (du) {
#pragma omp parallel for simd schedule(static) if (parallel : n > DMS_CPU_FORK)
        for (int64_t i = 0; i < n; i++)
            du[i] += d[i] * g[i] * sigmoid(g[i]);
    }
    return DMS_OK;
}
