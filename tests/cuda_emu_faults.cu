/* Kernels with a fault that can be planted, and the host code with one. */
#include "kernels/cuda/platform.cuh"
#include "kernels/cuda_emu/asan.h"
#include "tests/cuda_emu_faults.h"

enum { N = FAULT_N };
#define ALL 0xffffffffu

template <bool PLANTED> static __global__ void missing_barrier_kernel(float *out)
{
    __shared__ float s[N];
    const int t = (int)threadIdx.x;
    s[t] = (float)(N - t);
    if (!PLANTED)
        __syncthreads();
    out[t] = s[N - 1 - t];
}

template <bool PLANTED> static __global__ void missing_syncwarp_kernel(float *out)
{
    __shared__ float s[N];
    const int t = (int)threadIdx.x;
    s[t] = (float)((t ^ 1) + 1);
    if (!PLANTED)
        __syncwarp();
    out[t] = s[t ^ 1];
}

template <bool PLANTED> static __global__ void second_barrier_kernel(float *out)
{
    __shared__ float s[N];
    const int t = (int)threadIdx.x;
    float sum = 0.0f;
    for (int round = 0; round < 2; round++) {
        s[t] = (float)((N - t) * round);
        __syncthreads();
        sum += s[N - 1 - t];
        if (!PLANTED)
            __syncthreads(); /* else a fast thread writes the next round's value */
    }
    out[t] = sum;
}

static __global__ void index_kernel(float *out, const float *x, int shift)
{
    const int t = (int)threadIdx.x;
    out[t] = x[t + shift] + (float)(t + 1);
}

template <bool PLANTED> static __global__ void dynamic_shared_kernel(float *out)
{
    DMS_DYNAMIC_SHARED(float, s);
    const int t = (int)threadIdx.x;
    if (!PLANTED || t != 5)
        s[t] = (float)(t + 1);
    __syncthreads();
    out[t] = s[t];
}

template <bool PLANTED> static __global__ void static_shared_kernel(float *out)
{
    __shared__ float s[N];
    const int t = (int)threadIdx.x;
    if (!PLANTED || t != 5 || blockIdx.x == 1)
        s[t] = (float)(t + 1);
    __syncthreads();
    if (blockIdx.x == 0)
        out[t] = s[t];
}

template <bool PLANTED> static __global__ void overrun_kernel(float *out)
{
    DMS_DYNAMIC_SHARED(float, s);
    const int t = (int)threadIdx.x;
    s[t] = (float)(t + 1);
    __syncthreads();
    out[t] = s[PLANTED && t == 0 ? N : t];
}

template <bool PLANTED> static __global__ void static_overrun_kernel(float *out)
{
    __shared__ float s[N];
    const int t = (int)threadIdx.x;
    s[t] = (float)(t + 1);
    __syncthreads();
    out[t] = s[t + PLANTED] - (PLANTED ? 1.0f : 0.0f);
}

template <bool PLANTED> static __global__ void barrier_divergence_kernel(float *out)
{
    const int t = (int)threadIdx.x;
    if (PLANTED && t < 40) {
        out[t] = 0.0f;
        __syncthreads();
    } else {
        __syncthreads();
    }
    out[t] = (float)(t + 1);
}

template <bool PLANTED> static __global__ void divergent_shuffle_kernel(float *out)
{
    const int t = (int)threadIdx.x;
    float v = (float)(t + 1);
    if (!PLANTED || t % 32 < 20)
        v = __shfl_sync(ALL, v, t % 32);
    __syncthreads();
    out[t] = v;
}

template <bool PLANTED> static __global__ void inactive_lane_kernel(float *out)
{
    const int t = (int)threadIdx.x;
    float v = (float)(t + 1);
    if (t % 32 < 16)
        v = __shfl_xor_sync(0xffffu, v, PLANTED ? 16 : 0);
    out[t] = v;
}

