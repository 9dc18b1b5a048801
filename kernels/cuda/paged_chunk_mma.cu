/* Attention of chunks over the paged cache on tensor cores, after FlashAttention-2 (Dao 2023):
 * pages in bf16, heads of 64, 96 or 128 channels.
 *
 * A block of 4 warps takes 64 or 128 rows of one unit and walks over its slots, SPAN of them at a
 * time: first each thread looks at 8 slots, which tells the tiles that no row sees, and those that
 * all rows see whole; then tiles of keys and values come out of the pages in pieces of 16 bytes,
 * the next one while one is multiplied. Pages hold keys as [E, P], so that a tile of keys is the
 * second operand of Q K^T as it lies. Where rows are too few for all multiprocessors a unit is cut
 * into parts, as in decode.
 *
 * q and the weights of values are rounded to bf16; scores, their sums and those of values are f32.
 * So operands that bf16 holds leave an error of 2^-9 of the values. */
#include <float.h>

#include "kernels/cuda/gemm.h"
#include "kernels/cuda/mma_softmax.cuh"
#include "kernels/cuda/paged_chunk.cuh"

enum {
    WARPS = 4,
    THREADS = WARPS * DMS_WARP,
    PIECE = 8,              /* slots that lie side by side in one page for sure: 16 bytes of keys */
    SPAN = THREADS * PIECE, /* slots that a block looks at together */
    PART = 512,             /* the fewest slots of a part of a unit that is full */
    UNSEEN = INT32_MAX - 1  /* `at` of a slot that does not exist: after every query */
};

#define ROWS_OF(stack) (WARPS * 16 * (stack))
/* Slots of a tile: scores and output of a wide head share the registers of a thread. */
#define KEYS_OF(width) ((width) > 64 ? 32 : 64)

typedef struct {
    dms_paged_chunk c; /* its q is in bf16 */
    float *cells;      /* as dms_paged_merge; NULL where there is one part */
    int splits;
    int cell; /* floats */
} work;

/* Shared memory of a block, STACK 16-row tiles a warp. */
template <int WIDTH, int STACK> struct places {
    dms_bf16 q[ROWS_OF(STACK) * DMS_TILE_STRIDE(WIDTH)];
    dms_bf16 k[2][WIDTH * DMS_TILE_STRIDE(KEYS_OF(WIDTH))]; /* [E, slots] */
    dms_bf16 v[2][KEYS_OF(WIDTH) * DMS_TILE_STRIDE(WIDTH)]; /* [slots, E] */
    int32_t at[SPAN];
    const dms_bf16 *keys[THREADS], *values[THREADS]; /* where pieces begin */
    unsigned seen[WARPS], whole[WARPS];              /* one bit a piece */
    dms_paged_task task;                             /* here, so that it takes no registers */
    int query[ROWS_OF(STACK)];                       /* positions of rows */
};

/* What a thread holds of its 2*STACK rows, as mma_softmax.cuh has it. */
template <int WIDTH, int STACK> struct running {
    float max[STACK][2], sum[STACK][2];
    float o[STACK][WIDTH / 8][4];
};

template <int WIDTH, int STACK>
static __device__ __forceinline__ void start(running<WIDTH, STACK> *r)
{
#pragma unroll
    for (int m = 0; m < STACK; m++) {
        r->max[m][0] = r->max[m][1] = -FLT_MAX;
        r->sum[m][0] = r->sum[m][1] = 0;
#pragma unroll
        for (int n = 0; n < WIDTH / 8; n++)
            r->o[m][n][0] = r->o[m][n][1] = r->o[m][n][2] = r->o[m][n][3] = 0;
    }
}

/* Begins the copy of the block's rows; those that do not exist become zero. */
template <int WIDTH, int STACK>
static __device__ __forceinline__ void load_queries(dms_bf16 *to, const dms_paged_chunk *d,
                                                    const dms_paged_task *x)
{
    const int pieces = WIDTH / 8;
    const dms_bf16 *q = (const dms_bf16 *)d->q + x->offset;
#pragma unroll 1
    for (int i = (int)threadIdx.x; i < ROWS_OF(STACK) * pieces; i += THREADS) {
        const int m = i / pieces, e = i % pieces * 8;
        const bool use = m < x->rows;
        dms_cp_async_16(to + m * DMS_TILE_STRIDE(WIDTH) + e,
                        q + dms_paged_row_at(d, x->row + (use ? m : 0)) + e, use);
    }
}

