/* The paged cache against the law of visibility spelled out in double precision, and its memory. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "infer/cache.h"
#include "tests/rig.h"

enum { E = 32, MAX_BATCH = 3, MAX_TOKENS = E, MAX_GROUPS = 3, MAX_REPS = 3 };

/* Texts of MAX_BATCH sequences, one layer. Values are one-hot in their position, so that an output
 * channel is the weight of a token: 0 exactly where the query does not see it. */
typedef struct {
    int batch, groups, reps;
    int64_t window;
    int tokens[MAX_BATCH];
    float *q, *k, *v;                           /* [batch, MAX_TOKENS, heads*E] */
    float z[MAX_BATCH][MAX_GROUPS][MAX_TOKENS]; /* > 0: evicts the token before */
    float want[MAX_BATCH][MAX_TOKENS][MAX_GROUPS * MAX_REPS][MAX_TOKENS];
    float got[MAX_BATCH][MAX_TOKENS][MAX_GROUPS * MAX_REPS * E];
} text;

static int pick(rig *r, int n)
{
    const int i = (int)((rig_random(r) + 1.0f) / 2.0f * (float)n);
    return i < n ? i : n - 1;
}

/* The law as method.md section 2 writes it, beside the one the library uses. */
static bool sees(const text *x, int b, int g, int q, int k)
{
    return k <= q && (q - k <= x->window || !(x->z[b][g][k + 1] > 0));
}

static void define(text *x)
{
    const int heads = x->groups * x->reps;
    for (int b = 0; b < x->batch; b++)
        for (int t = 0; t < x->tokens[b]; t++)
            for (int h = 0; h < heads; h++) {
                const int g = h / x->reps;
                const float *q = x->q + ((b * MAX_TOKENS + t) * heads + h) * E;
                double weight[MAX_TOKENS] = {0}, sum = 0;
                for (int k = 0; k <= t; k++) {
                    const float *key = x->k + ((b * MAX_TOKENS + k) * x->groups + g) * E;
                    double dot = 0;
                    for (int e = 0; e < E; e++)
                        dot += (double)q[e] * (double)key[e];
                    weight[k] = sees(x, b, g, t, k) ? exp(dot / sqrt((double)E)) : 0;
                    sum += weight[k];
                }
                for (int k = 0; k < MAX_TOKENS; k++)
                    x->want[b][t][h][k] = (float)(weight[k] / sum);
            }
}

static float *noise(rig *r, int n)
{
    float *x = malloc((size_t)n * sizeof(float));
    for (int i = 0; i < n; i++)
        x[i] = 2.0f * rig_random(r);
    return x;
}

static text *text_open(rig *r)
{
    static const int windows[] = {0, 0, 1, 2, 3, 5, 8, 16, 31, 1000};
    text *x = calloc(1, sizeof(*x));
    x->batch = 1 + pick(r, MAX_BATCH);
    x->groups = 1 + pick(r, MAX_GROUPS);
    x->reps = 1 + pick(r, MAX_REPS);
    x->window = windows[pick(r, COUNT(windows))];
    const int rows = x->batch * MAX_TOKENS;
    x->q = noise(r, rows * x->groups * x->reps * E);
    x->k = noise(r, rows * x->groups * E);
    x->v = calloc((size_t)(rows * x->groups * E), sizeof(float));
    for (int i = 0; i < rows * x->groups; i++)
        x->v[i * E + i / x->groups % MAX_TOKENS] = 1;
    const float shift = rig_random(r);
    for (int b = 0; b < x->batch; b++) {
        x->tokens[b] = 1 + pick(r, MAX_TOKENS);
        for (int g = 0; g < x->groups; g++)
            for (int t = 0; t < MAX_TOKENS; t++)
                x->z[b][g][t] = rig_random(r) + shift;
    }
    define(x);
    return x;
}

static void text_close(text *x)
{
    free(x->q);
    free(x->k);
    free(x->v);
    free(x);
}

static void expect_defined(const text *x, const char *what)
{
    for (int b = 0; b < x->batch; b++)
        for (int t = 0; t < x->tokens[b]; t++)
            for (int h = 0; h < x->groups * x->reps; h++)
                for (int k = 0; k < E; k++) {
                    const float got = x->got[b][t][h * E + k], want = x->want[b][t][h][k];
                    cr_assert((got > 0) == (want > 0), "%s: query %d %s key %d, window %d, head %d",
                              what, t, got > 0 ? "sees" : "does not see", k, (int)x->window, h);
                    cr_assert(fabsf(got - want) <= 1e-5f, "%s: weight %g, expected %g", what,
                              (double)got, (double)want);
                }
}

