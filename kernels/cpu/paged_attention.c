/* Attention over the paged cache on the CPU: of single tokens (decode) and of chunks (prefill).
 *
 * Decode: the slots of a unit are cut into parts of fixed size, so that long caches keep all
 * threads busy and the result depends neither on the threads nor on the rest of the batch. The R
 * query heads of a group share one read of a part. Parts are merged with a running maximum. */
#include <float.h>
#include <omp.h>

#include "kernels/bf16.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/paged.h"
#include "kernels/cpu/workspace.h"

enum { PART = 256 }; /* slots of a part, at least; whole pages */

/* A page's keys [E, P] and values [P, padded E] as f32: where they lie, or widened into `wide`. */
static const float *as_f32(const dms_paged *c, const void *data, float *wide, int64_t n)
{
    if (c->dtype == DMS_F32)
        return data;
    const uint16_t *bits = data;
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        wide[i] = dms_bf16_to_f32(bits[i]);
    return wide;
}

/* ---- decode --------------------------------------------------------------------------------- */

typedef struct {
    const dms_paged *c;
    int64_t units;     /* n*G */
    int64_t reps;      /* R */
    int64_t part;      /* slots of a part */
    int64_t cell;      /* floats of one part's result: [R] maxima, [R] sums, [R, padded E] */
    const float *q;    /* [n, H*E] */
    float *o;          /* [n, H*E] */
    int64_t *first;    /* [units + 1], first part of each unit */
    float *cells;      /* [parts, cell] */
    char *scratch;     /* one piece a thread */
    size_t scratch_of; /* bytes of a piece */
} decode;

static int64_t decode_unit(const dms_paged_rows *rows, const decode *d, int64_t i)
{
    return unit_of(d->c, rows, i / d->c->groups, i % d->c->groups);
}

/* Scores of `count` slots from `slot` on, s: [R, part]. Those past the end of a page's live slots
 * are computed from undefined memory and never read. */
static void decode_scores(const decode *d, int64_t unit, int64_t slot, int64_t count,
                          const float *q, float *s)
{
    const dms_paged *c = d->c;
    float *wide = s + d->reps * d->part;
    for (int64_t i = 0; i < count; i += c->page_slots) {
        const dms_page page = page_of(c, unit, (slot + i) / c->page_slots);
        DMS_CPU(tile_multiply)
        (&(dms_tile_product){.c = s + i,
                             .c_row = d->part,
                             .a = q,
                             .a_row = c->head_dim,
                             .a_col = 1,
                             .b = as_f32(c, page.k, wide, (int64_t)c->head_dim * c->page_slots),
                             .b_row = c->page_slots,
                             .m = d->reps,
                             .n = c->page_slots,
                             .k = c->head_dim});
    }
}

/* s becomes the exponentials of scale*(s - its maximum); writes maximum and sum of each head. */
static void decode_weights(const decode *d, int64_t count, float *s, float *max, float *sum)
{
    const float scale = 1.0f / sqrtf((float)d->c->head_dim);
    for (int64_t r = 0; r < d->reps; r++, s += d->part) {
        float top = -FLT_MAX, total = 0;
#pragma omp simd reduction(max : top)
        for (int64_t i = 0; i < count; i++)
            top = s[i] > top ? s[i] : top;
#pragma omp simd reduction(+ : total)
        for (int64_t i = 0; i < count; i++) {
            s[i] = dms_fast_expf(scale * (s[i] - top));
            total += s[i];
        }
        max[r] = scale * top;
        sum[r] = total;
    }
}

/* o: [R, padded E] = weights times values. */
static void decode_values(const decode *d, int64_t unit, int64_t slot, int64_t count,
                          const float *s, float *o)
{
    const dms_paged *c = d->c;
    const int64_t width = dms_page_padded(c);
    float *wide = (float *)s + d->reps * d->part;
    for (int64_t i = 0; i < count; i += c->page_slots) {
        const int64_t slots = count - i < c->page_slots ? count - i : c->page_slots;
        const dms_page page = page_of(c, unit, (slot + i) / c->page_slots);
        DMS_CPU(tile_multiply)
        (&(dms_tile_product){.c = o,
                             .c_row = width,
                             .a = s + i,
                             .a_row = d->part,
                             .a_col = 1,
                             .b = as_f32(c, page.v, wide, width * slots),
                             .b_row = width,
                             .m = d->reps,
                             .n = width,
                             .k = slots,
                             .add = i > 0});
    }
}

