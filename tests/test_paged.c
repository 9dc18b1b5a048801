/* The ops of the paged cache on a device, step by step beside those on the CPU: the same slots with
 * the same contents in the same order, the same counts, results alike. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/paged_copy.h"

enum { SEQUENCES = 3, LAYERS = 2, MOST = 90 /* tokens of one op */ };

typedef struct {
    int head_dim, groups, reps, page_slots;
    dms_dtype dtype;
    int64_t window, context;
} shape;

typedef struct {
    rig r;
    dms_cache *cache;
} side;

/* The CPU and the device under test, fed alike. */
typedef struct {
    shape s;
    side sides[2];
    uint32_t seed;
    bool admitted[SEQUENCES];
} pair;

static int pick(pair *p, int n)
{
    p->seed = p->seed * 1664525u + 1013904223u;
    return (int)((p->seed >> 8) % (uint32_t)n);
}

static pair pair_open(dms_device_kind kind, const shape *s)
{
    pair p = {.s = *s, .seed = 3};
    for (int i = 0; i < 2; i++) {
        p.sides[i].r = rig_open(i ? kind : DMS_CPU);
        must(dms_cache_open(&p.sides[i].cache, &(dms_cache_options){.device = p.sides[i].r.dev,
                                                                    .layers = LAYERS,
                                                                    .groups = s->groups,
                                                                    .head_dim = s->head_dim,
                                                                    .window = s->window,
                                                                    .context = s->context,
                                                                    .max_sequences = SEQUENCES,
                                                                    .dtype = s->dtype,
                                                                    .page_slots = s->page_slots,
                                                                    .slab_bytes = 1}));
    }
    return p;
}

static void pair_close(pair *p)
{
    for (int i = 0; i < 2; i++) {
        dms_cache_close(p->sides[i].cache);
        rig_close(&p->sides[i].r);
    }
}

/* n rows of `count` tokens each. */
typedef struct {
    int32_t sequences[SEQUENCES], positions[SEQUENCES * MOST];
    int n, count;
} batch;

static dms_tensor noise(rig *r, uint32_t seed, dms_tensor of)
{
    const uint32_t kept = r->seed;
    r->seed = seed;
    const dms_tensor t = rig_noise(r, of);
    r->seed = kept;
    return t;
}

/* One layer of a pass on one side; o: [n, count, H*E]. */
static dms_tensor pass_layer(const pair *p, side *x, const batch *b, int layer, uint32_t seed)
{
    rig *r = &x->r;
    const shape *s = &p->s;
    dms_tensor at = {.dtype = DMS_I32, .rank = 1, .shape = {b->n, b->count}};
    const dms_tensor sequences = rig_upload(r, at, b->sequences);
    at.rank = 2;
    const dms_tensor positions = rig_upload(r, at, b->positions);
    const dms_paged_rows rows = {&sequences, &positions, layer, seed % 3 == 0};
    const int64_t wide = (int64_t)s->groups * s->head_dim;
    const dms_tensor k = noise(r, seed, rig_shape(b->n, b->count, wide, 0));
    const dms_tensor v = noise(r, seed + 1, k);
    const dms_tensor z = noise(r, seed + 2, rig_shape(b->n, s->groups, b->count, 0));
    dms_tensor q = noise(r, seed + 3, rig_shape(b->n, b->count, wide * s->reps, 0));
    const dms_paged *c = dms_cache_paged(x->cache);
    must(dms_paged_append(c, &rows, &k, &v, seed % 5 ? &z : NULL));
    must(dms_paged_attention(&q, c, &rows, &q));
    if (b->count > 1)
        must(dms_paged_compact(c, &rows));
    return q;
}

/* Sums in another order: 1e-5, as for the definition in tests/test_cache_memory.c. Chunks over bf16
 * pages may be multiplied on tensor cores where heads are 64, 96 or 128 wide, with queries and
 * weights rounded: 3e-3, as in tests/test_paged_chunk.c. */
static float bound_of(const shape *s, const batch *b)
{
    const bool width = s->head_dim == 64 || s->head_dim == 96 || s->head_dim == 128;
    return s->dtype == DMS_BF16 && width && b->count > 1 ? 3e-3f : 1e-5f;
}

static void feed(pair *p, const batch *b)
{
    const size_t marks[2] = {p->sides[0].r.arena.used, p->sides[1].r.arena.used};
    for (int layer = 0; layer < LAYERS; layer++) {
        const uint32_t seed = (uint32_t)pick(p, 1 << 20);
        dms_tensor o[2];
        for (int i = 0; i < 2; i++) {
            side *x = &p->sides[i];
            must(dms_cache_reserve(x->cache, b->sequences, b->n, b->count, layer));
            o[i] = pass_layer(p, x, b, layer, seed);
        }
        float *want = rig_read(&o[0]);
        rig_expect("o", &o[1], want, 1e-5f, bound_of(&p->s, b));
        free(want);
    }
    for (int i = 0; i < 2; i++) {
        must(dms_cache_commit(p->sides[i].cache, b->sequences, b->n, b->count, b->count == 1));
        p->sides[i].r.arena.used = marks[i];
    }
}

