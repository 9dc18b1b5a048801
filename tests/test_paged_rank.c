/* Scores of slots against their definitions in double: attention received, averages, what is kept
 * by them. */
#include "tests/paged_scene.h"

/* ---- weigh ---------------------------------------------------------------------------------- */

/* Adds the probabilities of query i of row b, head h, to sum: [live], as dms_paged_attention has
 * them. */
static void add_probabilities(const scene *x, const copy *y, const tokens *t, int b, int i, int h,
                              const float *q, double *sum)
{
    const int64_t unit = scene_unit(x, t->sequences[b], h / x->s.reps);
    const int live = y->c.live[unit], now = t->positions[b * t->count + i];
    double *weight = calloc((size_t)live, sizeof(double)), total = 0;
    for (int slot = 0; slot < live; slot++) {
        const bool visible =
            t->count == 1 || dms_is_visible(now, slot_position(y, unit, slot), x->s.window,
                                            slot_evicted(y, unit, slot));
        weight[slot] = visible ? exp(scene_score(y, unit, slot, q)) : 0;
        total += weight[slot];
    }
    for (int slot = 0; slot < live; slot++)
        sum[slot] += weight[slot] / total;
    free(weight);
}

/* What the slots of row b, head g, receive: sum [live]. */
static void define_received(const scene *x, const copy *y, const tokens *t,
                            const dms_paged_weights *w, int b, int g, double *sum)
{
    const int reps = x->s.reps, heads = x->s.groups * reps, width = x->s.head_dim;
    const int from = w->across ? 0 : g * reps, to = w->across ? heads : from + reps;
    float *q = rig_read(&t->q);
    for (int i = 0; i < t->count; i++)
        for (int h = from; h < to && t->positions[b * t->count + i] >= w->from; h++)
            add_probabilities(x, y, t, b, i, h,
                              q + ((b * t->count + i) * heads + h) * (int64_t)width, sum);
    for (int slot = 0; w->across && slot < y->c.live[scene_unit(x, t->sequences[b], g)]; slot++)
        sum[slot] /= heads;
    free(q);
}

/* Sums of f32 of at most 120*9 probabilities: 1e-5 relative to the sum and to 1. */
static void expect_received(const scene *x, const copy *was, const copy *is, const tokens *t,
                            const dms_paged_weights *w)
{
    for (int b = 0; b < t->n; b++)
        for (int g = 0; g < x->s.groups; g++) {
            const int64_t unit = scene_unit(x, t->sequences[b], g);
            double *sum = calloc((size_t)was->c.live[unit], sizeof(double));
            define_received(x, was, t, w, b, g, sum);
            for (int slot = 0; slot < was->c.live[unit]; slot++) {
                const double want = sum[slot] + (w->add ? slot_score(was, unit, slot) : 0);
                const double got = slot_score(is, unit, slot);
                cr_assert(fabs(got - want) <= 1e-5 + 1e-5 * want,
                          "sequence %d head %d slot %d: %g, expected %g", t->sequences[b], g, slot,
                          got, want);
            }
            free(sum);
        }
}

/* Units outside the batch are as they were. */
static void expect_others(const scene *x, const copy *was, const copy *is, const tokens *t)
{
    for (int s = 0; s < SCENE_ROWS; s++) {
        bool inside = false;
        for (int b = 0; b < t->n; b++)
            inside |= t->sequences[b] == s;
        for (int g = 0; !inside && g < x->s.groups; g++)
            for (int slot = 0; slot < was->c.live[scene_unit(x, s, g)]; slot++)
                cr_assert_eq(slot_score(is, scene_unit(x, s, g), slot),
                             slot_score(was, scene_unit(x, s, g), slot));
    }
}

static void weigh_tokens(scene *x, unsigned which, int count, dms_paged_weights w)
{
    const size_t mark = x->r.arena.used;
    tokens t = scene_tokens(x, which, count);
    const dms_paged_rows rows = scene_rows(&t);
    scene_append(x, &t);
    copy was = copy_open(x->cache);
    must(dms_paged_weigh(dms_cache_paged(x->cache), &rows, &t.q, &w));
    copy is = copy_open(x->cache);
    expect_received(x, &was, &is, &t, &w);
    expect_others(x, &was, &is, &t);
    if (count > 1)
        must(dms_paged_compact(dms_cache_paged(x->cache), &rows));
    copy_close(&was);
    copy_close(&is);
    tokens_close(&t);
    x->r.arena.used = mark;
}