/* One op over n sequences from token `start[i]` on, `count` tokens each. */
typedef struct {
    int32_t sequences[MAX_BATCH];
    int rows[MAX_BATCH]; /* which text */
    int start[MAX_BATCH];
    int n, count;
} batch;

static dms_tensor slice(rig *r, const batch *b, const float *all, int width)
{
    const size_t row = (size_t)width * sizeof(float);
    dms_tensor t = rig_empty(r, rig_shape(b->n, b->count, width, 0));
    for (int i = 0; i < b->n; i++)
        must(r->dev->upload(r->dev, (char *)t.data + (size_t)(i * b->count) * row,
                            all + (b->rows[i] * MAX_TOKENS + b->start[i]) * width,
                            (size_t)b->count * row));
    return t;
}

static dms_tensor slice_logits(rig *r, const text *x, const batch *b)
{
    float host[MAX_BATCH * MAX_GROUPS * MAX_TOKENS];
    for (int i = 0; i < b->n; i++)
        for (int g = 0; g < x->groups; g++)
            memcpy(host + (i * x->groups + g) * b->count, &x->z[b->rows[i]][g][b->start[i]],
                   (size_t)b->count * sizeof(float));
    return rig_upload(r, rig_shape(b->n, x->groups, b->count, 0), host);
}

static dms_tensor integers(rig *r, int rank, int64_t n, int64_t count, const int32_t *host)
{
    dms_tensor shape = {.dtype = DMS_I32, .rank = rank, .shape = {n, count}};
    return rig_upload(r, shape, host);
}

/* Enters the batch into the cache and reads what its queries get. */
static void feed(rig *r, dms_cache *cache, text *x, const batch *b)
{
    const size_t mark = r->arena.used;
    const int wide = x->groups * x->reps * E;
    int32_t at[MAX_BATCH * MAX_TOKENS];
    for (int i = 0; i < b->n * b->count; i++)
        at[i] = b->start[i / b->count] + i % b->count;
    const dms_tensor sequences = integers(r, 1, b->n, 0, b->sequences);
    const dms_tensor positions = integers(r, 2, b->n, b->count, at);
    const dms_paged_rows rows = {&sequences, &positions, 0};
    dms_tensor q = slice(r, b, x->q, wide), k = slice(r, b, x->k, x->groups * E);
    dms_tensor v = slice(r, b, x->v, x->groups * E), z = slice_logits(r, x, b);
    must(dms_cache_reserve(cache, b->sequences, b->n, b->count, 0));
    must(dms_paged_append(dms_cache_paged(cache), &rows, &k, &v, &z));
    must(dms_paged_attention(&q, dms_cache_paged(cache), &rows, &q));
    if (b->count > 1)
        must(dms_paged_compact(dms_cache_paged(cache), &rows));
    must(dms_cache_commit(cache, b->sequences, b->n, b->count, b->count == 1));
    for (int i = 0; i < b->n; i++)
        for (int t = 0; t < b->count; t++)
            must(r->dev->download(r->dev, x->got[b->rows[i]][b->start[i] + t],
                                  (float *)q.data + (i * b->count + t) * wide,
                                  (size_t)wide * sizeof(float)));
    r->arena.used = mark;
}

static dms_cache *cache_for(rig *r, const text *x, dms_dtype dtype, int page)
{
    dms_cache *cache = NULL;
    must(dms_cache_open(&cache, &(dms_cache_options){.device = r->dev,
                                                     .layers = 1,
                                                     .groups = x->groups,
                                                     .head_dim = E,
                                                     .window = x->window,
                                                     .context = MAX_TOKENS,
                                                     .max_sequences = MAX_BATCH,
                                                     .dtype = dtype,
                                                     .page_slots = page,
                                                     .slab_bytes = 1}));
    return cache;
}

