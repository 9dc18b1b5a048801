/* What is done with the scores of slots on the CPU: averages, and the marks of what is not kept. */
#include <omp.h>

#include "kernels/cpu/paged.h"
#include "kernels/cpu/select.h"
#include "kernels/cpu/workspace.h"

/* A piece of workspace a thread, for `bytes` bytes a slot of the longest unit of the batch. */
static dms_status place_slots(dms_cpu_workspace *work, const dms_paged *c,
                              const dms_paged_rows *rows, size_t bytes)
{
    int32_t most = 1;
    for (int64_t i = 0; i < rows->sequences->shape[0] * c->groups; i++) {
        const int32_t live = c->live[unit_of(c, rows, i / c->groups, i % c->groups)];
        most = live > most ? live : most;
    }
    return dms_cpu_workspace_get(work, c->device, (size_t)most * bytes);
}

static float *score_of(const dms_paged *c, int64_t unit, int64_t slot)
{
    return page_of(c, unit, slot / c->page_slots).score + slot % c->page_slots;
}

static void pool_unit(const dms_paged *c, int64_t unit, int64_t reach, int64_t last, float *was)
{
    const int64_t n = c->live[unit] - last;
    for (int64_t i = 0; i < n; i++)
        was[i] = *score_of(c, unit, i);
    for (int64_t i = 0; i < n; i++) {
        const int64_t from = i > reach ? i - reach : 0, to = n - i > reach ? i + reach : n - 1;
        float sum = 0;
        for (int64_t j = from; j <= to; j++)
            sum += was[j];
        *score_of(c, unit, i) = sum / (float)(2 * reach + 1);
    }
}

dms_status DMS_CPU(paged_pool)(const dms_paged *cache, const dms_paged_rows *rows, int width,
                               int64_t last)
{
    const int64_t units = rows->sequences->shape[0] * cache->groups;
    dms_cpu_workspace work;
    DMS_TRY(place_slots(&work, cache, rows, sizeof(float)));
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < units; i++) {
        float *was = (float *)(work.base + (size_t)omp_get_thread_num() * work.stride);
        const int64_t unit = unit_of(cache, rows, i / cache->groups, i % cache->groups);
        pool_unit(cache, unit, width / 2, last, was);
    }
    return DMS_OK;
}

/* Tokens [first, end) of a unit compete for `best` places; all others are kept. */
typedef struct {
    int64_t first, end, best;
} competition;

static bool competes(const competition *k, int32_t at)
{
    return at >> 1 >= k->first && at >> 1 < k->end;
}

/* Without places no score is read: there may be none. */
static uint64_t key_of(const competition *k, const dms_page *page, int64_t j)
{
    return k->best ? ranked_key(page->score[j], page->at[j] >> 1) : 0;
}

static void mark_unit(const dms_paged *c, int64_t unit, const competition *k, uint64_t *keys)
{
    int64_t n = 0;
    for (int64_t slot = 0; slot < c->live[unit]; slot++) {
        const dms_page page = page_of(c, unit, slot / c->page_slots);
        if (competes(k, page.at[slot % c->page_slots]))
            keys[n++] = key_of(k, &page, slot % c->page_slots);
    }
    if (n <= k->best)
        return;
    const uint64_t least = k->best ? nth_greatest(keys, n, k->best) : UINT64_MAX;
    for (int64_t slot = 0; slot < c->live[unit]; slot++) {
        const dms_page page = page_of(c, unit, slot / c->page_slots);
        const int64_t j = slot % c->page_slots;
        if (competes(k, page.at[j]) && key_of(k, &page, j) < least)
            page.at[j] |= 1;
    }
}

static dms_status check_kept(const dms_paged_rows *rows, const dms_paged_kept *kept)
{
    const int32_t *sequences = rows->sequences->data, *last = kept->last->data;
    const int32_t *best = kept->best ? kept->best->data : NULL;
    for (int64_t b = 0; b < rows->sequences->shape[0]; b++)
        if (last[sequences[b]] < 0 || (best && best[sequences[b]] < 0))
            return dms_fail(DMS_ERR_ARG,
                            "the last %d tokens and the best %d of sequence %d are to be kept, "
                            "expected 0 or more",
                            last[sequences[b]], best ? best[sequences[b]] : 0, sequences[b]);
    return DMS_OK;
}

dms_status DMS_CPU(paged_mark)(const dms_paged *cache, const dms_paged_rows *rows,
                               const dms_paged_kept *kept)
{
    const int64_t units = rows->sequences->shape[0] * cache->groups;
    const int64_t tokens = dms_cols(rows->positions);
    dms_cpu_workspace work;
    DMS_TRY(check_kept(rows, kept));
    DMS_TRY(place_slots(&work, cache, rows, sizeof(uint64_t)));
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < units; i++) {
        uint64_t *keys = (uint64_t *)(work.base + (size_t)omp_get_thread_num() * work.stride);
        const int64_t b = i / cache->groups, unit = unit_of(cache, rows, b, i % cache->groups);
        const int32_t sequence = ((const int32_t *)rows->sequences->data)[b];
        const int64_t end = (int64_t)positions_of(rows, b)[tokens - 1] + 1;
        const competition k = {kept->first, end - ((const int32_t *)kept->last->data)[sequence],
                               kept->best ? ((const int32_t *)kept->best->data)[sequence] : 0};
        mark_unit(cache, unit, &k, keys);
    }
    return DMS_OK;
}
