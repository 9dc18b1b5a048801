/* Pages chosen by the bounds of their keys, and first tokens that move along with the cache's end,
 * against their definitions in double. */
#include "tests/paged_scene.h"

/* ---- bound ---------------------------------------------------------------------------------- */

/* Enters tokens and extends the bounds of their pages. */
static tokens enter_bounded(scene *x, unsigned which, int count)
{
    const tokens t = scene_tokens(x, which, count);
    const dms_paged_rows rows = scene_rows(&t);
    scene_append(x, &t);
    must(dms_paged_bound(dms_cache_paged(x->cache), &rows));
    return t;
}

static void enter_and_forget(scene *x, unsigned which, int count)
{
    const size_t mark = x->r.arena.used;
    tokens t = enter_bounded(x, which, count);
    tokens_close(&t);
    x->r.arena.used = mark;
}

/* Least and greatest stored key of each channel of the page that slot is the first of. */
static void expect_bounds(const copy *y, int64_t unit, int slot)
{
    const int width = y->c.head_dim, left = y->c.live[unit] - slot;
    const void *bounds = copy_page(y, unit, slot).bounds;
    for (int e = 0; e < width; e++) {
        float least = slot_key(y, unit, slot, e), greatest = least;
        for (int i = 1; i < left && i < y->c.page_slots; i++) {
            const float key = slot_key(y, unit, slot + i, e);
            least = key < least ? key : least;
            greatest = key > greatest ? key : greatest;
        }
        cr_assert_eq(stored(&y->c, bounds, e), least, "channel %d from slot %d", e, slot);
        cr_assert_eq(stored(&y->c, bounds, width + e), greatest, "channel %d from slot %d", e,
                     slot);
    }
}

static void expect_all_bounds(const scene *x)
{
    copy y = copy_open(x->cache);
    for (int s = 0; s < SCENE_ROWS; s++)
        for (int g = 0; g < x->s.groups; g++)
            for (int slot = 0; slot < y.c.live[scene_unit(x, s, g)]; slot += x->s.page_slots)
                expect_bounds(&y, scene_unit(x, s, g), slot);
    copy_close(&y);
}

static const scene_shape shapes[] = {
    {16, 1, 1, 16, DMS_F32, 900}, {32, 2, 3, 32, DMS_BF16, 900}, {80, 1, 7, 16, DMS_BF16, 900},
    {7, 3, 2, 16, DMS_F32, 900},  {128, 2, 4, 48, DMS_F32, 900},
};

ParameterizedTestParameters(paged_choose, bounds_hold_the_least_and_greatest_keys)
{
    return rig_devices();
}

/* Chunks that end in a page, at its end and after several; single tokens across its end; pages that
 * another sequence has left. */
ParameterizedTest(dms_device_kind *kind, paged_choose, bounds_hold_the_least_and_greatest_keys)
{
    for (size_t i = 0; i < COUNT(shapes); i++) {
        scene x = scene_open(*kind, 2, &shapes[i]);
        int sequence = 0;
        enter_and_forget(&x, 7, 90);
        must(dms_cache_release(x.cache, 1));
        must(dms_cache_admit(x.cache, &sequence));
        enter_and_forget(&x, 2, 5);
        enter_and_forget(&x, 3, 11);
        expect_all_bounds(&x);
        enter_and_forget(&x, 2, 100);
        for (int t = 0; t < 18; t++) {
            enter_and_forget(&x, 7, 1);
            expect_all_bounds(&x);
        }
        scene_close(&x);
    }
}

/* ---- choose --------------------------------------------------------------------------------- */

/* The read set of a cache: lists of its own. */
static dms_paged read_set(scene *x)
{
    dms_paged c = *dms_cache_paged(x->cache);
    const int64_t units = (int64_t)SCENE_ROWS * SCENE_LAYERS * x->s.groups;
    dms_tensor list = rig_shape_i32(units, c.unit_pages), live = rig_shape_i32(units, 1);
    list = rig_zero(&x->r, list);
    live = rig_zero(&x->r, live);
    c.unit_list = list.data;
    c.live = live.data;
    return c;
}

/* The bound of the page with index p of a unit. q: [R, E]. */
static double define_bound(const scene *x, const copy *y, int64_t unit, int p, const float *q)
{
    const int width = x->s.head_dim;
    const void *bounds = copy_page(y, unit, p * y->c.page_slots).bounds;
    double most = -INFINITY;
    for (int r = 0; r < x->s.reps; r++) {
        double sum = 0;
        for (int e = 0; e < width; e++)
            sum += fmax((double)q[r * width + e] * (double)stored(&y->c, bounds, e),
                        (double)q[r * width + e] * (double)stored(&y->c, bounds, width + e));
        most = fmax(most, sum);
    }
    return most;
}

