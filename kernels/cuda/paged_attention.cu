/* Attention of single tokens over the paged cache (decode): split-KV, partial softmaxes merged.
 *
 * A unit, one KV head of one row, is cut into `splits` parts of equal length. A block takes one
 * part of one unit, its warps take tiles of slots in turn; the R query heads of the group share one
 * read of keys and values. The bytes of live keys and values bound it: an H100 reads a slot of 128
 * bf16 channels (512 bytes) in 38 clocks of an SM, at its share of 3 TB/s, and 8 heads need 2048
 * multiplications and about 450 other operations, 20 clocks of 128 lanes. So plain f32 arithmetic
 * keeps up and no tensor cores are needed up to R = 8; more heads are taken 8 at a time, and read
 * the unit again from the L2 cache. */
#include "kernels/cuda/paged_tile.cuh"

enum { WARPS = 4, THREADS = WARPS * DMS_WARP };

#define CHANNELS(T) (DMS_WARP * VECTOR(T))          /* the most that a warp sums at once */
#define BLOCKS(T, RT) (RT * VECTOR(T) > 32 ? 2 : 3) /* of an SM, as registers allow */

typedef struct {
    dms_paged_batch b;
    const float *q; /* [n, H*E] */
    float *o;       /* [n, H*E] */
    float *cells;   /* [units, splits, R, cell]: maximum, sum, [E padded]; NULL: one part, to o */
    int reps;       /* R */
    int splits;
    int cell;    /* floats */
    float scale; /* log2(e)/sqrt(E): softmax in powers of two */
} decode;

/* What one warp has met of a part. Lane i holds maximum and (its share of the) sum of head i % RT;
 * o are channels of one vector, for slots of one row of lanes. */
template <class T, int RT> struct running {
    float top, sum;
    float o[RT][VECTOR(T)];
};

/* Shared memory of a block, in floats. */
typedef struct {
    float *q;           /* [E, RT], scaled */
    float *s;           /* [TILE, RT] of this warp: scores, then weights */
    float *shrink;      /* [RT] of this warp */
    float *tops, *sums; /* [WARPS, RT] */
    float *o;           /* [WARPS, RT, channels] */
} places;

template <class T, int RT> static size_t decode_shared(int head_dim)
{
    const int wide = (head_dim + 15) / 16 * 16;
    const int channels = wide < CHANNELS(T) ? wide : CHANNELS(T);
    return (size_t)RT * (size_t)(head_dim + WARPS * (TILE(T) + 3 + channels)) * sizeof(float);
}

template <class T, int RT> static __device__ places places_of(float *shared, int head_dim)
{
    const int warp = (int)threadIdx.x / DMS_WARP;
    places at;
    at.s = shared + warp * TILE(T) * RT;
    at.q = shared + WARPS * TILE(T) * RT;
    at.shrink = at.q + head_dim * RT + warp * RT;
    at.tops = at.q + (head_dim + WARPS) * RT;
    at.sums = at.tops + WARPS * RT;
    at.o = at.sums + WARPS * RT;
    return at;
}

/* Queries of heads [first, first + RT) of a group; those from R on are zero. */
template <int RT>
static __device__ void load_queries(float *to, const decode *d, const float *q, int heads)
{
    const int head_dim = d->b.c.head_dim;
    for (int i = (int)threadIdx.x; i < RT * head_dim; i += THREADS) {
        const int r = i / head_dim, e = i % head_dim;
        to[e * RT + r] = r < heads ? q[i] * d->scale : 0.0f;
    }
    __syncthreads();
}

/* Scores become weights under the maximum so far; the first `count` slots are live, at least one.
 */
template <class T, int RT>
static __device__ void weigh(const places *at, running<T, RT> *x, int count)
{
    const int lane = (int)threadIdx.x % DMS_WARP, many = TILE(T) * RT / DMS_WARP;
    float s[TILE(T) * RT / DMS_WARP], top = x->top;
#pragma unroll
    for (int i = 0; i < many; i++) {
        s[i] = (i * DMS_WARP + lane) / RT < count ? at->s[i * DMS_WARP + lane] : -INFINITY;
        top = fmaxf(top, s[i]);
    }
    for (int step = DMS_WARP / 2; step >= RT; step /= 2)
        top = fmaxf(top, __shfl_xor_sync(DMS_ALL_LANES, top, step));
    const float shrink = exp2f(x->top - top);
    x->top = top;
    x->sum *= shrink;
#pragma unroll
    for (int i = 0; i < many; i++) {
        const float weight = exp2f(s[i] - top);
        at->s[i * DMS_WARP + lane] = weight;
        x->sum += weight;
    }
    if (lane < RT)
        at->shrink[lane] = shrink;
    __syncwarp();
}

