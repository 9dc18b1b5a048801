/* Attention that the slots of the paged cache received from the tokens entered last.
 *
 * A unit has T*R rows: row t*R + r is query t of head r. One pass over the keys finds each row's
 * maximum and sum, in parts of a unit that are merged; a second adds what a slot gets of all rows.
 * The first counted query is known to the device alone: blocks whose rows are not counted end at
 * once, as do those past the live slots. With one token the bytes of the keys bound both passes,
 * with many the multiplications of plain f32. */
#include <float.h>

#include "kernels/cuda/paged_tile.cuh"

enum {
    WARPS = 4,
    THREADS = WARPS * DMS_WARP,
    SINGLE = 256, /* slots of a part under one token: a tile of bf16 a warp */
    MANY = 2048   /* under more, where there are blocks enough */
};

#define ITEMS_OF(T, RT) (TILE(T) * RT / DMS_WARP)   /* scores of a tile that fall to a lane */
#define BLOCKS(T, RT) (RT * VECTOR(T) > 32 ? 3 : 4) /* of an SM: more, and ptxas spills */

typedef struct {
    dms_paged_batch b;
    const float *q;  /* [n, T, H*E] */
    float2 *cells;   /* [units, rows, parts]: maximum, sum of the powers of two under it */
    float2 *sums;    /* [units, rows]: maximum, one over the sum */
    float *received; /* [units, slots of a unit], where heads are averaged; else NULL */
    int64_t from;    /* the first position that is counted */
    int reps;        /* R */
    int rows;        /* T*R */
    int part, parts; /* slots of a part; parts of a full unit */
    float scale;     /* log2(e)/sqrt(E): softmax in powers of two */
    bool add;
} weighing;

/* The first row of unit number i that is counted; `rows`: none. */
static __device__ int64_t first_row(const weighing *d, int64_t i)
{
    const int32_t position = d->b.positions[i / d->b.c.groups * d->b.tokens];
    const int64_t before = d->from - position;
    return before <= 0 ? 0 : before < d->b.tokens ? before * d->reps : d->rows;
}

/* Queries of a tile of rows, and the scores of a tile of each warp. */
template <class T, int RT> static size_t weigh_shared(int head_dim)
{
    return (size_t)RT * (size_t)(head_dim + WARPS * TILE(T)) * sizeof(float);
}

/* Queries of rows [first, first + RT) of unit number i, zero from the last row on. to: [E, RT]. */
template <int RT>
static __device__ void load_rows(float *to, const weighing *d, int64_t i, int first)
{
    const int groups = d->b.c.groups, head_dim = d->b.c.head_dim, reps = d->reps;
    const int64_t row = i / groups * d->b.tokens, group = i % groups;
    __syncthreads(); /* the rows before were read */
    for (int j = (int)threadIdx.x; j < RT * head_dim; j += THREADS) {
        const int r = j / head_dim, e = j % head_dim, m = first + r;
        const int64_t head = ((row + m / reps) * groups + group) * reps + m % reps;
        to[e * RT + r] = m < d->rows ? d->q[head * head_dim + e] * d->scale : 0.0f;
    }
    __syncthreads();
}

/* What the slots of a tile are, for one warp: [TILE]. Of single tokens nobody asks. */
template <class T>
static __device__ void load_slots(int32_t *to, const weighing *d, spot at, int count)
{
    const int lane = (int)threadIdx.x % DMS_WARP;
    if (d->b.tokens == 1)
        return;
    for (int first = 0; first < TILE(T); first += DMS_WARP) {
        const int slot = first + lane, from = slot / GROUP;
        const int32_t number = __shfl_sync(DMS_ALL_LANES, at.page, from);
        const int place = __shfl_sync(DMS_ALL_LANES, at.place, from) + slot % GROUP;
        to[slot] = slot < count ? dms_page_at(&d->b.c, number).at[place] : 0;
    }
    __syncwarp();
}

/* Whether the query at `position` sees a slot: single tokens see all that live. */
static __device__ __forceinline__ bool sees(const weighing *d, int64_t position, const int32_t *at)
{
    return d->b.tokens == 1 || dms_is_visible(position, *at >> 1, d->b.c.window, *at & 1);
}

/* ---- sums of rows --------------------------------------------------------------------------- */

/* Maxima and sums of two sets of scores become those of both. */
static __device__ __forceinline__ float2 joined(float2 a, float2 b)
{
    const float top = fmaxf(a.x, b.x);
    float2 both;
    both.x = top;
    both.y = a.y * exp2f(a.x - top) + b.y * exp2f(b.x - top);
    return both;
}

