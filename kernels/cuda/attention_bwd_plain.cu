/* Attention backward in f32, without tensor cores: any head width up to 256.
 *
 * Two passes, as in attention_bwd.cu, where the reason stands. A block of 256 threads holds TILE
 * rows (keys in one pass, queries in the other) and walks over tiles of TILE rows of the other
 * side. Scores: a thread owns TILE/16 x TILE/16 pairs. Gradients: 256/TILE threads share a held
 * row, COLUMNS channels each, in registers. Bound by reads of shared memory, about one a product.
 */
#include "kernels/cuda/attention_bwd.cuh"

enum { THREADS = 256, SIDE = 16 /* threads are SIDE x SIDE over a tile of scores */ };

/* Rows in shared memory are an odd number of floats apart: a column touches all banks. */
typedef struct {
    float *q, *dout, *k, *v;   /* [TILE, row] */
    float *p, *ds;             /* [TILE queries, TILE + 1] */
    float *lse, *delta, *bias; /* [TILE] */
    int row;
} plain_tiles;

template <int TILE> static inline size_t plain_bytes(int width)
{
    return (size_t)(4 * TILE * (width | 1) + 2 * TILE * (TILE + 1) + 3 * TILE) * sizeof(float);
}

template <int TILE>
static __device__ __forceinline__ plain_tiles plain_tiles_at(float *shared, int width)
{
    const int row = width | 1;
    plain_tiles s;
    s.row = row;
    s.q = shared;
    s.dout = s.q + TILE * row;
    s.k = s.dout + TILE * row;
    s.v = s.k + TILE * row;
    s.p = s.v + TILE * row;
    s.ds = s.p + TILE * (TILE + 1);
    s.lse = s.ds + TILE * (TILE + 1);
    s.delta = s.lse + TILE;
    s.bias = s.delta + TILE;
    return s;
}

/* to: [TILE, row] = `count` rows of from, zeros below them. A warp copies a row. */
template <int TILE>
static __device__ __forceinline__ void plain_load(float *to, int row, const float *from,
                                                  int64_t from_row, int count, int width)
{
    const int lane = (int)threadIdx.x % DMS_WARP;
    for (int r = (int)threadIdx.x / DMS_WARP; r < TILE; r += THREADS / DMS_WARP)
        for (int e = lane; e < width; e += DMS_WARP)
            to[r * row + e] = r < count ? from[r * from_row + e] : 0.0f;
}

/* Queries past the end get lse = infinity: their weights and gradients are 0. */
template <int TILE>
static __device__ __forceinline__ void
plain_load_queries(const plain_tiles *s, const dms_attention_bwd_args *a, int b, int h, int query)
{
    const int i = (int)threadIdx.x, count = a->at.tokens - query;
    const int64_t at = dms_attention_q_at(&a->at, b, query, h), row = dms_attention_q_row(&a->at);
    const int64_t numbers = dms_attention_lse_at(&a->at, b, query, h);

    plain_load<TILE>(s->q, s->row, (const float *)a->at.q + at, row, count, a->at.width);
    plain_load<TILE>(s->dout, s->row, (const float *)a->dout + at, row, count, a->at.width);
    if (i < TILE) {
        s->lse[i] = i < count ? a->lse[numbers + i] : INFINITY;
        s->delta[i] = i < count ? a->delta[numbers + i] : 0.0f;
    }
}

template <int TILE>
static __device__ __forceinline__ void
plain_load_keys(const plain_tiles *s, const dms_attention_args *a, int b, int g, int key)
{
    const int i = (int)threadIdx.x, count = a->tokens - key;
    const int64_t at = dms_attention_kv_at(a, b, key, g), row = dms_attention_kv_row(a);

    plain_load<TILE>(s->k, s->row, (const float *)a->k + at, row, count, a->width);
    plain_load<TILE>(s->v, s->row, (const float *)a->v + at, row, count, a->width);
    if (i < TILE)
        s->bias[i] = a->bias && i < count ? a->bias[dms_attention_bias_at(a, b, key, g) + i] : 0.0f;
}

/* p and ds of the pairs of a tile; what late pairs leave is added to dbias [TILE/SIDE]: this
 * thread's keys are x + SIDE*j, x = threadIdx % SIDE. */
