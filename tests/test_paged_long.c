/* Ranks of slots and pages in caches that take a device several blocks, beside those on the CPU,
 * which tests/test_paged_rank.c and tests/test_paged_choose.c hold against their definitions. */
#include "tests/paged_scene.h"

enum { CONTEXT = 4500, PIECE = 1000 /* tokens of an append */ };

/* The CPU and the device under test, fed alike. */
typedef struct {
    scene sides[2];
} pair;

static pair pair_open(dms_device_kind kind, const scene_shape *s)
{
    pair p;
    for (int i = 0; i < 2; i++) {
        scene x = {.s = *s, .r = rig_open(i ? kind : DMS_CPU)};
        must(dms_cache_open(&x.cache, &(dms_cache_options){.device = x.r.dev,
                                                           .layers = SCENE_LAYERS,
                                                           .groups = s->groups,
                                                           .head_dim = s->head_dim,
                                                           .window = s->window,
                                                           .context = CONTEXT,
                                                           .max_sequences = SCENE_ROWS,
                                                           .dtype = s->dtype,
                                                           .page_slots = s->page_slots,
                                                           .scored = true,
                                                           .bounded = true}));
        for (int sequence = 0; sequence < SCENE_ROWS; sequence++)
            must(dms_cache_admit(x.cache, &(int){0}));
        p.sides[i] = x;
    }
    return p;
}

static void pair_close(pair *p)
{
    for (int i = 0; i < 2; i++)
        scene_close(&p->sides[i]);
}

/* ---- what both hold ------------------------------------------------------------------------- */

/* The same tokens and marks; scores are sums of up to 160 probabilities, in another order: 1e-5. */
static void expect_same_slots(const copy y[2], int64_t unit)
{
    const int live = y[0].c.live[unit];
    cr_assert_eq(y[1].c.live[unit], live);
    for (int slot = 0; slot < live; slot++) {
        const float want = slot_score(&y[0], unit, slot), got = slot_score(&y[1], unit, slot);
        cr_assert_eq(slot_position(&y[1], unit, slot), slot_position(&y[0], unit, slot));
        cr_assert_eq(slot_evicted(&y[1], unit, slot), slot_evicted(&y[0], unit, slot),
                     "unit %d: the token at %d", (int)unit, slot_position(&y[0], unit, slot));
        cr_assert(fabsf(got - want) <= 1e-5f + 1e-5f * want, "unit %d slot %d: %g, expected %g",
                  (int)unit, slot, (double)got, (double)want);
    }
}

static void expect_same(const pair *p)
{
    const copy y[2] = {copy_open(p->sides[0].cache), copy_open(p->sides[1].cache)};
    for (int i = 0; i < DMS_PAGED_COUNTERS; i++)
        cr_assert_eq(y[1].counters[i], y[0].counters[i], "counter %d", i);
    for (int s = 0; s < SCENE_ROWS; s++)
        for (int g = 0; g < p->sides[0].s.groups; g++)
            expect_same_slots(y, scene_unit(&p->sides[0], s, g));
    for (int i = 0; i < 2; i++)
        copy_close((copy *)&y[i]);
}

/* ---- scripts -------------------------------------------------------------------------------- */

static void enter(pair *p, unsigned which, int count)
{
    for (int i = 0; i < 2; i++) {
        scene *x = &p->sides[i];
        const size_t used = x->r.arena.used;
        tokens t = scene_tokens(x, which, count);
        const dms_paged_rows rows = scene_rows(&t);
        scene_append(x, &t);
        must(dms_paged_bound(dms_cache_paged(x->cache), &rows));
        tokens_close(&t);
        x->r.arena.used = used;
    }
}

/* Sequence 0 is the longest; sequence 2 has a part of a page. */
static void enter_all(pair *p)
{
    for (int i = 0; i < 4; i++)
        enter(p, 1, PIECE);
    enter(p, 1, 217);
    enter(p, 2, PIECE);
    enter(p, 4, 9);
}

static void weigh(pair *p, unsigned which, int count, dms_paged_weights w)
{
    for (int i = 0; i < 2; i++) {
        scene *x = &p->sides[i];
        const size_t used = x->r.arena.used;
        tokens t = scene_tokens(x, which, count);
        const dms_paged_rows rows = scene_rows(&t);
        scene_append(x, &t);
        must(dms_paged_weigh(dms_cache_paged(x->cache), &rows, &t.q, &w));
        tokens_close(&t);
        x->r.arena.used = used;
    }
    expect_same(p);
}

static dms_tensor counts(scene *x, const int32_t *host)
{
    dms_tensor shape = rig_shape(SCENE_ROWS, 0, 0, 0);
    shape.dtype = DMS_I32;
    return rig_upload(&x->r, shape, host);
}

static void mark(scene *x, const tokens *t, int width, const int32_t *best)
{
    static const int32_t last[SCENE_ROWS] = {100, 3000, 2};
    const dms_paged *c = dms_cache_paged(x->cache);
    const dms_paged_rows rows = scene_rows(t);
    const dms_tensor recent = counts(x, last), most = counts(x, best ? best : last);
    scene_append(x, t);
    if (width)
        must(dms_paged_pool(c, &rows, width, 100));
    must(dms_paged_mark(c, &rows, &(dms_paged_kept){4, &recent, best ? &most : NULL}));
}

