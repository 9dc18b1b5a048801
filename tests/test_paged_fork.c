/* Forks of cached sequences: what they share never changes, what they hold is what a sequence of
 * their own would, and their memory comes back. */
#include <string.h>

#include "tests/paged_copy.h"

enum { E = 24, G = 2, LAYERS = 2, SEQUENCES = 5, CONTEXT = 1200, MOST = 64 };

typedef struct {
    dms_device_kind kind;
    dms_dtype dtype;
    int64_t window;
    int evicted; /* of 8 tokens */
} scene;

typedef struct {
    rig r;
    dms_cache *cache;
    scene s;
} flow;

static flow flow_open(const scene *s)
{
    flow f = {.r = rig_open(s->kind), .s = *s};
    must(dms_cache_open(&f.cache, &(dms_cache_options){.device = f.r.dev,
                                                       .layers = LAYERS,
                                                       .groups = G,
                                                       .head_dim = E,
                                                       .window = s->window,
                                                       .context = CONTEXT,
                                                       .max_sequences = SEQUENCES,
                                                       .dtype = s->dtype,
                                                       .slab_bytes = 1}));
    return f;
}

static void flow_close(flow *f)
{
    dms_cache_close(f->cache);
    rig_close(&f->r);
}

/* Of a text and a position, what the token there is made of. */
static float made_of(uint32_t text, uint32_t position, uint32_t i)
{
    uint32_t x = (text * 2654435761u) ^ (position * 40503u + i * 2246822519u);
    x = (x ^ x >> 15) * 2246822519u;
    x = (x ^ x >> 13) * 3266489917u;
    return (float)((x ^ x >> 16) >> 8) / (1 << 23) - 1.0f;
}

static dms_tensor made(flow *f, uint32_t text, int first, int count, int wide)
{
    static float host[MOST * G * E];
    for (int t = 0; t < count; t++)
        for (int i = 0; i < wide; i++)
            host[t * wide + i] = made_of(text, (uint32_t)(first + t), (uint32_t)i);
    return rig_upload(&f->r, rig_shape(1, count, wide, 0), host);
}

/* Decisions, another one for each head and layer. */
static dms_tensor decided(flow *f, uint32_t text, int layer, int first, int count)
{
    float host[MOST * G];
    for (int g = 0; g < G; g++)
        for (int t = 0; t < count; t++) {
            const float x = made_of(text + 77, (uint32_t)(first + t), (uint32_t)(g + G * layer));
            host[g * count + t] = x < (float)f->s.evicted / 4 - 1 ? 1.0f : -1.0f;
        }
    return rig_upload(&f->r, rig_shape(1, G, count, 0), host);
}

/* The next `count` tokens of a text; the output of the last layer, [count, G*E], unless NULL. */
static void feed(flow *f, int sequence, uint32_t text, int count, float *out)
{
    rig *r = &f->r;
    const size_t mark = r->arena.used;
    const int first = (int)dms_cache_tokens(f->cache, sequence);
    const int32_t number = sequence;
    int32_t at[MOST];
    for (int t = 0; t < count; t++)
        at[t] = first + t;
    const dms_tensor units =
        rig_upload(r, (dms_tensor){.dtype = DMS_I32, .rank = 1, .shape = {1}}, &number);
    const dms_tensor positions = rig_upload(r, rig_shape_i32(1, count), at);
    const dms_tensor k = made(f, text, first, count, G * E);
    const dms_tensor v = made(f, text + 1000, first, count, G * E);
    for (int layer = 0; layer < LAYERS; layer++) {
        const dms_paged_rows rows = {&units, &positions, layer, count > 1};
        const dms_tensor z = decided(f, text, layer, first, count);
        dms_tensor q = made(f, text + 2000, first, count, G * E);
        const dms_paged *c = dms_cache_paged(f->cache);
        must(dms_cache_reserve(f->cache, &number, 1, count, layer));
        must(dms_paged_append(c, &rows, &k, &v, &z));
        must(dms_paged_attention(&q, c, &rows, &q));
        if (count > 1)
            must(dms_paged_compact(c, &rows));
        if (out && layer == LAYERS - 1)
            must(r->dev->download(r->dev, out, q.data, dms_tensor_bytes(&q)));
    }
    must(dms_cache_commit(f->cache, &number, 1, count, count == 1));
    r->arena.used = mark;
}

