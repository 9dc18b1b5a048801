/* What the ops of the paged cache check, whatever the device. */
#include <inttypes.h>

#include "kernels/op_checks.h"

/* Rows of the cache with `cols` channels in x: [n, T, cols]. */
static dms_status check_paged(const dms_paged *c, const dms_paged_rows *rows, const char *name,
                              const dms_tensor *x, int64_t cols)
{
    const int64_t n = rows->sequences->shape[0], tokens = dms_cols(rows->positions);
    DMS_TRY(expect_shape("sequences", rows->sequences, c->device, DMS_I32, 1, n));
    DMS_TRY(expect_shape("positions", rows->positions, c->device, DMS_I32, 2, n, tokens));
    if (rows->layer < 0 || rows->layer >= c->layers)
        return dms_fail(DMS_ERR_ARG, "layer is %d, the cache has %d", rows->layer, c->layers);
    return expect_shape(name, x, c->device, DMS_F32, 3, n, tokens, cols);
}

/* Whether slots carry scores, without which `what` cannot be. */
static dms_status check_scored(const dms_paged *c, const char *what)
{
    if (c->scored)
        return DMS_OK;
    return dms_fail(DMS_ERR_ARG, "%s wants a cache whose slots are scored", what);
}

/* Queries of all heads of the batch's tokens: a whole number of heads a group. */
static dms_status check_queries(const dms_paged *c, const dms_paged_rows *rows, const dms_tensor *q)
{
    const int64_t cols = dms_cols(q), group = (int64_t)c->groups * c->head_dim;
    DMS_TRY(check_paged(c, rows, "q", q, cols));
    if (cols % group)
        return dms_fail(DMS_ERR_SHAPE,
                        "q has %" PRId64 " channels, expected a multiple of %" PRId64, cols, group);
    return DMS_OK;
}

dms_status dms_paged_append(const dms_paged *cache, const dms_paged_rows *rows, const dms_tensor *k,
                            const dms_tensor *v, const dms_tensor *z)
{
    const int64_t cols = (int64_t)cache->groups * cache->head_dim;
    DMS_TRY(check_paged(cache, rows, "k", k, cols));
    DMS_TRY(expect("v", v, k));
    DMS_TRY(expect_shape("z", z, cache->device, DMS_F32, 3, k->shape[0], (int64_t)cache->groups,
                         k->shape[1]));
    return RUN_ON(cache->device, k, paged_append, cache, rows, k, v, z);
}

dms_status dms_paged_attention(dms_tensor *o, const dms_paged *cache, const dms_paged_rows *rows,
                               const dms_tensor *q)
{
    DMS_TRY(check_queries(cache, rows, q));
    DMS_TRY(expect("o", o, q));
    return RUN_ON(cache->device, q, paged_attention, o, cache, rows, q);
}

dms_status dms_paged_compact(const dms_paged *cache, const dms_paged_rows *rows)
{
    DMS_TRY(check_paged(cache, rows, "", NULL, 0));
    return RUN_ON(cache->device, rows->positions, paged_compact, cache, rows);
}

dms_status dms_paged_drop(const dms_paged *cache, int sequence)
{
    if (sequence < 0 || sequence >= cache->sequences)
        return dms_fail(DMS_ERR_ARG, "sequence is %d, the cache has %d", sequence,
                        cache->sequences);
    return RUN_ON(cache->device, NULL, paged_drop, cache, sequence);
}

/* Two sequences, one to be forked from the other. */
static dms_status check_fork(const dms_paged *c, int from, int to)
{
    if (from < 0 || from >= c->sequences || to < 0 || to >= c->sequences || from == to)
        return dms_fail(DMS_ERR_ARG,
                        "sequence %d is forked from %d, expected two different ones of %d", to,
                        from, c->sequences);
    return DMS_OK;
}

dms_status dms_paged_lend(const dms_paged *cache, int from, int to, int last)
{
    DMS_TRY(check_fork(cache, from, to));
    return RUN_ON(cache->device, NULL, paged_lend, cache, from, to, last);
}

dms_status dms_paged_copy(const dms_paged *cache, int from, int to)
{
    DMS_TRY(check_fork(cache, from, to));
    return RUN_ON(cache->device, NULL, paged_copy, cache, from, to);
}

dms_status dms_paged_grow(const dms_paged *cache, int first, int count)
{
    if (first < 0 || count < 0 || first > cache->pages - count)
        return dms_fail(DMS_ERR_ARG, "pages %d to %d are added, %d exist", first, first + count,
                        cache->pages);
    return RUN_ON(cache->device, NULL, paged_grow, cache, first, count);
}

dms_status dms_paged_pack(const dms_paged *cache, int keep)
{
    if (keep < 0 || keep > cache->pages)
        return dms_fail(DMS_ERR_ARG, "%d pages are to be kept, %d exist", keep, cache->pages);
    return RUN_ON(cache->device, NULL, paged_pack, cache, keep);
}

