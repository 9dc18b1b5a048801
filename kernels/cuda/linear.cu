/* Linear layers on CUDA: GEMM by cuBLASLt, a kernel of our own for a few rows. */
#include "kernels/cuda/column_sum.cuh"
#include "kernels/cuda/gemm.h"

enum { GEMV_ROWS = 8, GEMV_WARPS = 4 };
enum { SUM_WARPS = 8, MOST_CHUNKS = 1024 };
static const int64_t least_chunk = 128; /* rows of dy that one block sums */

typedef struct {
    float *y;              /* [rows, outputs] */
    const void *x;         /* [rows, inputs] */
    const void *w;         /* [outputs, inputs] */
    const float *bias;     /* [outputs] or NULL */
    const float *residual; /* [rows, outputs], may be y, or NULL */
    int64_t rows, inputs, outputs;
} gemv_in;

/* An activation as it meets a weight of this type. */
static __device__ __forceinline__ float operand(float x, const float *)
{
    return x;
}

static __device__ __forceinline__ float operand(float x, const dms_bf16 *)
{
    return __bfloat162float(__float2bfloat16_rn(x));
}

/* N activations from p, aligned to 16 bytes where N > 1. */
template <typename W, int N, typename X>
static __device__ __forceinline__ void load_operands(float out[N], const X *p)
{
    enum { WIDEST = 16 / sizeof(X), FEW = N < WIDEST ? N : WIDEST };
#pragma unroll
    for (int j = 0; j < N; j += FEW)
        dms_load_few<FEW>(out + j, p + j, FEW);
#pragma unroll
    for (int j = 0; j < N; j++)
        out[j] = operand(out[j], (const W *)NULL);
}

/* A warp computes OUT outputs of all rows: one row of w is one contiguous read, N weights a lane,
 * and all rows of x share it. Bound by reading w from memory: x and its rounding come from L1,
 * which OUT keeps to a fraction of the time for ROWS > 2; few rows take OUT = 1, since small
 * layers want many warps. Each lane sums in the order of k, then lanes are added: the result of
 * a row is the same whatever rows come with it. Rows and outputs beyond the end repeat the last,
 * unstored. */
template <typename X, typename W, int ROWS, int OUT, int N>
static __global__ void __launch_bounds__(GEMV_WARPS *DMS_WARP) gemv_kernel(gemv_in in)
{
    enum { STEP = DMS_WARP * N, UNROLL = OUT == 1 ? 4 : 1 };
    const int lane = (int)threadIdx.x % DMS_WARP, warp = (int)threadIdx.x / DMS_WARP;
    const int64_t first = ((int64_t)blockIdx.x * GEMV_WARPS + warp) * OUT;
    const X *__restrict__ x = (const X *)in.x;
    const W *__restrict__ w = (const W *)in.w;
    float sum[ROWS][OUT] = {{0.0f}};

    if (first >= in.outputs)
        return;
#pragma unroll UNROLL
    for (int64_t k = lane * N; k < in.inputs; k += STEP) {
        float weights[OUT][N], values[N];
#pragma unroll
        for (int o = 0; o < OUT; o++)
            dms_load_few<N>(weights[o], w + min(first + o, in.outputs - 1) * in.inputs + k, N);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            load_operands<W, N>(values, x + min((int64_t)r, in.rows - 1) * in.inputs + k);
#pragma unroll
            for (int i = 0; i < OUT * N; i++)
                sum[r][i / N] += weights[i / N][i % N] * values[i % N];
        }
    }
    float mine = 0.0f; /* lane i finishes sum i */
#pragma unroll
    for (int i = 0; i < ROWS * OUT; i++) {
        const float total = dms_warp_sum(sum[i / OUT][i % OUT]);
        mine = lane == i ? total : mine;
    }
    const int64_t r = lane / OUT, m = first + lane % OUT, at = r * in.outputs + m;
    if (r < ROWS && r < in.rows && m < in.outputs)
        in.y[at] = mine + (in.bias ? in.bias[m] : 0.0f) + (in.residual ? in.residual[at] : 0.0f);
}

template <typename X, typename W, int ROWS, int OUT, int N>
static void launch_rows(const gemv_in *in, cudaStream_t stream)
{
    const int64_t blocks = (in->outputs + GEMV_WARPS * OUT - 1) / (GEMV_WARPS * OUT);
    DMS_LAUNCH((gemv_kernel<X, W, ROWS, OUT, N>), (unsigned)blocks, GEMV_WARPS * DMS_WARP, 0,
               stream, *in);
}

