/* Attention forward: the op, and its form on tensor cores after FlashAttention-2 (Dao 2023).
 *
 * A block of 4 warps takes 128 queries of one head, 32 a warp, and walks over tiles of keys. Each
 * fragment of K and V that a warp reads from shared memory serves its two 16-row tiles. While one
 * tile of K and V is multiplied the next one comes in: one barrier a tile. At most 68 KiB of shared
 * memory, which every device from compute capability 8.0 on has; two blocks a multiprocessor, bound
 * by their registers. q is rounded to bf16 as it is and the scale applied to the scores in f32,
 * where it costs nothing: it is part of the exponential's argument.
 *
 * On Hopper a form with wgmma and TMA (FlashAttention-3) would be another choice of launch(); it
 * needs PTX that the emulation lacks. */
#include <float.h>

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/dense.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/mma_softmax.cuh"

enum {
    WARPS = 4,
    THREADS = WARPS * DMS_WARP,
    STACK = 2,              /* 16-row tiles of a warp */
    WARP_ROWS = 16 * STACK, /* queries of a warp */
    QUERIES = WARPS * WARP_ROWS
};

/* Keys of a tile: scores and output of a wide head share the registers of a thread. */
#define KEYS_OF(width) ((width) > 64 ? 32 : 64)
#define LOG2_E 1.44269504f

/* One of the two buffers for a tile of keys. */
typedef struct {
    dms_bf16 *k, *v; /* [KEYS, E] */
    float *bias;     /* [KEYS], in units of q.k: divided by the scale */
} key_buffer;

template <int WIDTH> static inline size_t shared_bytes(void)
{
    return (size_t)DMS_TILE_BYTES(QUERIES + 4 * KEYS_OF(WIDTH), WIDTH) +
           2 * KEYS_OF(WIDTH) * sizeof(float);
}

/* Buffer 0 or 1; the tile of queries [QUERIES, E] lies at `base`. */
template <int WIDTH>
static __device__ __forceinline__ key_buffer key_buffer_at(dms_bf16 *base, int index)
{
    const int keys = KEYS_OF(WIDTH), stride = DMS_TILE_STRIDE(WIDTH);
    dms_bf16 *biases = base + (QUERIES + 4 * keys) * stride;
    key_buffer t;
    t.k = base + (QUERIES + 2 * keys * index) * stride;
    t.v = t.k + keys * stride;
    t.bias = (float *)(void *)biases + index * keys;
    return t;
}

/* What a thread holds of its 2*STACK rows, as mma_softmax.cuh has it. */
typedef struct {
    float max[STACK][2], sum[STACK][2];
} row_state;

static __device__ __forceinline__ row_state start(void)
{
    row_state state;
#pragma unroll
    for (int m = 0; m < STACK; m++) {
        state.max[m][0] = state.max[m][1] = -FLT_MAX;
        state.sum[m][0] = state.sum[m][1] = 0;
    }
    return state;
}

/* Every query finds every key late: one bias a key. */
template <int KEYS>
static __device__ __forceinline__ void add_bias(float s[STACK][KEYS / 8][4], const float *bias)
{
    const int column = (int)threadIdx.x % 4 * 2;
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++) {
        const float2 b = *(const float2 *)(bias + n * 8 + column);
#pragma unroll
        for (int m = 0; m < STACK; m++) {
            s[m][n][0] += b.x;
            s[m][n][1] += b.y;
            s[m][n][2] += b.x;
            s[m][n][3] += b.y;
        }
    }
}

/* The law pair by pair. query: this thread's first row, counted from the first key of the tile:
 * only differences matter. */
template <int KEYS, bool BIAS>
static __device__ __forceinline__ void apply_law(float s[STACK][KEYS / 8][4], const float *bias,
                                                 int query, int window)
{
    const int column = (int)threadIdx.x % 4 * 2;
    query -= column;
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const int key = n * 8 + j;
            const float b = BIAS ? bias[key + column] : 0.0f;
#pragma unroll
            for (int m = 0; m < STACK; m++) {
                s[m][n][j] += dms_attention_mask(query + 16 * m, key, window, b);
                s[m][n][j + 2] += dms_attention_mask(query + 16 * m + 8, key, window, b);
            }
        }
}

/* Where one 16-row tile goes: o and lse of this thread's first row of it. */
typedef struct {
    float *o, *lse;
    int64_t row; /* of o */
    int count;   /* rows that exist from there on */
} output_rows;

/* Divides one row by its sum and writes it: 4 lanes fill whole sectors of 32 bytes. */
template <int WIDTH>
static __device__ __forceinline__ void finish_row(const output_rows *out, float o[WIDTH / 8][4],
                                                  float max, float sum, int i)
{
    const int down = i * 4; /* 0 or 8 rows */
    sum += __shfl_xor_sync(DMS_ALL_LANES, sum, 1);
    sum += __shfl_xor_sync(DMS_ALL_LANES, sum, 2);
    if (down >= out->count)
        return;
    const float share = 1.0f / sum;
    float *row = out->o + down * out->row + (int)threadIdx.x % 4 * 2;
    if ((int)threadIdx.x % 4 == 0)
        out->lse[down] = max + logf(sum);
#pragma unroll
    for (int n = 0; n < WIDTH / 8; n++)
        *(float2 *)(row + n * 8) = make_float2(o[n][i] * share, o[n][i + 1] * share);
}