template <int TILE>
static __device__ __forceinline__ void
plain_weights(const plain_tiles *s, const dms_attention_args *a, int query, int key, float *dbias)
{
    const int N = TILE / SIDE, x = (int)threadIdx.x % SIDE, y = (int)threadIdx.x / SIDE;
    float score[N][N] = {}, dp[N][N] = {};

    for (int e = 0; e < a->width; e++)
        for (int i = 0; i < N; i++)
            for (int j = 0; j < N; j++) {
                const int r = (y + SIDE * i) * s->row + e, c = (x + SIDE * j) * s->row + e;
                score[i][j] += s->q[r] * s->k[c];
                dp[i][j] += s->dout[r] * s->v[c];
            }
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            const int r = y + SIDE * i, c = x + SIDE * j, at = r * (TILE + 1) + c;
            const float added = dms_attention_mask(query + r, key + c, a->window, s->bias[c]);
            const float p = expf(score[i][j] * a->scale + added - s->lse[r]);
            const float ds = p * (dp[i][j] - s->delta[r]);
            s->p[at] = p;
            s->ds[at] = ds;
            dbias[j] += dms_is_late(query + r, key + c, a->window) ? ds : 0.0f;
        }
}

/* sum[c] += sum over i of weights[i*step] * rows[i, x + c*SHARE]: this thread's channels of its
 * held row, x = threadIdx % SHARE. */
template <int TILE, int COLUMNS>
static __device__ __forceinline__ void plain_add(float *sum, const float *weights, int step,
                                                 const float *rows, const plain_tiles *s, int width)
{
    const int SHARE = THREADS / TILE, x = (int)threadIdx.x % SHARE;
    for (int i = 0; i < TILE; i++) {
        const float w = weights[i * step];
        for (int c = 0; c < COLUMNS; c++)
            if (x + c * SHARE < width)
                sum[c] += w * rows[i * s->row + x + c * SHARE];
    }
}

/* out: this thread's held row of a gradient, or NULL. */
template <int TILE, int COLUMNS>
static __device__ __forceinline__ void plain_store(float *out, const float *sum, float scale,
                                                   int width)
{
    const int SHARE = THREADS / TILE, x = (int)threadIdx.x % SHARE;
    for (int c = 0; c < COLUMNS; c++)
        if (out && x + c * SHARE < width)
            out[x + c * SHARE] += scale * sum[c];
}

/* The SIDE partial sums of each key, through p, added in one order. out: [count] or NULL. */
template <int TILE>
static __device__ __forceinline__ void plain_store_bias(float *out, const plain_tiles *s,
                                                        const float *dbias, int count)
{
    const int i = (int)threadIdx.x, x = i % SIDE, y = i / SIDE;
    __syncthreads();
    for (int j = 0; j < TILE / SIDE; j++)
        s->p[y * (TILE + 1) + x + SIDE * j] = dbias[j];
    __syncthreads();
    float sum = 0;
    for (int r = 0; r < SIDE && i < TILE; r++)
        sum += s->p[r * (TILE + 1) + i];
    if (out && i < TILE && i < count)
        out[i] += sum;
}

/* dk, dv, dbias of TILE keys of a group. Blocks of one group are neighbours: its queries stay in
 * L2; the first keys, which the most queries see, come first. */
template <int TILE, int COLUMNS>
static __global__ void __launch_bounds__(THREADS, 2)
    plain_keys_kernel(const dms_attention_bwd_args a, int tiles)
{
    DMS_DYNAMIC_SHARED(float, shared);
    const plain_tiles s = plain_tiles_at<TILE>(shared, a.at.width);
    const int bg = (int)(blockIdx.x / (unsigned)tiles), b = bg / a.at.groups;
    const int g = bg % a.at.groups, per_group = a.at.heads / a.at.groups;
    const int key = (int)(blockIdx.x % (unsigned)tiles) * TILE, T = a.at.tokens;
    const int count = T - key < TILE ? T - key : TILE, r = (int)threadIdx.x / (THREADS / TILE);
    const int64_t bias = dms_attention_bias_at(&a.at, b, key, g);
    const bool evicted = a.at.bias && dms_attention_evicted(a.at.bias + bias, count);
    const int end = evicted && key + count + a.at.window < T ? key + count + a.at.window : T;
    float dk[COLUMNS] = {}, dv[COLUMNS] = {}, dbias[TILE / SIDE] = {};

    plain_load_keys<TILE>(&s, &a.at, b, g, key);
    for (int h = g * per_group; h < (g + 1) * per_group; h++)
        for (int query = key; query < end; query += TILE) {
            __syncthreads();
            plain_load_queries<TILE>(&s, &a, b, h, query);
            __syncthreads();
            plain_weights<TILE>(&s, &a.at, query, key, dbias);
            __syncthreads();
            if (a.dv)
                plain_add<TILE, COLUMNS>(dv, s.p + r, TILE + 1, s.dout, &s, a.at.width);
            if (a.dk)
                plain_add<TILE, COLUMNS>(dk, s.ds + r, TILE + 1, s.q, &s, a.at.width);
        }
    const int64_t at = dms_attention_kv_at(&a.at, b, key + r, g);
    plain_store<TILE, COLUMNS>(a.dv && r < count ? a.dv + at : NULL, dv, 1.0f, a.at.width);
    plain_store<TILE, COLUMNS>(a.dk && r < count ? a.dk + at : NULL, dk, a.at.scale, a.at.width);
    plain_store_bias<TILE>(a.dbias ? a.dbias + bias : NULL, &s, dbias, count);
}