/* Adds weights times values of channels [channel, channel + vectors*VECTOR). Rows of lanes take
 * slots in turn; values of slots past the last one may be anything and are not read. */
template <class T, int RT>
static __device__ void add_values(const places *at, running<T, RT> *x, const dms_paged *c,
                                  unsigned long long values, int channel, int vectors, int count)
{
    const int lane = (int)threadIdx.x % DMS_WARP, rows = DMS_WARP / vectors;
    const int row = lane / vectors, wide = (int)dms_page_padded(c);
#pragma unroll
    for (int r = 0; r < RT; r++)
#pragma unroll
        for (int v = 0; v < VECTOR(T); v++)
            x->o[r][v] *= at->shrink[r];
    for (int first = 0; first < count; first += GROUP) {
        const T *base = (const T *)__shfl_sync(DMS_ALL_LANES, values, first / GROUP) + channel +
                        lane % vectors * VECTOR(T);
        const int end = row >= rows ? 0 : count - first < GROUP ? count - first : GROUP;
#pragma unroll 4
        for (int j = row; j < end; j += rows) {
            float value[VECTOR(T)], weight[RT];
            dms_widen(value, base + j * wide);
            load_row<RT>(weight, at->s + (first + j) * RT);
#pragma unroll
            for (int r = 0; r < RT; r++)
#pragma unroll
                for (int v = 0; v < VECTOR(T); v++)
                    x->o[r][v] += weight[r] * value[v];
        }
    }
    __syncwarp();
}

/* The tiles [from, to) of a part that fall to this warp. */
template <class T, int RT>
static __device__ void meet_tiles(const places *at, running<T, RT> *x, const dms_paged *c,
                                  int64_t unit, const int range[2], int channel, int vectors)
{
    const int live = c->live[unit];
    int tile = range[0] + (int)threadIdx.x / DMS_WARP;
    if (tile >= range[1])
        return;
    group here = reach<T>(c, find<T>(c, unit, tile, live));
    while (tile < range[1]) {
        const int next = tile + WARPS, left = live - tile * TILE(T);
        const int count = left < TILE(T) ? left : TILE(T);
        score<T, RT>(at->s, at->q, c, here.keys);
        const spot then = find<T>(c, unit, next < range[1] ? next : tile, live);
        weigh<T, RT>(at, x, count);
        const group there = reach<T>(c, then);
        add_values<T, RT>(at, x, c, here.values, channel, vectors, count);
        here = there;
        tile = next;
    }
}

/* The warp's sums go to shared memory: rows of lanes one after the other. */
template <class T, int RT>
static __device__ void hand_in(const places *at, const running<T, RT> *x, int vectors)
{
    const int lane = (int)threadIdx.x % DMS_WARP, warp = (int)threadIdx.x / DMS_WARP;
    float sum = x->sum;
    for (int step = DMS_WARP / 2; step >= RT; step /= 2)
        sum += __shfl_xor_sync(DMS_ALL_LANES, sum, step);
    if (lane < RT) {
        at->tops[warp * RT + lane] = x->top;
        at->sums[warp * RT + lane] = sum;
    }
    for (int row = 0; row < DMS_WARP / vectors; row++) {
        if (lane / vectors == row)
#pragma unroll
            for (int r = 0; r < RT; r++)
#pragma unroll
                for (int v = 0; v < VECTOR(T); v++) {
                    float *o = at->o + (warp * RT + r) * vectors * VECTOR(T) +
                               lane % vectors * VECTOR(T) + v;
                    *o = (row ? *o : 0.0f) + x->o[r][v];
                }
        __syncwarp();
    }
    __syncthreads();
}

/* exp2 of a part's maximum against the largest; an empty part weighs nothing, even among empty
 * ones. */
static __device__ __forceinline__ float weight_of(float top, float largest)
{
    return top > -INFINITY ? exp2f(top - largest) : 0.0f;
}

/* The block's part of `heads` heads: to its cells, or as the result where there is one part. o: of
 * the first head. */
