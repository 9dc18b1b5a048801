/* The paged cache on the GPU: slots are taken, overwritten, closed up; pages come and go.
 *
 * Which page a unit gets depends on the order of blocks; what a slot holds does not. Within one op
 * pages are only taken or only given back, so that one integer atomic on the stack's height is
 * enough. */
#include "kernels/cuda/paged_list.cuh"

/* Kernels here have no __launch_bounds__: told of 256 threads, ptxas spills registers of
 * drop_kernel (sm_80) and compact_close_kernel (sm_90), to fit more blocks than are launched. */
enum { THREADS = LIST_THREADS, WARPS = LIST_WARPS, ENTERED = 32 /* tokens of a block */ };

/* ---- append --------------------------------------------------------------------------------- */

/* The decision of the token at `position` governs the token before it. */
static __device__ void mark_previous(const dms_paged *c, int64_t unit, int position, bool evicted)
{
    if (evicted && position > 0)
        *dms_paged_slot(c, unit, *dms_paged_ring(c, unit, position - 1)) |= 1;
}

/* The step rule of method.md section 4, by one thread: the new token's slot, its page in place. */
static __device__ int step(const dms_paged *c, int64_t unit, int position, bool evicted)
{
    int32_t *entry = dms_paged_ring(c, unit, position); /* of the token window + 1 steps back */
    mark_previous(c, unit, position, evicted);
    int slot = position > c->window ? *entry : -1;
    if (slot < 0 || !(*dms_paged_slot(c, unit, slot) & 1)) {
        slot = c->live[unit];
        if (slot % c->page_slots == 0)
            dms_paged_own(c, unit, slot / c->page_slots, c->free_pages[dms_paged_pop(c, 1) - 1]);
        c->live[unit] = slot + 1;
        dms_paged_count_new(c, 1);
    }
    *entry = slot;
    *dms_paged_slot(c, unit, slot) = 2 * position;
    return slot;
}

/* One warp a unit. Latency bounds it: a chain of eight dependent reads, then E keys and values. */
template <class T>
static __global__ void append_one_kernel(dms_paged_batch b, const float *k, const float *v,
                                         const float *z)
{
    const dms_paged *c = &b.c;
    const int64_t i = blockIdx.x * (int64_t)WARPS + threadIdx.x / DMS_WARP;
    const int lane = (int)threadIdx.x % DMS_WARP, wide = (int)dms_page_padded(c);
    int32_t slot = 0, number = 0;
    if (i >= b.units)
        return;
    if (lane == 0) {
        const int64_t unit = dms_paged_unit(&b, i);
        slot = step(c, unit, b.positions[i / c->groups], z && z[i] > 0);
        number = c->unit_list[unit * c->unit_pages + slot / c->page_slots];
    }
    slot = __shfl_sync(DMS_ALL_LANES, slot, 0) % c->page_slots;
    number = __shfl_sync(DMS_ALL_LANES, number, 0);
    const dms_page page = dms_page_at(c, number);
    for (int e = lane; e < wide; e += DMS_WARP) {
        if (e < c->head_dim)
            dms_store((T *)page.k + e * c->page_slots + slot, k[i * c->head_dim + e]);
        dms_store((T *)page.v + slot * wide + e, e < c->head_dim ? v[i * c->head_dim + e] : 0.0f);
    }
    if (c->scored && lane == 0)
        page.score[slot] = 0;
}

/* T > 1, first: pages and counts of each unit by one warp, and the mark on the token before the
 * chunk, whose ring entry the chunk may take. */
