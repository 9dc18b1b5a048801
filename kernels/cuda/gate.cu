/* The eviction gate in CUDA: logits, noise, soft and hard decisions. One thread an element of
 * [B, G, T], neighbours along T. A few hundred thousand elements at most: the launch is the cost.
 */
#include "kernels/cuda/wide.cuh"
#include "kernels/rng.h"

typedef struct {
    int64_t count, groups, tokens; /* count = B*G*T */
} extent;

static extent extent_of(const dms_tensor *t)
{
    return {dms_count(t), t->shape[1], t->shape[2]};
}

#define LAUNCH(kernel, n, dev, ...)                                                   \
    DMS_LAUNCH(kernel, dms_grid((n).count, DMS_BLOCK, DMS_MOST_BLOCKS), DMS_BLOCK, 0, \
               dms_cuda_stream(dev), n, __VA_ARGS__)

/* log(1 + e^u) without overflow. */
static __device__ __forceinline__ float softplus(float u)
{
    return (u > 0.0f ? u : 0.0f) + log1pf(expf(-fabsf(u)));
}

/* An e^-u that overflows makes it 0. */
static __device__ __forceinline__ float sigmoid(float u)
{
    return 1.0f / (1.0f + expf(-u));
}

/* Where the logit of element i of [B, G, T] lies in [B, T, G]. */
static __device__ __forceinline__ int64_t channel_of(const extent *n, int64_t i)
{
    const int64_t row = i / n->tokens, b = row / n->groups, g = row % n->groups;
    return (b * n->tokens + i % n->tokens) * n->groups + g;
}

static __global__ void __launch_bounds__(DMS_BLOCK)
    eviction_logit_kernel(const extent n, float *z, const float *y, const dms_logit_spec spec)
{
    for (int64_t i = dms_thread(); i < n.count; i += dms_threads())
        z[i] = spec.scale * y[channel_of(&n, i)] - spec.offset;
}

dms_status dms_cuda_eviction_logit(dms_tensor *z, const dms_tensor *y, const dms_logit_spec *spec)
{
    const extent n = extent_of(z);
    LAUNCH(eviction_logit_kernel, n, y->device, (float *)z->data, (const float *)y->data, *spec);
    return DMS_LAUNCHED();
}

static __global__ void __launch_bounds__(DMS_BLOCK)
    eviction_logit_bwd_kernel(const extent n, float *dy, const float *dz, float scale)
{
    for (int64_t i = dms_thread(); i < n.count; i += dms_threads())
        dy[channel_of(&n, i)] += scale * dz[i];
}

dms_status dms_cuda_eviction_logit_bwd(dms_tensor *dy, const dms_tensor *dz,
                                       const dms_logit_spec *spec)
{
    const extent n = extent_of(dz);
    LAUNCH(eviction_logit_bwd_kernel, n, dz->device, (float *)dy->data, (const float *)dz->data,
           spec->scale);
    return DMS_LAUNCHED();
}

typedef struct {
    const float *z, *injected; /* NULL: drawn */
    float tau;
    dms_noise_spec noise;
} relaxed;

static relaxed relaxed_of(const dms_tensor *z, const dms_relaxed_gate *gate)
{
    return {(const float *)z->data, gate->injected ? (const float *)gate->injected->data : NULL,
            gate->tau, gate->noise};
}

/* u of element i of [B, G, T]. */
static __device__ __forceinline__ float argument(const relaxed *k, const extent *n, int64_t i)
{
    float noise;
    if (k->injected) {
        noise = k->injected[i];
    } else {
        const int64_t row = i / n->tokens;
        const uint32_t sequence = (uint32_t)(k->noise.sequence + row / n->groups);
        const uint32_t head = (uint32_t)(k->noise.layer * n->groups + row % n->groups);
        noise = dms_logistic(dms_philox(k->noise.seed, (uint32_t)k->noise.step, sequence, head,
                                        (uint32_t)(i % n->tokens)));
    }
    return (k->z[i] + noise) / k->tau;
}

/* A thread governs the key before its token, so that no noise is drawn twice; the first token of a
 * row has none and takes the last key. */
static __global__ void __launch_bounds__(DMS_BLOCK)
    gate_soft_kernel(const extent n, float *bias, float *d, const relaxed k)
{
    for (int64_t i = dms_thread(); i < n.count; i += dms_threads()) {
        const bool first = i % n.tokens == 0;
        const float u = argument(&k, &n, i);
        d[i] = u > 0.0f ? 1.0f : 0.0f;
        bias[first ? i + n.tokens - 1 : i - 1] = first ? 0.0f : -softplus(u);
    }
}

dms_status dms_cuda_gate_soft(dms_tensor *bias, dms_tensor *d, const dms_tensor *z,
                              const dms_relaxed_gate *gate)
{
    const extent n = extent_of(z);
    LAUNCH(gate_soft_kernel, n, z->device, (float *)bias->data, (float *)d->data,
           relaxed_of(z, gate));
    return DMS_LAUNCHED();
}

static __global__ void __launch_bounds__(DMS_BLOCK)
    gate_soft_bwd_kernel(const extent n, float *dz, const float *dbias, const float *pressure,
                         const relaxed k)
{
    for (int64_t i = dms_thread(); i < n.count; i += dms_threads()) {
        const float push = pressure[i / (n.tokens * n.groups)];
        const float u = argument(&k, &n, i), p = sigmoid(u);
        const float from_bias = i % n.tokens > 0 ? -p * dbias[i - 1] : 0.0f;
        dz[i] += (from_bias + push * p * sigmoid(-u)) / k.tau;
    }
}

dms_status dms_cuda_gate_soft_bwd(dms_tensor *dz, const dms_tensor *dbias,
                                  const dms_tensor *pressure, const dms_tensor *z,
                                  const dms_relaxed_gate *gate)
{
    const extent n = extent_of(z);
    LAUNCH(gate_soft_bwd_kernel, n, z->device, (float *)dz->data, (const float *)dbias->data,
           (const float *)pressure->data, relaxed_of(z, gate));
    return DMS_LAUNCHED();
}

static __global__ void __launch_bounds__(DMS_BLOCK)
    gate_hard_kernel(const extent n, float *bias, float *d, const float *z)
{
    for (int64_t i = dms_thread(); i < n.count; i += dms_threads()) {
        const bool last = i % n.tokens == n.tokens - 1;
        d[i] = z[i] > 0.0f ? 1.0f : 0.0f;
        bias[i] = !last && z[i + 1] > 0.0f ? -INFINITY : 0.0f;
    }
}

dms_status dms_cuda_gate_hard(dms_tensor *bias, dms_tensor *d, const dms_tensor *z)
{
    const extent n = extent_of(z);
    LAUNCH(gate_hard_kernel, n, z->device, (float *)bias->data, (float *)d->data,
           (const float *)z->data);
    return DMS_LAUNCHED();
}