/* A block's view of its work. */
typedef struct {
    const dms_bf16 *k, *v; /* of the group: row t is k + t*kv_row */
    const float *bias;     /* [T] of the group, or NULL */
    int64_t kv_row;
    int query, count; /* the first query, and how many exist */
} block_view;

/* The first tile from `key` on that some query of the block sees, or one past the last. */
template <int KEYS, bool BIAS>
static __device__ __forceinline__ int next_tile(const block_view *w, int key, int window)
{
    while (BIAS && key < w->query + w->count &&
           dms_attention_keys_of(w->query, w->count, key, KEYS, window) == DMS_KEYS_LATE &&
           dms_attention_evicted(w->bias + key, KEYS))
        key += KEYS;
    return key;
}

/* The bias that this thread puts into the buffer of the tile from `key`. */
template <int KEYS, bool BIAS>
static __device__ __forceinline__ float bias_of(const block_view *w, int key, int tokens)
{
    const int at = key + (int)threadIdx.x;
    return BIAS && (int)threadIdx.x < KEYS && at < tokens ? w->bias[at] : 0.0f;
}

template <int KEYS, bool BIAS>
static __device__ __forceinline__ void put_bias(const key_buffer *t, float bias, float scale)
{
    if (BIAS && (int)threadIdx.x < KEYS)
        t->bias[threadIdx.x] = bias / scale;
}

/* Begins the copy of the tile from `key`, which is below T. */
template <int WIDTH>
static __device__ __forceinline__ void load_keys(const key_buffer *t, const block_view *w, int key,
                                                 int tokens)
{
    const int64_t at = key * w->kv_row;
    dms_tile_load<WIDTH, KEYS_OF(WIDTH), THREADS>(t->k, w->k + at, w->kv_row, tokens - key);
    dms_tile_load<WIDTH, KEYS_OF(WIDTH), THREADS>(t->v, w->v + at, w->kv_row, tokens - key);
    dms_cp_async_commit();
}

/* Writes this warp's rows; row: its first in the block. */
template <int WIDTH>
static __device__ __forceinline__ void finish(float *o, float *lse, float sum[STACK][WIDTH / 8][4],
                                              const row_state *state, const dms_attention_args *a,
                                              const dms_attention_unit *u, int query)
{
    query += (int)threadIdx.x % DMS_WARP / 4;
#pragma unroll
    for (int m = 0; m < STACK; m++) {
        const int first = query + 16 * m;
        const output_rows out = {o + dms_attention_q_at(a, u->b, first, u->h),
                                 lse + dms_attention_lse_at(a, u->b, first, u->h),
                                 dms_attention_q_row(a), a->tokens - first};
        finish_row<WIDTH>(&out, sum[m], state->max[m][0] * a->scale, state->sum[m][0], 0);
        finish_row<WIDTH>(&out, sum[m], state->max[m][1] * a->scale, state->sum[m][1], 2);
    }
}

static __device__ __forceinline__ block_view block_view_of(const dms_attention_args *a,
                                                           const dms_attention_unit *u)
{
    const int64_t keys = dms_attention_kv_at(a, u->b, 0, u->g);
    block_view w;
    w.k = (const dms_bf16 *)a->k + keys;
    w.v = (const dms_bf16 *)a->v + keys;
    w.bias = a->bias ? a->bias + dms_attention_bias_at(a, u->b, 0, u->g) : NULL;
    w.kv_row = dms_attention_kv_row(a);
    w.query = u->tile * QUERIES;
    w.count = min(QUERIES, a->tokens - w.query);
    return w;
}

