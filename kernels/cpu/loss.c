/* Vocabulary losses on the CPU: up to CHUNK rows at a time, their logits in tiles of the vocabulary
 * that are kept only where a second pass makes a gradient of them. */
#include <math.h>
#include <string.h>

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/operand.h"
#include "kernels/cpu/vec.h"

enum { CHUNK = 128, TILE = 512, BLOCK = 128, PAD = 16, GROUPS = 8 };

/* What one tile of the vocabulary says about one row. */
typedef struct {
    double sum;   /* of exp(logit - top) */
    double cross; /* of exp(logit - top) * (this model's logit - the other's) */
    float top;    /* largest logit */
    float next;   /* logit of the next token, if it is in this tile */
    int64_t best; /* first token with the largest logit */
} tile_stats;

/* The same of the whole vocabulary. */
typedef struct {
    double lse;   /* log of the sum of exponentials */
    double cross; /* mean of (this model's logit - the other's) under this model */
    float next;
    int64_t best;
} row_stats;

typedef struct {
    const dms_tensor *x, *w;
    bool bf16;         /* operands are bf16 */
    char *rows;        /* [CHUNK, D], an operand */
    float *logits;     /* [tiles][CHUNK][TILE], NULL where they are not kept */
    tile_stats *tiles; /* [tiles][CHUNK] */
    row_stats *stats;  /* [CHUNK] */
} side;

/* Kernels of one number of rows; [1] is for the last tile of the vocabulary. */
typedef struct {
    dms_gemm *logits[2][2]; /* student, teacher */
    dms_gemm *to_x[2][2];   /* [][1] adds */
    dms_gemm *to_w[2];
} kernels;

typedef struct {
    side side[2]; /* student, teacher */
    int n_sides;
    int64_t dim, vocab, n_tiles;
    kernels kernels[2]; /* of a full chunk and of the last one */
    int64_t *index;     /* [n] rows that count */
    int64_t n, full;    /* of them a chunk */
    bool gradient;      /* of either kind is wanted */
    size_t scratch_bytes;
    dms_operand_space work;
    float *dx; /* [GROUPS][CHUNK][D] */
    const dms_distill_out *distill;
    const dms_score_out *score;
    const float *weight; /* [N] */
} job;

/* Rows [first, first + n) of job.index; padded with zero rows. */
typedef struct {
    int64_t first, n, padded;
    const kernels *kernels;
} chunk;

static int64_t padded(int64_t n)
{
    return (n + PAD - 1) / PAD * PAD;
}

static int64_t tile_width(const job *j, int64_t tile)
{
    return j->vocab - tile * TILE < TILE ? j->vocab - tile * TILE : TILE;
}

static bool is_last(const job *j, int64_t tile)
{
    return tile + 1 == j->n_tiles;
}

/* ---- space ---------------------------------------------------------------------------------- */

