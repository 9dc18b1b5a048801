/* Element by element ops on the CPU, the embedding and RoPE. */
#include <math.h>
#include <string.h>

#include "kernels/bf16.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/vec.h"

dms_status DMS_CPU(add)(dms_tensor *y, const dms_tensor *a, const dms_tensor *b)
{
    const float *left = a->data, *right = b->data;
    float *out = y->data;
    const int64_t n = dms_count(a);

#pragma omp parallel for simd schedule(static) if (parallel : n > DMS_CPU_FORK)
    for (int64_t i = 0; i < n; i++)
        out[i] = left[i] + right[i];
    return DMS_OK;
}

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
    float *out = y->data;
    const int64_t n = dms_count(gate);

#pragma omp parallel for simd schedule(static) if (parallel : n > DMS_CPU_FORK)
    for (int64_t i = 0; i < n; i++)
        out[i] = g[i] * sigmoid(g[i]) * u[i];
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

/* One head rotated by +angle (sign 1) or -angle (sign -1: the transpose, for the gradient). The
 * last channel is scaled by keep on both sides: exact for its partner channel E/2 - 1 too. */
static void rotate(float *out, const float *in, const float *table, int64_t width, float sign,
                   float keep)
{
    const int64_t half = width / 2;
    const float *cosine = table, *sine = table + half;
    for (int64_t j = 0; j < half; j++) {
        const float a = in[j], b = j == half - 1 ? in[width - 1] * keep : in[j + half];
        out[j] = a * cosine[j] - sign * b * sine[j];
        out[j + half] = b * cosine[j] + sign * a * sine[j];
    }
    out[width - 1] *= keep;
}

static dms_status check_positions(const dms_rope_spec *spec)
{
    const int32_t *position = spec->ids->data;
    const int64_t n = dms_count(spec->ids), limit = dms_rows(spec->table);
    for (int64_t r = 0; r < n; r++)
        if (position[r] < 0 || position[r] >= limit)
            return dms_fail(DMS_ERR_ARG, "position is %d, expected 0 to %lld", position[r],
                            (long long)limit - 1);
    return DMS_OK;
}

static inline float keep_of(const dms_rope_spec *spec, int64_t head)
{
    return spec->borrowed_every && head % spec->borrowed_every == 0 ? spec->keep : 1.0f;
}

dms_status DMS_CPU(rope)(dms_tensor *y, const dms_tensor *x, const dms_rope_spec *spec)
{
    const int64_t width = dms_cols(spec->table), cols = dms_cols(x), rows = dms_rows(x);
    const float *table = spec->table->data;
    const int32_t *position = spec->ids->data;

    DMS_TRY(check_positions(spec));
#pragma omp parallel for schedule(static) if (rows * cols > DMS_CPU_FORK)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t at = 0; at < cols; at += width)
            rotate((float *)y->data + r * cols + at, (const float *)x->data + r * cols + at,
                   table + position[r] * width, width, 1.0f, keep_of(spec, at / width));
    return DMS_OK;
}

dms_status DMS_CPU(rope_bwd)(dms_tensor *dx, const dms_tensor *dy, const dms_rope_spec *spec)
{
    enum { MAX_WIDTH = 512 };
    const int64_t width = dms_cols(spec->table), cols = dms_cols(dy), rows = dms_rows(dy);
    const float *table = spec->table->data;
    const int32_t *position = spec->ids->data;

    if (width > MAX_WIDTH)
        return dms_fail(DMS_ERR_SHAPE, "head width is %lld, expected at most %d", (long long)width,
                        MAX_WIDTH);
    DMS_TRY(check_positions(spec));
#pragma omp parallel for schedule(static) if (rows * cols > DMS_CPU_FORK)
    for (int64_t r = 0; r < rows; r++) {
        float turned[MAX_WIDTH];
        for (int64_t at = 0; at < cols; at += width) {
            float *grad = (float *)dx->data + r * cols + at;
            rotate(turned, (const float *)dy->data + r * cols + at, table + position[r] * width,
                   width, -1.0f, keep_of(spec, at / width));
            for (int64_t i = 0; i < width; i++)
                grad[i] += turned[i];
        }
    }
    return DMS_OK;
}
