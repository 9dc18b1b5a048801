/* Kernels of the vocabulary losses: one block reads a row of student's and teacher's logits. */
#ifndef DMS_CUDA_LOSS_KERNELS_CUH
#define DMS_CUDA_LOSS_KERNELS_CUH

#include "kernels/cuda/wide.cuh"

/* Of a block that owns a row, and the logits that a thread takes at a time. */
enum { LOSS_THREADS = 512, LOSS_WARPS = LOSS_THREADS / DMS_WARP, LOSS_WIDE = 8 };

/* Logits of a chunk, [rows, stride] f32 each, `vocab` of them in a row; a row begins on a multiple
 * of LOSS_WIDE. Without a teacher t is s. */
typedef struct {
    const float *s, *t;
    const float *weight; /* [rows] */
    int64_t stride;
    int vocab;
} loss_logits;

/* What some of a row's tokens say about one model. */
typedef struct {
    double sum;   /* of exp(logit - top) */
    double cross; /* of exp(logit - top) * (this model's logit - the other's) */
    float top;    /* largest logit */
    int best;     /* first token that has it */
} loss_part;

/* Where the scores of a chunk go, [rows] each or NULL. */
typedef struct {
    float *nll, *nll_teacher, *kl_forward, *kl_reverse, *agree;
    const int32_t *next;
} loss_scores;

/* Rows of a chunk as an operand, [rows, dim]. Those of weight 0 become zeros: the products would
 * carry what is in them, even NaN, into the gradient of the head. */
template <typename T>
static __global__ void __launch_bounds__(DMS_BLOCK)
    take_rows_kernel(T *out, const float *x, const float *weight, int64_t dim)
{
    const int64_t row = blockIdx.x;
    const bool skipped = weight[row] == 0;
    for (int64_t i = threadIdx.x; i < dim; i += blockDim.x)
        dms_store(out + row * dim + i, skipped ? 0.0f : x[row * dim + i]);
}

/* Lets `part` know the largest of n more logits, those of tokens from `first` on. */
static __device__ __forceinline__ void raise_top(loss_part *part, const float x[LOSS_WIDE], int n,
                                                 int first)
{
    float top = part->top;
    int best = part->best;
#pragma unroll
    for (int j = 0; j < LOSS_WIDE; j++)
        if (j < n && x[j] > top) {
            top = x[j];
            best = first + j;
        }
    if (top > part->top) {
        const double keep = (double)expf(part->top - top);
        part->sum *= keep;
        part->cross *= keep;
        part->top = top;
        part->best = best;
    }
}

/* Adds n tokens to the sums: in f32 among themselves, in double to what is there, since rounding
 * of a long f32 sum would show in the divergence. */
static __device__ __forceinline__ void add_tokens(loss_part part[2], const float s[LOSS_WIDE],
                                                  const float t[LOSS_WIDE], int n)
{
    float sum_s = 0, sum_t = 0, cross_s = 0, cross_t = 0;
#pragma unroll
    for (int j = 0; j < LOSS_WIDE; j++)
        if (j < n) {
            const float d = s[j] - t[j];
            const float e_s = expf(s[j] - part[0].top), e_t = expf(t[j] - part[1].top);
            sum_s += e_s;
            sum_t += e_t;
            cross_s += e_s * d;
            cross_t -= e_t * d;
        }
    part[0].sum += (double)sum_s;
    part[0].cross += (double)cross_s;
    part[1].sum += (double)sum_t;
    part[1].cross += (double)cross_t;
}

static __device__ __forceinline__ void keep_leader(loss_part *part, float top, int best)
{
    if (top > part->top || (top == part->top && best < part->best)) {
        part->top = top;
        part->best = best;
    }
}

static __device__ __forceinline__ double warp_sum_double(double v)
{
    for (int step = DMS_WARP / 2; step > 0; step /= 2)
        v += __shfl_xor_sync(DMS_ALL_LANES, v, step);
    return v;
}

/* Turns the parts of the threads into that of the row, the same in every thread. Sums are added in
 * one fixed order. */
static __device__ __forceinline__ void combine_parts(loss_part part[2])
{
    __shared__ loss_part of_warp[2][LOSS_WARPS];
    const int lane = (int)threadIdx.x % DMS_WARP, warp = (int)threadIdx.x / DMS_WARP;

    for (int m = 0; m < 2; m++) {
        loss_part *leader = &of_warp[m][warp], seen = part[m];
        for (int step = DMS_WARP / 2; step > 0; step /= 2) {
            const float top = __shfl_xor_sync(DMS_ALL_LANES, seen.top, step);
            const int best = __shfl_xor_sync(DMS_ALL_LANES, seen.best, step);
            keep_leader(&seen, top, best);
        }
        if (lane == 0) {
            leader->top = seen.top;
            leader->best = seen.best;
        }
    }
    __syncthreads();
    for (int m = 0; m < 2; m++) {
        const double own_top = (double)part[m].top;
        for (int w = 0; w < LOSS_WARPS; w++)
            keep_leader(&part[m], of_warp[m][w].top, of_warp[m][w].best);
        const double scale = exp(own_top - (double)part[m].top);
        const double sum = warp_sum_double(part[m].sum * scale);
        const double cross = warp_sum_double(part[m].cross * scale);
        if (lane == 0) {
            of_warp[m][warp].sum = sum;
            of_warp[m][warp].cross = cross;
        }
    }
    __syncthreads();
    for (int m = 0; m < 2; m++) {
        part[m].sum = part[m].cross = 0;
        for (int w = 0; w < LOSS_WARPS; w++) {
            part[m].sum += of_warp[m][w].sum;
            part[m].cross += of_warp[m][w].cross;
        }
    }
}

