/* What every .cu file includes: the CUDA platform or its emulation, sums over a warp and a block,
 * loads and stores of both storage types. */
#ifndef DMS_CUDA_KERNEL_CUH
#define DMS_CUDA_KERNEL_CUH

#include "kernels/cuda/device.h"
#include "kernels/cuda/platform.cuh"

enum { DMS_WARP = 32 };
#define DMS_ALL_LANES 0xffffffffu

typedef __nv_bfloat16 dms_bf16;

static __device__ __forceinline__ float dms_load(const float *p)
{
    return *p;
}

static __device__ __forceinline__ float dms_load(const dms_bf16 *p)
{
    return __bfloat162float(*p);
}

static __device__ __forceinline__ void dms_store(float *p, float value)
{
    *p = value;
}

/* Rounds to nearest even. */
static __device__ __forceinline__ void dms_store(dms_bf16 *p, float value)
{
    *p = __float2bfloat16_rn(value);
}

/* Sum over the warp, the same in every lane: lanes are added in one fixed order. */
static __device__ __forceinline__ float dms_warp_sum(float v)
{
    for (int step = DMS_WARP / 2; step > 0; step /= 2)
        v += __shfl_xor_sync(DMS_ALL_LANES, v, step);
    return v;
}

static __device__ __forceinline__ float dms_warp_max(float v)
{
    for (int step = DMS_WARP / 2; step > 0; step /= 2)
        v = fmaxf(v, __shfl_xor_sync(DMS_ALL_LANES, v, step));
    return v;
}

/* Sum over a block of whole warps, returned to every thread. */
static __device__ __forceinline__ float dms_block_sum(float v)
{
    __shared__ float partial[32];
    const int lane = (int)threadIdx.x % DMS_WARP, warp = (int)threadIdx.x / DMS_WARP;

    v = dms_warp_sum(v);
    __syncthreads(); /* a caller may sum twice: do not overtake its last read */
    if (lane == 0)
        partial[warp] = v;
    __syncthreads();
    return dms_warp_sum(lane < (int)blockDim.x / DMS_WARP ? partial[lane] : 0.0f);
}

/* The widest head that the kernels of attention take. */
enum { DMS_MOST_WIDTH = 256 };

/* The failure of those that get a wider one. */
static inline dms_status dms_cuda_too_wide(const dms_device *dev, int64_t width)
{
    return dms_fail(DMS_ERR_SHAPE,
                    "E, the width of a head, is %lld, expected at most %d on %s; use --device cpu",
                    (long long)width, DMS_MOST_WIDTH, dev->name);
}

/* Blocks of `block` threads that cover n elements, at most `most`: kernels stride over the rest. */
static inline unsigned dms_grid(int64_t n, int block, int64_t most)
{
    const int64_t blocks = (n + block - 1) / block;
    return (unsigned)(blocks < 1 ? 1 : blocks > most ? most : blocks);
}

/* The end of every launcher: reports a launch that could not be made. */
static inline dms_status dms_cuda_launched(const char *file, int line)
{
    const cudaError_t error = cudaGetLastError();
    return error == cudaSuccess ? DMS_OK : dms_cuda_failed(error, "launch", file, line);
}
#define DMS_LAUNCHED() dms_cuda_launched(__FILE__, __LINE__)

#endif