static __global__ void chunk_pages_kernel(dms_paged_batch b, const float *z)
{
    const dms_paged *c = &b.c;
    const int64_t i = blockIdx.x * (int64_t)WARPS + threadIdx.x / DMS_WARP;
    const int lane = (int)threadIdx.x % DMS_WARP;
    if (i >= b.units)
        return;
    const int64_t unit = dms_paged_unit(&b, i);
    const int live = c->live[unit], from = dms_paged_pages(c, live);
    const int count = dms_paged_pages(c, live + b.tokens) - from;
    int height = 0;
    __syncwarp(); /* all lanes have read `live` */
    if (lane == 0) {
        mark_previous(c, unit, b.positions[i / c->groups * b.tokens], z && z[i * b.tokens] > 0);
        height = count ? dms_paged_pop(c, count) : 0;
        c->live[unit] = live + b.tokens;
        dms_paged_count_new(c, b.tokens);
    }
    height = __shfl_sync(DMS_ALL_LANES, height, 0);
    for (int j = lane; j < count; j += DMS_WARP)
        dms_paged_own(c, unit, from + j, c->free_pages[height - 1 - j]);
}

/* The marks that tokens of the chunk make on one another, and the ring. Of two tokens with one
 * entry the ring holds the later. z: [T] of this unit, or NULL. */
static __device__ void enter_index(const dms_paged_batch *b, int64_t i, int t, int slot,
                                   const float *z)
{
    const int64_t unit = dms_paged_unit(b, i);
    const int32_t position = b->positions[i / b->c.groups * b->tokens + t];
    const bool evicted = z && t + 1 < b->tokens && z[t + 1] > 0;
    const dms_page page = dms_paged_page(&b->c, unit, slot);
    page.at[slot % b->c.page_slots] = 2 * position + evicted;
    if (b->c.scored)
        page.score[slot % b->c.page_slots] = 0;
    if (b->tokens - t <= b->c.ring_entries)
        *dms_paged_ring(&b->c, unit, position) = slot;
}

typedef struct {
    const float *k, *v; /* of the block's first token and its KV head */
    int stride;         /* G*E, from one token to the next */
    int count;          /* tokens of the block, at most ENTERED */
    int64_t unit;
    int slot; /* of the first token */
} entering;

/* Keys turn through shared memory: read along channels, written along slots. */
template <class T> static __device__ void enter_keys(const dms_paged *c, const entering *in)
{
    __shared__ float tile[ENTERED][DMS_WARP + 1];
    const int lane = (int)threadIdx.x % DMS_WARP, warp = (int)threadIdx.x / DMS_WARP;
    const int slot = in->slot + (lane < in->count ? lane : 0), place = slot % c->page_slots;
    T *keys = (T *)dms_paged_page(c, in->unit, slot).k + place;
    for (int first = 0; first < c->head_dim; first += DMS_WARP) {
        for (int t = warp; t < in->count; t += WARPS)
            if (first + lane < c->head_dim)
                tile[t][lane] = in->k[(int64_t)t * in->stride + first + lane];
        __syncthreads();
        for (int e = warp; e < DMS_WARP && first + e < c->head_dim; e += WARPS)
            if (lane < in->count)
                dms_store(keys + (first + e) * c->page_slots, tile[lane][e]);
        __syncthreads();
    }
}

template <class T> static __device__ void enter_values(const dms_paged *c, const entering *in)
{
    const int lane = (int)threadIdx.x % DMS_WARP, warp = (int)threadIdx.x / DMS_WARP;
    const int wide = (int)dms_page_padded(c);
    for (int t = warp; t < in->count; t += WARPS) {
        const float *v = in->v + (int64_t)t * in->stride;
        const int place = (in->slot + t) % c->page_slots;
        T *values = (T *)dms_paged_page(c, in->unit, in->slot + t).v + place * wide;
        for (int e = lane; e < wide; e += DMS_WARP)
            dms_store(values + e, e < c->head_dim ? v[e] : 0.0f);
    }
}