/* Sequences of different lengths, chunks of one block of queries and of five, single tokens over
 * one part of a unit and over two; all tokens counted, some, none. */
static void weigh_script(scene *x, bool across)
{
    const dms_paged_weights all = {.add = true, .across = across};
    const dms_paged_weights late = {.from = 60, .add = true, .across = across};
    weigh_tokens(x, 1, 40, all);
    weigh_tokens(x, 4, 16, all);
    weigh_tokens(x, 2, 300, (dms_paged_weights){.from = 180, .add = true, .across = across});
    weigh_tokens(x, 7, 70, late);
    for (int i = 0; i < 3; i++)
        weigh_tokens(x, 5, 1, all);
    weigh_tokens(x, 2, 5, (dms_paged_weights){.from = 374, .across = across});
    weigh_tokens(x, 7, 2, (dms_paged_weights){.from = 114, .add = true, .across = across});
    weigh_tokens(x, 7, 1, (dms_paged_weights){.from = 100, .add = true, .across = across});
    weigh_tokens(x, 7, 1, (dms_paged_weights){.across = across});
    weigh_tokens(x, 7, 1, all);
}

static const scene_shape weigh_shapes[] = {
    {16, 1, 1, 16, DMS_F32, 0},  {32, 2, 3, 32, DMS_BF16, 7},   {80, 1, 7, 16, DMS_BF16, 20},
    {7, 3, 2, 16, DMS_F32, 900}, {64, 2, 4, 48, DMS_BF16, 900}, {128, 1, 9, 16, DMS_F32, 30},
};

ParameterizedTestParameters(paged_rank, adds_up_the_attention_that_each_slot_received)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, paged_rank, adds_up_the_attention_that_each_slot_received)
{
    for (size_t i = 0; i < COUNT(weigh_shapes); i++) {
        scene x = scene_open(*kind, 2, &weigh_shapes[i]);
        x.evicts = true;
        weigh_script(&x, false);
        scene_close(&x);
    }
}

ParameterizedTestParameters(paged_rank, gives_every_group_the_mean_over_all_heads)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, paged_rank, gives_every_group_the_mean_over_all_heads)
{
    for (size_t i = 0; i < COUNT(weigh_shapes); i++) {
        scene x = scene_open(*kind, 2, &weigh_shapes[i]);
        weigh_script(&x, true);
        scene_close(&x);
    }
}

/* The scores of sequence 1 after a chunk and some single tokens, in a batch with others or alone:
 * [live] of head 0. The caller frees it. */
static float *scores_of_one(dms_device_kind kind, int threads, unsigned with, bool across)
{
    const scene_shape s = {32, 2, 3, 16, DMS_BF16, 900};
    const dms_paged_weights w = {.add = true, .across = across};
    scene x = scene_open(kind, threads, &s);
    for (int i = 0; i < 6; i++) {
        tokens t = scene_tokens(&x, i ? with : 7, i ? 1 : 600);
        const dms_paged_rows rows = scene_rows(&t);
        scene_append(&x, &t);
        must(dms_paged_weigh(dms_cache_paged(x.cache), &rows, &t.q, &w));
        tokens_close(&t);
    }
    copy y = copy_open(x.cache);
    const int64_t unit = scene_unit(&x, 1, 0);
    float *scores = malloc((size_t)y.c.live[unit] * sizeof(float));
    for (int i = 0; i < y.c.live[unit]; i++)
        scores[i] = slot_score(&y, unit, i);
    copy_close(&y);
    scene_close(&x);
    return scores;
}

