/* Chunks of tokens over the paged cache in bf16 against their definition in double: chunk after
 * chunk, single tokens between them, evictions, compaction, with the numbers that the cache holds.
 */
#include <dlfcn.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "infer/cache.h"
#include "kernels/bf16.h"
#include "kernels/visibility.h"
#include "tests/rig.h"

enum { MOST_CHUNKS = 6 };

/* chunks: tokens of each, 0 ends; a chunk of one is a decoded token. */
typedef struct {
    int head_dim, groups, reps, window, context;
    int chunks[MOST_CHUNKS];
} chunk_case;

/* Two sequences, fed alike but for the noise; what was fed is kept: [2, context, ...]. */
typedef struct {
    chunk_case c;
    rig r;
    dms_cache *cache;
    int32_t sequences[2];
    bool exact;      /* queries are numbers that bf16 holds */
    float *k, *v;    /* rounded to bf16: [2, context, G*E] */
    float *z;        /* [2, context, G] */
    int done;        /* tokens fed */
    int64_t visible; /* pairs, as defined */
} feed;

static feed feed_open(dms_device_kind kind, const chunk_case *c, bool exact)
{
    feed f = {.c = *c, .r = rig_open(kind), .exact = exact};
    const size_t tokens = 2 * (size_t)c->context, wide = (size_t)(c->groups * c->head_dim);
    f.k = calloc(tokens * wide, sizeof(float));
    f.v = calloc(tokens * wide, sizeof(float));
    f.z = calloc(tokens * (size_t)c->groups, sizeof(float));
    must(dms_cache_open(&f.cache, &(dms_cache_options){.device = f.r.dev,
                                                       .layers = 1,
                                                       .groups = c->groups,
                                                       .head_dim = c->head_dim,
                                                       .window = c->window,
                                                       .context = c->context,
                                                       .max_sequences = 2,
                                                       .dtype = DMS_BF16,
                                                       .page_slots = 16,
                                                       .slab_bytes = 1}));
    for (int i = 0; i < 2; i++) {
        int sequence = 0;
        must(dms_cache_admit(f.cache, &sequence));
        f.sequences[i] = sequence;
    }
    return f;
}

static void feed_close(feed *f)
{
    dms_cache_close(f->cache);
    rig_close(&f->r);
    free(f->k);
    free(f->v);
    free(f->z);
}

static float rounded(float x)
{
    return dms_bf16_to_f32(dms_bf16_from_f32(x));
}

/* Noise for `count` tokens of both sequences, kept behind what was fed: [2, count, wide]. */
static dms_tensor invent(feed *f, float *kept, int count, int wide)
{
    const size_t n = 2 * (size_t)count * (size_t)wide;
    float *host = malloc(n * sizeof(float));
    for (size_t i = 0; i < n; i++)
        host[i] = rounded(rig_random(&f->r));
    for (int s = 0; s < 2; s++)
        memcpy(kept + ((size_t)s * (size_t)f->c.context + (size_t)f->done) * (size_t)wide,
               host + (size_t)s * n / 2, n / 2 * sizeof(float));
    const dms_tensor t = rig_upload(&f->r, rig_shape(2, count, wide, 0), host);
    free(host);
    return t;
}

/* Decisions, about half of them evictions: [2, G, count]. */
static dms_tensor decide(feed *f, int count)
{
    const int groups = f->c.groups;
    float *host = malloc(sizeof(float) * 2 * (size_t)(groups * count));
    for (int s = 0; s < 2; s++)
        for (int g = 0; g < groups; g++)
            for (int t = 0; t < count; t++)
                f->z[(s * f->c.context + f->done + t) * groups + g] =
                    host[(s * groups + g) * count + t] = rig_random(&f->r);
    const dms_tensor z = rig_upload(&f->r, rig_shape(2, groups, count, 0), host);
    free(host);
    return z;
}

/* Whether the query at position t sees the key at j; `last` tokens are known. */
static bool sees(const feed *f, int s, int g, int t, int j, int last)
{
    const bool evicted = j + 1 < last && f->z[(s * f->c.context + j + 1) * f->c.groups + g] > 0;
    return dms_is_visible(t, j, f->c.window, evicted);
}

