/* Products with a few rows: each weight row against all rows of x, in registers. */
#include "kernels/cpu/gemv.h"

#include <string.h>

#include "kernels/bf16.h"

enum { LANES = 16, STEP = 2 * LANES };
enum { TASK = 48, AHEAD = 2048 }; /* weight rows of a task; bytes that are prefetched */

typedef float lanes __attribute__((vector_size(LANES * 4)));
typedef uint32_t word_lanes __attribute__((vector_size(LANES * 4)));
typedef float half_lanes __attribute__((vector_size(LANES * 2)));
typedef float quarter_lanes __attribute__((vector_size(LANES)));

#define INLINE static inline __attribute__((always_inline))

typedef struct {
    float *y; /* [rows, outputs], at the first output of the block */
    const float *x;
    const char *w;                /* at the first row of the block */
    const float *bias, *residual; /* at that output; either may be NULL */
    int64_t inputs, outputs;
} block;

/* The STEP weights from i on. Of bf16, the even ones come first and then the odd ones: that is two
 * instructions for a cache line, and x lies in the same order. */
INLINE void load(lanes out[2], const char *row, int64_t i, bool bf16)
{
    if (!bf16) {
        memcpy(out, (const float *)row + i, 2 * sizeof(*out));
        return;
    }
    word_lanes pairs;
    memcpy(&pairs, (const uint16_t *)row + i, sizeof(pairs));
    out[0] = (lanes)(pairs << 16);
    out[1] = (lanes)(pairs & 0xffff0000u);
}

INLINE float weight_at(const char *row, int64_t i, bool bf16)
{
    return bf16 ? dms_bf16_to_f32(((const uint16_t *)row)[i]) : ((const float *)row)[i];
}

INLINE float total(const lanes *sum)
{
    half_lanes half[2];
    quarter_lanes quarter[2];
    memcpy(half, sum, sizeof(half));
    half[0] += half[1];
    memcpy(quarter, half, sizeof(quarter));
    quarter[0] += quarter[1];
    return (quarter[0][0] + quarter[0][2]) + (quarter[0][1] + quarter[0][3]);
}

/* One row of w against n_x rows of x. n_x is a constant wherever this is inlined, so the sums stay
 * in registers; few sums are split in two, to hide the latency of an addition. More rows of w at a
 * time would be as many streams, which the processor prefetches badly: half the speed. */
INLINE void dot_row(const block *b, int n_x, bool bf16)
{
    const int64_t inputs = b->inputs;
    const int split = n_x < 4 ? 2 : 1, bytes = bf16 ? 2 : 4;
    lanes sum[2 * DMS_GEMV_ROWS], weight[2], value;
#pragma GCC unroll 16
    for (int i = 0; i < n_x * split; i++)
        sum[i] = (lanes){0};
    int64_t k = 0;
    for (; k + STEP <= inputs; k += STEP) {
        load(weight, b->w, k, bf16);
        for (int i = 0; i < STEP * bytes; i += 64)
            __builtin_prefetch(b->w + k * bytes + i + AHEAD);
#pragma GCC unroll 16
        for (int n = 0; n < n_x * 2; n++) {
            memcpy(&value, b->x + n / 2 * inputs + k + n % 2 * LANES, sizeof(value));
            sum[n / 2 * split + n % split] += weight[n % 2] * value;
        }
    }
#pragma GCC unroll 8
    for (int n = 0; n < n_x; n++) {
        if (split == 2)
            sum[2 * n] += sum[2 * n + 1];
        float dot = total(&sum[n * split]);
        for (int64_t i = k; i < inputs; i++)
            dot += weight_at(b->w, i, bf16) * b->x[n * inputs + i];
        dot += b->bias ? *b->bias : 0.0f;
        b->y[n * b->outputs] = dot + (b->residual ? b->residual[n * b->outputs] : 0.0f);
    }
}

INLINE void dot_rows(block b, int64_t count, int n_x, bool bf16)
{
    for (; count > 0; count--) {
        dot_row(&b, n_x, bf16);
        b.y++;
        b.w += b.inputs * (bf16 ? 2 : 4);
        b.bias = b.bias ? b.bias + 1 : NULL;
        b.residual = b.residual ? b.residual + 1 : NULL;
    }
}

typedef void dot_fn(block b, int64_t count);

#define DOT(n_x)                                       \
    static void dot_bf16_##n_x(block b, int64_t count) \
    {                                                  \
        dot_rows(b, count, n_x, true);                 \
    }                                                  \
    static void dot_f32_##n_x(block b, int64_t count)  \
    {                                                  \
        dot_rows(b, count, n_x, false);                \
    }
DOT(1)
DOT(2)
DOT(3)
DOT(4)
DOT(5)
DOT(6)
DOT(7)
DOT(8)
#undef DOT

/* A row in the order of load(): of each STEP elements the even ones first. */
static void reorder_f32(float *out, const float *x, int64_t inputs)
{
    int64_t k = 0;
    for (; k + STEP <= inputs; k += STEP)
        for (int i = 0; i < LANES; i++) {
            out[k + i] = dms_bf16_to_f32(dms_bf16_from_f32(x[k + 2 * i]));
            out[k + LANES + i] = dms_bf16_to_f32(dms_bf16_from_f32(x[k + 2 * i + 1]));
        }
    for (; k < inputs; k++)
        out[k] = dms_bf16_to_f32(dms_bf16_from_f32(x[k]));
}

static void reorder_bf16(float *out, const uint16_t *x, int64_t inputs)
{
    lanes pair[2];
    int64_t k = 0;
    for (; k + STEP <= inputs; k += STEP) {
        load(pair, (const char *)x, k, true);
        memcpy(out + k, pair, sizeof(pair));
    }
    for (; k < inputs; k++)
        out[k] = dms_bf16_to_f32(x[k]);
}

/* x as dot_row() wants it beside bf16 weights. */
static void reorder(float *out, const dms_tensor *x)
{
    const int64_t rows = dms_rows(x), inputs = dms_cols(x);
    for (int64_t r = 0; r < rows; r++, out += inputs) {
        if (x->dtype == DMS_BF16)
            reorder_bf16(out, (const uint16_t *)x->data + r * inputs, inputs);
        else
            reorder_f32(out, (const float *)x->data + r * inputs, inputs);
    }
}

void DMS_CPU(gemv)(const dms_gemv_in *in, float *y)
{
    static dot_fn *const dots[2][DMS_GEMV_ROWS] = {
        {dot_f32_1, dot_f32_2, dot_f32_3, dot_f32_4, dot_f32_5, dot_f32_6, dot_f32_7, dot_f32_8},
        {dot_bf16_1, dot_bf16_2, dot_bf16_3, dot_bf16_4, dot_bf16_5, dot_bf16_6, dot_bf16_7,
         dot_bf16_8}};
    const dms_tensor *w = in->w;
    const bool bf16 = w->dtype == DMS_BF16;
    const int64_t outputs = w->shape[0], inputs = w->shape[1];
    dot_fn *const dot = dots[bf16][dms_rows(in->x) - 1];
    const float *x = in->x->data;
    if (bf16) {
        reorder(in->space, in->x);
        x = in->space;
    }

#pragma omp parallel for schedule(static)
    for (int64_t m = 0; m < outputs; m += TASK) {
        const int64_t count = outputs - m < TASK ? outputs - m : TASK;
        dot((block){y + m, x, (const char *)w->data + m * inputs * (bf16 ? 2 : 4),
                    in->bias ? in->bias + m : NULL, in->residual ? in->residual + m : NULL, inputs,
                    outputs},
            count);
    }
}
