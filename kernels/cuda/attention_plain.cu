/* Attention forward in f32, for any head width up to 256: keys in tiles through shared memory, a
 * running maximum and sum (Dao et al. 2022; Milakov & Gimelshein 2018).
 *
 * Four barriers and two shuffles a tile of keys. Scores and output are products of register tiles:
 * 4 rows by 2 keys, 4 rows by WIDTH/16 channels a thread. Bound by f32 arithmetic. */
#include <float.h>

#include "kernels/cuda/attention.cuh"

enum {
    QUERIES = 32,
    KEYS = 32,
    LANES = 16, /* threads along keys or channels */
    ROWS = 4,   /* of a thread */
    THREADS = QUERIES / ROWS * LANES,
    PARTS = THREADS / QUERIES, /* threads that share the softmax of a row */
    SCORE_STRIDE = KEYS + 4    /* no bank conflicts, 16 bytes read at once */
};

/* Rows of queries, keys and values are this many floats apart: neighbouring rows start 4 banks
 * apart, as reads of 16 bytes want them. */
#define STRIDE(width) ((width) + 4)

typedef struct {
    float *q;      /* [QUERIES, STRIDE] */
    float *kv;     /* [KEYS, STRIDE]: the tile's keys, then its values */
    float *s;      /* [QUERIES, SCORE_STRIDE]: scores, then their exponentials */
    float *shrink; /* [QUERIES]: what a risen maximum makes of older exponentials */
} shared_tiles;

static inline size_t shared_bytes(int width)
{
    return (size_t)((QUERIES + KEYS) * STRIDE(width) + QUERIES * (SCORE_STRIDE + 1)) *
           sizeof(float);
}

static __device__ __forceinline__ shared_tiles shared_tiles_at(float *base, int width)
{
    shared_tiles t;
    t.q = base;
    t.kv = t.q + QUERIES * STRIDE(width);
    t.s = t.kv + KEYS * STRIDE(width);
    t.shrink = t.s + QUERIES * SCORE_STRIDE;
    return t;
}

/* A tile of 32 rows: rows [0, count) of `from`, `row` floats apart, their first `width` channels;
 * zero elsewhere. A warp a row. */
template <int WIDTH>
static __device__ __forceinline__ void load(float *tile, const float *from, int64_t row, int count,
                                            int width)
{
    const int lane = (int)threadIdx.x % DMS_WARP;
    for (int r = (int)threadIdx.x / DMS_WARP; r < KEYS; r += THREADS / DMS_WARP)
        for (int e = lane; e < WIDTH; e += DMS_WARP)
            tile[r * STRIDE(WIDTH) + e] = r < count && e < width ? from[r * row + e] : 0.0f;
}

/* s[i][j] = q . k of rows first + i and keys lane + j*LANES. */
template <int WIDTH>
static __device__ __forceinline__ void multiply(float s[ROWS][KEYS / LANES], const shared_tiles *t,
                                                int first, int lane, int width)
{
    for (int e = 0; e < width; e += 4) {
        float4 k[KEYS / LANES];
#pragma unroll
        for (int j = 0; j < KEYS / LANES; j++)
            k[j] = *(const float4 *)(t->kv + (lane + j * LANES) * STRIDE(WIDTH) + e);
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            const float4 q = *(const float4 *)(t->q + (first + i) * STRIDE(WIDTH) + e);
#pragma unroll
            for (int j = 0; j < KEYS / LANES; j++)
                s[i][j] += q.x * k[j].x + q.y * k[j].y + q.z * k[j].z + q.w * k[j].w;
        }
    }
}

