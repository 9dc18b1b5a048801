/* The graph of dense causal attention that cuDNN is given, and the plan it makes of it. */
#ifndef DMS_CUDA_DENSE_GRAPH_H
#define DMS_CUDA_DENSE_GRAPH_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/cuda/cudnn.h"

DMS_BEGIN_C

/* Sizes, by the letters of kernels/ops.h: B, T, H, G, E. */
typedef struct {
    int64_t batch, tokens, heads, groups, width;
} dms_dense_shape;

/* What the variant pack of an execution names. Scale and masked are host values. */
typedef enum {
    DMS_DENSE_Q = 1,
    DMS_DENSE_K,
    DMS_DENSE_V,
    DMS_DENSE_O,
    DMS_DENSE_LSE,
    DMS_DENSE_SCALE,
    DMS_DENSE_MASKED,
    DMS_DENSE_END
} dms_dense_tensor;

/* Parts: 19 tensors, two descriptors an operation, the graph, the heuristics, and a configuration
 * and a plan for each candidate. */
enum {
    DMS_DENSE_OPS = 14,
    DMS_DENSE_CANDIDATES = 8,
    DMS_DENSE_PARTS = 19 + 2 * DMS_DENSE_OPS + 2 + 2 * DMS_DENSE_CANDIDATES
};

/* A graph under construction, then a plan. The first failure stays; later steps do nothing. */
typedef struct {
    const dms_cudnn *api;
    cudnnHandle_t handle; /* borrowed */
    dms_dense_shape shape;
    cudnnStatus_t status; /* the first failure, */
    const char *failed;   /* and the step that failed */
    int n_parts, n_ops;
    cudnnBackendDescriptor_t parts[DMS_DENSE_PARTS]; /* all that must be destroyed */
    cudnnBackendDescriptor_t ops[DMS_DENSE_OPS];
    int64_t n_virtual;
    cudnnBackendDescriptor_t plan; /* one of the parts */
    int64_t workspace_bytes;
} dms_dense_graph;

/* Builds the graph and asks cuDNN for a plan, which compiles a kernel: some 0.5 s. The caller has
 * set api, handle and shape, the rest is zero, and ends it with dms_dense_graph_close, also after a
 * failure.
 *
 *   s = scale * Q K^T, masked where key > query;  p = exp(s - max) / sum;  o = p V;
 *   lse = max + log(sum)
 *
 * Q, o: [B, T, H, E]   K, V: [B, T, G, E]   bf16, seen as [B, heads, T, E] by strides;
 * lse: [B, H, T] f32. The order of operations is the one that the fused attention engines know
 * (NVIDIA's cudnn-frontend, nodes scaled_dot_product_flash_attention and softmax).
 *
 * Two things that cuDNN 9.19 accepts are not asked for, because of the kernels that it compiles for
 * Hopper then (plans for a described H100, compared byte by byte; nothing was run): an f32 o gets
 * the very kernel of a bf16 o, and with a kernel cache T = 1000 gets the kernel of T = 1024, and
 * E = 128 that of E = 64, which are others without the cache. */
cudnnStatus_t dms_dense_graph_open(dms_dense_graph *g);
void dms_dense_graph_close(dms_dense_graph *g);

/* Queues one execution on the handle's stream. pointers[i - 1]: memory of tensor i, device memory
 * or (scale, masked) one host float, read before this returns. */
cudnnStatus_t dms_dense_graph_run(const dms_dense_graph *g, void *const *pointers, void *workspace);

DMS_END_C
#endif
