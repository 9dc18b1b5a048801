/* Products with a few rows: each weight is read once, in the order it lies in memory. */
#ifndef DMS_CPU_GEMV_H
#define DMS_CPU_GEMV_H

#include "kernels/cpu/isa.h"

enum { DMS_GEMV_ROWS = 8 };

typedef struct {
    const dms_tensor *x; /* 1 to DMS_GEMV_ROWS rows of K */
    const dms_tensor *w;
    const float *bias;     /* [M] or NULL */
    const float *residual; /* [rows, M], may be y, or NULL */
    float *space;          /* [rows, K], used where w is bf16 */
} dms_gemv_in;

/* y[n,m] = sum over k of x[n,k] w[m,k], + bias[m] + residual[n,m]; sums are f32; where w is bf16
 * (whatever the processor), x is bf16 or rounded to it.   w: [M, K] f32 or bf16   y: [rows, M]. */
void DMS_CPU(gemv)(const dms_gemv_in *in, float *y);

#endif
