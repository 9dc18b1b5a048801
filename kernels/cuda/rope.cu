/* Heads between projection and attention in CUDA: RMSNorm, the gate's logit, the fade, RoPE. A
 * block takes a row, a team of lanes of one warp takes a head. With a norm a head is read twice,
 * the second time from the L1 cache. Positions are on the device, where a launcher cannot read
 * them: one outside the table turns its row into NaN. */
#include "kernels/cuda/column_sum.cuh"

/* BLOCKS a multiprocessor have 40 KB under way, memory needs about 15 (3 TB/s * 0.6 us / 132);
 * MOST_SHARED: bytes of a block's sums of dw. */
enum { BLOCKS = 5, MOST_SHARED = 47 << 10 };

/* Heads of E = 2*half channels, [rows, heads*E], N pairs of channels j and j + half at a time. */
typedef struct {
    const float *table;
    const int32_t *ids;
    const float *norm; /* [E] */
    int64_t rows, positions;
    int tokens, heads, half;
    int team; /* lanes a head: a power of two, at most a warp */
    int borrowed_every;
    float keep, eps;
    dms_logit_spec logit;
} layout;

typedef struct {
    float *y, *rstd, *z; /* rstd and z may be NULL */
    const float *x;
} forward;

typedef struct {
    float *dx, *partial;  /* either may be NULL; partial: [blocks, E] */
    const float *dy, *dz; /* either may be NULL */
    const float *x, *rstd;
} backward;

/* The head of this thread in one row. */
typedef struct {
    int64_t row, at; /* at: of its first channel */
    const float *table;
    int head;
    float keep;
    bool exists; /* lanes beyond the last head only take part in sums over their warp */
    bool known;  /* the position is in the table */
    bool borrowed;
} place;

static __device__ __forceinline__ place place_of(const layout *k, int64_t row, int head)
{
    const int64_t position = k->ids[row];
    const bool known = position >= 0 && position < k->positions, exists = head < k->heads;
    const bool borrowed = exists && k->borrowed_every && head % k->borrowed_every == 0;
    const float *table = k->table + (known ? position * 2 * k->half : 0);
    return {row,
            (row * k->heads + head) * 2 * k->half,
            table,
            head,
            borrowed ? k->keep : 1.0f,
            exists,
            known,
            borrowed};
}

/* Where the logit of a borrowed head lies in [B, G, T]. */
static __device__ __forceinline__ int64_t logit_at(const layout *k, const place *at)
{
    const int groups = (k->heads + k->borrowed_every - 1) / k->borrowed_every;
    const int row = (int)at->row, b = row / k->tokens, g = at->head / k->borrowed_every;
    return (int64_t)(b * groups + g) * k->tokens + row % k->tokens;
}

/* Whether the N pairs from j on hold the channel of a gate's neuron, as their last. */
template <int N>
static __device__ __forceinline__ bool has_neuron(const layout *k, const place *at, int j)
{
    return at->borrowed && j + N == k->half;
}

/* Channels j.. into a, j + half.. into b. */
template <int N>
static __device__ __forceinline__ void load_pairs(float a[N], float b[N], const float *p, int half)
{
    dms_load_few<N>(a, p, N);
    dms_load_few<N>(b, p + half, N);
}

/* N pairs turned by +angle (sign 1) or -angle (-1: the transpose, for the gradient); the last
 * channel of a borrowed head is scaled by keep on both sides. */
template <int N>
static __device__ __forceinline__ void turn(float a[N], float b[N], const layout *k,
                                            const place *at, int j, float sign)
{
    const float keep = j + N == k->half ? at->keep : 1.0f;
    float cosine[N], sine[N];
    load_pairs<N>(cosine, sine, at->table + j, k->half);
    b[N - 1] *= keep;
#pragma unroll
    for (int i = 0; i < N; i++) {
        const float first = a[i], c = at->known ? cosine[i] : __int_as_float(0x7fc00000);
        a[i] = first * c - sign * b[i] * sine[i];
        b[i] = b[i] * c + sign * first * sine[i];
    }
    b[N - 1] *= keep;
}