static int prefilled(flow *f, uint32_t text, int tokens)
{
    int sequence = -1;
    must(dms_cache_admit(f->cache, &sequence));
    for (int at = 0; at < tokens; at += MOST)
        feed(f, sequence, text, tokens - at < MOST ? tokens - at : MOST, NULL);
    return sequence;
}

static int forked(flow *f, int from, bool share)
{
    int sequence = -1;
    must(dms_cache_fork(f->cache, from, share, &sequence));
    return sequence;
}

static dms_cache_stats measure(const flow *f)
{
    dms_cache_stats stats;
    must(dms_cache_measure(&stats, f->cache));
    return stats;
}

static int64_t first_unit(int sequence)
{
    return (int64_t)sequence * LAYERS * G;
}

/* What settled pages there are, counted from what the slots hold: every slot of them late and kept,
 * and the page after them not of this kind. */
static int count_borrowed(const copy *y, int sequence, int last)
{
    const dms_paged *c = &y->c;
    int sum = 0;
    for (int64_t u = first_unit(sequence); u < first_unit(sequence + 1); u++) {
        int pages = 0;
        for (bool settled = true; settled && (pages + 1) * c->page_slots <= c->live[u];
             pages += settled)
            for (int j = 0; j < c->page_slots; j++) {
                const int32_t at = copy_page(y, u, (int64_t)pages * c->page_slots).at[j];
                settled = settled && at % 2 == 0 && last - at / 2 > c->window;
            }
        cr_assert_eq(c->borrowed[u], pages);
        sum += pages;
    }
    return sum;
}

/* The first n slots of two pages, to the bit. */
static void expect_same_slots(const dms_paged *c, const dms_page *p, const dms_page *o, size_t n)
{
    const size_t one = dms_dtype_bytes(c->dtype), column = (size_t)c->page_slots * one;
    for (size_t e = 0; e < E; e++)
        cr_assert_arr_eq((char *)p->k + e * column, (char *)o->k + e * column, n * one);
    cr_assert_arr_eq(p->v, o->v, n * (size_t)dms_page_padded(c) * one);
    cr_assert_arr_eq(p->at, o->at, n * sizeof(int32_t));
}

/* The two hold the same tokens in the same slots, to the bit, and the same ring. */
static void expect_alike(const copy *y, int a, int b)
{
    const dms_paged *c = &y->c;
    const size_t ring = (size_t)c->ring_entries;
    for (int64_t i = 0; i < LAYERS * G; i++) {
        const int64_t u = first_unit(a) + i, w = first_unit(b) + i;
        cr_assert_eq(c->live[u], c->live[w]);
        cr_assert_arr_eq(c->ring + u * (int64_t)ring, c->ring + w * (int64_t)ring, ring * 4);
        for (int slot = 0; slot < c->live[u]; slot += c->page_slots) {
            const dms_page p = copy_page(y, u, slot), o = copy_page(y, w, slot);
            const int left = c->live[u] - slot;
            expect_same_slots(c, &p, &o, (size_t)(left < c->page_slots ? left : c->page_slots));
        }
    }
}

/* A sum of all that the borrowed pages of a sequence hold. */
static uint64_t sum_borrowed(const flow *f, int sequence)
{
    copy y = copy_open(f->cache);
    uint64_t sum = 14695981039346656037u;
    for (int64_t u = first_unit(sequence); u < first_unit(sequence + 1); u++)
        for (int i = 0; i < y.c.borrowed[u]; i++) {
            const unsigned char *page = copy_page(&y, u, (int64_t)i * y.c.page_slots).k;
            for (size_t j = 0; j < dms_page_bytes(&y.c); j++)
                sum = (sum ^ page[j]) * 1099511628211u;
        }
    copy_close(&y);
    return sum;
}

static const scene scenes[] = {
    {DMS_CPU, DMS_F32, 0, 0}, /* dense */
    {DMS_CPU, DMS_F32, 5, 1}, /* one of 8 tokens goes */
    {DMS_CPU, DMS_BF16, 20, 2}, {DMS_CPU, DMS_F32, 0, 1},
    {DMS_CPU, DMS_F32, 40, 8}, /* all go: a window */
};

/* Does `run` with each scene on the device under test. */
static void with_scenes(dms_device_kind kind, void (*run)(const scene *s))
{
    for (size_t i = 0; i < COUNT(scenes); i++) {
        scene s = scenes[i];
        s.kind = kind;
        run(&s);
    }
}

