/* Forks of the paged cache on the GPU: a sequence borrows the settled pages of another one and
 * copies the rest. */
#include "kernels/cuda/paged_list.cuh"

enum { THREADS = LIST_THREADS, WARPS = LIST_WARPS };

/* The units of two sequences, layer by layer and head by head. */
typedef struct {
    dms_paged c;
    int64_t from, to; /* the first unit of each */
} forking;

static forking forking_of(const dms_paged *c, int from, int to)
{
    const int64_t units = (int64_t)c->layers * c->groups;
    forking f;
    f.c = *c;
    f.from = from * units;
    f.to = to * units;
    return f;
}

static __device__ bool is_settled(const dms_paged *c, int64_t unit, int page, int last)
{
    const int32_t *at = dms_paged_page(c, unit, page * c->page_slots).at;
    bool settled = true;
    for (int j = 0; j < c->page_slots; j++)
        settled = settled && !(at[j] & 1) && dms_is_late(last, at[j] >> 1, c->window);
    return settled;
}

/* Pages at the head of a unit that are settled for a query at `last`; by a block. */
static __device__ int settled_pages(const dms_paged *c, int64_t unit, int last)
{
    __shared__ int32_t others[THREADS];
    const int full = c->live[unit] / c->page_slots;
    for (int first = 0; first < full; first += THREADS) {
        const int page = first + (int)threadIdx.x;
        const bool other = page < full && !is_settled(c, unit, page, last);
        const int found = collect(others, other, page);
        __syncthreads();
        if (found)
            return others[0];
    }
    return full;
}

/* One block a unit. */
static __global__ void __launch_bounds__(THREADS) lend_kernel(forking f, int last)
{
    const dms_paged *c = &f.c;
    const int64_t lender = f.from + blockIdx.x, unit = f.to + blockIdx.x;
    const int count = settled_pages(c, lender, last);
    for (int j = (int)threadIdx.x; j < count; j += THREADS)
        c->unit_list[unit * c->unit_pages + j] = c->unit_list[lender * c->unit_pages + j];
    if (threadIdx.x == 0) {
        c->borrowed[unit] = count;
        c->live[unit] = count * c->page_slots;
    }
}

dms_status dms_cuda_paged_lend(const dms_paged *cache, int from, int to, int last)
{
    const unsigned units = (unsigned)(cache->layers * cache->groups);
    const forking f = forking_of(cache, from, to);
    DMS_LAUNCH(lend_kernel, units, THREADS, 0, dms_cuda_stream(cache->device), f, last);
    return DMS_LAUNCHED();
}

/* A page becomes a copy of another one, but for its owner; by a warp. */
static __device__ void copy_page(const dms_paged *c, int32_t from, int32_t to)
{
    const int lane = (int)threadIdx.x % DMS_WARP;
    const int vectors = (int)(dms_page_bytes(c) / sizeof(uint4));
    const uint4 *in = (const uint4 *)dms_page_at(c, from).k;
    uint4 *out = (uint4 *)dms_page_at(c, to).k;
    for (int j = lane; j < vectors; j += DMS_WARP)
        out[j] = in[j];
    __syncwarp(); /* before the owner is written over */
}

/* One block a unit, a warp a page at a time. Memory bounds it. */
static __global__ void __launch_bounds__(THREADS) copy_kernel(forking f)
{
    __shared__ int height;
    const dms_paged *c = &f.c;
    const int64_t other = f.from + blockIdx.x, unit = f.to + blockIdx.x;
    const int live = c->live[other], had = c->live[unit], t = (int)threadIdx.x;
    const int first = dms_paged_pages(c, had), count = dms_paged_pages(c, live) - first;
    if (t == 0 && count)
        height = dms_paged_pop(c, count);
    __syncthreads(); /* also: all threads have read both counts */
    for (int j = t / DMS_WARP; j < count; j += WARPS) {
        const int32_t number = c->free_pages[height - 1 - j];
        copy_page(c, c->unit_list[other * c->unit_pages + first + j], number);
        if (t % DMS_WARP == 0)
            dms_paged_own(c, unit, first + j, number);
    }
    for (int64_t j = t; j < c->ring_entries; j += THREADS)
        c->ring[unit * c->ring_entries + j] = c->ring[other * c->ring_entries + j];
    if (t == 0) {
        c->live[unit] = live;
        dms_paged_count_new(c, live - had);
    }
}

dms_status dms_cuda_paged_copy(const dms_paged *cache, int from, int to)
{
    const unsigned units = (unsigned)(cache->layers * cache->groups);
    const forking f = forking_of(cache, from, to);
    DMS_LAUNCH(copy_kernel, units, THREADS, 0, dms_cuda_stream(cache->device), f);
    return DMS_LAUNCHED();
}