template <int RT>
static __device__ void merge_warps(const places *at, const decode *d, float *cells, float *o,
                                   int heads, int channel, int channels)
{
    const int head_dim = d->b.c.head_dim;
    for (int i = (int)threadIdx.x; i < heads * channels; i += THREADS) {
        const int r = i / channels, e = i % channels;
        float top = -INFINITY, sum = 0, value = 0;
        for (int w = 0; w < WARPS; w++)
            top = fmaxf(top, at->tops[w * RT + r]);
        for (int w = 0; w < WARPS; w++) {
            const float weight = weight_of(at->tops[w * RT + r], top);
            sum += weight * at->sums[w * RT + r];
            value += weight * at->o[(w * RT + r) * channels + e];
        }
        if (cells) {
            float *cell = cells + (int64_t)r * d->cell;
            cell[0] = top;
            cell[1] = sum;
            cell[2 + channel + e] = value;
        } else if (channel + e < head_dim) {
            o[(int64_t)r * head_dim + channel + e] = value / sum;
        }
    }
    __syncthreads();
}

/* Grid: (units*splits, tiles of RT heads). All queries are read before anything is written: o may
 * be q. */
template <class T, int RT>
static __global__ void __launch_bounds__(THREADS, BLOCKS(T, RT)) decode_kernel(decode d)
{
    DMS_DYNAMIC_SHARED(float, shared);
    const dms_paged *c = &d.b.c;
    const int split = (int)(blockIdx.x % (unsigned)d.splits), head = (int)blockIdx.y * RT;
    const int64_t i = blockIdx.x / (unsigned)d.splits, first = i * d.reps + head;
    const int64_t unit = dms_paged_unit(&d.b, i);
    const int live = c->live[unit], tiles = (live + TILE(T) - 1) / TILE(T);
    const int range[2] = {(int)((int64_t)tiles * split / d.splits),
                          (int)((int64_t)tiles * (split + 1) / d.splits)};
    const int heads = d.reps - head < RT ? d.reps - head : RT, wide = (int)dms_page_padded(c);
    const places at = places_of<T, RT>(shared, c->head_dim);
    const int64_t cell = (i * d.splits + split) * d.reps + head;

    load_queries<RT>(at.q, &d, d.q + first * c->head_dim, heads);
    for (int channel = 0; channel < wide; channel += CHANNELS(T)) {
        const int channels = wide - channel < CHANNELS(T) ? wide - channel : CHANNELS(T);
        running<T, RT> x = {-INFINITY, 0, {{0}}};
        meet_tiles<T, RT>(&at, &x, c, unit, range, channel, channels / VECTOR(T));
        hand_in<T, RT>(&at, &x, channels / VECTOR(T));
        merge_warps<RT>(&at, &d, d.cells ? d.cells + cell * d.cell : NULL,
                        d.o + first * c->head_dim, heads, channel, channels);
    }
    if (split == 0 && head == 0 && threadIdx.x == 0)
        dms_paged_count(c, d.b.counter, live);
}

/* Weights of a row's parts under the largest maximum, and one over their sum, by one warp. parts:
 * [splits] maxima and sums; the weights take the maxima's place. */
static __device__ float weigh_parts(float2 *parts, int splits)
{
    const int lane = (int)threadIdx.x % DMS_WARP;
    float top = -INFINITY, sum = 0;
    for (int p = lane; p < splits; p += DMS_WARP)
        top = fmaxf(top, parts[p].x);
    top = dms_warp_max(top);
    for (int p = lane; p < splits; p += DMS_WARP) {
        parts[p].x = weight_of(parts[p].x, top);
        sum += parts[p].x * parts[p].y;
    }
    return 1.0f / dms_warp_sum(sum);
}

/* One block a row: the sum of its parts under the largest maximum. Latency bounds it, so that no
 * read waits for another; what a part without weight holds is not read. */
static __global__ void __launch_bounds__(THREADS) merge_kernel(dms_paged_merge d)
{
    DMS_DYNAMIC_SHARED(float2, parts);
    __shared__ float share;
    const int64_t i = blockIdx.x / (unsigned)d.rows, row = i / d.groups, group = i % d.groups;
    const int m = (int)(blockIdx.x % (unsigned)d.rows), reps = d.reps;
    const float *cells = d.cells + (i * d.splits * d.rows + m) * d.cell;
    const int64_t next = (int64_t)d.rows * d.cell; /* from one part to the next */
    const int64_t token = row * (d.rows / reps) + m / reps;
    float *o = d.o + ((token * d.groups + group) * reps + m % reps) * d.head_dim;

    for (int p = (int)threadIdx.x; p < d.splits; p += THREADS)
        parts[p] = *(const float2 *)(cells + p * next);
    __syncthreads();
    if (threadIdx.x < DMS_WARP) {
        const float inverse = weigh_parts(parts, d.splits);
        if (threadIdx.x == 0)
            share = inverse;
    }
    __syncthreads();
    for (int e = (int)threadIdx.x; e < d.head_dim; e += THREADS) {
        float value = 0;
#pragma unroll 8
        for (int p = 0; p < d.splits; p++) {
            const float weight = parts[p].x;
            value += weight * (weight > 0.0f ? cells[p * next + 2 + e] : 0.0f);
        }
        o[e] = value * share;
    }
}