ParameterizedTestParameters(paged_rank, scores_depend_neither_on_threads_nor_on_the_batch)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, paged_rank,
                  scores_depend_neither_on_threads_nor_on_the_batch)
{
    for (int across = 0; across < 2; across++) {
        float *want = scores_of_one(*kind, 1, 7, across);
        float *threads = scores_of_one(*kind, 5, 7, across);
        float *alone = scores_of_one(*kind, 3, 2, across);
        cr_assert_arr_eq(threads, want, 605 * sizeof(float));
        cr_assert_arr_eq(alone, want, 605 * sizeof(float));
        free(want);
        free(threads);
        free(alone);
    }
}

/* ---- pool ----------------------------------------------------------------------------------- */

static float mixed(int position)
{
    return scene_value(SCENE_Z, 7, position, 3);
}

static double define_pool(const copy *y, int64_t unit, int i, int width, int n)
{
    double sum = 0;
    for (int j = i - width / 2; j <= i + width / 2; j++)
        sum += j >= 0 && j < n ? (double)slot_score(y, unit, j) : 0;
    return sum / width;
}

static void pool_slots(scene *x, const tokens *t, int width, int last)
{
    const dms_paged_rows rows = scene_rows(t);
    for (int s = 0; s < SCENE_ROWS; s++)
        for (int g = 0; g < x->s.groups; g++)
            scene_put_scores(x, scene_unit(x, s, g), mixed);
    copy was = copy_open(x->cache);
    must(dms_paged_pool(dms_cache_paged(x->cache), &rows, width, last));
    copy is = copy_open(x->cache);
    for (int s = 0; s < SCENE_ROWS; s++)
        for (int g = 0; g < x->s.groups; g++) {
            const int64_t unit = scene_unit(x, s, g);
            const int n = was.c.live[unit] - last;
            for (int i = 0; i < was.c.live[unit]; i++) {
                const double want =
                    i < n ? define_pool(&was, unit, i, width, n) : slot_score(&was, unit, i);
                cr_assert_float_eq(slot_score(&is, unit, i), want, 1e-6, "slot %d of %d", i, n);
            }
        }
    copy_close(&was);
    copy_close(&is);
}

ParameterizedTestParameters(paged_rank, averages_scores_with_those_of_neighbours)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, paged_rank, averages_scores_with_those_of_neighbours)
{
    static const int widths[] = {1, 3, 7, 63, 999}, lasts[] = {0, 1, 16, 40, 1000};
    const scene_shape s = {16, 2, 1, 16, DMS_BF16, 900};
    scene x = scene_open(*kind, 2, &s);
    tokens filled[3] = {scene_tokens(&x, 1, 39), scene_tokens(&x, 2, 95), scene_tokens(&x, 4, 2)};
    for (int i = 0; i < 3; i++)
        scene_append(&x, &filled[i]);
    tokens t = scene_tokens(&x, 7, 1);
    scene_append(&x, &t);
    for (size_t i = 0; i < COUNT(widths); i++)
        for (size_t j = 0; j < COUNT(lasts); j++)
            pool_slots(&x, &t, widths[i], lasts[j]);
    for (int i = 0; i < 3; i++)
        tokens_close(&filled[i]);
    tokens_close(&t);
    scene_close(&x);
}

/* ---- mark ----------------------------------------------------------------------------------- */

static float tied(int position)
{
    return (float)(position % 3 - 1);
}

static float zeros(int position)
{
    return position % 2 ? -0.0f : 0.0f;
}

static float broken(int position)
{
    return position % 2 ? NAN : -NAN;
}

/* Best of those that compete: none, one, all but one, all, more than there are. */
typedef enum { NONE, ONE, MOST, ALL, MORE, BUDGETS } budget;

typedef struct {
    int first, last;
    budget best;
    bool scored; /* best is given */
    float (*score)(int position);
} mark_case;

static int competitors(const mark_case *m, int count)
{
    const int n = count - m->last - m->first;
    return n > 0 ? n : 0;
}

static int best_of(const mark_case *m, int count)
{
    const int n = competitors(m, count);
    const int best[BUDGETS] = {0, 1, n > 0 ? n - 1 : 0, n, n + 5};
    return m->scored ? best[m->best] : 0;
}

