/* Matrix products by cuBLASLt, their algorithm chosen once a shape and remembered by the device. */
#ifndef DMS_CUDA_GEMM_H
#define DMS_CUDA_GEMM_H

#include "kernels/cuda/device.h"

DMS_BEGIN_C

/* D = A B, row-major: A [m, k], B [k, n], D [m, n]; a transposed operand is stored the other way
 * round ([k, m], [n, k]). Leading dimensions in elements. */
typedef struct {
    int64_t m, n, k;
    int64_t lda, ldb, ldd;
    bool a_transposed, b_transposed;
    bool bf16; /* A and B are bf16, else f32; sums and D are f32 */
} dms_cuda_gemm_shape;

/* Device memory, aligned to an element; 16-byte alignment of pointers and of rows makes it fast. */
typedef struct {
    float *d;
    const void *a, *b;
    const float *bias; /* [n], added to each row of D, or NULL */
    const float *c;    /* [m, n] in D's layout, added; may be D, or NULL */
} dms_cuda_gemm_operands;

/* Queues the product. f32 products use TF32 when the environment has DMS_TF32=1 at the device's
 * first product. That one allocates: it cannot be recorded. DMS_ERR_DEVICE names the shape. */
dms_status dms_cuda_gemm(dms_device *dev, const dms_cuda_gemm_operands *operands,
                         const dms_cuda_gemm_shape *shape);

/* d[i,:] = bias, + c[i,:] where there is C, for each row i of D. In linear.cu. */
dms_status dms_cuda_add_bias(dms_device *dev, const dms_cuda_gemm_operands *operands,
                             const dms_cuda_gemm_shape *shape);

/* dst[i] = src[i] rounded to bf16; device memory, n elements. In pointwise.cu. */
dms_status dms_cuda_round(dms_device *dev, void *dst, const void *src, int64_t n);

DMS_END_C
#endif
