/* RMSNorm and LayerNorm in CUDA, which differ by a mean and a bias. A team of threads a row: a warp
 * where rows are short, else a block. A row is read twice (LayerNorm: three times), after the first
 * time from the L1 cache. */
#include "kernels/cuda/column_sum.cuh"

enum {
    WARPS = DMS_BLOCK / DMS_WARP,
    WARP_COLS = 512,                        /* the longest row that a warp takes */
    OWN_SHARED = 1 << 10,                   /* kept for the kernels' static arrays */
    ALWAYS_SHARED = (48 << 10) - OWN_SHARED /* dynamic, without asking for more */
};

/* The rows that this thread's team takes: row, row + rows_step, ...; it is thread `at` of `size`.
 */
typedef struct {
    int64_t row, row_step;
    int at, size;
} team;

template <bool WARP> static __device__ __forceinline__ team team_of_thread(void)
{
    const int thread = (int)threadIdx.x, size = WARP ? DMS_WARP : (int)blockDim.x;
    const int64_t teams = (int)blockDim.x / size;
    return {blockIdx.x * teams + thread / size, gridDim.x * teams, thread % size, size};
}

template <bool WARP> static __device__ __forceinline__ float team_sum(float v)
{
    return WARP ? dms_warp_sum(v) : dms_block_sum(v);
}

typedef struct {
    void *y;            /* f32, or bf16 */
    float *mean, *rstd; /* mean: NULL for RMSNorm */
    const float *x, *w, *bias;
    int64_t rows, dim;
    float eps;
    bool bf16;
} forward;

template <int N, bool WARP>
static __device__ __forceinline__ float row_mean(const float *x, int64_t dim, const team *me)
{
    float sum = 0.0f;
#pragma unroll 2
    for (int64_t i = N * me->at; i < dim; i += N * me->size) {
        float v[N];
        dms_load_few<N>(v, x + i, N);
#pragma unroll
        for (int j = 0; j < N; j++)
            sum += v[j];
    }
    return team_sum<WARP>(sum) / (float)dim;
}

template <int N, bool WARP, bool CENTRED>
static __device__ __forceinline__ void norm_rows(const forward &k)
{
    const team me = team_of_thread<WARP>();
    for (int64_t r = me.row; r < k.rows; r += me.row_step) {
        const float *x = k.x + r * k.dim;
        const float mean = CENTRED ? row_mean<N, WARP>(x, k.dim, &me) : 0.0f;
        float square = 0.0f;
        for (int64_t i = N * me.at; i < k.dim; i += N * me.size) {
            float v[N];
            dms_load_few<N>(v, x + i, N);
#pragma unroll
            for (int j = 0; j < N; j++)
                square += (v[j] - mean) * (v[j] - mean);
        }
        const float scale = 1.0f / sqrtf(team_sum<WARP>(square) / (float)k.dim + k.eps);
        for (int64_t i = N * me.at; i < k.dim; i += N * me.size) {
            float v[N], w[N], bias[N] = {};
            dms_load_few<N>(v, x + i, N);
            dms_load_few<N>(w, k.w + i, N);
            if (CENTRED)
                dms_load_few<N>(bias, k.bias + i, N);
#pragma unroll
            for (int j = 0; j < N; j++)
                v[j] = CENTRED ? (v[j] - mean) * scale * w[j] + bias[j] : v[j] * scale * w[j];
            dms_store_as<N>(k.y, k.bf16, r * k.dim + i, v, N);
        }
        if (me.at == 0)
            k.rstd[r] = scale;
        if (CENTRED && me.at == 0)
            k.mean[r] = mean;
    }
}

template <int N, bool WARP>
static __global__ void __launch_bounds__(DMS_BLOCK) rms_norm_kernel(const forward k)
{
    norm_rows<N, WARP, false>(k);
}

template <int N, bool WARP>
static __global__ void __launch_bounds__(DMS_BLOCK) layer_norm_kernel(const forward k)
{
    norm_rows<N, WARP, true>(k);
}

