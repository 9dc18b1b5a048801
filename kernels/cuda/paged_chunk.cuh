/* Attention of chunks over the paged cache, what its two forms share: tasks of blocks, where rows
 * lie, and how many queries of a block see a slot. */
#ifndef DMS_CUDA_PAGED_CHUNK_CUH
#define DMS_CUDA_PAGED_CHUNK_CUH

#include "kernels/cuda/paged.cuh"

/* A unit has T*R rows: row t*R + r is query t of head r, so that heads share its keys and values. A
 * block takes one tile of rows. */
typedef struct {
    dms_paged_batch b;
    const void *q; /* [n, T, H*E], f32 or its copy in bf16 */
    float *o;      /* [n, T, H*E] */
    int reps;      /* R */
    int tiles;     /* tiles of rows of a unit */
    float scale;   /* log2(e)/sqrt(E): softmax in powers of two */
} dms_paged_chunk;

/* What a block works on. */
typedef struct {
    int64_t number;       /* of the unit in the batch */
    int64_t unit, offset; /* offset: elements from q to row 0 of this unit */
    int row, rows;        /* the first row, and how many there are */
    int position;         /* of query 0 */
    int live;
} dms_paged_task;

/* As dms_cuda_paged_attention, for tiles of rows_of rows. */
static inline dms_paged_chunk dms_paged_chunk_of(dms_tensor *o, const dms_paged *cache,
                                                 const dms_paged_rows *rows, const dms_tensor *q,
                                                 int rows_of)
{
    dms_paged_chunk d;
    d.b = dms_paged_batch_of(cache, rows);
    d.q = q->data;
    d.o = (float *)o->data;
    d.reps = (int)(dms_cols(q) / ((int64_t)cache->groups * cache->head_dim));
    d.tiles = (d.b.tokens * d.reps + rows_of - 1) / rows_of;
    d.scale = (float)(1.4426950408889634 / sqrt((double)cache->head_dim));
    return d;
}

/* Task `index` of units*tiles; the rows that see most come first. */
static __device__ __forceinline__ dms_paged_task dms_paged_task_of(const dms_paged_chunk *d,
                                                                   unsigned index, int rows_of)
{
    const dms_paged *c = &d->b.c;
    const int64_t i = index / (unsigned)d->tiles, row = i / c->groups, group = i % c->groups;
    const int tile = d->tiles - 1 - (int)(index % (unsigned)d->tiles);
    const int left = d->b.tokens * d->reps - tile * rows_of;
    dms_paged_task x;
    x.number = i;
    x.unit = dms_paged_unit(&d->b, i);
    x.offset = (row * d->b.tokens * c->groups + group) * d->reps * c->head_dim;
    x.row = tile * rows_of;
    x.rows = left < rows_of ? left : rows_of;
    x.position = d->b.positions[row * d->b.tokens];
    x.live = c->live[x.unit];
    return x;
}

/* Where row m of a unit begins, in elements from its row 0. */
static __device__ __forceinline__ int64_t dms_paged_row_at(const dms_paged_chunk *d, int m)
{
    const int64_t heads = (int64_t)d->b.c.groups * d->reps;
    return (m / d->reps * heads + m % d->reps) * d->b.c.head_dim;
}

/* How many of the queries [first, last], numbers in the chunk, see a slot. */
static __device__ __forceinline__ int dms_paged_seen_by(const dms_paged_task *x, int64_t window,
                                                        int32_t at, int first, int last)
{
    const int64_t key = (at >> 1) - x->position, gone = key + window;
    const int64_t from = key > first ? key : first;
    const int64_t to = (at & 1) && gone < last ? gone : last;
    return to < from ? 0 : (int)(to - from + 1);
}

/* Adds the pairs that the threads of a warp have met to the counter. */
static __device__ __forceinline__ void dms_paged_count_visible(const dms_paged *c, int64_t visible)
{
    const int lane = (int)threadIdx.x % DMS_WARP;
    for (int step = DMS_WARP / 2; step > 0; step /= 2)
        visible += __shfl_xor_sync(DMS_ALL_LANES, visible, step);
    if (lane == 0 && visible)
        dms_paged_count(c, DMS_PAGED_VISIBLE, visible);
}

/* The form on tensor cores: pages in bf16, heads of 64, 96 or 128 channels. In
 * paged_chunk_mma.cu. */
dms_status dms_cuda_paged_chunk_mma(dms_tensor *o, const dms_paged *cache,
                                    const dms_paged_rows *rows, const dms_tensor *q);

#endif