/* A tile's scores join those that a lane has met: it takes row lane % RT of every RT'th slot.
 * Scores that are not there weigh exp2(-infinity) = 0: the maximum is finite from the beginning. */
template <class T, int RT>
static __device__ void meet(float2 *x, const weighing *d, const float *s, const int32_t *slots,
                            int64_t position, int count)
{
    const int lane = (int)threadIdx.x % DMS_WARP;
    float mine[ITEMS_OF(T, RT)], top = x->x, sum = 0;
#pragma unroll
    for (int i = 0; i < ITEMS_OF(T, RT); i++) {
        const int slot = (i * DMS_WARP + lane) / RT;
        const bool seen = slot < count && sees(d, position, slots + slot);
        mine[i] = seen ? s[i * DMS_WARP + lane] : -INFINITY;
        top = fmaxf(top, mine[i]);
    }
#pragma unroll
    for (int i = 0; i < ITEMS_OF(T, RT); i++)
        sum += exp2f(mine[i] - top);
    x->y = x->y * exp2f(x->x - top) + sum;
    x->x = top;
    __syncwarp();
}

/* The block's part of rows [first, first + RT): lanes, then warps, in one order. */
template <int RT> static __device__ void hand_in(const weighing *d, float2 x, int64_t i, int first)
{
    __shared__ float2 met[WARPS][RT];
    const int lane = (int)threadIdx.x % DMS_WARP, warp = (int)threadIdx.x / DMS_WARP;
    for (int step = DMS_WARP / 2; step >= RT; step /= 2) {
        float2 other;
        other.x = __shfl_xor_sync(DMS_ALL_LANES, x.x, step);
        other.y = __shfl_xor_sync(DMS_ALL_LANES, x.y, step);
        x = joined(x, other);
    }
    if (lane < RT)
        met[warp][lane] = x;
    __syncthreads();
    if (threadIdx.x < RT && first + (int)threadIdx.x < d->rows) {
        const int m = first + (int)threadIdx.x;
        for (int w = 1; w < WARPS; w++)
            x = joined(x, met[w][threadIdx.x]);
        d->cells[(i * d->rows + m) * d->parts + blockIdx.y] = x;
    }
}

/* Grid: (units * tiles of RT rows, parts). */
template <class T, int RT>
static __global__ void __launch_bounds__(THREADS, BLOCKS(T, RT)) weigh_parts_kernel(weighing d)
{
    DMS_DYNAMIC_SHARED(float, shared);
    __shared__ int32_t slots_of[WARPS][TILE(T)];
    const dms_paged *c = &d.b.c;
    const int tiles = (d.rows + RT - 1) / RT, warp = (int)threadIdx.x / DMS_WARP;
    const int64_t i = blockIdx.x / (unsigned)tiles, unit = dms_paged_unit(&d.b, i);
    const int first = (int)(blockIdx.x % (unsigned)tiles) * RT, live = c->live[unit];
    const int from = (int)blockIdx.y * d.part, to = live - from < d.part ? live : from + d.part;
    const int m = first + (int)threadIdx.x % DMS_WARP % RT;
    const int64_t position = d.b.positions[i / c->groups * d.b.tokens] + m / d.reps;
    float *s = shared + warp * TILE(T) * RT, *q = shared + WARPS * TILE(T) * RT;
    float2 x;
    x.x = -FLT_MAX;
    x.y = 0;
    if (from >= live || first + RT <= first_row(&d, i))
        return;
    load_rows<RT>(q, &d, i, first);
    for (int tile = from / TILE(T) + warp; tile * TILE(T) < to; tile += WARPS) {
        const spot at = find<T>(c, unit, tile, live);
        load_slots<T>(slots_of[warp], &d, at, live - tile * TILE(T));
        score<T, RT>(s, q, c, reach<T>(c, at).keys);
        meet<T, RT>(&x, &d, s, slots_of[warp], position, live - tile * TILE(T));
    }
    hand_in<RT>(&d, x, i, first);
}