static bool keeps(const mark_case *m, int count, int position)
{
    int better = 0;
    if (position < m->first || position >= count - m->last)
        return true;
    for (int i = m->first; i < count - m->last; i++)
        better +=
            m->score(i) > m->score(position) || (m->score(i) == m->score(position) && i > position);
    return better < best_of(m, count);
}

/* 4, 33 and 64 tokens, and one more of each, in the returned batch. */
static tokens mark_fill(scene *x)
{
    const int counts[] = {4, 33, 64};
    for (int i = 0; i < 3; i++) {
        tokens t = scene_tokens(x, 1u << i, counts[i]);
        scene_append(x, &t);
        tokens_close(&t);
    }
    const tokens t = scene_tokens(x, 7, 1);
    scene_append(x, &t);
    return t;
}

static void mark_tokens(scene *x, const tokens *t, const mark_case *m)
{
    int32_t last[SCENE_ROWS], best[SCENE_ROWS];
    for (int s = 0; s < SCENE_ROWS; s++) {
        last[s] = m->last;
        best[s] = best_of(m, (int)dms_cache_tokens(x->cache, s));
        for (int g = 0; g < x->s.groups; g++)
            scene_put_scores(x, scene_unit(x, s, g), m->score);
    }
    dms_tensor shape = rig_shape(SCENE_ROWS, 0, 0, 0);
    shape.dtype = DMS_I32;
    const dms_tensor lasts = rig_upload(&x->r, shape, last);
    const dms_tensor bests = rig_upload(&x->r, shape, best);
    const dms_paged_rows rows = scene_rows(t);
    const dms_paged_kept kept = {m->first, &lasts, m->scored ? &bests : NULL};
    must(dms_paged_mark(dms_cache_paged(x->cache), &rows, &kept));
}

/* Every slot is its token's, whole, with its score: slot by slot. */
static void expect_tokens(const scene *x, const copy *y, int sequence, int64_t unit, int g,
                          const mark_case *m)
{
    const int count = (int)dms_cache_tokens(x->cache, sequence);
    for (int slot = 0; slot < y->c.live[unit]; slot++) {
        const int position = slot_position(y, unit, slot);
        cr_assert_eq(slot_evicted(y, unit, slot), !keeps(m, count, position),
                     "token %d of %d, first %d last %d best %d", position, count, m->first, m->last,
                     best_of(m, count));
        cr_assert_eq(slot_score(y, unit, slot), m->score(position));
        for (int e = 0; e < x->s.head_dim; e++) {
            const int channel = g * x->s.head_dim + e;
            float k = scene_value(SCENE_K, sequence, position, channel);
            float v = scene_value(SCENE_V, sequence, position, channel);
            if (x->s.dtype == DMS_BF16) {
                k = dms_bf16_to_f32(dms_bf16_from_f32(k));
                v = dms_bf16_to_f32(dms_bf16_from_f32(v));
            }
            cr_assert_eq(slot_key(y, unit, slot, e), k);
            cr_assert_eq(slot_value(y, unit, slot, e), v);
        }
    }
}

/* Live slots: what is kept, and the newest token, which waits for its successor. */
static int kept_slots(const mark_case *m, int count)
{
    int n = 0;
    for (int i = 0; i < count; i++)
        n += i == count - 1 || keeps(m, count, i);
    return n;
}

static void expect_marked(const scene *x, const mark_case *m, bool compacted)
{
    copy y = copy_open(x->cache);
    for (int s = 0; s < SCENE_ROWS; s++)
        for (int g = 0; g < x->s.groups; g++) {
            const int64_t unit = scene_unit(x, s, g);
            const int count = (int)dms_cache_tokens(x->cache, s);
            cr_assert_eq(y.c.live[unit], compacted ? kept_slots(m, count) : count);
            expect_tokens(x, &y, s, unit, g, m);
        }
    copy_close(&y);
}

