/* What the ops of the paged cache share on the CPU: rows, units and their slots. */
#ifndef DMS_CPU_PAGED_H
#define DMS_CPU_PAGED_H

#include "kernels/bf16.h"
#include "kernels/cpu/isa.h"

/* Row b of the batch, KV head g. */
static inline int64_t unit_of(const dms_paged *c, const dms_paged_rows *rows, int64_t b, int64_t g)
{
    const int64_t sequence = ((const int32_t *)rows->sequences->data)[b];
    return (sequence * c->layers + rows->layer) * c->groups + g;
}

static inline const int32_t *positions_of(const dms_paged_rows *rows, int64_t b)
{
    return (const int32_t *)rows->positions->data + b * dms_cols(rows->positions);
}

static inline int64_t pages_for(const dms_paged *c, int64_t slots)
{
    return (slots + c->page_slots - 1) / c->page_slots;
}

static inline dms_page page_of(const dms_paged *c, int64_t unit, int64_t index)
{
    return dms_page_at(c, c->unit_list[unit * c->unit_pages + index]);
}

static inline int32_t *at_of(const dms_paged *c, int64_t unit, int64_t slot)
{
    return page_of(c, unit, slot / c->page_slots).at + slot % c->page_slots;
}

static inline int32_t *ring_of(const dms_paged *c, int64_t unit, int64_t position)
{
    return c->ring + unit * c->ring_entries + position % c->ring_entries;
}

/* n elements of a page as f32: where they lie, or widened into `wide`. */
static inline const float *as_f32(const dms_paged *c, const void *data, float *wide, int64_t n)
{
    if (c->dtype == DMS_F32)
        return data;
    const uint16_t *bits = data;
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        wide[i] = dms_bf16_to_f32(bits[i]);
    return wide;
}

#endif