template <bool PLANTED> static __global__ void missing_wait_kernel(float *out, const float *x)
{
    __shared__ __align__(16) float s[N];
    const int t = (int)threadIdx.x;
    if (t < N / 4)
        dms_cp_async_16(&s[4 * t], &x[4 * t], true);
    dms_cp_async_commit();
    dms_cp_async_wait<PLANTED ? 1 : 0>();
    __syncthreads();
    out[t] = s[t];
}

template <bool PLANTED> static __global__ void misaligned_copy_kernel(float *out, const float *x)
{
    __shared__ __align__(16) float s[N + 4];
    const int t = (int)threadIdx.x;
    if (t < N / 4)
        dms_cp_async_16(&s[4 * t + PLANTED], &x[4 * t], true);
    dms_cp_async_commit();
    dms_cp_async_wait<0>();
    __syncthreads();
    out[t] = s[t];
}

template <bool PLANTED> static __global__ void misaligned_tile_kernel(float *out)
{
    __shared__ __align__(16) uint16_t s[32 * 8 + 8];
    uint32_t r[4];
    const int t = (int)threadIdx.x;
    dms_ldmatrix_x4(r, &s[t % 32 * 8 + PLANTED]);
    out[t] = (float)(t + 1);
}

static __global__ void trap_kernel(float *out, bool planted)
{
    const int t = (int)threadIdx.x;
    if (planted && t == 7)
        dms_trap();
    if (out)
        out[t] = (float)(t + 1);
}

static __global__ void add_kernel(float *x, float value)
{
    x[threadIdx.x] += value;
}

static __global__ void scale_kernel(float *x, float value)
{
    x[threadIdx.x] *= value;
}

static __global__ void mma_kernel(float *d, const uint32_t *a, const uint32_t *b)
{
    const int lane = (int)threadIdx.x;
    dms_mma_bf16(d + 4 * lane, a + 4 * lane, b + 2 * lane);
}

static __global__ void ldmatrix_kernel(uint32_t *r, const uint16_t *tiles, bool transposed)
{
    __shared__ __align__(16) uint16_t s[4 * 8 * 8];
    const int lane = (int)threadIdx.x;
    for (int i = 0; i < 8; i++)
        s[lane * 8 + i] = tiles[lane * 8 + i];
    __syncwarp();
    if (transposed)
        dms_ldmatrix_x4_trans(r + 4 * lane, &s[lane * 8]);
    else
        dms_ldmatrix_x4(r + 4 * lane, &s[lane * 8]);
}

static __device__ void see(float *seen, const float *s)
{
    for (int i = 0; i < 3; i++)
        seen[i] = s[4 * i];
}

static __global__ void groups_kernel(float *seen, const float *x)
{
    __shared__ __align__(16) float s[12];
    for (int i = 0; i < 3; i++) {
        dms_cp_async_16(&s[4 * i], &x[4 * i], i < 2);
        dms_cp_async_commit();
    }
    dms_cp_async_wait<3>();
    see(seen, s);
    dms_cp_async_wait<2>();
    see(seen + 3, s);
    dms_cp_async_wait<1>();
    see(seen + 6, s);
    dms_cp_async_wait<0>();
    see(seen + 9, s);
}

static __global__ void warp_kernel(int *out)
{
    const int lane = (int)threadIdx.x;
    const unsigned odd = 0xaaaaaaaau & (unsigned)__ballot_sync(ALL, 1);
    out[lane] = (int)__ballot_sync(ALL, lane % 3 == 0);
    out[32 + lane] = __any_sync(ALL, lane == 9) + 2 * __all_sync(ALL, lane >= 0);
    out[64 + lane] = __shfl_up_sync(ALL, lane, 3);
    out[96 + lane] = __shfl_down_sync(ALL, lane, 2, 8);
    out[128 + lane] = __reduce_add_sync(ALL, lane);
    out[160 + lane] = __reduce_max_sync(ALL, lane ^ 5);
    if (lane % 2)
        out[192 + lane] = __shfl_sync(odd, lane, 1) + (int)__popc(__activemask());
    out[224 + lane] = (int)__match_any_sync(ALL, lane % 4);
}

/* ---- the host's part ------------------------------------------------------------------------- */

enum { BYTES = N * sizeof(float) };