/* Text b in pieces of at most `most` tokens, from `start` to `end`. */
static void feed_chunks(rig *r, dms_cache *cache, text *x, int b, int end, int most)
{
    int sequence = 0;
    must(dms_cache_admit(cache, &sequence));
    for (int at = 0; at < end;) {
        const int size = most < 0 ? 1 + pick(r, -most) : most;
        const int count = size < end - at ? size : end - at;
        feed(r, cache, x, &(batch){{sequence}, {b}, {at}, 1, count});
        at += count;
    }
}

/* The slots left are those the last query sees: nothing expired is kept. */
static void expect_live(const text *x, const dms_cache *cache)
{
    int64_t visible = 0;
    dms_cache_stats stats;
    for (int b = 0; b < x->batch; b++)
        for (int g = 0; g < x->groups; g++)
            for (int k = 0; k < x->tokens[b]; k++)
                visible += sees(x, b, g, x->tokens[b] - 1, k);
    must(dms_cache_measure(&stats, cache));
    cr_assert_eq(stats.live_slots, visible);
}

static void finish(text *x, dms_cache *cache, const char *what)
{
    dms_cache_stats stats;
    expect_defined(x, what);
    expect_live(x, cache);
    for (int b = 0; b < x->batch; b++)
        must(dms_cache_release(cache, b));
    must(dms_cache_measure(&stats, cache));
    cr_assert_eq(stats.pages, 0);
    cr_assert_eq(stats.allocated_bytes, 0);
    dms_cache_close(cache);
    memset(x->got, 0, sizeof(x->got));
}

static void in_chunks(rig *r, text *x, int most, const char *what)
{
    dms_cache *cache = cache_for(r, x, DMS_F32, 0);
    for (int b = 0; b < x->batch; b++)
        feed_chunks(r, cache, x, b, x->tokens[b], most);
    finish(x, cache, what);
}

/* Each text as a prefix of its own length in chunks, then all of them together, token by token. */
static void in_a_ragged_batch(rig *r, text *x)
{
    dms_cache *cache = cache_for(r, x, DMS_F32, 0);
    int at[MAX_BATCH];
    for (int b = 0; b < x->batch; b++)
        feed_chunks(r, cache, x, b, at[b] = pick(r, x->tokens[b]), -8);
    for (;;) {
        batch one = {.count = 1};
        for (int b = 0; b < x->batch; b++)
            if (at[b] < x->tokens[b]) {
                one.sequences[one.n] = one.rows[one.n] = b;
                one.start[one.n++] = at[b]++;
            }
        if (!one.n)
            break;
        feed(r, cache, x, &one);
    }
    finish(x, cache, "ragged batch");
}

static void masked(rig *r, text *x)
{
    const size_t mark = r->arena.used;
    for (int b = 0; b < x->batch; b++) {
        const batch all = {{0}, {b}, {0}, 1, x->tokens[b]};
        const int wide = x->groups * x->reps * E, heads = x->groups * x->reps;
        dms_tensor q = slice(r, &all, x->q, wide), k = slice(r, &all, x->k, x->groups * E);
        dms_tensor v = slice(r, &all, x->v, x->groups * E), z = slice_logits(r, x, &all);
        dms_tensor bias = rig_empty(r, z), d = rig_empty(r, z), o = rig_empty(r, q);
        dms_tensor lse = rig_empty(r, rig_shape(1, heads, all.count, 0));
        must(dms_gate_hard(&bias, &d, &z));
        must(dms_attention(&o, &lse, &(dms_attention_in){&q, &k, &v, &bias, x->window, E}));
        for (int t = 0; t < all.count; t++)
            must(r->dev->download(r->dev, x->got[b][t], (float *)o.data + t * wide,
                                  (size_t)wide * sizeof(float)));
    }
    r->arena.used = mark;
    expect_defined(x, "mask");
}

static void one_law(dms_device_kind kind, uint32_t seed, int cases)
{
    rig r = rig_open_threads(kind, 1);
    r.seed = seed;
    for (int i = 0; i < cases; i++) {
        text *x = text_open(&r);
        masked(&r, x);
        in_chunks(&r, x, MAX_TOKENS, "one shot");
        in_chunks(&r, x, 1, "decode");
        in_chunks(&r, x, 1 + pick(&r, MAX_TOKENS), "even chunks");
        in_chunks(&r, x, -(1 + pick(&r, MAX_TOKENS)), "random chunks");
        in_a_ragged_batch(&r, x);
        text_close(x);
    }
    rig_close(&r);
}