/* dq of TILE queries of a head. */
template <int TILE, int COLUMNS>
static __global__ void __launch_bounds__(THREADS, 2)
    plain_queries_kernel(const dms_attention_bwd_args a, int tiles)
{
    DMS_DYNAMIC_SHARED(float, shared);
    const plain_tiles s = plain_tiles_at<TILE>(shared, a.at.width);
    const dms_attention_unit unit = dms_attention_unit_of(&a.at, tiles, blockIdx.x);
    const int query = unit.tile * TILE, r = (int)threadIdx.x / (THREADS / TILE);
    const int count = a.at.tokens - query < TILE ? a.at.tokens - query : TILE;
    const int64_t bias = dms_attention_bias_at(&a.at, unit.b, 0, unit.g);
    float dq[COLUMNS] = {}, dbias[TILE / SIDE] = {};

    plain_load_queries<TILE>(&s, &a, unit.b, unit.h, query);
    for (int key = 0; key <= query; key += TILE) {
        if (dms_attention_keys_of(query, count, key, TILE, a.at.window) == DMS_KEYS_LATE &&
            dms_attention_evicted(a.at.bias + bias + key, TILE))
            continue;
        __syncthreads();
        plain_load_keys<TILE>(&s, &a.at, unit.b, unit.g, key);
        __syncthreads();
        plain_weights<TILE>(&s, &a.at, query, key, dbias);
        __syncthreads();
        plain_add<TILE, COLUMNS>(dq, s.ds + r * (TILE + 1), 1, s.k, &s, a.at.width);
    }
    if (r < count)
        plain_store<TILE, COLUMNS>(a.dq + dms_attention_q_at(&a.at, unit.b, query + r, unit.h), dq,
                                   a.at.scale, a.at.width);
}

template <int TILE, int COLUMNS>
static dms_status plain_launch(dms_device *dev, const dms_attention_bwd_args *a)
{
    const size_t bytes = plain_bytes<TILE>(a->at.width);
    const int tiles = dms_attention_tiles(&a->at, TILE);

    if (a->dk || a->dv || a->dbias) {
        const unsigned blocks = (unsigned)((int64_t)a->at.batch * a->at.groups * tiles);
        DMS_CUDA_TRY(DMS_ALLOW_SHARED((plain_keys_kernel<TILE, COLUMNS>), bytes));
        DMS_LAUNCH((plain_keys_kernel<TILE, COLUMNS>), blocks, THREADS, bytes, dms_cuda_stream(dev),
                   *a, tiles);
    }
    if (a->dq) {
        DMS_CUDA_TRY(DMS_ALLOW_SHARED((plain_queries_kernel<TILE, COLUMNS>), bytes));
        DMS_LAUNCH((plain_queries_kernel<TILE, COLUMNS>), dms_attention_units(&a->at, tiles),
                   THREADS, bytes, dms_cuda_stream(dev), *a, tiles);
    }
    return DMS_LAUNCHED();
}

/* Tiles shrink with E, so that four of them fit the 99 KiB that a block gets on every GPU. */
dms_status dms_cuda_attention_bwd_plain(dms_device *dev, const dms_attention_bwd_args *args)
{
    const int width = args->at.width;
    if (width <= 64)
        return plain_launch<32, 8>(dev, args);
    if (width <= 128)
        return plain_launch<32, 16>(dev, args);
    if (width <= DMS_MOST_WIDTH)
        return plain_launch<16, DMS_MOST_WIDTH / 16>(dev, args);
    return dms_cuda_too_wide(dev, width);
}