/* Student's and teacher's statistics of one row, in one pass over its logits. */
static __device__ __forceinline__ void read_row(loss_part part[2], const float *s, const float *t,
                                                int vocab)
{
    float x[LOSS_WIDE], y[LOSS_WIDE];
    for (int m = 0; m < 2; m++) {
        part[m].sum = part[m].cross = 0;
        part[m].top = -INFINITY;
        part[m].best = 0;
    }
    for (int at = (int)threadIdx.x * LOSS_WIDE; at < vocab; at += LOSS_THREADS * LOSS_WIDE) {
        const int n = vocab - at;
        dms_load_few<LOSS_WIDE>(x, s + at, n);
        dms_load_few<LOSS_WIDE>(y, t + at, n);
        raise_top(&part[0], x, n, at);
        raise_top(&part[1], y, n, at);
        add_tokens(part, x, y, n);
    }
    combine_parts(part);
}

static __device__ __forceinline__ double log_sum(const loss_part *part)
{
    return (double)part->top + log(part->sum);
}

/* KL(a||b) = mean under a of (a's logit - b's) - (lse a - lse b); rounding may not make it
 * negative, and a NaN stays one. */
static __device__ __forceinline__ float divergence(const loss_part *a, const loss_part *b)
{
    const double kl = a->cross / a->sum - (log_sum(a) - log_sum(b));
    return kl < 0 ? 0.0f : (float)kl;
}

/* Gradient of weight*KL by the student's logits. With d = s - t, reverse: weight * p_s * (d - mean
 * of d under p_s); forward: weight * (p_s - p_t). g may be s. */
template <typename G>
static __device__ __forceinline__ void write_gradient(G *g, const float *s, const float *t,
                                                      const loss_part part[2], float weight,
                                                      int vocab, bool reverse)
{
    const float top_s = part[0].top, top_t = part[1].top;
    const float scale_s = (float)((double)weight / part[0].sum);
    const float scale_t = (float)((double)weight / part[1].sum);
    const float mean = (float)(part[0].cross / part[0].sum);
    float x[LOSS_WIDE], y[LOSS_WIDE];

    for (int at = (int)threadIdx.x * LOSS_WIDE; at < vocab; at += LOSS_THREADS * LOSS_WIDE) {
        dms_load_few<LOSS_WIDE>(x, s + at, vocab - at);
        dms_load_few<LOSS_WIDE>(y, t + at, vocab - at);
#pragma unroll
        for (int j = 0; j < LOSS_WIDE; j++) {
            const float p = expf(x[j] - top_s) * scale_s;
            x[j] = reverse ? p * (x[j] - y[j] - mean) : p - expf(y[j] - top_t) * scale_t;
        }
        dms_store_few<LOSS_WIDE>(g + at, x, vocab - at);
    }
}

/* kl[row] and g[row, :], each unless it is NULL; zeros where weight is 0. Bound by memory: two
 * passes over both rows of logits (1.2 MB at 152k tokens, more than the cache can hold for all rows
 * under way). */
template <typename G>
static __global__ void __launch_bounds__(LOSS_THREADS, 2)
    distill_kernel(G *g, float *kl, loss_logits in, bool reverse)
{
    const int64_t row = blockIdx.x, at = row * in.stride;
    const float zeros[LOSS_WIDE] = {0}, weight = in.weight[row];
    loss_part part[2];

    if (weight == 0) {
        if (kl && threadIdx.x == 0)
            kl[row] = 0;
        for (int i = (int)threadIdx.x * LOSS_WIDE; g && i < in.vocab; i += LOSS_THREADS * LOSS_WIDE)
            dms_store_few<LOSS_WIDE>(g + at + i, zeros, in.vocab - i);
        return;
    }
    read_row(part, in.s + at, in.t + at, in.vocab);
    if (kl && threadIdx.x == 0)
        kl[row] = reverse ? divergence(&part[0], &part[1]) : divergence(&part[1], &part[0]);
    if (g)
        write_gradient(g + at, in.s + at, in.t + at, part, weight, in.vocab, reverse);
}

static __device__ __forceinline__ void put(float *to, int64_t row, float value)
{
    if (to)
        to[row] = value;
}

/* -log p of the next token: 0 without one, NaN for one outside the vocabulary, which a launcher
 * cannot see. */
static __device__ __forceinline__ float surprise(const loss_part *part, const float *logits,
                                                 int next, int vocab)
{
    if (next < 0)
        return 0.0f;
    return next < vocab ? (float)(log_sum(part) - (double)logits[next])
                        : __int_as_float(0x7fc00000);
}

/* Bound by memory: one pass over the logits. */
static __global__ void __launch_bounds__(LOSS_THREADS, 2)
    score_kernel(loss_scores out, loss_logits in)
{
    const int64_t row = blockIdx.x, at = row * in.stride;
    const bool skipped = in.weight[row] == 0;
    loss_part part[2];

    if (!skipped)
        read_row(part, in.s + at, in.t + at, in.vocab);
    if (threadIdx.x != 0)
        return;
    const int next = out.next && !skipped ? out.next[row] : -1;
    put(out.nll, row, surprise(&part[0], in.s + at, next, in.vocab));
    put(out.nll_teacher, row, surprise(&part[1], in.t + at, next, in.vocab));
    put(out.kl_forward, row, skipped ? 0.0f : divergence(&part[1], &part[0]));
    put(out.kl_reverse, row, skipped ? 0.0f : divergence(&part[0], &part[1]));
    put(out.agree, row, !skipped && part[0].best == part[1].best ? 1.0f : 0.0f);
}

#endif