ParameterizedTestParameters(cache, mask_prefill_chunks_and_decode_are_one_law)
{
    return rig_devices();
}

/* 1,000 batches of up to 3 texts, here and 3 * 800 below: each is a mask, and five cases of the
 * cache (one shot, token by token, even chunks, random chunks, ragged batch), 17,000 in all. */
ParameterizedTest(dms_device_kind *kind, cache, mask_prefill_chunks_and_decode_are_one_law)
{
    one_law(*kind, 7, 1000);
}

ParameterizedTestParameters(cache, obeys_the_law_with_other_seeds)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, cache, obeys_the_law_with_other_seeds)
{
    for (uint32_t seed = 100; seed < 103; seed++)
        one_law(*kind, seed, 800);
}

/* ---- memory --------------------------------------------------------------------------------- */

enum { LONG = 4096, LAYERS = 2 };

/* A cache of LAYERS layers and one head, fed with noise; every token but each `keep`-th is evicted.
 */
typedef struct {
    rig r;
    dms_cache *cache;
    int keep;
    int64_t window;
    int64_t chunk; /* the most tokens of one feed */
} flow;

static flow flow_open(dms_device_kind kind, int64_t window, int keep)
{
    flow f = {.r = rig_open(kind), .keep = keep, .window = window, .chunk = 256};
    must(dms_cache_open(&f.cache, &(dms_cache_options){.device = f.r.dev,
                                                       .layers = LAYERS,
                                                       .groups = 1,
                                                       .head_dim = E,
                                                       .window = window,
                                                       .context = LONG,
                                                       .max_sequences = 3,
                                                       .slab_bytes = 1}));
    return f;
}

static void flow_close(flow *f)
{
    dms_cache_close(f->cache);
    rig_close(&f->r);
}

/* The next `count` tokens of a sequence, in all layers. The output of the last one is copied to
 * `last` [E] unless it is NULL. */
static void flow_feed(flow *f, int32_t sequence, int64_t count, float *last)
{
    rig *r = &f->r;
    const size_t mark = r->arena.used;
    const int64_t first = dms_cache_tokens(f->cache, sequence);
    int32_t at[LONG];
    float logits[LONG];
    for (int64_t t = 0; t < count; t++) {
        at[t] = (int32_t)(first + t);
        logits[t] = (first + t - 1) % f->keep ? 1.0f : -1.0f;
    }
    const dms_tensor sequences = integers(r, 1, 1, 0, &sequence);
    const dms_tensor positions = integers(r, 2, 1, count, at);
    const dms_tensor z = rig_upload(r, rig_shape(1, 1, count, 0), logits);
    dms_tensor q = rig_noise(r, rig_shape(1, count, E, 0)), o = rig_empty(r, q);
    const dms_tensor k = rig_noise(r, q), v = rig_noise(r, q);
    if (count == 1)
        must(dms_cache_reserve(f->cache, &sequence, 1, 1, -1));
    for (int layer = 0; layer < LAYERS; layer++) {
        const dms_paged_rows rows = {&sequences, &positions, layer};
        if (count > 1)
            must(dms_cache_reserve(f->cache, &sequence, 1, count, layer));
        must(dms_paged_append(dms_cache_paged(f->cache), &rows, &k, &v, &z));
        must(dms_paged_attention(&o, dms_cache_paged(f->cache), &rows, &q));
        if (count > 1)
            must(dms_paged_compact(dms_cache_paged(f->cache), &rows));
    }
    must(dms_cache_commit(f->cache, &sequence, 1, count, count == 1));
    if (last)
        must(r->dev->download(r->dev, last, (float *)o.data + (count - 1) * E, E * sizeof(float)));
    r->arena.used = mark;
}

static int flow_prefill(flow *f, int64_t tokens)
{
    int sequence = 0;
    must(dms_cache_admit(f->cache, &sequence));
    for (int64_t at = 0; at < tokens; at += f->chunk)
        flow_feed(f, sequence, tokens - at < f->chunk ? tokens - at : f->chunk, NULL);
    must(dms_cache_trim(f->cache));
    return sequence;
}

static dms_cache_stats measure(const flow *f)
{
    dms_cache_stats stats;
    must(dms_cache_measure(&stats, f->cache));
    return stats;
}

