/* Element by element ops in CUDA: all of them move memory and do nothing else. */
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/wide.cuh"

template <int N>
static __global__ void __launch_bounds__(DMS_BLOCK)
    axpy_kernel(float *y, float scale, const float *x, int64_t n)
{
    for (int64_t i = N * dms_thread(); i < n; i += N * dms_threads()) {
        float in[N], out[N];
        dms_load_few<N>(in, x + i, n - i);
        dms_load_few<N>(out, y + i, n - i);
#pragma unroll
        for (int j = 0; j < N; j++)
            out[j] += scale * in[j];
        dms_store_few<N>(y + i, out, n - i);
    }
}

dms_status dms_cuda_axpy(dms_tensor *y, float scale, const dms_tensor *x)
{
    const void *const all[] = {y->data, x->data};
    const int64_t n = dms_count(x);
    DMS_LAUNCH_WIDE(axpy_kernel, dms_wide(all, 2), n, dms_cuda_stream(x->device), (float *)y->data,
                    scale, (const float *)x->data, n);
    return DMS_LAUNCHED();
}

template <int N>
static __global__ void __launch_bounds__(DMS_BLOCK)
    round_kernel(dms_bf16 *y, const float *x, int64_t n)
{
    for (int64_t i = N * dms_thread(); i < n; i += N * dms_threads()) {
        float v[N];
        dms_load_few<N>(v, x + i, n - i);
        dms_store_few<N>(y + i, v, n - i);
    }
}

template <int N>
static __global__ void __launch_bounds__(DMS_BLOCK)
    widen_kernel(float *y, const dms_bf16 *x, int64_t n)
{
    for (int64_t i = N * dms_thread(); i < n; i += N * dms_threads()) {
        float v[N];
        dms_load_few<N>(v, x + i, n - i);
        dms_store_few<N>(y + i, v, n - i);
    }
}

dms_status dms_cuda_round(dms_device *dev, void *dst, const void *src, int64_t n)
{
    const void *const all[] = {dst, src};
    DMS_LAUNCH_WIDE(round_kernel, dms_wide(all, 2), n, dms_cuda_stream(dev), (dms_bf16 *)dst,
                    (const float *)src, n);
    return DMS_LAUNCHED();
}

dms_status dms_cuda_cast(dms_tensor *y, const dms_tensor *x)
{
    const void *const all[] = {y->data, x->data};
    const cudaStream_t stream = dms_cuda_stream(x->device);
    const int64_t n = dms_count(x);

    if (x->dtype == y->dtype)
        return dms_cuda_copy(x->device, y->data, x->data, dms_tensor_bytes(x));
    if (y->dtype == DMS_BF16)
        return dms_cuda_round(x->device, y->data, x->data, n);
    DMS_LAUNCH_WIDE(widen_kernel, dms_wide(all, 2), n, stream, (float *)y->data,
                    (const dms_bf16 *)x->data, n);
    return DMS_LAUNCHED();
}

/* An e^-x that overflows makes it 0. */
static __device__ __forceinline__ float sigmoid(float x)
{
    return 1.0f / (1.0f + expf(-x));
}

template <int N>
static __global__ void __launch_bounds__(DMS_BLOCK)
    swiglu_kernel(void *y, bool bf16, const float *gate, const float *up, int64_t n)
{
    for (int64_t i = N * dms_thread(); i < n; i += N * dms_threads()) {
        float g[N], u[N];
        dms_load_few<N>(g, gate + i, n - i);
        dms_load_few<N>(u, up + i, n - i);
#pragma unroll
        for (int j = 0; j < N; j++)
            g[j] = g[j] * sigmoid(g[j]) * u[j];
        dms_store_as<N>(y, bf16, i, g, n - i);
    }
}

dms_status dms_cuda_swiglu(dms_tensor *y, const dms_tensor *gate, const dms_tensor *up)
{
    const void *const all[] = {y->data, gate->data, up->data};
    const int64_t n = dms_count(gate);
    DMS_LAUNCH_WIDE(swiglu_kernel, dms_wide(all, 3), n, dms_cuda_stream(gate->device), y->data,
                    y->dtype == DMS_BF16, (const float *)gate->data, (const float *)up->data, n);
    return DMS_LAUNCHED();
}

/* t(x) of GELU's tanh form, which is x*sigmoid(t(x)). */
static __device__ __forceinline__ float gelu_gate(float x)
{
    return 1.5957691216f * (x + 0.044715f * x * x * x); /* 2*sqrt(2/pi) */
}