/* Scores of the tile under the law. query, key: the first of the tile. */
template <int WIDTH>
static __device__ __forceinline__ void score(const shared_tiles *t, const dms_attention_args *a,
                                             const float *bias, int query, int key)
{
    const int lane = (int)threadIdx.x % LANES, first = (int)threadIdx.x / LANES * ROWS;
    float s[ROWS][KEYS / LANES] = {{0}};

    if (query + first < a->tokens)
        multiply<WIDTH>(s, t, first, lane, a->width);
#pragma unroll
    for (int j = 0; j < KEYS / LANES; j++) {
        const int at = lane + j * LANES;
        const float b = bias && key + at < a->tokens ? bias[key + at] : 0.0f;
#pragma unroll
        for (int i = 0; i < ROWS; i++)
            t->s[(first + i) * SCORE_STRIDE + at] =
                s[i][j] * a->scale + dms_attention_mask(query + first + i, key + at, a->window, b);
    }
}

/* The running state of a row, the same in its PARTS threads but for the sum, of which each holds
 * its share. */
typedef struct {
    float max, sum;
} row_state;

/* Makes the tile's scores of this thread's row into exponentials. The maximum starts at -FLT_MAX
 * and stays finite, so that a row that has seen only evicted keys so far is free of NaN. */
static __device__ __forceinline__ void exponentiate(row_state *state, const shared_tiles *t)
{
    const int row = (int)threadIdx.x / PARTS, part = (int)threadIdx.x % PARTS;
    float *s = t->s + row * SCORE_STRIDE + part;
    float max = state->max;

#pragma unroll
    for (int i = 0; i < KEYS; i += PARTS)
        max = fmaxf(max, s[i]);
    for (int step = PARTS / 2; step > 0; step /= 2)
        max = fmaxf(max, __shfl_xor_sync(DMS_ALL_LANES, max, step));
    const float shrink = expf(state->max - max);
    float sum = state->sum * shrink;
#pragma unroll
    for (int i = 0; i < KEYS; i += PARTS) {
        s[i] = expf(s[i] - max);
        sum += s[i];
    }
    if (part == 0)
        t->shrink[row] = shrink;
    state->max = max;
    state->sum = sum;
}

/* o[i][j] of rows first + i and channels lane + j*LANES = shrink * o + p . v. */
template <int WIDTH>
static __device__ __forceinline__ void add_weighted(float o[ROWS][WIDTH / LANES],
                                                    const shared_tiles *t)
{
    const int lane = (int)threadIdx.x % LANES, first = (int)threadIdx.x / LANES * ROWS;
#pragma unroll
    for (int i = 0; i < ROWS; i++)
#pragma unroll
        for (int j = 0; j < WIDTH / LANES; j++)
            o[i][j] *= t->shrink[first + i];
    for (int key = 0; key < KEYS; key += 4) {
        float4 p[ROWS];
#pragma unroll
        for (int i = 0; i < ROWS; i++)
            p[i] = *(const float4 *)(t->s + (first + i) * SCORE_STRIDE + key);
#pragma unroll
        for (int j = 0; j < WIDTH / LANES; j++) {
            const float *v = t->kv + key * STRIDE(WIDTH) + lane + j * LANES;
            const float v0 = v[0], v1 = v[STRIDE(WIDTH)];
            const float v2 = v[2 * STRIDE(WIDTH)], v3 = v[3 * STRIDE(WIDTH)];
#pragma unroll
            for (int i = 0; i < ROWS; i++)
                o[i][j] += p[i].x * v0 + p[i].y * v1 + p[i].z * v2 + p[i].w * v3;
        }
    }
}

/* Where the rows of this block go: o and lse from its first query on. */
typedef struct {
    float *o, *lse;
    int64_t row; /* of o */
    int count;   /* rows that exist */
} output_rows;

