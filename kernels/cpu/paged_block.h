/* A block of queries of a chunk under the law of visibility, in front of one page of its unit. */
#ifndef DMS_CPU_PAGED_BLOCK_H
#define DMS_CPU_PAGED_BLOCK_H

#include <float.h>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/paged.h"

/* QUERIES queries of one head; scores are transposed, as in kernels/cpu/attention.h. */
typedef struct {
    const dms_paged *c;
    int64_t unit;
    int64_t queries; /* rows in use; lane i is the query at position first + i */
    int64_t first;
    float *q;    /* [E, QUERIES], scaled */
    float *s;    /* [P, QUERIES] */
    float *wide; /* a page widened to f32 */
} query_block;

typedef struct {
    dms_page page;
    int64_t slots; /* live ones */
} page_view;

static inline page_view page_view_at(const query_block *b, int64_t index)
{
    const int64_t left = b->c->live[b->unit] - index * b->c->page_slots;
    return (page_view){page_of(b->c, b->unit, index),
                       left < b->c->page_slots ? left : b->c->page_slots};
}

/* Lanes [*from, *to) of the block see the slot. */
static inline void lanes_that_see(const query_block *b, int32_t at, int64_t *from, int64_t *to)
{
    const int64_t key = at >> 1, first_late = key + b->c->window + 1 - b->first;
    *from = key > b->first ? key - b->first : 0;
    *to = (at & 1) && first_late < b->queries ? first_late : b->queries;
}

/* Pairs of the page's slots and the block's queries that see each other. */
static inline int64_t count_visible(const query_block *b, const page_view *p)
{
    int64_t pairs = 0;
    for (int64_t i = 0; i < p->slots; i++) {
        int64_t from, to;
        lanes_that_see(b, p->page.at[i], &from, &to);
        pairs += to > from ? to - from : 0;
    }
    return pairs;
}

static inline void hide(const query_block *b, const page_view *p)
{
    for (int64_t i = 0; i < p->slots; i++) {
        int64_t from, to;
        float *row = b->s + i * QUERIES;
        lanes_that_see(b, p->page.at[i], &from, &to);
#pragma omp simd
        for (int64_t l = 0; l < QUERIES; l++)
            row[l] = l >= from && l < to ? row[l] : -INFINITY;
    }
}

/* b->s: scores of the page's slots, -infinity where a query does not see one. Returns the visible
 * pairs; where there are none, b->s is undefined. */
static inline int64_t score_page(const query_block *b, const page_view *p)
{
    const dms_paged *c = b->c;
    const int64_t visible = count_visible(b, p);
    if (!visible)
        return 0;
    DMS_CPU(tile_multiply)
    (&(dms_tile_product){.c = b->s,
                         .c_row = QUERIES,
                         .a = as_f32(c, p->page.k, b->wide, (int64_t)c->head_dim * c->page_slots),
                         .a_row = 1,
                         .a_col = c->page_slots,
                         .b = b->q,
                         .b_row = QUERIES,
                         .m = p->slots,
                         .n = QUERIES,
                         .k = c->head_dim});
    if (visible < p->slots * b->queries)
        hide(b, p);
    return visible;
}

#endif
