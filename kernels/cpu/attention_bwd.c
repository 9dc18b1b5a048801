/* Attention backward on the CPU: probabilities are computed again from the log-sum-exp, block by
 * block (Dao et al. 2022). A thread owns a query head; what heads of one group add to their
 * shared keys goes through partial sums, added in the order of the heads. */
#include <omp.h>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/workspace.h"

typedef struct {
    float *dk, *dv;      /* [T, Ep], this head's share; Ep = E padded */
    float *dbias;        /* [T] */
    float *q_t, *dout_t; /* [E, QUERIES]; q scaled by 1/sqrt(E) */
    float *q, *dout;     /* [QUERIES, Ep]; q scaled by 1/sqrt(E) */
    float *dq_t;         /* [E, QUERIES] */
    float *p, *ds;       /* [KEYS, QUERIES] */
    float *delta, *lse;  /* [QUERIES]: rowsum(dout*o), and the forward pass's */
} scratch;

static size_t scratch_bytes(int64_t tokens, int64_t width)
{
    const int64_t padded = dms_tile_padded(width);
    const int64_t share = 2 * tokens * padded + dms_tile_padded(tokens);
    return (size_t)(share + (3 * width + 2 * padded + 2 * KEYS + 2) * QUERIES) * sizeof(float);
}

static scratch scratch_at(const dms_cpu_workspace *work, int thread, int64_t tokens, int64_t width)
{
    const int64_t padded = dms_tile_padded(width);
    scratch w = {.dk = (float *)(work->base + (size_t)thread * work->stride)};
    w.dv = w.dk + tokens * padded;
    w.dbias = w.dv + tokens * padded;
    w.q_t = w.dbias + dms_tile_padded(tokens);
    w.dout_t = w.q_t + width * QUERIES;
    w.dq_t = w.dout_t + width * QUERIES;
    w.q = w.dq_t + width * QUERIES;
    w.dout = w.q + padded * QUERIES;
    w.p = w.dout + padded * QUERIES;
    w.ds = w.p + KEYS * QUERIES;
    w.delta = w.ds + KEYS * QUERIES;
    w.lse = w.delta + QUERIES;
    return w;
}

/* The head being worked on, with its rows of o, dout and lse. dq is NULL where nobody wants it. */
typedef struct {
    head_view view;
    const float *o, *dout, *lse;
    float *dq;
    bool wants_dk, wants_dv;
} head_grads;

static head_grads head_grads_of(const dms_attention_grads *g, const dms_attention_in *in,
                                int64_t unit)
{
    const head_view view = head_view_of(in, unit);
    const int64_t at = view.q - (const float *)in->q->data;
    return (head_grads){
        .view = view,
        .o = (const float *)g->o->data + at,
        .dout = (const float *)g->dout->data + at,
        .lse = (const float *)g->lse->data + unit * view.tokens,
        .dq = g->dq ? (float *)g->dq->data + at : NULL,
        .wants_dk = g->dk,
        .wants_dv = g->dv,
    };
}

/* out: [QUERIES, Ep] = scale * rows of in, zero elsewhere. */
static void pack_rows(float *out, const float *in, int64_t in_row, int64_t rows, int64_t width,
                      float scale)
{
    const int64_t padded = dms_tile_padded(width);
    for (int64_t l = 0; l < QUERIES; l++)
        for (int64_t e = 0; e < padded; e++)
            out[l * padded + e] = l < rows && e < width ? scale * in[l * in_row + e] : 0.0f;
}

/* Lanes past the last token get zero gradients and lse: their probabilities stay finite and add
 * nothing. */
static void start(const scratch *w, const head_grads *g, int64_t query)
{
    const head_view *h = &g->view;
    const int64_t rows = query_count(h, query), at = query * h->q_row;

    pack_transposed(w->q_t, h->q + at, h->q_row, rows, h->width, h->scale);
    pack_transposed(w->dout_t, g->dout + at, h->q_row, rows, h->width, 1.0f);
    pack_rows(w->q, h->q + at, h->q_row, rows, h->width, h->scale);
    pack_rows(w->dout, g->dout + at, h->q_row, rows, h->width, 1.0f);
    memset(w->dq_t, 0, (size_t)(h->width * QUERIES) * sizeof(float));
    for (int64_t l = 0; l < QUERIES; l++) {
        float sum = 0;
        for (int64_t e = 0; l < rows && e < h->width; e++)
            sum += g->dout[at + l * h->q_row + e] * g->o[at + l * h->q_row + e];
        w->delta[l] = sum;
        w->lse[l] = l < rows ? g->lse[query + l] : 0.0f;
    }
}

static void probabilities(const scratch *w, const key_block *b)
{
    for (int64_t i = 0; i < b->keys; i++) {
        float *row = w->p + i * QUERIES;
#pragma omp simd
        for (int64_t l = b->lane; l < QUERIES; l++)
            row[l] = dms_fast_expf(row[l] - w->lse[l]);
    }
}

/* dS = P*(dP - delta), in place of dP; the bias of a key gets what its late queries leave. */
static void score_gradients(const scratch *w, const head_view *h, const key_block *b)
{
    for (int64_t i = 0; i < b->keys; i++) {
        const float *p = w->p + i * QUERIES;
        float *ds = w->ds + i * QUERIES;
#pragma omp simd
        for (int64_t l = b->lane; l < QUERIES; l++)
            ds[l] = p[l] * (ds[l] - w->delta[l]);
        if (!h->bias || b->kind == INSIDE)
            continue;
        const int late = first_late_lane(b, b->key + i, h->window);
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int l = late > b->lane ? late : (int)b->lane; l < QUERIES; l++)
            sum += ds[l];
        w->dbias[b->key + i] += sum;
    }
}