/* T > 1, then: a block enters ENTERED tokens of one unit. Memory bounds it. */
template <class T>
static __global__ void chunk_tokens_kernel(dms_paged_batch b, const float *k, const float *v,
                                           const float *z)
{
    const dms_paged *c = &b.c;
    const int blocks = (b.tokens + ENTERED - 1) / ENTERED;
    const int64_t i = blockIdx.x / (unsigned)blocks, row = i / c->groups, group = i % c->groups;
    const int first = (int)(blockIdx.x % (unsigned)blocks) * ENTERED, t = (int)threadIdx.x;
    const int stride = c->groups * c->head_dim, left = b.tokens - first;
    const int64_t at = (row * b.tokens + first) * stride + group * c->head_dim;
    entering in;
    in.k = k + at;
    in.v = v + at;
    in.stride = stride;
    in.count = left < ENTERED ? left : ENTERED;
    in.unit = dms_paged_unit(&b, i);
    in.slot = c->live[in.unit] - b.tokens + first;
    if (t < in.count)
        enter_index(&b, i, first + t, in.slot + t, z ? z + i * b.tokens : NULL);
    enter_keys<T>(c, &in);
    enter_values<T>(c, &in);
}

template <class T>
static void append(const dms_paged_batch *b, const float *k, const float *v, const float *z)
{
    const cudaStream_t stream = dms_cuda_stream(b->c.device);
    const unsigned warps = (unsigned)((b->units + WARPS - 1) / WARPS);
    const unsigned blocks = (unsigned)(b->units * ((b->tokens + ENTERED - 1) / ENTERED));
    if (b->tokens == 1) {
        DMS_LAUNCH(append_one_kernel<T>, warps, THREADS, 0, stream, *b, k, v, z);
        return;
    }
    DMS_LAUNCH(chunk_pages_kernel, warps, THREADS, 0, stream, *b, z);
    DMS_LAUNCH(chunk_tokens_kernel<T>, blocks, THREADS, 0, stream, *b, k, v, z);
}

dms_status dms_cuda_paged_append(const dms_paged *cache, const dms_paged_rows *rows,
                                 const dms_tensor *k, const dms_tensor *v, const dms_tensor *z)
{
    const dms_paged_batch b = dms_paged_batch_of(cache, rows);
    const float *keys = (const float *)k->data, *values = (const float *)v->data;
    const float *logits = z ? (const float *)z->data : NULL;
    if (cache->dtype == DMS_BF16)
        append<dms_bf16>(&b, keys, values, logits);
    else
        append<float>(&b, keys, values, logits);
    return DMS_LAUNCHED();
}

/* ---- compact -------------------------------------------------------------------------------- */

/* Pages [from, to) of a unit go onto the stack; by a whole block. */
static __device__ void give_pages(const dms_paged *c, int64_t unit, int from, int to)
{
    __shared__ int64_t height;
    if (from >= to)
        return;
    if (threadIdx.x == 0)
        height = dms_paged_count(c, DMS_PAGED_FREE, to - from);
    __syncthreads();
    for (int j = (int)threadIdx.x; j < to - from; j += THREADS) {
        const int32_t number = c->unit_list[unit * c->unit_pages + to - 1 - j];
        dms_page_at(c, number).owner[0] = -1;
        c->free_pages[height + j] = number;
    }
}

/* Holes are the expired slots below the number of slots kept, in ascending order; movers the kept
 * slots from there on, in descending order. There are as many of one as of the other, and mover j
 * fills hole j: what the CPU does slot by slot. Both lists are met in pieces. */
typedef struct {
    int64_t unit, now;
    int live, kept;
    int low, high;      /* slots [low, kept) and [kept, high) are yet to be looked at */
    int holes, movers;  /* entries of the lists in use */
    int32_t *hole_list; /* [2*THREADS], shared */
    int32_t *mover_list;
} closing;

static __device__ bool is_kept(const dms_paged *c, const closing *x, int slot)
{
    const int32_t at = *dms_paged_slot(c, x->unit, slot);
    return dms_is_visible(x->now, at >> 1, c->window, at & 1);
}

