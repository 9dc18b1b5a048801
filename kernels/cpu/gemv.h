/* Products with a few rows: each weight is read once, in the order it lies in memory. */
#ifndef DMS_CPU_GEMV_H
#define DMS_CPU_GEMV_H

#include "kernels/cpu/isa.h"

enum { DMS_GEMV_ROWS = 8 };

typedef struct {
    const float *x; /* [rows, K] */
    int64_t rows;   /* 1..DMS_GEMV_ROWS */
    const dms_tensor *w;
    const float *bias; /* [M] or NULL */
    float *space;      /* [rows, K], used where w is bf16 */
} dms_gemv_in;

/* y[n,m] = sum over k of x[n,k] w[m,k], + bias[m]; sums are f32; where w is bf16 (whatever the
 * processor), x is rounded to bf16.   w: [M, K] f32 or bf16   y: [rows, M]. */
void DMS_CPU(gemv)(const dms_gemv_in *in, float *y);

#endif
