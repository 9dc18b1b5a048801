/* What all parts of the emulated CUDA runtime share: one call at a time, the errors. */
#ifndef DMS_CUDA_EMU_RUNTIME_H
#define DMS_CUDA_EMU_RUNTIME_H

#include <cuda_runtime_api.h>

namespace emu
{

/* Calls of the runtime from several threads take turns. */
struct entry {
    entry();
    ~entry();
    entry(const entry &) = delete;
    entry &operator=(const entry &) = delete;
};

/* Keeps the error for cudaGetLastError and yields it. */
cudaError_t failed(cudaError_t error);
/* A kernel failed: every later call yields its error, and what was queued is dropped. */
void device_lost(cudaError_t error);
/* The error of the kernel that failed, or cudaSuccess. */
cudaError_t device_state();

/* Of memory.cpp: cudaDeviceReset. */
void memory_reset();

} // namespace emu

#define DMS_EMU_API extern "C" cudaError_t CUDARTAPI

#define DMS_EMU_ENTER()        \
    const emu::entry entered_; \
    if (emu::device_state())   \
    return emu::device_state()

#endif
