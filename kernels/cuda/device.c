/* The CUDA device: streams, memory, transfers, graphs. Compiled into the module, once with the CUDA
 * runtime and once with its emulation. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/dense.h"
#include "kernels/cuda/module.h"

enum { SLOT = 1 << 20 }; /* bytes of staging memory */

static const dms_op_table table = {
#define X(name) .name = dms_cuda_##name,
    DMS_OP_LIST(X)
#undef X
};

static bool is_set(const char *name)
{
    const char *value = getenv(name);
    return value && strcmp(value, "1") == 0;
}

/* Failures of work queued before, which the call that reports them did not cause. */
static bool is_kernel_failure(cudaError_t error)
{
    return (error == cudaErrorIllegalAddress || error == cudaErrorLaunchFailure ||
            error == cudaErrorIllegalInstruction || error == cudaErrorMisalignedAddress ||
            error == cudaErrorAssert) &&
           !is_set("DMS_SYNC");
}

/* For calls whose failure nobody can mend: the runtime would report it again after the next launch,
 * which is healthy. */
static void ignore(cudaError_t error)
{
    if (error != cudaSuccess)
        (void)cudaGetLastError();
}

dms_status dms_cuda_failed(cudaError_t error, const char *call, const char *file, int line)
{
    ignore(error);
    const dms_status code = error == cudaErrorMemoryAllocation ? DMS_ERR_NOMEM : DMS_ERR_DEVICE;
    dms_fail_at(file, line, code, "%s: %s (%s)%s", call, cudaGetErrorString(error),
                cudaGetErrorName(error),
                is_kernel_failure(error) ? "; a kernel failed, DMS_SYNC=1 names its op" : "");
    return code;
}

static dms_status cuda_alloc(dms_device *dev, void **out, size_t bytes)
{
    dms_cuda_device *cuda = dms_cuda_of(dev);
    const size_t wanted = bytes ? bytes : 1, rounded = dms_cuda_part(wanted);
    size_t free_bytes = 0, all = 0;
    if (cuda->recording)
        return dms_fail(DMS_ERR_DEVICE, "memory was asked for while a graph was recorded");
    if (rounded >= wanted && rounded <= cuda->reserved_bytes - cuda->reserved_used) {
        *out = cuda->reserved + cuda->reserved_used;
        cuda->reserved_used += rounded;
        return DMS_OK;
    }
    const cudaError_t error = cudaMalloc(out, wanted);
    if (error != cudaErrorMemoryAllocation) {
        DMS_CUDA_TRY(error);
        return DMS_OK;
    }
    ignore(error);
    ignore(cudaMemGetInfo(&free_bytes, &all));
    return dms_fail(DMS_ERR_NOMEM, "%s has %.3f MiB free of %.3f, %.3f MiB were asked for",
                    dev->name, (double)free_bytes / 0x1p20, (double)all / 0x1p20,
                    (double)bytes / 0x1p20);
}

static void cuda_release(dms_device *dev, void *ptr)
{
    const dms_cuda_device *cuda = dms_cuda_of(dev);
    const uintptr_t at = (uintptr_t)ptr, base = (uintptr_t)cuda->reserved;
    if (!base || at < base || at - base >= cuda->reserved_bytes)
        ignore(cudaFree(ptr));
}

/* One piece of at most SLOT bytes: through pinned memory, on the stream of copies, between the ops
 * queued before and those queued after. Waits only for the copy that used the slot last. */
static dms_status upload_piece(dms_cuda_device *cuda, void *dst, const void *src, size_t bytes)
{
    dms_cuda_slot *slot = &cuda->slots[cuda->turn++ % DMS_CUDA_SLOTS];
    DMS_CUDA_TRY(cudaEventSynchronize(slot->copied));
    memcpy(slot->memory, src, bytes);
    DMS_CUDA_TRY(cudaMemcpyAsync(dst, slot->memory, bytes, cudaMemcpyHostToDevice, cuda->copies));
    DMS_CUDA_TRY(cudaEventRecord(slot->copied, cuda->copies));
    cuda->copied = slot->copied;
    return DMS_OK;
}

static dms_status cuda_upload(dms_device *dev, void *dst, const void *src, size_t bytes)
{
    dms_cuda_device *cuda = dms_cuda_of(dev);
    if (cuda->recording)
        return dms_fail(DMS_ERR_DEVICE, "an upload was asked for while a graph was recorded");
    if (!bytes)
        return DMS_OK;
    DMS_CUDA_TRY(cudaEventRecord(cuda->computed, cuda->stream));
    DMS_CUDA_TRY(cudaStreamWaitEvent(cuda->copies, cuda->computed, 0));
    for (size_t at = 0; at < bytes; at += SLOT) {
        const size_t piece = bytes - at < SLOT ? bytes - at : SLOT;
        DMS_TRY(upload_piece(cuda, (char *)dst + at, (const char *)src + at, piece));
    }
    DMS_CUDA_TRY(cudaStreamWaitEvent(cuda->stream, cuda->copied, 0));
    return DMS_OK;
}

