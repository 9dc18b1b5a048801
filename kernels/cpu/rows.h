/* Norms of one row on the CPU, as those of layers and of heads share them: sums in f32 lanes of 16,
 * in a fixed order that does not depend on the vector width. */
#ifndef DMS_CPU_ROWS_H
#define DMS_CPU_ROWS_H

#include <math.h>
#include <stdint.h>

enum { DMS_ROW_LANES = 16 };
enum { DMS_ROW_CHUNK = 64 }; /* rows whose weight gradient is summed in one go */

/* Sum of a[i]*b[i]*c[i]. */
static inline float dms_row_dot3(const float *a, const float *b, const float *c, int64_t n)
{
    float lane[DMS_ROW_LANES] = {0};
    int64_t i = 0;
    for (; i + DMS_ROW_LANES <= n; i += DMS_ROW_LANES)
        for (int j = 0; j < DMS_ROW_LANES; j++)
            lane[j] += a[i + j] * b[i + j] * c[i + j];
    for (; i < n; i++)
        lane[i % DMS_ROW_LANES] += a[i] * b[i] * c[i];
    double sum = 0;
    for (int j = 0; j < DMS_ROW_LANES; j++)
        sum += (double)lane[j];
    return (float)sum;
}

static inline float dms_row_mean(const float *a, int64_t n)
{
    float lane[DMS_ROW_LANES] = {0};
    int64_t i = 0;
    for (; i + DMS_ROW_LANES <= n; i += DMS_ROW_LANES)
        for (int j = 0; j < DMS_ROW_LANES; j++)
            lane[j] += a[i + j];
    for (; i < n; i++)
        lane[i % DMS_ROW_LANES] += a[i];
    double sum = 0;
    for (int j = 0; j < DMS_ROW_LANES; j++)
        sum += (double)lane[j];
    return (float)(sum / (double)n);
}

/* 1/sqrt(mean((a - mean)^2) + eps) */
static inline float dms_row_rstd_about(const float *a, float mean, int64_t n, float eps)
{
    float lane[DMS_ROW_LANES] = {0};
    int64_t i = 0;
    for (; i + DMS_ROW_LANES <= n; i += DMS_ROW_LANES)
        for (int j = 0; j < DMS_ROW_LANES; j++)
            lane[j] += (a[i + j] - mean) * (a[i + j] - mean);
    for (; i < n; i++)
        lane[i % DMS_ROW_LANES] += (a[i] - mean) * (a[i] - mean);
    double sum = 0;
    for (int j = 0; j < DMS_ROW_LANES; j++)
        sum += (double)lane[j];
    return 1.0f / sqrtf((float)sum / (float)n + eps);
}

/* 1/sqrt(mean(a^2) + eps) */
static inline float dms_row_rstd(const float *a, int64_t n, float eps)
{
    return dms_row_rstd_about(a, 0, n, eps);
}

/* With n = x*rstd and g = dy*w: dx += rstd*(g - n*mean(g*n)). */
static inline void dms_row_norm_bwd(float *dx, const float *dy, const float *x, const float *w,
                                    float rstd, int64_t dim)
{
    const float mean = dms_row_dot3(dy, w, x, dim) * rstd / (float)dim;
    for (int64_t i = 0; i < dim; i++)
        dx[i] += rstd * (dy[i] * w[i] - x[i] * rstd * mean);
}

#endif