template <typename X, typename W, int N>
static void launch_gemv(const gemv_in *in, cudaStream_t stream)
{
    if (in->rows == 1)
        launch_rows<X, W, 1, 1, N>(in, stream);
    else if (in->rows == 2)
        launch_rows<X, W, 2, 1, N>(in, stream);
    else if (in->rows <= 4)
        launch_rows<X, W, 4, 2, N>(in, stream);
    else
        launch_rows<X, W, GEMV_ROWS, 4, N>(in, stream);
}

static const float *optional(const dms_tensor *t)
{
    return t ? (const float *)t->data : NULL;
}

/* WIDE weights at a time where memory allows it. */
template <typename X, typename W, int WIDE>
static dms_status launch_typed(const gemv_in *in, cudaStream_t stream)
{
    const void *const read[] = {in->x, in->w};
    if (dms_wide(read, 2) && in->inputs % WIDE == 0)
        launch_gemv<X, W, WIDE>(in, stream);
    else
        launch_gemv<X, W, 1>(in, stream);
    return DMS_LAUNCHED();
}

static dms_status few_rows(dms_tensor *y, const dms_tensor *x, const dms_tensor *w,
                           const dms_tensor *bias, const dms_tensor *residual)
{
    const gemv_in in = {(float *)y->data,   x->data,     w->data,     optional(bias),
                        optional(residual), dms_rows(x), w->shape[1], w->shape[0]};
    const cudaStream_t stream = dms_cuda_stream(x->device);

    if (w->dtype == DMS_F32)
        return launch_typed<float, float, 4>(&in, stream);
    if (x->dtype == DMS_F32)
        return launch_typed<float, dms_bf16, 8>(&in, stream);
    return launch_typed<dms_bf16, dms_bf16, 8>(&in, stream);
}

/* The bytes of a tensor as an operand beside w, where it must be rounded first. */
static size_t rounded_bytes(const dms_tensor *t, const dms_tensor *w)
{
    return t->dtype == w->dtype ? 0 : dms_cuda_part((size_t)dms_count(t) * sizeof(dms_bf16));
}

/* t as an operand beside w: itself, or rounded into *space, which moves on. */
static dms_status as_operand(const void **out, const dms_tensor *t, const dms_tensor *w,
                             char **space)
{
    *out = t->data;
    if (t->dtype == w->dtype)
        return DMS_OK;
    *out = *space;
    DMS_TRY(dms_cuda_round(t->device, *space, t->data, dms_count(t)));
    *space += rounded_bytes(t, w);
    return DMS_OK;
}

dms_status dms_cuda_linear(dms_tensor *y, const dms_tensor *x, const dms_tensor *w,
                           const dms_tensor *bias, const dms_tensor *residual)
{
    const int64_t rows = dms_rows(x), inputs = w->shape[1], outputs = w->shape[0];
    const size_t bytes = rounded_bytes(x, w);
    void *space = NULL;
    if (rows <= GEMV_ROWS)
        return rows ? few_rows(y, x, w, bias, residual) : DMS_OK;
    if (bytes)
        DMS_TRY(dms_cuda_scratch(&space, x->device, bytes));
    char *rest = (char *)space;
    dms_cuda_gemm_operands o = {(float *)y->data, NULL, w->data, optional(bias),
                                optional(residual)};
    DMS_TRY(as_operand(&o.a, x, w, &rest));

    dms_cuda_gemm_shape shape = {rows, outputs, inputs, inputs, inputs, outputs};
    shape.b_transposed = true;
    shape.bf16 = w->dtype == DMS_BF16;
    return dms_cuda_gemm(x->device, &o, &shape);
}

static __global__ void __launch_bounds__(DMS_BLOCK)
    add_bias_kernel(dms_cuda_gemm_operands o, dms_cuda_gemm_shape shape)
{
    for (int64_t i = dms_thread(); i < shape.m * shape.n; i += dms_threads()) {
        const int64_t row = i / shape.n, col = i % shape.n, at = row * shape.ldd + col;
        o.d[at] = (o.c ? o.c[at] : 0.0f) + o.bias[col];
    }
}

dms_status dms_cuda_add_bias(dms_device *dev, const dms_cuda_gemm_operands *operands,
                             const dms_cuda_gemm_shape *shape)
{
    DMS_LAUNCH(add_bias_kernel, dms_grid(shape->m * shape->n, DMS_BLOCK, DMS_MOST_BLOCKS),
               DMS_BLOCK, 0, dms_cuda_stream(dev), *operands, *shape);
    return DMS_LAUNCHED();
}

/* partial[p, col] = sum of dy over the p-th `chunk` of its rows: the warps of a block take turns,
 * each reads 128 bytes of a row, and are added in their order. */
