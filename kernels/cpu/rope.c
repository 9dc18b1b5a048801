/* Heads between projection and attention on the CPU: RMSNorm, the gate's logit, the fade, RoPE. */
#include <omp.h>
#include <string.h>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/workspace.h"

/* One head rotated by +angle (sign 1) or -angle (sign -1: the transpose, for the gradient). The
 * last channel is scaled by keep on both sides: exact for its partner channel E/2 - 1 too. A pair
 * is read before it is written, so out may be in. */
static void rotate(float *out, const float *in, const float *table, int64_t width, float sign,
                   float keep)
{
    const int64_t half = width / 2;
    const float *cosine = table, *sine = table + half;
    const float last = in[width - 1] * keep, partner = in[half - 1];
#pragma omp simd
    for (int64_t j = 0; j < half - 1; j++) {
        const float a = in[j], b = in[j + half];
        out[j] = a * cosine[j] - sign * b * sine[j];
        out[j + half] = b * cosine[j] + sign * a * sine[j];
    }
    out[half - 1] = partner * cosine[half - 1] - sign * last * sine[half - 1];
    out[width - 1] = (last * cosine[half - 1] + sign * partner * sine[half - 1]) * keep;
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

/* Head i of all rows' heads. */
typedef struct {
    int64_t width, at; /* of its first channel */
    const float *table;
    bool borrowed; /* its last channel is a gate's neuron */
    float keep;
    int64_t z; /* where the neuron's logit lies in [B, G, T] */
} head;

static head head_of(const dms_tensor *x, const dms_rope_spec *spec, int64_t i)
{
    const int64_t width = dms_cols(spec->table), heads = dms_cols(x) / width;
    const int64_t row = i / heads, h = i % heads, every = spec->borrowed_every;
    head at = {width, i * width, spec->table->data, false, 1.0f, 0};
    at.table += ((const int32_t *)spec->ids->data)[row] * width;
    if (every && h % every == 0) {
        const int64_t groups = (heads + every - 1) / every, tokens = x->shape[x->rank - 2];
        at.borrowed = true;
        at.keep = spec->keep;
        at.z = (row / tokens * groups + h / every) * tokens + row % tokens;
    }
    return at;
}

static void forward(const dms_rope_out *out, const dms_tensor *x, const dms_rope_spec *spec,
                    int64_t i)
{
    const head at = head_of(x, spec, i);
    const float *in = (const float *)x->data + at.at;
    float *y = (float *)out->y->data + at.at;

    if (spec->norm) {
        const float *weight = spec->norm->data;
        const float scale = dms_row_rstd(in, at.width, spec->eps);
#pragma omp simd
        for (int64_t c = 0; c < at.width; c++)
            y[c] = in[c] * scale * weight[c];
        if (out->rstd)
            ((float *)out->rstd->data)[i] = scale;
        in = y;
    }
    if (out->z && at.borrowed)
        ((float *)out->z->data)[at.z] = spec->logit.scale * in[at.width - 1] - spec->logit.offset;
    rotate(y, in, at.table, at.width, 1.0f, at.keep);
}

dms_status DMS_CPU(rope)(const dms_rope_out *out, const dms_tensor *x, const dms_rope_spec *spec)
{
    const int64_t heads = dms_count(x) / dms_cols(spec->table);

    DMS_TRY(check_positions(spec));
#pragma omp parallel for schedule(static) if (parallel : dms_count(x) > DMS_CPU_FORK)
    for (int64_t i = 0; i < heads; i++)
        forward(out, x, spec, i);
    return DMS_OK;
}

/* Head i backwards: `turned` [E] is the gradient of the normalised head, `sum` [E] takes what the
 * norm's weight gets. */
static void backward(const dms_rope_grads *k, const dms_rope_spec *spec, float *turned, float *sum,
                     int64_t i)
{
    const head at = head_of(k->x ? k->x : k->dx, spec, i);
    float *dx = k->dx ? (float *)k->dx->data + at.at : NULL;

    if (k->dy)
        rotate(turned, (const float *)k->dy->data + at.at, at.table, at.width, -1.0f, at.keep);
    else
        memset(turned, 0, (size_t)at.width * sizeof(float));
    if (k->dz && at.borrowed)
        turned[at.width - 1] += spec->logit.scale * ((const float *)k->dz->data)[at.z];
    if (!spec->norm) {
        for (int64_t c = 0; c < at.width; c++)
            dx[c] += turned[c];
        return;
    }
    const float *x = (const float *)k->x->data + at.at;
    const float scale = ((const float *)k->rstd->data)[i];
    if (dx)
        dms_row_norm_bwd(dx, turned, x, spec->norm->data, scale, at.width);
    for (int64_t c = 0; k->dw && c < at.width; c++)
        sum[c] += turned[c] * x[c] * scale;
}

/* Each chunk of heads into its own sum for dw, the sums in the order of the chunks, so that the
 * result does not depend on the thread count. */
dms_status DMS_CPU(rope_bwd)(const dms_rope_grads *grads, const dms_rope_spec *spec)
{
    const int64_t width = dms_cols(spec->table);
    const int64_t count = dms_count(grads->x ? grads->x : grads->dx), heads = count / width;
    const int64_t chunks = (heads + DMS_ROW_CHUNK - 1) / DMS_ROW_CHUNK;
    const size_t bytes = (size_t)(chunks * 2 * width) * sizeof(float);
    dms_cpu_workspace work;

    DMS_TRY(check_positions(spec));
    DMS_TRY(dms_cpu_workspace_get(&work, spec->table->device,
                                  bytes / (size_t)omp_get_max_threads() + 1));
    float *parts = (float *)work.base; /* the pieces of all threads in a row */
#pragma omp parallel for schedule(static) if (count > DMS_CPU_FORK)
    for (int64_t c = 0; c < chunks; c++) {
        float *sum = parts + c * 2 * width;
        const int64_t end = (c + 1) * DMS_ROW_CHUNK < heads ? (c + 1) * DMS_ROW_CHUNK : heads;
        memset(sum, 0, (size_t)width * sizeof(float));
        for (int64_t i = c * DMS_ROW_CHUNK; i < end; i++)
            backward(grads, spec, sum + width, sum, i);
    }
    for (int64_t c = 0; grads->dw && c < chunks; c++)
        for (int64_t j = 0; j < width; j++)
            ((float *)grads->dw->data)[j] += parts[c * 2 * width + j];
    return DMS_OK;
}