static void fork_and_look(const scene *s)
{
    static const int lengths[] = {1, 16, 17, 33, 400};
    for (size_t i = 0; i < COUNT(lengths); i++) {
        flow f = flow_open(s);
        const int a = prefilled(&f, 1, lengths[i]);
        const dms_cache_stats before = measure(&f);
        const int b = forked(&f, a, true), d = forked(&f, b, true);
        const dms_cache_stats shared = measure(&f);
        cr_assert_eq(shared.allocated_bytes,
                     (size_t)shared.pages * dms_page_bytes(dms_cache_paged(f.cache)));
        const int e = forked(&f, a, false);
        copy y = copy_open(f.cache);
        const int lent = count_borrowed(&y, b, lengths[i] - 1);
        cr_assert_eq(count_borrowed(&y, d, lengths[i] - 1), lent);
        for (int64_t u = first_unit(e); u < first_unit(e + 1); u++)
            cr_assert_eq(y.c.borrowed[u], 0);
        cr_assert(lent > 0 || lengths[i] < 400 || s->evicted == 8);
        expect_alike(&y, a, b);
        expect_alike(&y, a, d);
        expect_alike(&y, a, e);
        const dms_cache_stats after = measure(&f);
        cr_assert_eq(after.live_slots, 4 * before.live_slots - 2 * lent * y.c.page_slots);
        cr_assert_eq(after.pages, 4 * before.pages - 2 * lent);
        cr_assert_eq(after.peak_slots, after.live_slots);
        cr_assert_eq(after.allocated_bytes, (size_t)after.pages * dms_page_bytes(&y.c));
        copy_close(&y);
        flow_close(&f);
    }
}

ParameterizedTestParameters(paged_fork, borrows_what_is_settled_and_copies_the_rest)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, paged_fork, borrows_what_is_settled_and_copies_the_rest)
{
    with_scenes(*kind, fork_and_look);
}

/* One token of each of n sequences, the i-th of text 10 + i after the fork. */
static void step_all(flow *f, const int *sequences, int n)
{
    for (int i = 0; i < n; i++)
        feed(f, sequences[i], 10 + (uint32_t)i, 1, NULL);
}

/* Steps, then chunks, which compact, then steps again. */
static void keep_shared(const scene *s)
{
    flow f = flow_open(s);
    int all[3] = {prefilled(&f, 1, 400)};
    all[1] = forked(&f, all[0], true);
    all[2] = forked(&f, all[1], true);
    const uint64_t before = sum_borrowed(&f, all[2]);
    for (int i = 0; i < 500; i++)
        step_all(&f, all, 3);
    cr_assert_eq(sum_borrowed(&f, all[2]), before, "500 steps changed a page that is shared");
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 3; j++)
            feed(&f, all[j], 10 + (uint32_t)j, 20 + i, NULL);
    step_all(&f, all, 3);
    cr_assert_eq(sum_borrowed(&f, all[1]), before, "chunks changed a page that is shared");
    cr_assert_eq(sum_borrowed(&f, all[2]), before, "chunks changed a page that is shared");
    flow_close(&f);
}

ParameterizedTestParameters(paged_fork, never_changes_a_page_that_is_shared)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, paged_fork, never_changes_a_page_that_is_shared)
{
    with_scenes(*kind, keep_shared);
}

/* The outputs of steps and chunks after a fork are those of a sequence of its own, to the bit. */
static void go_on_alike(const scene *s)
{
    static const int counts[] = {1, 1, 1, 17, 1, 40, 1, 1, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    static float got[MOST * G * E], want[MOST * G * E];
    flow f = flow_open(s);
    const int a = prefilled(&f, 1, 333), apart = prefilled(&f, 1, 333);
    const int b = forked(&f, a, true), d = forked(&f, b, true);
    must(dms_cache_release(f.cache, b));
    for (int turn = 0; turn < 3; turn++) /* `apart` follows a twice, in turns, and d beside it */
        for (size_t i = 0; i < COUNT(counts); i++) {
            const size_t bytes = (size_t)counts[i] * G * E * sizeof(float);
            feed(&f, apart, 5, counts[i], want);
            feed(&f, d, 5, counts[i], got);
            cr_assert_arr_eq(got, want, bytes, "a fork differs at piece %d", (int)i);
            feed(&f, a, 5, counts[i], got);
            cr_assert_arr_eq(got, want, bytes, "what was forked differs at piece %d", (int)i);
        }
    copy y = copy_open(f.cache);
    expect_alike(&y, apart, d);
    expect_alike(&y, apart, a);
    copy_close(&y);
    flow_close(&f);
}

ParameterizedTestParameters(paged_fork, goes_on_to_the_bit_like_a_sequence_of_its_own)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, paged_fork, goes_on_to_the_bit_like_a_sequence_of_its_own)
{
    with_scenes(*kind, go_on_alike);
}