static size_t page_bytes(const flow *f)
{
    return dms_page_bytes(dms_cache_paged(f->cache));
}

/* Slots that are left of a text: each keep-th token, and the window. */
static int64_t left_of(const flow *f, int64_t tokens)
{
    int64_t slots = 0;
    for (int64_t k = 0; k < tokens; k++)
        slots += tokens - 1 - k <= f->window || k % f->keep == 0;
    return slots;
}

ParameterizedTestParameters(cache, holds_the_bytes_of_live_slots_not_of_the_text)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, cache, holds_the_bytes_of_live_slots_not_of_the_text)
{
    flow f = flow_open(*kind, 20, 8);
    const int sequence = flow_prefill(&f, 2000);
    for (int i = 0; i < 3; i++) {
        const int64_t tokens = dms_cache_tokens(f.cache, sequence);
        const int64_t left = left_of(&f, tokens), pages = LAYERS * ((left + 15) / 16);
        const dms_cache_stats s = measure(&f);
        cr_assert_eq(s.live_slots, LAYERS * left);
        cr_assert_eq(s.dense_slots, LAYERS * tokens);
        cr_assert_leq(s.pages, pages);
        cr_assert_eq(s.allocated_bytes, (size_t)s.pages * page_bytes(&f));
        for (int64_t t = 0; t < 300; t++)
            flow_feed(&f, sequence, 1, NULL);
    }
    flow_close(&f);
}

ParameterizedTestParameters(cache, prefill_peaks_at_compressed_and_window_and_one_chunk)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, cache,
                  prefill_peaks_at_compressed_and_window_and_one_chunk)
{
    static const int64_t chunks[] = {16, 100, 256};
    for (size_t i = 0; i < COUNT(chunks); i++) {
        flow f = flow_open(*kind, 33, 8);
        f.chunk = chunks[i];
        flow_prefill(&f, 3000);
        const int64_t compressed = LAYERS * left_of(&f, 3000);
        const dms_cache_stats s = measure(&f);
        cr_assert_leq(s.peak_slots, compressed + f.chunk);
        cr_assert_leq(s.peak_bytes,
                      (size_t)((compressed + f.chunk) / 16 + LAYERS + 1) * page_bytes(&f));
        cr_assert_geq(s.peak_bytes, (size_t)(s.peak_slots / 16) * page_bytes(&f));
        flow_close(&f);
    }
}

ParameterizedTestParameters(cache, hands_freed_pages_to_other_sequences_and_back_to_the_device)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, cache,
                  hands_freed_pages_to_other_sequences_and_back_to_the_device)
{
    flow f = flow_open(*kind, 10, 4);
    const int first = flow_prefill(&f, 1000), second = flow_prefill(&f, 600);
    const size_t peak = measure(&f).peak_bytes, both = measure(&f).allocated_bytes;
    must(dms_cache_release(f.cache, first));
    const size_t alone = measure(&f).allocated_bytes;
    cr_assert_lt(alone, both / 2);
    cr_assert_eq(flow_prefill(&f, 1000), first);
    cr_assert_eq(measure(&f).allocated_bytes, both);
    cr_assert_leq(measure(&f).peak_bytes, peak + 16 * page_bytes(&f));
    must(dms_cache_release(f.cache, first));
    must(dms_cache_release(f.cache, second));
    cr_assert_eq(measure(&f).allocated_bytes, 0);
    cr_assert_eq(measure(&f).live_slots, 0);
    flow_close(&f);
}

ParameterizedTestParameters(cache, a_sequence_survives_the_moves_of_its_pages)
{
    return rig_devices();
}

/* The same noise with and without a neighbour whose release moves pages: equal to the bit. */
ParameterizedTest(dms_device_kind *kind, cache, a_sequence_survives_the_moves_of_its_pages)
{
    float out[2][E];
    for (int moved = 0; moved < 2; moved++) {
        flow f = flow_open(*kind, 10, 4);
        int neighbour = 0;
        if (moved)
            neighbour = flow_prefill(&f, 1500);
        f.r.seed = 5;
        const int sequence = flow_prefill(&f, 900);
        if (moved)
            must(dms_cache_release(f.cache, neighbour));
        flow_feed(&f, sequence, 70, NULL);
        flow_feed(&f, sequence, 1, out[moved]);
        flow_close(&f);
    }
    cr_assert_arr_eq(out[0], out[1], sizeof(out[0]));
}

