/* Bounds of the keys of pages, and the choice of the pages that a token reads, on the CPU. */
#include <math.h>
#include <omp.h>

#include "kernels/cpu/paged.h"
#include "kernels/cpu/select.h"
#include "kernels/cpu/workspace.h"

/* ---- bound ---------------------------------------------------------------------------------- */

static float element(const dms_paged *c, const void *data, int64_t i)
{
    return c->dtype == DMS_F32 ? ((const float *)data)[i]
                               : dms_bf16_to_f32(((const uint16_t *)data)[i]);
}

/* Of values that are stored: nothing is rounded. */
static void put_element(const dms_paged *c, void *data, int64_t i, float value)
{
    if (c->dtype == DMS_F32)
        ((float *)data)[i] = value;
    else
        ((uint16_t *)data)[i] = dms_bf16_from_f32(value);
}

/* Keys [from, to) of a page enter its bounds. */
static void extend(const dms_paged *c, const dms_page *page, int64_t from, int64_t to)
{
    const int64_t width = c->head_dim;
    for (int64_t e = 0; e < width; e++) {
        const float begin = element(c, page->k, e * c->page_slots);
        float least = from ? element(c, page->bounds, e) : begin;
        float greatest = from ? element(c, page->bounds, width + e) : begin;
        for (int64_t j = from; j < to; j++) {
            const float key = element(c, page->k, e * c->page_slots + j);
            least = key < least ? key : least;
            greatest = key > greatest ? key : greatest;
        }
        put_element(c, page->bounds, e, least);
        put_element(c, page->bounds, width + e, greatest);
    }
}

static void bound_unit(const dms_paged *c, int64_t unit, int64_t tokens)
{
    const int64_t live = c->live[unit], slots = c->page_slots;
    for (int64_t slot = live - tokens; slot < live;) {
        const int64_t from = slot % slots, left = live - slot + from;
        const int64_t to = left < slots ? left : slots;
        const dms_page page = page_of(c, unit, slot / slots);
        extend(c, &page, from, to);
        slot += to - from;
    }
}

dms_status DMS_CPU(paged_bound)(const dms_paged *cache, const dms_paged_rows *rows)
{
    const int64_t units = rows->sequences->shape[0] * cache->groups;
    const int64_t tokens = dms_cols(rows->positions);
    for (int64_t i = 0; i < units; i++) {
        const int32_t live =
            cache->live[unit_of(cache, rows, i / cache->groups, i % cache->groups)];
        if (live < tokens)
            return dms_fail(DMS_ERR_ARG, "%lld tokens were entered, %d slots are live",
                            (long long)tokens, live);
    }
#pragma omp parallel for schedule(static) if (units * tokens * cache->head_dim > DMS_CPU_FORK)
    for (int64_t i = 0; i < units; i++)
        bound_unit(cache, unit_of(cache, rows, i / cache->groups, i % cache->groups), tokens);
    return DMS_OK;
}

/* ---- choose --------------------------------------------------------------------------------- */

enum { BATCH = 64 }; /* pages that a thread takes at once */

typedef struct {
    const dms_paged *chosen, *c;
    const dms_paged_rows *rows;
    const float *q; /* [n, H*E] */
    int64_t reps;   /* R */
    int64_t pages;  /* to choose, the last one included */
    int64_t row;    /* keys of a unit, at most: pages but the last */
    uint64_t *keys; /* [units, row] */
} choice;

static int64_t choice_unit(const choice *k, int64_t i)
{
    return unit_of(k->c, k->rows, i / k->c->groups, i % k->c->groups);
}

/* Pages of the unit whose bounds are asked for: none where all pages are read. */
static int64_t candidates(const choice *k, int64_t unit)
{
    const int64_t pages = pages_for(k->c, k->c->live[unit]);
    return pages > k->pages ? pages - 1 : 0;
}

/* bounds: [2, E]. */
static float bound_of(const choice *k, const float *bounds, const float *q)
{
    const int64_t width = k->c->head_dim;
    float most = -INFINITY;
    for (int64_t r = 0; r < k->reps; r++, q += width) {
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t e = 0; e < width; e++) {
            const float low = q[e] * bounds[e], high = q[e] * bounds[width + e];
            sum += low > high ? low : high;
        }
        most = sum > most ? sum : most;
    }
    return most;
}

/* Keys of candidates [from, to) of the batch's unit i. wide: [2, E], scratch. */
static void rank_pages(const choice *k, int64_t i, int64_t from, float *wide)
{
    const int64_t unit = choice_unit(k, i), n = candidates(k, unit), width = k->c->head_dim;
    const int64_t to = from + BATCH < n ? from + BATCH : n;
    for (int64_t p = from; p < to; p++) {
        const dms_page page = page_of(k->c, unit, p);
        const float *bounds = as_f32(k->c, page.bounds, wide, 2 * width);
        const float bound = bound_of(k, bounds, k->q + i * k->reps * width);
        k->keys[i * k->row + p] = ranked_key(bound, (int32_t)p);
    }
}

static void list_pages(const choice *k, int64_t i)
{
    const int64_t unit = choice_unit(k, i), n = candidates(k, unit), all = k->c->unit_pages;
    const int32_t *from = k->c->unit_list + unit * all, live = k->c->live[unit];
    int32_t *to = k->chosen->unit_list + unit * all;
    const uint64_t *keys = k->keys + i * k->row;
    int64_t listed = 0;
    if (!n) {
        memcpy(to, from, (size_t)pages_for(k->c, live) * sizeof(*to));
        k->chosen->live[unit] = live;
        return;
    }
    const uint64_t least = k->pages > 1 ? nth_greatest(keys, n, k->pages - 1) : UINT64_MAX;
    for (int64_t p = 0; p < n; p++)
        if (keys[p] >= least)
            to[listed++] = from[p];
    to[listed] = from[n];
    k->chosen->live[unit] = live - (int32_t)((n - listed) * k->c->page_slots);
}

dms_status DMS_CPU(paged_choose)(const dms_paged *chosen, const dms_paged *cache,
                                 const dms_paged_rows *rows, const dms_tensor *q, int pages)
{
    const int64_t units = rows->sequences->shape[0] * cache->groups;
    const int64_t threads = omp_get_max_threads(), width = cache->head_dim;
    choice k = {.chosen = chosen, .c = cache, .rows = rows, .q = q->data, .pages = pages};
    dms_cpu_workspace work;
    k.reps = dms_cols(q) / (cache->groups * width);
    for (int64_t i = 0; i < units; i++) {
        const int64_t n = candidates(&k, choice_unit(&k, i));
        cache->counters[DMS_PAGED_BOUNDS] += n;
        k.row = n > k.row ? n : k.row;
    }
    const int64_t batches = (k.row + BATCH - 1) / BATCH;
    const size_t wide = 2 * (size_t)width * sizeof(float);
    const size_t keys = (size_t)(units * k.row) * sizeof(uint64_t) / (size_t)threads + 64;
    DMS_TRY(dms_cpu_workspace_get(&work, cache->device, (wide + 63) / 64 * 64 + keys));
    k.keys = (uint64_t *)(work.base + (size_t)threads * ((wide + 63) / 64 * 64));

#pragma omp parallel if (units * k.row * k.reps * width > DMS_CPU_FORK)
    {
        float *scratch = (float *)work.base;
        scratch += omp_get_thread_num() * (int64_t)((wide + 63) / 64 * 16);
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < units * batches; i++)
            rank_pages(&k, i / batches, i % batches * BATCH, scratch);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < units; i++)
            list_pages(&k, i);
    }
    return DMS_OK;
}