/* ---- what the cache holds ------------------------------------------------------------------- */

/* Slot `slot` of a unit holds the same token, its keys, values and padding to the bit. */
static void expect_same_slot(const copy y[2], int64_t unit, int slot)
{
    const dms_paged *c = &y[0].c;
    const size_t one = dms_dtype_bytes(c->dtype), wide = (size_t)dms_page_padded(c) * one;
    const size_t j = (size_t)(slot % c->page_slots), column = (size_t)c->page_slots * one;
    const dms_page a = copy_page(&y[0], unit, slot), b = copy_page(&y[1], unit, slot);
    cr_assert_eq(a.at[j], b.at[j], "unit %d slot %d is token %d, expected %d", (int)unit, slot,
                 b.at[j], a.at[j]);
    for (size_t e = 0; e < (size_t)c->head_dim; e++)
        cr_assert_arr_eq((char *)a.k + e * column + j * one, (char *)b.k + e * column + j * one,
                         one);
    cr_assert_arr_eq((char *)a.v + j * wide, (char *)b.v + j * wide, wide);
}

static void expect_same_unit(const copy y[2], int64_t unit)
{
    const dms_paged *c = &y[0].c;
    const int live = c->live[unit];
    int last = -1;
    cr_assert_eq(y[1].c.live[unit], live);
    cr_assert_eq(y[1].c.borrowed[unit], c->borrowed[unit]);
    for (int slot = 0; slot < live; slot++) {
        const int position = copy_page(&y[0], unit, slot).at[slot % c->page_slots] >> 1;
        expect_same_slot(y, unit, slot);
        last = position > last ? position : last;
    }
    for (int t = 0; t <= c->window && t <= last; t++) {
        const int64_t at = unit * c->ring_entries + (last - t) % c->ring_entries;
        cr_assert_eq(y[1].c.ring[at], c->ring[at]);
    }
}

/* Each page is on the stack, or in one unit's list, and knows where; what others borrow is full, in
 * the same place of their lists. */
static void expect_whole(const copy *y)
{
    const dms_paged *c = &y->c;
    int *seen = calloc((size_t)c->pages + 1, sizeof(*seen));
    for (int64_t i = 0; i < y->counters[DMS_PAGED_FREE]; i++) {
        seen[c->free_pages[i]]++;
        cr_assert_eq(dms_page_at(c, c->free_pages[i]).owner[0], -1);
    }
    for (int64_t unit = 0; unit < (int64_t)c->sequences * c->layers * c->groups; unit++)
        for (int i = 0; i * c->page_slots < c->live[unit]; i++) {
            const int32_t number = c->unit_list[unit * c->unit_pages + i];
            const int32_t *owner = dms_page_at(c, number).owner;
            const bool own = i >= c->borrowed[unit];
            seen[number] += own;
            cr_assert((owner[0] == unit) == own && owner[0] >= 0 && owner[1] == i);
            cr_assert(own || c->live[unit] >= (i + 1) * c->page_slots);
        }
    for (int i = 0; i < c->pages; i++)
        cr_assert_eq(seen[i], 1, "page %d is in %d lists", i, seen[i]);
    free(seen);
}

static void expect_same(const pair *p)
{
    copy y[2];
    dms_cache_stats stats[2];
    for (int i = 0; i < 2; i++) {
        y[i] = copy_open(p->sides[i].cache);
        must(dms_cache_measure(&stats[i], p->sides[i].cache));
        expect_whole(&y[i]);
    }
    for (int i = 0; i < DMS_PAGED_COUNTERS; i++)
        cr_assert_eq(y[1].counters[i], y[0].counters[i], "counter %d is %lld, expected %lld", i,
                     (long long)y[1].counters[i], (long long)y[0].counters[i]);
    cr_assert_eq(stats[1].pages, stats[0].pages);
    cr_assert_eq(stats[1].peak_bytes, stats[0].peak_bytes);
    for (int64_t unit = 0; unit < (int64_t)SEQUENCES * LAYERS * p->s.groups; unit++)
        expect_same_unit(y, unit);
    copy_close(&y[0]);
    copy_close(&y[1]);
}

/* ---- scripts -------------------------------------------------------------------------------- */

static int64_t room(const pair *p, int sequence)
{
    return p->s.context - dms_cache_tokens(p->sides[0].cache, sequence);
}