/* Averages of `width` where it is not 0, marks, compaction. best: [S], or NULL. */
static void keep(pair *p, int width, const int32_t *best)
{
    tokens t[2];
    for (int i = 0; i < 2; i++) {
        t[i] = scene_tokens(&p->sides[i], 7, 1);
        mark(&p->sides[i], &t[i], width, best);
    }
    expect_same(p);
    for (int i = 0; i < 2; i++) {
        const dms_paged_rows rows = scene_rows(&t[i]);
        must(dms_paged_compact(dms_cache_paged(p->sides[i].cache), &rows));
        tokens_close(&t[i]);
    }
    expect_same(p);
}

static const scene_shape shapes[] = {{16, 2, 3, 16, DMS_F32, 0}, {24, 2, 1, 32, DMS_BF16, 0}};

ParameterizedTestParameters(paged_long, slots_are_weighed_and_kept_as_on_the_cpu)
{
    return rig_devices();
}

/* Chunks over three parts of a unit, then single tokens over 17 and over 2. */
ParameterizedTest(dms_device_kind *kind, paged_long, slots_are_weighed_and_kept_as_on_the_cpu)
{
    static const int32_t best[SCENE_ROWS] = {300, 5, 1}, fewer[SCENE_ROWS] = {257, 0, 0};
    for (size_t i = 0; i < COUNT(shapes); i++) {
        pair p = pair_open(*kind, &shapes[i]);
        enter_all(&p);
        weigh(&p, 1, 40, (dms_paged_weights){.from = 4230, .add = true});
        weigh(&p, 5, 11, (dms_paged_weights){.add = true, .across = true});
        weigh(&p, 7, 1, (dms_paged_weights){.add = true});
        keep(&p, 7, best);
        weigh(&p, 7, 1, (dms_paged_weights){.across = true});
        keep(&p, 0, fewer);
        keep(&p, 0, NULL);
        pair_close(&p);
    }
}

ParameterizedTestParameters(paged_long, of_equal_scores_the_latest_are_kept)
{
    return rig_devices();
}

/* All scores are 0. */
ParameterizedTest(dms_device_kind *kind, paged_long, of_equal_scores_the_latest_are_kept)
{
    static const int32_t best[SCENE_ROWS] = {1000, 999, 3};
    pair p = pair_open(*kind, &shapes[1]);
    enter_all(&p);
    keep(&p, 0, best);
    copy y = copy_open(p.sides[1].cache);
    const int64_t unit = scene_unit(&p.sides[1], 0, 1);
    cr_assert_eq(y.c.live[unit], 4 + 1000 + 100);
    for (int slot = 0; slot < y.c.live[unit]; slot++) {
        const int position = slot_position(&y, unit, slot);
        cr_assert(position < 4 || position >= 4218 - 1100, "token %d was kept", position);
    }
    copy_close(&y);
    pair_close(&p);
}

/* The read set's pages as indices in the cache's own list: [live pages]. The caller frees it. */
static int *choose(scene *x, int pages, int sequence, int *live)
{
    const dms_paged *c = dms_cache_paged(x->cache);
    const int64_t unit = scene_unit(x, sequence, 1);
    const dms_tensor lists =
        rig_zero(&x->r, rig_shape_i32(SCENE_ROWS * SCENE_LAYERS * c->groups, c->unit_pages + 1));
    dms_paged chosen = *c;
    tokens t = scene_tokens(x, 7, 1);
    const dms_paged_rows rows = scene_rows(&t);
    chosen.unit_list = lists.data;
    chosen.live = chosen.unit_list + SCENE_ROWS * SCENE_LAYERS * c->groups * c->unit_pages;
    must(dms_paged_choose(&chosen, c, &rows, &t.q, pages));
    copy y = copy_open(x->cache);
    int32_t *read = copied(x->r.dev, lists.data, dms_tensor_bytes(&lists));
    const int32_t *all = y.c.unit_list + unit * c->unit_pages, *some = read + unit * c->unit_pages;
    int *index = calloc((size_t)c->unit_pages, sizeof(int));
    *live = read[chosen.live - chosen.unit_list + unit];
    for (int i = 0, p = 0; i * c->page_slots < *live && p * c->page_slots < y.c.live[unit]; p++)
        if (all[p] == some[i])
            index[i++] = p;
    free(read);
    copy_close(&y);
    tokens_close(&t);
    return index;
}

ParameterizedTestParameters(paged_long, pages_are_chosen_as_on_the_cpu)
{
    return rig_devices();
}

/* 264 pages of the longest, and bounds to the bit: choices differ only where products do. */
ParameterizedTest(dms_device_kind *kind, paged_long, pages_are_chosen_as_on_the_cpu)
{
    static const int budgets[] = {1, 2, 30, 256, 257, 263, 264, 300};
    pair p = pair_open(*kind, &shapes[0]);
    enter_all(&p);
    for (size_t i = 0; i < COUNT(budgets); i++)
        for (int sequence = 0; sequence < SCENE_ROWS; sequence++) {
            int live[2];
            int *want = choose(&p.sides[0], budgets[i], sequence, &live[0]);
            int *got = choose(&p.sides[1], budgets[i], sequence, &live[1]);
            const int count = (live[0] + 15) / 16;
            cr_assert_eq(live[1], live[0]);
            cr_assert_arr_eq(got, want, (size_t)count * sizeof(int));
            free(want);
            free(got);
        }
    expect_same(&p);
    pair_close(&p);
}
