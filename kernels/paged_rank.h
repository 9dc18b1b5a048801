/* Ranking the slots of the paged cache: what policies need that drop slots by the attention they
 * received, or that read only some pages. Letters as in kernels/paged.h; r = a row of the batch.
 *
 * A slot is dropped in two steps: dms_paged_mark sets the evicted bit of what is not kept, and
 * dms_paged_compact drops it. Under window 0, which these policies run with, the newest token is
 * dropped by the next token that takes its slot (method.md section 4). */
#ifndef DMS_PAGED_RANK_H
#define DMS_PAGED_RANK_H

#include "kernels/paged.h"

DMS_BEGIN_C

typedef struct {
    int64_t from; /* queries at positions before it are not counted */
    bool add;     /* to the score; else the score is replaced, which wants one counted query */
    bool across;  /* every group gets the mean over all H heads; else each the sum of its own R */
} dms_paged_weights;

/* Attention received: with p[h, t, slot] the probabilities of dms_paged_attention for the tokens
 * entered last,
 *     score[g, slot] (+)= sum over counted t of sum over h in group g of p[h, t, slot],
 * or of the mean over all heads h (`across`, which wants all groups of a row to hold the same
 * tokens in the same slots). A slot that a query does not see receives 0 from it. To be called
 * between attention and compaction, on a cache that is scored.   q: [n, T, H*E] as in attention.
 * Sums are of f32, in an order that depends on nothing but T and the number of live slots. */
typedef dms_status dms_paged_weigh_fn(const dms_paged *cache, const dms_paged_rows *rows,
                                      const dms_tensor *q, const dms_paged_weights *weights);

/* score[i] = (sum over i - width/2 <= j <= i + width/2 of score[j])/width for the slots i in
 * [0, live - last); a j outside of these counts as 0. width odd, last >= 0. Wants the slots in the
 * order of their tokens, which they are in while nothing was dropped. The average of SnapKV (arXiv
 * 2404.14469). */
typedef dms_status dms_paged_pool_fn(const dms_paged *cache, const dms_paged_rows *rows, int width,
                                     int64_t last);

/* What is kept of a sequence of `tokens` tokens, the last of the batch's positions + 1: token i
 * where i < first, or i >= tokens - last[sequence], or it is among the best[sequence] of the others
 * that live, by score; of equal scores (0 and -0 are) the later token is better. The newest token
 * competes like others where last is 0. */
typedef struct {
    int64_t first;
    const dms_tensor *last; /* [S], i32, >= 0 */
    const dms_tensor *best; /* [S], i32, >= 0; NULL: none, and the cache need not be scored */
} dms_paged_kept;

/* Sets the evicted bit of what is not kept of the rows' sequences. */
typedef dms_status dms_paged_mark_fn(const dms_paged *cache, const dms_paged_rows *rows,
                                     const dms_paged_kept *kept);

/* Extends the bounds of pages by the keys entered last; a page's first slot begins them. For a
 * cache that is bounded and never drops a slot. */
typedef dms_status dms_paged_bound_fn(const dms_paged *cache, const dms_paged_rows *rows);

/* The read set of Quest (arXiv 2406.10774): chosen->unit_list and chosen->live, the caller's, no
 * lists of the cache but of their shapes, get for each unit of the batch the pages - 1 pages with
 * the greatest
 *     bound = max over heads h of the group of
 *             sum over e of max(q[h,e]*least[e], q[h,e]*greatest[e])
 * of all but its last page, and then its last page: a cache whose attention reads no more. Of equal
 * bounds the later page is taken. Pages are listed in the order of the cache. All pages where
 * there are no more than `pages`. Counts the bounds of all pages but the last as BOUNDS; where
 * nothing is left out it reads and counts none.   q: [n, 1, H*E], after RoPE   pages >= 1 */
typedef dms_status dms_paged_choose_fn(const dms_paged *chosen, const dms_paged *cache,
                                       const dms_paged_rows *rows, const dms_tensor *q, int pages);

/* Turns the keys of the first tokens so that they seem to lie next to the others: StreamingLLM
 * (arXiv 2309.17453) numbers the cache's keys by their index in it. For a unit whose `live` slots
 * end with token `tokens` - 1, the key of token i < kept->shape[1] is that with RoPE at position
 * i + tokens - live. kept remembers those keys as they were entered, so that rounding does not
 * add up: tokens of the chunk entered last that lie before kept->shape[1] are copied from k first.
 * Wants the slots of these tokens to be the unit's first, in order.
 *   kept: [U, first, E], f32   k: [n, T, G*E] as appended   table: [positions, E], f32: the RoPE
 *   table of dms_rope (dms_rope_spec). Angles add, so the key turns by row tokens - live of it,
 * which is to exist (DMS_ERR_ARG on the CPU). */
typedef dms_status dms_paged_turn_fn(const dms_paged *cache, const dms_paged_rows *rows,
                                     dms_tensor *kept, const dms_tensor *k,
                                     const dms_tensor *table);

DMS_END_C
#endif
