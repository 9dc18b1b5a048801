/* Matrix products by cuBLASLt, their algorithm chosen once a shape and remembered by the device. */
#ifndef DMS_CUDA_GEMM_H
#define DMS_CUDA_GEMM_H

#include "kernels/cuda/device.h"

DMS_BEGIN_C

/* C = A B, row-major: A [m, k], B [k, n], C [m, n]; a transposed operand is stored the other way
 * round ([k, m], [n, k]). Leading dimensions in elements. */
typedef struct {
    int64_t m, n, k;
    int64_t lda, ldb, ldc;
    bool a_transposed, b_transposed;
    bool bf16; /* A and B are bf16, else f32; sums and C are f32 */
    bool add;  /* C += A B */
} dms_cuda_gemm_shape;

/* Queues the product. bias: [n] f32, added to each row, or NULL. Pointers are device memory,
 * aligned to an element; 16-byte alignment of pointers and of rows makes it fast. f32 products use
 * TF32 when the environment has DMS_TF32=1 at the device's first product. That one allocates: it
 * cannot be recorded. DMS_ERR_DEVICE names the shape. */
dms_status dms_cuda_gemm(dms_device *dev, void *c, const void *a, const void *b, const void *bias,
                         const dms_cuda_gemm_shape *shape);

/* c[i,:] = bias, or += bias where shape->add is set, for each row i of C. In linear.cu. */
dms_status dms_cuda_add_bias(dms_device *dev, void *c, const void *bias,
                             const dms_cuda_gemm_shape *shape);

/* dst[i] = src[i] rounded to bf16; device memory, n elements. In pointwise.cu. */
dms_status dms_cuda_round(dms_device *dev, void *dst, const void *src, int64_t n);

DMS_END_C
#endif
