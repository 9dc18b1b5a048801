/* Attention of chunks of tokens over the paged cache (prefill), under the law of visibility.
 *
 * A block takes ROWS rows of one unit and meets its slots a tile at a time with a running softmax;
 * tiles that no query sees are passed over. Plain f32 arithmetic bounds it: pages in f32 and heads
 * of other widths than paged_chunk_mma.cu takes come here.
 */
#include <float.h>

#include "kernels/cuda/paged_chunk.cuh"

enum {
    ROWS = 64,
    SLOTS = 64,    /* of a tile */
    THREADS = 256, /* 16 x 16, each of 4 rows by 4 slots, and 4 rows by 4 channels of every 64 */
    SIDE = 16,
    ROW = ROWS + 4, /* floats of a line of shared memory: spreads lines over the banks */
    GROUP = 16      /* slots that lie in one page for sure */
};

#define VECTOR(T) (16 / (int)sizeof(T)) /* elements of 16 bytes */

/* Shared memory of a block. */
typedef struct {
    float *q;               /* [E, ROW], scaled */
    float *p;               /* [SLOTS, ROW], weights */
    float *stage;           /* keys [STAGE, SLOTS], then values [STAGE, channels]; STAGE: channels
                               of keys, or slots of values, in shared memory at a time */
    int32_t *at;            /* [SLOTS] */
    unsigned long long *kv; /* [SLOTS/GROUP, 2], where keys and values of a group begin */
} places;

/* What a thread has met: maxima and sums of its rows, and sums of values. */
template <int CHANNELS> struct running {
    float top[4], sum[4];
    float o[4][CHANNELS / SIDE];
};

/* stage: STAGE of the kernels below. */
static size_t chunk_shared(int head_dim, int channels, int stage)
{
    stage *= channels > SLOTS ? channels : SLOTS;
    return sizeof(float) * (size_t)(head_dim * ROW + SLOTS * ROW + stage + SLOTS) +
           2 * SLOTS / GROUP * sizeof(unsigned long long);
}

static __device__ places places_of(float *shared, int head_dim, int channels, int stage)
{
    stage *= channels > SLOTS ? channels : SLOTS;
    places at;
    at.kv = (unsigned long long *)shared;
    at.q = shared + 2 * (2 * SLOTS / GROUP);
    at.p = at.q + head_dim * ROW;
    at.stage = at.p + SLOTS * ROW;
    at.at = (int32_t *)(at.stage + stage);
    return at;
}

static __device__ void load_queries(const places *at, const dms_paged_chunk *d,
                                    const dms_paged_task *x)
{
    const int head_dim = d->b.c.head_dim;
    const float *q = (const float *)d->q;
    for (int i = (int)threadIdx.x; i < ROWS * head_dim; i += THREADS) {
        const int m = i / head_dim, e = i % head_dim;
        at->q[e * ROW + m] =
            m < x->rows ? q[x->offset + dms_paged_row_at(d, x->row + m) + e] * d->scale : 0.0f;
    }
}

/* Looks at the tile from `slot` on: its positions and addresses. Tells all threads whether a query
 * of the block sees one of its slots; adds to *visible the pairs, once a KV head. */
template <class T>
static __device__ bool look(const places *at, const dms_paged_chunk *d, const dms_paged_task *x,
                            int slot, int *visible)
{
    const dms_paged *c = &d->b.c;
    const int t = (int)threadIdx.x, last = (x->row + x->rows - 1) / d->reps;
    int seen = 0;
    if (t < SLOTS) {
        const int from = slot + t < x->live ? slot + t : slot, place = from % c->page_slots;
        const dms_page page = dms_paged_page(c, x->unit, from);
        if (from == slot + t) {
            at->at[t] = page.at[place];
            seen = dms_paged_seen_by(x, c->window, at->at[t], x->row / d->reps, last);
            *visible +=
                dms_paged_seen_by(x, c->window, at->at[t], (x->row + d->reps - 1) / d->reps, last);
        }
        if (t % GROUP == 0) {
            at->kv[t / GROUP * 2] = (unsigned long long)((const T *)page.k + place);
            at->kv[t / GROUP * 2 + 1] =
                (unsigned long long)((const T *)page.v + place * (int)dms_page_padded(c));
        }
    }
    return __syncthreads_or(seen > 0);
}

/* Channels [first, first + STAGE) of the tile's keys; zero from E on. Those of slots past the last
 * one are of undefined memory. */
template <class T, int STAGE>
static __device__ void stage_keys(const places *at, const dms_paged *c, int first)
{
    const int vectors = SLOTS / VECTOR(T);
    __syncthreads();
    for (int i = (int)threadIdx.x; i < STAGE * vectors; i += THREADS) {
        const int e = i / vectors, slot = i % vectors * VECTOR(T);
        const T *k = (const T *)at->kv[slot / GROUP * 2] + slot % GROUP;
        float x[VECTOR(T)] = {0};
        if (first + e < c->head_dim)
            dms_widen(x, k + (first + e) * c->page_slots);
#pragma unroll
        for (int v = 0; v < VECTOR(T); v++)
            at->stage[e * SLOTS + slot + v] = x[v];
    }
    __syncthreads();
}