template <int N>
static __global__ void __launch_bounds__(DMS_BLOCK)
    gelu_kernel(void *y, bool bf16, const float *x, int64_t n)
{
    for (int64_t i = N * dms_thread(); i < n; i += N * dms_threads()) {
        float v[N];
        dms_load_few<N>(v, x + i, n - i);
#pragma unroll
        for (int j = 0; j < N; j++)
            v[j] = v[j] * sigmoid(gelu_gate(v[j]));
        dms_store_as<N>(y, bf16, i, v, n - i);
    }
}

dms_status dms_cuda_gelu(dms_tensor *y, const dms_tensor *x)
{
    const void *const all[] = {y->data, x->data};
    const int64_t n = dms_count(x);
    DMS_LAUNCH_WIDE(gelu_kernel, dms_wide(all, 2), n, dms_cuda_stream(x->device), y->data,
                    y->dtype == DMS_BF16, (const float *)x->data, n);
    return DMS_LAUNCHED();
}

/* With s = sigmoid(t(x)): dx += dy*s*(1 + x*(1 - s)*t'(x)). */
template <int N>
static __global__ void __launch_bounds__(DMS_BLOCK)
    gelu_bwd_kernel(float *dx, const float *dy, const float *x, int64_t n)
{
    for (int64_t i = N * dms_thread(); i < n; i += N * dms_threads()) {
        float d[N], v[N];
        dms_load_few<N>(d, dy + i, n - i);
        dms_load_few<N>(v, x + i, n - i);
#pragma unroll
        for (int j = 0; j < N; j++) {
            const float s = sigmoid(gelu_gate(v[j]));
            const float slope = 1.5957691216f * (1.0f + 0.134145f * v[j] * v[j]);
            d[j] *= s * (1.0f + v[j] * (1.0f - s) * slope);
        }
        dms_add_few<N>(dx + i, d, n - i);
    }
}

dms_status dms_cuda_gelu_bwd(dms_tensor *dx, const dms_tensor *dy, const dms_tensor *x)
{
    const void *const all[] = {dx->data, dy->data, x->data};
    const int64_t n = dms_count(x);
    DMS_LAUNCH_WIDE(gelu_bwd_kernel, dms_wide(all, 3), n, dms_cuda_stream(x->device),
                    (float *)dx->data, (const float *)dy->data, (const float *)x->data, n);
    return DMS_LAUNCHED();
}

/* With s = sigmoid(gate): dgate += dy*up*s*(1 + gate*(1 - s)), dup += dy*gate*s. */
typedef struct {
    float *dgate, *dup; /* either may be NULL */
    const float *dy, *gate, *up;
    int64_t n;
} swiglu_gradient;

template <int N>
static __global__ void __launch_bounds__(DMS_BLOCK) swiglu_bwd_kernel(const swiglu_gradient k)
{
    for (int64_t i = N * dms_thread(); i < k.n; i += N * dms_threads()) {
        const int64_t left = k.n - i;
        float d[N], g[N], u[N];
        dms_load_few<N>(d, k.dy + i, left);
        dms_load_few<N>(g, k.gate + i, left);
        dms_load_few<N>(u, k.up + i, left);
#pragma unroll
        for (int j = 0; j < N; j++) {
            const float s = sigmoid(g[j]), by_gate = d[j] * u[j] * s * (1.0f + g[j] * (1.0f - s));
            u[j] = d[j] * g[j] * s;
            g[j] = by_gate;
        }
        if (k.dgate)
            dms_add_few<N>(k.dgate + i, g, left);
        if (k.dup)
            dms_add_few<N>(k.dup + i, u, left);
    }
}

dms_status dms_cuda_swiglu_bwd(dms_tensor *dgate, dms_tensor *dup, const dms_tensor *dy,
                               const dms_tensor *gate, const dms_tensor *up)
{
    const swiglu_gradient k = {dgate ? (float *)dgate->data : NULL,
                               dup ? (float *)dup->data : NULL,
                               (const float *)dy->data,
                               (const float *)gate->data,
                               (const float *)up->data,
                               dms_count(gate)};
    const void *const all[] = {k.dgate, k.dup, k.dy, k.gate, k.up};
    if (!dgate && !dup)
        return DMS_OK;
    DMS_LAUNCH_WIDE(swiglu_bwd_kernel, dms_wide(all, 5), k.n, dms_cuda_stream(gate->device), k);
    return DMS_LAUNCHED();
}