/* The template that fits: N elements at a time, a warp or a block a row. */
#define LAUNCH_TEAMS(kernel, wide, dim, grid, shared, stream, ...)                              \
    do {                                                                                        \
        const int block_ = (dim) <= WARP_COLS ? DMS_BLOCK : dms_row_block(dim, (wide) ? 4 : 1); \
        if ((dim) <= WARP_COLS && (wide))                                                       \
            DMS_LAUNCH((kernel<4, true>), grid, block_, shared, stream, __VA_ARGS__);           \
        else if ((dim) <= WARP_COLS)                                                            \
            DMS_LAUNCH((kernel<1, true>), grid, block_, shared, stream, __VA_ARGS__);           \
        else if (wide)                                                                          \
            DMS_LAUNCH((kernel<4, false>), grid, block_, shared, stream, __VA_ARGS__);          \
        else                                                                                    \
            DMS_LAUNCH((kernel<1, false>), grid, block_, shared, stream, __VA_ARGS__);          \
    } while (0)

static int teams_of_block(int64_t dim)
{
    return dim <= WARP_COLS ? WARPS : 1;
}

dms_status dms_cuda_rms_norm(dms_tensor *y, dms_tensor *rstd, const dms_tensor *x,
                             const dms_tensor *w, float eps)
{
    const int64_t dim = dms_count(w), rows = dms_count(x) / dim;
    const forward k = {y->data,
                       NULL,
                       (float *)rstd->data,
                       (const float *)x->data,
                       (const float *)w->data,
                       NULL,
                       rows,
                       dim,
                       eps,
                       y->dtype == DMS_BF16};
    const void *const all[] = {k.y, k.x, k.w};
    const bool wide = dim % 4 == 0 && dms_wide(all, 3);
    LAUNCH_TEAMS(rms_norm_kernel, wide, dim, dms_grid(rows, teams_of_block(dim), INT32_MAX), 0,
                 dms_cuda_stream(x->device), k);
    return DMS_LAUNCHED();
}

dms_status dms_cuda_layer_norm(dms_tensor *y, dms_tensor *stats, const dms_tensor *x,
                               const dms_tensor *w, const dms_tensor *bias, float eps)
{
    const int64_t dim = dms_cols(x), rows = dms_rows(x);
    float *mean = (float *)stats->data;
    const forward k = {y->data,
                       mean,
                       mean + rows,
                       (const float *)x->data,
                       (const float *)w->data,
                       (const float *)bias->data,
                       rows,
                       dim,
                       eps,
                       y->dtype == DMS_BF16};
    const void *const all[] = {k.y, k.x, k.w, k.bias};
    const bool wide = dim % 4 == 0 && dms_wide(all, 4);
    LAUNCH_TEAMS(layer_norm_kernel, wide, dim, dms_grid(rows, teams_of_block(dim), INT32_MAX), 0,
                 dms_cuda_stream(x->device), k);
    return DMS_LAUNCHED();
}

/* partial, partial_bias: [DMS_PARTIALS or fewer, dim]; they and dx may be NULL. mean: NULL for
 * RMSNorm. */
typedef struct {
    float *dx, *partial, *partial_bias;
    const float *dy, *x, *w, *mean, *rstd;
    int64_t rows, dim;
} backward;

/* The means over a row that dx needs: of g*n, and of g where the norm is centred. */
typedef struct {
    float gn, g;
} row_means;

template <int N, bool WARP, bool CENTRED>
static __device__ __forceinline__ row_means means_of_row(const backward &k, const team *me,
                                                         int64_t r, float mean)
{
    float up[N], x[N], w[N], dot = 0.0f, sum = 0.0f;
#pragma unroll(CENTRED ? 2 : 4) /* more spills registers */
    for (int64_t i = N * me->at; i < k.dim; i += N * me->size) {
        dms_load_few<N>(up, k.dy + r * k.dim + i, N);
        dms_load_few<N>(x, k.x + r * k.dim + i, N);
        dms_load_few<N>(w, k.w + i, N);
#pragma unroll
        for (int j = 0; j < N; j++) {
            dot += up[j] * w[j] * (x[j] - mean);
            sum += up[j] * w[j];
        }
    }
    return {team_sum<WARP>(dot) * k.rstd[r] / (float)k.dim,
            CENTRED ? team_sum<WARP>(sum) / (float)k.dim : 0.0f};
}