/* The same in every lane of the team. */
static __device__ __forceinline__ float team_sum(float v, int team)
{
    for (int step = team / 2; step > 0; step /= 2)
        v += __shfl_xor_sync(DMS_ALL_LANES, v, step);
    return v;
}

/* 1/sqrt(mean(x^2) + eps) of a head. */
template <int N>
static __device__ __forceinline__ float head_scale(const float *x, const layout *k, bool exists,
                                                   int lane)
{
    float square = 0.0f;
#pragma unroll 1
    for (int j = N * lane; exists && j < k->half; j += N * k->team) {
        float a[N], b[N];
        load_pairs<N>(a, b, x + j, k->half);
#pragma unroll
        for (int i = 0; i < N; i++)
            square += a[i] * a[i] + b[i] * b[i];
    }
    return 1.0f / sqrtf(team_sum(square, k->team) / (float)(2 * k->half) + k->eps);
}

/* A lane reads its pairs before it writes them, so y may be x. */
template <int N, bool NORM>
static __device__ __forceinline__ void head_forward(const layout *k, const forward *t,
                                                    const place *at, int lane)
{
    const float *x = t->x + at->at;
    const float scale = NORM ? head_scale<N>(x, k, at->exists, lane) : 1.0f;
#pragma unroll 1
    for (int j = N * lane; at->exists && j < k->half; j += N * k->team) {
        float a[N], b[N];
        load_pairs<N>(a, b, x + j, k->half);
        if (NORM) {
            float v[N], w[N];
            load_pairs<N>(v, w, k->norm + j, k->half);
#pragma unroll
            for (int i = 0; i < N; i++) {
                a[i] = a[i] * scale * v[i];
                b[i] = b[i] * scale * w[i];
            }
        }
        if (t->z && has_neuron<N>(k, at, j))
            t->z[logit_at(k, at)] = k->logit.scale * b[N - 1] - k->logit.offset;
        turn<N>(a, b, k, at, j, 1.0f);
        dms_store_few<N>(t->y + at->at + j, a, N);
        dms_store_few<N>(t->y + at->at + k->half + j, b, N);
    }
    if (NORM && t->rstd && at->exists && lane == 0)
        t->rstd[at->row * k->heads + at->head] = scale;
}

template <int N, bool NORM>
static __global__ void __launch_bounds__(DMS_BLOCK, BLOCKS)
    rope_kernel(const layout k, const forward t)
{
    const int lane = (int)threadIdx.x % k.team, first = (int)threadIdx.x / k.team;
    const int teams = (int)blockDim.x / k.team;
    for (int64_t r = blockIdx.x; r < k.rows; r += gridDim.x)
#pragma unroll 1
        for (int h = 0; h < k.heads; h += teams) {
            const place at = place_of(&k, r, h + first);
            head_forward<N, NORM>(&k, &t, &at, lane);
        }
}

/* The gradient of N pairs of the head as it was before the fade. */
template <int N>
static __device__ __forceinline__ void turn_back(float a[N], float b[N], const layout *k,
                                                 const backward *t, const place *at, int j)
{
#pragma unroll
    for (int i = 0; i < N; i++)
        a[i] = b[i] = 0.0f;
    if (t->dy)
        load_pairs<N>(a, b, t->dy + at->at + j, k->half);
    turn<N>(a, b, k, at, j, -1.0f);
    if (t->dz && has_neuron<N>(k, at, j))
        b[N - 1] += k->logit.scale * t->dz[logit_at(k, at)];
}

/* g = u*w and n = x*rstd of one of N pairs' two halves. With u the gradient of the normalised head:
 * dx += rstd*(g - n*mean(g*n)), sum += u*n. */
template <int N>
static __device__ __forceinline__ void half_gradient(const float u[N], const layout *k,
                                                     const backward *t, int64_t at, int channel,
                                                     const float scale_mean[2], float *sum)
{
    const float scale = scale_mean[0];
    float x[N], w[N], more[N];
    dms_load_few<N>(x, t->x + at + channel, N);
    dms_load_few<N>(w, k->norm + channel, N);
#pragma unroll
    for (int i = 0; i < N; i++) {
        w[i] = scale * (u[i] * w[i] - x[i] * scale * scale_mean[1]);
        more[i] = u[i] * x[i] * scale;
    }
    if (t->dx)
        dms_add_few<N>(t->dx + at + channel, w, N);
    if (t->partial)
        dms_add_few<N>(sum + channel, more, N);
}