static size_t line_up(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

/* The next `bytes` of the space; the first call of a sequence may start at NULL, to measure. */
static void *cut(size_t *used, char *base, size_t bytes)
{
    void *at = base ? base + *used : NULL;
    *used += line_up(bytes);
    return at;
}

/* Lays the shared buffers out from `base` on and returns their size. */
static size_t lay_out(job *j, char *base)
{
    size_t used = 0;
    const size_t tiles = (size_t)j->n_tiles, rows = CHUNK, dim = (size_t)j->dim;
    j->index = cut(&used, base, (size_t)dms_rows(j->side[0].x) * sizeof(*j->index));
    for (int s = 0; s < j->n_sides; s++) {
        side *m = &j->side[s];
        m->rows = cut(&used, base, dms_operand_bytes(m->bf16, CHUNK * j->dim));
        m->tiles = cut(&used, base, tiles * rows * sizeof(*m->tiles));
        m->stats = cut(&used, base, rows * sizeof(*m->stats));
        if (j->gradient)
            m->logits = cut(&used, base, tiles * rows * TILE * sizeof(float));
    }
    if (j->gradient)
        j->dx = cut(&used, base, GROUPS * rows * dim * sizeof(float));
    return used;
}

/* A thread's own: oneDNN's scratch, a widened tile of weights, and two tiles of logits or one of
 * their gradient. */
typedef struct {
    char *scratch;
    float *weights, *logits[2];
    void *gradient;
} own_space;

static size_t own_bytes(const job *j)
{
    return line_up(j->scratch_bytes) + line_up((size_t)(TILE * j->dim) * sizeof(float)) +
           2 * CHUNK * TILE * sizeof(float);
}

static own_space own(const job *j)
{
    own_space o;
    o.scratch = j->work.own + (size_t)omp_get_thread_num() * j->work.stride;
    o.weights = (float *)(o.scratch + line_up(j->scratch_bytes));
    o.logits[0] = (float *)((char *)o.weights + line_up((size_t)(TILE * j->dim) * sizeof(float)));
    o.logits[1] = o.logits[0] + CHUNK * TILE;
    o.gradient = o.logits[0];
    return o;
}

/* ---- kernels -------------------------------------------------------------------------------- */

static dms_status get(dms_gemm **out, job *j, const dms_gemm_shape *shape)
{
    DMS_TRY(dms_gemm_get(out, shape));
    const size_t bytes = dms_gemm_scratch_bytes(*out);
    if (bytes > j->scratch_bytes)
        j->scratch_bytes = bytes;
    return DMS_OK;
}

static dms_status gradient_kernels(kernels *k, job *j, int64_t rows, int last, int64_t width)
{
    dms_gemm_shape s = {.m = rows,
                        .n = j->dim,
                        .k = width,
                        .lda = TILE,
                        .ldb = j->dim,
                        .ldc = j->dim,
                        .bf16 = j->side[0].bf16};
    DMS_TRY(get(&k->to_x[last][0], j, &s));
    s.add = true;
    DMS_TRY(get(&k->to_x[last][1], j, &s));
    s.m = width;
    s.k = rows;
    s.a_transposed = true;
    return get(&k->to_w[last], j, &s);
}

static dms_status get_kernels(kernels *k, job *j, int64_t rows)
{
    for (int last = 0; last < 2; last++) {
        const int64_t width = tile_width(j, last ? j->n_tiles - 1 : 0);
        for (int s = 0; s < j->n_sides; s++)
            DMS_TRY(get(&k->logits[s][last], j,
                        &(dms_gemm_shape){.m = rows,
                                          .n = width,
                                          .k = j->dim,
                                          .lda = j->dim,
                                          .ldb = j->dim,
                                          .ldc = TILE,
                                          .b_transposed = true,
                                          .bf16 = j->side[s].bf16}));
        if (j->gradient)
            DMS_TRY(gradient_kernels(k, j, rows, last, width));
    }
    return DMS_OK;
}

/* ---- forward -------------------------------------------------------------------------------- */

/* The weights of one tile as an operand, widened where the processor has no bf16. */
static const void *weights_of(const job *j, const side *m, int64_t tile, float *space)
{
    const char *w = m->w->data;
    const int64_t at = tile * TILE * j->dim;
    if (m->w->dtype == DMS_F32)
        return (const float *)m->w->data + at;
    w += 2 * at;
    if (m->bf16)
        return w;
    dms_operand_widen(space, (const uint16_t *)m->w->data + at, tile_width(j, tile) * j->dim);
    return space;
}

/* The rows of a chunk as an operand. */
static void gather(const job *j, const side *m, const chunk *c)
{
    const int64_t bytes = m->bf16 ? 2 : 4, dim = j->dim;
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < c->padded; r++) {
        char *out = m->rows + r * dim * bytes;
        if (r >= c->n) {
            memset(out, 0, (size_t)(dim * bytes));
            continue;
        }
        const float *x = (const float *)m->x->data + j->index[c->first + r] * dim;
        if (m->bf16)
            dms_operand_to_bf16((uint16_t *)(void *)out, x, dim);
        else if (m->w->dtype == DMS_BF16)
            dms_operand_round((float *)(void *)out, x, dim);
        else
            memcpy(out, x, (size_t)dim * sizeof(float));
    }
}

static float largest(const float *x, int64_t n)
{
    float top = -INFINITY;
#pragma omp simd reduction(max : top)
    for (int64_t i = 0; i < n; i++)
        top = x[i] > top ? x[i] : top;
    return top;
}

/* Adds what a block of logits has to the sums, in f32 within the block: rounding of a long f32 sum
 * would show in the divergence. keep_difference is a constant where this is inlined. */
static inline __attribute__((always_inline)) void reduce_block(float *s, float *t, int64_t n,
                                                               tile_stats *of_s, tile_stats *of_t,
                                                               bool keep_difference)
{
    const float top_s = of_s->top, top_t = of_t->top;
    float sum_s = 0, sum_t = 0, cross_s = 0, cross_t = 0;
#pragma omp simd reduction(+ : sum_s, sum_t, cross_s, cross_t)
    for (int64_t i = 0; i < n; i++) {
        const float d = s[i] - t[i];
        const float e_s = dms_fast_expf(s[i] - top_s), e_t = dms_fast_expf(t[i] - top_t);
        sum_s += e_s;
        sum_t += e_t;
        cross_s += e_s * d;
        cross_t -= e_t * d;
        s[i] = e_s;
        t[i] = keep_difference ? d : e_t;
    }
    of_s->sum += (double)sum_s;
    of_s->cross += (double)cross_s;
    of_t->sum += (double)sum_t;
    of_t->cross += (double)cross_t;
}

