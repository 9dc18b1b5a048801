/* AdamW over flat buffers in CUDA, and the global norm. The norm stays on the device. */
#include <math.h>

#include "kernels/cuda/wide.cuh"

enum { PARTIALS = 1024 }; /* the grid does not depend on the GPU, so neither does the sum */

template <int N>
static __global__ void __launch_bounds__(DMS_BLOCK)
    square_kernel(double *partial, const float *g, int64_t n)
{
    double sum = 0;
    for (int64_t i = N * dms_thread(); i < n; i += N * dms_threads()) {
        float v[N];
        dms_load_few<N>(v, g + i, n - i);
#pragma unroll
        for (int j = 0; j < N; j++)
            sum += (double)v[j] * (double)v[j];
    }
    sum = dms_block_sum_double(sum);
    if (threadIdx.x == 0)
        partial[blockIdx.x] = sum;
}

/* One block. */
static __global__ void __launch_bounds__(DMS_BLOCK)
    root_kernel(float *norm, const double *partial, int count)
{
    double sum = 0;
    for (int i = (int)threadIdx.x; i < count; i += DMS_BLOCK)
        sum += partial[i];
    sum = dms_block_sum_double(sum);
    if (threadIdx.x == 0)
        norm[0] = (float)sqrt(sum);
}

dms_status dms_cuda_l2_norm(dms_tensor *norm, const dms_tensor *g)
{
    const int64_t n = dms_count(g);
    const void *const all[] = {g->data};
    const unsigned blocks = dms_grid((n + 3) / 4, DMS_BLOCK, PARTIALS);
    const cudaStream_t stream = dms_cuda_stream(g->device);
    void *partial = NULL;

    DMS_TRY(dms_cuda_scratch(&partial, g->device, blocks * sizeof(double)));
    if (dms_wide(all, 1))
        DMS_LAUNCH(square_kernel<4>, blocks, DMS_BLOCK, 0, stream, (double *)partial,
                   (const float *)g->data, n);
    else
        DMS_LAUNCH(square_kernel<1>, blocks, DMS_BLOCK, 0, stream, (double *)partial,
                   (const float *)g->data, n);
    DMS_LAUNCH(root_kernel, 1, DMS_BLOCK, 0, stream, (float *)norm->data, (const double *)partial,
               (int)blocks);
    return DMS_LAUNCHED();
}

typedef struct {
    float *w, *m, *v;
    dms_bf16 *copy; /* or NULL */
    const float *g, *norm;
    int64_t n;
    float b1, b2, eps, clip, decay, rate, correct2;
} update;

/* 28 bytes an element, 30 with the copy. */
template <int N> static __global__ void __launch_bounds__(DMS_BLOCK) adamw_kernel(const update k)
{
    const float scale = k.clip > 0 ? fminf(1.0f, k.clip / (k.norm[0] + 1e-6f)) : 1.0f;
    for (int64_t i = N * dms_thread(); i < k.n; i += N * dms_threads()) {
        const int64_t left = k.n - i;
        float g[N], m[N], v[N], w[N];
        dms_load_few<N>(g, k.g + i, left);
        dms_load_few<N>(m, k.m + i, left);
        dms_load_few<N>(v, k.v + i, left);
        dms_load_few<N>(w, k.w + i, left);
#pragma unroll
        for (int j = 0; j < N; j++) {
            const float d = g[j] * scale;
            m[j] = k.b1 * m[j] + (1.0f - k.b1) * d;
            v[j] = k.b2 * v[j] + (1.0f - k.b2) * d * d;
            w[j] = w[j] * k.decay - k.rate * m[j] / (sqrtf(v[j]) / k.correct2 + k.eps);
        }
        dms_store_few<N>(k.m + i, m, left);
        dms_store_few<N>(k.v + i, v, left);
        dms_store_few<N>(k.w + i, w, left);
        if (k.copy)
            dms_store_few<N>(k.copy + i, w, left);
    }
}

dms_status dms_cuda_adamw(const dms_adamw_state *state, const dms_tensor *g, const dms_tensor *norm,
                          const dms_adamw_spec *spec)
{
    const double step = (double)spec->step;
    const float correct1 = (float)(1.0 - pow((double)spec->beta1, step));
    const update k = {(float *)state->w->data,
                      (float *)state->m->data,
                      (float *)state->v->data,
                      state->copy ? (dms_bf16 *)state->copy->data : NULL,
                      (const float *)g->data,
                      (const float *)norm->data,
                      dms_count(g),
                      spec->beta1,
                      spec->beta2,
                      spec->eps,
                      spec->clip,
                      1.0f - spec->lr * spec->weight_decay,
                      spec->lr / correct1,
                      (float)sqrt(1.0 - pow((double)spec->beta2, step))};
    const void *const all[] = {k.w, k.m, k.v, k.copy, k.g};
    DMS_LAUNCH_WIDE(adamw_kernel, dms_wide(all, 5), k.n, dms_cuda_stream(g->device), k);
    return DMS_LAUNCHED();
}