dms_status dms_cuda_paged_merge(dms_device *dev, const dms_paged_merge *merge, int64_t units)
{
    DMS_LAUNCH(merge_kernel, (unsigned)(units * merge->rows), THREADS,
               (size_t)merge->splits * sizeof(float2), dms_cuda_stream(dev), *merge);
    return DMS_LAUNCHED();
}

/* Parts of a unit, from what the host knows: enough for all SMs, each of a tile a warp or more
 * where a unit is full. Live counts are not known here; parts that they leave empty weigh nothing.
 */
template <class T, int RT> static int splits_for(const dms_paged_batch *b, int blocks)
{
    const int64_t full = dms_cuda_of(b->c.device)->multiprocessors * (int64_t)BLOCKS(T, RT);
    const int64_t slots = (int64_t)b->c.unit_pages * b->c.page_slots;
    const int64_t most = slots / (WARPS * TILE(T)), wanted = full / blocks;
    const int64_t splits = wanted < most ? wanted : most;
    return splits < 1 ? 1 : (int)splits;
}

template <class T, int RT> static dms_status run_decode(decode d)
{
    const dms_paged *c = &d.b.c;
    const cudaStream_t stream = dms_cuda_stream(c->device);
    const int tiles = (d.reps + RT - 1) / RT;
    const size_t shared = decode_shared<T, RT>(c->head_dim);
    d.splits = splits_for<T, RT>(&d.b, (int)d.b.units * tiles);
    d.cell = 2 + (int)dms_page_padded(c);
    if (shared > dms_cuda_of(c->device)->shared_bytes)
        return dms_fail(DMS_ERR_SHAPE, "a head of %d channels is too large for %s", c->head_dim,
                        c->device->name);
    if (d.splits > 1) {
        void *cells = NULL;
        const int64_t count = d.b.units * d.splits * d.reps * d.cell;
        DMS_TRY(dms_cuda_scratch(&cells, c->device, (size_t)count * sizeof(float)));
        d.cells = (float *)cells;
    }
    DMS_CUDA_TRY(DMS_ALLOW_SHARED((decode_kernel<T, RT>), shared));
    DMS_LAUNCH((decode_kernel<T, RT>), dim3((unsigned)(d.b.units * d.splits), (unsigned)tiles),
               THREADS, shared, stream, d);
    DMS_TRY(DMS_LAUNCHED());
    if (d.splits == 1)
        return DMS_OK;
    const dms_paged_merge merge = {d.cells,  d.o,    d.reps,    d.reps,
                                   d.splits, d.cell, c->groups, c->head_dim};
    return dms_cuda_paged_merge(c->device, &merge, d.b.units);
}

template <class T> static dms_status run_heads(const decode *d)
{
    if (d->reps > 4)
        return run_decode<T, 8>(*d);
    if (d->reps > 2)
        return run_decode<T, 4>(*d);
    return d->reps > 1 ? run_decode<T, 2>(*d) : run_decode<T, 1>(*d);
}

static dms_status attend_single(dms_tensor *o, const dms_paged *cache, const dms_paged_rows *rows,
                                const dms_tensor *q)
{
    decode d = {};
    d.b = dms_paged_batch_of(cache, rows);
    d.q = (const float *)q->data;
    d.o = (float *)o->data;
    d.reps = (int)(dms_cols(q) / ((int64_t)cache->groups * cache->head_dim));
    d.scale = (float)(1.4426950408889634 / sqrt((double)cache->head_dim));
    return cache->dtype == DMS_BF16 ? run_heads<dms_bf16>(&d) : run_heads<float>(&d);
}

dms_status dms_cuda_paged_attention(dms_tensor *o, const dms_paged *cache,
                                    const dms_paged_rows *rows, const dms_tensor *q)
{
    return (q->shape[1] == 1 ? attend_single : dms_cuda_paged_chunk)(o, cache, rows, q);
}