/* The token after: takes the slot of its predecessor where that one is dropped, and is new. */
static void expect_successor(scene *x, const mark_case *m)
{
    tokens t = scene_tokens(x, 7, 1);
    scene_append(x, &t);
    copy y = copy_open(x->cache);
    for (int s = 0; s < SCENE_ROWS; s++) {
        const int count = (int)dms_cache_tokens(x->cache, s) - 1;
        const int64_t unit = scene_unit(x, s, 0);
        const int slots = kept_slots(m, count) + keeps(m, count, count - 1);
        bool seen = false;
        cr_assert_eq(y.c.live[unit], slots, "%d slots, expected %d", y.c.live[unit], slots);
        for (int slot = 0; slot < slots; slot++) {
            const bool is_new = slot_position(&y, unit, slot) == count;
            seen |= is_new;
            cr_assert_eq(slot_score(&y, unit, slot),
                         is_new ? 0 : m->score(slot_position(&y, unit, slot)));
        }
        cr_assert(seen);
    }
    copy_close(&y);
    tokens_close(&t);
}

static void mark_and_compact(dms_device_kind kind, const scene_shape *s, const mark_case *m)
{
    scene x = scene_open(kind, 2, s);
    tokens t = mark_fill(&x);
    const dms_paged_rows rows = scene_rows(&t);
    mark_tokens(&x, &t, m);
    expect_marked(&x, m, false);
    must(dms_paged_compact(dms_cache_paged(x.cache), &rows));
    expect_marked(&x, m, true);
    expect_successor(&x, m);
    tokens_close(&t);
    scene_close(&x);
}

ParameterizedTestParameters(paged_rank, keeps_the_first_the_last_and_the_best)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, paged_rank, keeps_the_first_the_last_and_the_best)
{
    static const scene_shape shapes[] = {{16, 2, 1, 16, DMS_F32, 0}, {8, 1, 1, 32, DMS_BF16, 0}};
    static const int ends[][2] = {{0, 0}, {0, 4}, {3, 0}, {2, 7}, {2, 1000}};
    static float (*const scores[])(int) = {mixed, tied, zeros};
    for (size_t e = 0; e < COUNT(ends); e++)
        for (int i = 0; i < BUDGETS * (int)COUNT(scores); i++) {
            const mark_case m = {ends[e][0], ends[e][1], (budget)(i % BUDGETS), true,
                                 scores[i / BUDGETS]};
            mark_and_compact(*kind, &shapes[(size_t)i % COUNT(shapes)], &m);
        }
    mark_and_compact(*kind, &shapes[0], &(mark_case){.first = 4, .last = 9, .score = mixed});
}

ParameterizedTestParameters(paged_rank, scores_that_are_no_numbers_hang_nothing)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, paged_rank, scores_that_are_no_numbers_hang_nothing)
{
    const scene_shape s = {8, 1, 1, 16, DMS_F32, 0};
    const mark_case m = {1, 1, ONE, true, broken};
    scene x = scene_open(*kind, 2, &s);
    tokens t = mark_fill(&x);
    const dms_paged_rows rows = scene_rows(&t);
    mark_tokens(&x, &t, &m);
    must(dms_paged_compact(dms_cache_paged(x.cache), &rows));
    copy y = copy_open(x.cache);
    for (int i = 0; i < SCENE_ROWS; i++)
        cr_assert(y.c.live[scene_unit(&x, i, 0)] >= 2);
    copy_close(&y);
    tokens_close(&t);
    scene_close(&x);
}

/* ---- refusals ------------------------------------------------------------------------------- */

/* The same cache without scores. */
static dms_paged unscored(const scene *x)
{
    dms_paged c = *dms_cache_paged(x->cache);
    c.scored = false;
    return c;
}

static void refuse_kept(scene *x, const dms_paged_rows *rows)
{
    const dms_paged *c = dms_cache_paged(x->cache), plain = unscored(x);
    dms_tensor few = rig_empty(&x->r, rig_shape_i32(2, 1));
    few.rank = 1;
    dms_tensor all = rig_shape(SCENE_ROWS, 0, 0, 0);
    const dms_tensor floats = rig_zero(&x->r, all);
    all.dtype = DMS_I32;
    const dms_tensor last = rig_zero(&x->r, all);
    rig_expect_failure(dms_paged_mark(c, rows, &(dms_paged_kept){0, &few, NULL}), DMS_ERR_SHAPE,
                       "last is [2] i32, expected [3] i32");
    rig_expect_failure(dms_paged_mark(c, rows, &(dms_paged_kept){0, &last, &floats}), DMS_ERR_DTYPE,
                       "best is [3] f32, expected [3] i32");
    rig_expect_failure(dms_paged_mark(&plain, rows, &(dms_paged_kept){0, &last, &last}),
                       DMS_ERR_ARG, "whose slots are scored");
}

