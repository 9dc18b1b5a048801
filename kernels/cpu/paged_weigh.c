/* Attention received by the slots of the paged cache, on the CPU: from single tokens and from
 * chunks. Every slot's sum is one thread's, in a fixed order. */
#include <omp.h>

#include "kernels/cpu/paged_block.h"
#include "kernels/cpu/paged_parts.h"
#include "kernels/cpu/workspace.h"

/* Slots [slot, slot + count) of a unit receive scale*sum. */
typedef struct {
    int64_t unit, slot, count;
    float scale;
    bool add;
} receipt;

static void receive(const dms_paged *c, const receipt *r, const float *sum)
{
    for (int64_t i = 0; i < r->count; i++) {
        const int64_t slot = r->slot + i, j = slot % c->page_slots;
        float *score = page_of(c, r->unit, slot / c->page_slots).score + j;
        *score = (r->add ? *score : 0) + r->scale * sum[i];
    }
}

/* Groups that share a score hold the same slots. */
static dms_status check_across(const dms_paged *c, const dms_paged_rows *rows)
{
    for (int64_t b = 0; b < rows->sequences->shape[0]; b++)
        for (int64_t g = 1; g < c->groups; g++) {
            const int32_t one = c->live[unit_of(c, rows, b, 0)];
            const int32_t other = c->live[unit_of(c, rows, b, g)];
            if (one != other)
                return dms_fail(DMS_ERR_ARG,
                                "heads 0 and %d hold %d and %d slots, a mean over all heads wants "
                                "the same",
                                (int)g, one, other);
        }
    return DMS_OK;
}

/* ---- single tokens -------------------------------------------------------------------------- */

typedef struct {
    unit_parts p;
    const dms_paged_weights *w;
    int64_t cell;      /* floats of a part: [R] maxima, [R] sums, [R, size] exponentials */
    float *cells;      /* [parts, cell] */
    char *scratch;     /* one piece a thread: a page, or a part's sum */
    size_t scratch_of; /* bytes of a piece */
} single;

static dms_status single_place(single *d)
{
    const dms_paged *c = d->p.c;
    const size_t line = DMS_TILE_LANES * sizeof(float), threads = (size_t)omp_get_max_threads();
    const int64_t page = (int64_t)c->head_dim * c->page_slots;
    const size_t piece = (size_t)(page > d->p.size ? page : d->p.size) * sizeof(float);
    d->cell = 2 * d->p.reps + d->p.reps * d->p.size;
    d->scratch_of = (piece + line - 1) / line * line;
    const size_t firsts = ((size_t)(d->p.units + 1) * sizeof(int64_t) + line - 1) / line * line;
    const size_t cells = (size_t)(count_parts(&d->p, NULL) * d->cell) * sizeof(float);
    dms_cpu_workspace work;
    DMS_TRY(dms_cpu_workspace_get(&work, c->device,
                                  d->scratch_of + (firsts + cells + threads - 1) / threads));
    d->scratch = work.base;
    d->p.first = (int64_t *)(work.base + threads * d->scratch_of);
    d->cells = (float *)((char *)d->p.first + firsts);
    return DMS_OK;
}

static void single_scores(const single *d, int64_t part, float *wide)
{
    const unit_part u = unit_part_at(&d->p, part);
    float *cell = d->cells + part * d->cell;
    part_scores(&d->p, &u, cell + 2 * d->p.reps, wide);
    part_weights(&d->p, &u, cell + 2 * d->p.reps, cell);
}

/* Head r of unit i: a part's maximum becomes what turns its exponentials into probabilities. */
static void single_factors(const single *d, int64_t i, int64_t r)
{
    float top = -FLT_MAX, sum = 0;
    for (int64_t p = d->p.first[i]; p < d->p.first[i + 1]; p++)
        top = d->cells[p * d->cell + r] > top ? d->cells[p * d->cell + r] : top;
    for (int64_t p = d->p.first[i]; p < d->p.first[i + 1]; p++) {
        float *cell = d->cells + p * d->cell;
        cell[r] = dms_fast_expf(cell[r] - top);
        sum += cell[r] * cell[d->p.reps + r];
    }
    for (int64_t p = d->p.first[i]; p < d->p.first[i + 1]; p++)
        d->cells[p * d->cell + r] /= sum;
}

static void add_heads(const single *d, int64_t part, int64_t count, float *sum)
{
    const float *cell = d->cells + part * d->cell, *e = cell + 2 * d->p.reps;
    for (int64_t r = 0; r < d->p.reps; r++, e += d->p.size)
#pragma omp simd
        for (int64_t i = 0; i < count; i++)
            sum[i] += cell[r] * e[i];
}

