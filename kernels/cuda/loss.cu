/* Vocabulary losses: logits of a chunk of rows by cuBLASLt, then one kernel over them, then the
 * gradient's products.
 *
 * The host cannot know which rows count without waiting for the device, so the products are made
 * for all; a skipped row is one of zeros to them, and costs the row kernels nothing but its zeros.
 */
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/loss_kernels.cuh"

/* Rows of a chunk: the logits' bytes stay below BUDGET (which 384 rows of 151936 tokens fill, with
 * a gradient in bf16), and MOST are enough to make the products bound by arithmetic: each chunk
 * reads and writes all of dws. Multiples of STEP, so that the products' tiles are full. */
enum { BUDGET = 576 << 20, MOST = 1024, STEP = 128 };

typedef struct {
    const dms_tensor *x, *w;
    void *rows;    /* [full, D] as an operand: f32 or bf16, as w */
    float *logits; /* [full, stride] */
} loss_side;

typedef struct {
    loss_side side[2]; /* student, teacher */
    int n_sides;
    int64_t n, dim, vocab, stride;
    int64_t full; /* rows of a chunk */
    const float *weight;
    void *gradient; /* [full, stride], f32 (in place of the student's logits) or bf16, or NULL */
} loss_job;

static bool is_bf16(const dms_tensor *w)
{
    return w->dtype == DMS_BF16;
}

/* Chunks of one size, and no larger than they need to be. */
static int64_t chunk_rows(int64_t n, int64_t bytes_per_row)
{
    int64_t most = BUDGET / bytes_per_row;
    most = most > MOST ? MOST : most >= STEP ? most / STEP * STEP : most < 1 ? 1 : most;
    const int64_t chunks = (n + most - 1) / most;
    const int64_t even = ((n + chunks - 1) / chunks + STEP - 1) / STEP * STEP;
    const int64_t rows = even < most ? even : most;
    return rows < n ? rows : n;
}

static dms_status open_job(loss_job *j, const dms_distill_in *in, bool gradient)
{
    size_t used = 0, rows_at[2], logits_at[2], gradient_at;
    void *scratch = NULL;
    j->side[0].x = in->xs;
    j->side[0].w = in->ws;
    j->side[1].x = in->xt;
    j->side[1].w = in->wt;
    j->n_sides = in->xt ? 2 : 1;
    j->n = dms_rows(in->xs);
    j->dim = dms_cols(in->xs);
    j->vocab = in->ws->shape[0];
    j->stride = (j->vocab + LOSS_WIDE - 1) / LOSS_WIDE * LOSS_WIDE;
    j->weight = (const float *)in->weight->data;
    const bool apart = gradient && is_bf16(in->ws);
    j->full = chunk_rows(j->n, j->stride * (4 * j->n_sides + (apart ? 2 : 0)));

    const size_t logits = (size_t)(j->full * j->stride);
    for (int s = 0; s < j->n_sides; s++) {
        rows_at[s] = used;
        used += dms_cuda_part((size_t)(j->full * j->dim) * dms_dtype_bytes(j->side[s].w->dtype));
        logits_at[s] = used;
        used += dms_cuda_part(logits * sizeof(float));
    }
    gradient_at = apart ? used : logits_at[0];
    used += apart ? dms_cuda_part(logits * sizeof(dms_bf16)) : 0;
    DMS_TRY(dms_cuda_scratch(&scratch, in->ws->device, used));
    for (int s = 0; s < j->n_sides; s++) {
        j->side[s].rows = (char *)scratch + rows_at[s];
        j->side[s].logits = (float *)(void *)((char *)scratch + logits_at[s]);
    }
    j->gradient = gradient ? (char *)scratch + gradient_at : NULL;
    return DMS_OK;
}

static int64_t chunk_at(const loss_job *j, int64_t first)
{
    return j->n - first < j->full ? j->n - first : j->full;
}

static float *row_of(const dms_tensor *t, int64_t first)
{
    return t ? (float *)t->data + first : NULL;
}