/* One warp a row. */
static __global__ void __launch_bounds__(THREADS) weigh_merge_kernel(weighing d)
{
    const int64_t index = blockIdx.x * (int64_t)WARPS + threadIdx.x / DMS_WARP;
    const int64_t i = index / d.rows;
    const int lane = (int)threadIdx.x % DMS_WARP;
    if (i >= d.b.units || index % d.rows < first_row(&d, i))
        return;
    const int live = d.b.c.live[dms_paged_unit(&d.b, i)], parts = (live + d.part - 1) / d.part;
    const float2 *cells = d.cells + index * d.parts;
    float top = -FLT_MAX, sum = 0;
    for (int p = lane; p < parts; p += DMS_WARP)
        top = fmaxf(top, cells[p].x);
    top = dms_warp_max(top);
    for (int p = lane; p < parts; p += DMS_WARP)
        sum += cells[p].y * exp2f(cells[p].x - top);
    sum = dms_warp_sum(sum);
    if (lane == 0) {
        d.sums[index].x = top;
        d.sums[index].y = 1.0f / sum;
    }
}

/* ---- weights of slots ----------------------------------------------------------------------- */

/* Adds the weights of a tile of rows to what a lane has of its slots, as in meet(). */
template <class T, int RT>
static __device__ void add_weights(float (&got)[ITEMS_OF(T, RT)], const weighing *d, float2 row,
                                   int64_t position, const float *s, const int32_t *slots)
{
    const int lane = (int)threadIdx.x % DMS_WARP;
#pragma unroll
    for (int i = 0; i < ITEMS_OF(T, RT); i++)
        if (sees(d, position, slots + (i * DMS_WARP + lane) / RT))
            got[i] += exp2f(s[i * DMS_WARP + lane] - row.x) * row.y;
}

/* Slots from `first` on get what lanes have for them: as their score, or for the mean over heads.
 */
template <class T, int RT>
static __device__ void give(float (&got)[ITEMS_OF(T, RT)], const weighing *d, int64_t i,
                            int64_t unit, int first)
{
    const dms_paged *c = &d->b.c;
    const int lane = (int)threadIdx.x % DMS_WARP, live = c->live[unit];
#pragma unroll
    for (int k = 0; k < ITEMS_OF(T, RT); k++) {
        const int slot = first + (k * DMS_WARP + lane) / RT;
        for (int step = RT / 2; step > 0; step /= 2)
            got[k] += __shfl_xor_sync(DMS_ALL_LANES, got[k], step);
        if (lane % RT != 0 || slot >= live)
            continue;
        if (d->received) {
            d->received[i * c->unit_pages * c->page_slots + slot] = got[k];
        } else {
            float *score = dms_paged_page(c, unit, slot).score + slot % c->page_slots;
            *score = (d->add ? *score : 0.0f) + got[k];
        }
    }
}

/* Grid: (units, tiles of slots, WARPS at a time). All rows that are counted, RT at a time. */
template <class T, int RT>
static __global__ void __launch_bounds__(THREADS, BLOCKS(T, RT)) weigh_slots_kernel(weighing d)
{
    DMS_DYNAMIC_SHARED(float, shared);
    __shared__ int32_t slots_of[WARPS][TILE(T)];
    const dms_paged *c = &d.b.c;
    const int warp = (int)threadIdx.x / DMS_WARP, lane = (int)threadIdx.x % DMS_WARP;
    const int64_t i = blockIdx.x, unit = dms_paged_unit(&d.b, i), counted = first_row(&d, i);
    const int32_t position = d.b.positions[i / c->groups * d.b.tokens];
    const int live = c->live[unit], tile = (int)blockIdx.y * WARPS + warp;
    float *s = shared + warp * TILE(T) * RT, *q = shared + WARPS * TILE(T) * RT;
    float got[ITEMS_OF(T, RT)] = {0};
    if ((int64_t)blockIdx.y * WARPS * TILE(T) >= live)
        return;
    const spot at = find<T>(c, unit, tile, live);
    const unsigned long long keys = reach<T>(c, at).keys;
    load_slots<T>(slots_of[warp], &d, at, live - tile * TILE(T));
    for (int64_t first = counted / RT * RT; first < d.rows; first += RT) {
        const int m = (int)first + lane % RT;
        const bool counts = m >= counted && m < d.rows;
        load_rows<RT>(q, &d, i, (int)first);
        score<T, RT>(s, q, c, keys);
        if (counts)
            add_weights<T, RT>(got, &d, d.sums[i * d.rows + m], position + m / d.reps, s,
                               slots_of[warp]);
    }
    give<T, RT>(got, &d, i, unit, tile * TILE(T));
}