/* o = sum of exp(q.k/sqrt(E)) v over visible keys, by their sum. q, o: [E]. */
static void define(feed *f, int s, int h, int t, const float *q, float *o)
{
    const int width = f->c.head_dim, g = h / f->c.reps, last = f->done;
    double sum = 0, value[128] = {0};
    for (int j = 0; j <= t; j++) {
        const int64_t at = ((int64_t)(s * f->c.context + j) * f->c.groups + g) * width;
        double score = 0;
        if (!sees(f, s, g, t, j, last))
            continue;
        for (int e = 0; e < width; e++)
            score += (double)q[e] * (double)f->k[at + e];
        const double weight = exp(score / sqrt((double)width));
        sum += weight;
        for (int e = 0; e < width; e++)
            value[e] += weight * (double)f->v[at + e];
        f->visible += h % f->c.reps == 0;
    }
    for (int e = 0; e < width; e++)
        o[e] = (float)(value[e] / sum);
}

static dms_tensor queries(feed *f, int count)
{
    const int wide = f->c.groups * f->c.reps * f->c.head_dim;
    const dms_tensor q = rig_noise(&f->r, rig_shape(2, count, wide, 0));
    if (f->exact) {
        float *host = rig_read(&q);
        for (int64_t i = 0; i < dms_count(&q); i++)
            host[i] = rounded(host[i]);
        must(f->r.dev->upload(f->r.dev, q.data, host, dms_tensor_bytes(&q)));
        free(host);
    }
    return q;
}

/* Feeds `count` tokens to the device; the result is in the returned tensor. */
static dms_tensor pass(feed *f, int count, dms_tensor q)
{
    rig *r = &f->r;
    const int wide = f->c.groups * f->c.head_dim;
    int32_t *positions = malloc(sizeof(*positions) * 2 * (size_t)count);
    for (int i = 0; i < 2 * count; i++)
        positions[i] = f->done + i % count;
    const dms_tensor ids = {.dtype = DMS_I32, .rank = 1, .shape = {2}};
    const dms_tensor grid = {.dtype = DMS_I32, .rank = 2, .shape = {2, count}};
    const dms_tensor sequences = rig_upload(r, ids, f->sequences);
    const dms_tensor at = rig_upload(r, grid, positions);
    const dms_paged_rows rows = {&sequences, &at, 0, false};
    const dms_tensor k = invent(f, f->k, count, wide), v = invent(f, f->v, count, wide);
    const dms_tensor z = decide(f, count);
    const dms_paged *c = dms_cache_paged(f->cache);

    free(positions);
    must(dms_cache_reserve(f->cache, f->sequences, 2, count, 0));
    c = dms_cache_paged(f->cache);
    must(dms_paged_append(c, &rows, &k, &v, &z));
    must(dms_paged_attention(&q, c, &rows, &q));
    if (count > 1)
        must(dms_paged_compact(c, &rows));
    must(dms_cache_commit(f->cache, f->sequences, 2, count, count == 1));
    f->done += count;
    return q;
}

static void expect_visible(const feed *f)
{
    int64_t counters[DMS_PAGED_COUNTERS];
    must(f->r.dev->download(f->r.dev, counters, dms_cache_paged(f->cache)->counters,
                            sizeof(counters)));
    cr_assert_eq(counters[DMS_PAGED_VISIBLE] + counters[DMS_PAGED_READS], f->visible,
                 "%lld pairs were met, expected %lld",
                 (long long)(counters[DMS_PAGED_VISIBLE] + counters[DMS_PAGED_READS]),
                 (long long)f->visible);
}

static void feed_chunk(feed *f, int count, float bound)
{
    const size_t mark = f->r.arena.used;
    const int width = f->c.head_dim, heads = f->c.groups * f->c.reps;
    const dms_tensor q = queries(f, count);
    float *asked = rig_read(&q), *want = malloc(dms_tensor_bytes(&q));
    const dms_tensor o = pass(f, count, q);
    for (int64_t i = 0; i < (int64_t)2 * count * heads; i++) {
        const int s = (int)(i / heads / count), t = (int)(i / heads % count);
        define(f, s, (int)(i % heads), f->done - count + t, asked + i * width, want + i * width);
    }
    rig_expect("o", &o, want, 0, count > 1 ? bound : 1e-5f);
    expect_visible(f);
    free(asked);
    free(want);
    f->r.arena.used = mark;
}

static void check(dms_device_kind kind, const chunk_case *c, bool exact, float bound)
{
    feed f = feed_open(kind, c, exact);
    for (int i = 0; i < MOST_CHUNKS && c->chunks[i]; i++)
        feed_chunk(&f, c->chunks[i], bound);
    feed_close(&f);
}

