/* Linear layers on the CPU: GEMM by oneDNN on fixed tiles, kernels of our own for a few rows. */
#include <string.h>

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/gemv.h"
#include "kernels/cpu/operand.h"

enum { PACKED_WIDENED = 1 }; /* kinds of copies of a frozen weight */
enum { MAX_TILE_M = 256, MAX_TILE_N = 576, MIN_TILE = 32, COLUMNS = 64 };
enum { FEW = 4, MANY = 8, LONG = 1 << 25 }; /* tiles of a product; multiply-adds of a tile */

static int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

/* Size of `parts` nearly equal tiles. */
static int64_t even_tile(int64_t n, int64_t parts)
{
    return ceil_div(ceil_div(n, parts), MIN_TILE) * MIN_TILE;
}

/* Large tiles are fast; a few of them, and more where they are long, keep the cores busy. Sizes
 * depend on the shape alone. */
static dms_status plan(dms_gemm_tiles *out, const dms_gemm_shape *shape)
{
    int64_t tile_m = even_tile(shape->m, ceil_div(shape->m, MAX_TILE_M));
    int64_t tile_n = even_tile(shape->n, ceil_div(shape->n, MAX_TILE_N));
    for (;;) {
        const int64_t tasks = ceil_div(shape->m, tile_m) * ceil_div(shape->n, tile_n);
        const int64_t work = tile_m * tile_n * shape->k;
        if (tasks >= MANY || (tasks >= FEW && work < LONG))
            break;
        if (2 * tile_m >= tile_n && tile_m > MIN_TILE)
            tile_m = even_tile(tile_m, 2);
        else if (tile_n > MIN_TILE)
            tile_n = even_tile(tile_n, 2);
        else
            break;
    }
    return dms_gemm_tiles_get(out, shape, tile_m, tile_n);
}

static void convert(void *out, const float *x, int64_t count, bool bf16)
{
    const int64_t chunk = 1 << 14;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i += chunk) {
        const int64_t n = count - i < chunk ? count - i : chunk;
        if (bf16)
            dms_operand_to_bf16((uint16_t *)out + i, x + i, n);
        else
            dms_operand_round((float *)out + i, x + i, n);
    }
}

static void widen(float *out, const uint16_t *w, int64_t count)
{
    const int64_t chunk = 1 << 14;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i += chunk)
        dms_operand_widen(out + i, w + i, count - i < chunk ? count - i : chunk);
}

/* Bytes that weight() and activation() need in the workspace. */
static size_t weight_bytes(const dms_tensor *w)
{
    return w->dtype == DMS_BF16 && !dms_operand_bf16(w) && !w->frozen
               ? dms_operand_bytes(false, dms_count(w))
               : 0;
}

static size_t activation_bytes(const dms_tensor *x, const dms_tensor *w)
{
    const bool bf16 = dms_operand_bf16(w), as_is = bf16 && x->dtype == DMS_BF16;
    return w->dtype == DMS_F32 || as_is ? 0 : dms_operand_bytes(bf16, dms_count(x));
}

/* The weight as an operand: itself, or widened to f32 where the processor has no bf16. */
static dms_status weight(const void **out, const dms_tensor *w, char **space)
{
    void *wide = *space;
    bool fresh = true;
    *out = w->data;
    if (w->dtype == DMS_F32 || dms_operand_bf16(w))
        return DMS_OK;
    if (w->frozen)
        DMS_TRY(dms_cpu_packed_get(&wide, &fresh, w->device, w->data, PACKED_WIDENED,
                                   dms_operand_bytes(false, dms_count(w))));
    if (fresh)
        widen(wide, w->data, dms_count(w));
    *space += weight_bytes(w);
    *out = wide;
    return DMS_OK;
}

/* Activations as an operand beside w: themselves, or a copy that is rounded or widened. */
static const void *activation(const dms_tensor *x, const dms_tensor *w, char **space)
{
    const size_t bytes = activation_bytes(x, w);
    void *copy = *space;
    if (!bytes)
        return x->data;
    if (x->dtype == DMS_BF16)
        widen(copy, x->data, dms_count(x));
    else
        convert(copy, x->data, dms_count(x), dms_operand_bf16(w));
    *space += bytes;
    return copy;
}

static const float *optional(const dms_tensor *t)
{
    return t ? t->data : NULL;
}

static dms_status few_rows(dms_tensor *y, const dms_tensor *x, const dms_tensor *w,
                           const dms_tensor *bias, const dms_tensor *residual)
{
    dms_cpu_workspace work = {NULL, 0};
    if (w->dtype == DMS_BF16)
        DMS_TRY(dms_cpu_workspace_get(&work, x->device, (size_t)dms_count(x) * sizeof(float)));
    DMS_CPU(gemv)
    (&(dms_gemv_in){.x = x,
                    .w = w,
                    .bias = optional(bias),
                    .residual = optional(residual),
                    .space = (float *)work.base},
     y->data);
    return DMS_OK;
}

