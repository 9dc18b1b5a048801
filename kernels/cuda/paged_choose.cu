/* Pages of the paged cache by the bounds of their keys: the bounds, and the pages that a token
 * reads. */
#include "kernels/cuda/paged_list.cuh"

enum {
    THREADS = LIST_THREADS,
    WARPS = LIST_WARPS,
    BLOCKS = 4, /* of an SM: for more, which nothing needs, ptxas spills */
    HEADS = 4   /* that share a read of bounds */
};

/* ---- bound ---------------------------------------------------------------------------------- */

/* One block a page that the tokens entered last may lie in: grid (units, pages). A thread takes one
 * channel, whose keys lie side by side. */
template <class T> static __global__ void bound_kernel(dms_paged_batch b)
{
    const dms_paged *c = &b.c;
    const int64_t unit = dms_paged_unit(&b, blockIdx.x);
    const int live = c->live[unit], entered = live - b.tokens;
    const int begin = (entered / c->page_slots + (int)blockIdx.y) * c->page_slots;
    const int from = entered > begin ? entered : begin;
    const int to = live - begin < c->page_slots ? live : begin + c->page_slots;
    if (from >= to)
        return;
    const dms_page page = dms_paged_page(c, unit, begin);
    T *least = (T *)page.bounds, *greatest = least + c->head_dim;
    for (int e = (int)threadIdx.x; e < c->head_dim; e += (int)blockDim.x) {
        const T *k = (const T *)page.k + e * c->page_slots;
        float low = from == begin ? dms_load(k) : dms_load(least + e);
        float high = from == begin ? low : dms_load(greatest + e);
        for (int j = from - begin; j < to - begin; j++) {
            low = fminf(low, dms_load(k + j));
            high = fmaxf(high, dms_load(k + j));
        }
        dms_store(least + e, low);
        dms_store(greatest + e, high);
    }
}

dms_status dms_cuda_paged_bound(const dms_paged *cache, const dms_paged_rows *rows)
{
    const dms_paged_batch b = dms_paged_batch_of(cache, rows);
    const cudaStream_t stream = dms_cuda_stream(cache->device);
    const int pages = (b.tokens + cache->page_slots - 2) / cache->page_slots + 1;
    const dim3 grid((unsigned)b.units, (unsigned)pages);
    if (cache->dtype == DMS_BF16)
        DMS_LAUNCH(bound_kernel<dms_bf16>, grid, 128, 0, stream, b);
    else
        DMS_LAUNCH(bound_kernel<float>, grid, 128, 0, stream, b);
    return DMS_LAUNCHED();
}

/* ---- choose --------------------------------------------------------------------------------- */

typedef struct {
    dms_paged_batch b;
    const float *q;           /* [n, H*E] */
    unsigned long long *keys; /* [units, pages of a unit]: ranks of all pages but the last */
    int32_t *list, *live;     /* of the read set */
    int reps;                 /* R */
    int pages;                /* to be read */
} choosing;

/* The most that a head's product with a key of the page can be, over heads [0, heads) of q, by a
 * warp. */
template <class T>
static __device__ float bound_of(const dms_paged *c, const T *least, const float *q, int heads)
{
    const int lane = (int)threadIdx.x % DMS_WARP;
    float sum[HEADS] = {0}, most = -INFINITY;
    for (int e = lane; e < c->head_dim; e += DMS_WARP) {
        const float low = dms_load(least + e), high = dms_load(least + c->head_dim + e);
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            const float x = h < heads ? q[h * c->head_dim + e] : 0.0f;
            sum[h] += fmaxf(x * low, x * high);
        }
    }
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
        const float all = dms_warp_sum(sum[h]);
        most = h < heads ? fmaxf(most, all) : most;
    }
    return most;
}

/* Grid: (units, WARPS pages in turn). The bytes of the bounds bound it. */
template <class T>
static __global__ void __launch_bounds__(THREADS, BLOCKS) choose_rank_kernel(choosing x)
{
    const dms_paged *c = &x.b.c;
    const int64_t i = blockIdx.x, unit = dms_paged_unit(&x.b, i);
    const int pages = dms_paged_pages(c, c->live[unit]), stride = (int)gridDim.y * WARPS;
    const float *q = x.q + i * x.reps * c->head_dim;
    if (pages <= x.pages)
        return;
    for (int p = (int)(blockIdx.y * WARPS + threadIdx.x / DMS_WARP); p < pages - 1; p += stride) {
        const dms_page page = dms_page_at(c, c->unit_list[unit * c->unit_pages + p]);
        float most = -INFINITY;
        for (int h = 0; h < x.reps; h += HEADS) {
            const float bound =
                bound_of(c, (const T *)page.bounds, q + h * c->head_dim, x.reps - h);
            most = fmaxf(most, bound);
        }
        if (threadIdx.x % DMS_WARP == 0)
            x.keys[i * c->unit_pages + p] = rank_key(most, p);
    }
}

/* One block a unit: the greatest in the order of the cache, then the last page. */
static __global__ void __launch_bounds__(THREADS, BLOCKS) choose_list_kernel(choosing x)
{
    const dms_paged *c = &x.b.c;
    const int64_t i = blockIdx.x, unit = dms_paged_unit(&x.b, i);
    const int live = c->live[unit], pages = dms_paged_pages(c, live);
    const int32_t *from = c->unit_list + unit * c->unit_pages;
    const unsigned long long *keys = x.keys + i * c->unit_pages;
    const bool all = pages <= x.pages;
    const unsigned long long least = all ? 0 : threshold_of(keys, pages - 1, x.pages - 1);
    int32_t *list = x.list + unit * c->unit_pages;
    int count = 0;
    for (int first = 0; first < pages; first += THREADS) {
        const int p = first + (int)threadIdx.x;
        const bool want = p < pages && (all || p == pages - 1 || keys[p] >= least);
        count += collect(list + count, want, want ? from[p] : 0);
    }
    if (threadIdx.x == 0) {
        x.live[unit] = live - (pages - count) * c->page_slots;
        if (!all)
            dms_paged_count(c, DMS_PAGED_BOUNDS, pages - 1);
    }
}

dms_status dms_cuda_paged_choose(const dms_paged *chosen, const dms_paged *cache,
                                 const dms_paged_rows *rows, const dms_tensor *q, int pages)
{
    const cudaStream_t stream = dms_cuda_stream(cache->device);
    void *scratch = NULL;
    choosing x;
    x.b = dms_paged_batch_of(cache, rows);
    x.q = (const float *)q->data;
    x.list = chosen->unit_list;
    x.live = chosen->live;
    x.reps = (int)(dms_cols(q) / ((int64_t)cache->groups * cache->head_dim));
    x.pages = pages;
    DMS_TRY(dms_cuda_scratch(&scratch, cache->device, (size_t)(x.b.units * cache->unit_pages) * 8));
    x.keys = (unsigned long long *)scratch;
    const dim3 grid((unsigned)x.b.units, dms_grid(cache->unit_pages, WARPS, 64));
    if (cache->dtype == DMS_BF16)
        DMS_LAUNCH(choose_rank_kernel<dms_bf16>, grid, THREADS, 0, stream, x);
    else
        DMS_LAUNCH(choose_rank_kernel<float>, grid, THREADS, 0, stream, x);
    DMS_LAUNCH(choose_list_kernel, (unsigned)x.b.units, THREADS, 0, stream, x);
    return DMS_LAUNCHED();
}