dms_status dms_paged_weigh(const dms_paged *cache, const dms_paged_rows *rows, const dms_tensor *q,
                           const dms_paged_weights *weights)
{
    DMS_TRY(check_scored(cache, "attention received"));
    DMS_TRY(check_queries(cache, rows, q));
    return RUN_ON(cache->device, q, paged_weigh, cache, rows, q, weights);
}

dms_status dms_paged_pool(const dms_paged *cache, const dms_paged_rows *rows, int width,
                          int64_t last)
{
    DMS_TRY(check_scored(cache, "an average of scores"));
    DMS_TRY(check_paged(cache, rows, "", NULL, 0));
    if (width < 1 || width % 2 == 0)
        return dms_fail(DMS_ERR_ARG, "width is %d, expected an odd number of slots", width);
    if (last < 0)
        return dms_fail(DMS_ERR_ARG, "the last %" PRId64 " slots are left out, expected 0 or more",
                        last);
    return RUN_ON(cache->device, rows->positions, paged_pool, cache, rows, width, last);
}

dms_status dms_paged_mark(const dms_paged *cache, const dms_paged_rows *rows,
                          const dms_paged_kept *kept)
{
    const int64_t sequences = cache->sequences;
    DMS_TRY(check_paged(cache, rows, "", NULL, 0));
    DMS_TRY(expect_shape("last", kept->last, cache->device, DMS_I32, 1, sequences));
    DMS_TRY(expect_shape("best", kept->best, cache->device, DMS_I32, 1, sequences));
    if (kept->best)
        DMS_TRY(check_scored(cache, "the choice of the best"));
    return RUN_ON(cache->device, rows->positions, paged_mark, cache, rows, kept);
}

static dms_status check_bounded(const dms_paged *c)
{
    if (c->bounded)
        return DMS_OK;
    return dms_fail(DMS_ERR_ARG, "bounds want a cache whose pages are bounded");
}

dms_status dms_paged_bound(const dms_paged *cache, const dms_paged_rows *rows)
{
    DMS_TRY(check_bounded(cache));
    DMS_TRY(check_paged(cache, rows, "", NULL, 0));
    return RUN_ON(cache->device, rows->positions, paged_bound, cache, rows);
}

/* Units of two caches of one shape, and lists of their own. */
static dms_status check_chosen(const dms_paged *chosen, const dms_paged *c)
{
    if (chosen->device != c->device || chosen->sequences != c->sequences ||
        chosen->layers != c->layers || chosen->groups != c->groups ||
        chosen->unit_pages != c->unit_pages)
        return dms_fail(DMS_ERR_SHAPE,
                        "the read set is of [%d, %d, %d] units of %d pages, the cache of [%d, %d, "
                        "%d] of %d",
                        chosen->sequences, chosen->layers, chosen->groups, chosen->unit_pages,
                        c->sequences, c->layers, c->groups, c->unit_pages);
    if (chosen->unit_list == c->unit_list || chosen->live == c->live)
        return dms_fail(DMS_ERR_ARG, "the read set has the lists of its cache, expected its own");
    return DMS_OK;
}

dms_status dms_paged_choose(const dms_paged *chosen, const dms_paged *cache,
                            const dms_paged_rows *rows, const dms_tensor *q, int pages)
{
    DMS_TRY(check_bounded(cache));
    DMS_TRY(check_queries(cache, rows, q));
    DMS_TRY(check_chosen(chosen, cache));
    if (q->shape[1] != 1)
        return dms_fail(DMS_ERR_SHAPE, "q has %" PRId64 " tokens a row, expected 1", q->shape[1]);
    if (pages < 1)
        return dms_fail(DMS_ERR_ARG, "%d pages are to be read, expected 1 or more", pages);
    return RUN_ON(cache->device, q, paged_choose, chosen, cache, rows, q, pages);
}

dms_status dms_paged_turn(const dms_paged *cache, const dms_paged_rows *rows, dms_tensor *kept,
                          const dms_tensor *k, const dms_tensor *table)
{
    const int64_t units = (int64_t)cache->sequences * cache->layers * cache->groups;
    const int64_t width = cache->head_dim;
    DMS_TRY(check_paged(cache, rows, "k", k, cache->groups * width));
    DMS_TRY(expect_rank3("kept", kept));
    DMS_TRY(expect_shape("kept", kept, cache->device, DMS_F32, 3, units, kept->shape[1], width));
    DMS_TRY(expect_shape("table", table, cache->device, DMS_F32, 2, table->shape[0], width));
    if (width % 2)
        return dms_fail(DMS_ERR_SHAPE, "heads have %" PRId64 " channels, RoPE wants an even number",
                        width);
    return RUN_ON(cache->device, k, paged_turn, cache, rows, kept, k, table);
}