static void start(tile_stats *out, float top)
{
    out->top = top;
    out->sum = out->cross = 0;
}

/* Sums of one row of a tile. Student logits become exp(s - top); teacher logits become what the
 * gradient wants of them: s - t, or exp(t - top). */
static void reduce_row(float *s, float *t, int64_t n, tile_stats *of_s, tile_stats *of_t,
                       bool keep_difference)
{
    const float top_s = largest(s, n), top_t = largest(t, n);
    tile_stats here_s = *of_s, here_t = *of_t;
    start(&here_s, top_s);
    start(&here_t, top_t);
    for (int64_t i = 0; i < n; i += BLOCK) {
        const int64_t count = n - i < BLOCK ? n - i : BLOCK;
        if (keep_difference)
            reduce_block(s + i, t + i, count, &here_s, &here_t, true);
        else
            reduce_block(s + i, t + i, count, &here_s, &here_t, false);
    }
    *of_t = here_t; /* first: without a teacher both are the student's */
    *of_s = here_s;
}

/* First place of the largest logit, and the next token's logit; before reduce_row. */
static void find_tokens(tile_stats *out, const float *logits, int64_t n, int64_t first,
                        int64_t next)
{
    const float top = largest(logits, n);
    int64_t best = 0;
    while (best + 1 < n && logits[best] != top)
        best++;
    out->best = first + best;
    if (next >= first && next < first + n)
        out->next = logits[next - first];
}

static int64_t next_of(const job *j, const chunk *c, int64_t r)
{
    const dms_tensor *next = j->score->next;
    return next ? ((const int32_t *)next->data)[j->index[c->first + r]] : -1;
}

/* Logits and statistics of one tile. */
static bool forward_tile(const job *j, const chunk *c, int64_t tile)
{
    const own_space o = own(j);
    const int64_t width = tile_width(j, tile);
    float *logits[2];
    for (int s = 0; s < j->n_sides; s++) {
        const side *m = &j->side[s];
        logits[s] = m->logits ? m->logits + tile * CHUNK * TILE : o.logits[s];
        if (!dms_gemm_run(c->kernels->logits[s][is_last(j, tile)], logits[s], m->rows,
                          weights_of(j, m, tile, o.weights), o.scratch))
            return false;
    }
    const int other = j->n_sides - 1; /* without a teacher the student is compared with itself */
    const bool reverse = j->distill && j->distill->direction == DMS_KL_REVERSE;
    for (int64_t r = 0; r < c->n; r++) {
        tile_stats *of[2] = {&j->side[0].tiles[tile * CHUNK + r],
                             &j->side[other].tiles[tile * CHUNK + r]};
        for (int s = 0; j->score && s < j->n_sides; s++)
            find_tokens(of[s], logits[s] + r * TILE, width, tile * TILE, next_of(j, c, r));
        reduce_row(logits[0] + r * TILE, logits[other] + r * TILE, width, of[0], of[1], reverse);
    }
    return true;
}

static row_stats combine(const job *j, const side *m, int64_t r, int64_t next)
{
    row_stats out = {.next = 0};
    float top = -INFINITY;
    double sum = 0, cross = 0;
    for (int64_t i = 0; i < j->n_tiles; i++) {
        const tile_stats *t = &m->tiles[i * CHUNK + r];
        if (t->top > top) {
            top = t->top;
            out.best = t->best;
        }
    }
    for (int64_t i = 0; i < j->n_tiles; i++) {
        const tile_stats *t = &m->tiles[i * CHUNK + r];
        const double scale = exp((double)t->top - (double)top);
        sum += t->sum * scale;
        cross += t->cross * scale;
    }
    out.lse = (double)top + log(sum);
    out.cross = cross / sum;
    if (next >= j->vocab)
        out.next = NAN; /* no token: no likelihood */
    else if (next >= 0)
        out.next = m->tiles[next / TILE * CHUNK + r].next;
    return out;
}

/* KL(a||b) = mean under a of (a's logit - b's) - (lse a - lse b); rounding may not make it
 * negative, and a NaN stays one. */
static float divergence(const row_stats *a, const row_stats *b)
{
    const double kl = a->cross - (a->lse - b->lse);
    return kl < 0 ? 0.0f : (float)kl;
}