/* The mean of g*n over the head. */
template <int N>
static __device__ __forceinline__ float head_mean(const layout *k, const backward *t,
                                                  const place *at, int lane, float scale)
{
    float dot = 0.0f;
#pragma unroll 1
    for (int j = N * lane; at->exists && j < k->half; j += N * k->team) {
        float a[N], b[N], x[N], y[N], v[N], w[N];
        turn_back<N>(a, b, k, t, at, j);
        load_pairs<N>(x, y, t->x + at->at + j, k->half);
        load_pairs<N>(v, w, k->norm + j, k->half);
#pragma unroll
        for (int i = 0; i < N; i++)
            dot += a[i] * v[i] * x[i] + b[i] * w[i] * y[i];
    }
    return team_sum(dot, k->team) * scale / (float)(2 * k->half);
}

template <int N, bool NORM>
static __device__ __forceinline__ void head_backward(const layout *k, const backward *t,
                                                     const place *at, int lane, float *sum)
{
    float scale_mean[2] = {0.0f, 0.0f};
    if (NORM && at->exists)
        scale_mean[0] = t->rstd[at->row * k->heads + at->head];
    if (NORM && t->dx)
        scale_mean[1] = head_mean<N>(k, t, at, lane, scale_mean[0]);
#pragma unroll 1
    for (int j = N * lane; at->exists && j < k->half; j += N * k->team) {
        float a[N], b[N];
        turn_back<N>(a, b, k, t, at, j);
        if (NORM) {
            half_gradient<N>(a, k, t, at->at, j, scale_mean, sum);
            half_gradient<N>(b, k, t, at->at, j + k->half, scale_mean, sum);
        } else {
            dms_add_few<N>(t->dx + at->at + j, a, N);
            dms_add_few<N>(t->dx + at->at + k->half + j, b, N);
        }
    }
}

/* Each team sums dw of its heads in shared memory [teams, E], the block sums its teams in order. */
template <int N, bool NORM>
static __global__ void __launch_bounds__(DMS_BLOCK, BLOCKS)
    rope_bwd_kernel(const layout k, const backward t)
{
    DMS_DYNAMIC_SHARED(float, sums);
    const int lane = (int)threadIdx.x % k.team, first = (int)threadIdx.x / k.team;
    const int teams = (int)blockDim.x / k.team, width = 2 * k.half;

    for (int i = (int)threadIdx.x; NORM && t.partial && i < teams * width; i += (int)blockDim.x)
        sums[i] = 0.0f;
    if (NORM)
        __syncthreads();
    for (int64_t r = blockIdx.x; r < k.rows; r += gridDim.x)
#pragma unroll 1
        for (int h = 0; h < k.heads; h += teams) {
            const place at = place_of(&k, r, h + first);
            head_backward<N, NORM>(&k, &t, &at, lane, sums + first * width);
        }
    if (NORM && t.partial)
        dms_leave_partial(t.partial, sums, teams, width);
}

static layout layout_of(const dms_tensor *x, const dms_rope_spec *spec, int width_of_access)
{
    const int half = (int)dms_cols(spec->table) / 2;
    int team = 1;
    while (team < DMS_WARP && team * width_of_access < half)
        team *= 2;
    return {(const float *)spec->table->data,
            (const int32_t *)spec->ids->data,
            spec->norm ? (const float *)spec->norm->data : NULL,
            dms_rows(x),
            dms_rows(spec->table),
            (int)x->shape[x->rank > 1 ? x->rank - 2 : 0],
            (int)(dms_cols(x) / dms_cols(spec->table)),
            half,
            team,
            spec->borrowed_every,
            spec->keep,
            spec->eps,
            spec->logit};
}