static void single_receive(const single *d, int64_t part, float *sum)
{
    const unit_part u = unit_part_at(&d->p, part);
    const int64_t groups = d->w->across ? d->p.c->groups : 1;
    receipt r = {u.unit, u.slot, u.count, 1, d->w->add};
    if (d->w->across && u.i % groups)
        return;
    if (d->w->across)
        r.scale = 1.0f / (float)(groups * d->p.reps);
    memset(sum, 0, (size_t)u.count * sizeof(float));
    if (*positions_of(d->p.rows, u.i / d->p.c->groups) >= d->w->from)
        for (int64_t g = 0; g < groups; g++)
            add_heads(d, part + d->p.first[u.i + g] - d->p.first[u.i], u.count, sum);
    for (int64_t g = 0; g < groups; g++, r.unit++)
        receive(d->p.c, &r, sum);
}

static dms_status weigh_single(const dms_paged *cache, const dms_paged_rows *rows,
                               const dms_tensor *q, const dms_paged_weights *weights)
{
    single d = {.p = unit_parts_of(cache, rows, q), .w = weights};
    DMS_TRY(single_place(&d));
    const int64_t parts = count_parts(&d.p, d.p.first), heads = d.p.units * d.p.reps;

#pragma omp parallel if (parts > 1)
    {
        float *mine = (float *)(d.scratch + (size_t)omp_get_thread_num() * d.scratch_of);
#pragma omp for schedule(dynamic)
        for (int64_t part = 0; part < parts; part++)
            single_scores(&d, part, mine);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < heads; i++)
            single_factors(&d, i / d.p.reps, i % d.p.reps);
#pragma omp for schedule(static)
        for (int64_t part = 0; part < parts; part++)
            single_receive(&d, part, mine);
    }
    return DMS_OK;
}

/* ---- chunks --------------------------------------------------------------------------------- */

/* First every block of queries learns maximum and sum of its scores, then every page meets all
 * blocks once more. */
typedef struct {
    const dms_paged *c;
    const dms_paged_rows *rows;
    const dms_paged_weights *w;
    const float *q;                         /* [n, T, H*E] */
    int64_t n, tokens, heads, reps, blocks; /* blocks of a head */
    int64_t kept;                           /* floats kept of a block: q [E, QUERIES], max, 1/sum */
    float *keeps;                           /* [n, H, blocks, kept] */
} chunk;

/* A thread's scratch: scores, a page widened, a page's sum. */
static size_t chunk_scratch(const dms_paged *c)
{
    const int64_t columns = QUERIES + c->head_dim + 1;
    return ((size_t)(columns * c->page_slots) * sizeof(float) + 63) / 64 * 64;
}

static dms_status chunk_place(chunk *d, dms_cpu_workspace *work)
{
    const size_t threads = (size_t)omp_get_max_threads(), scratch = chunk_scratch(d->c);
    d->kept = ((int64_t)d->c->head_dim + 2) * QUERIES;
    const size_t keeps = (size_t)(d->n * d->heads * d->blocks * d->kept) * sizeof(float);
    DMS_TRY(dms_cpu_workspace_get(work, d->c->device, scratch + (keeps + threads - 1) / threads));
    d->keeps = (float *)(work->base + threads * scratch);
    return DMS_OK;
}

/* Block `index` of head h of row s. */
static query_block chunk_block(const chunk *d, int64_t s, int64_t h, int64_t index, float *scratch)
{
    const int64_t t = index * QUERIES, left = d->tokens - t;
    return (query_block){
        .c = d->c,
        .unit = unit_of(d->c, d->rows, s, h / d->reps),
        .queries = left < QUERIES ? left : QUERIES,
        .first = positions_of(d->rows, s)[t],
        .q = d->keeps + ((s * d->heads + h) * d->blocks + index) * d->kept,
        .s = scratch,
        .wide = scratch + QUERIES * (int64_t)d->c->page_slots,
    };
}

static bool is_counted(const chunk *d, const query_block *b)
{
    return b->first + b->queries > d->w->from;
}

/* One page enters maximum and sum of each lane. */
static void extend_lanes(const float *s, int64_t slots, float *max, float *sum)
{
    float top[QUERIES];
    memcpy(top, max, sizeof(top));
    for (int64_t i = 0; i < slots; i++)
#pragma omp simd
        for (int l = 0; l < QUERIES; l++)
            top[l] = s[i * QUERIES + l] > top[l] ? s[i * QUERIES + l] : top[l];
#pragma omp simd
    for (int l = 0; l < QUERIES; l++) {
        sum[l] *= dms_fast_expf(max[l] - top[l]);
        max[l] = top[l];
    }
    for (int64_t i = 0; i < slots; i++)
#pragma omp simd
        for (int l = 0; l < QUERIES; l++)
            sum[l] += dms_fast_expf(s[i * QUERIES + l] - max[l]);
}