static void decode_part(const decode *d, const dms_paged_rows *rows, int64_t i, int64_t part,
                        float *s)
{
    const int64_t unit = decode_unit(rows, d, i), slot = (part - d->first[i]) * d->part;
    const int64_t left = d->c->live[unit] - slot, count = left < d->part ? left : d->part;
    const float *q = d->q + i * d->reps * d->c->head_dim;
    float *cell = d->cells + part * d->cell;

    decode_scores(d, unit, slot, count, q, s);
    decode_weights(d, count, s, cell, cell + d->reps);
    decode_values(d, unit, slot, count, s, cell + 2 * d->reps);
}

/* Head r of unit i: the sum of its parts, each weighted by exp(its maximum - the largest). */
static void decode_merge(const decode *d, int64_t i, int64_t r)
{
    const int64_t width = d->c->head_dim, wide = dms_page_padded(d->c);
    float *o = d->o + (i * d->reps + r) * width;
    float top = -FLT_MAX, sum = 0;

    for (int64_t p = d->first[i]; p < d->first[i + 1]; p++)
        top = d->cells[p * d->cell + r] > top ? d->cells[p * d->cell + r] : top;
    memset(o, 0, (size_t)width * sizeof(float));
    for (int64_t p = d->first[i]; p < d->first[i + 1]; p++) {
        const float *cell = d->cells + p * d->cell, *part = cell + 2 * d->reps + r * wide;
        const float weight = dms_fast_expf(cell[r] - top);
        sum += weight * cell[d->reps + r];
#pragma omp simd
        for (int64_t e = 0; e < width; e++)
            o[e] += weight * part[e];
    }
#pragma omp simd
    for (int64_t e = 0; e < width; e++)
        o[e] /= sum;
}

/* The unit that part `part` belongs to, by bisection. */
static int64_t unit_of_part(const decode *d, int64_t part)
{
    int64_t low = 0, high = d->units;
    while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        if (d->first[middle] <= part)
            low = middle;
        else
            high = middle;
    }
    return low;
}

static int64_t count_parts(const decode *d, const dms_paged_rows *rows, int64_t *first)
{
    int64_t parts = 0;
    for (int64_t i = 0; i < d->units; i++) {
        const int64_t live = d->c->live[decode_unit(rows, d, i)];
        if (first)
            first[i] = parts;
        parts += (live + d->part - 1) / d->part;
    }
    if (first)
        first[d->units] = parts;
    return parts;
}

/* Memory: [threads] pieces of scratch, the first parts, the cells. */
static dms_status decode_place(decode *d, const dms_paged_rows *rows)
{
    const int64_t wide = dms_page_padded(d->c), threads = omp_get_max_threads();
    const size_t line = DMS_TILE_LANES * sizeof(float);
    const size_t piece = (size_t)(d->reps * d->part + wide * d->c->page_slots) * sizeof(float);
    d->cell = 2 * d->reps + d->reps * wide;
    d->scratch_of = (piece + line - 1) / line * line;
    const size_t firsts = ((size_t)(d->units + 1) * sizeof(int64_t) + line - 1) / line * line;
    const size_t cells = (size_t)(count_parts(d, rows, NULL) * d->cell) * sizeof(float);
    const size_t shared = (firsts + cells + (size_t)threads - 1) / (size_t)threads;
    dms_cpu_workspace work;
    DMS_TRY(dms_cpu_workspace_get(&work, d->c->device, d->scratch_of + shared));
    d->scratch = work.base;
    d->first = (int64_t *)(work.base + (size_t)threads * d->scratch_of);
    d->cells = (float *)((char *)d->first + firsts);
    return DMS_OK;
}

static dms_status attend_single(dms_tensor *o, const dms_paged *cache, const dms_paged_rows *rows,
                                const dms_tensor *q)
{
    const int64_t pages = (PART + cache->page_slots - 1) / cache->page_slots;
    decode d = {.c = cache,
                .units = rows->sequences->shape[0] * cache->groups,
                .reps = dms_cols(q) / ((int64_t)cache->groups * cache->head_dim),
                .part = pages * cache->page_slots,
                .q = q->data,
                .o = o->data};
    DMS_TRY(decode_place(&d, rows));
    const int64_t parts = count_parts(&d, rows, d.first);

#pragma omp parallel if (parts > 1)
    {
        float *s = (float *)(d.scratch + (size_t)omp_get_thread_num() * d.scratch_of);
#pragma omp for schedule(dynamic)
        for (int64_t part = 0; part < parts; part++)
            decode_part(&d, rows, unit_of_part(&d, part), part, s);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < d.units * d.reps; i++)
            decode_merge(&d, i / d.reps, i % d.reps);
    }
    for (int64_t i = 0; i < d.units; i++)
        cache->counters[rows->prefill ? DMS_PAGED_VISIBLE : DMS_PAGED_READS] +=
            cache->live[decode_unit(rows, &d, i)];
    return DMS_OK;
}

/* ---- prefill -------------------------------------------------------------------------------- */

