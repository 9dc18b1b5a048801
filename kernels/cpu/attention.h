/* What the forward and backward pass of attention share on the CPU: a head, its blocks of keys
 * under the law of visibility, and the law itself on a block of scores.
 *
 * Scores are held transposed, [keys, QUERIES]: a lane is a query, so that the running maximum and
 * sum need no reduction across a vector, and K and V are read where they lie. */
#ifndef DMS_CPU_ATTENTION_H
#define DMS_CPU_ATTENTION_H

#include <math.h>
#include <string.h>

#include "kernels/cpu/tile.h"
#include "kernels/cpu/vec.h"
#include "kernels/visibility.h"

/* Queries of a block; keys of a block in the past; keys of a block that meets the diagonal. */
enum { QUERIES = 64, KEYS = 64, DIAGONAL = DMS_TILE_LANES };

/* One query head with the keys of its group. Row t of q is q + t*q_row, of k and v + t*kv_row. */
typedef struct {
    const float *q, *k, *v;
    const float *bias; /* [T], or NULL */
    int64_t tokens, width, q_row, kv_row, window;
    int64_t index; /* h of the head in [B, H] */
    int64_t group; /* g of the group in [B, G] */
    float scale;
} head_view;

static inline head_view head_view_of(const dms_attention_in *in, int64_t unit)
{
    const int64_t tokens = in->q->shape[1], width = in->head_dim;
    const int64_t q_row = dms_cols(in->q), kv_row = dms_cols(in->k);
    const int64_t heads = q_row / width, groups = kv_row / width;
    const int64_t b = unit / heads, h = unit % heads, g = h / (heads / groups);
    const int64_t keys = b * tokens * kv_row + g * width;
    return (head_view){
        .q = (const float *)in->q->data + b * tokens * q_row + h * width,
        .k = (const float *)in->k->data + keys,
        .v = (const float *)in->v->data + keys,
        .bias = in->bias ? (const float *)in->bias->data + (b * groups + g) * tokens : NULL,
        .tokens = tokens,
        .width = width,
        .q_row = q_row,
        .kv_row = kv_row,
        .window = in->window < tokens ? in->window : tokens,
        .index = unit,
        .group = b * groups + g,
        .scale = 1.0f / sqrtf((float)width),
    };
}

/* All pairs of the block see each other inside the window; all are late; or it depends. */
typedef enum { INSIDE, LATE, MIXED } block_kind;

typedef struct {
    int64_t query;     /* the first; lane i is query + i */
    int64_t key, keys; /* the first, and how many */
    int64_t lane;      /* lanes below see none of the keys; a multiple of DMS_TILE_LANES */
    block_kind kind;
} key_block;

static inline int64_t query_count(const head_view *h, int64_t query)
{
    return h->tokens - query < QUERIES ? h->tokens - query : QUERIES;
}

/* The block of keys from `key` for the queries from `query`. Blocks run up to the diagonal in steps
 * of KEYS, then in steps of DIAGONAL; none lies in the future. */
static inline key_block key_block_at(const head_view *h, int64_t query, int64_t key)
{
    const int64_t end = query + query_count(h, query), step = key < query ? KEYS : DIAGONAL;
    const int64_t limit = key < query ? query : end;
    key_block b = {.query = query, .key = key, .kind = MIXED};
    b.keys = limit - key < step ? limit - key : step;
    b.lane = key < query ? 0 : key - query;
    if (key < query && (!h->bias || !dms_is_late(end - 1, key, h->window)))
        b.kind = INSIDE;
    else if (key < query && dms_is_late(query, key + b.keys - 1, h->window))
        b.kind = LATE;
    return b;
}

/* No query of the block sees any of its keys. */
static inline bool is_evicted(const head_view *h, const key_block *b)
{
    bool evicted = b->kind == LATE;
    for (int64_t i = 0; evicted && i < b->keys; i++)
        evicted = h->bias[b->key + i] == -INFINITY;
    return evicted;
}

/* The first lane, up to QUERIES, that finds the key late: late is monotone in the query. */
static inline int first_late_lane(const key_block *b, int64_t key, int64_t window)
{
    int64_t lane = key + window + 1 - b->query;
    lane = lane < 0 ? 0 : lane;
    return lane < QUERIES ? (int)lane : QUERIES;
}

/* One row of a mixed block: no weight before lane `seen`, the bias from lane `late`. */
static inline void apply_law_to_row(float *restrict row, int first, int seen, int late, float bias)
{
#pragma omp simd
    for (int l = first; l < QUERIES; l++) {
        const float added = l >= late ? bias : 0.0f;
        row[l] = l >= seen ? row[l] + added : -INFINITY;
    }
}

/* Adds the mask of method.md section 3 to the scores s: [keys, QUERIES]. */
static inline void apply_law(float *s, const head_view *h, const key_block *b)
{
    if (b->kind == INSIDE)
        return;
    for (int64_t i = 0; i < b->keys; i++) {
        const int64_t key = b->key + i;
        const float bias = h->bias ? h->bias[key] : 0.0f;
        const int late = h->bias ? first_late_lane(b, key, h->window) : QUERIES;
        const int seen = key > b->query ? (int)(key - b->query) : 0;
        apply_law_to_row(s + i * QUERIES, (int)b->lane, seen, late, bias);
    }
}

/* out: [width, QUERIES] = scale * the transpose of `rows` rows of `in`, zero for the other lanes.
 */
static inline void pack_transposed(float *out, const float *in, int64_t in_row, int64_t rows,
                                   int64_t width, float scale)
{
    if (rows < QUERIES)
        memset(out, 0, (size_t)(width * QUERIES) * sizeof(float));
    DMS_CPU(tile_transpose)((dms_tile_view){out, QUERIES}, in, in_row, rows, width, scale);
}

/* s: [keys, QUERIES] = rows of k (or v) of the block times packed: [width, QUERIES]. */
static inline void multiply_keys(float *s, const float *rows, const head_view *h,
                                 const key_block *b, const float *packed)
{
    DMS_CPU(tile_multiply)
    (&(dms_tile_product){.c = s + b->lane,
                         .c_row = QUERIES,
                         .a = rows + b->key * h->kv_row,
                         .a_row = h->kv_row,
                         .a_col = 1,
                         .b = packed + b->lane,
                         .b_row = QUERIES,
                         .m = b->keys,
                         .n = QUERIES - b->lane,
                         .k = h->width});
}

/* out: [width, QUERIES] += the transpose of the block's rows of v (or k) times p. */
static inline void add_weighted(float *out, const float *rows, const head_view *h,
                                const key_block *b, const float *p)
{
    DMS_CPU(tile_multiply)
    (&(dms_tile_product){.c = out + b->lane,
                         .c_row = QUERIES,
                         .a = rows + b->key * h->kv_row,
                         .a_row = 1,
                         .a_col = h->kv_row,
                         .b = p + b->lane,
                         .b_row = QUERIES,
                         .m = h->width,
                         .n = QUERIES - b->lane,
                         .k = b->keys,
                         .add = true});
}

#endif