static __global__ void __launch_bounds__(SUM_WARPS *DMS_WARP)
    partial_sums_kernel(float *partial, const float *dy, int64_t rows, int64_t cols, int64_t chunk)
{
    __shared__ float part[SUM_WARPS][DMS_WARP];
    const int64_t col = (int64_t)blockIdx.x * DMS_WARP + threadIdx.x;
    const int64_t first = blockIdx.y * chunk, end = min(first + chunk, rows);
    float sum = 0.0f;

    if (col < cols)
        for (int64_t r = first + threadIdx.y; r < end; r += SUM_WARPS)
            sum += dy[r * cols + col];
    part[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y != 0 || col >= cols)
        return;
    for (int i = 1; i < SUM_WARPS; i++)
        sum += part[i][threadIdx.x];
    partial[blockIdx.y * cols + col] = sum;
}

/* Rows of dy that one block sums: the order of additions depends on the shape alone. */
static int64_t chunk_of(int64_t rows)
{
    const int64_t least = (rows + MOST_CHUNKS - 1) / MOST_CHUNKS;
    return least > least_chunk ? least : least_chunk;
}

static int64_t chunks_of(int64_t rows)
{
    return (rows + chunk_of(rows) - 1) / chunk_of(rows);
}

/* dbias += column sums of dy; partial: [chunks_of(rows), cols]. */
static dms_status bias_gradient(dms_tensor *dbias, const dms_tensor *dy, float *partial)
{
    const int64_t rows = dms_rows(dy), cols = dms_cols(dy), chunks = chunks_of(rows);
    const cudaStream_t stream = dms_cuda_stream(dy->device);
    const dim3 grid((unsigned)((cols + DMS_WARP - 1) / DMS_WARP), (unsigned)chunks);

    DMS_LAUNCH(partial_sums_kernel, grid, dim3(DMS_WARP, SUM_WARPS), 0, stream, partial,
               (const float *)dy->data, rows, cols, chunk_of(rows));
    dms_add_partials(dbias, partial, (unsigned)chunks);
    return DMS_LAUNCHED();
}

/* dx += dy w */
static dms_status input_gradient(const dms_tensor *dx, const void *up, const dms_tensor *w)
{
    const int64_t inputs = w->shape[1], outputs = w->shape[0];
    float *to = (float *)dx->data;
    const dms_cuda_gemm_operands o = {to, up, w->data, NULL, to};
    dms_cuda_gemm_shape shape = {dms_rows(dx), inputs, outputs, outputs, inputs, inputs};
    shape.bf16 = w->dtype == DMS_BF16;
    return dms_cuda_gemm(dx->device, &o, &shape);
}

/* dw += dy^T x */
static dms_status weight_gradient(const dms_tensor *dw, const void *up, const void *x, int64_t rows,
                                  bool bf16)
{
    const int64_t inputs = dw->shape[1], outputs = dw->shape[0];
    float *to = (float *)dw->data;
    const dms_cuda_gemm_operands o = {to, up, x, NULL, to};
    dms_cuda_gemm_shape shape = {outputs, inputs, rows, outputs, inputs, inputs};
    shape.a_transposed = true;
    shape.bf16 = bf16;
    return dms_cuda_gemm(dw->device, &o, &shape);
}

dms_status dms_cuda_linear_bwd(const dms_linear_grads *grads, const dms_tensor *dy,
                               const dms_tensor *x, const dms_tensor *w)
{
    const int64_t rows = dms_rows(x);
    const size_t sums =
        grads->dbias ? dms_cuda_part((size_t)(chunks_of(rows) * w->shape[0]) * sizeof(float)) : 0;
    const bool products = grads->dx || grads->dw;
    const size_t bytes =
        sums + (products ? rounded_bytes(dy, w) : 0) + (grads->dw ? rounded_bytes(x, w) : 0);
    void *space = NULL;
    const void *up = NULL, *other = NULL;
    if (!rows)
        return DMS_OK;
    if (bytes)
        DMS_TRY(dms_cuda_scratch(&space, x->device, bytes));
    char *rest = (char *)space + sums;
    if (grads->dbias)
        DMS_TRY(bias_gradient(grads->dbias, dy, (float *)space));
    if (products)
        DMS_TRY(as_operand(&up, dy, w, &rest));
    if (grads->dx)
        DMS_TRY(input_gradient(grads->dx, up, w));
    if (grads->dw) {
        DMS_TRY(as_operand(&other, x, w, &rest));
        DMS_TRY(weight_gradient(grads->dw, up, other, rows, w->dtype == DMS_BF16));
    }
    return DMS_OK;
}