template <int WIDTH, bool BIAS>
static __global__ void __launch_bounds__(THREADS, 2)
    attention_kernel(float *o, float *lse, const dms_attention_args a, int tiles)
{
    enum { KEYS = KEYS_OF(WIDTH) };
    DMS_DYNAMIC_SHARED(dms_bf16, q);
    const dms_attention_unit u = dms_attention_unit_of(&a, tiles, blockIdx.x);
    const block_view w = block_view_of(&a, &u);
    const int row = (int)threadIdx.x / DMS_WARP * WARP_ROWS, query = w.query + row;
    const int count = min((int)WARP_ROWS, a.tokens - query), end = w.query + w.count;
    float sum[STACK][WIDTH / 8][4] = {{{0}}}, s[STACK][KEYS / 8][4];
    row_state state = start();
    const key_buffer first = key_buffer_at<WIDTH>(q, 0);
    int key = next_tile<KEYS, BIAS>(&w, 0, a.window);

    dms_tile_load<WIDTH, QUERIES, THREADS>(
        q, (const dms_bf16 *)a.q + dms_attention_q_at(&a, u.b, w.query, u.h),
        dms_attention_q_row(&a), w.count);
    load_keys<WIDTH>(&first, &w, key, a.tokens);
    put_bias<KEYS, BIAS>(&first, bias_of<KEYS, BIAS>(&w, key, a.tokens), a.scale);
    for (int turn = 0; key < end; turn ^= 1) {
        const key_buffer now = key_buffer_at<WIDTH>(q, turn);
        const key_buffer other = key_buffer_at<WIDTH>(q, turn ^ 1);
        const int next = next_tile<KEYS, BIAS>(&w, key + KEYS, a.window);
        const float bias = bias_of<KEYS, BIAS>(&w, next, a.tokens);
        dms_cp_async_wait<0>();
        __syncthreads(); /* this tile is here, and nobody reads the other buffer any more */
        if (next < end)
            load_keys<WIDTH>(&other, &w, next, a.tokens);
        const dms_attention_keys kind =
            count < 1 ? DMS_KEYS_UNSEEN : dms_attention_keys_of(query, count, key, KEYS, a.window);
        if (kind != DMS_KEYS_UNSEEN) {
            dms_softmax_scores<WIDTH, STACK, KEYS, false>(s, q, now.k, row);
            if (BIAS && kind == DMS_KEYS_LATE)
                add_bias<KEYS>(s, now.bias);
            else if (kind == DMS_KEYS_MIXED)
                apply_law<KEYS, BIAS>(s, now.bias, query + (int)threadIdx.x % DMS_WARP / 4 - key,
                                      a.window);
            dms_softmax_soften<WIDTH, STACK, KEYS>(sum, s, state.max, state.sum, a.scale * LOG2_E);
            dms_softmax_add<WIDTH, STACK, KEYS>(sum, s, now.v);
        }
        put_bias<KEYS, BIAS>(&other, bias, a.scale);
        key = next;
    }
    finish<WIDTH>(o, lse, sum, &state, &a, &u, query);
}

template <int WIDTH, bool BIAS>
static dms_status launch(dms_device *dev, float *o, float *lse, const dms_attention_args *args)
{
    const int tiles = dms_attention_tiles(args, QUERIES);
    const size_t shared = shared_bytes<WIDTH>();
    DMS_CUDA_TRY(DMS_ALLOW_SHARED((attention_kernel<WIDTH, BIAS>), shared));
    DMS_LAUNCH((attention_kernel<WIDTH, BIAS>), dms_attention_units(args, tiles), THREADS, shared,
               dms_cuda_stream(dev), o, lse, *args, tiles);
    return DMS_LAUNCHED();
}

/* The one place where what is known at run time chooses among compiled kernels. */
static dms_status choose(dms_device *dev, float *o, float *lse, const dms_attention_args *args)
{
    switch (args->width) {
    case 64:
        return args->bias ? launch<64, true>(dev, o, lse, args)
                          : launch<64, false>(dev, o, lse, args);
    case 96:
        return args->bias ? launch<96, true>(dev, o, lse, args)
                          : launch<96, false>(dev, o, lse, args);
    default:
        return args->bias ? launch<128, true>(dev, o, lse, args)
                          : launch<128, false>(dev, o, lse, args);
    }
}

/* Puts copies of q, k and v in bf16 into the device's scratch memory. */
static dms_status round_operands(dms_attention_args *args, const dms_attention_in *in)
{
    dms_device *dev = in->q->device;
    const dms_tensor *from[] = {in->q, in->k, in->v};
    const void **to[] = {&args->q, &args->k, &args->v};
    size_t bytes = 0;
    void *scratch = NULL;

    for (int i = 0; i < 3; i++)
        bytes += dms_cuda_part((size_t)dms_count(from[i]) * sizeof(dms_bf16));
    DMS_TRY(dms_cuda_scratch(&scratch, dev, bytes));
    for (int i = 0; i < 3; i++) {
        const int64_t n = dms_count(from[i]);
        DMS_TRY(dms_cuda_round(dev, scratch, from[i]->data, n));
        *to[i] = scratch;
        scratch = (char *)scratch + dms_cuda_part((size_t)n * sizeof(dms_bf16));
    }
    return DMS_OK;
}

static bool fits_tensor_cores(int width)
{
    return width == 64 || width == 96 || width == 128;
}

dms_status dms_cuda_attention(dms_tensor *o, dms_tensor *lse, const dms_attention_in *in)
{
    dms_device *dev = in->q->device;
    float *out = (float *)o->data, *sums = (float *)lse->data;
    dms_attention_args args;

    if (!dms_count(in->q))
        return DMS_OK;
    if (dms_cuda_dense_supports(dev, in))
        return dms_cuda_dense_attention(o, lse, in);
    DMS_TRY(dms_attention_args_of(&args, in));
    if (!in->bf16 || !fits_tensor_cores(in->head_dim))
        return dms_cuda_attention_plain(dev, out, sums, &args);
    DMS_TRY(round_operands(&args, in));
    return choose(dev, out, sums, &args);
}