ParameterizedTestParameters(cache, counts_what_decode_reads)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, cache, counts_what_decode_reads)
{
    flow f = flow_open(*kind, 7, 5);
    const int sequence = flow_prefill(&f, 100);
    int64_t reads = 0, dense = 0, visible = 0;
    for (int64_t n = 1; n <= 100; n++)
        visible += LAYERS * left_of(&f, n);
    for (int64_t n = 101; n <= 150; n++) {
        flow_feed(&f, sequence, 1, NULL);
        reads += LAYERS * left_of(&f, n);
        dense += LAYERS * n;
    }
    cr_assert_eq(measure(&f).kv_reads, reads);
    cr_assert_eq(measure(&f).dense_reads, dense);
    cr_assert_eq(measure(&f).prefill_reads, visible);
    flow_close(&f);
}

/* ---- long caches ---------------------------------------------------------------------------- */

/* Attention over noise in double; all tokens visible. */
static void define_last(rig *r, const dms_tensor qkv[3], int64_t tokens, float *want)
{
    float *q = rig_read(&qkv[0]), *k = rig_read(&qkv[1]), *v = rig_read(&qkv[2]);
    double sum = 0, out[E] = {0};
    (void)r;
    for (int64_t t = 0; t < tokens; t++) {
        double dot = 0;
        for (int e = 0; e < E; e++)
            dot += (double)q[(tokens - 1) * E + e] * (double)k[t * E + e];
        const double weight = exp(8 * dot / sqrt((double)E));
        sum += weight;
        for (int e = 0; e < E; e++)
            out[e] += weight * (double)v[t * E + e];
    }
    for (int e = 0; e < E; e++)
        want[e] = (float)(out[e] / sum);
    free(q);
    free(k);
    free(v);
}

static void enter_long(rig *r, dms_cache *cache, dms_tensor qkv[3], int64_t first, int64_t count)
{
    int32_t at[LONG], zero = 0;
    dms_tensor part[3];
    for (int64_t t = 0; t < count; t++)
        at[t] = (int32_t)(first + t);
    for (int i = 0; i < 3; i++) {
        part[i] = qkv[i];
        part[i].shape[1] = count;
        part[i].data = (float *)qkv[i].data + first * E;
    }
    const dms_tensor sequences = integers(r, 1, 1, 0, &zero);
    const dms_tensor positions = integers(r, 2, 1, count, at);
    const dms_paged_rows rows = {&sequences, &positions, 0};
    must(dms_cache_reserve(cache, &zero, 1, count, 0));
    must(dms_paged_append(dms_cache_paged(cache), &rows, &part[1], &part[2], NULL));
    must(dms_paged_attention(&part[0], dms_cache_paged(cache), &rows, &part[0]));
    must(dms_cache_commit(cache, &zero, 1, count, count == 1));
}

ParameterizedTestParameters(cache, merges_the_parts_of_a_long_cache)
{
    return rig_devices();
}

/* Lengths around the size of a part; sharp scores, so that parts differ in their maxima. */
ParameterizedTest(dms_device_kind *kind, cache, merges_the_parts_of_a_long_cache)
{
    static const int lengths[] = {255, 256, 257, 512, 513, 1100, 4000}, pages[] = {16, 32, 48};
    for (size_t i = 0; i < COUNT(lengths); i++) {
        rig r = rig_open(*kind);
        const int64_t n = lengths[i];
        float want[E];
        int sequence = 0;
        dms_cache *cache = NULL;
        dms_tensor qkv[3];
        for (int j = 0; j < 3; j++)
            qkv[j] = rig_noise(&r, rig_shape(1, n, E, 0));
        must(dms_axpy(&qkv[0], 7.0f, &qkv[0]));
        dms_tensor unit = rig_zero(&r, qkv[0]);
        must(dms_axpy(&unit, 0.125f, &qkv[0]));
        define_last(&r, (dms_tensor[]){unit, qkv[1], qkv[2]}, n, want);
        must(dms_cache_open(&cache, &(dms_cache_options){.device = r.dev,
                                                         .layers = 1,
                                                         .groups = 1,
                                                         .head_dim = E,
                                                         .context = LONG,
                                                         .max_sequences = 1,
                                                         .page_slots = pages[i % 3]}));
        must(dms_cache_admit(cache, &sequence));
        enter_long(&r, cache, qkv, 0, n - 1);
        enter_long(&r, cache, qkv, n - 1, 1);
        dms_tensor last = qkv[0];
        last.shape[1] = 1;
        last.data = (float *)qkv[0].data + (n - 1) * E;
        rig_expect("o", &last, want, 1e-5f, 1e-5f);
        dms_cache_close(cache);
        rig_close(&r);
    }
}

