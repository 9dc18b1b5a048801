/* The memory of the paged cache: what it holds, moves, gives back, counts and refuses. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "infer/cache.h"
#include "tests/rig.h"

enum { E = 32, LONG = 4096, LAYERS = 2 };

static dms_tensor integers(rig *r, int rank, int64_t n, int64_t count, const int32_t *host)
{
    dms_tensor shape = {.dtype = DMS_I32, .rank = rank, .shape = {n, count}};
    return rig_upload(r, shape, host);
}

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
        const dms_paged_rows rows = {&sequences, &positions, layer, false};
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

ParameterizedTestParameters(cache_memory, holds_the_bytes_of_live_slots_not_of_the_text)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, cache_memory,
                  holds_the_bytes_of_live_slots_not_of_the_text)
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

ParameterizedTestParameters(cache_memory, prefill_peaks_at_compressed_and_window_and_one_chunk)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, cache_memory,
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

ParameterizedTestParameters(cache_memory,
                            hands_freed_pages_to_other_sequences_and_back_to_the_device)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, cache_memory,
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

ParameterizedTestParameters(cache_memory, a_sequence_survives_the_moves_of_its_pages)
{
    return rig_devices();
}

/* The same noise with and without a neighbour whose release moves pages: equal to the bit. */
ParameterizedTest(dms_device_kind *kind, cache_memory, a_sequence_survives_the_moves_of_its_pages)
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

ParameterizedTestParameters(cache_memory, counts_what_decode_reads)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, cache_memory, counts_what_decode_reads)
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
    const dms_paged_rows rows = {&sequences, &positions, 0, false};
    must(dms_cache_reserve(cache, &zero, 1, count, 0));
    must(dms_paged_append(dms_cache_paged(cache), &rows, &part[1], &part[2], NULL));
    must(dms_paged_attention(&part[0], dms_cache_paged(cache), &rows, &part[0]));
    must(dms_cache_commit(cache, &zero, 1, count, count == 1));
}

ParameterizedTestParameters(cache_memory, merges_the_parts_of_a_long_cache)
{
    return rig_devices();
}

/* Lengths around the size of a part; sharp scores, so that parts differ in their maxima. */
ParameterizedTest(dms_device_kind *kind, cache_memory, merges_the_parts_of_a_long_cache)
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
Test(cache_memory, survives_every_failed_allocation)
{
    flow f = flow_open(DMS_CPU, 3, 2);
    real_alloc = f.r.dev->alloc;
    f.r.dev->alloc = scarce_alloc;
    for (int n = 0; n < 7; n++) {
        dms_cache *cache = NULL;
        allocs_left = n;
        const dms_status status = dms_cache_open(
            &cache, &(dms_cache_options){f.r.dev, 1, 1, E, 3, 64, 1, DMS_F32, 0, 0, false, false});
        cr_assert_eq(status, n < 6 ? DMS_ERR_NOMEM : DMS_OK);
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

Test(cache_memory, refuses_sizes_and_sequences_it_does_not_have)
{
    rig r = rig_open(DMS_CPU);
    dms_cache *cache = NULL;
    int sequence = 0;
    dms_cache_options o = {r.dev, 1, 1, E, 3, 64, 1, DMS_F32, 24, 0, false, false};
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
    const dms_paged_rows rows = {&sequences, &positions, 0, false};
    cr_assert_eq(dms_paged_append(dms_cache_paged(cache), &rows, &wrong, &wrong, NULL),
                 DMS_ERR_SHAPE);
    cr_assert(strstr(dms_error_text(), "k is [1, 3, 32] f32, expected [1, 2, 32] f32"));
    cr_assert_eq(dms_paged_append(dms_cache_paged(cache), &rows, &q, &q, NULL), DMS_ERR_NOMEM);
    dms_cache_close(cache);
    rig_close(&r);
}

/* A cache without pages, and a token for it. */
static dms_status append_without_pages(rig *r)
{
    dms_cache *cache = NULL;
    int sequence = 0;
    float seen = 0;
    const dms_cache_options o = {r->dev, 1, 1, E, 3, 64, 1, DMS_F32, 0, 0, false, false};
    must(dms_cache_open(&cache, &o));
    must(dms_cache_admit(cache, &sequence));
    const dms_tensor k = rig_noise(r, rig_shape(1, 1, E, 0));
    const dms_tensor sequences = integers(r, 1, 1, 0, (int32_t[]){0});
    const dms_tensor positions = integers(r, 2, 1, 1, (int32_t[]){0});
    const dms_paged_rows rows = {&sequences, &positions, 0, false};
    dms_status status = dms_paged_append(dms_cache_paged(cache), &rows, &k, &k, NULL);
    if (!status)
        status = r->dev->download(r->dev, &seen, k.data, sizeof(seen));
    dms_cache_close(cache);
    return status;
}

/* Fewer pages are to be kept than are in use. */
static dms_status pack_too_much(dms_device_kind kind)
{
    flow f = flow_open(kind, 3, 2);
    float seen = 0;
    flow_prefill(&f, 40);
    dms_status status = dms_paged_pack(dms_cache_paged(f.cache), 1);
    if (!status) {
        const dms_tensor one = rig_noise(&f.r, rig_shape(1, 0, 0, 0));
        status = f.r.dev->download(f.r.dev, &seen, one.data, sizeof(seen));
    }
    flow_close(&f);
    return status;
}

/* A kernel cannot return a status: what the CPU refuses with `refusal` ends it with an error, which
 * the next call that waits for the device reports. */
static void expect_refused(dms_device_kind kind, dms_status status, dms_status refusal)
{
    cr_assert_eq(status, kind == DMS_CPU ? refusal : DMS_ERR_DEVICE, "%s", dms_error_text());
}

ParameterizedTestParameters(cache_memory, enters_no_token_without_a_page)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, cache_memory, enters_no_token_without_a_page)
{
    rig r = rig_open(*kind);
    expect_refused(*kind, append_without_pages(&r), DMS_ERR_NOMEM);
    rig_close(&r);
}

ParameterizedTestParameters(cache_memory, packs_no_page_away_that_is_in_use)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, cache_memory, packs_no_page_away_that_is_in_use)
{
    expect_refused(*kind, pack_too_much(*kind), DMS_ERR_ARG);
}
