/* The CUDA language for the C++ compiler: what kernels/cuda/platform.cuh gives to nvcc, run on the
 * CPU by one fiber a thread. Faults that it finds, and those it cannot: README.md of this folder.
 */
#ifndef DMS_CUDA_EMU_EMU_CUH
#define DMS_CUDA_EMU_EMU_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include "kernels/cuda_emu/async_copy.cuh"
#include "kernels/cuda_emu/atomics.cuh"
#include "kernels/cuda_emu/launch.cuh"
#include "kernels/cuda_emu/math.cuh"
#include "kernels/cuda_emu/report.h"
#include "kernels/cuda_emu/tensor_core.cuh"
#include "kernels/cuda_emu/warp.cuh"

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __forceinline__
#undef __launch_bounds__
#undef __align__
#undef __grid_constant__
#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

/* Thread-local storage of the module holds these arrays and nothing else, so that it can be filled
 * with NaN before each block (shared.cpp). AddressSanitizer guards plain statics only. */
#ifdef DMS_EMU_ASAN
#define __shared__ static
#else
#define __shared__ static __thread
#endif

#define threadIdx (emu::self->index)
#define blockIdx (emu::running.index)
#define blockDim (emu::running.size)
#define gridDim (emu::running.grid)
#define warpSize 32

#define DMS_DYNAMIC_SHARED(T, name) T *name = reinterpret_cast<T *>(emu::running.shared)

#define __syncthreads() ((void)emu::barrier(false, {__FILE__, __LINE__}))
#define __syncthreads_count(p) (emu::barrier((p) != 0, {__FILE__, __LINE__}))
#define __syncthreads_or(p) (emu::barrier((p) != 0, {__FILE__, __LINE__}) != 0)
#define __syncthreads_and(p) (emu::barrier((p) == 0, {__FILE__, __LINE__}) == 0)

[[noreturn]] static inline void dms_trap(const char *file = __builtin_FILE(),
                                         int line = __builtin_LINE())
{
    emu::fault(cudaErrorLaunchFailure, {file, line}, "trap", "dms_trap was called");
}

#endif
