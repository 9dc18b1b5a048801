/* What the emulation tells: faults of kernels by name, counters, the kernels that ran. */
#ifndef DMS_CUDA_EMU_REPORT_H
#define DMS_CUDA_EMU_REPORT_H

#include <cuda_runtime_api.h>

#include "kernels/cuda_emu/block.h"
#include "kernels/cuda_emu/counts.h"

namespace emu
{

extern dms_cuda_emu_counts counts;

/* Ends the running kernel: prints one line that names the fault, the kernel, block, thread and
 * line, and makes every later call of the runtime return `error`. A place without a file is
 * unknown. */
[[noreturn]] void fault(cudaError_t error, place at, const char *name, const char *detail, ...)
    __attribute__((format(printf, 4, 5)));

/* Appends the name to the file that DMS_CUDA_EMU_LOG names, if it does. */
void log_kernel(const char *name);

} // namespace emu
#endif