/* ---- errors --------------------------------------------------------------------------------- */

static dms_status (*real_alloc)(dms_device *dev, void **out, size_t bytes);
static int allocs_left;

static dms_status scarce_alloc(dms_device *dev, void **out, size_t bytes)
{
    if (allocs_left-- <= 0)
        return dms_fail(DMS_ERR_NOMEM, "the test's device has no %zu bytes left", bytes);
    return real_alloc(dev, out, bytes);
}

/* Each allocation fails in turn; the cache says so and still works once there is memory. */
Test(cache, survives_every_failed_allocation)
{
    flow f = flow_open(DMS_CPU, 3, 2);
    real_alloc = f.r.dev->alloc;
    f.r.dev->alloc = scarce_alloc;
    for (int n = 0; n < 6; n++) {
        dms_cache *cache = NULL;
        allocs_left = n;
        const dms_status status =
            dms_cache_open(&cache, &(dms_cache_options){f.r.dev, 1, 1, E, 3, 64, 1, DMS_F32, 0, 0});
        cr_assert_eq(status, n < 5 ? DMS_ERR_NOMEM : DMS_OK);
        dms_cache_close(cache);
    }
    int sequence = 0;
    must(dms_cache_admit(f.cache, &sequence));
    for (int n = 0; n < 5; n++) {
        allocs_left = n;
        cr_assert_eq(dms_cache_reserve(f.cache, &(int32_t){sequence}, 1, LONG / 4, -1),
                     DMS_ERR_NOMEM);
        cr_assert(dms_cache_is_whole(f.cache, sequence));
    }
    allocs_left = 1 << 20;
    flow_feed(&f, sequence, 100, NULL);
    cr_assert_eq(measure(&f).live_slots, LAYERS * left_of(&f, 100));
    f.r.dev->alloc = real_alloc;
    flow_close(&f);
}

Test(cache, refuses_sizes_and_sequences_it_does_not_have)
{
    rig r = rig_open(DMS_CPU);
    dms_cache *cache = NULL;
    int sequence = 0;
    dms_cache_options o = {r.dev, 1, 1, E, 3, 64, 1, DMS_F32, 24, 0};
    cr_assert_eq(dms_cache_open(&cache, &o), DMS_ERR_ARG);
    cr_assert(strstr(dms_error_text(), "a page of 24 slots, expected a multiple of 16"));
    o.page_slots = 16;
    o.window = -1;
    cr_assert_eq(dms_cache_open(&cache, &o), DMS_ERR_ARG);
    o.window = 0;
    must(dms_cache_open(&cache, &o));
    must(dms_cache_admit(cache, &sequence));
    cr_assert_eq(dms_cache_admit(cache, &sequence), DMS_ERR_NOMEM);
    cr_assert(strstr(dms_error_text(), "release one first"));
    cr_assert_eq(dms_cache_release(cache, 1), DMS_ERR_ARG);
    dms_tensor q = rig_noise(&r, rig_shape(1, 2, E, 0)),
               wrong = rig_noise(&r, rig_shape(1, 3, E, 0));
    const dms_tensor sequences = integers(&r, 1, 1, 0, (int32_t[]){0});
    const dms_tensor positions = integers(&r, 2, 1, 2, (int32_t[]){0, 1});
    const dms_paged_rows rows = {&sequences, &positions, 0};
    cr_assert_eq(dms_paged_append(dms_cache_paged(cache), &rows, &wrong, &wrong, NULL),
                 DMS_ERR_SHAPE);
    cr_assert(strstr(dms_error_text(), "k is [1, 3, 32] f32, expected [1, 2, 32] f32"));
    cr_assert_eq(dms_paged_append(dms_cache_paged(cache), &rows, &q, &q, NULL), DMS_ERR_NOMEM);
    dms_cache_close(cache);
    rig_close(&r);
}
