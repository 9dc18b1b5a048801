/* RMSNorm on the CPU: one row a thread at a time, sums of a row in f32 lanes of 16. */
#include <math.h>
#include <omp.h>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/workspace.h"

enum { LANES = 16, CHUNK = 64 }; /* rows whose weight gradient is summed in one go */

/* Sum of a[i]*b[i]*c[i] in a fixed order that does not depend on the vector width. */
static float dot3(const float *a, const float *b, const float *c, int64_t n)
{
    float lane[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++)
            lane[j] += a[i + j] * b[i + j] * c[i + j];
    for (; i < n; i++)
        lane[i % LANES] += a[i] * b[i] * c[i];
    double sum = 0;
    for (int j = 0; j < LANES; j++)
        sum += (double)lane[j];
    return (float)sum;
}

static float sum_of_squares(const float *a, int64_t n)
{
    float lane[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++)
            lane[j] += a[i + j] * a[i + j];
    for (; i < n; i++)
        lane[i % LANES] += a[i] * a[i];
    double sum = 0;
    for (int j = 0; j < LANES; j++)
        sum += (double)lane[j];
    return (float)sum;
}

dms_status DMS_CPU(rms_norm)(dms_tensor *y, dms_tensor *rstd, const dms_tensor *x,
                             const dms_tensor *w, float eps)
{
    const int64_t dim = dms_count(w), rows = dms_count(x) / dim;
    const float *weight = w->data;

#pragma omp parallel for schedule(static) if (rows * dim > DMS_CPU_FORK)
    for (int64_t r = 0; r < rows; r++) {
        const float *in = (const float *)x->data + r * dim;
        float *out = (float *)y->data + r * dim;
        const float scale = 1.0f / sqrtf(sum_of_squares(in, dim) / (float)dim + eps);
        for (int64_t i = 0; i < dim; i++)
            out[i] = in[i] * scale * weight[i];
        ((float *)rstd->data)[r] = scale;
    }
    return DMS_OK;
}

/* With n = x*rstd and g = dy*w: dx += rstd*(g - n*mean(g*n)). */
static void input_gradient(float *dx, const float *dy, const float *x, const float *w, float rstd,
                           int64_t dim)
{
    const float mean = dot3(dy, w, x, dim) * rstd / (float)dim;
    for (int64_t i = 0; i < dim; i++)
        dx[i] += rstd * (dy[i] * w[i] - x[i] * rstd * mean);
}

/* dw += sum over rows of dy*n: each chunk of rows into its own partial sum, the partial sums in
 * the order of the chunks, so that the result does not depend on the thread count. */
static dms_status weight_gradient(dms_tensor *dw, const dms_tensor *dy, const dms_tensor *x,
                                  const dms_tensor *rstd)
{
    const int64_t dim = dms_count(dw), rows = dms_count(x) / dim;
    const int64_t chunks = (rows + CHUNK - 1) / CHUNK;
    const float *up = dy->data, *in = x->data, *scale = rstd->data;
    const size_t bytes = (size_t)(chunks * dim) * sizeof(float);
    dms_cpu_workspace work;
    DMS_TRY(dms_cpu_workspace_get(&work, x->device, bytes / (size_t)omp_get_max_threads() + 1));
    float *partial = (float *)work.base; /* the pieces of all threads in a row */

#pragma omp parallel for schedule(static) if (rows * dim > DMS_CPU_FORK)
    for (int64_t c = 0; c < chunks; c++) {
        float *sum = partial + c * dim;
        const int64_t end = (c + 1) * CHUNK < rows ? (c + 1) * CHUNK : rows;
        for (int64_t i = 0; i < dim; i++)
            sum[i] = 0;
        for (int64_t r = c * CHUNK; r < end; r++)
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
            input_gradient((float *)dx->data + r * dim, (const float *)dy->data + r * dim,
                           (const float *)x->data + r * dim, w->data,
                           ((const float *)rstd->data)[r], dim);
    }
    return dw ? weight_gradient(dw, dy, x, rstd) : DMS_OK;
}