/* Chunks below, at and above a tile of 64 rows, with the heads of a group counted; windows from
 * none to all; several chunks after evictions, and decoded tokens that leave slots in any order;
 * contexts long enough for a unit to be cut into parts, with few and with many slots in use. */
static const chunk_case cases[] = {
    {64, 1, 1, 16, 300, {64, 65, 1, 63}},       {64, 2, 3, 0, 300, {2, 16, 1, 1, 21, 22}},
    {96, 1, 7, 16, 300, {63, 2, 1, 40}},        {128, 1, 3, 100, 300, {65, 16, 1, 2}},
    {128, 2, 1, 0, 300, {16, 64, 1, 65}},       {64, 1, 7, 16, 3000, {2, 9, 1, 10}},
    {128, 1, 1, 16, 3000, {130, 16, 1, 1, 40}}, {96, 1, 3, 5, 5000, {16, 1, 21, 1, 64}},
    {64, 1, 1, 1000, 1300, {1070, 33, 1, 2}},   {64, 1, 1, 3, 9000, {600, 600, 64, 5}},
};

/* Only q and weights are rounded. A score is a sum of E terms by sqrt(E), of k and the error of q:
 * signs differ, so it errs by 0.577 * 8.5e-4 = 4.9e-4 (root mean square; both uniform in [-1, 1]),
 * whatever E. Twice that, for values that differ by up to 2, and 2^-9 for the weights: 3e-3. The
 * most that occurs is 1.7e-3. */
ParameterizedTestParameters(paged_chunk, stays_close_to_its_definition)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, paged_chunk, stays_close_to_its_definition)
{
    for (size_t i = 0; i < COUNT(cases); i++)
        check(*kind, &cases[i], false, 3e-3f);
}

/* Queries that bf16 holds leave the rounding of weights: 2^-9 of each, so of a mean of values in
 * [-1, 1]. */
ParameterizedTestParameters(paged_chunk, rounds_nothing_but_weights_when_queries_are_exact)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, paged_chunk,
                  rounds_nothing_but_weights_when_queries_are_exact)
{
    for (size_t i = 0; i < COUNT(cases); i++)
        check(*kind, &cases[i], true, 0x1p-9f);
}

static void set_schedule(const char *name)
{
    int (*schedule)(const char *) = NULL;
    void *module = dlopen(DMS_BINARY_DIR "/libdms_cuda_emu.so", RTLD_NOW | RTLD_NOLOAD);
    void *at = module ? dlsym(module, "dms_cuda_emu_schedule") : NULL;
    cr_assert(at, "%s", dlerror());
    memcpy(&schedule, &at, sizeof(at));
    cr_assert_eq(schedule(name), 0);
}

/* The results of all chunks of a case, one after the other; *n: bytes. The caller frees it. */
static char *results_of(const chunk_case *c, const char *schedule, size_t *n)
{
    feed f = feed_open(DMS_CUDA_EMU, c, false);
    char *all = NULL;
    *n = 0;
    set_schedule(schedule);
    for (int i = 0; i < MOST_CHUNKS && c->chunks[i]; i++) {
        const size_t mark = f.r.arena.used;
        const dms_tensor o = pass(&f, c->chunks[i], queries(&f, c->chunks[i]));
        const size_t bytes = dms_tensor_bytes(&o);
        all = realloc(all, *n + bytes);
        must(f.r.dev->download(f.r.dev, all + *n, o.data, bytes));
        *n += bytes;
        f.r.arena.used = mark;
    }
    feed_close(&f);
    return all;
}

/* Every form of head and page, units in one part and in several. */
Test(paged_chunk, gives_the_same_bits_in_any_order_of_threads)
{
    static const char *const others[] = {"rev", "rand:7"};
    if (rig_device() != DMS_CUDA_EMU)
        cr_skip_test("only the emulation of CUDA can reorder threads");
    for (size_t i = 0; i < COUNT(cases); i++) {
        size_t bytes, again;
        char *want = results_of(&cases[i], "fwd", &bytes);
        for (size_t s = 0; s < COUNT(others); s++) {
            char *got = results_of(&cases[i], others[s], &again);
            cr_assert_eq(again, bytes);
            cr_assert(!memcmp(got, want, bytes), "case %d differs under %s", (int)i, others[s]);
            free(got);
        }
        free(want);
    }
}