/* Looks at this thread's slots of the span from `first` on, of those before `end`: their positions,
 * their places, whether a row of the block sees one of them, whether each row sees all. Counts the
 * pairs of query and visible slot, once a KV head. */
template <int WIDTH, int STACK>
static __device__ void look(places<WIDTH, STACK> *at, const dms_paged_chunk *d,
                            const dms_paged_task *x, int first, int end)
{
    const dms_paged *c = &d->b.c;
    const int i = (int)threadIdx.x, slot = first + i * PIECE < end ? first + i * PIECE : first;
    const int count = end - first - i * PIECE, place = slot % c->page_slots;
    const int from = x->row / d->reps, last = (x->row + x->rows - 1) / d->reps;
    const int own = (x->row + d->reps - 1) / d->reps; /* the first query whose head 0 is here */
    const dms_page page = dms_paged_page(c, x->unit, slot);
    const int4 low = *(const int4 *)(page.at + place), high = *(const int4 *)(page.at + place + 4);
    const int32_t here[PIECE] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    int64_t visible = 0;
    int pairs = 0;

    at->keys[i] = (const dms_bf16 *)page.k + place;
    at->values[i] = (const dms_bf16 *)page.v + place * WIDTH;
#pragma unroll
    for (int j = 0; j < PIECE; j++) {
        const bool live = j < count;
        at->at[i * PIECE + j] = live ? here[j] : (int32_t)UNSEEN;
        if (live) {
            pairs += dms_paged_seen_by(x, c->window, here[j], from, last);
            visible += dms_paged_seen_by(x, c->window, here[j], own, last);
        }
    }
    const unsigned seen = __ballot_sync(DMS_ALL_LANES, pairs > 0);
    const unsigned whole = __ballot_sync(DMS_ALL_LANES, pairs == PIECE * (last - from + 1));
    if (i % DMS_WARP == 0) {
        at->seen[i / DMS_WARP] = seen;
        at->whole[i / DMS_WARP] = whole;
    }
    dms_paged_count_visible(c, visible);
}

/* The bits of a tile of `pieces` pieces: 4 or 8. */
static __device__ __forceinline__ unsigned bits_of(const unsigned *words, int tile, int pieces)
{
    const int bit = tile * pieces;
    return words[bit / DMS_WARP] >> bit % DMS_WARP & ((1u << pieces) - 1);
}

/* The first tile of the span from `tile` on that a row sees, or `tiles`. */
static __device__ __forceinline__ int next_tile(const unsigned *seen, int tile, int tiles,
                                                int pieces)
{
    while (tile < tiles && !bits_of(seen, tile, pieces))
        tile++;
    return tile;
}

/* Begins the copy of a tile of which `count` slots exist. Keys of others are not read; their values
 * become zero. */
template <int WIDTH, int STACK>
static __device__ __forceinline__ void load_tile(places<WIDTH, STACK> *at, int turn, int page_slots,
                                                 int tile, int count)
{
    enum { KEYS = KEYS_OF(WIDTH), COLUMNS = KEYS / PIECE, PIECES = WIDTH / 8 };
    const int base = tile * COLUMNS;
#pragma unroll 1 /* addresses worked out in advance cost too many registers */
    for (int i = (int)threadIdx.x; i < WIDTH * COLUMNS; i += THREADS) {
        const int e = i / COLUMNS, piece = i % COLUMNS;
        dms_cp_async_16(at->k[turn] + e * DMS_TILE_STRIDE(KEYS) + piece * PIECE,
                        at->keys[base + piece] + e * page_slots, piece * PIECE < count);
    }
#pragma unroll 1
    for (int i = (int)threadIdx.x; i < KEYS * PIECES; i += THREADS) {
        const int slot = i / PIECES, e = i % PIECES * 8;
        dms_cp_async_16(at->v[turn] + slot * DMS_TILE_STRIDE(WIDTH) + e,
                        at->values[base + slot / PIECE] + slot % PIECE * WIDTH + e, slot < count);
    }
    dms_cp_async_commit();
}

/* Scores of what the law hides become -infinity. at: [KEYS]; query: positions, from this thread's
 * first row on. */
template <int STACK, int KEYS>
static __device__ __forceinline__ void hide(float s[STACK][KEYS / 8][4], const int *query,
                                            const int32_t *at, int64_t window)
{
    at += (int)threadIdx.x % 4 * 2;
#pragma unroll
    for (int m = 0; m < 2 * STACK; m++) {
        const int position = query[8 * m];
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int j = 0; j < 2; j++) {
                const int32_t slot = at[n * 8 + j];
                if (!dms_is_visible(position, slot >> 1, window, slot & 1))
                    s[m / 2][n][m % 2 * 2 + j] = -INFINITY;
            }
    }
}

