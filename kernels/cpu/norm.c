/* RMSNorm and LayerNorm on the CPU: one row a thread at a time. */
#include <omp.h>

#include "kernels/bf16.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/workspace.h"

static void scale_to_f32(float *out, const float *x, float scale, const float *w, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = x[i] * scale * w[i];
}

static void scale_to_bf16(uint16_t *out, const float *x, float scale, const float *w, int64_t n)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        out[i] = dms_bf16_from_f32(x[i] * scale * w[i]);
}

dms_status DMS_CPU(rms_norm)(dms_tensor *y, dms_tensor *rstd, const dms_tensor *x,
                             const dms_tensor *w, float eps)
{
    const int64_t dim = dms_count(w), rows = dms_count(x) / dim;
    const float *weight = w->data;

#pragma omp parallel for schedule(static) if (rows * dim > DMS_CPU_FORK)
    for (int64_t r = 0; r < rows; r++) {
        const float *in = (const float *)x->data + r * dim;
        const float scale = dms_row_rstd(in, dim, eps);
        if (y->dtype == DMS_BF16)
            scale_to_bf16((uint16_t *)y->data + r * dim, in, scale, weight, dim);
        else
            scale_to_f32((float *)y->data + r * dim, in, scale, weight, dim);
        ((float *)rstd->data)[r] = scale;
    }
    return DMS_OK;
}

/* sum += the sums over rows first.. of dy*n and (where `bias` is not NULL) dy; mean NULL: zeros. */
typedef struct {
    const float *dy, *x, *mean, *rstd;
    int64_t rows, dim;
} row_gradients;

static void sum_chunk(float *sum, float *bias, const row_gradients *g, int64_t first)
{
    const int64_t last = first + DMS_ROW_CHUNK, end = last < g->rows ? last : g->rows;
    for (int64_t i = 0; i < g->dim; i++)
        sum[i] = 0;
    for (int64_t r = first; r < end; r++) {
        const float *up = g->dy + r * g->dim, *in = g->x + r * g->dim;
        const float mean = g->mean ? g->mean[r] : 0, scale = g->rstd[r];
        for (int64_t i = 0; i < g->dim; i++)
            sum[i] += up[i] * (in[i] - mean) * scale;
    }
    for (int64_t i = 0; bias && i < g->dim; i++)
        bias[i] = 0;
    for (int64_t r = first; bias && r < end; r++)
        for (int64_t i = 0; i < g->dim; i++)
            bias[i] += g->dy[r * g->dim + i];
}

static void add_chunks(dms_tensor *to, const float *partial, int64_t chunks, int64_t stride)
{
    float *total = to->data;
    const int64_t dim = dms_count(to);
    for (int64_t c = 0; c < chunks; c++)
        for (int64_t i = 0; i < dim; i++)
            total[i] += partial[c * stride + i];
}

/* dw += sum over rows of dy*n, dbias += sum over rows of dy: each chunk of rows into its own
 * partial sum, the partial sums in the order of the chunks, so that the result does not depend on
 * the thread count. dw or dbias may be NULL. */
static dms_status weight_gradient(dms_tensor *dw, dms_tensor *dbias, const row_gradients *g,
                                  dms_device *dev)
{
    const int64_t dim = g->dim, chunks = (g->rows + DMS_ROW_CHUNK - 1) / DMS_ROW_CHUNK;
    const int64_t stride = dbias ? 2 * dim : dim;
    const size_t bytes = (size_t)(chunks * stride) * sizeof(float);
    dms_cpu_workspace work;
    DMS_TRY(dms_cpu_workspace_get(&work, dev, bytes / (size_t)omp_get_max_threads() + 1));
    float *partial = (float *)work.base; /* the pieces of all threads in a row */

#pragma omp parallel for schedule(static) if (g->rows * dim > DMS_CPU_FORK)
    for (int64_t c = 0; c < chunks; c++)
        sum_chunk(partial + c * stride, dbias ? partial + c * stride + dim : NULL, g,
                  c * DMS_ROW_CHUNK);
    if (dw)
        add_chunks(dw, partial, chunks, stride);
    if (dbias)
        add_chunks(dbias, partial + dim, chunks, stride);
    return DMS_OK;
}