/* chosen: the unit's list and its slots on the host. Sums of 128 products in f32: pages whose
 * bounds differ by less than 1e-4 may change places. */
static void expect_chosen(const scene *x, const copy *y, int64_t unit, const copy *chosen,
                          const float *q, int pages)
{
    const int32_t *all = y->c.unit_list + unit * y->c.unit_pages;
    const int32_t *some = chosen->c.unit_list + unit * y->c.unit_pages;
    const int slots = y->c.page_slots, live = y->c.live[unit], n = (live + slots - 1) / slots;
    const int read = n < pages ? n : pages;
    double least = INFINITY, left_out = -INFINITY;
    int listed = 0;
    cr_assert_eq(chosen->c.live[unit], live - (n - read) * slots);
    for (int p = 0; p < n; p++) {
        const double bound = define_bound(x, y, unit, p, q);
        const bool is_listed = listed < read && some[listed] == all[p];
        listed += is_listed;
        if (p == n - 1)
            cr_assert(is_listed, "the last page is read");
        else if (is_listed)
            least = fmin(least, bound);
        else
            left_out = fmax(left_out, bound);
    }
    cr_assert_eq(listed, read, "pages in the order of the cache: %d, expected %d", listed, read);
    cr_assert(left_out <= least + 1e-4, "a page with bound %g is left out, one with %g is read",
              left_out, least);
}

/* o of one head over the slots of a unit, for a query q: [E]. */
static void define_attention(const copy *y, int64_t unit, const float *q, double *o)
{
    double total = 0;
    memset(o, 0, (size_t)y->c.head_dim * sizeof(double));
    for (int slot = 0; slot < y->c.live[unit]; slot++) {
        const double weight = exp(scene_score(y, unit, slot, q));
        total += weight;
        for (int e = 0; e < y->c.head_dim; e++)
            o[e] += weight * (double)slot_value(y, unit, slot, e);
    }
    for (int e = 0; e < y->c.head_dim; e++)
        o[e] /= total;
}

/* A host copy that reads the lists of the read set. */
static copy chosen_copy(const scene *x, const copy *y, const dms_paged *chosen)
{
    const size_t units = (size_t)(SCENE_ROWS * SCENE_LAYERS * x->s.groups);
    copy z = *y;
    z.c.unit_list = copied(x->r.dev, chosen->unit_list, units * (size_t)chosen->unit_pages * 4);
    z.c.live = copied(x->r.dev, chosen->live, units * 4);
    return z;
}

/* Attention of the tokens over the read set, and what it counts. */
static void expect_read(scene *x, const tokens *t, const dms_paged *chosen, const copy *read)
{
    const int width = x->s.head_dim, heads = x->s.groups * x->s.reps;
    const dms_paged_rows rows = scene_rows(t);
    dms_tensor o = rig_empty(&x->r, t->q);
    int64_t slots = 0;
    must(dms_paged_attention(&o, chosen, &rows, &t->q));
    float *q = rig_read(&t->q), *want = malloc(dms_tensor_bytes(&o));
    for (int i = 0; i < t->n * heads; i++) {
        const int64_t unit = scene_unit(x, t->sequences[i / heads], i % heads / x->s.reps);
        double value[128];
        define_attention(read, unit, q + i * width, value);
        for (int e = 0; e < width; e++)
            want[i * width + e] = (float)value[e];
        slots += i % x->s.reps ? 0 : read->c.live[unit];
    }
    rig_expect("o", &o, want, 1e-5f, 1e-5f);
    copy after = copy_open(x->cache);
    cr_assert_eq(after.counters[DMS_PAGED_READS], read->counters[DMS_PAGED_READS] + slots);
    copy_close(&after);
    free(q);
    free(want);
}