static __device__ void closing_begin(closing *x, const dms_paged_batch *b, int64_t i)
{
    const dms_paged *c = &b->c;
    x->unit = dms_paged_unit(b, i);
    x->now = b->positions[i / c->groups * b->tokens + b->tokens - 1];
    x->live = c->live[x->unit];
    x->kept = 0;
    for (int first = 0; first < x->live; first += THREADS) {
        const int slot = first + (int)threadIdx.x;
        x->kept += __syncthreads_count(slot < x->live && is_kept(c, x, slot));
    }
    x->low = x->holes = x->movers = 0;
    x->high = x->live;
}

/* Looks for more of both; returns the number of pairs at the heads of the lists, 0 at the end. */
static __device__ int closing_next(closing *x, const dms_paged *c)
{
    while (x->holes < THREADS && x->low < x->kept) {
        const int slot = x->low + (int)threadIdx.x;
        const bool want = slot < x->kept && !is_kept(c, x, slot);
        x->holes += collect(x->hole_list + x->holes, want, slot);
        x->low += THREADS;
    }
    while (x->movers < THREADS && x->high > x->kept) {
        const int slot = x->high - 1 - (int)threadIdx.x;
        const bool want = slot >= x->kept && is_kept(c, x, slot);
        x->movers += collect(x->mover_list + x->movers, want, slot);
        x->high -= THREADS;
    }
    __syncthreads();
    return x->holes < x->movers ? x->holes : x->movers;
}

/* Takes `pairs` off the heads of the lists: at most THREADS entries move up. */
static __device__ void closing_drop(closing *x, int pairs)
{
    const int t = (int)threadIdx.x;
    int32_t hole[2], mover[2];
    for (int j = 0; j < 2; j++) {
        const int at = pairs + t + j * THREADS;
        hole[j] = at < x->holes ? x->hole_list[at] : 0;
        mover[j] = at < x->movers ? x->mover_list[at] : 0;
    }
    __syncthreads();
    for (int j = 0; j < 2; j++) {
        x->hole_list[t + j * THREADS] = hole[j];
        x->mover_list[t + j * THREADS] = mover[j];
    }
    x->holes -= pairs;
    x->movers -= pairs;
    __syncthreads();
}

/* Keys, values and score of one slot, by a warp. */
template <class T>
static __device__ void move_slot(const dms_paged *c, int64_t unit, int to, int from)
{
    const int lane = (int)threadIdx.x % DMS_WARP, wide = (int)dms_page_padded(c);
    const int j = to % c->page_slots, i = from % c->page_slots;
    const dms_page into = dms_paged_page(c, unit, to), out = dms_paged_page(c, unit, from);
    for (int e = lane; e < c->head_dim; e += DMS_WARP)
        ((T *)into.k)[e * c->page_slots + j] = ((const T *)out.k)[e * c->page_slots + i];
    uint4 *v = (uint4 *)((T *)into.v + j * wide);
    const uint4 *w = (const uint4 *)((const T *)out.v + i * wide);
    for (int e = lane; e < wide * (int)sizeof(T) / 16; e += DMS_WARP)
        v[e] = w[e];
    if (c->scored && lane == 0)
        into.score[j] = out.score[i];
}

/* First what slots hold: blocks share the moves of a unit, and none changes what the others look
 * at. Memory bounds it. */
template <class T> static __global__ void compact_move_kernel(dms_paged_batch b, int parts)
{
    __shared__ int32_t lists[4 * THREADS];
    closing x;
    const int part = (int)(blockIdx.x % (unsigned)parts);
    x.hole_list = lists;
    x.mover_list = lists + 2 * THREADS;
    closing_begin(&x, &b, blockIdx.x / (unsigned)parts);
    for (;;) {
        const int pairs = closing_next(&x, &b.c);
        if (!pairs)
            break;
        for (int j = part * WARPS + (int)threadIdx.x / DMS_WARP; j < pairs; j += parts * WARPS)
            move_slot<T>(&b.c, x.unit, x.hole_list[j], x.mover_list[j]);
        closing_drop(&x, pairs);
    }
}