/* A buffer of the device, its values read into out, the first error of all. */
static cudaError_t finish(float *device, float *out, cudaError_t error)
{
    if (!error)
        error = cudaGetLastError();
    if (!error)
        error = cudaMemcpy(out, device, BYTES, cudaMemcpyDeviceToHost);
    (void)cudaFree(device);
    return error;
}

#define RUN_KERNEL(name, threads, shared)                                       \
    static cudaError_t run_##name(bool planted, float *out)                     \
    {                                                                           \
        float *device = NULL;                                                   \
        const cudaError_t error = cudaMalloc((void **)&device, BYTES);          \
        if (planted)                                                            \
            DMS_LAUNCH(name##_kernel<true>, 1, threads, shared, NULL, device);  \
        else                                                                    \
            DMS_LAUNCH(name##_kernel<false>, 1, threads, shared, NULL, device); \
        return finish(device, out, error);                                      \
    }
RUN_KERNEL(missing_barrier, N, 0)
RUN_KERNEL(missing_syncwarp, N, 0)
RUN_KERNEL(second_barrier, N, 0)
RUN_KERNEL(dynamic_shared, N, BYTES)
RUN_KERNEL(overrun, N, BYTES)
RUN_KERNEL(static_overrun, N, 0)
RUN_KERNEL(barrier_divergence, N, 0)
RUN_KERNEL(divergent_shuffle, N, 0)
RUN_KERNEL(inactive_lane, N, 0)
RUN_KERNEL(misaligned_tile, N, 0)

static cudaError_t run_static_shared(bool planted, float *out)
{
    float *device = NULL;
    const cudaError_t error = cudaMalloc((void **)&device, BYTES);
    if (planted) /* what the other block, or an earlier launch, left there is not seen */
        DMS_LAUNCH(static_shared_kernel<true>, 2, N, 0, NULL, device);
    else
        DMS_LAUNCH(static_shared_kernel<false>, 2, N, 0, NULL, device);
    return finish(device, out, error);
}

/* 1, 2, .. N in pinned memory. */
static float *pinned_numbers(void)
{
    float *numbers = NULL;
    if (cudaMallocHost((void **)&numbers, BYTES))
        return NULL;
    for (int i = 0; i < N; i++)
        numbers[i] = (float)(i + 1);
    return numbers;
}

typedef void copy_kernel(float *out, const float *x);

static cudaError_t run_copy(copy_kernel *kernel, float *out)
{
    float *device = NULL, *x = NULL, *numbers = pinned_numbers();
    cudaError_t error = cudaMalloc((void **)&device, BYTES);
    if (!error)
        error = cudaMalloc((void **)&x, BYTES);
    if (!error)
        error = cudaMemcpy(x, numbers, BYTES, cudaMemcpyHostToDevice);
    DMS_LAUNCH(kernel, 1, N, 0, NULL, device, x);
    error = finish(device, out, error);
    (void)cudaFree(x);
    (void)cudaFreeHost(numbers);
    return error;
}

static cudaError_t run_missing_wait(bool planted, float *out)
{
    return run_copy(planted ? missing_wait_kernel<true> : missing_wait_kernel<false>, out);
}

static cudaError_t run_misaligned_copy(bool planted, float *out)
{
    return run_copy(planted ? misaligned_copy_kernel<true> : misaligned_copy_kernel<false>, out);
}

static cudaError_t run_uninitialised(bool planted, float *out)
{
    float *device = NULL, *x = NULL;
    cudaError_t error = cudaMalloc((void **)&device, BYTES);
    if (!error)
        error = cudaMalloc((void **)&x, BYTES);
    if (!error)
        error = cudaMemsetAsync(x, 0, planted ? BYTES - 4 : BYTES, NULL);
    DMS_LAUNCH(index_kernel, 1, N, 0, NULL, device, x, 0);
    error = finish(device, out, error);
    (void)cudaFree(x);
    return error;
}

static cudaError_t run_one_too_far(bool planted, float *out)
{
    float *device = NULL, *x = NULL;
    cudaError_t error = cudaMalloc((void **)&device, BYTES);
    if (!error)
        error = cudaMalloc((void **)&x, BYTES);
    if (!error)
        error = cudaMemsetAsync(x, 0, BYTES, NULL);
    DMS_LAUNCH(index_kernel, 1, N, 0, NULL, device, x, planted ? 1 : 0);
    error = finish(device, out, error);
    (void)cudaFree(x);
    return error;
}

static cudaError_t run_trap(bool planted, float *out)
{
    float *device = NULL;
    const cudaError_t error = cudaMalloc((void **)&device, BYTES);
    DMS_LAUNCH(trap_kernel, 1, N, 0, NULL, device, planted);
    return finish(device, out, error);
}

/* An upload on a stream of its own, and a kernel that must not overtake it. */
static cudaError_t run_missing_event(bool planted, float *out)
{
    float *device = NULL, *numbers = pinned_numbers();
    cudaStream_t compute = NULL, copies = NULL;
    cudaEvent_t copied = NULL;
    (void)cudaMalloc((void **)&device, BYTES);
    (void)cudaStreamCreateWithFlags(&compute, cudaStreamNonBlocking);
    (void)cudaStreamCreateWithFlags(&copies, cudaStreamNonBlocking);
    (void)cudaEventCreateWithFlags(&copied, cudaEventDisableTiming);
    (void)cudaMemcpyAsync(device, numbers, BYTES, cudaMemcpyHostToDevice, copies);
    (void)cudaEventRecord(copied, copies);
    if (!planted)
        (void)cudaStreamWaitEvent(compute, copied, 0);
    DMS_LAUNCH(add_kernel, 1, N, 0, compute, device, 0.0f);
    (void)cudaMemcpyAsync(out, device, BYTES, cudaMemcpyDeviceToHost, compute);
    const cudaError_t error = cudaStreamSynchronize(compute);
    (void)cudaEventDestroy(copied);
    (void)cudaStreamDestroy(compute);
    (void)cudaStreamDestroy(copies);
    (void)cudaFree(device);
    (void)cudaFreeHost(numbers);
    return error;
}

static cudaError_t run_staging_reuse(bool planted, float *out)
{
    float *device = NULL, *staging = pinned_numbers();
    cudaStream_t stream = NULL;
    (void)cudaMalloc((void **)&device, BYTES);
    (void)cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    (void)cudaMemcpyAsync(device, staging, BYTES, cudaMemcpyHostToDevice, stream);
    if (!planted)
        (void)cudaStreamSynchronize(stream);
    for (int i = 0; i < N; i++)
        staging[i] = -1.0f;
    cudaError_t error = cudaStreamSynchronize(stream);
    error = finish(device, out, error);
    (void)cudaStreamDestroy(stream);
    (void)cudaFreeHost(staging);
    return error;
}

static cudaError_t run_early_read(bool planted, float *out)
{
    float late[N], *device = NULL, *numbers = pinned_numbers();
    cudaStream_t stream = NULL;
    for (int i = 0; i < N; i++)
        late[i] = 0.0f;
    (void)cudaMalloc((void **)&device, BYTES);
    (void)cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    (void)cudaMemcpyAsync(device, numbers, BYTES, cudaMemcpyHostToDevice, stream);
    (void)cudaMemcpyAsync(late, device, BYTES, cudaMemcpyDeviceToHost, stream);
    if (!planted)
        (void)cudaStreamSynchronize(stream);
    memcpy(out, late, BYTES);
    const cudaError_t error = cudaStreamSynchronize(stream);
    (void)cudaStreamDestroy(stream);
    (void)cudaFree(device);
    (void)cudaFreeHost(numbers);
    return error;
}

static cudaError_t run_much_shared(bool planted, float *out)
{
    const int bytes = 60 << 10;
    float *device = NULL;
    cudaError_t error = cudaMalloc((void **)&device, BYTES);
    if (!error)
        error = DMS_ALLOW_SHARED(dynamic_shared_kernel<false>, planted ? bytes - 1024 : bytes);
    DMS_LAUNCH(dynamic_shared_kernel<false>, 1, N, bytes, NULL, device);
    return finish(device, out, error);
}

#define VISIBLE __attribute__((visibility("default")))

extern "C" {

VISIBLE const planted_fault planted_faults[] = {
    {"missing barrier", "schedules differ", run_missing_barrier, planted_fault::EVERYWHERE},
    {"missing second barrier", "schedules differ", run_second_barrier, planted_fault::EVERYWHERE},
    {"missing syncwarp", "schedules differ", run_missing_syncwarp, planted_fault::EVERYWHERE},
    {"index one too far", "heap-buffer-overflow", run_one_too_far, planted_fault::ONLY_ASAN},
    {"uninitialised device memory", "NaN", run_uninitialised, planted_fault::EVERYWHERE},
    {"uninitialised dynamic shared", "NaN", run_dynamic_shared, planted_fault::EVERYWHERE},
    {"uninitialised static shared", "NaN", run_static_shared, planted_fault::NOT_UNDER_ASAN},
    {"dynamic shared overrun", "shared memory overrun", run_overrun, planted_fault::ASAN_ENDS_IT},
    {"static shared overrun", "global-buffer-overflow", run_static_overrun,
     planted_fault::ONLY_ASAN},
    {"too much shared", "cudaErrorInvalidValue", run_much_shared, planted_fault::EVERYWHERE},
    {"divergent barrier", "barrier divergence", run_barrier_divergence, planted_fault::EVERYWHERE},
    {"divergent shuffle", "warp divergence", run_divergent_shuffle, planted_fault::EVERYWHERE},
    {"shuffle of nobody", "inactive lane read", run_inactive_lane, planted_fault::EVERYWHERE},
    {"missing cp.async wait", "NaN", run_missing_wait, planted_fault::EVERYWHERE},
    {"misaligned cp.async", "misaligned access", run_misaligned_copy, planted_fault::EVERYWHERE},
    {"misaligned ldmatrix", "misaligned access", run_misaligned_tile, planted_fault::EVERYWHERE},
    {"trap", "trap", run_trap, planted_fault::EVERYWHERE},
    {"missing event", "schedules differ", run_missing_event, planted_fault::EVERYWHERE},
    {"staging reused too early", "wrong", run_staging_reuse, planted_fault::EVERYWHERE},
    {"result read too early", "wrong", run_early_read, planted_fault::EVERYWHERE},
};
VISIBLE const size_t n_planted_faults = sizeof(planted_faults) / sizeof(planted_faults[0]);

#ifdef DMS_EMU_ASAN
VISIBLE const bool faults_have_asan = true;
#else
VISIBLE const bool faults_have_asan = false;
#endif

VISIBLE void queue_add(float *x, float value, cudaStream_t stream)
{
    DMS_LAUNCH(add_kernel, 1, N, 0, stream, x, value);
}

VISIBLE void queue_scale(float *x, float value, cudaStream_t stream)
{
    DMS_LAUNCH(scale_kernel, 1, N, 0, stream, x, value);
}

VISIBLE void queue_trap(cudaStream_t stream)
{
    DMS_LAUNCH(trap_kernel, 1, N, 0, stream, NULL, true);
}

VISIBLE void queue_mma(float *d, const uint32_t *a, const uint32_t *b, cudaStream_t stream)
{
    DMS_LAUNCH(mma_kernel, 1, 32, 0, stream, d, a, b);
}

VISIBLE void queue_ldmatrix(uint32_t *r, const uint16_t *tiles, bool transposed,
                            cudaStream_t stream)
{
    DMS_LAUNCH(ldmatrix_kernel, 1, 32, 0, stream, r, tiles, transposed);
}

VISIBLE void queue_groups(float *seen, const float *x, cudaStream_t stream)
{
    DMS_LAUNCH(groups_kernel, 1, 1, 0, stream, seen, x);
}

VISIBLE void queue_warp(int *out, int lanes, cudaStream_t stream)
{
    DMS_LAUNCH(warp_kernel, 1, lanes, 0, stream, out);
}

} /* extern "C" */