/* One row: with n = (x - mean)*rstd and g = dy*w, dx += rstd*(g - mean(g) - n*mean(g*n)),
 * sum += dy*n, bias += dy, where a thread owns channels of the sums. */
template <int N, bool WARP, bool CENTRED>
static __device__ __forceinline__ void row_gradient(float *sum, float *bias, const backward &k,
                                                    const team *me, int64_t r)
{
    const int64_t start = r * k.dim;
    const float scale = k.rstd[r], mean = CENTRED ? k.mean[r] : 0.0f;
    const row_means of =
        k.dx ? means_of_row<N, WARP, CENTRED>(k, me, r, mean) : row_means{0.0f, 0.0f};
    for (int64_t i = N * me->at; i < k.dim; i += N * me->size) {
        float up[N], x[N], w[N];
        dms_load_few<N>(up, k.dy + start + i, N);
        dms_load_few<N>(x, k.x + start + i, N);
        dms_load_few<N>(w, k.w + i, N);
        if (CENTRED && k.partial_bias)
            dms_add_few<N>(bias + i, up, N);
#pragma unroll
        for (int j = 0; j < N; j++) {
            x[j] -= mean;
            w[j] = scale * (up[j] * w[j] - of.g - x[j] * scale * of.gn);
            up[j] = up[j] * x[j] * scale;
        }
        if (k.dx)
            dms_add_few<N>(k.dx + start + i, w, N);
        if (k.partial)
            dms_add_few<N>(sum + i, up, N);
    }
}

/* Each team sums dw (and the bias's gradient) of its rows in shared memory [teams, dim], the block
 * sums its teams in order. The grid does not depend on the GPU, so neither does the sum. */
template <int N, bool WARP, bool CENTRED>
static __device__ __forceinline__ void gradient_of_rows(const backward &k)
{
    DMS_DYNAMIC_SHARED(float, sums);
    const team me = team_of_thread<WARP>();
    const int teams = (int)blockDim.x / me.size;
    const bool weights = k.partial || k.partial_bias;
    const int64_t all = teams * k.dim, mine = (int)threadIdx.x / me.size * k.dim;
    float *biases = sums + all;

    for (int64_t i = threadIdx.x; weights && i < (CENTRED ? 2 : 1) * all; i += blockDim.x)
        sums[i] = 0.0f;
    __syncthreads();
    for (int64_t r = me.row; r < k.rows; r += me.row_step)
        row_gradient<N, WARP, CENTRED>(sums + mine, biases + mine, k, &me, r);
    if (k.partial)
        dms_leave_partial(k.partial, sums, teams, k.dim);
    if (CENTRED && k.partial_bias)
        dms_leave_partial(k.partial_bias, biases, teams, k.dim);
}

template <int N, bool WARP>
static __global__ void __launch_bounds__(DMS_BLOCK) rms_norm_bwd_kernel(const backward k)
{
    gradient_of_rows<N, WARP, false>(k);
}

template <int N, bool WARP>
static __global__ void __launch_bounds__(DMS_BLOCK) layer_norm_bwd_kernel(const backward k)
{
    gradient_of_rows<N, WARP, true>(k);
}

#define ALLOW_SHARED(kernel, bytes)                                \
    do {                                                           \
        DMS_CUDA_TRY(DMS_ALLOW_SHARED((kernel<4, false>), bytes)); \
        DMS_CUDA_TRY(DMS_ALLOW_SHARED((kernel<1, false>), bytes)); \
    } while (0)

