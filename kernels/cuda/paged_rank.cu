/* Which slots of the paged cache are kept by their scores: averages of scores, and the mark on what
 * is dropped. */
#include "kernels/cuda/paged_list.cuh"

enum { THREADS = LIST_THREADS };

static __device__ float *score_at(const dms_paged *c, int64_t unit, int slot)
{
    return dms_paged_page(c, unit, slot).score + slot % c->page_slots;
}

/* ---- pool ----------------------------------------------------------------------------------- */

typedef struct {
    dms_paged_batch b;
    float *means; /* [units, slots of a unit] */
    int64_t last;
    int half; /* width / 2 */
} pooling;

/* The slots of a unit that are averaged. */
static __device__ int pooled_slots(const pooling *p, int64_t unit)
{
    const int64_t slots = p->b.c.live[unit] - p->last;
    return slots > 0 ? (int)slots : 0;
}

/* Grid of both kernels: (units, THREADS slots in turn). First the means, then into the scores. */
static __global__ void pool_mean_kernel(pooling p)
{
    const dms_paged *c = &p.b.c;
    const int64_t unit = dms_paged_unit(&p.b, blockIdx.x);
    const int slots = pooled_slots(&p, unit);
    float *means = p.means + (int64_t)blockIdx.x * c->unit_pages * c->page_slots;
    const int stride = (int)gridDim.y * THREADS;
    for (int i = (int)(blockIdx.y * THREADS + threadIdx.x); i < slots; i += stride) {
        const int from = i > p.half ? i - p.half : 0;
        const int to = slots - i > p.half ? i + p.half : slots - 1;
        float sum = 0;
        for (int j = from; j <= to; j++)
            sum += *score_at(c, unit, j);
        means[i] = sum / (2.0f * (float)p.half + 1.0f);
    }
}

static __global__ void pool_store_kernel(pooling p)
{
    const dms_paged *c = &p.b.c;
    const int64_t unit = dms_paged_unit(&p.b, blockIdx.x);
    const int slots = pooled_slots(&p, unit);
    const float *means = p.means + (int64_t)blockIdx.x * c->unit_pages * c->page_slots;
    const int stride = (int)gridDim.y * THREADS;
    for (int i = (int)(blockIdx.y * THREADS + threadIdx.x); i < slots; i += stride)
        *score_at(c, unit, i) = means[i];
}

dms_status dms_cuda_paged_pool(const dms_paged *cache, const dms_paged_rows *rows, int width,
                               int64_t last)
{
    const cudaStream_t stream = dms_cuda_stream(cache->device);
    const int64_t slots = (int64_t)cache->unit_pages * cache->page_slots;
    void *scratch = NULL;
    pooling p;
    p.b = dms_paged_batch_of(cache, rows);
    p.last = last;
    p.half = width / 2;
    DMS_TRY(dms_cuda_scratch(&scratch, cache->device, (size_t)(p.b.units * slots) * sizeof(float)));
    p.means = (float *)scratch;
    const dim3 grid((unsigned)p.b.units, dms_grid(slots, THREADS, 64));
    DMS_LAUNCH(pool_mean_kernel, grid, THREADS, 0, stream, p);
    DMS_LAUNCH(pool_store_kernel, grid, THREADS, 0, stream, p);
    return DMS_LAUNCHED();
}

/* ---- mark ----------------------------------------------------------------------------------- */

typedef struct {
    dms_paged_batch b;
    unsigned long long *keys; /* [units, slots of a unit] */
    const int32_t *last;      /* [S] */
    const int32_t *best;      /* [S], or NULL */
    int64_t first;
} marking;

/* Ranks of a unit's slots, by a block; 0: kept whatever it scored. Returns how many are not. */
static __device__ int rank_slots(unsigned long long *keys, const marking *m, int64_t unit,
                                 int64_t recent)
{
    const dms_paged *c = &m->b.c;
    const int live = c->live[unit];
    int others = 0;
    for (int first = 0; first < live; first += THREADS) {
        const int slot = first + (int)threadIdx.x, place = slot % c->page_slots;
        unsigned long long key = 0;
        if (slot < live) {
            const dms_page page = dms_paged_page(c, unit, slot);
            const int32_t position = page.at[place] >> 1;
            if (position >= m->first && position < recent)
                key = rank_key(m->best ? page.score[place] : 0.0f, position);
            keys[slot] = key;
        }
        others += __syncthreads_count(key != 0);
    }
    return others;
}

/* One block a unit. Ranks lie in the caches from the first pass on; latency bounds it. */
static __global__ void mark_kernel(marking m)
{
    const dms_paged *c = &m.b.c;
    const int64_t i = blockIdx.x, row = i / c->groups, unit = dms_paged_unit(&m.b, i);
    const int32_t sequence = m.b.sequences[row];
    const int64_t tokens = (int64_t)m.b.positions[row * m.b.tokens + m.b.tokens - 1] + 1;
    unsigned long long *keys = m.keys + i * c->unit_pages * c->page_slots;
    const int others = rank_slots(keys, &m, unit, tokens - m.last[sequence]);
    const int best = m.best ? m.best[sequence] : 0, live = c->live[unit];
    if (others <= best)
        return;
    const unsigned long long least = threshold_of(keys, live, best);
    for (int slot = (int)threadIdx.x; slot < live; slot += THREADS)
        if (keys[slot] && keys[slot] < least)
            *dms_paged_slot(c, unit, slot) |= 1;
}

dms_status dms_cuda_paged_mark(const dms_paged *cache, const dms_paged_rows *rows,
                               const dms_paged_kept *kept)
{
    const int64_t slots = (int64_t)cache->unit_pages * cache->page_slots;
    void *scratch = NULL;
    marking m;
    m.b = dms_paged_batch_of(cache, rows);
    m.last = (const int32_t *)kept->last->data;
    m.best = kept->best ? (const int32_t *)kept->best->data : NULL;
    m.first = kept->first;
    DMS_TRY(dms_cuda_scratch(&scratch, cache->device, (size_t)(m.b.units * slots) * 8));
    m.keys = (unsigned long long *)scratch;
    DMS_LAUNCH(mark_kernel, (unsigned)m.b.units, THREADS, 0, dms_cuda_stream(cache->device), m);
    return DMS_LAUNCHED();
}
