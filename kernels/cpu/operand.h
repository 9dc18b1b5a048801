/* Operands of matrix products: activations and weights in the type that the product runs in. */
#ifndef DMS_CPU_OPERAND_H
#define DMS_CPU_OPERAND_H

#include <omp.h>

#include "kernels/bf16.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/workspace.h"

/* Where a bf16 weight meets a processor that multiplies bf16: both operands are bf16. Elsewhere
 * they are f32; activations that meet bf16 weights are rounded to bf16 all the same. */
static inline bool dms_operand_bf16(const dms_tensor *w)
{
    return w->dtype == DMS_BF16 && w->device->has_bf16;
}

static inline size_t dms_operand_bytes(bool bf16, int64_t count)
{
    return ((size_t)count * (bf16 ? 2 : 4) + 63) / 64 * 64;
}

/* out[i] = x[i] in bf16, or rounded to bf16 and kept in f32. */
static inline void dms_operand_to_bf16(uint16_t *out, const float *x, int64_t n)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        out[i] = dms_bf16_from_f32(x[i]);
}

static inline void dms_operand_round(float *out, const float *x, int64_t n)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        out[i] = dms_bf16_to_f32(dms_bf16_from_f32(x[i]));
}

static inline void dms_operand_widen(float *out, const uint16_t *x, int64_t n)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        out[i] = dms_bf16_to_f32(x[i]);
}

/* The workspace cut in two: `shared` bytes that all threads see, `own` bytes for each. */
typedef struct {
    char *shared, *own;
    size_t stride; /* from one thread's own bytes to the next's */
} dms_operand_space;

static inline dms_status dms_operand_space_get(dms_operand_space *out, dms_device *dev,
                                               size_t shared, size_t own)
{
    const size_t threads = (size_t)omp_get_max_threads();
    const size_t front = (shared + 63) / 64 * 64, each = (own + 63) / 64 * 64;
    dms_cpu_workspace work;
    DMS_TRY(dms_cpu_workspace_get(&work, dev, each + (front + threads - 1) / threads));
    *out = (dms_operand_space){work.base, work.base + front, each};
    return DMS_OK;
}

#endif
