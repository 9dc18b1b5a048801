/* AdamW over flat buffers on the CPU, and the global norm. */
#include <math.h>
#include <omp.h>

#include "kernels/bf16.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/workspace.h"

enum { LANES = 16, CHUNK = 1 << 16 }; /* elements whose squares are summed in one go */

static double sum_of_squares(const float *g, int64_t n)
{
    double lane[LANES] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++)
            lane[j] += (double)g[i + j] * (double)g[i + j];
    for (; i < n; i++)
        lane[i % LANES] += (double)g[i] * (double)g[i];
    for (int j = 0; j < LANES; j++)
        sum += lane[j];
    return sum;
}

dms_status DMS_CPU(l2_norm)(dms_tensor *norm, const dms_tensor *g)
{
    const int64_t n = dms_count(g), chunks = (n + CHUNK - 1) / CHUNK;
    dms_cpu_workspace work;
    DMS_TRY(dms_cpu_workspace_get(&work, g->device,
                                  (size_t)chunks * sizeof(double) / (size_t)omp_get_max_threads() +
                                      sizeof(double)));
    double *partial = (double *)work.base, sum = 0;

#pragma omp parallel for schedule(static) if (n > DMS_CPU_FORK)
    for (int64_t c = 0; c < chunks; c++) {
        const int64_t end = (c + 1) * CHUNK < n ? (c + 1) * CHUNK : n;
        partial[c] = sum_of_squares((const float *)g->data + c * CHUNK, end - c * CHUNK);
    }
    for (int64_t c = 0; c < chunks; c++)
        sum += partial[c];
    *(float *)norm->data = (float)sqrt(sum);
    return DMS_OK;
}

dms_status DMS_CPU(adamw)(const dms_adamw_state *state, const dms_tensor *g, const dms_tensor *norm,
                          const dms_adamw_spec *spec)
{
    const int64_t n = dms_count(g);
    const float *grad = g->data, total = *(const float *)norm->data;
    float *w = state->w->data, *m = state->m->data, *v = state->v->data;
    uint16_t *copy = state->copy ? state->copy->data : NULL;
    const float scale = spec->clip > 0 ? fminf(1.0f, spec->clip / (total + 1e-6f)) : 1.0f;
    const float b1 = spec->beta1, b2 = spec->beta2, eps = spec->eps;
    const float correct1 = (float)(1.0 - pow((double)b1, (double)spec->step));
    const float correct2 = (float)sqrt(1.0 - pow((double)b2, (double)spec->step));
    const float decay = 1.0f - spec->lr * spec->weight_decay, rate = spec->lr / correct1;

#pragma omp parallel for simd schedule(static) if (parallel : n > DMS_CPU_FORK)
    for (int64_t i = 0; i < n; i++) {
        const float d = grad[i] * scale;
        m[i] = b1 * m[i] + (1.0f - b1) * d;
        v[i] = b2 * v[i] + (1.0f - b2) * d * d;
        w[i] = w[i] * decay - rate * m[i] / (sqrtf(v[i]) / correct2 + eps);
    }
    if (copy) {
#pragma omp parallel for simd schedule(static) if (parallel : n > DMS_CPU_FORK)
        for (int64_t i = 0; i < n; i++)
            copy[i] = dms_bf16_from_f32(w[i]);
    }
    return DMS_OK;
}
