/* What the forward and backward kernels of attention share: their parameters, where heads lie, and
 * the law of visibility on tiles of scores. */
#ifndef DMS_CUDA_ATTENTION_CUH
#define DMS_CUDA_ATTENTION_CUH

#include <math.h>

#include "kernels/cuda/kernel.cuh"
#include "kernels/visibility.h"

/* dms_attention_in as kernels get it, by value. q, k, v are f32 as in ops.h, or their copies in
 * bf16 of the same layout: a kernel casts them to the type it is written for. */
typedef struct {
    const void *q;     /* [B, T, H*E] */
    const void *k, *v; /* [B, T, G*E] */
    const float *bias; /* [B, G, T], or NULL */
    int batch, tokens, heads, groups, width;
    int window;  /* at most T; T where there is no bias: nothing is ever late then */
    float scale; /* 1/sqrt(E) */
} dms_attention_args;

/* DMS_ERR_SHAPE where a size is beyond the 32 bits that kernels count tokens in. */
static inline dms_status dms_attention_args_of(dms_attention_args *out, const dms_attention_in *in)
{
    const int64_t tokens = in->q->shape[1], width = in->head_dim, batch = in->q->shape[0];
    if (tokens > INT32_MAX / 2 || batch > INT32_MAX || dms_cols(in->q) > INT32_MAX)
        return dms_fail(DMS_ERR_SHAPE, "q has %lld tokens, expected at most %d", (long long)tokens,
                        INT32_MAX / 2);
    const dms_attention_args args = {
        in->q->data,
        in->k->data,
        in->v->data,
        in->bias ? (const float *)in->bias->data : NULL,
        (int)batch,
        (int)tokens,
        (int)(dms_cols(in->q) / width),
        (int)(dms_cols(in->k) / width),
        (int)width,
        (int)(in->bias && in->window < tokens ? in->window : tokens),
        1.0f / sqrtf((float)width),
    };
    *out = args;
    return DMS_OK;
}

DMS_BEGIN_C

/* Queues the forward pass with all products in f32; q, k, v are f32. DMS_ERR_SHAPE where E > 256.
 * In attention_plain.cu. */
dms_status dms_cuda_attention_plain(dms_device *dev, float *o, float *lse,
                                    const dms_attention_args *args);

DMS_END_C

/* The share of one block: one query head and one tile of its queries (or keys). */
typedef struct {
    int b, h, g, tile;
} dms_attention_unit;

/* The unit of block x of B*H*tiles. The R heads of a group are neighbours and the tiles of a group
 * follow each other, last tile first: R blocks read the same keys at the same time, and the keys of
 * the few groups under way stay in L2. (Rows of one block from several heads would read no less:
 * the number of blocks and the keys each of them sees stay the same.) Last first: under the causal
 * law the last queries have the most keys, and the short blocks fill the gaps at the end. */
static __device__ __forceinline__ dms_attention_unit
dms_attention_unit_of(const dms_attention_args *a, int tiles, unsigned x)
{
    const int per_group = a->heads / a->groups, rest = (int)(x / (unsigned)per_group);
    const int bg = rest / tiles, g = bg % a->groups;
    const dms_attention_unit unit = {bg / a->groups, g * per_group + (int)(x % (unsigned)per_group),
                                     g, tiles - 1 - rest % tiles};
    return unit;
}

static inline unsigned dms_attention_units(const dms_attention_args *a, int tiles)
{
    return (unsigned)((int64_t)a->batch * a->heads * tiles);
}

static inline int dms_attention_tiles(const dms_attention_args *a, int rows)
{
    return (a->tokens + rows - 1) / rows;
}

/* Elements from one token to the next of q, o, dout, dq; and of k, v, dk, dv. */
static __device__ __forceinline__ int64_t dms_attention_q_row(const dms_attention_args *a)
{
    return (int64_t)a->heads * a->width;
}

static __device__ __forceinline__ int64_t dms_attention_kv_row(const dms_attention_args *a)
{
    return (int64_t)a->groups * a->width;
}

/* Elements before token t of head h in [B, T, H*E]; of group g in [B, T, G*E]. */
static __device__ __forceinline__ int64_t dms_attention_q_at(const dms_attention_args *a, int b,
                                                             int t, int h)
{
    return (((int64_t)b * a->tokens + t) * a->heads + h) * a->width;
}

static __device__ __forceinline__ int64_t dms_attention_kv_at(const dms_attention_args *a, int b,
                                                              int t, int g)
{
    return (((int64_t)b * a->tokens + t) * a->groups + g) * a->width;
}

/* Elements before token t of head h in lse [B, H, T]; of group g in bias [B, G, T]. */
static __device__ __forceinline__ int64_t dms_attention_lse_at(const dms_attention_args *a, int b,
                                                               int t, int h)
{
    return ((int64_t)b * a->heads + h) * a->tokens + t;
}

static __device__ __forceinline__ int64_t dms_attention_bias_at(const dms_attention_args *a, int b,
                                                                int t, int g)
{
    return ((int64_t)b * a->groups + g) * a->tokens + t;
}

/* What the law adds to the score of one pair (method.md section 3). bias: the key's, any value
 * where there is none, because nothing is late then. A key past the end is in every query's future,
 * so tiles that reach over T need nothing else. */
static __device__ __forceinline__ float dms_attention_mask(int query, int key, int window,
                                                           float bias)
{
    if (!dms_is_visible(query, key, window, false))
        return -INFINITY;
    return dms_is_late(query, key, window) ? bias : 0.0f;
}

/* The law on a tile: all keys in the future of all queries; all inside the window of all; all late,
 * so that each takes its bias from every query; or it depends on the pair. */
typedef enum { DMS_KEYS_UNSEEN, DMS_KEYS_INSIDE, DMS_KEYS_LATE, DMS_KEYS_MIXED } dms_attention_keys;

/* Queries [query, query + queries) and keys [key, key + keys), both counts >= 1; queries past the
 * end may be left out of the count. */
static __device__ __forceinline__ dms_attention_keys dms_attention_keys_of(int query, int queries,
                                                                           int key, int keys,
                                                                           int window)
{
    const int last_query = query + queries - 1, last_key = key + keys - 1;
    if (key > last_query)
        return DMS_KEYS_UNSEEN;
    if (last_key <= query && !dms_is_late(last_query, key, window))
        return DMS_KEYS_INSIDE;
    return dms_is_late(query, last_key, window) ? DMS_KEYS_LATE : DMS_KEYS_MIXED;
}

/* Whether each of the `keys` keys that this group's `bias` begins with is evicted for good (-inf).
 * Called by whole warps; every warp of the block gets the same answer without a barrier. With
 * DMS_KEYS_LATE it means that no query of the tile sees any of its keys. */
static __device__ __forceinline__ bool dms_attention_evicted(const float *bias, int keys)
{
    bool evicted = true;
    for (int i = (int)threadIdx.x % DMS_WARP; i < keys; i += DMS_WARP)
        evicted = evicted && bias[i] == -INFINITY;
    return __all_sync(DMS_ALL_LANES, evicted);
}

#endif
