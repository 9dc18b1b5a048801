/* A finished cuDNN graph, as the emulation runs it. */
#ifndef DMS_CUDA_EMU_CUDNN_PROGRAM_H
#define DMS_CUDA_EMU_CUDNN_PROGRAM_H

#include <cuda_runtime_api.h>
#include <cudnn_graph.h>
#include <stdint.h>
#include <string.h>
#include <vector>

namespace cudnn_emu
{
enum { RANK = 4, MOST_TENSORS = 64, WORKSPACE = 256 };

typedef struct {
    int64_t uid, dims[RANK], strides[RANK], alignment;
    cudnnDataType_t type;
    bool internal, by_value;
} tensor;

/* Operands are places in the program's list of tensors; -1: none. */
typedef struct {
    enum { MULTIPLY, REDUCE, MAP, UNKNOWN } kind;
    int mode; /* of a pointwise operation or a reduction */
    int64_t axis;
    int y, x, b, t;
} operation;

/* A finished graph. Plans share it with the descriptors it came from. */
struct program {
    std::vector<tensor> tensors;
    std::vector<operation> operations; /* in an order in which they can run */
};

static inline int64_t count_of(const tensor &t)
{
    return t.dims[0] * t.dims[1] * t.dims[2] * t.dims[3];
}

/* By value, as kernel parameters are: a replay finds what was recorded. */
typedef struct {
    const program *plan;
    void *memory[MOST_TENSORS]; /* of tensors that are neither internal nor by value */
    float numbers[MOST_TENSORS];
    void *workspace;
} call;

/* Queues it like a kernel: it is recorded and replayed like one. */
cudaError_t queue(const call &c, cudaStream_t stream);
} // namespace cudnn_emu

#endif