static dms_status allow_shared(const dms_device *dev, int64_t dim, size_t bytes, bool centred)
{
    const size_t most = dms_cuda_of(dev)->shared_bytes - OWN_SHARED;
    if (bytes <= ALWAYS_SHARED)
        return DMS_OK;
    if (bytes > most)
        return dms_fail(DMS_ERR_SHAPE,
                        "D is %lld, expected at most %zu where the weight of a norm is trained on "
                        "%s; use --device cpu",
                        (long long)dim, most / sizeof(float) / (centred ? 2 : 1), dev->name);
    if (centred)
        ALLOW_SHARED(layer_norm_bwd_kernel, bytes);
    else
        ALLOW_SHARED(rms_norm_bwd_kernel, bytes);
    return DMS_OK;
}

/* Launches over the rows and adds up what the blocks leave; dw and dbias may be NULL. */
static dms_status launch_backward(dms_tensor *dw, dms_tensor *dbias, backward k, dms_device *dev)
{
    const int teams = teams_of_block(k.dim);
    const bool weights = dw || dbias, centred = k.mean;
    const unsigned blocks = dms_grid(k.rows, teams, weights ? DMS_PARTIALS : INT32_MAX);
    const size_t sums = (size_t)(teams * k.dim) * sizeof(float) * (centred ? 2 : 1);
    const size_t shared = weights ? sums : 0, part = blocks * (size_t)k.dim * sizeof(float);
    const void *const all[] = {k.dx, k.dy, k.x, k.w};
    const bool wide = k.dim % 4 == 0 && dms_wide(all, 4);
    const cudaStream_t stream = dms_cuda_stream(dev);
    void *partial = NULL;

    DMS_TRY(allow_shared(dev, k.dim, shared, centred));
    if (weights)
        DMS_TRY(dms_cuda_scratch(&partial, dev, dms_cuda_part(part) + (dbias ? part : 0)));
    k.partial = dw ? (float *)partial : NULL;
    k.partial_bias = dbias ? (float *)((char *)partial + dms_cuda_part(part)) : NULL;
    if (centred)
        LAUNCH_TEAMS(layer_norm_bwd_kernel, wide, k.dim, blocks, shared, stream, k);
    else
        LAUNCH_TEAMS(rms_norm_bwd_kernel, wide, k.dim, blocks, shared, stream, k);
    if (dw)
        dms_add_partials(dw, k.partial, blocks);
    if (dbias)
        dms_add_partials(dbias, k.partial_bias, blocks);
    return DMS_LAUNCHED();
}

dms_status dms_cuda_rms_norm_bwd(dms_tensor *dx, dms_tensor *dw, const dms_tensor *dy,
                                 const dms_tensor *x, const dms_tensor *w, const dms_tensor *rstd)
{
    const int64_t dim = dms_count(w);
    const backward k = {dx ? (float *)dx->data : NULL,
                        NULL,
                        NULL,
                        (const float *)dy->data,
                        (const float *)x->data,
                        (const float *)w->data,
                        NULL,
                        (const float *)rstd->data,
                        dms_count(x) / dim,
                        dim};
    return dx || dw ? launch_backward(dw, NULL, k, x->device) : DMS_OK;
}

dms_status dms_cuda_layer_norm_bwd(const dms_layer_norm_grads *grads, const dms_tensor *dy,
                                   const dms_tensor *x, const dms_tensor *w,
                                   const dms_tensor *stats)
{
    const float *mean = (const float *)stats->data;
    const backward k = {grads->dx ? (float *)grads->dx->data : NULL,
                        NULL,
                        NULL,
                        (const float *)dy->data,
                        (const float *)x->data,
                        (const float *)w->data,
                        mean,
                        mean + dms_rows(x),
                        dms_rows(x),
                        dms_cols(x)};
    if (!grads->dx && !grads->dw && !grads->dbias)
        return DMS_OK;
    return launch_backward(grads->dw, grads->dbias, k, x->device);
}