static dms_status cuda_download(dms_device *dev, void *dst, const void *src, size_t bytes)
{
    dms_cuda_device *cuda = dms_cuda_of(dev);
    DMS_CUDA_TRY(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToHost, cuda->stream));
    DMS_CUDA_TRY(cudaStreamSynchronize(cuda->stream));
    return DMS_OK;
}

static dms_status cuda_zero(dms_device *dev, void *dst, size_t bytes)
{
    DMS_CUDA_TRY(cudaMemsetAsync(dst, 0, bytes, dms_cuda_stream(dev)));
    return DMS_OK;
}

dms_status dms_cuda_copy(dms_device *dev, void *dst, const void *src, size_t bytes)
{
    if (!dev->dry)
        DMS_CUDA_TRY(
            cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, dms_cuda_stream(dev)));
    return DMS_OK;
}

static dms_status grow_scratch(dms_cuda_device *cuda, size_t bytes)
{
    void *grown = NULL;
    DMS_TRY(cuda_alloc(&cuda->head, &grown, bytes));
    DMS_CUDA_TRY(cudaStreamSynchronize(cuda->stream));
    cuda_release(&cuda->head, cuda->scratch);
    cuda->scratch = grown;
    cuda->scratch_bytes = bytes;
    cuda->head.generation++;
    return DMS_OK;
}

/* A dry run's workspace is scratch memory and that of matrix products. */
dms_status dms_cuda_scratch(void **out, dms_device *dev, size_t bytes)
{
    dms_cuda_device *cuda = dms_cuda_of(dev);
    const size_t all = dms_cuda_part(bytes) + DMS_CUDA_GEMM_WORKSPACE;
    if (dev->dry) {
        *out = (void *)(uintptr_t)DMS_CUDA_GEMM_WORKSPACE; /* aligned, not NULL */
        dev->workspace_bytes = all > dev->workspace_bytes ? all : dev->workspace_bytes;
        return DMS_OK;
    }
    if (bytes > cuda->scratch_bytes)
        DMS_TRY(grow_scratch(cuda, bytes + bytes / 4));
    *out = cuda->scratch;
    return DMS_OK;
}

static dms_status cuda_reserve(dms_device *dev, size_t bytes, size_t workspace_bytes)
{
    dms_cuda_device *cuda = dms_cuda_of(dev);
    const size_t all = dms_cuda_part(bytes) + dms_cuda_part(workspace_bytes);
    void *block = NULL;
    if (cuda->reserved)
        return dms_fail(DMS_ERR_ARG, "the memory of %s was reserved before", dev->name);
    DMS_TRY(cuda_alloc(dev, &block, all));
    cuda->reserved = block;
    cuda->reserved_bytes = all;
    return workspace_bytes > DMS_CUDA_GEMM_WORKSPACE
               ? grow_scratch(cuda, workspace_bytes - DMS_CUDA_GEMM_WORKSPACE)
               : DMS_OK;
}

static size_t cuda_free_bytes(dms_device *dev)
{
    size_t free_bytes = 0, all = 0;
    (void)dev;
    ignore(cudaMemGetInfo(&free_bytes, &all));
    return free_bytes;
}

static dms_status cuda_wait(dms_device *dev)
{
    if (!dms_cuda_of(dev)->recording)
        DMS_CUDA_TRY(cudaStreamSynchronize(dms_cuda_stream(dev)));
    return DMS_OK;
}

static dms_status cuda_record(dms_device *dev)
{
    dms_cuda_device *cuda = dms_cuda_of(dev);
    DMS_CUDA_TRY(cudaStreamBeginCapture(cuda->stream, cudaStreamCaptureModeThreadLocal));
    cuda->recording = true;
    return DMS_OK;
}

static dms_status cuda_recorded(dms_device *dev, dms_graph **out)
{
    dms_cuda_device *cuda = dms_cuda_of(dev);
    cudaGraph_t graph = NULL;
    cudaGraphExec_t ready = NULL;
    cuda->recording = false;
    DMS_CUDA_TRY(cudaStreamEndCapture(cuda->stream, &graph));
    const cudaError_t error = out ? cudaGraphInstantiate(&ready, graph, 0) : cudaSuccess;
    ignore(cudaGraphDestroy(graph));
    DMS_CUDA_TRY(error);
    if (out)
        *out = (dms_graph *)ready;
    return DMS_OK;
}

static dms_status cuda_replay(dms_device *dev, dms_graph *graph)
{
    DMS_CUDA_TRY(cudaGraphLaunch((cudaGraphExec_t)graph, dms_cuda_stream(dev)));
    return DMS_OK;
}

static void cuda_forget(dms_device *dev, dms_graph *graph)
{
    (void)dev;
    if (graph)
        ignore(cudaGraphExecDestroy((cudaGraphExec_t)graph));
}