static dms_status forward(job *j, const chunk *c)
{
    int failed = 0;
    for (int s = 0; s < j->n_sides; s++)
        gather(j, &j->side[s], c);
#pragma omp parallel for schedule(dynamic) reduction(| : failed)
    for (int64_t tile = 0; tile < j->n_tiles; tile++)
        failed |= !forward_tile(j, c, tile);
    if (failed)
        return dms_fail(DMS_ERR_DEVICE, "oneDNN could not compute logits");
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < c->n; r++)
        for (int s = 0; s < j->n_sides; s++)
            j->side[s].stats[r] = combine(j, &j->side[s], r, j->score ? next_of(j, c, r) : -1);
    return DMS_OK;
}

/* ---- gradient ------------------------------------------------------------------------------- */

/* With d = s - t, reverse: g = weight * p_s * (d - mean of d); forward: g = weight * (p_s - p_t).
 * e_s, other: what reduce_row left. */
static void gradient_row(float *e_s, const float *other, int64_t n, const float scale[2],
                         float mean, bool reverse)
{
    if (reverse) {
#pragma omp simd
        for (int64_t i = 0; i < n; i++)
            e_s[i] = e_s[i] * scale[0] * (other[i] - mean);
    } else {
#pragma omp simd
        for (int64_t i = 0; i < n; i++)
            e_s[i] = e_s[i] * scale[0] - other[i] * scale[1];
    }
}

/* Gradient by the logits of one tile, as an operand [padded, TILE]. */
static void gradient_tile(const job *j, const chunk *c, int64_t tile, void *out)
{
    const side *student = &j->side[0], *teacher = &j->side[1];
    const int64_t width = tile_width(j, tile), bytes = student->bf16 ? 2 : 4;
    const bool reverse = j->distill->direction == DMS_KL_REVERSE;
    for (int64_t r = 0; r < c->padded; r++) {
        char *row = (char *)out + r * TILE * bytes;
        if (r >= c->n) {
            memset(row, 0, (size_t)(width * bytes));
            continue;
        }
        const int64_t at = tile * CHUNK + r;
        const double weight = (double)j->weight[j->index[c->first + r]];
        const float scale[2] = {
            (float)(weight * exp((double)student->tiles[at].top - student->stats[r].lse)),
            (float)(weight * exp((double)teacher->tiles[at].top - teacher->stats[r].lse))};
        float *g = student->logits + at * TILE;
        gradient_row(g, teacher->logits + at * TILE, width, scale, (float)student->stats[r].cross,
                     reverse);
        if (student->bf16)
            dms_operand_to_bf16((uint16_t *)(void *)row, g, width);
        else if (student->w->dtype == DMS_BF16)
            dms_operand_round((float *)(void *)row, g, width);
        else
            memcpy(row, g, (size_t)width * sizeof(float));
    }
}

static int64_t group_start(const job *j, int64_t group)
{
    return group * j->n_tiles / GROUPS;
}

/* A run of tiles: their part of dws, and their sum for dxs. */
static bool backward_group(const job *j, const chunk *c, int64_t group)
{
    const own_space o = own(j);
    const side *student = &j->side[0];
    const int64_t first = group_start(j, group), end = group_start(j, group + 1);
    float *dx = j->dx + group * CHUNK * j->dim;
    bool ok = true;
    for (int64_t tile = first; ok && tile < end; tile++) {
        const int last = is_last(j, tile);
        gradient_tile(j, c, tile, o.gradient);
        if (j->distill->dxs)
            ok = dms_gemm_run(c->kernels->to_x[last][tile > first], dx, o.gradient,
                              weights_of(j, student, tile, o.weights), o.scratch);
        if (ok && j->distill->dws)
            ok = dms_gemm_run(c->kernels->to_w[last],
                              (float *)j->distill->dws->data + tile * TILE * j->dim, o.gradient,
                              student->rows, o.scratch);
    }
    return ok;
}

static dms_status backward(const job *j, const chunk *c)
{
    int failed = 0;
#pragma omp parallel for schedule(dynamic) reduction(| : failed)
    for (int64_t group = 0; group < GROUPS; group++)
        failed |= !backward_group(j, c, group);
    if (failed)
        return dms_fail(DMS_ERR_DEVICE, "oneDNN could not compute the gradient of logits");
    if (!j->distill->dxs)
        return DMS_OK;
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < c->n; r++) {
        float *out = (float *)j->distill->dxs->data + j->index[c->first + r] * j->dim;
        for (int64_t group = 0; group < GROUPS; group++) {
            if (group_start(j, group) == group_start(j, group + 1))
                continue;
            const float *part = j->dx + (group * CHUNK + r) * j->dim;
            for (int64_t i = 0; i < j->dim; i++)
                out[i] += part[i];
        }
    }
    return DMS_OK;
}

