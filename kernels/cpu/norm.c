/* RMSNorm on the CPU: one row a thread at a time. */
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

/* dw += sum over rows of dy*n: each chunk of rows into its own partial sum, the partial sums in
 * the order of the chunks, so that the result does not depend on the thread count. */
static dms_status weight_gradient(dms_tensor *dw, const dms_tensor *dy, const dms_tensor *x,
                                  const dms_tensor *rstd)
{
    const int64_t dim = dms_count(dw), rows = dms_count(x) / dim;
    const int64_t chunks = (rows + DMS_ROW_CHUNK - 1) / DMS_ROW_CHUNK;
    const float *up = dy->data, *in = x->data, *scale = rstd->data;
    const size_t bytes = (size_t)(chunks * dim) * sizeof(float);
    dms_cpu_workspace work;
    DMS_TRY(dms_cpu_workspace_get(&work, x->device, bytes / (size_t)omp_get_max_threads() + 1));
    float *partial = (float *)work.base; /* the pieces of all threads in a row */

#pragma omp parallel for schedule(static) if (rows * dim > DMS_CPU_FORK)
    for (int64_t c = 0; c < chunks; c++) {
        float *sum = partial + c * dim;
        const int64_t end = (c + 1) * DMS_ROW_CHUNK < rows ? (c + 1) * DMS_ROW_CHUNK : rows;
        for (int64_t i = 0; i < dim; i++)
            sum[i] = 0;
        for (int64_t r = c * DMS_ROW_CHUNK; r < end; r++)
            for (int64_t i = 0; i < dim; i++)
                sum[i] += up[r * dim + i] * in[r * dim + i] * scale[r];
    }
    float *total = dw->data;
    for (int64_t c = 0; c < chunks; c++)
        for (int64_t i = 0; i < dim; i++)
            total[i] += partial[c * dim + i];
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
    return dw ? weight_gradient(dw, dy, x, rstd) : DMS_OK;
}
