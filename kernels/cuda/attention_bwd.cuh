/* What the two forms of attention's backward pass are given by its launcher. */
#ifndef DMS_CUDA_ATTENTION_BWD_CUH
#define DMS_CUDA_ATTENTION_BWD_CUH

#include "kernels/cuda/attention.cuh"

DMS_BEGIN_C

/* Gradients are added to; NULL where nobody wants them. dout is of the type of at.q: f32, or bf16
 * in the tensor-core form. */
typedef struct {
    dms_attention_args at;
    const void *dout;            /* [B, T, H*E] */
    const float *lse, *delta;    /* [B, H, T]; delta = rowsum(dout * o) */
    float *dq, *dk, *dv, *dbias; /* shapes of q, k, v, bias */
} dms_attention_bwd_args;

/* Everything in f32, any shape with E <= 256; DMS_ERR_SHAPE beyond. In attention_bwd_plain.cu. */
dms_status dms_cuda_attention_bwd_plain(dms_device *dev, const dms_attention_bwd_args *args);

DMS_END_C
#endif