/* Lent pages lie behind those of another text, which goes, and their lender goes too: they neither
 * move nor serve anybody else. */
static void stay_in_place(const scene *s)
{
    static float got[G * E], want[G * E];
    flow f = flow_open(s);
    const int other = prefilled(&f, 2, 300), apart = prefilled(&f, 1, 333);
    const int a = prefilled(&f, 1, 333), b = forked(&f, a, true);
    const uint64_t before = sum_borrowed(&f, b);
    must(dms_cache_release(f.cache, other));
    cr_assert_eq(sum_borrowed(&f, b), before, "pages that are shared were moved");
    must(dms_cache_release(f.cache, a));
    const int third = prefilled(&f, 3, 700);
    cr_assert_eq(sum_borrowed(&f, b), before, "pages that are shared serve another text");
    for (int i = 0; i < 40; i++) {
        feed(&f, apart, 5, 1, want);
        feed(&f, b, 5, 1, got);
        cr_assert_arr_eq(got, want, sizeof(want));
    }
    must(dms_cache_release(f.cache, third));
    must(dms_cache_release(f.cache, b));
    must(dms_cache_release(f.cache, apart));
    cr_assert_eq(measure(&f).slabs, 0);
    flow_close(&f);
}

ParameterizedTestParameters(paged_fork, leaves_pages_that_are_shared_in_their_place)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, paged_fork, leaves_pages_that_are_shared_in_their_place)
{
    with_scenes(*kind, stay_in_place);
}

/* a; b and c forked from it, d from b: in every order of releases slots are there until nobody
 * needs them, and then nothing is left. */
static void release_in_order(const scene *s, const int order[4])
{
    flow f = flow_open(s);
    float want[G * E], got[G * E];
    int all[4] = {prefilled(&f, 1, 200)};
    all[1] = forked(&f, all[0], true);
    all[2] = forked(&f, all[0], true);
    all[3] = forked(&f, all[1], true);
    for (int i = 0; i < 4; i++) {
        cr_assert_eq(dms_cache_tokens(f.cache, all[order[i]]), 200 + i);
        must(dms_cache_release(f.cache, all[order[i]]));
        cr_assert_eq(dms_cache_tokens(f.cache, all[order[i]]), -1);
        rig_expect_failure(dms_cache_release(f.cache, all[order[i]]), DMS_ERR_ARG, "no sequence");
        for (int j = i + 1; j < 4; j++) {
            feed(&f, all[order[j]], 3, 1, j == i + 1 ? want : got);
            cr_assert(j == i + 1 || !memcmp(want, got, sizeof(want)));
        }
    }
    const dms_cache_stats stats = measure(&f);
    cr_assert(!stats.live_slots && !stats.dense_slots && !stats.slabs && !stats.pages);
    cr_assert_eq(dms_cache_vacant(f.cache), SEQUENCES);
    cr_assert_eq(prefilled(&f, 2, 70), 0); /* numbers are free again */
    flow_close(&f);
}

ParameterizedTestParameters(paged_fork, gives_all_memory_back_in_any_order_of_releases)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, paged_fork, gives_all_memory_back_in_any_order_of_releases)
{
    static const scene kinds[] = {{DMS_CPU, DMS_F32, 0, 0}, {DMS_CPU, DMS_BF16, 9, 2}};
    for (int code = 0; code < 256; code++) {
        const int order[4] = {code & 3, code >> 2 & 3, code >> 4 & 3, code >> 6};
        scene s = kinds[code / 4 % 2];
        s.kind = *kind;
        if ((1 << order[0] | 1 << order[1] | 1 << order[2] | 1 << order[3]) == 15)
            release_in_order(&s, order);
    }
}