ParameterizedTestParameters(paged_rank, refuses_what_it_cannot_rank)
{
    return rig_devices();
}

ParameterizedTest(dms_device_kind *kind, paged_rank, refuses_what_it_cannot_rank)
{
    const scene_shape s = {16, 2, 3, 16, DMS_F32, 0};
    const dms_paged_weights w = {.add = true};
    scene x = scene_open(*kind, 2, &s);
    tokens t = scene_tokens(&x, 3, 1);
    dms_paged_rows rows = scene_rows(&t);
    scene_append(&x, &t);
    const dms_paged *c = dms_cache_paged(x.cache), plain = unscored(&x);
    const dms_tensor narrow = rig_empty(&x.r, rig_shape(2, 1, 40, 0));
    const dms_tensor many = rig_empty(&x.r, rig_shape(2, 3, 96, 0));

    rig_expect_failure(dms_paged_weigh(&plain, &rows, &t.q, &w), DMS_ERR_ARG, "slots are scored");
    rig_expect_failure(dms_paged_weigh(c, &rows, &narrow, &w), DMS_ERR_SHAPE,
                       "q has 40 channels, expected a multiple of 32");
    rig_expect_failure(dms_paged_weigh(c, &rows, &many, &w), DMS_ERR_SHAPE,
                       "q is [2, 3, 96] f32, expected [2, 1, 96] f32");
    rig_expect_failure(dms_paged_pool(&plain, &rows, 3, 0), DMS_ERR_ARG, "slots are scored");
    rig_expect_failure(dms_paged_pool(c, &rows, 4, 0), DMS_ERR_ARG, "width is 4, expected an odd");
    rig_expect_failure(dms_paged_pool(c, &rows, -1, 0), DMS_ERR_ARG, "width is -1");
    rig_expect_failure(dms_paged_pool(c, &rows, 3, -1), DMS_ERR_ARG, "the last -1 slots");
    refuse_kept(&x, &rows);
    rows.layer = 2;
    rig_expect_failure(dms_paged_pool(c, &rows, 3, 0), DMS_ERR_ARG, "layer is 2");
    tokens_close(&t);
    scene_close(&x);
}

/* What the host of a GPU does not see. */
Test(paged_rank, the_cpu_refuses_negative_budgets_and_groups_that_differ)
{
    const scene_shape s = {16, 2, 1, 16, DMS_F32, 0};
    scene x = scene_open(DMS_CPU, 2, &s);
    tokens t = scene_tokens(&x, 7, 5);
    const dms_paged_rows rows = scene_rows(&t);
    dms_tensor shape = rig_shape(SCENE_ROWS, 0, 0, 0);
    shape.dtype = DMS_I32;
    const dms_tensor last = rig_upload(&x.r, shape, (const int32_t[]){0, 0, 1});
    const dms_tensor best = rig_upload(&x.r, shape, (const int32_t[]){0, -3, 1});
    const dms_paged *c = dms_cache_paged(x.cache);
    scene_append(&x, &t);
    rig_expect_failure(dms_paged_mark(c, &rows, &(dms_paged_kept){0, &last, &best}), DMS_ERR_ARG,
                       "the best -3 of sequence 1");
    rig_expect_failure(dms_paged_mark(c, &rows, &(dms_paged_kept){0, &best, NULL}), DMS_ERR_ARG,
                       "the last -3 tokens");
    c->live[scene_unit(&x, 1, 1)]--;
    rig_expect_failure(dms_paged_weigh(c, &rows, &t.q, &(dms_paged_weights){.across = true}),
                       DMS_ERR_ARG, "heads 0 and 1 hold 5 and 4 slots");
    c->live[scene_unit(&x, 1, 1)]++;
    tokens_close(&t);
    scene_close(&x);
}
