/* The freed KV cache of a model: owns the pool of pages, admits sequences, counts what is used. */
#ifndef DMS_CACHE_H
#define DMS_CACHE_H

#include "kernels/ops.h"

typedef struct dms_cache dms_cache;

typedef struct {
    dms_device *device;
    int layers, groups, head_dim; /* L, G, E */
    int64_t window;               /* >= 0; may exceed the context */
    int64_t context;              /* the longest text of a sequence, in tokens */
    int max_sequences;
    dms_dtype dtype;   /* of stored keys and values: f32 or bf16 */
    int page_slots;    /* a multiple of 16; 0: 16 */
    size_t slab_bytes; /* what the pool grows by, about; 0: one page a layer and head */
    bool scored;       /* slots carry a score, for policies that rank them */
    bool bounded;      /* pages carry the bounds of their keys, for policies that choose pages */
} dms_cache_options;

/* What the cache counted since it was opened; sequences are those admitted now. Slots that one
 * sequence lends to others count once, and so do those that it would lend if nothing was evicted;
 * slots and pages of a sequence that was released while it lends still count. Reads count for each
 * sequence that reads. */
typedef struct {
    int64_t tokens;      /* of all sequences */
    int64_t live_slots;  /* over sequences, layers and heads */
    int64_t dense_slots; /* what they would be if nothing was evicted: tokens*L*G, but for what is
                            lent */
    int64_t peak_slots;  /* the most live slots at one time */
    int64_t dense_peak_slots; /* the most dense slots at one time */
    int64_t kv_reads;         /* slots read by decode steps (method.md section 5) */
    int64_t dense_reads;      /* what a dense cache would have read in the same steps */
    int64_t bound_reads;      /* page bounds read by decode steps, each as large as a slot */
    int64_t prefill_reads;  /* visible pairs of query and slot in prefill, over layers and heads */
    int64_t pages, slabs;   /* pages in use; slabs allocated */
    size_t used_bytes;      /* of the pages in use */
    size_t allocated_bytes; /* of the slabs */
    size_t peak_bytes;      /* the most bytes of slabs at one time */
    size_t index_bytes;     /* page lists, rings, counters: do not grow with the text */
    size_t bytes_a_slot;    /* of keys and values of one slot in this storage type */
} dms_cache_stats;

/* Live slots of one sequence in one layer. */
typedef struct {
    int32_t min, max;
    double mean;
} dms_cache_layer;

/* The caller ends it with dms_cache_close. DMS_ERR_ARG for sizes out of range; DMS_ERR_NOMEM. */
dms_status dms_cache_open(dms_cache **out, const dms_cache_options *options);
/* Ends all sequences and gives all memory back to the device. */
void dms_cache_close(dms_cache *cache);

/* A new, empty sequence; its number is in [0, max_sequences). DMS_ERR_NOMEM when all are taken. */
dms_status dms_cache_admit(dms_cache *cache, int *sequence);
/* Sequences that can be admitted or forked now. */
int dms_cache_vacant(const dms_cache *cache);
/* A new sequence that holds what `from` holds, slot for slot. Where `share`, it borrows the pages
 * in which no slot of `from` can change any more (dms_paged_lend: not for policies that mark, rank
 * or turn slots), and copies the others. Both can go on. DMS_ERR_ARG where `from` is not there or
 * not whole; DMS_ERR_NOMEM when all sequences are taken or the device has no memory for more pages;
 * after an error nothing has changed. */
dms_status dms_cache_fork(dms_cache *cache, int from, bool share, int *sequence);
/* Ends a sequence: its pages serve others, slabs left over go back to the device. While a sequence
 * is there that was forked from it and shares, its pages and its number stay taken. */
dms_status dms_cache_release(dms_cache *cache, int sequence);
/* Tokens entered so far; -1 where there is no such sequence. */
int64_t dms_cache_tokens(const dms_cache *cache, int sequence);
/* False after a pass over the sequence failed half-way: it can only be released. */
bool dms_cache_is_whole(const dms_cache *cache, int sequence);

/* For the ops of kernels/paged.h and kernels/paged_rank.h. */
const dms_paged *dms_cache_paged(const dms_cache *cache);
/* Sees to it that `tokens` tokens can be entered for each of n sequences into `layer`, or into all
 * layers where it is -1. DMS_ERR_NOMEM when the device has no memory for more pages. */
dms_status dms_cache_reserve(dms_cache *cache, const int32_t *sequences, int n, int64_t tokens,
                             int layer);
/* Counts `tokens` tokens that all layers have entered for each of n sequences, in a decode step or
 * in prefill. */
dms_status dms_cache_commit(dms_cache *cache, const int32_t *sequences, int n, int64_t tokens,
                            bool decode);
/* Moves pages together and gives slabs that this frees back to the device; not while pages are
 * lent. */
dms_status dms_cache_trim(dms_cache *cache);

dms_status dms_cache_measure(dms_cache_stats *out, const dms_cache *cache);
/* From here on the peaks are counted anew: what is live and allocated now is the first of them. */
dms_status dms_cache_reset_peak(dms_cache *cache);
/* layers: [L]. DMS_ERR_ARG where there is no such sequence. */
dms_status dms_cache_measure_layers(dms_cache_layer *layers, dms_cache *cache, int sequence);

/* Cache CR of method.md section 5; 1 for an empty cache. */
static inline double dms_cache_ratio(const dms_cache_stats *s)
{
    return s->live_slots > 0 ? (double)s->dense_slots / (double)s->live_slots : 1.0;
}

#endif