static void add_row(const pair *p, batch *b, int sequence)
{
    const int64_t first = dms_cache_tokens(p->sides[0].cache, sequence);
    for (int t = 0; t < b->count; t++)
        b->positions[b->n * b->count + t] = (int32_t)(first + t);
    b->sequences[b->n++] = sequence;
}

/* All admitted sequences that have room for `count` tokens. */
static void feed_all(pair *p, int count)
{
    batch b = {.count = count};
    for (int i = SEQUENCES - 1; i >= 0; i--)
        if (p->admitted[i] && room(p, i) >= count)
            add_row(p, &b, i);
    if (b.n)
        feed(p, &b);
}

static void change_sequences(pair *p)
{
    const int released = pick(p, SEQUENCES);
    if (!p->admitted[released] && !dms_cache_vacant(p->sides[0].cache))
        return;
    for (int i = 0; i < 2; i++) {
        int sequence = 0;
        if (p->admitted[released]) {
            must(dms_cache_release(p->sides[i].cache, released));
            continue;
        }
        must(dms_cache_admit(p->sides[i].cache, &sequence));
        cr_assert(!p->admitted[sequence]);
        if (i)
            p->admitted[sequence] = true;
    }
    if (p->admitted[released] && dms_cache_tokens(p->sides[0].cache, released) < 0)
        p->admitted[released] = false;
}

/* One sequence from another, while there is room. */
static void fork_one(pair *p)
{
    const int from = pick(p, SEQUENCES);
    const bool share = pick(p, 4) > 0;
    int to[2] = {0, 0};
    if (!p->admitted[from] || !dms_cache_vacant(p->sides[0].cache))
        return;
    for (int i = 0; i < 2; i++)
        must(dms_cache_fork(p->sides[i].cache, from, share, &to[i]));
    cr_assert(to[0] == to[1] && !p->admitted[to[0]]);
    p->admitted[to[0]] = true;
}

static void play(dms_device_kind kind, const shape *s, int steps)
{
    pair p = pair_open(kind, s);
    for (int i = 0; i < steps; i++) {
        const int what = i < 2 ? 0 : pick(&p, 7);
        if (what == 0)
            change_sequences(&p);
        else if (what == 1)
            feed_all(&p, 2 + pick(&p, MOST - 1));
        else if (what == 2)
            feed_all(&p, 2 + pick(&p, 8));
        else if (what == 3)
            fork_one(&p);
        else
            for (int t = 0; t < 6; t++)
                feed_all(&p, 1);
        expect_same(&p);
    }
    for (int i = 0; i < SEQUENCES; i++)
        for (int j = 0; p.admitted[i] && j < 2; j++)
            must(dms_cache_release(p.sides[j].cache, i));
    expect_same(&p);
    cr_assert_eq(dms_cache_paged(p.sides[1].cache)->pages, 0);
    pair_close(&p);
}

ParameterizedTestParameters(paged, holds_slot_for_slot_what_the_cpu_holds)
{
    return rig_devices();
}

/* Contexts from one part of a unit to many; windows from none to all. */
ParameterizedTest(dms_device_kind *kind, paged, holds_slot_for_slot_what_the_cpu_holds)
{
    static const shape shapes[] = {
        {16, 1, 1, 16, DMS_F32, 0, 400},     {16, 2, 3, 32, DMS_BF16, 7, 400},
        {32, 1, 7, 16, DMS_BF16, 20, 300},   {16, 3, 2, 48, DMS_F32, 40, 250},
        {32, 1, 1, 16, DMS_BF16, 1000, 300}, {16, 1, 4, 16, DMS_F32, 1, 2000},
    };
    for (size_t i = 0; i < COUNT(shapes); i++)
        play(*kind, &shapes[i], 30);
}

ParameterizedTestParameters(paged, attends_with_heads_of_any_width_and_number)
{
    return rig_devices();
}

/* Widths: 1, odd, not of whole vectors, one below, at and above what one warp sums at once (128
 * channels of f32, 256 of bf16). Heads: up to 8 at once, and more. */
ParameterizedTest(dms_device_kind *kind, paged, attends_with_heads_of_any_width_and_number)
{
    static const shape shapes[] = {
        {1, 1, 8, 16, DMS_F32, 5, 200},    {7, 2, 5, 16, DMS_BF16, 5, 200},
        {80, 1, 9, 16, DMS_BF16, 30, 200}, {64, 1, 6, 64, DMS_BF16, 3, 200},
        {128, 1, 17, 16, DMS_F32, 9, 200}, {128, 1, 8, 32, DMS_BF16, 9, 200},
        {129, 1, 1, 16, DMS_F32, 9, 200},  {257, 1, 2, 16, DMS_BF16, 9, 200},
        {255, 1, 4, 16, DMS_F32, 12, 200},
    };
    for (size_t i = 0; i < COUNT(shapes); i++)
        play(*kind, &shapes[i], 12);
}
