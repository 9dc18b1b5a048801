/* The eviction gate on the CPU: logits, noise, soft and hard decisions. One row of tokens of a
 * [B, G, T] tensor at a time. */
#include <math.h>

#include "kernels/cpu/isa.h"
#include "kernels/rng.h"

typedef struct {
    int64_t rows, groups, tokens; /* rows = B*G */
} extent;

static extent extent_of(const dms_tensor *t)
{
    return (extent){t->shape[0] * t->shape[1], t->shape[1], t->shape[2]};
}

/* log(1 + e^u) without overflow. */
static float softplus(float u)
{
    return (u > 0.0f ? u : 0.0f) + log1pf(expf(-fabsf(u)));
}

/* An e^-u that overflows makes it 0. */
static float sigmoid(float u)
{
    return 1.0f / (1.0f + expf(-u));
}

dms_status DMS_CPU(eviction_logit)(dms_tensor *z, const dms_tensor *y, const dms_logit_spec *spec)
{
    const extent n = extent_of(z);

#pragma omp parallel for schedule(static) if (n.rows * n.tokens > DMS_CPU_FORK)
    for (int64_t r = 0; r < n.rows; r++) {
        const int64_t b = r / n.groups, g = r % n.groups;
        const float *in = (const float *)y->data + b * n.tokens * n.groups + g;
        float *out = (float *)z->data + r * n.tokens;
        for (int64_t t = 0; t < n.tokens; t++)
            out[t] = spec->scale * in[t * n.groups] - spec->offset;
    }
    return DMS_OK;
}

dms_status DMS_CPU(eviction_logit_bwd)(dms_tensor *dy, const dms_tensor *dz,
                                       const dms_logit_spec *spec)
{
    const extent n = extent_of(dz);

#pragma omp parallel for schedule(static) if (n.rows * n.tokens > DMS_CPU_FORK)
    for (int64_t r = 0; r < n.rows; r++) {
        const int64_t b = r / n.groups, g = r % n.groups;
        float *grad = (float *)dy->data + b * n.tokens * n.groups + g;
        const float *up = (const float *)dz->data + r * n.tokens;
        for (int64_t t = 0; t < n.tokens; t++)
            grad[t * n.groups] += spec->scale * up[t];
    }
    return DMS_OK;
}

enum {
    PIECE = 256,             /* tokens whose noise is drawn by one loop: Philox runs in vectors */
    FORK = DMS_CPU_FORK / 16 /* elements here cost 20 to 30 ns (logf), those of an add 1 ns */
};

/* Some tokens of a row, at most PIECE. */
typedef struct {
    int64_t end; /* within the row */
    const float *z, *noise;
} piece;

/* From element `at` of [B, G, T] on; its noise lies where it was injected or is drawn into room. */
static piece piece_at(const extent *n, const dms_tensor *z, const dms_relaxed_gate *gate,
                      int64_t at, float room[PIECE])
{
    const int64_t r = at / n->tokens, first = at % n->tokens, left = n->tokens - first;
    const dms_noise_spec *spec = &gate->noise;
    const uint32_t sequence = (uint32_t)(spec->sequence + r / n->groups);
    const uint32_t head = (uint32_t)(spec->layer * n->groups + r % n->groups);
    piece p = {first + (left < PIECE ? left : PIECE), (const float *)z->data + at, room};
    if (gate->injected)
        p.noise = (const float *)gate->injected->data + at;
    else
        for (int64_t t = first; t < p.end; t++)
            room[t - first] = dms_logistic(
                dms_philox(spec->seed, (uint32_t)spec->step, sequence, head, (uint32_t)t));
    return p;
}

dms_status DMS_CPU(gate_soft)(dms_tensor *bias, dms_tensor *d, const dms_tensor *z,
                              const dms_relaxed_gate *gate)
{
    const extent n = extent_of(z);

#pragma omp parallel for schedule(static) if (n.rows * n.tokens > FORK)
    for (int64_t r = 0; r < n.rows; r++) {
        float *m = (float *)bias->data + r * n.tokens, *hard = (float *)d->data + r * n.tokens;
        float room[PIECE];
        for (int64_t first = 0; first < n.tokens; first += PIECE) {
            const piece p = piece_at(&n, z, gate, r * n.tokens + first, room);
            for (int64_t t = first; t < p.end; t++) {
                const float u = (p.z[t - first] + p.noise[t - first]) / gate->tau;
                hard[t] = u > 0.0f ? 1.0f : 0.0f;
                if (t > 0)
                    m[t - 1] = -softplus(u);
            }
        }
        m[n.tokens - 1] = 0.0f;
    }
    return DMS_OK;
}

dms_status DMS_CPU(gate_soft_bwd)(dms_tensor *dz, const dms_tensor *dbias,
                                  const dms_tensor *pressure, const dms_tensor *z,
                                  const dms_relaxed_gate *gate)
{
    const extent n = extent_of(z);
    const float tau = gate->tau;

#pragma omp parallel for schedule(static) if (n.rows * n.tokens > FORK)
    for (int64_t r = 0; r < n.rows; r++) {
        const float *up = (const float *)dbias->data + r * n.tokens;
        const float push = ((const float *)pressure->data)[r / n.groups];
        float *grad = (float *)dz->data + r * n.tokens, room[PIECE];
        for (int64_t first = 0; first < n.tokens; first += PIECE) {
            const piece k = piece_at(&n, z, gate, r * n.tokens + first, room);
            for (int64_t t = first; t < k.end; t++) {
                const float u = (k.z[t - first] + k.noise[t - first]) / tau, p = sigmoid(u);
                const float from_bias = t > 0 ? -p * up[t - 1] : 0.0f;
                grad[t] += (from_bias + push * p * sigmoid(-u)) / tau;
            }
        }
    }
    return DMS_OK;
}

dms_status DMS_CPU(gate_hard)(dms_tensor *bias, dms_tensor *d, const dms_tensor *z)
{
    const extent n = extent_of(z);

#pragma omp parallel for schedule(static) if (n.rows * n.tokens > DMS_CPU_FORK)
    for (int64_t r = 0; r < n.rows; r++) {
        const float *logit = (const float *)z->data + r * n.tokens;
        float *m = (float *)bias->data + r * n.tokens, *hard = (float *)d->data + r * n.tokens;
        for (int64_t t = 0; t < n.tokens; t++) {
            hard[t] = logit[t] > 0.0f ? 1.0f : 0.0f;
            if (t > 0)
                m[t - 1] = logit[t] > 0.0f ? -INFINITY : 0.0f;
        }
        m[n.tokens - 1] = 0.0f;
    }
    return DMS_OK;
}