static void choose_pages(scene *x, const tokens *t, int pages)
{
    const int64_t row = (int64_t)x->s.reps * x->s.head_dim;
    const size_t mark = x->r.arena.used;
    const dms_paged chosen = read_set(x);
    const dms_paged_rows rows = scene_rows(t);
    copy y = copy_open(x->cache);
    int64_t bounds = 0;
    must(dms_paged_choose(&chosen, dms_cache_paged(x->cache), &rows, &t->q, pages));
    copy read = chosen_copy(x, &y, &chosen);
    float *q = rig_read(&t->q);
    for (int b = 0; b < t->n; b++)
        for (int g = 0; g < x->s.groups; g++) {
            const int64_t unit = scene_unit(x, t->sequences[b], g);
            const int n = (y.c.live[unit] + x->s.page_slots - 1) / x->s.page_slots;
            expect_chosen(x, &y, unit, &read, q + (b * x->s.groups + g) * row, pages);
            bounds += n > pages ? n - 1 : 0;
        }
    dms_cache_stats stats;
    must(dms_cache_measure(&stats, x->cache));
    cr_assert_eq(stats.bound_reads, y.counters[DMS_PAGED_BOUNDS] + bounds);
    expect_read(x, t, &chosen, &read);
    free(q);
    free(read.c.unit_list);
    free(read.c.live);
    copy_close(&y);
    x->r.arena.used = mark;
}

ParameterizedTestParameters(paged_choose, reads_the_pages_with_the_greatest_bounds)
{
    return rig_devices();
}

/* Caches of up to 64 pages, the last one full, begun, of one slot. */
ParameterizedTest(dms_device_kind *kind, paged_choose, reads_the_pages_with_the_greatest_bounds)
{
    for (size_t i = 0; i < COUNT(shapes); i++) {
        scene x = scene_open(*kind, 2, &shapes[i]);
        enter_and_forget(&x, 1, 1);
        enter_and_forget(&x, 2, 1023 - 2 * (int)i);
        enter_and_forget(&x, 4, 95);
        for (int step = 0; step < 3; step++) {
            tokens t = enter_bounded(&x, step == 1 ? 5 : 7, 1);
            static const int budgets[] = {1, 2, 6, 7, 20, 63, 64, 69};
            for (size_t j = 0; j < COUNT(budgets); j++)
                choose_pages(&x, &t, budgets[j]);
            tokens_close(&t);
        }
        scene_close(&x);
    }
}

ParameterizedTestParameters(paged_choose, takes_the_later_of_pages_with_equal_bounds)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, paged_choose, takes_the_later_of_pages_with_equal_bounds)
{
    scene x = scene_open(*kind, 2, &shapes[1]);
    x.constant = true;
    enter_and_forget(&x, 7, 200);
    tokens t = enter_bounded(&x, 7, 1);
    const dms_paged chosen = read_set(&x);
    const dms_paged_rows rows = scene_rows(&t);
    must(dms_paged_choose(&chosen, dms_cache_paged(x.cache), &rows, &t.q, 4));
    copy y = copy_open(x.cache), read = chosen_copy(&x, &y, &chosen);
    for (int s = 0; s < SCENE_ROWS; s++)
        for (int g = 0; g < x.s.groups; g++) {
            const int64_t at = scene_unit(&x, s, g) * y.c.unit_pages;
            cr_assert_arr_eq(read.c.unit_list + at, y.c.unit_list + at + 3, 4 * sizeof(int32_t));
        }
    free(read.c.unit_list);
    free(read.c.live);
    copy_close(&y);
    tokens_close(&t);
    scene_close(&x);
}

/* ---- turn ----------------------------------------------------------------------------------- */

enum { FIRST = 4, LAST = 20, POSITIONS = 700 };

static double angle(int position, int j, int width)
{
    return position * pow(10000.0, -2.0 * j / width);
}

static dms_tensor rope_table(scene *x)
{
    const int width = x->s.head_dim, half = width / 2;
    float *host = malloc((size_t)(POSITIONS * width) * sizeof(float));
    for (int p = 0; p < POSITIONS; p++)
        for (int j = 0; j < half; j++) {
            host[p * width + j] = (float)cos(angle(p, j, width));
            host[p * width + half + j] = (float)sin(angle(p, j, width));
        }
    const dms_tensor table = rig_upload(&x->r, rig_shape(POSITIONS, width, 0, 0), host);
    free(host);
    return table;
}

/* Channel e of the key of a token, as RoPE at `position` has it. */
static double rotated(const scene *x, int sequence, int token, int g, int e, int position)
{
    const int width = x->s.head_dim, half = width / 2, j = e % half;
    const double low = scene_value(SCENE_K, sequence, token, g * width + j);
    const double high = scene_value(SCENE_K, sequence, token, g * width + half + j);
    const double c = cos(angle(position, j, width)), s = sin(angle(position, j, width));
    return e < half ? low * c - high * s : high * c + low * s;
}

