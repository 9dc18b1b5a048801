/* The emulated device: its properties, the runtime's errors, crashes of kernels. */
#include "kernels/cuda_emu/runtime.h"

#include <mutex>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda_emu/kernel.h"
#include "kernels/cuda_emu/report.h"
#include "kernels/cuda_emu/schedule.h"
#include "kernels/cuda_emu/stream.h"

namespace emu
{

static std::recursive_mutex turn;
static cudaError_t last_error, lost;

/* The environment's schedule, once. */
static void start()
{
    static bool started;
    const char *name = getenv("CUDA_EMU_SCHED");
    if (started)
        return;
    started = true;
    if (!schedule_set(name ? name : "fwd")) {
        fprintf(stderr, "cuda_emu: CUDA_EMU_SCHED is %s, expected fwd, rev or rand:SEED\n", name);
        schedule_set("fwd");
    }
}

entry::entry()
{
    turn.lock();
    start();
}

entry::~entry()
{
    turn.unlock();
}

cudaError_t failed(cudaError_t error)
{
    last_error = error;
    return error;
}

void device_lost(cudaError_t error)
{
    lost = error;
    drop_queues();
}

cudaError_t device_state()
{
    return lost;
}

/* Names as in driver_types.h, texts as the runtime's. */
#define DMS_EMU_ERRORS(X)                                                                         \
    X(cudaSuccess, "no error")                                                                    \
    X(cudaErrorInvalidValue, "invalid argument")                                                  \
    X(cudaErrorMemoryAllocation, "out of memory")                                                 \
    X(cudaErrorInitializationError, "initialization error")                                       \
    X(cudaErrorInvalidConfiguration, "invalid configuration argument")                            \
    X(cudaErrorInvalidDevice, "invalid device ordinal")                                           \
    X(cudaErrorNoDevice, "no CUDA-capable device is detected")                                    \
    X(cudaErrorInvalidResourceHandle, "invalid resource handle")                                  \
    X(cudaErrorIllegalState, "the operation cannot be performed in the present state")            \
    X(cudaErrorNotReady, "device not ready")                                                      \
    X(cudaErrorIllegalAddress, "an illegal memory access was encountered")                        \
    X(cudaErrorMisalignedAddress, "misaligned address")                                           \
    X(cudaErrorLaunchFailure, "unspecified launch failure")                                       \
    X(cudaErrorNotSupported, "operation not supported")                                           \
    X(cudaErrorStreamCaptureUnsupported, "operation not permitted when stream is capturing")      \
    X(cudaErrorStreamCaptureInvalidated,                                                          \
      "operation failed due to a previous error during capture")                                  \
    X(cudaErrorStreamCaptureMerge,                                                                \
      "operation would result in a merge of separate capture sequences")                          \
    X(cudaErrorStreamCaptureUnmatched, "capture was not ended in the same stream as it began")    \
    X(cudaErrorStreamCaptureUnjoined, "capturing stream has unjoined work")                       \
    X(cudaErrorStreamCaptureIsolation, "dependency created on uncaptured work in another stream") \
    X(cudaErrorStreamCaptureWrongThread,                                                          \
      "attempt to terminate a thread-local capture sequence from another thread")                 \
    X(cudaErrorCapturedEvent,                                                                     \
      "operation not permitted on an event last recorded in a capturing stream")

} // namespace emu

using namespace emu;

extern "C" const char *CUDARTAPI cudaGetErrorName(cudaError_t error)
{
    switch (error) {
#define X(code, text) \
    case code:        \
        return #code;
        DMS_EMU_ERRORS(X)
#undef X
    default:
        return "unrecognized error code";
    }
}

extern "C" const char *CUDARTAPI cudaGetErrorString(cudaError_t error)
{
    switch (error) {
#define X(code, text) \
    case code:        \
        return text;
        DMS_EMU_ERRORS(X)
#undef X
    default:
        return "unrecognized error code";
    }
}

DMS_EMU_API cudaPeekAtLastError(void)
{
    const entry entered;
    return lost ? lost : last_error;
}

DMS_EMU_API cudaGetLastError(void)
{
    const entry entered;
    const cudaError_t error = lost ? lost : last_error;
    last_error = cudaSuccess;
    return error;
}

DMS_EMU_API cudaDeviceReset(void)
{
    const entry entered;
    streams_reset();
    memory_reset();
    lost = last_error = cudaSuccess;
    return cudaSuccess;
}

DMS_EMU_API cudaGetDeviceCount(int *n)
{
    *n = 1;
    return cudaSuccess;
}

DMS_EMU_API cudaGetDevice(int *device)
{
    *device = 0;
    return cudaSuccess;
}

DMS_EMU_API cudaSetDevice(int device)
{
    DMS_EMU_ENTER();
    return device ? failed(cudaErrorInvalidDevice) : cudaSuccess;
}

DMS_EMU_API cudaRuntimeGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return cudaSuccess;
}

DMS_EMU_API cudaDriverGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return cudaSuccess;
}

static void describe(struct cudaDeviceProp *p)
{
    size_t available;
    memset(p, 0, sizeof(*p));
    strcpy(p->name, "CUDA emulation");
    p->major = 9;
    p->multiProcessorCount = 4; /* few, so that small tests loop over the grid */
    p->warpSize = LANES;
    p->maxThreadsPerBlock = MOST_THREADS;
    p->maxThreadsPerMultiProcessor = 2048;
    p->maxThreadsDim[0] = p->maxThreadsDim[1] = MOST_THREADS;
    p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = INT32_MAX;
    p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->sharedMemPerBlock = SHARED_DEFAULT;
    p->sharedMemPerBlockOptin = SHARED_MOST;
    p->sharedMemPerMultiprocessor = SHARED_MOST + 1024;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->l2CacheSize = 1 << 20;
    p->asyncEngineCount = 1;
    p->concurrentKernels = 1;
    cudaMemGetInfo(&available, &p->totalGlobalMem);
}

DMS_EMU_API cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device)
{
    DMS_EMU_ENTER();
    if (device)
        return failed(cudaErrorInvalidDevice);
    describe(properties);
    return cudaSuccess;
}

DMS_EMU_API cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device)
{
    DMS_EMU_ENTER();
    struct cudaDeviceProp p;
    describe(&p);
    if (device)
        return failed(cudaErrorInvalidDevice);
    switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
        *value = p.major;
        return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
        *value = p.minor;
        return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
        *value = p.multiProcessorCount;
        return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *value = static_cast<int>(p.sharedMemPerBlockOptin);
        return cudaSuccess;
    default:
        return failed(cudaErrorInvalidValue);
    }
}
