/* What kernels bound by memory share: accesses of 16 bytes with a scalar rest, and sums in double.
 * A kernel template <int N> handles N elements at a time: 4 where every pointer is aligned and rows
 * begin on a multiple of 4, else 1. */
#ifndef DMS_CUDA_WIDE_CUH
#define DMS_CUDA_WIDE_CUH

#include "kernels/cuda/kernel.cuh"

enum { DMS_BLOCK = 256, DMS_MOST_BLOCKS = 1 << 14 };

/* N elements that one instruction moves. */
template <typename T, int N> struct alignas(N * sizeof(T)) dms_few {
    T at[N];
};

/* out[j] = p[j] for j < N, 0 where j >= left. p is aligned to N elements. */
template <int N, typename T>
static __device__ __forceinline__ void dms_load_few(float out[N], const T *p, int64_t left)
{
    dms_few<T, N> v;
    if (left >= N) {
        v = *reinterpret_cast<const dms_few<T, N> *>(p);
#pragma unroll
        for (int j = 0; j < N; j++)
            out[j] = dms_load(&v.at[j]);
    } else {
#pragma unroll
        for (int j = 0; j < N; j++)
            out[j] = j < left ? dms_load(p + j) : 0.0f;
    }
}

/* p[j] = in[j] for j < N and j < left. */
template <int N, typename T>
static __device__ __forceinline__ void dms_store_few(T *p, const float in[N], int64_t left)
{
    dms_few<T, N> v;
    if (left >= N) {
#pragma unroll
        for (int j = 0; j < N; j++)
            dms_store(&v.at[j], in[j]);
        *reinterpret_cast<dms_few<T, N> *>(p) = v;
    } else {
#pragma unroll
        for (int j = 0; j < N; j++)
            if (j < left)
                dms_store(p + j, in[j]);
    }
}

/* The same into f32 or bf16 from element `at` on; all threads agree on the type. */
template <int N>
static __device__ __forceinline__ void dms_store_as(void *p, bool bf16, int64_t at,
                                                    const float in[N], int64_t left)
{
    if (bf16)
        dms_store_few<N>((dms_bf16 *)p + at, in, left);
    else
        dms_store_few<N>((float *)p + at, in, left);
}

/* p[j] += in[j] for j < N and j < left. */
template <int N>
static __device__ __forceinline__ void dms_add_few(float *p, const float in[N], int64_t left)
{
    float sum[N];
    dms_load_few<N>(sum, p, left);
#pragma unroll
    for (int j = 0; j < N; j++)
        sum[j] += in[j];
    dms_store_few<N>(p, sum, left);
}

/* This thread in the grid, and the threads of the grid. */
static __device__ __forceinline__ int64_t dms_thread(void)
{
    return (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
}

static __device__ __forceinline__ int64_t dms_threads(void)
{
    return (int64_t)gridDim.x * blockDim.x;
}

/* Sum over a block of DMS_BLOCK threads, returned to every thread. */
static __device__ __forceinline__ double dms_block_sum_double(double v)
{
    __shared__ double partial[DMS_BLOCK];
    __syncthreads(); /* a caller may sum twice: do not overtake its last read */
    partial[threadIdx.x] = v;
    for (int half = DMS_BLOCK / 2; half > 0; half /= 2) {
        __syncthreads();
        if ((int)threadIdx.x < half)
            partial[threadIdx.x] += partial[threadIdx.x + half];
    }
    __syncthreads();
    return partial[0];
}

/* Whether all of the pointers allow accesses of 16 bytes; NULL does. */
static inline bool dms_wide(const void *const *pointers, int n)
{
    uintptr_t bits = 0;
    for (int i = 0; i < n; i++)
        bits |= (uintptr_t)pointers[i];
    return bits % 16 == 0;
}

/* Threads that stride over `cols` elements of a row, N at a time: whole warps, at most a block. */
static inline int dms_row_block(int64_t cols, int width)
{
    const int64_t warps = (cols + width * DMS_WARP - 1) / (width * DMS_WARP);
    return DMS_WARP * (int)(warps < 1                      ? 1
                            : warps > DMS_BLOCK / DMS_WARP ? DMS_BLOCK / DMS_WARP
                                                           : warps);
}

/* kernel<4> or kernel<1> over n elements. */
#define DMS_LAUNCH_WIDE(kernel, wide, n, stream, ...)                                             \
    do {                                                                                          \
        if (wide)                                                                                 \
            DMS_LAUNCH(kernel<4>, dms_grid(((n) + 3) / 4, DMS_BLOCK, DMS_MOST_BLOCKS), DMS_BLOCK, \
                       0, stream, __VA_ARGS__);                                                   \
        else                                                                                      \
            DMS_LAUNCH(kernel<1>, dms_grid(n, DMS_BLOCK, DMS_MOST_BLOCKS), DMS_BLOCK, 0, stream,  \
                       __VA_ARGS__);                                                              \
    } while (0)

/* The same with one block a row (rows strided over) of `cols` elements. */
#define DMS_LAUNCH_ROWS(kernel, wide, rows, cols, stream, ...)                                     \
    do {                                                                                           \
        if (wide)                                                                                  \
            DMS_LAUNCH(kernel<4>, dms_grid(rows, 1, INT32_MAX), dms_row_block(cols, 4), 0, stream, \
                       __VA_ARGS__);                                                               \
        else                                                                                       \
            DMS_LAUNCH(kernel<1>, dms_grid(rows, 1, INT32_MAX), dms_row_block(cols, 1), 0, stream, \
                       __VA_ARGS__);                                                               \
    } while (0)

#endif