/* share: rows of the block in [T, Ep] += weights: [keys, QUERIES] times rows: [QUERIES, Ep]. */
static void add_to_keys(float *share, const head_view *h, const key_block *b, const float *weights,
                        const float *rows)
{
    const int64_t padded = dms_tile_padded(h->width);
    DMS_CPU(tile_multiply)
    (&(dms_tile_product){.c = share + b->key * padded,
                         .c_row = padded,
                         .a = weights + b->lane,
                         .a_row = QUERIES,
                         .a_col = 1,
                         .b = rows + b->lane * padded,
                         .b_row = padded,
                         .m = b->keys,
                         .n = padded,
                         .k = QUERIES - b->lane,
                         .add = true});
}

/* dq += scale * the transpose of dq_t; the packed queries make room for it. */
static void finish(const scratch *w, const head_grads *g, int64_t query)
{
    const head_view *h = &g->view;
    const int64_t rows = query_count(h, query), padded = dms_tile_padded(h->width);
    const dms_tile_view turned = {w->q, padded};

    DMS_CPU(tile_transpose)(turned, w->dq_t, QUERIES, h->width, rows, h->scale);
    for (int64_t l = 0; l < rows; l++) {
        float *out = g->dq + (query + l) * h->q_row;
        for (int64_t e = 0; e < h->width; e++)
            out[e] += turned.at[l * padded + e];
    }
}

static void query_block(const scratch *w, const head_grads *g, int64_t query)
{
    const head_view *h = &g->view;
    const int64_t end = query + query_count(h, query);

    start(w, g, query);
    for (int64_t key = 0; key < end;) {
        const key_block b = key_block_at(h, query, key);
        key += b.keys;
        if (is_evicted(h, &b))
            continue;
        multiply_keys(w->p, h->k, h, &b, w->q_t);
        apply_law(w->p, h, &b);
        probabilities(w, &b);
        multiply_keys(w->ds, h->v, h, &b, w->dout_t);
        score_gradients(w, h, &b);
        if (g->wants_dv)
            add_to_keys(w->dv, h, &b, w->p, w->dout);
        if (g->wants_dk)
            add_to_keys(w->dk, h, &b, w->ds, w->q);
        if (g->dq)
            add_weighted(w->dq_t, h->k, h, &b, w->ds);
    }
    if (g->dq)
        finish(w, g, query);
}

static void head_backward(const scratch *w, const head_grads *g)
{
    const head_view *h = &g->view;
    const int64_t share = 2 * h->tokens * dms_tile_padded(h->width) + h->tokens;

    memset(w->dk, 0, (size_t)share * sizeof(float));
    for (int64_t query = 0; query < h->tokens; query += QUERIES)
        query_block(w, g, query);
}

/* Adds a head's share of tokens [first, end) to one of dk, dv. */
static void add_share(dms_tensor *grad, const float *share, const head_view *h, int64_t at,
                      int64_t first, int64_t end)
{
    const int64_t padded = dms_tile_padded(h->width);
    for (int64_t t = first; t < end && grad; t++) {
        float *out = (float *)grad->data + at + t * h->kv_row;
        for (int64_t e = 0; e < h->width; e++)
            out[e] += share[t * padded + e];
    }
}

static void add_shares(const dms_attention_grads *g, const dms_attention_in *in, const scratch *w,
                       int64_t unit, int64_t first)
{
    const head_view h = head_view_of(in, unit);
    const int64_t at = h.k - (const float *)in->k->data;
    const int64_t end = first + KEYS < h.tokens ? first + KEYS : h.tokens;

    add_share(g->dk, w->dk, &h, at, first, end);
    add_share(g->dv, w->dv, &h, at, first, end);
    for (int64_t t = first; t < end && g->dbias; t++)
        ((float *)g->dbias->data)[h.group * h.tokens + t] += w->dbias[t];
}

/* Rounds of one head a thread. After each, the shares are added in the order of the heads, so that
 * every sum has one order whatever the number of threads. */
dms_status DMS_CPU(attention_bwd)(const dms_attention_grads *grads, const dms_attention_in *in)
{
    const int64_t tokens = in->q->shape[1], width = in->head_dim;
    const int64_t units = in->q->shape[0] * (dms_cols(in->q) / width);
    dms_cpu_workspace work;
    DMS_TRY(dms_cpu_workspace_get(&work, in->q->device, scratch_bytes(tokens, width)));

#pragma omp parallel
    {
        const int thread = omp_get_thread_num(), team = omp_get_num_threads();
        const scratch mine = scratch_at(&work, thread, tokens, width);
        for (int64_t round = 0; round < units; round += team) {
            const int64_t end = round + team < units ? round + team : units;
            if (round + thread < end) {
                const head_grads g = head_grads_of(grads, in, round + thread);
                head_backward(&mine, &g);
            }
#pragma omp barrier
#pragma omp for schedule(static)
            for (int64_t first = 0; first < tokens; first += KEYS)
                for (int64_t unit = round; unit < end; unit++) {
                    const scratch theirs = scratch_at(&work, (int)(unit - round), tokens, width);
                    add_shares(grads, in, &theirs, unit, first);
                }
        }
    }
    return DMS_OK;
}