Test(paged_fork, counts_a_dense_cache_as_one_that_forks_too)
{
    const scene dense = {rig_device(), DMS_F32, 0, 0};
    flow f = flow_open(&dense);
    const int a = prefilled(&f, 1, 100);
    const int b = forked(&f, a, true);
    dms_cache_stats stats = measure(&f);
    cr_assert_eq(stats.tokens, 200);
    cr_assert_eq(stats.dense_slots, LAYERS * G * (100 + 100 - 96));
    cr_assert_eq(stats.live_slots, stats.dense_slots);
    must(dms_cache_release(f.cache, a));
    for (int i = 0; i < 30; i++)
        feed(&f, b, 1, 1, NULL);
    stats = measure(&f);
    cr_assert_eq(stats.tokens, 130); /* what a text lends is still there */
    cr_assert_eq(stats.dense_slots, LAYERS * G * (100 + 130 - 96));
    cr_assert_eq(stats.live_slots, stats.dense_slots);
    cr_assert_eq(stats.dense_peak_slots, stats.dense_slots);
    cr_assert_eq(stats.peak_slots, stats.dense_slots);
    cr_assert_eq(stats.kv_reads, stats.dense_reads);
    cr_assert_eq(stats.dense_reads, LAYERS * G * (30 * 100 + 30 * 31 / 2));
    must(dms_cache_release(f.cache, b));
    cr_assert_eq(measure(&f).dense_slots, 0);
    flow_close(&f);
}

Test(paged_fork, refuses_what_cannot_be_forked)
{
    const scene dense = {rig_device(), DMS_F32, 0, 0};
    flow f = flow_open(&dense);
    int to = 7;
    rig_expect_failure(dms_cache_fork(f.cache, 0, true, &to), DMS_ERR_ARG, "no sequence 0");
    const int a = prefilled(&f, 1, 40);
    must(dms_cache_reserve(f.cache, &(int32_t){a}, 1, 1, -1));
    rig_expect_failure(dms_cache_fork(f.cache, a, true, &to), DMS_ERR_ARG, "half-way");
    must(dms_cache_release(f.cache, a));
    const int b = prefilled(&f, 1, 40);
    for (int i = 1; i < SEQUENCES; i++)
        forked(&f, b, i % 2);
    rig_expect_failure(dms_cache_fork(f.cache, b, true, &to), DMS_ERR_NOMEM, "are taken");
    cr_assert_eq(to, 7);
    const dms_paged *c = dms_cache_paged(f.cache);
    rig_expect_failure(dms_paged_lend(c, 1, 1, 0), DMS_ERR_ARG, "two different ones");
    rig_expect_failure(dms_paged_copy(c, 0, SEQUENCES), DMS_ERR_ARG, "two different ones");
    flow_close(&f);
}

static dms_status (*real_alloc)(dms_device *dev, void **out, size_t bytes);
static int allocs_left;

static dms_status scarce_alloc(dms_device *dev, void **out, size_t bytes)
{
    if (allocs_left-- <= 0)
        return dms_fail(DMS_ERR_NOMEM, "the test's device has no %zu bytes left", bytes);
    return real_alloc(dev, out, bytes);
}

/* Each allocation fails in turn: there is no fork, and what was there goes on. */
Test(paged_fork, survives_every_failed_allocation)
{
    const scene dms = {rig_device(), DMS_F32, 9, 2};
    flow f = flow_open(&dms);
    int b = -1, failures = 0;
    const int a = prefilled(&f, 1, 300), apart = prefilled(&f, 1, 300);
    must(dms_cache_trim(f.cache));
    real_alloc = f.r.dev->alloc;
    f.r.dev->alloc = scarce_alloc;
    for (bool done = false; !done; failures += !done) {
        const dms_cache_stats before = measure(&f);
        allocs_left = failures;
        const dms_status status = dms_cache_fork(f.cache, a, true, &b);
        const dms_cache_stats after = measure(&f);
        done = !status;
        cr_assert(done || status == DMS_ERR_NOMEM);
        cr_assert(done || (b == -1 && after.pages == before.pages &&
                           after.live_slots == before.live_slots &&
                           after.dense_slots == before.dense_slots &&
                           dms_cache_vacant(f.cache) == SEQUENCES - 2));
    }
    cr_assert_gt(failures, 2);
    f.r.dev->alloc = real_alloc;
    const int all[] = {a, b, apart};
    for (int i = 0; i < 3; i++)
        feed(&f, all[i], 8, 21, NULL);
    copy y = copy_open(f.cache);
    expect_alike(&y, apart, a);
    expect_alike(&y, apart, b);
    copy_close(&y);
    flow_close(&f);
}