/* A block of QUERIES queries of one head meets the pages of its unit, one after the other. */
typedef struct {
    const dms_paged *c;
    int64_t unit;
    int64_t queries; /* rows in use; lane i is the query at position first + i */
    int64_t first;
    float *q;      /* [E, QUERIES], scaled */
    float *o;      /* [E, QUERIES], not yet divided by sum */
    float *s;      /* [P, QUERIES] */
    float *wide;   /* a page widened to f32 */
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
    block b = {.c = c, .q = base};
    b.o = b.q + (int64_t)c->head_dim * QUERIES;
    b.s = b.o + (int64_t)c->head_dim * QUERIES;
    b.max = b.s + (int64_t)c->page_slots * QUERIES;
    b.sum = b.max + QUERIES;
    b.shrink = b.sum + QUERIES;
    b.wide = b.shrink + QUERIES;
    return b;
}

/* Lanes [*from, *to) of the block see the slot. */
static void lanes_that_see(const block *b, int32_t at, int64_t *from, int64_t *to)
{
    const int64_t key = at >> 1, first_late = key + b->c->window + 1 - b->first;
    *from = key > b->first ? key - b->first : 0;
    *to = (at & 1) && first_late < b->queries ? first_late : b->queries;
}

/* Pairs of the page's first `slots` slots and the block's queries that see each other. */
static int64_t count_visible(const block *b, const int32_t *at, int64_t slots)
{
    int64_t pairs = 0;
    for (int64_t i = 0; i < slots; i++) {
        int64_t from, to;
        lanes_that_see(b, at[i], &from, &to);
        pairs += to > from ? to - from : 0;
    }
    return pairs;
}

static void hide(const block *b, const int32_t *at, int64_t slots)
{
    for (int64_t i = 0; i < slots; i++) {
        int64_t from, to;
        float *row = b->s + i * QUERIES;
        lanes_that_see(b, at[i], &from, &to);
#pragma omp simd
        for (int64_t l = 0; l < QUERIES; l++)
            row[l] = l >= from && l < to ? row[l] : -INFINITY;
    }
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
            top[l] = b->s[i * QUERIES + l] > top[l] ? b->s[i * QUERIES + l] : top[l];
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
    for (int64_t e = 0; e < b->c->head_dim; e++)
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
            b->s[i * QUERIES + l] = dms_fast_expf(b->s[i * QUERIES + l] - b->max[l]);
            b->sum[l] += b->s[i * QUERIES + l];
        }
}

static void meet_page(block *b, int64_t index)
{
    const dms_paged *c = b->c;
    const int64_t left = c->live[b->unit] - index * c->page_slots, wide = dms_page_padded(c);
    const int64_t slots = left < c->page_slots ? left : c->page_slots;
    const dms_page page = page_of(c, b->unit, index);
    const int64_t visible = count_visible(b, page.at, slots);

    b->visible += visible;
    if (!visible)
        return;
    dms_tile_product p = {.c = b->s,
                          .c_row = QUERIES,
                          .a = as_f32(c, page.k, b->wide, (int64_t)c->head_dim * c->page_slots),
                          .a_row = 1,
                          .a_col = c->page_slots,
                          .b = b->q,
                          .b_row = QUERIES,
                          .m = slots,
                          .n = QUERIES,
                          .k = c->head_dim};
    DMS_CPU(tile_multiply)(&p);
    if (visible < slots * b->queries)
        hide(b, page.at, slots);
    weigh_block(b, slots);
    p = (dms_tile_product){.c = b->o,
                           .c_row = QUERIES,
                           .a = as_f32(c, page.v, b->wide, wide * slots),
                           .a_row = 1,
                           .a_col = wide,
                           .b = b->s,
                           .b_row = QUERIES,
                           .m = c->head_dim,
                           .n = QUERIES,
                           .k = slots,
                           .add = true};
    DMS_CPU(tile_multiply)(&p);
}

/* q, o: rows of one head, q_row floats apart. */
static void attend_block(block *b, float *o, const float *q, int64_t q_row)
{
    const int64_t width = b->c->head_dim, pages = pages_for(b->c, b->c->live[b->unit]);
    pack_transposed(b->q, q, q_row, b->queries, width, 1.0f / sqrtf((float)width));
    memset(b->o, 0, (size_t)(width * QUERIES) * sizeof(float));
    for (int l = 0; l < QUERIES; l++) {
        b->max[l] = -FLT_MAX;
        b->sum[l] = 0;
    }
    b->visible = 0;
    for (int64_t index = 0; index < pages; index++)
        meet_page(b, index);
    for (int64_t l = 0; l < b->queries; l++)
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
            b.unit = unit_of(cache, rows, s, h / reps);
            b.queries = tokens - t < QUERIES ? tokens - t : QUERIES;
            b.first = positions_of(rows, s)[t];
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