/* The rows of one model as an operand, and their logits: [rows, V] = x w^T. */
static dms_status make_logits(const loss_job *j, const loss_side *m, int64_t first, int64_t rows)
{
    const bool bf16 = is_bf16(m->w);
    const float *x = (const float *)m->x->data + first * j->dim, *weight = j->weight + first;
    const cudaStream_t stream = dms_cuda_stream(m->w->device);
    dms_cuda_gemm_shape shape = {rows, j->vocab, j->dim, j->dim, j->dim, j->stride};
    shape.b_transposed = true;
    shape.bf16 = bf16;

    if (bf16)
        DMS_LAUNCH(take_rows_kernel<dms_bf16>, (unsigned)rows, DMS_BLOCK, 0, stream,
                   (dms_bf16 *)m->rows, x, weight, j->dim);
    else
        DMS_LAUNCH(take_rows_kernel<float>, (unsigned)rows, DMS_BLOCK, 0, stream, (float *)m->rows,
                   x, weight, j->dim);
    DMS_TRY(DMS_LAUNCHED());
    const dms_cuda_gemm_operands o = {m->logits, m->rows, m->w->data};
    return dms_cuda_gemm(m->w->device, &o, &shape);
}

/* All logits of a chunk. */
static dms_status forward(const loss_job *j, loss_logits *out, int64_t first)
{
    for (int s = 0; s < j->n_sides; s++)
        DMS_TRY(make_logits(j, &j->side[s], first, chunk_at(j, first)));
    out->s = j->side[0].logits;
    out->t = j->side[j->n_sides - 1].logits;
    out->weight = j->weight + first;
    out->stride = j->stride;
    out->vocab = (int)j->vocab;
    return DMS_OK;
}

/* dxs += g ws and dws += g^T xs, g the gradient by the logits of a chunk. */
static dms_status backward(const loss_job *j, const dms_distill_out *out, int64_t first)
{
    const loss_side *student = &j->side[0];
    const int64_t rows = chunk_at(j, first);
    dms_device *dev = student->w->device;
    dms_cuda_gemm_shape shape = {rows, j->dim, j->vocab, j->stride, j->dim, j->dim};
    shape.bf16 = is_bf16(student->w);

    if (out->dxs) {
        float *dx = (float *)out->dxs->data + first * j->dim;
        const dms_cuda_gemm_operands o = {dx, j->gradient, student->w->data, NULL, dx};
        DMS_TRY(dms_cuda_gemm(dev, &o, &shape));
    }
    if (!out->dws)
        return DMS_OK;
    shape.m = j->vocab;
    shape.k = rows;
    shape.a_transposed = true;
    float *dw = (float *)out->dws->data;
    const dms_cuda_gemm_operands o = {dw, j->gradient, student->rows, NULL, dw};
    return dms_cuda_gemm(dev, &o, &shape);
}

dms_status dms_cuda_distill(const dms_distill_out *out, const dms_distill_in *in)
{
    const bool reverse = out->direction == DMS_KL_REVERSE;
    const cudaStream_t stream = dms_cuda_stream(in->ws->device);
    loss_job j;
    loss_logits logits;
    if (!dms_rows(in->xs))
        return DMS_OK;
    DMS_TRY(open_job(&j, in, out->dxs || out->dws));
    for (int64_t first = 0; first < j.n; first += j.full) {
        const unsigned rows = (unsigned)chunk_at(&j, first);
        float *kl = row_of(out->kl, first);
        DMS_TRY(forward(&j, &logits, first));
        if (is_bf16(in->ws))
            DMS_LAUNCH(distill_kernel<dms_bf16>, rows, LOSS_THREADS, 0, stream,
                       (dms_bf16 *)j.gradient, kl, logits, reverse);
        else
            DMS_LAUNCH(distill_kernel<float>, rows, LOSS_THREADS, 0, stream, (float *)j.gradient,
                       kl, logits, reverse);
        DMS_TRY(DMS_LAUNCHED());
        if (j.gradient)
            DMS_TRY(backward(&j, out, first));
    }
    return DMS_OK;
}

dms_status dms_cuda_score(const dms_score_out *out, const dms_distill_in *in)
{
    const cudaStream_t stream = dms_cuda_stream(in->ws->device);
    loss_job j;
    loss_logits logits;
    if (!dms_rows(in->xs))
        return DMS_OK;
    DMS_TRY(open_job(&j, in, false));
    for (int64_t first = 0; first < j.n; first += j.full) {
        const loss_scores scores = {row_of(out->nll, first),
                                    row_of(out->nll_teacher, first),
                                    row_of(out->kl_forward, first),
                                    row_of(out->kl_reverse, first),
                                    row_of(out->agree, first),
                                    out->next ? (const int32_t *)out->next->data + first : NULL};
        DMS_TRY(forward(&j, &logits, first));
        DMS_LAUNCH(score_kernel, (unsigned)chunk_at(&j, first), LOSS_THREADS, 0, stream, scores,
                   logits);
        DMS_TRY(DMS_LAUNCHED());
    }
    return DMS_OK;
}