dms_status DMS_CPU(linear)(dms_tensor *y, const dms_tensor *x, const dms_tensor *w,
                           const dms_tensor *bias, const dms_tensor *residual)
{
    const int64_t rows = dms_rows(x), inputs = w->shape[1], outputs = w->shape[0];
    const bool in_place = residual && residual->data == y->data;
    if (rows <= DMS_GEMV_ROWS)
        return rows ? few_rows(y, x, w, bias, residual) : DMS_OK;

    dms_gemm_tiles tiles;
    dms_operand_space work;
    DMS_TRY(plan(&tiles, &(dms_gemm_shape){.m = rows,
                                           .n = outputs,
                                           .k = inputs,
                                           .lda = inputs,
                                           .ldb = inputs,
                                           .ldc = outputs,
                                           .b_transposed = true,
                                           .bf16 = dms_operand_bf16(w),
                                           .add = in_place}));
    DMS_TRY(dms_operand_space_get(&work, x->device, activation_bytes(x, w) + weight_bytes(w),
                                  tiles.scratch_bytes));
    dms_gemm_operands o = {y->data, activation(x, w, &work.shared), NULL, optional(bias),
                           in_place ? NULL : optional(residual)};
    DMS_TRY(weight(&o.b, w, &work.shared));
    return dms_gemm_tiles_run(&tiles, &o, work.own, work.stride);
}

/* dbias[m] += the column sums of dy, each in the order of the rows. */
static void bias_gradient(float *dbias, const float *dy, int64_t rows, int64_t cols)
{
#pragma omp parallel for schedule(static)
    for (int64_t first = 0; first < cols; first += COLUMNS) {
        const int64_t n = cols - first < COLUMNS ? cols - first : COLUMNS;
        double sum[COLUMNS] = {0};
        for (int64_t r = 0; r < rows; r++)
            for (int64_t i = 0; i < n; i++)
                sum[i] += (double)dy[r * cols + first + i];
        for (int64_t i = 0; i < n; i++)
            dbias[first + i] += (float)sum[i];
    }
}

/* dx += dy w */
static dms_gemm_shape input_shape(int64_t rows, const dms_tensor *w)
{
    return (dms_gemm_shape){.m = rows,
                            .n = w->shape[1],
                            .k = w->shape[0],
                            .lda = w->shape[0],
                            .ldb = w->shape[1],
                            .ldc = w->shape[1],
                            .bf16 = dms_operand_bf16(w),
                            .add = true};
}

/* dw += dy^T x */
static dms_gemm_shape weight_shape(int64_t rows, const dms_tensor *w)
{
    return (dms_gemm_shape){.m = w->shape[0],
                            .n = w->shape[1],
                            .k = rows,
                            .lda = w->shape[0],
                            .ldb = w->shape[1],
                            .ldc = w->shape[1],
                            .a_transposed = true,
                            .bf16 = dms_operand_bf16(w),
                            .add = true};
}

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

dms_status DMS_CPU(linear_bwd)(const dms_linear_grads *grads, const dms_tensor *dy,
                               const dms_tensor *x, const dms_tensor *w)
{
    const int64_t rows = dms_rows(x);
    dms_gemm_tiles to_x = {.scratch_bytes = 0}, to_w = {.scratch_bytes = 0};
    dms_operand_space work;
    if (!rows)
        return DMS_OK;
    const dms_gemm_shape x_shape = input_shape(rows, w), w_shape = weight_shape(rows, w);
    if (grads->dbias)
        bias_gradient(grads->dbias->data, dy->data, rows, w->shape[0]);
    if (grads->dx)
        DMS_TRY(plan(&to_x, &x_shape));
    if (grads->dw)
        DMS_TRY(plan(&to_w, &w_shape));
    DMS_TRY(dms_operand_space_get(&work, x->device,
                                  activation_bytes(dy, w) +
                                      (grads->dw ? activation_bytes(x, w) : 0) +
                                      (grads->dx ? weight_bytes(w) : 0),
                                  larger(to_x.scratch_bytes, to_w.scratch_bytes)));
    dms_gemm_operands o = {.c = NULL};
    if (grads->dx || grads->dw)
        o.a = activation(dy, w, &work.shared);
    if (grads->dx) {
        o.c = grads->dx->data;
        DMS_TRY(weight(&o.b, w, &work.shared));
        DMS_TRY(dms_gemm_tiles_run(&to_x, &o, work.own, work.stride));
    }
    if (grads->dw) {
        o.c = grads->dw->data;
        o.b = activation(x, w, &work.shared);
        DMS_TRY(dms_gemm_tiles_run(&to_w, &o, work.own, work.stride));
    }
    return DMS_OK;
}
