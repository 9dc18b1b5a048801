/* Attention over the paged cache on the CPU: of single tokens (decode) and of chunks (prefill).
 *
 * Decode: the slots of a unit are cut into parts of fixed size, so that long caches keep all
 * threads busy and the result depends neither on the threads nor on the rest of the batch. The R
 * query heads of a group share one read of a part. Parts are merged with a running maximum. */
#include <float.h>
#include <omp.h>

#include "kernels/cpu/paged_block.h"
#include "kernels/cpu/paged_parts.h"
#include "kernels/cpu/workspace.h"

/* ---- decode --------------------------------------------------------------------------------- */

typedef struct {
    unit_parts p;
    int64_t cell;      /* floats of one part's result: [R] maxima, [R] sums, [R, padded E] */
    float *o;          /* [n, H*E] */
    float *cells;      /* [parts, cell] */
    char *scratch;     /* one piece a thread */
    size_t scratch_of; /* bytes of a piece */
} decode;

/* o: [R, padded E] = weights s: [R, size] times values. */
static void decode_values(const decode *d, const unit_part *u, const float *s, float *o)
{
    const dms_paged *c = d->p.c;
    const int64_t width = dms_page_padded(c);
    float *wide = (float *)s + d->p.reps * d->p.size;
    for (int64_t i = 0; i < u->count; i += c->page_slots) {
        const int64_t slots = u->count - i < c->page_slots ? u->count - i : c->page_slots;
        const dms_page page = page_of(c, u->unit, (u->slot + i) / c->page_slots);
        DMS_CPU(tile_multiply)
        (&(dms_tile_product){.c = o,
                             .c_row = width,
                             .a = s + i,
                             .a_row = d->p.size,
                             .a_col = 1,
                             .b = as_f32(c, page.v, wide, width * slots),
                             .b_row = width,
                             .m = d->p.reps,
                             .n = width,
                             .k = slots,
                             .add = i > 0});
    }
}

static void decode_part(const decode *d, int64_t part, float *s)
{
    const unit_part u = unit_part_at(&d->p, part);
    float *cell = d->cells + part * d->cell;

    part_scores(&d->p, &u, s, s + d->p.reps * d->p.size);
    part_weights(&d->p, &u, s, cell);
    decode_values(d, &u, s, cell + 2 * d->p.reps);
}

/* Head r of unit i: the sum of its parts, each weighted by exp(its maximum - the largest). */
static void decode_merge(const decode *d, int64_t i, int64_t r)
{
    const int64_t width = d->p.c->head_dim, wide = dms_page_padded(d->p.c);
    float *o = d->o + (i * d->p.reps + r) * width;
    float top = -FLT_MAX, sum = 0;

    for (int64_t p = d->p.first[i]; p < d->p.first[i + 1]; p++)
        top = d->cells[p * d->cell + r] > top ? d->cells[p * d->cell + r] : top;
    memset(o, 0, (size_t)width * sizeof(float));
    for (int64_t p = d->p.first[i]; p < d->p.first[i + 1]; p++) {
        const float *cell = d->cells + p * d->cell, *part = cell + 2 * d->p.reps + r * wide;
        const float weight = dms_fast_expf(cell[r] - top);
        sum += weight * cell[d->p.reps + r];
#pragma omp simd
        for (int64_t e = 0; e < width; e++)
            o[e] += weight * part[e];
    }
#pragma omp simd
    for (int64_t e = 0; e < width; e++)
        o[e] /= sum;
}