static void learn_block(const chunk *d, int64_t i, float *scratch)
{
    const int64_t s = i / (d->heads * d->blocks), h = i / d->blocks % d->heads;
    const int64_t index = d->blocks - 1 - i % d->blocks, width = d->c->head_dim;
    const int64_t row = d->heads * width, t = index * QUERIES;
    const query_block b = chunk_block(d, s, h, index, scratch);
    float *max = b.q + width * QUERIES, *sum = max + QUERIES;
    if (!is_counted(d, &b))
        return;
    pack_transposed(b.q, d->q + (s * d->tokens + t) * row + h * width, row, b.queries, width,
                    1.0f / sqrtf((float)width));
    for (int l = 0; l < QUERIES; l++) {
        max[l] = -FLT_MAX;
        sum[l] = 0;
    }
    for (int64_t p = 0; p < pages_for(d->c, d->c->live[b.unit]); p++) {
        const page_view page = page_view_at(&b, p);
        if (score_page(&b, &page))
            extend_lanes(b.s, page.slots, max, sum);
    }
    for (int l = 0; l < QUERIES; l++)
        sum[l] = 1 / sum[l];
}

/* The page's slots receive the probabilities of the block's counted queries: sum [P]. */
static void add_block(const chunk *d, const query_block *b, const page_view *page, float *sum)
{
    const float *max = b->q + (int64_t)d->c->head_dim * QUERIES, *share = max + QUERIES;
    const int64_t skipped = d->w->from - b->first, from = skipped > 0 ? skipped : 0;
    if (!is_counted(d, b) || !score_page(b, page))
        return;
    for (int64_t i = 0; i < page->slots; i++) {
        float total = 0;
#pragma omp simd reduction(+ : total)
        for (int64_t l = from; l < b->queries; l++)
            total += dms_fast_expf(b->s[i * QUERIES + l] - max[l]) * share[l];
        sum[i] += total;
    }
}

/* Page `index` of the unit of row s and group g, or of those of all groups. */
static void meet_blocks(const chunk *d, int64_t s, int64_t g, int64_t index, float *scratch)
{
    const dms_paged *c = d->c;
    const int64_t heads = d->w->across ? d->heads : d->reps, unit = unit_of(c, d->rows, s, g);
    const int64_t left = c->live[unit] - index * c->page_slots;
    float *sum = scratch + (QUERIES + (int64_t)c->head_dim) * c->page_slots;
    receipt r = {unit, index * c->page_slots, left < c->page_slots ? left : c->page_slots, 1,
                 d->w->add};
    if (left <= 0)
        return;
    if (d->w->across)
        r.scale = 1.0f / (float)heads;
    memset(sum, 0, (size_t)c->page_slots * sizeof(float));
    for (int64_t h = g * d->reps; h < g * d->reps + heads; h++)
        for (int64_t i = 0; i < d->blocks; i++) {
            const query_block b = chunk_block(d, s, h, i, scratch);
            const page_view page = page_view_at(&b, index);
            add_block(d, &b, &page, sum);
        }
    for (int64_t i = 0; i < heads / d->reps; i++, r.unit++)
        receive(c, &r, sum);
}

static dms_status weigh_chunk(const dms_paged *cache, const dms_paged_rows *rows,
                              const dms_tensor *q, const dms_paged_weights *weights)
{
    const int64_t heads = dms_cols(q) / cache->head_dim, n = q->shape[0], tokens = q->shape[1];
    const int64_t groups = weights->across ? 1 : cache->groups;
    chunk d = {.c = cache,
               .rows = rows,
               .w = weights,
               .q = q->data,
               .n = n,
               .tokens = tokens,
               .heads = heads,
               .reps = heads / cache->groups,
               .blocks = (tokens + QUERIES - 1) / QUERIES};
    int64_t pages = 0;
    dms_cpu_workspace work;
    for (int64_t i = 0; i < n * cache->groups; i++) {
        const int64_t unit = unit_of(cache, rows, i / cache->groups, i % cache->groups);
        const int64_t some = pages_for(cache, cache->live[unit]);
        pages = some > pages ? some : pages;
    }
    DMS_TRY(chunk_place(&d, &work));

#pragma omp parallel
    {
        float *scratch = (float *)(work.base + (size_t)omp_get_thread_num() * chunk_scratch(cache));
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < n * heads * d.blocks; i++)
            learn_block(&d, i, scratch);
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < n * groups * pages; i++)
            meet_blocks(&d, i / (groups * pages), i / pages % groups, i % pages, scratch);
    }
    return DMS_OK;
}

dms_status DMS_CPU(paged_weigh)(const dms_paged *cache, const dms_paged_rows *rows,
                                const dms_tensor *q, const dms_paged_weights *weights)
{
    if (weights->across)
        DMS_TRY(check_across(cache, rows));
    return (q->shape[1] == 1 ? weigh_single : weigh_chunk)(cache, rows, q, weights);
}