/* Every unit of a row gets the mean of all: a thread a slot. Grid: (rows, 256's of slots). */
static __global__ void weigh_mean_kernel(weighing d)
{
    const dms_paged *c = &d.b.c;
    const int64_t i = blockIdx.x * (int64_t)c->groups,
                  most = (int64_t)c->unit_pages * c->page_slots;
    const int slot = (int)(blockIdx.y * blockDim.x + threadIdx.x);
    float sum = 0;
    for (int g = 0; g < c->groups; g++)
        sum += slot < c->live[dms_paged_unit(&d.b, i + g)] ? d.received[(i + g) * most + slot] : 0;
    sum /= (float)(c->groups * d.reps);
    for (int g = 0; g < c->groups; g++) {
        const int64_t unit = dms_paged_unit(&d.b, i + g);
        if (slot >= c->live[unit])
            continue;
        float *score = dms_paged_page(c, unit, slot).score + slot % c->page_slots;
        *score = (d.add ? *score : 0.0f) + sum;
    }
}

/* ---- launches ------------------------------------------------------------------------------- */

static dms_status place(weighing *d, bool across)
{
    const dms_paged *c = &d->b.c;
    const int64_t slots = (int64_t)c->unit_pages * c->page_slots, rows = d->b.units * d->rows;
    d->part = d->b.tokens == 1 ? SINGLE : MANY;
    d->parts = (int)((slots + d->part - 1) / d->part);
    const size_t cells = dms_cuda_part((size_t)(rows * d->parts) * sizeof(float2));
    const size_t sums = dms_cuda_part((size_t)rows * sizeof(float2));
    const size_t received = across ? (size_t)(d->b.units * slots) * sizeof(float) : 0;
    void *scratch = NULL;
    DMS_TRY(dms_cuda_scratch(&scratch, c->device, cells + sums + received));
    d->cells = (float2 *)scratch;
    d->sums = (float2 *)((char *)scratch + cells);
    d->received = across ? (float *)((char *)scratch + cells + sums) : NULL;
    return DMS_OK;
}

template <class T, int RT> static dms_status run(const weighing *d)
{
    const dms_paged *c = &d->b.c;
    const cudaStream_t stream = dms_cuda_stream(c->device);
    const int64_t slots = (int64_t)c->unit_pages * c->page_slots, each = WARPS * TILE(T);
    const size_t shared = weigh_shared<T, RT>(c->head_dim);
    const unsigned tiles = (unsigned)((d->rows + RT - 1) / RT), units = (unsigned)d->b.units;
    const unsigned merged = (unsigned)((d->b.units * d->rows + WARPS - 1) / WARPS);
    DMS_CUDA_TRY(DMS_ALLOW_SHARED((weigh_parts_kernel<T, RT>), shared));
    DMS_CUDA_TRY(DMS_ALLOW_SHARED((weigh_slots_kernel<T, RT>), shared));
    DMS_LAUNCH((weigh_parts_kernel<T, RT>), dim3(units * tiles, (unsigned)d->parts), THREADS,
               shared, stream, *d);
    DMS_LAUNCH(weigh_merge_kernel, merged, THREADS, 0, stream, *d);
    DMS_LAUNCH((weigh_slots_kernel<T, RT>), dim3(units, (unsigned)((slots + each - 1) / each)),
               THREADS, shared, stream, *d);
    if (d->received)
        DMS_LAUNCH(weigh_mean_kernel,
                   dim3(units / (unsigned)c->groups, (unsigned)((slots + 255) / 256)), 256, 0,
                   stream, *d);
    return DMS_LAUNCHED();
}

template <class T> static dms_status run_rows(const weighing *d)
{
    if (d->rows > 4)
        return run<T, 8>(d);
    if (d->rows > 2)
        return run<T, 4>(d);
    return d->rows > 1 ? run<T, 2>(d) : run<T, 1>(d);
}

dms_status dms_cuda_paged_weigh(const dms_paged *cache, const dms_paged_rows *rows,
                                const dms_tensor *q, const dms_paged_weights *weights)
{
    weighing d = {};
    d.b = dms_paged_batch_of(cache, rows);
    d.q = (const float *)q->data;
    d.from = weights->from;
    d.reps = (int)(dms_cols(q) / ((int64_t)cache->groups * cache->head_dim));
    d.rows = d.b.tokens * d.reps;
    d.scale = (float)(1.4426950408889634 / sqrt((double)cache->head_dim));
    d.add = weights->add;
    DMS_TRY(place(&d, weights->across));
    return cache->dtype == DMS_BF16 ? run_rows<dms_bf16>(&d) : run_rows<float>(&d);
}
