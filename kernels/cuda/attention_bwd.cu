/* Attention backward: its launcher and its tensor-core form (operands bf16, sums f32).
 *
 * The weights are computed again from the log-sum-exp (Dao et al. 2022), in two passes: keys_kernel
 * owns 64 keys and walks over the queries (dk, dv, dbias), queries_kernel owns 64 queries and walks
 * over the keys (dq). That is 7 products in place of the 5 of one pass, but one pass must add to
 * dq with atomics, in an order that changes from run to run; here every sum has one order, so a run
 * repeats to the bit. A pass whose gradients nobody wants is not launched.
 *
 * Both passes have one shape. A block of 4 warps holds 64 rows of two operands in shared memory, a
 * warp 16 of them; tiles of 32 rows of the other side's two operands come by asynchronous copies,
 * the next one during the work on this one, with one barrier a tile. A warp's scores [16, 32] and
 * their gradients stay in its registers, where accumulators become operands of the next product;
 * its gradients [16, E] are complete at the end. Tiles of 32, not 64: their scores fit beside the
 * gradients in the registers that 2 or 3 blocks an SM leave a thread, and shared memory (69 KiB at
 * E = 128) fits the 99 KiB of smaller GPUs too. Bound by reads of shared memory: a fragment of the
 * moving tile serves the 16 rows of one warp, 2 mma, only.
 *
 * A form for sm_90 would go here, chosen by dms_cuda_device.compute: wgmma takes its operands from
 * shared memory, where TMA puts them, so that one read serves 64 rows; passes and law as below. */
#include "kernels/cuda/attention_bwd.cuh"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/mma_tile.cuh"

enum {
    WARPS = 4,
    THREADS = WARPS * DMS_WARP,
    ROWS = 16,           /* of a warp */
    HELD = WARPS * ROWS, /* rows of a block */
    STEP = 32            /* rows of a moving tile */
};
#define LOG2E 1.4426950408889634f

/* One stage of what moves: two tiles and two numbers a row. */
template <int WIDTH> static __device__ __forceinline__ dms_bf16 *stage_at(dms_bf16 *shared, int i)
{
    const int held = 2 * HELD * DMS_TILE_STRIDE(WIDTH), tile = STEP * DMS_TILE_STRIDE(WIDTH);
    return shared + held + i % 2 * (2 * tile + 2 * STEP * 2);
}

template <int WIDTH> static __device__ __forceinline__ float *numbers_of(dms_bf16 *stage)
{
    return (float *)(void *)(stage + 2 * STEP * DMS_TILE_STRIDE(WIDTH));
}

template <int WIDTH> static inline size_t shared_bytes(void)
{
    return (size_t)(2 * DMS_TILE_BYTES(HELD, WIDTH) + 4 * DMS_TILE_BYTES(STEP, WIDTH)) +
           2 * 2 * STEP * sizeof(float);
}

/* d [16, STEP] = rows m.. of held, times the transpose of moving. */
template <int WIDTH>
static __device__ __forceinline__ void multiply(float d[STEP / 8][4], const dms_bf16 *held, int m,
                                                const dms_bf16 *moving)
{
#pragma unroll
    for (int n = 0; n < STEP / 8; n++)
        d[n][0] = d[n][1] = d[n][2] = d[n][3] = 0.0f;
#pragma unroll
    for (int k = 0; k < WIDTH; k += 16) {
        uint32_t a[4];
        dms_tile_a<WIDTH>(a, held, m, k);
#pragma unroll
        for (int n = 0; n < STEP; n += 16) {
            uint32_t b[4];
            dms_tile_b<WIDTH>(b, moving, n, k);
            dms_mma_bf16(d[n / 8], a, b);
            dms_mma_bf16(d[n / 8 + 1], a, b + 2);
        }
    }
}

