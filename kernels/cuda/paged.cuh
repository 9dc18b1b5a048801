/* The paged cache as its kernels see it: the rows of a batch, units, slots and counters. Host code
 * passes structures by value; everything they point to is device memory. */
#ifndef DMS_CUDA_PAGED_CUH
#define DMS_CUDA_PAGED_CUH

#include "kernels/cuda/kernel.cuh"
#include "kernels/visibility.h"

/* dms_paged_rows for the device. */
typedef struct {
    dms_paged c;
    const int32_t *sequences; /* [n] */
    const int32_t *positions; /* [n, T] */
    int64_t units;            /* n*G, those of the batch */
    int tokens;               /* T */
    int layer;
    int counter; /* of slots read by single tokens: READS or VISIBLE */
} dms_paged_batch;

static inline dms_paged_batch dms_paged_batch_of(const dms_paged *c, const dms_paged_rows *rows)
{
    dms_paged_batch b;
    b.c = *c;
    b.sequences = (const int32_t *)rows->sequences->data;
    b.positions = (const int32_t *)rows->positions->data;
    b.units = rows->sequences->shape[0] * c->groups;
    b.tokens = (int)dms_cols(rows->positions);
    b.layer = rows->layer;
    b.counter = rows->prefill ? DMS_PAGED_VISIBLE : DMS_PAGED_READS;
    return b;
}

/* dms_cuda_paged_attention where T > 1. */
dms_status dms_cuda_paged_chunk(dms_tensor *o, const dms_paged *cache, const dms_paged_rows *rows,
                                const dms_tensor *q);

/* Partial softmaxes of the rows of units, and where their results go. Row m of a unit is query m /
 * R of the chunk and head m % R of the group. A cell holds the maximum of a part's scores in units
 * of log2, the sum of their powers of two under it and so weighted values; its size is even. */
typedef struct {
    const float *cells; /* [units, splits, rows, cell]: maximum, sum, [E] */
    float *o;           /* [n, T, H*E] */
    int rows;           /* T*R */
    int reps;           /* R */
    int splits;
    int cell; /* floats */
    int groups, head_dim;
} dms_paged_merge;

/* Queues the merge of all parts of `units` units. In paged_attention.cu. */
dms_status dms_cuda_paged_merge(dms_device *dev, const dms_paged_merge *merge, int64_t units);

/* The unit that is number i of the batch: KV head i % G of row i / G. */
static __device__ __forceinline__ int64_t dms_paged_unit(const dms_paged_batch *b, int64_t i)
{
    const int64_t sequence = b->sequences[i / b->c.groups];
    return (sequence * b->c.layers + b->layer) * b->c.groups + i % b->c.groups;
}

static __device__ __forceinline__ int dms_paged_pages(const dms_paged *c, int slots)
{
    return (slots + c->page_slots - 1) / c->page_slots;
}

/* The page that holds `slot` of a unit. */
static __device__ __forceinline__ dms_page dms_paged_page(const dms_paged *c, int64_t unit,
                                                          int slot)
{
    return dms_page_at(c, c->unit_list[unit * c->unit_pages + slot / c->page_slots]);
}

static __device__ __forceinline__ int32_t *dms_paged_slot(const dms_paged *c, int64_t unit,
                                                          int slot)
{
    return dms_paged_page(c, unit, slot).at + slot % c->page_slots;
}

static __device__ __forceinline__ int32_t *dms_paged_ring(const dms_paged *c, int64_t unit,
                                                          int position)
{
    return c->ring + unit * c->ring_entries + position % (int)c->ring_entries;
}

/* Adds to a counter and returns what it was; the order of additions cannot show. */
static __device__ __forceinline__ int64_t dms_paged_count(const dms_paged *c, int counter,
                                                          int64_t change)
{
    unsigned long long *at = (unsigned long long *)c->counters + counter;
    return (int64_t)atomicAdd(at, (unsigned long long)change);
}

/* The count's highest value comes after the last addition of an op that only adds. */
static __device__ __forceinline__ void dms_paged_count_new(const dms_paged *c, int slots)
{
    const int64_t live = dms_paged_count(c, DMS_PAGED_LIVE, slots) + slots;
    atomicMax((unsigned long long *)c->counters + DMS_PAGED_PEAK, (unsigned long long)live);
}

/* Takes `count` pages off the stack; they are the entries below the number returned. None left: the
 * kernel ends with an error, since no op may return a status from here. */
static __device__ __forceinline__ int dms_paged_pop(const dms_paged *c, int count)
{
    const int64_t height = dms_paged_count(c, DMS_PAGED_FREE, -(int64_t)count);
    if (height < count)
        dms_trap();
    return (int)height;
}

static __device__ __forceinline__ void dms_paged_own(const dms_paged *c, int64_t unit, int index,
                                                     int32_t number)
{
    int32_t *owner = dms_page_at(c, number).owner;
    owner[0] = (int32_t)unit;
    owner[1] = index;
    c->unit_list[unit * c->unit_pages + index] = number;
}

/* The 16 bytes at p as floats: 8 of bf16, 4 of f32. */
static __device__ __forceinline__ void dms_widen(float *out, const dms_bf16 *p)
{
    const uint4 v = *(const uint4 *)p;
    const unsigned pairs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        out[2 * i] = __int_as_float((int)(pairs[i] << 16));
        out[2 * i + 1] = __int_as_float((int)(pairs[i] & 0xffff0000u));
    }
}

static __device__ __forceinline__ void dms_widen(float *out, const float *p)
{
    const float4 v = *(const float4 *)p;
    out[0] = v.x;
    out[1] = v.y;
    out[2] = v.z;
    out[3] = v.w;
}

#endif
