/* The embedding and its gradient in CUDA. Ids are on the device, where a launcher cannot read them:
 * whoever uploads them checks them, and a token outside the table gives a row of NaN here, which
 * the loss shows, and no gradient. */
#include "kernels/cuda/wide.cuh"

/* One block a row. */
template <int N, typename T>
static __device__ __forceinline__ void copy_rows(float *y, const int32_t *ids, const T *w,
                                                 const int64_t size[3])
{
    const int64_t rows = size[0], dim = size[1], vocab = size[2];
    for (int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
        const int64_t id = ids[r];
        const bool known = id >= 0 && id < vocab;
        for (int64_t i = N * threadIdx.x; i < dim; i += N * blockDim.x) {
            float v[N];
            if (known)
                dms_load_few<N>(v, w + id * dim + i, dim - i);
#pragma unroll
            for (int j = 0; j < N; j++)
                v[j] = known ? v[j] : __int_as_float(0x7fc00000);
            dms_store_few<N>(y + r * dim + i, v, dim - i);
        }
    }
}

typedef struct {
    float *y;
    const int32_t *ids;
    const void *w;
    int64_t size[3]; /* rows of y, columns, rows of w */
} lookup;

template <int N>
static __global__ void __launch_bounds__(DMS_BLOCK) embedding_f32_kernel(const lookup k)
{
    copy_rows<N>(k.y, k.ids, (const float *)k.w, k.size);
}

template <int N>
static __global__ void __launch_bounds__(DMS_BLOCK) embedding_bf16_kernel(const lookup k)
{
    copy_rows<N>(k.y, k.ids, (const dms_bf16 *)k.w, k.size);
}

dms_status dms_cuda_embedding(dms_tensor *y, const dms_tensor *ids, const dms_tensor *w)
{
    const int64_t rows = dms_count(ids), dim = dms_cols(w);
    const lookup k = {
        (float *)y->data, (const int32_t *)ids->data, w->data, {rows, dim, w->shape[0]}};
    const void *const all[] = {y->data, w->data};
    const bool wide = dim % 4 == 0 && dms_wide(all, 2);
    const cudaStream_t stream = dms_cuda_stream(w->device);

    if (w->dtype == DMS_F32)
        DMS_LAUNCH_ROWS(embedding_f32_kernel, wide, rows, dim, stream, k);
    else
        DMS_LAUNCH_ROWS(embedding_bf16_kernel, wide, rows, dim, stream, k);
    return DMS_LAUNCHED();
}

enum { WARPS = DMS_BLOCK / DMS_WARP, AHEAD = 4 /* rows under way at once */ };

typedef struct {
    float *dw;
    const float *dy;
    const int32_t *ids;
    int64_t rows, dim, vocab;
} scatter;

/* grad += the listed rows of up, in order: a thread owns channels. */
template <int N>
static __device__ __forceinline__ void add_rows(float *grad, const float *up, int64_t dim,
                                                const int *list, int count)
{
    for (int64_t i = N * threadIdx.x; i < dim; i += N * DMS_BLOCK) {
        float sum[N], v[AHEAD][N];
        dms_load_few<N>(sum, grad + i, dim - i);
        for (int m = 0; m < count; m += AHEAD) {
#pragma unroll
            for (int a = 0; a < AHEAD; a++)
                if (m + a < count)
                    dms_load_few<N>(v[a], up + list[m + a] * dim + i, dim - i);
#pragma unroll
            for (int a = 0; a < AHEAD; a++)
#pragma unroll
                for (int j = 0; j < N; j++)
                    if (m + a < count)
                        sum[j] += v[a][j];
        }
        dms_store_few<N>(grad + i, sum, dim - i);
    }
}

/* The threads whose `same` is set, in order, by all threads of the block; returns how many. */
static __device__ __forceinline__ int list_threads(int list[DMS_BLOCK], bool same)
{
    __shared__ unsigned found[WARPS];
    const int warp = (int)threadIdx.x / DMS_WARP, lane = (int)threadIdx.x % DMS_WARP;
    const unsigned mask = __ballot_sync(DMS_ALL_LANES, same);
    int before = 0, count = 0;

    if (lane == 0)
        found[warp] = mask;
    __syncthreads();
    for (int w = 0; w < WARPS; w++) {
        before += w < warp ? __popc(found[w]) : 0;
        count += __popc(found[w]);
    }
    if (same)
        list[before + __popc(mask & ((1u << lane) - 1))] = (int)threadIdx.x;
    __syncthreads();
    return count;
}

/* One block a token: the first of its kind adds the rows of all that follow, in their order, so
 * that no two blocks write one row of dw and the sum is the same in every run. Every block scans
 * the ids, from the L2 cache: rows^2 * 4 bytes in all, 0.3 GB for 8192 tokens. */
template <int N>
static __global__ void __launch_bounds__(DMS_BLOCK) embedding_bwd_kernel(const scatter k)
{
    __shared__ int list[DMS_BLOCK];
    const int64_t token = blockIdx.x;
    const int32_t id = k.ids[token];

    if (id < 0 || id >= k.vocab)
        return;
    for (int64_t first = 0; first < token; first += DMS_BLOCK) {
        const int64_t at = first + threadIdx.x;
        if (__syncthreads_or(at < token && k.ids[at] == id))
            return;
    }
    for (int64_t first = token; first < k.rows; first += DMS_BLOCK) {
        const int64_t at = first + threadIdx.x;
        const bool same = at < k.rows && k.ids[at] == id;
        if (!__syncthreads_or(same)) /* also: nobody reads the list any more */
            continue;
        const int count = list_threads(list, same);
        add_rows<N>(k.dw + id * k.dim, k.dy + first * k.dim, k.dim, list, count);
    }
}

dms_status dms_cuda_embedding_bwd(dms_tensor *dw, const dms_tensor *dy, const dms_tensor *ids)
{
    const scatter k = {(float *)dw->data,
                       (const float *)dy->data,
                       (const int32_t *)ids->data,
                       dms_count(ids),
                       dms_cols(dw),
                       dw->shape[0]};
    const void *const all[] = {dw->data, dy->data};
    const cudaStream_t stream = dms_cuda_stream(dy->device);
    if (k.rows && k.dim % 4 == 0 && dms_wide(all, 2))
        DMS_LAUNCH(embedding_bwd_kernel<4>, (unsigned)k.rows, DMS_BLOCK, 0, stream, k);
    else if (k.rows)
        DMS_LAUNCH(embedding_bwd_kernel<1>, (unsigned)k.rows, DMS_BLOCK, 0, stream, k);
    return DMS_LAUNCHED();
}
