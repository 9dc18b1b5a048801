/* The CUDA device as its own files see it: stream, scratch memory, library handles. Host side. */
#ifndef DMS_CUDA_DEVICE_H
#define DMS_CUDA_DEVICE_H

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include "kernels/ops.h"

DMS_BEGIN_C

typedef struct dms_cuda_gemm_plans dms_cuda_gemm_plans;
typedef struct dms_cuda_dense dms_cuda_dense;

/* Pinned memory that one upload, or a part of it, is copied through. A few in turn: a small upload
 * need not wait for the work that the one before it waits for. */
enum { DMS_CUDA_SLOTS = 4 };
typedef struct {
    char *memory;
    cudaEvent_t copied; /* the memory is free again */
} dms_cuda_slot;

/* `head` comes first, so that a dms_device * of kind DMS_CUDA or DMS_CUDA_EMU is one of these. */
typedef struct {
    dms_device head;
    cudaStream_t stream;  /* every op is queued here */
    cudaStream_t copies;  /* uploads */
    cudaEvent_t computed; /* what was queued before an upload */
    cudaEvent_t copied;   /* the last upload: one of the slots' */
    dms_cuda_slot slots[DMS_CUDA_SLOTS];
    unsigned turn; /* of the next slot */
    void *scratch; /* see dms_cuda_scratch */
    size_t scratch_bytes;
    char *reserved; /* what alloc serves from first */
    size_t reserved_bytes, reserved_used;
    bool recording;             /* a graph is being recorded: nothing may be allocated */
    int compute;                /* 10*major + minor of the compute capability */
    int multiprocessors;        /* SMs */
    size_t shared_bytes;        /* the most shared memory of one block, static and dynamic */
    dms_cuda_gemm_plans *plans; /* of gemm.c, which owns it; NULL before the first product */
    dms_cuda_dense *dense;      /* of dense.c, likewise */
} dms_cuda_device;

static inline dms_cuda_device *dms_cuda_of(const dms_device *dev)
{
    return (dms_cuda_device *)(void *)dev;
}

/* Bytes of cuBLASLt's workspace: what NVIDIA recommends for Hopper (cuBLAS documentation,
 * cublasSetWorkspace). */
#define DMS_CUDA_GEMM_WORKSPACE ((size_t)32 << 20)

/* The stream of a dry run: DMS_LAUNCH brings nothing there. */
#define DMS_CUDA_NOWHERE ((cudaStream_t)UINTPTR_MAX)

static inline cudaStream_t dms_cuda_stream(const dms_device *dev)
{
    return dev->dry ? DMS_CUDA_NOWHERE : dms_cuda_of(dev)->stream;
}

/* Device memory for one op: 256-byte aligned, contents undefined, valid until the next call on this
 * device (kernels already queued keep what they were given). An op calls this once and cuts its
 * parts out of it. Grows now and then, which waits for the stream; while a graph is being recorded
 * growth fails with DMS_ERR_DEVICE, so a step runs once before it is recorded. In a dry run the
 * need is noted and the address must not be followed. */
dms_status dms_cuda_scratch(void **out, dms_device *dev, size_t bytes);

/* Queues a copy within device memory. */
dms_status dms_cuda_copy(dms_device *dev, void *dst, const void *src, size_t bytes);

/* Bytes rounded up so that the next part of a scratch block is aligned too. */
static inline size_t dms_cuda_part(size_t bytes)
{
    return (bytes + DMS_PIECE - 1) / DMS_PIECE * DMS_PIECE;
}

/* A CUDA failure as ours: names the call. Clears it in the runtime, so that the next launch does
 * not report it again. */
dms_status dms_cuda_failed(cudaError_t error, const char *call, const char *file, int line);

#define DMS_CUDA_TRY(call)                                                  \
    do {                                                                    \
        const cudaError_t cuda_error_ = (call);                             \
        if (cuda_error_ != cudaSuccess)                                     \
            return dms_cuda_failed(cuda_error_, #call, __FILE__, __LINE__); \
    } while (0)

#define X(name) dms_##name##_fn dms_cuda_##name;
DMS_OP_LIST(X)
#undef X

/* What gemm.c and dense.c free when the device closes; NULL is legal. */
void dms_cuda_gemm_close(dms_device *dev, dms_cuda_gemm_plans *plans);

DMS_END_C
#endif