/* Divides by the sums and writes. */
template <int WIDTH>
static __device__ __forceinline__ void finish(const output_rows *out, float o[ROWS][WIDTH / LANES],
                                              row_state state, const shared_tiles *t, int width)
{
    const int lane = (int)threadIdx.x % LANES, first = (int)threadIdx.x / LANES * ROWS;
    const int row = (int)threadIdx.x / PARTS;

    for (int step = PARTS / 2; step > 0; step /= 2)
        state.sum += __shfl_xor_sync(DMS_ALL_LANES, state.sum, step);
    if ((int)threadIdx.x % PARTS == 0) {
        t->shrink[row] = 1.0f / state.sum;
        if (row < out->count)
            out->lse[row] = state.max + logf(state.sum);
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < ROWS; i++)
#pragma unroll
        for (int j = 0; j < WIDTH / LANES; j++)
            if (first + i < out->count && lane + j * LANES < width)
                out->o[(first + i) * out->row + lane + j * LANES] = o[i][j] * t->shrink[first + i];
}

/* A block: QUERIES queries of one head against all keys that they see. */
template <int WIDTH>
static __global__ void __launch_bounds__(THREADS)
    attention_plain_kernel(float *o, float *lse, const dms_attention_args a, int tiles)
{
    DMS_DYNAMIC_SHARED(float, base);
    const shared_tiles t = shared_tiles_at(base, WIDTH);
    const dms_attention_unit u = dms_attention_unit_of(&a, tiles, blockIdx.x);
    const int query = u.tile * QUERIES, count = min(QUERIES, a.tokens - query);
    const int64_t q_row = dms_attention_q_row(&a), kv_row = dms_attention_kv_row(&a);
    const int64_t from = dms_attention_q_at(&a, u.b, query, u.h);
    const float *bias = a.bias ? a.bias + dms_attention_bias_at(&a, u.b, 0, u.g) : NULL;
    row_state state = {-FLT_MAX, 0};
    float sum[ROWS][WIDTH / LANES] = {{0}};

    load<WIDTH>(t.q, (const float *)a.q + from, q_row, count, a.width);
    for (int key = 0; key < query + count; key += KEYS) {
        const int64_t at = dms_attention_kv_at(&a, u.b, key, u.g);
        const int keys = min(KEYS, a.tokens - key);
        if (dms_attention_keys_of(query, count, key, KEYS, a.window) == DMS_KEYS_LATE &&
            dms_attention_evicted(bias + key, KEYS))
            continue;
        load<WIDTH>(t.kv, (const float *)a.k + at, kv_row, keys, a.width);
        __syncthreads();
        score<WIDTH>(&t, &a, bias, query, key);
        __syncthreads();
        load<WIDTH>(t.kv, (const float *)a.v + at, kv_row, keys, a.width);
        exponentiate(&state, &t);
        __syncthreads();
        if (query + (int)threadIdx.x / LANES * ROWS < a.tokens)
            add_weighted<WIDTH>(sum, &t);
        __syncthreads();
    }
    const output_rows out = {o + from, lse + dms_attention_lse_at(&a, u.b, query, u.h), q_row,
                             count};
    finish<WIDTH>(&out, sum, state, &t, a.width);
}

template <int WIDTH>
static dms_status launch(dms_device *dev, float *o, float *lse, const dms_attention_args *args)
{
    const int tiles = dms_attention_tiles(args, QUERIES);
    const size_t shared = shared_bytes(WIDTH);
    DMS_CUDA_TRY(DMS_ALLOW_SHARED(attention_plain_kernel<WIDTH>, shared));
    DMS_LAUNCH(attention_plain_kernel<WIDTH>, dms_attention_units(args, tiles), THREADS, shared,
               dms_cuda_stream(dev), o, lse, *args, tiles);
    return DMS_LAUNCHED();
}

dms_status dms_cuda_attention_plain(dms_device *dev, float *o, float *lse,
                                    const dms_attention_args *args)
{
    if (args->width <= 16)
        return launch<16>(dev, o, lse, args);
    if (args->width <= 32)
        return launch<32>(dev, o, lse, args);
    if (args->width <= 64)
        return launch<64>(dev, o, lse, args);
    if (args->width <= 128)
        return launch<128>(dev, o, lse, args);
    if (args->width <= DMS_MOST_WIDTH)
        return launch<DMS_MOST_WIDTH>(dev, o, lse, args);
    return dms_cuda_too_wide(dev, args->width);
}