/* Two tables of f32 cosines, each within 6e-8, and their products: 1e-6. One rounding to bf16, of
 * at most sqrt(2): 2^-8. All slots but the first are where they were. */
static void expect_turned(const scene *x)
{
    const double bound = x->s.dtype == DMS_BF16 ? 0x1p-8 : 1e-6;
    copy y = copy_open(x->cache);
    for (int s = 0; s < SCENE_ROWS; s++)
        for (int g = 0; g < x->s.groups; g++) {
            const int64_t unit = scene_unit(x, s, g);
            const int count = (int)dms_cache_tokens(x->cache, s), live = y.c.live[unit];
            for (int slot = 0; slot < live; slot++) {
                const int token = slot_position(&y, unit, slot);
                const int seems = token < FIRST ? token + count - live : token;
                cr_assert(slot >= FIRST || token == slot);
                for (int e = 0; e < x->s.head_dim; e++)
                    cr_assert_float_eq(slot_key(&y, unit, slot, e),
                                       rotated(x, s, token, g, e, seems), bound,
                                       "token %d of %d channel %d", token, count, e);
            }
        }
    copy_close(&y);
}

typedef struct {
    dms_tensor table, kept, last;
} stream;

/* Enters tokens, drops all but the first and the last, turns the first. */
static void stream_tokens(scene *x, stream *m, unsigned which, int count)
{
    const size_t mark = x->r.arena.used;
    tokens t = scene_tokens(x, which, count);
    const dms_paged_rows rows = scene_rows(&t);
    const dms_paged *c = dms_cache_paged(x->cache);
    const dms_rope_spec spec = {.table = &m->table, .ids = &t.on_device[1], .keep = 1};
    must(dms_rope(&(dms_rope_out){.y = &t.k}, &t.k, &spec));
    scene_append(x, &t);
    must(dms_paged_mark(c, &rows, &(dms_paged_kept){FIRST, &m->last, NULL}));
    must(dms_paged_compact(c, &rows));
    must(dms_paged_turn(c, &rows, &m->kept, &t.k, &m->table));
    tokens_close(&t);
    x->r.arena.used = mark;
}

static stream stream_open(scene *x)
{
    static const int32_t last[SCENE_ROWS] = {LAST, LAST, LAST + 9};
    const int64_t units = (int64_t)SCENE_ROWS * SCENE_LAYERS * x->s.groups;
    dms_tensor shape = rig_shape(SCENE_ROWS, 0, 0, 0);
    shape.dtype = DMS_I32;
    return (stream){rope_table(x), rig_zero(&x->r, rig_shape(units, FIRST, x->s.head_dim, 0)),
                    rig_upload(&x->r, shape, last)};
}

ParameterizedTestParameters(paged_choose, first_keys_are_those_of_their_new_positions)
{
    return rig_devices();
}

/* First tokens that come in one chunk, in two, one by one; 500 steps. */
ParameterizedTest(dms_device_kind *kind, paged_choose, first_keys_are_those_of_their_new_positions)
{
    static const scene_shape turned[] = {{16, 2, 1, 16, DMS_F32, 0}, {6, 1, 1, 16, DMS_BF16, 0}};
    for (size_t i = 0; i < COUNT(turned); i++) {
        scene x = scene_open(*kind, 2, &turned[i]);
        stream m = stream_open(&x);
        stream_tokens(&x, &m, 1, 60);
        stream_tokens(&x, &m, 2, 2);
        stream_tokens(&x, &m, 2, 33);
        for (int t = 0; t < 500; t++) {
            stream_tokens(&x, &m, 7, 1);
            if (t % 50 == 3)
                expect_turned(&x);
        }
        expect_turned(&x);
        copy y = copy_open(x.cache);
        cr_assert_eq(y.c.live[scene_unit(&x, 0, 0)], FIRST + LAST);
        cr_assert_eq(y.c.live[scene_unit(&x, 2, 0)], FIRST + LAST + 9);
        copy_close(&y);
        scene_close(&x);
    }
}

/* ---- refusals ------------------------------------------------------------------------------- */