/* Meets the tiles of a span of `count` slots that has been looked at. idle: this warp has no row.
 */
template <int WIDTH, int STACK>
static __device__ __forceinline__ void meet_span(places<WIDTH, STACK> *at, running<WIDTH, STACK> *r,
                                                 const dms_paged_chunk *d, int count, bool idle)
{
    enum { KEYS = KEYS_OF(WIDTH), PIECES = KEYS / PIECE };
    const int row = (int)threadIdx.x / DMS_WARP * 16 * STACK, slots = d->b.c.page_slots;
    const int tiles = (min(count, (int)SPAN) + KEYS - 1) / KEYS;
    int tile = next_tile(at->seen, 0, tiles, PIECES);

    if (tile < tiles)
        load_tile(at, 0, slots, tile, count - tile * KEYS);
    for (int turn = 0; tile < tiles; turn ^= 1) {
        const int next = next_tile(at->seen, tile + 1, tiles, PIECES);
        float s[STACK][KEYS / 8][4];
        dms_cp_async_wait<0>();
        __syncthreads(); /* this tile is here, and nobody reads the other buffer any more */
        if (next < tiles)
            load_tile(at, turn ^ 1, slots, next, count - next * KEYS);
        if (!idle) {
            dms_softmax_scores<WIDTH, STACK, KEYS, true>(s, at->q, at->k[turn], row);
            if (bits_of(at->whole, tile, PIECES) != (1u << PIECES) - 1)
                hide<STACK, KEYS>(s, at->query + row + (int)threadIdx.x % DMS_WARP / 4,
                                  at->at + tile * KEYS, d->b.c.window);
            dms_softmax_soften<WIDTH, STACK, KEYS>(r->o, s, r->max, r->sum, d->scale);
            dms_softmax_add<WIDTH, STACK, KEYS>(r->o, s, at->v[turn]);
        }
        tile = next;
    }
}

/* One row to its cell, or as the result where there is one part. i: 0 or 2. */
template <int WIDTH>
static __device__ __forceinline__ void finish_row(const work *w, const dms_paged_task *x, int m,
                                                  const float o[WIDTH / 8][4], float max, float sum,
                                                  int i)
{
    const int column = (int)threadIdx.x % 4 * 2, unit_rows = w->c.b.tokens * w->c.reps;
    const int64_t split = x->number * w->splits + blockIdx.x % (unsigned)w->splits;
    float *to, share = 1;
    sum += __shfl_xor_sync(DMS_ALL_LANES, sum, 1);
    sum += __shfl_xor_sync(DMS_ALL_LANES, sum, 2);
    if (m >= x->rows)
        return;
    if (w->cells) {
        to = w->cells + (split * unit_rows + x->row + m) * w->cell;
        if (column == 0)
            *(float2 *)to = make_float2(max * w->c.scale, sum);
        to += 2;
    } else {
        to = w->c.o + x->offset + dms_paged_row_at(&w->c, x->row + m);
        share = 1.0f / sum;
    }
#pragma unroll
    for (int n = 0; n < WIDTH / 8; n++)
        *(float2 *)(to + n * 8 + column) = make_float2(o[n][i] * share, o[n][i + 1] * share);
}

/* Rows past the last one have positions too: nothing of theirs is written. */
template <int WIDTH, int STACK>
static __device__ void place_task(places<WIDTH, STACK> *at, const dms_paged_chunk *d,
                                  unsigned index)
{
    const dms_paged_task x = dms_paged_task_of(d, index, ROWS_OF(STACK));
    if (threadIdx.x == 0)
        at->task = x;
    if (threadIdx.x < ROWS_OF(STACK))
        at->query[threadIdx.x] = x.position + (x.row + (int)threadIdx.x) / d->reps;
    __syncthreads();
}