/* Memory: [threads] pieces of scratch, the first parts, the cells. */
static dms_status decode_place(decode *d)
{
    const int64_t wide = dms_page_padded(d->p.c), threads = omp_get_max_threads();
    const size_t line = DMS_TILE_LANES * sizeof(float);
    const size_t piece =
        (size_t)(d->p.reps * d->p.size + wide * d->p.c->page_slots) * sizeof(float);
    d->cell = 2 * d->p.reps + d->p.reps * wide;
    d->scratch_of = (piece + line - 1) / line * line;
    const size_t firsts = ((size_t)(d->p.units + 1) * sizeof(int64_t) + line - 1) / line * line;
    const size_t cells = (size_t)(count_parts(&d->p, NULL) * d->cell) * sizeof(float);
    const size_t shared = (firsts + cells + (size_t)threads - 1) / (size_t)threads;
    dms_cpu_workspace work;
    DMS_TRY(dms_cpu_workspace_get(&work, d->p.c->device, d->scratch_of + shared));
    d->scratch = work.base;
    d->p.first = (int64_t *)(work.base + (size_t)threads * d->scratch_of);
    d->cells = (float *)((char *)d->p.first + firsts);
    return DMS_OK;
}

static dms_status attend_single(dms_tensor *o, const dms_paged *cache, const dms_paged_rows *rows,
                                const dms_tensor *q)
{
    decode d = {.p = unit_parts_of(cache, rows, q), .o = o->data};
    DMS_TRY(decode_place(&d));
    const int64_t parts = count_parts(&d.p, d.p.first), heads = d.p.units * d.p.reps;

#pragma omp parallel if (parts > 1)
    {
        float *s = (float *)(d.scratch + (size_t)omp_get_thread_num() * d.scratch_of);
#pragma omp for schedule(dynamic)
        for (int64_t part = 0; part < parts; part++)
            decode_part(&d, part, s);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < heads; i++)
            decode_merge(&d, i / d.p.reps, i % d.p.reps);
    }
    for (int64_t i = 0; i < d.p.units; i++)
        cache->counters[rows->prefill ? DMS_PAGED_VISIBLE : DMS_PAGED_READS] +=
            cache->live[parts_unit(&d.p, i)];
    return DMS_OK;
}

/* ---- prefill -------------------------------------------------------------------------------- */

/* A block of queries meets the pages of its unit, one after the other. */
typedef struct {
    query_block b;
    float *o;      /* [E, QUERIES], not yet divided by sum */
    float *max;    /* [QUERIES] */
    float *sum;    /* [QUERIES] */
    float *shrink; /* [QUERIES] */
    int64_t visible;
} block;

static size_t block_bytes(const dms_paged *c)
{
    const int64_t columns = 2 * (int64_t)c->head_dim + c->page_slots + 3;
    return (size_t)(columns * QUERIES + dms_page_padded(c) * c->page_slots) * sizeof(float);
}

static block block_at(const dms_paged *c, float *base)
{
    block b = {.b = {.c = c, .q = base}};
    b.o = b.b.q + (int64_t)c->head_dim * QUERIES;
    b.b.s = b.o + (int64_t)c->head_dim * QUERIES;
    b.max = b.b.s + (int64_t)c->page_slots * QUERIES;
    b.sum = b.max + QUERIES;
    b.shrink = b.sum + QUERIES;
    b.b.wide = b.shrink + QUERIES;
    return b;
}

/* Raises the running maximum to that of the page; older sums shrink. A lane that has seen nothing
 * yet keeps the lowest finite maximum, so that what it does not see gets weight exp(-inf) = 0. */
static void raise_block(const block *b, int64_t slots)
{
    float top[QUERIES];
    bool risen = false;
    memcpy(top, b->max, sizeof(top));
    for (int64_t i = 0; i < slots; i++)
#pragma omp simd
        for (int l = 0; l < QUERIES; l++)
            top[l] = b->b.s[i * QUERIES + l] > top[l] ? b->b.s[i * QUERIES + l] : top[l];
    for (int l = 0; l < QUERIES; l++)
        risen |= top[l] > b->max[l];
    if (!risen)
        return;
#pragma omp simd
    for (int l = 0; l < QUERIES; l++) {
        b->shrink[l] = dms_fast_expf(b->max[l] - top[l]);
        b->max[l] = top[l];
        b->sum[l] *= b->shrink[l];
    }
    for (int64_t e = 0; e < b->b.c->head_dim; e++)
#pragma omp simd
        for (int l = 0; l < QUERIES; l++)
            b->o[e * QUERIES + l] *= b->shrink[l];
}