static void close_slots(dms_cuda_device *cuda)
{
    for (int i = 0; i < DMS_CUDA_SLOTS; i++) {
        ignore(cudaFreeHost(cuda->slots[i].memory));
        if (cuda->slots[i].copied)
            ignore(cudaEventDestroy(cuda->slots[i].copied));
    }
}

static void cuda_close(dms_device *dev)
{
    dms_cuda_device *cuda = dms_cuda_of(dev);
    if (!cuda)
        return;
    if (cuda->stream)
        ignore(cudaStreamSynchronize(cuda->stream));
    dms_cuda_gemm_close(dev, cuda->plans);
    dms_cuda_dense_close(cuda->dense);
    cuda_release(&cuda->head, cuda->scratch);
    ignore(cudaFree(cuda->reserved));
    close_slots(cuda);
    if (cuda->computed)
        ignore(cudaEventDestroy(cuda->computed));
    if (cuda->copies)
        ignore(cudaStreamDestroy(cuda->copies));
    if (cuda->stream)
        ignore(cudaStreamDestroy(cuda->stream));
    free(cuda);
}

static dms_status find_device(dms_cuda_device *cuda)
{
    struct cudaDeviceProp properties;
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    ignore(error);
    if (error != cudaSuccess || count < 1)
        return dms_fail(DMS_ERR_NODEVICE, "no CUDA device: %s; use --device cpu",
                        error == cudaSuccess ? "none is installed" : cudaGetErrorString(error));
    DMS_CUDA_TRY(cudaSetDevice(0));
    DMS_CUDA_TRY(cudaGetDeviceProperties(&properties, 0));
    cuda->compute = 10 * properties.major + properties.minor;
    cuda->multiprocessors = properties.multiProcessorCount;
    cuda->shared_bytes = properties.sharedMemPerBlockOptin;
    if (cuda->compute < 80)
        return dms_fail(DMS_ERR_NODEVICE,
                        "the GPU %s has compute capability %d.%d, expected 8.0 or more; use "
                        "--device cpu",
                        properties.name, properties.major, properties.minor);
    return DMS_OK;
}

static dms_status make_streams(dms_cuda_device *cuda)
{
    DMS_CUDA_TRY(cudaStreamCreateWithFlags(&cuda->stream, cudaStreamNonBlocking));
    DMS_CUDA_TRY(cudaStreamCreateWithFlags(&cuda->copies, cudaStreamNonBlocking));
    DMS_CUDA_TRY(cudaEventCreateWithFlags(&cuda->computed, cudaEventDisableTiming));
    for (int i = 0; i < DMS_CUDA_SLOTS; i++) {
        dms_cuda_slot *slot = &cuda->slots[i];
        DMS_CUDA_TRY(cudaEventCreateWithFlags(&slot->copied, cudaEventDisableTiming));
        DMS_CUDA_TRY(cudaMallocHost((void **)&slot->memory, SLOT));
    }
    return DMS_OK;
}

static bool is_same_build(const dms_cuda_abi *a, const dms_cuda_abi *b)
{
    return a->device_bytes == b->device_bytes && a->tensor_bytes == b->tensor_bytes &&
           a->paged_bytes == b->paged_bytes && strcmp(a->ops, b->ops) == 0;
}

__attribute__((visibility("default"))) dms_cuda_module_open_fn dms_cuda_module_open;

dms_status dms_cuda_module_open(dms_device **out, const dms_cuda_abi *program, bool emulated)
{
    dms_status status = DMS_OK;
    const dms_cuda_abi own = dms_cuda_abi_of_this_build();
    if (!is_same_build(program, &own))
        return dms_fail(DMS_ERR_DEVICE, "the CUDA backend is of another version of dms.c; build it "
                                        "again, or use --device cpu");
    const bool waits = is_set("DMS_SYNC");
    dms_cuda_device *cuda = calloc(1, sizeof(*cuda));
    if (!cuda)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a device");
    cuda->head = (dms_device){.kind = emulated ? DMS_CUDA_EMU : DMS_CUDA,
                              .name = emulated ? "cuda_emu" : "cuda",
                              .ops = &table,
                              .has_bf16 = true,
                              .threads = 1,
                              .alloc = cuda_alloc,
                              .release = cuda_release,
                              .upload = cuda_upload,
                              .download = cuda_download,
                              .zero = cuda_zero,
                              .close = cuda_close,
                              .after_op = waits ? cuda_wait : NULL,
                              .record = waits ? NULL : cuda_record, /* it would hide the ops */
                              .recorded = cuda_recorded,
                              .replay = cuda_replay,
                              .forget = cuda_forget,
                              .reserve = cuda_reserve,
                              .free_bytes = cuda_free_bytes};
    DMS_TRY_OR(fail, find_device(cuda));
    DMS_TRY_OR(fail, make_streams(cuda));
    *out = &cuda->head;
    return DMS_OK;
fail:
    cuda_close(&cuda->head);
    return status;
}
