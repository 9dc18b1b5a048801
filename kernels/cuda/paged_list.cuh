/* Lists and ranks by blocks of LIST_THREADS threads: what of many comes first, in order, and which
 * are the greatest. */
#ifndef DMS_CUDA_PAGED_LIST_CUH
#define DMS_CUDA_PAGED_LIST_CUH

#include "kernels/cuda/paged.cuh"

enum { LIST_THREADS = 256, LIST_WARPS = LIST_THREADS / DMS_WARP };

/* The values of the threads that want it, in the order of threads, become list[0...]; returns their
 * number to all. The list can be read after the next barrier. */
static __device__ inline int collect(int32_t *list, bool want, int32_t value)
{
    __shared__ int counts[LIST_WARPS];
    const int lane = (int)threadIdx.x % DMS_WARP, warp = (int)threadIdx.x / DMS_WARP;
    const unsigned wanting = __ballot_sync(DMS_ALL_LANES, want);
    int before = 0, all = 0;
    __syncthreads(); /* the counts of the call before were read */
    if (lane == 0)
        counts[warp] = __popc(wanting);
    __syncthreads();
    for (int w = 0; w < LIST_WARPS; w++) {
        before += w < warp ? counts[w] : 0;
        all += counts[w];
    }
    if (want)
        list[before + __popc(wanting & ((1u << lane) - 1))] = value;
    return all;
}

/* Ranks by `value`, of equal ones by `number` (>= 0); never 0. */
static __device__ __forceinline__ unsigned long long rank_key(float value, int number)
{
    const int bits = __float_as_int(value + 0.0f); /* -0 becomes 0 */
    const unsigned ordered = bits < 0 ? ~(unsigned)bits : (unsigned)bits | 0x80000000u;
    return (unsigned long long)ordered << 32 | (unsigned)number;
}

/* What a pass of threshold_of finds: the bin that holds the key looked for, the keys in greater
 * bins and those in it. */
typedef struct {
    int bin, greater, inside;
} rank_bin;

/* By one warp: of the bins from the greatest on, the first at which there are `want` keys. A lane
 * adds eight bins. */
static __device__ inline void find_bin(rank_bin *found, const int *bins, int want)
{
    const int lane = (int)threadIdx.x;
    int bin = LIST_THREADS - 1 - 8 * lane, sum = 0;
    for (int j = 0; j < 8; j++)
        sum += bins[bin - j];
    int upto = sum;
    for (int step = 1; step < DMS_WARP; step *= 2) {
        const int other = __shfl_up_sync(DMS_ALL_LANES, upto, step);
        upto += lane >= step ? other : 0;
    }
    int greater = upto - sum;
    if (greater >= want || upto < want)
        return;
    while (greater + bins[bin] < want)
        greater += bins[bin--];
    found->bin = bin;
    found->greater = greater;
    found->inside = bins[bin];
}

/* A number that exactly `want` of the keys reach, by a block; for 0 the greatest there is. Keys
 * differ; those of 0 do not count, and there are as many as wanted of others. A digit of 8 bits a
 * pass, from the highest on, until all keys with the digits found so far are wanted. */
static __device__ inline unsigned long long threshold_of(const unsigned long long *keys, int count,
                                                         int want)
{
    __shared__ int bins[LIST_THREADS];
    __shared__ rank_bin found;
    const int t = (int)threadIdx.x;
    unsigned long long digits = 0;
    if (want <= 0)
        return ~0ull;
    for (int shift = 56; shift >= 0; shift -= 8) {
        bins[t] = 0;
        __syncthreads(); /* also: keys that other threads wrote can be read */
        for (int j = t; j < count; j += LIST_THREADS)
            if ((keys[j] ^ digits) >> shift >> 8 == 0)
                atomicAdd(bins + (keys[j] >> shift & 255), 1);
        __syncthreads();
        if (t < DMS_WARP)
            find_bin(&found, bins, want);
        __syncthreads();
        digits |= (unsigned long long)found.bin << shift;
        want -= found.greater;
        if (want == found.inside)
            break;
    }
    return digits;
}

#endif
