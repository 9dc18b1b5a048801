/* The units of a batch of single tokens, cut into parts of fixed size: long caches keep all threads
 * busy, and results depend neither on the threads nor on the rest of the batch. */
#ifndef DMS_CPU_PAGED_PARTS_H
#define DMS_CPU_PAGED_PARTS_H

#include <float.h>
#include <math.h>

#include "kernels/cpu/paged.h"
#include "kernels/cpu/tile.h"
#include "kernels/cpu/vec.h"

enum { PART = 256 }; /* slots of a part, at least; whole pages */

typedef struct {
    const dms_paged *c;
    const dms_paged_rows *rows;
    int64_t units;  /* n*G */
    int64_t reps;   /* R */
    int64_t size;   /* slots of a part */
    const float *q; /* [n, H*E] */
    int64_t *first; /* [units + 1], first part of each unit */
} unit_parts;

typedef struct {
    int64_t i;           /* number of the unit in the batch */
    int64_t unit;        /* and in the cache */
    int64_t slot, count; /* the first slot, and how many */
    const float *q;      /* [R, E] */
} unit_part;

/* All but `first`, which count_parts fills. */
static inline unit_parts unit_parts_of(const dms_paged *c, const dms_paged_rows *rows,
                                       const dms_tensor *q)
{
    const int64_t pages = (PART + c->page_slots - 1) / c->page_slots;
    return (unit_parts){.c = c,
                        .rows = rows,
                        .units = rows->sequences->shape[0] * c->groups,
                        .reps = dms_cols(q) / ((int64_t)c->groups * c->head_dim),
                        .size = pages * c->page_slots,
                        .q = q->data};
}

static inline int64_t parts_unit(const unit_parts *p, int64_t i)
{
    return unit_of(p->c, p->rows, i / p->c->groups, i % p->c->groups);
}

/* first: [units + 1], or NULL. */
static inline int64_t count_parts(const unit_parts *p, int64_t *first)
{
    int64_t parts = 0;
    for (int64_t i = 0; i < p->units; i++) {
        const int64_t live = p->c->live[parts_unit(p, i)];
        if (first)
            first[i] = parts;
        parts += (live + p->size - 1) / p->size;
    }
    if (first)
        first[p->units] = parts;
    return parts;
}

/* The part with number `part`; its unit is found by bisection. */
static inline unit_part unit_part_at(const unit_parts *p, int64_t part)
{
    int64_t low = 0, high = p->units;
    while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        if (p->first[middle] <= part)
            low = middle;
        else
            high = middle;
    }
    const int64_t unit = parts_unit(p, low), slot = (part - p->first[low]) * p->size;
    const int64_t left = p->c->live[unit] - slot;
    return (unit_part){.i = low,
                       .unit = unit,
                       .slot = slot,
                       .count = left < p->size ? left : p->size,
                       .q = p->q + low * p->reps * p->c->head_dim};
}

/* s: [R, size], products of queries and keys. Those past the end of a page's live slots are
 * computed from undefined memory and never read.   wide: [E, P], scratch. */
static inline void part_scores(const unit_parts *p, const unit_part *u, float *s, float *wide)
{
    const dms_paged *c = p->c;
    for (int64_t i = 0; i < u->count; i += c->page_slots) {
        const dms_page page = page_of(c, u->unit, (u->slot + i) / c->page_slots);
        DMS_CPU(tile_multiply)
        (&(dms_tile_product){.c = s + i,
                             .c_row = p->size,
                             .a = u->q,
                             .a_row = c->head_dim,
                             .a_col = 1,
                             .b = as_f32(c, page.k, wide, (int64_t)c->head_dim * c->page_slots),
                             .b_row = c->page_slots,
                             .m = p->reps,
                             .n = c->page_slots,
                             .k = c->head_dim});
    }
}

/* s becomes the exponentials of scale*(s - its maximum); maxima and sums of each head go to cell:
 * [2, R]. */
static inline void part_weights(const unit_parts *p, const unit_part *u, float *s, float *cell)
{
    const float scale = 1.0f / sqrtf((float)p->c->head_dim);
    for (int64_t r = 0; r < p->reps; r++, s += p->size) {
        float top = -FLT_MAX, total = 0;
#pragma omp simd reduction(max : top)
        for (int64_t i = 0; i < u->count; i++)
            top = s[i] > top ? s[i] : top;
#pragma omp simd reduction(+ : total)
        for (int64_t i = 0; i < u->count; i++) {
            s[i] = dms_fast_expf(scale * (s[i] - top));
            total += s[i];
        }
        cell[r] = scale * top;
        cell[p->reps + r] = total;
    }
}

#endif