/* Grid: units*tiles*splits. */
template <int WIDTH, int STACK>
static __global__ void __launch_bounds__(THREADS, 2) chunk_mma_kernel(work w)
{
    enum { KEYS = KEYS_OF(WIDTH) };
    DMS_DYNAMIC_SHARED(unsigned char, shared);
    places<WIDTH, STACK> *at = (places<WIDTH, STACK> *)(void *)shared;
    const int split = (int)(blockIdx.x % (unsigned)w.splits);
    const int rows = (int)threadIdx.x / DMS_WARP * 16 * STACK;
    running<WIDTH, STACK> r;

    place_task(at, &w.c, blockIdx.x / (unsigned)w.splits);
    const dms_paged_task *x = &at->task;
    const int64_t tiles = (x->live + KEYS - 1) / KEYS;
    const int end = min((int)(tiles * (split + 1) / w.splits) * KEYS, x->live);
    load_queries<WIDTH, STACK>(at->q, &w.c, x);
    start(&r);
    for (int slot = (int)(tiles * split / w.splits) * KEYS; slot < end; slot += SPAN) {
        __syncthreads(); /* nobody reads the span before any more */
        look(at, &w.c, x, slot, end);
        __syncthreads();
        meet_span(at, &r, &w.c, end - slot, rows >= x->rows);
    }
    dms_cp_async_wait<0>(); /* of a block that has seen nothing */
#pragma unroll
    for (int m = 0; m < 2 * STACK; m++)
        finish_row<WIDTH>(&w, x, rows + (int)threadIdx.x % DMS_WARP / 4 + 8 * m, r.o[m / 2],
                          r.max[m / 2][m % 2], r.sum[m / 2][m % 2], m % 2 * 2);
}

template <int WIDTH, int STACK> static dms_status launch(const work *w)
{
    dms_device *dev = w->c.b.c.device;
    const size_t shared = sizeof(places<WIDTH, STACK>);
    DMS_CUDA_TRY(DMS_ALLOW_SHARED((chunk_mma_kernel<WIDTH, STACK>), shared));
    DMS_LAUNCH((chunk_mma_kernel<WIDTH, STACK>), (unsigned)(w->c.b.units * w->c.tiles * w->splits),
               THREADS, shared, dms_cuda_stream(dev), *w);
    return DMS_LAUNCHED();
}

static dms_status choose(const work *w, int stack)
{
    switch (w->c.b.c.head_dim) {
    case 64:
        return stack > 1 ? launch<64, 2>(w) : launch<64, 1>(w);
    case 96:
        return stack > 1 ? launch<96, 2>(w) : launch<96, 1>(w);
    default:
        return stack > 1 ? launch<128, 2>(w) : launch<128, 1>(w);
    }
}

/* Parts of a unit: enough for two blocks of each SM, as far as a unit's slots go. */
static int splits_for(const dms_paged_chunk *d)
{
    const int64_t full = 2 * (int64_t)dms_cuda_of(d->b.c.device)->multiprocessors;
    const int64_t most = (int64_t)d->b.c.unit_pages * d->b.c.page_slots / PART;
    const int64_t wanted = full / (d->b.units * d->tiles), splits = wanted < most ? wanted : most;
    return splits < 1 ? 1 : (int)splits;
}

dms_status dms_cuda_paged_chunk_mma(dms_tensor *o, const dms_paged *cache,
                                    const dms_paged_rows *rows, const dms_tensor *q)
{
    dms_device *dev = cache->device;
    const int64_t count = dms_count(q), most = q->shape[1] * dms_cols(q) / cache->head_dim;
    const int stack = most / cache->groups > ROWS_OF(1) ? 2 : 1;
    work w = {};
    w.c = dms_paged_chunk_of(o, cache, rows, q, ROWS_OF(stack));
    w.splits = splits_for(&w.c);
    w.cell = 2 + cache->head_dim;
    const int unit_rows = w.c.b.tokens * w.c.reps;
    const size_t rounded = dms_cuda_part((size_t)count * sizeof(dms_bf16));
    const int64_t cells = w.splits > 1 ? w.c.b.units * w.splits * unit_rows * w.cell : 0;
    void *scratch = NULL;

    DMS_TRY(dms_cuda_scratch(&scratch, dev, rounded + (size_t)cells * sizeof(float)));
    DMS_TRY(dms_cuda_round(dev, scratch, q->data, count));
    w.c.q = scratch;
    if (w.splits > 1)
        w.cells = (float *)(void *)((char *)scratch + rounded);
    DMS_TRY(choose(&w, stack));
    if (w.splits == 1)
        return DMS_OK;
    const dms_paged_merge merge = {w.cells,  w.c.o,  unit_rows,     w.c.reps,
                                   w.splits, w.cell, cache->groups, cache->head_dim};
    return dms_cuda_paged_merge(dev, &merge, w.c.b.units);
}
