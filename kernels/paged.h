/* The freed KV cache in device memory: pages of one pool, and the ops that change and read it.
 *
 * A unit is one (sequence, layer, KV head). It lists ceil(live/P) pages; slot i lies in place i % P
 * of its page i / P. The first borrowed[unit] of them belong to another unit, all others to it.
 * Slots hold keys after RoPE, in any order. A slot knows the position of its token and whether the
 * token is evicted by the decision that followed it; a ring finds the slot of each of the last
 * window + 1 tokens. Everything lives in device memory, so that a step needs no decision of the
 * host; the host only adds and takes away slabs of pages between steps.
 *
 * Letters: S sequences, L, G, R, E as in ops.h, P slots of a page, n sequences of a batch, T tokens
 * of each, U = S*L*G units in the order (sequence, layer, head). */
#ifndef DMS_PAGED_H
#define DMS_PAGED_H

#include <stdbool.h>

#include "kernels/portable.h"
#include "kernels/tensor.h"

DMS_BEGIN_C

/* Totals that the ops keep. */
enum {
    DMS_PAGED_LIVE,    /* live slots of all units; a borrowed one counts where it was lent */
    DMS_PAGED_PEAK,    /* the most there have been at one time */
    DMS_PAGED_FREE,    /* pages on the stack of free pages */
    DMS_PAGED_READS,   /* slots read by decoded tokens: kv_reads of method.md section 5 */
    DMS_PAGED_VISIBLE, /* pairs of query and visible slot in prefill, once a KV head */
    DMS_PAGED_BOUNDS,  /* page bounds read by decoded tokens: each as large as one slot */
    DMS_PAGED_COUNTERS
};

/* The caller owns all memory. Pointers are to device memory. */
typedef struct {
    dms_device *device;
    dms_dtype dtype; /* of stored keys and values: f32 or bf16 */
    int sequences, layers, groups, head_dim;
    int page_slots;       /* P, a multiple of 16 */
    int slab_pages;       /* pages of a slab */
    int pages;            /* pages that exist: those of all slabs */
    int unit_pages;       /* the most pages of one unit */
    bool scored;          /* slots carry a score (kernels/paged_rank.h) */
    bool bounded;         /* pages carry the bounds of their keys (kernels/paged_rank.h) */
    int64_t window;       /* >= 0 */
    int64_t ring_entries; /* min(window + 1, longest text) */
    void **slabs;         /* [pages/slab_pages] */
    int32_t *free_pages;  /* [pages], a stack of page numbers */
    int32_t *unit_list;   /* [U, unit_pages], page numbers */
    int32_t *live;        /* [U], slots in use */
    int32_t *borrowed;    /* [U], pages at the head of the list that another unit has lent */
    int32_t *ring;        /* [U, ring_entries], slot of token t at t % ring_entries */
    int64_t *counters;    /* [DMS_PAGED_COUNTERS] */
} dms_paged;

/* The places of one page. Keys are held transposed: a query's product with all slots then runs
 * along contiguous memory. */
typedef struct {
    void *k;        /* [E, P] */
    void *v;        /* [P, E padded to 16]; the padding is zero */
    int32_t *at;    /* [P]: 2*position + evicted */
    int32_t *owner; /* [2]: unit, index in its list; unit -1 in a free page */
    float *score;   /* [P], 0 in a new slot, moves with it; where the cache is scored */
    void *bounds;   /* [2, E]: least and greatest of each channel of the keys; where bounded */
} dms_page;

DMS_INLINE int64_t dms_page_padded(const dms_paged *c)
{
    return ((int64_t)c->head_dim + 15) / 16 * 16;
}

DMS_INLINE size_t dms_page_bytes(const dms_paged *c)
{
    const size_t slots = (size_t)c->page_slots, one = dms_dtype_bytes(c->dtype);
    const size_t wide = (size_t)c->head_dim + (size_t)dms_page_padded(c);
    const size_t score = c->scored ? slots * sizeof(float) : 0;
    const size_t bounds = c->bounded ? 2 * (size_t)c->head_dim * one : 0;
    const size_t index = slots * sizeof(int32_t) + 2 * sizeof(int32_t);
    return (slots * wide * one + index + score + bounds + 63) / 64 * 64;
}