static void refuse_choices(scene *x, const tokens *t)
{
    const dms_paged_rows rows = scene_rows(t);
    const dms_paged *c = dms_cache_paged(x->cache);
    dms_paged plain = *c, chosen = read_set(x), other = chosen;
    const dms_tensor narrow = rig_empty(&x->r, rig_shape(t->n, 1, 40, 0));
    plain.bounded = false;
    other.unit_pages++;
    rig_expect_failure(dms_paged_bound(&plain, &rows), DMS_ERR_ARG, "pages are bounded");
    rig_expect_failure(dms_paged_choose(&chosen, &plain, &rows, &t->q, 3), DMS_ERR_ARG,
                       "pages are bounded");
    rig_expect_failure(dms_paged_choose(&other, c, &rows, &t->q, 3), DMS_ERR_SHAPE,
                       "the read set is of [3, 2, 2] units of 76 pages, the cache of [3, 2, 2] of "
                       "75");
    rig_expect_failure(dms_paged_choose(c, c, &rows, &t->q, 3), DMS_ERR_ARG,
                       "has the lists of its cache");
    rig_expect_failure(dms_paged_choose(&chosen, c, &rows, &narrow, 3), DMS_ERR_SHAPE,
                       "q has 40 channels");
    rig_expect_failure(dms_paged_choose(&chosen, c, &rows, &t->q, 0), DMS_ERR_ARG,
                       "0 pages are to be read");
}

static void refuse_turns(scene *x, const tokens *t)
{
    const dms_paged_rows rows = scene_rows(t);
    const dms_paged *c = dms_cache_paged(x->cache);
    dms_tensor kept = rig_zero(&x->r, rig_shape(12, 4, 16, 0));
    dms_tensor few = rig_zero(&x->r, rig_shape(6, 4, 16, 0));
    dms_tensor flat = rig_zero(&x->r, rig_shape(12, 64, 0, 0));
    const dms_tensor table = rig_zero(&x->r, rig_shape(9, 16, 0, 0));
    const dms_tensor narrow = rig_zero(&x->r, rig_shape(9, 8, 0, 0));
    rig_expect_failure(dms_paged_turn(c, &rows, &few, &t->k, &table), DMS_ERR_SHAPE,
                       "kept is [6, 4, 16] f32, expected [12, 4, 16] f32");
    rig_expect_failure(dms_paged_turn(c, &rows, &flat, &t->k, &table), DMS_ERR_SHAPE,
                       "kept has 2 dimensions");
    rig_expect_failure(dms_paged_turn(c, &rows, &kept, &t->k, &narrow), DMS_ERR_SHAPE,
                       "table is [9, 8] f32, expected [9, 16] f32");
    rig_expect_failure(dms_paged_turn(c, &rows, &kept, &t->q, &table), DMS_ERR_SHAPE,
                       "k is [2, 1, 96] f32, expected [2, 1, 32] f32");
}

ParameterizedTestParameters(paged_choose, refuses_what_it_cannot_choose_or_turn)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, paged_choose, refuses_what_it_cannot_choose_or_turn)
{
    const scene_shape s = {16, 2, 3, 16, DMS_F32, 0};
    scene x = scene_open(*kind, 2, &s);
    tokens t = enter_bounded(&x, 3, 1), two = scene_tokens(&x, 3, 2);
    const dms_paged_rows rows = scene_rows(&two);
    const dms_paged chosen = read_set(&x);
    refuse_choices(&x, &t);
    refuse_turns(&x, &t);
    rig_expect_failure(dms_paged_choose(&chosen, dms_cache_paged(x.cache), &rows, &two.q, 3),
                       DMS_ERR_SHAPE, "q has 2 tokens a row, expected 1");
    tokens_close(&t);
    tokens_close(&two);
    scene_close(&x);
}

/* What the host of a GPU does not see. */
Test(paged_choose, the_cpu_refuses_more_dropped_tokens_than_the_table_has_positions)
{
    const scene_shape s = {16, 2, 1, 16, DMS_F32, 0};
    scene x = scene_open(DMS_CPU, 2, &s);
    stream m = stream_open(&x);
    stream_tokens(&x, &m, 1, 60);
    tokens t = scene_tokens(&x, 1, 1);
    const dms_paged_rows rows = scene_rows(&t);
    scene_append(&x, &t);
    const dms_tensor table = rig_zero(&x.r, rig_shape(36, 16, 0, 0));
    rig_expect_failure(dms_paged_turn(dms_cache_paged(x.cache), &rows, &m.kept, &t.k, &table),
                       DMS_ERR_ARG, "36 tokens were dropped, the table has 36 positions");
    tokens_close(&t);
    scene_close(&x);
}