/* ---- ops ------------------------------------------------------------------------------------ */

/* Which rows count; their number is known before there is space for the list. */
static int64_t count_rows(const float *weight, int64_t n, int64_t *index)
{
    int64_t found = 0;
    for (int64_t i = 0; i < n; i++) {
        if (weight[i] == 0)
            continue;
        if (index)
            index[found] = i;
        found++;
    }
    return found;
}

static dms_status open_job(job *j, const dms_distill_in *in)
{
    const int64_t all = dms_rows(in->xs);
    j->side[0] = (side){.x = in->xs, .w = in->ws, .bf16 = dms_operand_bf16(in->ws)};
    if (j->n_sides == 2)
        j->side[1] = (side){.x = in->xt, .w = in->wt, .bf16 = dms_operand_bf16(in->wt)};
    j->dim = dms_cols(in->xs);
    j->vocab = in->ws->shape[0];
    j->n_tiles = (j->vocab + TILE - 1) / TILE;
    j->weight = in->weight->data;
    j->n = count_rows(j->weight, all, NULL);
    j->full = j->n < CHUNK ? j->n : CHUNK;
    if (!j->n)
        return DMS_OK;
    const int64_t rest = j->n % j->full ? j->n % j->full : j->full;
    DMS_TRY(get_kernels(&j->kernels[0], j, padded(j->full)));
    DMS_TRY(get_kernels(&j->kernels[1], j, padded(rest)));
    DMS_TRY(dms_operand_space_get(&j->work, in->xs->device, lay_out(j, NULL), own_bytes(j)));
    lay_out(j, j->work.shared);
    count_rows(j->weight, all, j->index);
    return DMS_OK;
}

static chunk chunk_at(const job *j, int64_t first)
{
    const int64_t left = j->n - first, n = left < j->full ? left : j->full;
    return (chunk){first, n, padded(n), &j->kernels[left <= j->full]};
}

static void clear(dms_tensor *t)
{
    if (t)
        memset(t->data, 0, dms_tensor_bytes(t));
}

static void set(dms_tensor *t, int64_t i, float value)
{
    if (t)
        ((float *)t->data)[i] = value;
}

dms_status DMS_CPU(distill)(const dms_distill_out *out, const dms_distill_in *in)
{
    job j = {.n_sides = 2, .distill = out, .gradient = out->dxs || out->dws};
    const bool reverse = out->direction == DMS_KL_REVERSE;
    DMS_TRY(open_job(&j, in));
    clear(out->kl);
    for (int64_t first = 0; first < j.n; first += j.full) {
        const chunk c = chunk_at(&j, first);
        DMS_TRY(forward(&j, &c));
        for (int64_t r = 0; r < c.n; r++)
            set(out->kl, j.index[first + r],
                divergence(&j.side[!reverse].stats[r], &j.side[reverse].stats[r]));
        if (j.gradient)
            DMS_TRY(backward(&j, &c));
    }
    return DMS_OK;
}

static void write_scores(const dms_score_out *out, const job *j, const chunk *c)
{
    for (int64_t r = 0; r < c->n; r++) {
        const int64_t i = j->index[c->first + r];
        const row_stats *s = &j->side[0].stats[r], *t = &j->side[j->n_sides - 1].stats[r];
        const bool counted = next_of(j, c, r) >= 0;
        set(out->nll, i, counted ? (float)(s->lse - (double)s->next) : 0);
        set(out->nll_teacher, i, counted ? (float)(t->lse - (double)t->next) : 0);
        set(out->kl_forward, i, divergence(t, s));
        set(out->kl_reverse, i, divergence(s, t));
        set(out->agree, i, s->best == t->best);
    }
}

dms_status DMS_CPU(score)(const dms_score_out *out, const dms_distill_in *in)
{
    job j = {.n_sides = in->xt ? 2 : 1, .score = out};
    DMS_TRY(open_job(&j, in));
    clear(out->nll);
    clear(out->nll_teacher);
    clear(out->kl_forward);
    clear(out->kl_reverse);
    clear(out->agree);
    for (int64_t first = 0; first < j.n; first += j.full) {
        const chunk c = chunk_at(&j, first);
        DMS_TRY(forward(&j, &c));
        write_scores(out, &j, &c);
    }
    return DMS_OK;
}