/* Values of slots [first, first + STAGE) of the tile, in channels [channel, channel + CHANNELS);
 * zero from the last of `count` slots and from E on. */
template <class T, int CHANNELS, int STAGE>
static __device__ void stage_values(const places *at, const dms_paged *c, int first, int count,
                                    int channel)
{
    const int vectors = CHANNELS / VECTOR(T), wide = (int)dms_page_padded(c);
    __syncthreads();
    for (int i = (int)threadIdx.x; i < STAGE * vectors; i += THREADS) {
        const int slot = first + i / vectors, e = i % vectors * VECTOR(T);
        float x[VECTOR(T)] = {0};
        if (slot < count && channel + e < wide)
            dms_widen(x,
                      (const T *)at->kv[slot / GROUP * 2 + 1] + slot % GROUP * wide + channel + e);
#pragma unroll
        for (int v = 0; v < VECTOR(T); v++)
            at->stage[i / vectors * CHANNELS + e + v] = x[v];
    }
    __syncthreads();
}

/* s[i][j]: score of row 4*y + i with slot 4*x + j of the tile. */
template <class T, int STAGE>
static __device__ void score(const places *at, const dms_paged *c, float s[4][4])
{
    const int x = (int)threadIdx.x % SIDE, y = (int)threadIdx.x / SIDE;
#pragma unroll
    for (int i = 0; i < 16; i++)
        s[i / 4][i % 4] = 0;
    for (int first = 0; first < c->head_dim; first += STAGE) {
        const int end = c->head_dim - first < STAGE ? c->head_dim - first : STAGE;
        stage_keys<T, STAGE>(at, c, first);
        for (int e = 0; e < end; e++) {
            float q[4], k[4];
            dms_widen(q, at->q + (first + e) * ROW + 4 * y);
            dms_widen(k, at->stage + e * SLOTS + 4 * x);
#pragma unroll
            for (int i = 0; i < 16; i++)
                s[i / 4][i % 4] += q[i / 4] * k[i % 4];
        }
    }
}

/* Scores of what the law hides become -infinity. */
static __device__ void hide(const places *at, const dms_paged_chunk *d, const dms_paged_task *x,
                            int count, float s[4][4])
{
    const int first = (int)threadIdx.x % SIDE * 4, row = (int)threadIdx.x / SIDE * 4;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const int32_t slot = first + j < count ? at->at[first + j] : 0;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int64_t query = x->position + (x->row + row + i) / d->reps;
            if (first + j >= count || !dms_is_visible(query, slot >> 1, d->b.c.window, slot & 1))
                s[i][j] = -INFINITY;
        }
    }
}

/* Scores become weights, in shared memory; older sums shrink as the maximum rises. A row that has
 * seen nothing keeps the lowest finite maximum: what it does not see weighs exp2(-infinity) = 0. */
template <int CHANNELS>
static __device__ void weigh(const places *at, running<CHANNELS> *x, float s[4][4])
{
    const int column = (int)threadIdx.x % SIDE, row = (int)threadIdx.x / SIDE * 4;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float top = fmaxf(fmaxf(s[i][0], s[i][1]), fmaxf(s[i][2], s[i][3]));
        for (int step = SIDE / 2; step > 0; step /= 2)
            top = fmaxf(top, __shfl_xor_sync(DMS_ALL_LANES, top, step));
        top = fmaxf(top, x->top[i]);
        const float shrink = exp2f(x->top[i] - top);
        x->top[i] = top;
        x->sum[i] *= shrink;
#pragma unroll
        for (int j = 0; j < CHANNELS / SIDE; j++)
            x->o[i][j] *= shrink;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            s[i][j] = exp2f(s[i][j] - top);
            x->sum[i] += s[i][j];
        }
    }
#pragma unroll
    for (int j = 0; j < 4; j++)
        *(float4 *)(at->p + (4 * column + j) * ROW + row) =
            make_float4(s[0][j], s[1][j], s[2][j], s[3][j]);
}

template <class T, int CHANNELS, int STAGE>
static __device__ void add_values(const places *at, running<CHANNELS> *x, const dms_paged *c,
                                  int count, int channel)
{
    const int column = (int)threadIdx.x % SIDE * 4, row = (int)threadIdx.x / SIDE * 4;
    for (int first = 0; first < count; first += STAGE) {
        const int end = count - first < STAGE ? count - first : STAGE;
        stage_values<T, CHANNELS, STAGE>(at, c, first, count, channel);
        for (int slot = 0; slot < end; slot++) {
            float p[4], v[CHANNELS / SIDE];
            dms_widen(p, at->p + (first + slot) * ROW + row);
#pragma unroll
            for (int j = 0; j < CHANNELS / SIDE; j += 4)
                dms_widen(v + j, at->stage + slot * CHANNELS + j * SIDE + column);
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < CHANNELS / SIDE; j++)
                    x->o[i][j] += p[i] * v[j];
        }
    }
}