/* Then what the slots are: positions, the ring while a token is in the window of the last query,
 * the count of live slots, the pages left empty. One block a unit. */
static __global__ void compact_close_kernel(dms_paged_batch b)
{
    __shared__ int32_t lists[4 * THREADS];
    const dms_paged *c = &b.c;
    closing x;
    x.hole_list = lists;
    x.mover_list = lists + 2 * THREADS;
    closing_begin(&x, &b, blockIdx.x);
    for (;;) {
        const int pairs = closing_next(&x, c);
        if (!pairs)
            break;
        for (int j = (int)threadIdx.x; j < pairs; j += THREADS) {
            const int32_t at = *dms_paged_slot(c, x.unit, x.mover_list[j]);
            *dms_paged_slot(c, x.unit, x.hole_list[j]) = at;
            if (!dms_is_late(x.now, at >> 1, c->window))
                *dms_paged_ring(c, x.unit, at >> 1) = x.hole_list[j];
        }
        closing_drop(&x, pairs);
    }
    give_pages(c, x.unit, dms_paged_pages(c, x.kept), dms_paged_pages(c, x.live));
    if (threadIdx.x == 0 && x.kept < x.live) {
        c->live[x.unit] = x.kept;
        dms_paged_count(c, DMS_PAGED_LIVE, x.kept - x.live);
    }
}

/* A token expires at one query, so there are about T moves a unit, at most, and parts for them. */
dms_status dms_cuda_paged_compact(const dms_paged *cache, const dms_paged_rows *rows)
{
    const dms_paged_batch b = dms_paged_batch_of(cache, rows);
    const cudaStream_t stream = dms_cuda_stream(cache->device);
    const int64_t most = 2 * (int64_t)dms_cuda_of(cache->device)->multiprocessors / b.units;
    const int64_t useful = (b.tokens + 4 * WARPS - 1) / (4 * WARPS);
    const int64_t wanted = most < useful ? most : useful;
    const int parts = wanted < 1 ? 1 : (int)wanted;
    const unsigned blocks = (unsigned)(b.units * parts);
    if (cache->dtype == DMS_BF16)
        DMS_LAUNCH(compact_move_kernel<dms_bf16>, blocks, THREADS, 0, stream, b, parts);
    else
        DMS_LAUNCH(compact_move_kernel<float>, blocks, THREADS, 0, stream, b, parts);
    DMS_LAUNCH(compact_close_kernel, (unsigned)b.units, THREADS, 0, stream, b);
    return DMS_LAUNCHED();
}

/* ---- pages ---------------------------------------------------------------------------------- */

/* One block a unit of the sequence. */
static __global__ void drop_kernel(dms_paged c, int64_t first)
{
    const int64_t unit = first + blockIdx.x;
    const int live = c.live[unit], borrowed = c.borrowed[unit];
    give_pages(&c, unit, borrowed, dms_paged_pages(&c, live));
    __syncthreads(); /* all threads have read both */
    if (threadIdx.x == 0 && live) {
        dms_paged_count(&c, DMS_PAGED_LIVE, (int64_t)borrowed * c.page_slots - live);
        c.live[unit] = c.borrowed[unit] = 0;
    }
}

dms_status dms_cuda_paged_drop(const dms_paged *cache, int sequence)
{
    const int64_t units = (int64_t)cache->layers * cache->groups;
    DMS_LAUNCH(drop_kernel, (unsigned)units, THREADS, 0, dms_cuda_stream(cache->device), *cache,
               sequence * units);
    return DMS_LAUNCHED();
}

/* Pages [first, end) onto a stack of `height`, the first page last; by one block. */
static __device__ void stack_pages(const dms_paged *c, int64_t height, int first, int end)
{
    for (int j = (int)threadIdx.x; j < end - first; j += THREADS)
        c->free_pages[height + j] = end - 1 - j;
}

