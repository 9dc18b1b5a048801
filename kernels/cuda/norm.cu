/* RMSNorm in CUDA. A team of threads a row: a warp where rows are short, else a block. A row is
 * read twice, the second time from the L1 cache. */
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
    void *y; /* f32, or bf16 */
    float *rstd;
    const float *x, *w;
    int64_t rows, dim;
    float eps;
    bool bf16;
} forward;

template <int N, bool WARP>
static __global__ void __launch_bounds__(DMS_BLOCK) rms_norm_kernel(const forward k)
{
    const team me = team_of_thread<WARP>();
    for (int64_t r = me.row; r < k.rows; r += me.row_step) {
        const float *x = k.x + r * k.dim;
        float square = 0.0f;
        for (int64_t i = N * me.at; i < k.dim; i += N * me.size) {
            float v[N];
            dms_load_few<N>(v, x + i, N);
#pragma unroll
            for (int j = 0; j < N; j++)
                square += v[j] * v[j];
        }
        const float scale = 1.0f / sqrtf(team_sum<WARP>(square) / (float)k.dim + k.eps);
        for (int64_t i = N * me.at; i < k.dim; i += N * me.size) {
            float v[N], w[N];
            dms_load_few<N>(v, x + i, N);
            dms_load_few<N>(w, k.w + i, N);
#pragma unroll
            for (int j = 0; j < N; j++)
                v[j] = v[j] * scale * w[j];
            dms_store_as<N>(k.y, k.bf16, r * k.dim + i, v, N);
        }
        if (me.at == 0)
            k.rstd[r] = scale;
    }
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
    const forward k = {
        y->data, (float *)rstd->data, (const float *)x->data, (const float *)w->data, rows, dim,
        eps,     y->dtype == DMS_BF16};
    const void *const all[] = {k.y, k.x, k.w};
    const bool wide = dim % 4 == 0 && dms_wide(all, 3);
    LAUNCH_TEAMS(rms_norm_kernel, wide, dim, dms_grid(rows, teams_of_block(dim), INT32_MAX), 0,
                 dms_cuda_stream(x->device), k);
    return DMS_LAUNCHED();
}

typedef struct {
    float *dx, *partial; /* [DMS_PARTIALS or fewer, dim]; either may be NULL */
    const float *dy, *x, *w, *rstd;
    int64_t rows, dim;
} backward;

/* One row: with n = x*rstd and g = dy*w, dx += rstd*(g - n*mean(g*n)), sum += dy*n, where a thread
 * owns channels of sum. */
template <int N, bool WARP>
static __device__ __forceinline__ void row_gradient(float *sum, const backward *k, const team *me,
                                                    int64_t r)
{
    const int64_t start = r * k->dim;
    const float scale = k->rstd[r];
    float up[N], x[N], w[N], dot = 0.0f;
    for (int64_t i = N * me->at; k->dx && i < k->dim; i += N * me->size) {
        dms_load_few<N>(up, k->dy + start + i, N);
        dms_load_few<N>(x, k->x + start + i, N);
        dms_load_few<N>(w, k->w + i, N);
#pragma unroll
        for (int j = 0; j < N; j++)
            dot += up[j] * w[j] * x[j];
    }
    const float mean = k->dx ? team_sum<WARP>(dot) * scale / (float)k->dim : 0.0f;
    for (int64_t i = N * me->at; i < k->dim; i += N * me->size) {
        dms_load_few<N>(up, k->dy + start + i, N);
        dms_load_few<N>(x, k->x + start + i, N);
        dms_load_few<N>(w, k->w + i, N);
#pragma unroll
        for (int j = 0; j < N; j++) {
            w[j] = scale * (up[j] * w[j] - x[j] * scale * mean);
            up[j] = up[j] * x[j] * scale;
        }
        if (k->dx)
            dms_add_few<N>(k->dx + start + i, w, N);
        if (k->partial)
            dms_add_few<N>(sum + i, up, N);
    }
}

/* Each team sums dw of its rows in shared memory [teams, dim], the block sums its teams in order.
 * The grid does not depend on the GPU, so neither does the sum. */
template <int N, bool WARP>
static __global__ void __launch_bounds__(DMS_BLOCK) rms_norm_bwd_kernel(const backward k)
{
    DMS_DYNAMIC_SHARED(float, sums);
    const team me = team_of_thread<WARP>();
    const int teams = (int)blockDim.x / me.size;
    float *sum = sums + (int)threadIdx.x / me.size * k.dim;

    for (int64_t i = threadIdx.x; k.partial && i < teams * k.dim; i += blockDim.x)
        sums[i] = 0.0f;
    __syncthreads();
    for (int64_t r = me.row; r < k.rows; r += me.row_step)
        row_gradient<N, WARP>(sum, &k, &me, r);
    if (k.partial)
        dms_leave_partial(k.partial, sums, teams, k.dim);
}

static dms_status allow_shared(const dms_device *dev, int64_t dim, size_t bytes)
{
    const size_t most = dms_cuda_of(dev)->shared_bytes - OWN_SHARED;
    if (bytes <= ALWAYS_SHARED)
        return DMS_OK;
    if (bytes > most)
        return dms_fail(DMS_ERR_SHAPE,
                        "D is %lld, expected at most %zu where the weight of a norm is trained on "
                        "%s; use --device cpu",
                        (long long)dim, most / sizeof(float), dev->name);
    DMS_CUDA_TRY(DMS_ALLOW_SHARED((rms_norm_bwd_kernel<4, false>), bytes));
    DMS_CUDA_TRY(DMS_ALLOW_SHARED((rms_norm_bwd_kernel<1, false>), bytes));
    return DMS_OK;
}

dms_status dms_cuda_rms_norm_bwd(dms_tensor *dx, dms_tensor *dw, const dms_tensor *dy,
                                 const dms_tensor *x, const dms_tensor *w, const dms_tensor *rstd)
{
    const int64_t dim = dms_count(w), rows = dms_count(x) / dim;
    const int teams = teams_of_block(dim);
    const unsigned blocks = dms_grid(rows, teams, dw ? DMS_PARTIALS : INT32_MAX);
    const size_t shared = dw ? (size_t)(teams * dim) * sizeof(float) : 0;
    const cudaStream_t stream = dms_cuda_stream(x->device);
    void *partial = NULL;

    if (!dx && !dw)
        return DMS_OK;
    DMS_TRY(allow_shared(x->device, dim, shared));
    if (dw)
        DMS_TRY(dms_cuda_scratch(&partial, x->device, blocks * (size_t)dim * sizeof(float)));
    const backward k = {dx ? (float *)dx->data : NULL,
                        (float *)partial,
                        (const float *)dy->data,
                        (const float *)x->data,
                        (const float *)w->data,
                        (const float *)rstd->data,
                        rows,
                        dim};
    const void *const all[] = {k.dx, k.dy, k.x, k.w};
    const bool wide = dim % 4 == 0 && dms_wide(all, 4);
    LAUNCH_TEAMS(rms_norm_bwd_kernel, wide, dim, blocks, shared, stream, k);
    if (dw)
        dms_add_partials(dw, partial, blocks);
    return DMS_LAUNCHED();
}
