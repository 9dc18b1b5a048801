/* Scores of up to 8 queries and a tile of slots of the paged cache, by a warp: what attention of
 * single tokens and the weights of slots have in common. */
#ifndef DMS_CUDA_PAGED_TILE_CUH
#define DMS_CUDA_PAGED_TILE_CUH

#include "kernels/cuda/paged.cuh"

enum {
    SLICES = 4, /* lanes that share a column of keys: each takes every SLICES-th channel */
    ITEMS = DMS_WARP / SLICES, /* 16-byte columns of slots that a warp reads at once */
    GROUP = 16                 /* slots that lie in one page for sure */
};

#define VECTOR(T) (16 / (int)sizeof(T)) /* elements of 16 bytes */
#define TILE(T) (ITEMS * VECTOR(T))     /* slots that a warp meets at once */

/* Where lane i's group of slots of a tile lies: page and place there. Groups past the last live
 * slot are the first of the unit, so that they can be read. The page's address follows later: a
 * warp then waits for neither of two reads that hang on one another. */
typedef struct {
    int32_t page;
    int place;
} spot;

template <class T> static __device__ spot find(const dms_paged *c, int64_t unit, int tile, int live)
{
    const int lane = (int)threadIdx.x % DMS_WARP;
    const int group = tile * TILE(T) + lane * GROUP;
    const int slot = lane < TILE(T) / GROUP && group < live ? group : 0;
    spot at;
    at.page = c->unit_list[unit * c->unit_pages + slot / c->page_slots];
    at.place = slot % c->page_slots;
    return at;
}

/* Addresses of the group's keys and values. */
typedef struct {
    unsigned long long keys, values;
} group;

template <class T> static __device__ group reach(const dms_paged *c, spot at)
{
    const dms_page page = dms_page_at(c, at.page);
    group g;
    g.keys = (unsigned long long)((const T *)page.k + at.place);
    g.values = (unsigned long long)((const T *)page.v + at.place * (int)dms_page_padded(c));
    return g;
}

/* RT floats that all lanes read alike, aligned to as many. */
template <int RT> static __device__ __forceinline__ void load_row(float (&out)[RT], const float *p)
{
    if (RT % 4 == 0) {
#pragma unroll
        for (int i = 0; i < RT / 4; i++)
            dms_widen(out + 4 * i, p + 4 * i);
    } else {
#pragma unroll
        for (int i = 0; i < RT; i++)
            out[i] = p[i];
    }
}

/* Half of x[.][0, 2N) goes to the lane that differs in `bit`, its half is added to ours. */
template <int RT, int N, int WIDE>
static __device__ __forceinline__ void halve(float (&x)[RT][WIDE], int bit)
{
    const bool upper = (int)threadIdx.x & bit;
#pragma unroll
    for (int r = 0; r < RT; r++)
#pragma unroll
        for (int v = 0; v < N; v++) {
            const float mine = upper ? x[r][v + N] : x[r][v];
            const float other = upper ? x[r][v] : x[r][v + N];
            x[r][v] = mine + __shfl_xor_sync(DMS_ALL_LANES, other, bit);
        }
}

/* s: [TILE, RT], scores of a tile; q: [E, RT]. Lane bits: 0 and 3-4 say which column of slots, 1-2
 * which slice of channels: so a warp reads whole lines of 128 bytes. Those of slots past the last
 * one are of undefined memory. */
template <class T, int RT>
static __device__ void score(float *s, const float *queries, const dms_paged *c,
                             unsigned long long keys)
{
    const int lane = (int)threadIdx.x % DMS_WARP;
    const int item = (lane & 1) | (lane >> 3 << 1), slice = lane >> 1 & 3;
    const int from = item * VECTOR(T) / GROUP, inside = item * VECTOR(T) % GROUP;
    const T *k = (const T *)__shfl_sync(DMS_ALL_LANES, keys, from) + inside;
    float acc[RT][VECTOR(T)] = {{0}};

#pragma unroll 4
    for (int e = slice; e < c->head_dim; e += SLICES) {
        float x[VECTOR(T)], q[RT];
        dms_widen(x, k + e * c->page_slots);
        load_row<RT>(q, queries + e * RT);
#pragma unroll
        for (int r = 0; r < RT; r++)
#pragma unroll
            for (int v = 0; v < VECTOR(T); v++)
                acc[r][v] += q[r] * x[v];
    }
    halve<RT, VECTOR(T) / 2>(acc, 4);
    halve<RT, VECTOR(T) / 4>(acc, 2);
    const int half = slice >> 1, quarter = slice & 1;
    const int first = item * VECTOR(T) + half * VECTOR(T) / 2 + quarter * VECTOR(T) / 4;
#pragma unroll
    for (int v = 0; v < VECTOR(T) / 4; v++)
#pragma unroll
        for (int r = 0; r < RT; r++)
            s[(first + v) * RT + r] = acc[r][v];
    __syncwarp();
}

#endif