static void weigh_block(const block *b, int64_t slots)
{
    raise_block(b, slots);
    for (int64_t i = 0; i < slots; i++)
#pragma omp simd
        for (int l = 0; l < QUERIES; l++) {
            b->b.s[i * QUERIES + l] = dms_fast_expf(b->b.s[i * QUERIES + l] - b->max[l]);
            b->sum[l] += b->b.s[i * QUERIES + l];
        }
}

static void meet_page(block *b, int64_t index)
{
    const dms_paged *c = b->b.c;
    const int64_t wide = dms_page_padded(c);
    const page_view page = page_view_at(&b->b, index);
    const int64_t visible = score_page(&b->b, &page);

    b->visible += visible;
    if (!visible)
        return;
    weigh_block(b, page.slots);
    DMS_CPU(tile_multiply)
    (&(dms_tile_product){.c = b->o,
                         .c_row = QUERIES,
                         .a = as_f32(c, page.page.v, b->b.wide, wide * page.slots),
                         .a_row = 1,
                         .a_col = wide,
                         .b = b->b.s,
                         .b_row = QUERIES,
                         .m = c->head_dim,
                         .n = QUERIES,
                         .k = page.slots,
                         .add = true});
}

/* q, o: rows of one head, q_row floats apart. */
static void attend_block(block *b, float *o, const float *q, int64_t q_row)
{
    const int64_t width = b->b.c->head_dim, pages = pages_for(b->b.c, b->b.c->live[b->b.unit]);
    pack_transposed(b->b.q, q, q_row, b->b.queries, width, 1.0f / sqrtf((float)width));
    memset(b->o, 0, (size_t)(width * QUERIES) * sizeof(float));
    for (int l = 0; l < QUERIES; l++) {
        b->max[l] = -FLT_MAX;
        b->sum[l] = 0;
    }
    b->visible = 0;
    for (int64_t index = 0; index < pages; index++)
        meet_page(b, index);
    for (int64_t l = 0; l < b->b.queries; l++)
        for (int64_t e = 0; e < width; e++)
            o[l * q_row + e] = b->o[e * QUERIES + l] / b->sum[l];
}

static dms_status attend_chunk(dms_tensor *o, const dms_paged *cache, const dms_paged_rows *rows,
                               const dms_tensor *q)
{
    const int64_t tokens = q->shape[1], row = dms_cols(q), heads = row / cache->head_dim;
    const int64_t blocks = (tokens + QUERIES - 1) / QUERIES, reps = heads / cache->groups;
    int64_t visible = 0;
    dms_cpu_workspace work;
    DMS_TRY(dms_cpu_workspace_get(&work, cache->device, block_bytes(cache)));

#pragma omp parallel reduction(+ : visible)
    {
        const int thread = omp_get_thread_num();
        block b = block_at(cache, (float *)(work.base + (size_t)thread * work.stride));
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < rows->sequences->shape[0] * heads * blocks; i++) {
            const int64_t s = i / (heads * blocks), h = i / blocks % heads;
            const int64_t t = (blocks - 1 - i % blocks) * QUERIES;
            const int64_t at = (s * tokens + t) * row + h * cache->head_dim;
            b.b.unit = unit_of(cache, rows, s, h / reps);
            b.b.queries = tokens - t < QUERIES ? tokens - t : QUERIES;
            b.b.first = positions_of(rows, s)[t];
            attend_block(&b, (float *)o->data + at, (const float *)q->data + at, row);
            visible += h % reps ? 0 : b.visible;
        }
    }
    cache->counters[DMS_PAGED_VISIBLE] += visible;
    return DMS_OK;
}

dms_status DMS_CPU(paged_attention)(dms_tensor *o, const dms_paged *cache,
                                    const dms_paged_rows *rows, const dms_tensor *q)
{
    return (q->shape[1] == 1 ? attend_single : attend_chunk)(o, cache, rows, q);
}