DMS_INLINE dms_page dms_page_at(const dms_paged *c, int32_t number)
{
    const size_t slots = (size_t)c->page_slots, one = dms_dtype_bytes(c->dtype);
    char *base = (char *)c->slabs[number / c->slab_pages] +
                 (size_t)(number % c->slab_pages) * dms_page_bytes(c);
    char *v = base + slots * (size_t)c->head_dim * one;
    char *at = v + slots * (size_t)dms_page_padded(c) * one;
    int32_t *owner = (int32_t *)at + slots;
    float *score = (float *)(owner + 2);
    void *bounds = score + (c->scored ? slots : 0);
    const dms_page page = {base, v, (int32_t *)at, owner, score, bounds};
    return page;
}

/* Which rows of a batch an op works on. positions: [n, T], i32, consecutive in a row; each row
 * continues its sequence. No sequence appears twice. */
typedef struct {
    const dms_tensor *sequences; /* [n], i32, each in [0, S) */
    const dms_tensor *positions;
    int layer;
    bool prefill; /* counts as VISIBLE, not as READS; chunks of T > 1 are always prefill */
} dms_paged_rows;

/* Enters T tokens of each row. First the decision z > 0 of a token becomes the eviction of the
 * token before it (method.md section 4). T = 1: the new token takes the slot of the token window +
 * 1 steps back if that one is evicted, else a new slot. T > 1: new slots only; attend, then
 * compact. k, v: [n, T, G*E]   z: [n, G, T], NULL: nothing is evicted. When free pages run out,
 * which the caller prevents: DMS_ERR_NOMEM, on a GPU a kernel that fails. */
typedef dms_status dms_paged_append_fn(const dms_paged *cache, const dms_paged_rows *rows,
                                       const dms_tensor *k, const dms_tensor *v,
                                       const dms_tensor *z);

/* Attention of the tokens entered last over the live slots, under the law of visibility (T = 1: all
 * live slots are visible).   q, o: [n, T, H*E]; o may be q. */
typedef dms_status dms_paged_attention_fn(dms_tensor *o, const dms_paged *cache,
                                          const dms_paged_rows *rows, const dms_tensor *q);

/* Drops what the law hides from the last token of each row and from all later ones; slots close
 * up, and pages left empty are free at once. */
typedef dms_status dms_paged_compact_fn(const dms_paged *cache, const dms_paged_rows *rows);

/* Drops all slots of one sequence. Pages that it borrowed stay where they were lent. */
typedef dms_status dms_paged_drop_fn(const dms_paged *cache, int sequence);

/* Begins a fork: the empty sequence `to` borrows of each unit of `from`, whose last token lies at
 * position `last`, the leading pages that are settled: full of slots whose tokens are not evicted
 * and, for a query at `last`, late. Nothing writes to such a page any more, in either sequence:
 *   - a decision marks the token before it, and the step rule overwrites the one window + 1 steps
 *     back: at `last` + 1 and later these are tokens that are not late at `last`;
 *   - what is late and not evicted is visible to all queries to come, so compaction keeps it. Holes
 *     lie behind settled pages then, and so do the slots that fill them, which are the unit's last;
 *   - new slots, the scores and bounds that begin with them, come after them.
 * dms_paged_mark breaks this: where slots are marked, ranked by score or turned (paged_rank.h),
 * nothing is to be lent. Slots outlive what borrowed them: until `to` is dropped, `from` is not to
 * be, and pages are not to be packed. */
typedef dms_status dms_paged_lend_fn(const dms_paged *cache, int from, int to, int last);

/* Ends a fork: `to` gets copies, in pages of its own, of the slots of `from` that it lacks: all, or
 * those behind the pages it was lent. It then holds the same tokens in the same slots, and has the
 * same ring. When free pages run out, which the caller prevents: as in append. */
typedef dms_status dms_paged_copy_fn(const dms_paged *cache, int from, int to);

/* Declares pages [first, first + count) of new slabs free. */
typedef dms_status dms_paged_grow_fn(const dms_paged *cache, int first, int count);

/* Moves pages so that those in use are the first ones, and forgets free pages from `keep` on, which
 * is not below the number in use (DMS_ERR_ARG, on a GPU a kernel that fails). Slots do not change.
 * Not while a page is lent: only its owner's list would follow. */
typedef dms_status dms_paged_pack_fn(const dms_paged *cache, int keep);

DMS_END_C
#endif