/* sum [16, WIDTH] += weights [16, STEP], rounded to bf16, times moving [STEP, WIDTH]. */
template <int WIDTH>
static __device__ __forceinline__ void
add_weighted(float sum[WIDTH / 8][4], const float weights[STEP / 8][4], const dms_bf16 *moving)
{
#pragma unroll
    for (int k = 0; k < STEP; k += 16) {
        uint32_t a[4];
        dms_tile_a_from(a, weights[k / 8], weights[k / 8 + 1]);
#pragma unroll
        for (int n = 0; n < WIDTH; n += 16) {
            uint32_t b[4];
            dms_tile_b_trans<WIDTH>(b, moving, n, k);
            dms_mma_bf16(sum[n / 8], a, b);
            dms_mma_bf16(sum[n / 8 + 1], a, b + 2);
        }
    }
}

/* Adds scale * sum to a warp's rows of a gradient, `row` floats apart; rows from `count` on are
 * past the end. */
template <int WIDTH>
static __device__ __forceinline__ void store(float *out, int64_t row, int count,
                                             const float sum[WIDTH / 8][4], float scale)
{
    const int lane = (int)threadIdx.x % DMS_WARP;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int r = lane / 4 + 8 * half;
        if (r >= count)
            continue;
#pragma unroll
        for (int n = 0; n < WIDTH / 8; n++) {
            float2 *at = (float2 *)(void *)(out + r * row + n * 8 + lane % 4 * 2);
            float2 value = *at;
            value.x += scale * sum[n][2 * half];
            value.y += scale * sum[n][2 * half + 1];
            *at = value;
        }
    }
}

/* What one warp knows of the tile it works on. Logarithms have base 2. Accumulator element i of
 * column group n is row i/2, column n*8 + i%2 of those that `row` and `column` begin. */
typedef struct {
    int row, column; /* of this lane's first element: a token each */
    int window;
    float scale; /* of a score: log2(e)/sqrt(E) */
    dms_attention_keys kind;
} tile_view;

/* ---- keys: scores are [keys, queries] ------------------------------------------------------- */

/* numbers: log-sum-exp of the tile's queries from this lane's first on, then STEP further their
 * delta. */
