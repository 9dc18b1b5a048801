/* First tokens of the paged cache that move along with its end, on the CPU. */
#include <string.h>

#include "kernels/cpu/paged.h"

/* The keys of one unit that are kept: [first, E]. */
typedef struct {
    const dms_paged *c;
    float *kept;
    int64_t first, unit;
} first_keys;

/* Those that came with the chunk; k: of its token at `position`, tokens `stride` floats apart. */
static void remember(const first_keys *f, const float *k, int64_t position, int64_t tokens,
                     int64_t stride)
{
    const int64_t width = f->c->head_dim;
    for (int64_t t = 0; t < tokens && position + t < f->first; t++)
        memcpy(f->kept + (position + t) * width, k + t * stride, (size_t)width * sizeof(float));
}

/* Token i's key lies in slot i. angles: [E], cosines, then sines. */
static void turn_key(const first_keys *f, int64_t i, const float *angles)
{
    const dms_paged *c = f->c;
    const int64_t half = c->head_dim / 2, j = i % c->page_slots, column = c->page_slots;
    const dms_page page = page_of(c, f->unit, i / c->page_slots);
    const float *key = f->kept + i * c->head_dim;
    for (int64_t e = 0; e < half; e++) {
        const float cosine = angles[e], sine = angles[half + e];
        const float low = key[e] * cosine - key[half + e] * sine;
        const float high = key[half + e] * cosine + key[e] * sine;
        if (c->dtype == DMS_F32) {
            ((float *)page.k)[e * column + j] = low;
            ((float *)page.k)[(half + e) * column + j] = high;
        } else {
            ((uint16_t *)page.k)[e * column + j] = dms_bf16_from_f32(low);
            ((uint16_t *)page.k)[(half + e) * column + j] = dms_bf16_from_f32(high);
        }
    }
}

/* Dropped tokens of a unit: how far its first tokens move. */
static int64_t dropped(const dms_paged *c, const dms_paged_rows *rows, int64_t i)
{
    const int64_t b = i / c->groups, last = dms_cols(rows->positions) - 1;
    return positions_of(rows, b)[last] + 1 - c->live[unit_of(c, rows, b, i % c->groups)];
}

dms_status DMS_CPU(paged_turn)(const dms_paged *cache, const dms_paged_rows *rows, dms_tensor *kept,
                               const dms_tensor *k, const dms_tensor *table)
{
    const int64_t units = rows->sequences->shape[0] * cache->groups, width = cache->head_dim;
    const int64_t tokens = k->shape[1], stride = dms_cols(k), first = kept->shape[1];
    for (int64_t i = 0; i < units; i++) {
        const int64_t row = dropped(cache, rows, i);
        if (row < 0 || row >= table->shape[0])
            return dms_fail(DMS_ERR_ARG, "%lld tokens were dropped, the table has %lld positions",
                            (long long)row, (long long)table->shape[0]);
    }
#pragma omp parallel for schedule(static) if (units * first * width > DMS_CPU_FORK)
    for (int64_t i = 0; i < units; i++) {
        const int64_t b = i / cache->groups, g = i % cache->groups;
        const int64_t unit = unit_of(cache, rows, b, g), live = cache->live[unit];
        const first_keys f = {cache, (float *)kept->data + unit * first * width, first, unit};
        remember(&f, (const float *)k->data + b * tokens * stride + g * width,
                 positions_of(rows, b)[0], tokens, stride);
        for (int64_t t = 0; t < first && t < live; t++)
            turn_key(&f, t, (const float *)table->data + dropped(cache, rows, i) * width);
    }
    return DMS_OK;
}