static __global__ void grow_kernel(dms_paged c, int first, int count)
{
    const int64_t height = c.counters[DMS_PAGED_FREE];
    stack_pages(&c, height, first, first + count);
    for (int j = (int)threadIdx.x; j < count; j += THREADS)
        dms_page_at(&c, first + j).owner[0] = -1;
    __syncthreads(); /* all threads have read the height */
    if (threadIdx.x == 0)
        c.counters[DMS_PAGED_FREE] = height + count;
}

dms_status dms_cuda_paged_grow(const dms_paged *cache, int first, int count)
{
    DMS_LAUNCH(grow_kernel, 1, THREADS, 0, dms_cuda_stream(cache->device), *cache, first, count);
    return DMS_LAUNCHED();
}

typedef struct {
    int32_t *holes;  /* [pages] free pages below the number in use */
    int32_t *movers; /* [pages] pages in use from there on, as many */
    int32_t *count;  /* [1] */
} packing;

/* Lists the moves, then writes the new stack; by one block. `keep` below the number in use would
 * lose pages: the kernel ends with an error before it changes anything. */
static __global__ void pack_plan_kernel(dms_paged c, int keep, packing p)
{
    const int t = (int)threadIdx.x, height = (int)c.counters[DMS_PAGED_FREE];
    const int used = c.pages - height;
    int holes = 0, movers = 0;
    if (keep < used)
        dms_trap();
    for (int first = 0; first < height; first += THREADS) {
        const int32_t number = first + t < height ? c.free_pages[first + t] : used;
        holes += collect(p.holes + holes, number < used, number);
    }
    for (int first = used; first < c.pages; first += THREADS) {
        const int32_t number = first + t;
        const bool want = number < c.pages && dms_page_at(&c, number).owner[0] >= 0;
        movers += collect(p.movers + movers, want, number);
    }
    __syncthreads(); /* all threads have read the stack */
    stack_pages(&c, 0, used, keep);
    if (t == 0) {
        c.counters[DMS_PAGED_FREE] = keep - used;
        *p.count = movers;
    }
}

/* A block a page at a time. Memory bounds it. */
static __global__ void pack_move_kernel(dms_paged c, packing p)
{
    const int vectors = (int)(dms_page_bytes(&c) / sizeof(uint4));
    for (int j = (int)blockIdx.x; j < *p.count; j += (int)gridDim.x) {
        const dms_page from = dms_page_at(&c, p.movers[j]), to = dms_page_at(&c, p.holes[j]);
        for (int i = (int)threadIdx.x; i < vectors; i += THREADS)
            ((uint4 *)to.k)[i] = ((const uint4 *)from.k)[i];
        __syncthreads();
        if (threadIdx.x == 0) {
            c.unit_list[from.owner[0] * (int64_t)c.unit_pages + from.owner[1]] = p.holes[j];
            from.owner[0] = -1;
        }
    }
}

dms_status dms_cuda_paged_pack(const dms_paged *cache, int keep)
{
    const size_t list = dms_cuda_part((size_t)cache->pages * sizeof(int32_t));
    const cudaStream_t stream = dms_cuda_stream(cache->device);
    const int64_t most = 8 * (int64_t)dms_cuda_of(cache->device)->multiprocessors;
    void *scratch = NULL;
    packing p;
    DMS_TRY(dms_cuda_scratch(&scratch, cache->device, 2 * list + sizeof(int32_t)));
    p.holes = (int32_t *)scratch;
    p.movers = (int32_t *)((char *)scratch + list);
    p.count = (int32_t *)((char *)scratch + 2 * list);
    DMS_LAUNCH(pack_plan_kernel, 1, THREADS, 0, stream, *cache, keep, p);
    DMS_LAUNCH(pack_move_kernel, dms_grid(cache->pages, 1, most), THREADS, 0, stream, *cache, p);
    return DMS_LAUNCHED();
}