static __device__ __forceinline__ void keys_weights(float p[STEP / 8][4], const tile_view *t,
                                                    const float *numbers, const float bias[2])
{
#pragma unroll
    for (int n = 0; n < STEP / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            p[n][i] = p[n][i] * t->scale - numbers[n * 8 + i % 2];
    if (t->kind == DMS_KEYS_LATE)
#pragma unroll
        for (int n = 0; n < STEP / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                p[n][i] += bias[i / 2];
    if (t->kind == DMS_KEYS_MIXED)
#pragma unroll
        for (int n = 0; n < STEP / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                p[n][i] += dms_attention_mask(t->column + n * 8 + i % 2, t->row + i / 2 * 8,
                                              t->window, bias[i / 2]);
#pragma unroll
    for (int n = 0; n < STEP / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            p[n][i] = dms_exp2(p[n][i]);
}

/* ds = p*(dp - delta), in place of dp; what late pairs leave is added to dbias. */
static __device__ __forceinline__ void keys_gradients(float ds[STEP / 8][4],
                                                      const float p[STEP / 8][4],
                                                      const tile_view *t, const float *numbers,
                                                      float dbias[2])
{
#pragma unroll
    for (int n = 0; n < STEP / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            ds[n][i] = p[n][i] * (ds[n][i] - numbers[STEP + n * 8 + i % 2]);
    if (t->kind == DMS_KEYS_INSIDE)
        return;
#pragma unroll
    for (int n = 0; n < STEP / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (t->kind == DMS_KEYS_LATE ||
                dms_is_late(t->column + n * 8 + i % 2, t->row + i / 2 * 8, t->window))
                dbias[i / 2] += ds[n][i];
}

/* The keys of a block, and the queries that it walks over: `steps` tiles for each head. */
typedef struct {
    int b, g, key, first_head, steps;
} keys_walk;

/* Blocks of one group are neighbours, so that its queries stay in L2; the first keys, which the
 * most queries see, come first. Queries beyond the window of evicted keys are left out. */
static __device__ __forceinline__ keys_walk keys_walk_of(const dms_attention_args *a, int tiles)
{
    const int bg = (int)(blockIdx.x / (unsigned)tiles), left = a->tokens;
    keys_walk w;
    w.b = bg / a->groups;
    w.g = bg % a->groups;
    w.key = (int)(blockIdx.x % (unsigned)tiles) * HELD;
    w.first_head = w.g * (a->heads / a->groups);
    const int count = left - w.key < HELD ? left - w.key : HELD;
    const float *bias =
        a->bias ? a->bias + dms_attention_bias_at(a, w.b, w.key, w.g) : (const float *)NULL;
    int queries = left - w.key;
    if (bias && dms_attention_evicted(bias, count) && count + a->window < queries)
        queries = count + a->window;
    w.steps = (queries + STEP - 1) / STEP;
    return w;
}

/* Begins the copy of queries and dout of step i; returns the number that this thread stores with
 * keys_numbers once it has arrived. Queries past the end have lse = infinity: no weight. */
template <int WIDTH>
static __device__ __forceinline__ float keys_load(dms_bf16 *shared, const dms_attention_bwd_args *a,
                                                  const keys_walk *w, int i)
{
    const int h = w->first_head + i / w->steps, query = w->key + i % w->steps * STEP;
    const int r = (int)threadIdx.x % STEP, count = a->at.tokens - query;
    const int64_t at = dms_attention_q_at(&a->at, w->b, query, h);
    const int64_t row = dms_attention_q_row(&a->at);
    dms_bf16 *q = stage_at<WIDTH>(shared, i), *dout = q + STEP * DMS_TILE_STRIDE(WIDTH);

    dms_tile_load<WIDTH, STEP, THREADS>(q, (const dms_bf16 *)a->at.q + at, row, count);
    dms_tile_load<WIDTH, STEP, THREADS>(dout, (const dms_bf16 *)a->dout + at, row, count);
    dms_cp_async_commit();
    const bool is_lse = (int)threadIdx.x < STEP;
    if (r >= count || (int)threadIdx.x >= 2 * STEP)
        return is_lse ? INFINITY : 0.0f;
    const int64_t number = dms_attention_lse_at(&a->at, w->b, query + r, h);
    return is_lse ? LOG2E * a->lse[number] : a->delta[number];
}

template <int WIDTH>
static __device__ __forceinline__ void keys_numbers(dms_bf16 *shared, int i, float number)
{
    if ((int)threadIdx.x < 2 * STEP)
        numbers_of<WIDTH>(stage_at<WIDTH>(shared, i))[threadIdx.x] = number;
}

/* A warp's gradients of its keys, and the bias of this lane's two. */
template <int WIDTH> struct keys_sums {
    float dk[WIDTH / 8][4], dv[WIDTH / 8][4], dbias[2], bias[2];
};

/* The work of a warp on one tile. held: k, then v; moving: q, then dout, then their numbers. */
template <int WIDTH>
static __device__ __forceinline__ void
keys_step(keys_sums<WIDTH> *s, const dms_attention_bwd_args *a, const tile_view *t,
          const dms_bf16 *held, int m, dms_bf16 *moving)
{
    const dms_bf16 *v = held + HELD * DMS_TILE_STRIDE(WIDTH);
    const dms_bf16 *dout = moving + STEP * DMS_TILE_STRIDE(WIDTH);
    const float *numbers = numbers_of<WIDTH>(moving) + (int)threadIdx.x % 4 * 2;
    float p[STEP / 8][4], ds[STEP / 8][4];

    multiply<WIDTH>(p, held, m, moving);
    keys_weights(p, t, numbers, s->bias);
    if (a->dv)
        add_weighted<WIDTH>(s->dv, p, dout);
    if (!a->dk && !a->dbias)
        return;
    multiply<WIDTH>(ds, v, m, dout);
    keys_gradients(ds, p, t, numbers, s->dbias);
    if (a->dk)
        add_weighted<WIDTH>(s->dk, ds, moving);
}

/* key: the warp's first. */
template <int WIDTH>
static __device__ __forceinline__ void
keys_store(const keys_sums<WIDTH> *s, const dms_attention_bwd_args *a, const keys_walk *w, int key)
{
    const int lane = (int)threadIdx.x % DMS_WARP, count = a->at.tokens - key;
    const int64_t at = dms_attention_kv_at(&a->at, w->b, key, w->g);
    const int64_t row = dms_attention_kv_row(&a->at);

    if (a->dv)
        store<WIDTH>(a->dv + at, row, count, s->dv, 1.0f);
    if (a->dk)
        store<WIDTH>(a->dk + at, row, count, s->dk, a->at.scale);
    if (!a->dbias)
        return;
    for (int half = 0; half < 2; half++) {
        const int r = lane / 4 + 8 * half;
        float sum = s->dbias[half];
        sum += __shfl_xor_sync(DMS_ALL_LANES, sum, 1);
        sum += __shfl_xor_sync(DMS_ALL_LANES, sum, 2);
        if (lane % 4 == 0 && r < count)
            a->dbias[dms_attention_bias_at(&a->at, w->b, key + r, w->g)] += sum;
    }
}

/* Begins the copy of the keys and values that the block holds; reads this lane's biases. */
template <int WIDTH>
static __device__ __forceinline__ void keys_hold(keys_sums<WIDTH> *s, dms_bf16 *held,
                                                 const dms_attention_args *a, const keys_walk *w,
                                                 int key)
{
    const int count = a->tokens - w->key, first = key + (int)threadIdx.x % DMS_WARP / 4;
    const int64_t at = dms_attention_kv_at(a, w->b, w->key, w->g), row = dms_attention_kv_row(a);

    dms_tile_load<WIDTH, HELD, THREADS>(held, (const dms_bf16 *)a->k + at, row, count);
    dms_tile_load<WIDTH, HELD, THREADS>(held + HELD * DMS_TILE_STRIDE(WIDTH),
                                        (const dms_bf16 *)a->v + at, row, count);
    for (int half = 0; half < 2; half++)
        if (a->bias && first + 8 * half < a->tokens)
            s->bias[half] = LOG2E * a->bias[dms_attention_bias_at(a, w->b, first + 8 * half, w->g)];
}

/* dk, dv, dbias of HELD keys of a group. */
template <int WIDTH>
static __global__ void __launch_bounds__(THREADS, 2)
    keys_kernel(const dms_attention_bwd_args a, int tiles)
{
    DMS_DYNAMIC_SHARED(dms_bf16, shared);
    const keys_walk w = keys_walk_of(&a.at, tiles);
    const int lane = (int)threadIdx.x % DMS_WARP, m = (int)threadIdx.x / DMS_WARP * ROWS;
    const int key = w.key + m, steps = w.steps * (a.at.heads / a.at.groups);
    keys_sums<WIDTH> sums = {};

    keys_hold<WIDTH>(&sums, shared, &a.at, &w, key);
    keys_numbers<WIDTH>(shared, 0, keys_load<WIDTH>(shared, &a, &w, 0));
    for (int i = 0; i < steps; i++) {
        const int query = w.key + i % w.steps * STEP;
        const tile_view t = {key + lane / 4, query + lane % 4 * 2, a.at.window, a.at.scale * LOG2E,
                             dms_attention_keys_of(query, STEP, key, ROWS, a.at.window)};
        float next = 0.0f;

        dms_cp_async_wait<0>();
        __syncthreads(); /* this tile is here, and nobody reads the one before it any more */
        if (i + 1 < steps)
            next = keys_load<WIDTH>(shared, &a, &w, i + 1);
        if (t.kind != DMS_KEYS_UNSEEN)
            keys_step<WIDTH>(&sums, &a, &t, shared, m, stage_at<WIDTH>(shared, i));
        if (i + 1 < steps)
            keys_numbers<WIDTH>(shared, i + 1, next);
    }
    keys_store<WIDTH>(&sums, &a, &w, key);
}

/* ---- queries: scores are [queries, keys] ---------------------------------------------------- */

/* A warp's gradient of its queries, and what it knows of this lane's two. */
template <int WIDTH> struct queries_sums {
    float dq[WIDTH / 8][4], lse[2], delta[2];
};

/* ds = p*(dp - delta) from scores s, in place of dp. bias: of the tile's keys, from this lane's
 * first on. */
static __device__ __forceinline__ void queries_gradients(float ds[STEP / 8][4],
                                                         float s[STEP / 8][4], const tile_view *t,
                                                         const float *bias, const float lse[2],
                                                         const float delta[2])
{
#pragma unroll
    for (int n = 0; n < STEP / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            s[n][i] = s[n][i] * t->scale - lse[i / 2];
    if (t->kind == DMS_KEYS_LATE)
#pragma unroll
        for (int n = 0; n < STEP / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                s[n][i] += bias[n * 8 + i % 2];
    if (t->kind == DMS_KEYS_MIXED)
#pragma unroll
        for (int n = 0; n < STEP / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                s[n][i] += dms_attention_mask(t->row + i / 2 * 8, t->column + n * 8 + i % 2,
                                              t->window, bias[n * 8 + i % 2]);
#pragma unroll
    for (int n = 0; n < STEP / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            ds[n][i] = dms_exp2(s[n][i]) * (ds[n][i] - delta[i / 2]);
}

/* The work of a warp on one tile. held: q, then dout; moving: k, then v, then the biases. */
template <int WIDTH>
static __device__ __forceinline__ void queries_step(queries_sums<WIDTH> *s, const tile_view *t,
                                                    const dms_bf16 *held, int m, dms_bf16 *moving)
{
    const float *bias = numbers_of<WIDTH>(moving) + (int)threadIdx.x % 4 * 2;
    float score[STEP / 8][4], ds[STEP / 8][4];

    multiply<WIDTH>(score, held, m, moving);
    multiply<WIDTH>(ds, held + HELD * DMS_TILE_STRIDE(WIDTH), m,
                    moving + STEP * DMS_TILE_STRIDE(WIDTH));
    queries_gradients(ds, score, t, bias, s->lse, s->delta);
    add_weighted<WIDTH>(s->dq, ds, moving);
}

/* Begins the copy of the queries and of dout that the block holds; reads this lane's numbers.
 * Queries past the end have lse = infinity: no weight. query: the warp's first. */
template <int WIDTH>
static __device__ __forceinline__ void queries_hold(queries_sums<WIDTH> *s, dms_bf16 *held,
                                                    const dms_attention_bwd_args *a,
                                                    const dms_attention_unit *u, int query)
{
    const int first = u->tile * HELD, count = a->at.tokens - first;
    const int64_t at = dms_attention_q_at(&a->at, u->b, first, u->h);
    const int64_t row = dms_attention_q_row(&a->at);

    dms_tile_load<WIDTH, HELD, THREADS>(held, (const dms_bf16 *)a->at.q + at, row, count);
    dms_tile_load<WIDTH, HELD, THREADS>(held + HELD * DMS_TILE_STRIDE(WIDTH),
                                        (const dms_bf16 *)a->dout + at, row, count);
    for (int half = 0; half < 2; half++) {
        const int t = query + (int)threadIdx.x % DMS_WARP / 4 + 8 * half;
        const int64_t number = dms_attention_lse_at(&a->at, u->b, t, u->h);
        s->lse[half] = t < a->at.tokens ? LOG2E * a->lse[number] : INFINITY;
        s->delta[half] = t < a->at.tokens ? a->delta[number] : 0.0f;
    }
}

/* Begins the copy of the keys and values from `key` on as tile i; returns the bias that this thread
 * stores once it has arrived. */
template <int WIDTH>
static __device__ __forceinline__ float queries_load(dms_bf16 *shared, const dms_attention_args *a,
                                                     const dms_attention_unit *u, int key, int i)
{
    const int r = (int)threadIdx.x, count = a->tokens - key;
    const int64_t at = dms_attention_kv_at(a, u->b, key, u->g), row = dms_attention_kv_row(a);
    dms_bf16 *k = stage_at<WIDTH>(shared, i), *v = k + STEP * DMS_TILE_STRIDE(WIDTH);

    dms_tile_load<WIDTH, STEP, THREADS>(k, (const dms_bf16 *)a->k + at, row, count);
    dms_tile_load<WIDTH, STEP, THREADS>(v, (const dms_bf16 *)a->v + at, row, count);
    dms_cp_async_commit();
    if (!a->bias || r >= STEP || r >= count)
        return 0.0f;
    return LOG2E * a->bias[dms_attention_bias_at(a, u->b, key + r, u->g)];
}

template <int WIDTH>
static __device__ __forceinline__ void queries_biases(dms_bf16 *shared, int i, float bias)
{
    if ((int)threadIdx.x < STEP)
        numbers_of<WIDTH>(stage_at<WIDTH>(shared, i))[threadIdx.x] = bias;
}

/* The first tile from `key` on of which these queries see a key. The one on the diagonal always
 * is. */
static __device__ __forceinline__ int queries_next(const dms_attention_args *a,
                                                   const dms_attention_unit *u, int key)
{
    const int query = u->tile * HELD;
    while (dms_attention_keys_of(query, HELD, key, STEP, a->window) == DMS_KEYS_LATE &&
           dms_attention_evicted(a->bias + dms_attention_bias_at(a, u->b, key, u->g), STEP))
        key += STEP;
    return key;
}

/* dq of HELD queries of a head. */
template <int WIDTH>
static __global__ void __launch_bounds__(THREADS, WIDTH < 128 ? 3 : 2)
    queries_kernel(const dms_attention_bwd_args a, int tiles)
{
    DMS_DYNAMIC_SHARED(dms_bf16, shared);
    const dms_attention_unit u = dms_attention_unit_of(&a.at, tiles, blockIdx.x);
    const int lane = (int)threadIdx.x % DMS_WARP, m = (int)threadIdx.x / DMS_WARP * ROWS;
    const int query = u.tile * HELD + m, T = a.at.tokens;
    const int end = T - u.tile * HELD < HELD ? T : u.tile * HELD + HELD;
    int key = queries_next(&a.at, &u, 0);
    queries_sums<WIDTH> sums = {};

    queries_hold<WIDTH>(&sums, shared, &a, &u, query);
    queries_biases<WIDTH>(shared, 0, queries_load<WIDTH>(shared, &a.at, &u, key, 0));
    for (int i = 0; key < end; i++) {
        const int after = queries_next(&a.at, &u, key + STEP);
        const tile_view t = {query + lane / 4, key + lane % 4 * 2, a.at.window, a.at.scale * LOG2E,
                             dms_attention_keys_of(query, ROWS, key, STEP, a.at.window)};
        float bias = 0.0f;

        dms_cp_async_wait<0>();
        __syncthreads(); /* this tile is here, and nobody reads the one before it any more */
        if (after < end)
            bias = queries_load<WIDTH>(shared, &a.at, &u, after, i + 1);
        if (t.kind != DMS_KEYS_UNSEEN)
            queries_step<WIDTH>(&sums, &t, shared, m, stage_at<WIDTH>(shared, i));
        if (after < end)
            queries_biases<WIDTH>(shared, i + 1, bias);
        key = after;
    }
    if (query < T)
        store<WIDTH>(a.dq + dms_attention_q_at(&a.at, u.b, query, u.h), dms_attention_q_row(&a.at),
                     T - query, sums.dq, a.at.scale);
}

template <int WIDTH> static dms_status launch(dms_device *dev, const dms_attention_bwd_args *a)
{
    const size_t bytes = shared_bytes<WIDTH>();
    const int tiles = dms_attention_tiles(&a->at, HELD);

    if (a->dk || a->dv || a->dbias) {
        const unsigned blocks = (unsigned)((int64_t)a->at.batch * a->at.groups * tiles);
        DMS_CUDA_TRY(DMS_ALLOW_SHARED((keys_kernel<WIDTH>), bytes));
        DMS_LAUNCH((keys_kernel<WIDTH>), blocks, THREADS, bytes, dms_cuda_stream(dev), *a, tiles);
    }
    if (a->dq) {
        DMS_CUDA_TRY(DMS_ALLOW_SHARED((queries_kernel<WIDTH>), bytes));
        DMS_LAUNCH((queries_kernel<WIDTH>), dms_attention_units(&a->at, tiles), THREADS, bytes,
                   dms_cuda_stream(dev), *a, tiles);
    }
    return DMS_LAUNCHED();
}

/* ---- both forms ----------------------------------------------------------------------------- */

/* delta[b,h,t] = sum over the channels of dout * o, a warp a row. From the rounded dout where
 * products take it rounded: then the rows of dS still add up to nothing. */
template <typename S>
static __global__ void __launch_bounds__(256)
    delta_kernel(float *delta, const float *o, const S *dout, const dms_attention_args a)
{
    const int lane = (int)threadIdx.x % DMS_WARP, warps = (int)blockDim.x / DMS_WARP;
    const int64_t rows = (int64_t)a.batch * a.tokens * a.heads;
    int64_t row = (int64_t)blockIdx.x * warps + (int)threadIdx.x / DMS_WARP;
    for (; row < rows; row += (int64_t)gridDim.x * warps) {
        float sum = 0;
        for (int e = lane; e < a.width; e += DMS_WARP)
            sum += dms_load(dout + row * a.width + e) * o[row * a.width + e];
        sum = dms_warp_sum(sum);
        const int h = (int)(row % a.heads);
        const int64_t t = row / a.heads;
        if (lane == 0)
            delta[dms_attention_lse_at(&a, (int)(t / a.tokens), (int)(t % a.tokens), h)] = sum;
    }
}

/* Rounds q, k, v and dout into `to`; the arguments then name the copies. */
static dms_status round_operands(dms_device *dev, dms_attention_bwd_args *a, char *to)
{
    const int64_t tokens = (int64_t)a->at.batch * a->at.tokens * a->at.width;
    const void **operands[] = {&a->at.q, &a->at.k, &a->at.v, &a->dout};
    for (int i = 0; i < 4; i++) {
        const int64_t n = tokens * (i == 1 || i == 2 ? a->at.groups : a->at.heads);
        DMS_TRY(dms_cuda_round(dev, to, *operands[i], n));
        *operands[i] = to;
        to += dms_cuda_part((size_t)n * sizeof(dms_bf16));
    }
    return DMS_OK;
}

static bool takes_bf16(const dms_attention_in *in)
{
    const int width = in->head_dim;
    return in->bf16 && (width == 64 || width == 96 || width == 128);
}

dms_status dms_cuda_attention_bwd(const dms_attention_grads *grads, const dms_attention_in *in)
{
    dms_device *dev = in->q->device;
    const bool bf16 = takes_bf16(in);
    const size_t deltas = dms_cuda_part(dms_tensor_bytes(grads->lse));
    const size_t copies = 2 * (dms_cuda_part((size_t)dms_count(in->q) * sizeof(dms_bf16)) +
                               dms_cuda_part((size_t)dms_count(in->k) * sizeof(dms_bf16)));
    const int64_t rows = dms_count(grads->lse);
    dms_attention_bwd_args a = {};
    void *scratch = NULL;

    if (!dms_count(in->q))
        return DMS_OK;
    DMS_TRY(dms_attention_args_of(&a.at, in));
    DMS_TRY(dms_cuda_scratch(&scratch, dev, deltas + (bf16 ? copies : 0)));
    float *delta = (float *)scratch;
    const float *o = (const float *)grads->o->data;
    a.dout = grads->dout->data;
    a.lse = (const float *)grads->lse->data;
    a.delta = delta;
    a.dq = grads->dq ? (float *)grads->dq->data : NULL;
    a.dk = grads->dk ? (float *)grads->dk->data : NULL;
    a.dv = grads->dv ? (float *)grads->dv->data : NULL;
    a.dbias = grads->dbias ? (float *)grads->dbias->data : NULL;
    if (!bf16) {
        DMS_LAUNCH(delta_kernel<float>, dms_grid(rows, 8, 1 << 16), 256, 0, dms_cuda_stream(dev),
                   delta, o, (const float *)a.dout, a.at);
        return dms_cuda_attention_bwd_plain(dev, &a);
    }
    DMS_TRY(round_operands(dev, &a, (char *)scratch + deltas));
    DMS_LAUNCH(delta_kernel<dms_bf16>, dms_grid(rows, 8, 1 << 16), 256, 0, dms_cuda_stream(dev),
               delta, o, (const dms_bf16 *)a.dout, a.at);
    return in->head_dim == 64   ? launch<64>(dev, &a)
           : in->head_dim == 96 ? launch<96>(dev, &a)
                                : launch<128>(dev, &a);
}
