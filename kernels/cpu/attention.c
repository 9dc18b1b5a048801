/* Attention forward on the CPU: for each block of queries one pass over the keys it sees, with a
 * running maximum and sum (Dao et al. 2022; Milakov & Gimelshein 2018). */
#include "kernels/cpu/attention.h"

#include <float.h>
#include <omp.h>

#include "kernels/cpu/workspace.h"

typedef struct {
    float *q;      /* [E, QUERIES], scaled */
    float *o;      /* [E, QUERIES], not yet divided by sum */
    float *s;      /* [KEYS, QUERIES], scores, then their exponentials */
    float *max;    /* [QUERIES] */
    float *sum;    /* [QUERIES] */
    float *shrink; /* [QUERIES], what a risen maximum makes of older exponentials */
} scratch;

static size_t scratch_bytes(int64_t width)
{
    return (size_t)((2 * width + KEYS + 3) * QUERIES) * sizeof(float);
}

static scratch scratch_at(float *base, int64_t width)
{
    scratch w = {.q = base};
    w.o = w.q + width * QUERIES;
    w.s = w.o + width * QUERIES;
    w.max = w.s + KEYS * QUERIES;
    w.sum = w.max + QUERIES;
    w.shrink = w.sum + QUERIES;
    return w;
}

static void start(const scratch *w, const head_view *h, int64_t query)
{
    pack_transposed(w->q, h->q + query * h->q_row, h->q_row, query_count(h, query), h->width,
                    h->scale);
    memset(w->o, 0, (size_t)(h->width * QUERIES) * sizeof(float));
    for (int l = 0; l < QUERIES; l++) {
        w->max[l] = -FLT_MAX; /* finite, so that a row without weights stays free of NaN */
        w->sum[l] = 0;
    }
}

/* Raises the running maximum to that of the block; older sums shrink accordingly. */
static void raise_maximum(const scratch *w, const head_view *h, const key_block *b)
{
    float top[QUERIES];
    bool risen = false;

    memcpy(top, w->max, sizeof(top));
    for (int64_t i = 0; i < b->keys; i++) {
        const float *row = w->s + i * QUERIES;
#pragma omp simd
        for (int64_t l = b->lane; l < QUERIES; l++)
            top[l] = row[l] > top[l] ? row[l] : top[l];
    }
    for (int l = 0; l < QUERIES; l++)
        risen |= top[l] > w->max[l];
    if (!risen)
        return;
#pragma omp simd
    for (int l = 0; l < QUERIES; l++) {
        w->shrink[l] = dms_fast_expf(w->max[l] - top[l]);
        w->max[l] = top[l];
        w->sum[l] *= w->shrink[l];
    }
    for (int64_t e = 0; e < h->width; e++)
#pragma omp simd
        for (int l = 0; l < QUERIES; l++)
            w->o[e * QUERIES + l] *= w->shrink[l];
}

static void exponentiate(const scratch *w, const key_block *b)
{
    for (int64_t i = 0; i < b->keys; i++) {
        float *row = w->s + i * QUERIES;
#pragma omp simd
        for (int64_t l = b->lane; l < QUERIES; l++) {
            row[l] = dms_fast_expf(row[l] - w->max[l]);
            w->sum[l] += row[l];
        }
    }
}

/* o: rows of this head in [B, T, H*E]   lse: [T] of this head. */
static void finish(const scratch *w, const head_view *h, int64_t query, float *o, float *lse)
{
    const int64_t rows = query_count(h, query);
    for (int64_t e = 0; e < h->width; e++)
#pragma omp simd
        for (int l = 0; l < QUERIES; l++)
            w->o[e * QUERIES + l] /= w->sum[l];
    const dms_tile_view out = {o + query * h->q_row, h->q_row};
    DMS_CPU(tile_transpose)(out, w->o, QUERIES, h->width, rows, 1.0f);
    for (int64_t l = 0; l < rows; l++)
        lse[query + l] = w->max[l] + logf(w->sum[l]);
}

static void query_block(const scratch *w, const head_view *h, int64_t query, float *o, float *lse)
{
    const int64_t end = query + query_count(h, query);

    start(w, h, query);
    for (int64_t key = 0; key < end;) {
        const key_block b = key_block_at(h, query, key);
        key += b.keys;
        if (is_evicted(h, &b))
            continue;
        multiply_keys(w->s, h->k, h, &b, w->q);
        apply_law(w->s, h, &b);
        raise_maximum(w, h, &b);
        exponentiate(w, &b);
        add_weighted(w->o, h->v, h, &b, w->s);
    }
    finish(w, h, query, o, lse);
}

dms_status DMS_CPU(attention)(dms_tensor *o, dms_tensor *lse, const dms_attention_in *in)
{
    const int64_t tokens = in->q->shape[1], width = in->head_dim, row = dms_cols(in->q);
    const int64_t units = in->q->shape[0] * (row / width);
    const int64_t blocks = (tokens + QUERIES - 1) / QUERIES;
    dms_cpu_workspace work;
    DMS_TRY(dms_cpu_workspace_get(&work, in->q->device, scratch_bytes(width)));

#pragma omp parallel
    {
        const int thread = omp_get_thread_num();
        const scratch w = scratch_at((float *)(work.base + (size_t)thread * work.stride), width);
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < units * blocks; i++) {
            const head_view h = head_view_of(in, i / blocks);
            const int64_t at = h.q - (const float *)in->q->data;
            const int64_t query = (blocks - 1 - i % blocks) * QUERIES; /* the longest first */
            query_block(&w, &h, query, (float *)o->data + at,
                        (float *)lse->data + h.index * tokens);
        }
    }
    return DMS_OK;
}
