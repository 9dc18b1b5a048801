/* The CUDA language as our kernels use it: launches, dynamic shared memory, the PTX instructions
 * that have no intrinsic. The emulation has the same names; nothing else here tells them apart. */
#ifndef DMS_CUDA_PLATFORM_CUH
#define DMS_CUDA_PLATFORM_CUH

#ifdef DMS_CUDA_EMULATED
#include "kernels/cuda_emu/emu.cuh"
#else

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include "kernels/cuda/device.h"

/* A template-id with a comma goes in parentheses: DMS_LAUNCH((kernel<float, 64>), ...). In a dry
 * run nothing is launched. */
#define DMS_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)             \
    do {                                                                       \
        const cudaStream_t stream_ = (stream);                                 \
        if (stream_ != DMS_CUDA_NOWHERE)                                       \
            kernel<<<(grid), (block), (shared_bytes), stream_>>>(__VA_ARGS__); \
    } while (0)

/* Before a launch with more than 48 KiB of dynamic shared memory: yields a cudaError_t. */
#define DMS_ALLOW_SHARED(kernel, bytes) \
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)(bytes))

/* The block's dynamic shared memory as an array of T, 16-byte aligned. */
#define DMS_DYNAMIC_SHARED(T, name)                                      \
    extern __shared__ __align__(16) unsigned char dms_dynamic_shared_[]; \
    T *name = reinterpret_cast<T *>(dms_dynamic_shared_)

/* d [16, 8] f32 += a [16, 16] bf16 row-major . b [16, 8] bf16 column-major, spread over a warp:
 * PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type". */
static __device__ __forceinline__ void dms_mma_bf16(float d[4], const uint32_t a[4],
                                                    const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* Four 8x8 tiles of 16-bit elements: lane i names row i % 8 of tile i / 8 (16 bytes, aligned); r[j]
 * is this lane's fragment of tile j. */
static __device__ __forceinline__ void dms_ldmatrix_x4(uint32_t r[4], const void *row)
{
    const uint32_t at = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

/* The same, each tile transposed. */
static __device__ __forceinline__ void dms_ldmatrix_x4_trans(uint32_t r[4], const void *row)
{
    const uint32_t at = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3},[%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

/* 16 bytes from global to shared memory, done when the group it is committed to was waited for;
 * zeros where `use` is false (global is not read then, but must be a valid address). */
static __device__ __forceinline__ void dms_cp_async_16(void *shared, const void *global, bool use)
{
    const uint32_t at = (uint32_t)__cvta_generic_to_shared(shared);
    const int bytes = use ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0],[%1],16,%2;" ::"r"(at), "l"(global), "r"(bytes)
                 : "memory");
}

static __device__ __forceinline__ void dms_cp_async_commit(void)
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Waits until at most N groups of this thread are under way. */
template <int N> static __device__ __forceinline__ void dms_cp_async_wait(void)
{
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

/* 2^x by one instruction: within 2 units in the last place, 0 below 2^-126. exp2f spends three
 * more on results below that. */
static __device__ __forceinline__ float dms_exp2(float x)
{
    float power;
    asm("ex2.approx.ftz.f32 %0,%1;" : "=f"(power) : "f"(x));
    return power;
}

/* Ends the kernel with an error that the next synchronisation reports. */
static __device__ __forceinline__ void dms_trap(void)
{
    __trap();
}

#endif
#endif