template <int CHANNELS>
static __device__ void write_rows(const dms_paged_chunk *d, const dms_paged_task *x,
                                  const running<CHANNELS> *sums, int channel)
{
    const int column = (int)threadIdx.x % SIDE * 4, row = (int)threadIdx.x / SIDE * 4;
    for (int i = 0; i < 4; i++) {
        float sum = sums->sum[i];
        for (int step = SIDE / 2; step > 0; step /= 2)
            sum += __shfl_xor_sync(DMS_ALL_LANES, sum, step);
        if (row + i >= x->rows)
            continue;
        float *o = d->o + x->offset + dms_paged_row_at(d, x->row + row + i);
#pragma unroll
        for (int j = 0; j < CHANNELS / SIDE; j++) {
            const int e = channel + j / 4 * 4 * SIDE + column + j % 4;
            if (e < d->b.c.head_dim)
                o[e] = sums->o[i][j] / sum;
        }
    }
}

/* A block reads all its queries before it writes: o may be q. Heads of more than CHANNELS channels
 * are met once for every CHANNELS of them. */
template <class T, int CHANNELS, int STAGE>
static __global__ void __launch_bounds__(THREADS, 2) chunk_kernel(dms_paged_chunk d)
{
    DMS_DYNAMIC_SHARED(float, shared);
    const dms_paged *c = &d.b.c;
    const places at = places_of(shared, c->head_dim, CHANNELS, STAGE);
    const dms_paged_task x = dms_paged_task_of(&d, blockIdx.x, ROWS);
    int visible = 0; /* at most ROWS a tile */

    load_queries(&at, &d, &x);
    for (int channel = 0; channel < c->head_dim; channel += CHANNELS) {
        running<CHANNELS> sums = {{-FLT_MAX, -FLT_MAX, -FLT_MAX, -FLT_MAX}, {0}, {{0}}};
        visible = 0;
        for (int slot = 0; slot < x.live; slot += SLOTS) {
            const int count = x.live - slot < SLOTS ? x.live - slot : SLOTS;
            float s[4][4];
            if (!look<T>(&at, &d, &x, slot, &visible))
                continue;
            score<T, STAGE>(&at, c, s);
            hide(&at, &d, &x, count, s);
            weigh<CHANNELS>(&at, &sums, s);
            add_values<T, CHANNELS, STAGE>(&at, &sums, c, count, channel);
        }
        write_rows<CHANNELS>(&d, &x, &sums, channel);
    }
    dms_paged_count_visible(c, visible);
}

template <class T, int CHANNELS, int STAGE> static dms_status run_chunk(const dms_paged_chunk *d)
{
    const dms_paged *c = &d->b.c;
    const size_t shared = chunk_shared(c->head_dim, CHANNELS, STAGE);
    if (shared > dms_cuda_of(c->device)->shared_bytes)
        return dms_fail(DMS_ERR_SHAPE, "a head of %d channels is too large for %s", c->head_dim,
                        c->device->name);
    DMS_CUDA_TRY(DMS_ALLOW_SHARED((chunk_kernel<T, CHANNELS, STAGE>), shared));
    DMS_LAUNCH((chunk_kernel<T, CHANNELS, STAGE>), (unsigned)(d->b.units * d->tiles), THREADS,
               shared, dms_cuda_stream(c->device), *d);
    return DMS_LAUNCHED();
}

/* Wide heads leave less room beside their queries: E = 256 takes 93 KiB, and some devices have 99
 * for a block. */
template <class T> static dms_status run_channels(const dms_paged_chunk *d)
{
    if (d->b.c.head_dim > 192)
        return run_chunk<T, 128, 16>(d);
    return d->b.c.head_dim > 64 ? run_chunk<T, 128, 32>(d) : run_chunk<T, 64, 32>(d);
}

static bool fits_tensor_cores(const dms_paged *c)
{
    return c->dtype == DMS_BF16 && (c->head_dim == 64 || c->head_dim == 96 || c->head_dim == 128);
}

dms_status dms_cuda_paged_chunk(dms_tensor *o, const dms_paged *cache, const dms_paged_rows *rows,
                                const dms_tensor *q)
{
    if (fits_tensor_cores(cache))
        return dms_cuda_paged_chunk_mma(o, cache, rows, q);
    const dms_paged_chunk d = dms_paged_chunk_of(o, cache, rows, q, ROWS);
    return cache->dtype == DMS_BF16 ? run_channels<dms_bf16>(&d) : run_channels<float>(&d);
}