/* The template that fits: N pairs at a time, with a norm or without. */
#define LAUNCH_HEADS(kernel, wide, grid, block, shared, stream, k, ...)                  \
    do {                                                                                 \
        if ((k).norm && (wide))                                                          \
            DMS_LAUNCH((kernel<4, true>), grid, block, shared, stream, k, __VA_ARGS__);  \
        else if ((k).norm)                                                               \
            DMS_LAUNCH((kernel<1, true>), grid, block, shared, stream, k, __VA_ARGS__);  \
        else if (wide)                                                                   \
            DMS_LAUNCH((kernel<4, false>), grid, block, shared, stream, k, __VA_ARGS__); \
        else                                                                             \
            DMS_LAUNCH((kernel<1, false>), grid, block, shared, stream, k, __VA_ARGS__); \
    } while (0)

static bool is_wide(const void *const *pointers, int n, const dms_rope_spec *spec)
{
    const void *const own[] = {spec->table->data, spec->norm ? spec->norm->data : NULL};
    return dms_cols(spec->table) % 8 == 0 && dms_wide(own, 2) && dms_wide(pointers, n);
}

dms_status dms_cuda_rope(const dms_rope_out *out, const dms_tensor *x, const dms_rope_spec *spec)
{
    const forward t = {(float *)out->y->data, out->rstd ? (float *)out->rstd->data : NULL,
                       out->z ? (float *)out->z->data : NULL, (const float *)x->data};
    const void *const all[] = {t.y, t.x};
    const bool wide = is_wide(all, 2, spec);
    const layout k = layout_of(x, spec, wide ? 4 : 1);
    LAUNCH_HEADS(rope_kernel, wide, dms_grid(k.rows, 1, INT32_MAX),
                 dms_row_block((int64_t)k.heads * k.team, 1), 0, dms_cuda_stream(x->device), k, t);
    return DMS_LAUNCHED();
}

/* Threads of a block of the backward pass: fewer where its sums would not fit. */
static int backward_block(const layout *k, bool sums)
{
    const int threads = dms_row_block((int64_t)k->heads * k->team, 1);
    const size_t a_warp = (size_t)(DMS_WARP / k->team * 2 * k->half) * sizeof(float);
    const int most = (int)(MOST_SHARED / a_warp) * DMS_WARP;
    return sums && most < threads ? most : threads;
}

dms_status dms_cuda_rope_bwd(const dms_rope_grads *grads, const dms_rope_spec *spec)
{
    const dms_tensor *like = grads->x ? grads->x : grads->dx, *dw = grads->dw;
    backward t = {grads->dx ? (float *)grads->dx->data : NULL,
                  NULL,
                  grads->dy ? (const float *)grads->dy->data : NULL,
                  grads->dz ? (const float *)grads->dz->data : NULL,
                  grads->x ? (const float *)grads->x->data : NULL,
                  grads->rstd ? (const float *)grads->rstd->data : NULL};
    const void *const all[] = {t.dx, t.dy, t.x};
    const bool wide = is_wide(all, 3, spec);
    const layout k = layout_of(like, spec, wide ? 4 : 1);
    const int block = backward_block(&k, dw != NULL);
    const unsigned blocks = dms_grid(k.rows, 1, dw ? DMS_PARTIALS : INT32_MAX);
    const size_t width = (size_t)(2 * k.half) * sizeof(float);
    void *partial = NULL;

    if (block == 0)
        return dms_fail(DMS_ERR_SHAPE,
                        "E is %d, expected at most %d where the weight of a norm is trained on %s; "
                        "use --device cpu",
                        2 * k.half, (int)(MOST_SHARED / sizeof(float)), like->device->name);
    if (dw)
        DMS_TRY(dms_cuda_scratch(&partial, like->device, blocks * width));
    t.partial = (float *)partial;
    LAUNCH_HEADS(rope_bwd_kernel, wide, blocks, block, dw ? (size_t)(block / k.team) * width : 0,
                 dms_cuda_stream(like->device), k, t);
    if (dw)
        dms_add_partials(grads->dw, partial, blocks);
    return DMS_LAUNCHED();
}
