/* Dense causal attention by cuDNN: the teacher, and the student without a gate. */
#ifndef DMS_CUDA_DENSE_H
#define DMS_CUDA_DENSE_H

#include "kernels/cuda/device.h"

DMS_BEGIN_C

/* True where dms_cuda_dense_attention can serve `in`: no bias, bf16 allowed, heads of 8, 16, ...
 * 256, cuDNN 9.10.2 or later installed, and one of its fused engines takes the shape. The first
 * question for a shape makes its plan, which takes some 0.5 s, and is answered with no while a
 * graph is recorded; the answer is remembered. A false is no failure: nothing is reported. */
bool dms_cuda_dense_supports(dms_device *dev, const dms_attention_in *in);

/* As dms_attention, for an `in` that is supported. q, k, v and the weights of the values are
 * rounded to bf16, and so is o: its error is at most 2^-8 relative from that alone. Uses the
 * device's scratch. DMS_ERR_DEVICE names the shape. */
dms_status dms_cuda_dense_attention(dms_tensor *o, dms_tensor *lse, const dms_attention_in *in);

/* Frees the plans when the device closes and its stream is idle; NULL is legal. */
void dms_cuda_dense_close(dms_cuda_dense *dense);

DMS_END_C
#endif