dms_status DMS_CPU(rms_norm_bwd)(dms_tensor *dx, dms_tensor *dw, const dms_tensor *dy,
                                 const dms_tensor *x, const dms_tensor *w, const dms_tensor *rstd)
{
    const int64_t dim = dms_count(w), rows = dms_count(x) / dim;

    if (dx) {
#pragma omp parallel for schedule(static) if (rows * dim > DMS_CPU_FORK)
        for (int64_t r = 0; r < rows; r++)
            dms_row_norm_bwd((float *)dx->data + r * dim, (const float *)dy->data + r * dim,
                             (const float *)x->data + r * dim, w->data,
                             ((const float *)rstd->data)[r], dim);
    }
    const row_gradients g = {dy->data, x->data, NULL, rstd->data, rows, dim};
    return dw ? weight_gradient(dw, NULL, &g, x->device) : DMS_OK;
}

static void layer_norm_row(float *out, const float *x, const float *w, const float *bias,
                           const float mean_rstd[2], int64_t dim)
{
#pragma omp simd
    for (int64_t i = 0; i < dim; i++)
        out[i] = (x[i] - mean_rstd[0]) * mean_rstd[1] * w[i] + bias[i];
}

static void layer_norm_row_bf16(uint16_t *out, const float *x, const float *w, const float *bias,
                                const float mean_rstd[2], int64_t dim)
{
#pragma omp simd
    for (int64_t i = 0; i < dim; i++)
        out[i] = dms_bf16_from_f32((x[i] - mean_rstd[0]) * mean_rstd[1] * w[i] + bias[i]);
}

dms_status DMS_CPU(layer_norm)(dms_tensor *y, dms_tensor *stats, const dms_tensor *x,
                               const dms_tensor *w, const dms_tensor *bias, float eps)
{
    const int64_t dim = dms_cols(x), rows = dms_rows(x);
    float *mean = stats->data, *rstd = mean + rows;

#pragma omp parallel for schedule(static) if (rows * dim > DMS_CPU_FORK)
    for (int64_t r = 0; r < rows; r++) {
        const float *in = (const float *)x->data + r * dim;
        mean[r] = dms_row_mean(in, dim);
        rstd[r] = dms_row_rstd_about(in, mean[r], dim, eps);
        const float both[2] = {mean[r], rstd[r]};
        if (y->dtype == DMS_BF16)
            layer_norm_row_bf16((uint16_t *)y->data + r * dim, in, w->data, bias->data, both, dim);
        else
            layer_norm_row((float *)y->data + r * dim, in, w->data, bias->data, both, dim);
    }
    return DMS_OK;
}

/* With n = (x - mean)*rstd and g = dy*w: dx += rstd*(g - mean(g) - n*mean(g*n)). */
static void layer_norm_row_bwd(float *dx, const float *dy, const float *x, const float *w,
                               const float mean_rstd[2], int64_t dim)
{
    const float mean = mean_rstd[0], rstd = mean_rstd[1];
    float of_g[DMS_ROW_LANES] = {0}, of_gn[DMS_ROW_LANES] = {0};
    for (int64_t i = 0; i < dim; i++) {
        const float g = dy[i] * w[i];
        of_g[i % DMS_ROW_LANES] += g;
        of_gn[i % DMS_ROW_LANES] += g * (x[i] - mean);
    }
    double sum_g = 0, sum_gn = 0;
    for (int j = 0; j < DMS_ROW_LANES; j++) {
        sum_g += (double)of_g[j];
        sum_gn += (double)of_gn[j];
    }
    const float mean_g = (float)(sum_g / (double)dim);
    const float mean_gn = (float)sum_gn * rstd / (float)dim;
#pragma omp simd
    for (int64_t i = 0; i < dim; i++)
        dx[i] += rstd * (dy[i] * w[i] - mean_g - (x[i] - mean) * rstd * mean_gn);
}

dms_status DMS_CPU(layer_norm_bwd)(const dms_layer_norm_grads *grads, const dms_tensor *dy,
                                   const dms_tensor *x, const dms_tensor *w,
                                   const dms_tensor *stats)
{
    const int64_t dim = dms_cols(x), rows = dms_rows(x);
    const float *mean = stats->data, *rstd = mean + rows;
    const row_gradients g = {dy->data, x->data, mean, rstd, rows, dim};

    if (grads->dx) {
#pragma omp parallel for schedule(static) if (rows * dim > DMS_CPU_FORK)
        for (int64_t r = 0; r < rows; r++) {
            const float both[2] = {mean[r], rstd[r]};
            layer_norm_row_bwd((float *)grads->dx->data + r * dim, g.dy + r * dim, g.x + r * dim,
                               w->data, both, dim);
        }
    }
    return grads->dw || grads->dbias ? weight_gradient(grads->dw, grads->dbias, &g, x->device)
                                     : DMS_OK;
}
