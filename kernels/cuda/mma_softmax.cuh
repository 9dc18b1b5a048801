/* The tile step of FlashAttention-2 (Dao 2023) on tensor cores: scores, running softmax, weighted
 * sum.
 *
 * A warp has STACK 16-row tiles of queries and meets KEYS keys at a time. A thread holds rows
 * lane/4 and lane/4 + 8 of each 16-row tile: index [m][0] and [m][1] of `max` and `sum`. The
 * maximum is in units of q.k and the same in the 4 lanes of a row; each lane has its share of the
 * sum. Fragments are those of mma_tile.cuh. */
#ifndef DMS_CUDA_MMA_SOFTMAX_CUH
#define DMS_CUDA_MMA_SOFTMAX_CUH

#include "kernels/cuda/mma_tile.cuh"

/* s = Q K^T of the rows from `row` on. q: tile [rows, WIDTH]; k: tile [KEYS, WIDTH], or [WIDTH,
 * KEYS] where TRANSPOSED. */
template <int WIDTH, int STACK, int KEYS, bool TRANSPOSED>
static __device__ __forceinline__ void
dms_softmax_scores(float s[STACK][KEYS / 8][4], const dms_bf16 *q, const dms_bf16 *k, int row)
{
#pragma unroll
    for (int m = 0; m < STACK; m++)
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
            s[m][n][0] = s[m][n][1] = s[m][n][2] = s[m][n][3] = 0;
#pragma unroll
    for (int e = 0; e < WIDTH; e += 16) {
        uint32_t a[STACK][4];
#pragma unroll
        for (int m = 0; m < STACK; m++)
            dms_tile_a<WIDTH>(a[m], q, row + 16 * m, e);
#pragma unroll
        for (int n = 0; n < KEYS; n += 16) {
            uint32_t b[4];
            if (TRANSPOSED)
                dms_tile_b_trans<KEYS>(b, k, n, e);
            else
                dms_tile_b<WIDTH>(b, k, n, e);
#pragma unroll
            for (int m = 0; m < STACK; m++) {
                dms_mma_bf16(s[m][n / 8], a[m], b);
                dms_mma_bf16(s[m][n / 8 + 1], a[m], b + 2);
            }
        }
    }
}

/* s -> exponentials of one row and its part of the sums; returns what older ones shrink by. The
 * maximum starts at -FLT_MAX and stays finite, so that a row that has seen only hidden keys so far
 * is free of NaN. rate: scale*log2(e). i: 0 or 2, the row's first column of a fragment. */
template <int KEYS>
static __device__ __forceinline__ float dms_softmax_row(float s[KEYS / 8][4], float *max,
                                                        float *sum, float rate, int i)
{
    float top = *max;
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
        top = fmaxf(top, fmaxf(s[n][i], s[n][i + 1]));
    top = fmaxf(top, __shfl_xor_sync(DMS_ALL_LANES, top, 1));
    top = fmaxf(top, __shfl_xor_sync(DMS_ALL_LANES, top, 2));
    /* One a row; dms_exp2 here makes the compiler spill (E = 128, compute capability 10.0). */
    const float shrink = exp2f((*max - top) * rate), shift = -top * rate;
    float added = 0;
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++) {
        s[n][i] = dms_exp2(fmaf(s[n][i], rate, shift));
        s[n][i + 1] = dms_exp2(fmaf(s[n][i + 1], rate, shift));
        added += s[n][i] + s[n][i + 1];
    }
    *max = top;
    *sum = *sum * shrink + added;
    return shrink;
}

/* Scores become weights; older sums and outputs shrink as the maximum rises. */
template <int WIDTH, int STACK, int KEYS>
static __device__ __forceinline__ void
dms_softmax_soften(float o[STACK][WIDTH / 8][4], float s[STACK][KEYS / 8][4], float max[STACK][2],
                   float sum[STACK][2], float rate)
{
#pragma unroll
    for (int m = 0; m < STACK; m++) {
        const float low = dms_softmax_row<KEYS>(s[m], &max[m][0], &sum[m][0], rate, 0);
        const float high = dms_softmax_row<KEYS>(s[m], &max[m][1], &sum[m][1], rate, 2);
#pragma unroll
        for (int n = 0; n < WIDTH / 8; n++) {
            o[m][n][0] *= low;
            o[m][n][1] *= low;
            o[m][n][2] *= high;
            o[m][n][3] *= high;
        }
    }
}

/* o += P V, P rounded to bf16. v: tile [KEYS, WIDTH]. */
template <int WIDTH, int STACK, int KEYS>
static __device__ __forceinline__ void
dms_softmax_add(float o[STACK][WIDTH / 8][4], float p[STACK][KEYS / 8][4], const dms_bf16 *v)
{
#pragma unroll
    for (int key = 0; key < KEYS; key += 16) {
        uint32_t a[STACK][4];
#pragma unroll
        for (int m = 0; m < STACK; m++)
            dms_tile_a_from(a[m], p[m][key / 8], p[m][key / 8 + 1]);
#pragma unroll
        for (int n = 0; n < WIDTH; n += 16) {
            uint32_t b[4];
            dms_tile_b_trans<WIDTH>(b, v, n, key);
#pragma unroll
            for (int m = 0; m < STACK; m++) {
                dms_mma_bf16(o[m][n / 8], a[m], b);
                dms_mma_bf16(o[m][n / 8 + 1], a[m], b + 2);
            }
        }
    }
}

#endif
