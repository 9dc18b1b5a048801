/* Paged caches that tests of kernels/paged_rank.h fill, and what they then hold, unit by unit. */
#ifndef DMS_TEST_PAGED_SCENE_H
#define DMS_TEST_PAGED_SCENE_H

#include <math.h>
#include <string.h>

#include "kernels/bf16.h"
#include "kernels/visibility.h"
#include "tests/paged_copy.h"

enum { SCENE_ROWS = 3, SCENE_LAYERS = 2, SCENE_LAYER = 1 /* the one in use */ };

typedef struct {
    int head_dim, groups, reps, page_slots;
    dms_dtype dtype;
    int window;
} scene_shape;

/* Sequences are 0, 1 and 2, all admitted. */
typedef struct {
    scene_shape s;
    rig r;
    dms_cache *cache;
    bool constant; /* all keys are alike */
    bool evicts;   /* decisions evict about half of the tokens; else there are none */
} scene;

static inline scene scene_open(dms_device_kind kind, int threads, const scene_shape *s)
{
    scene x = {.s = *s, .r = rig_open_threads(kind, threads)};
    must(dms_cache_open(&x.cache, &(dms_cache_options){.device = x.r.dev,
                                                       .layers = SCENE_LAYERS,
                                                       .groups = s->groups,
                                                       .head_dim = s->head_dim,
                                                       .window = s->window,
                                                       .context = 1200,
                                                       .max_sequences = SCENE_ROWS,
                                                       .dtype = s->dtype,
                                                       .page_slots = s->page_slots,
                                                       .slab_bytes = 1,
                                                       .scored = true,
                                                       .bounded = true}));
    for (int i = 0; i < SCENE_ROWS; i++) {
        int sequence = 0;
        must(dms_cache_admit(x.cache, &sequence));
        cr_assert_eq(sequence, i);
    }
    return x;
}

static inline void scene_close(scene *x)
{
    dms_cache_close(x->cache);
    rig_close(&x->r);
}

/* What a token feeds is a function of its sequence and position alone, in [-1, 1). */
typedef enum { SCENE_Q, SCENE_K, SCENE_V, SCENE_Z } scene_kind;
static inline float scene_value(scene_kind kind, int sequence, int position, int channel)
{
    uint32_t h = (uint32_t)kind * 0x9e3779b9u + (uint32_t)sequence * 0x85ebca6bu +
                 (uint32_t)position * 0xc2b2ae35u + (uint32_t)channel * 0x27d4eb2fu;
    for (int i = 0; i < 3; i++) {
        h ^= h >> 15;
        h *= 0x2c1b3c6du;
        h ^= h >> 12;
    }
    return (float)(h >> 8) / 8388608.0f - 1.0f;
}

/* Tokens that one op works on, with their rows on the device. rows.sequences and rows.positions
 * point into it. */
typedef struct {
    int n, count;
    int32_t sequences[SCENE_ROWS];
    int32_t *positions; /* [n, count] */
    dms_tensor on_device[2];
    dms_tensor q, k, v, z; /* of the tokens; q: [n, count, H*E] */
} tokens;

static inline dms_paged_rows scene_rows(const tokens *t)
{
    return (dms_paged_rows){&t->on_device[0], &t->on_device[1], SCENE_LAYER, false};
}

static inline dms_tensor scene_fill(scene *x, const tokens *t, scene_kind kind, int wide)
{
    float *host = malloc((size_t)(t->n * t->count * wide) * sizeof(float));
    for (int i = 0; i < t->n * t->count; i++)
        for (int c = 0; c < wide; c++)
            host[i * wide + c] =
                kind == SCENE_K && x->constant
                    ? 0.25f
                    : scene_value(kind, t->sequences[i / t->count], t->positions[i], c);
    const dms_tensor out = rig_upload(&x->r, rig_shape(t->n, t->count, wide, 0), host);
    free(host);
    return out;
}

/* z: [n, G, count]. */
static inline dms_tensor scene_decisions(scene *x, const tokens *t)
{
    const int groups = x->s.groups;
    float *host = malloc((size_t)(t->n * t->count * groups) * sizeof(float));
    for (int b = 0; b < t->n; b++)
        for (int g = 0; g < groups; g++)
            for (int i = 0; i < t->count; i++)
                host[(b * groups + g) * t->count + i] =
                    scene_value(SCENE_Z, t->sequences[b], t->positions[b * t->count + i], g);
    const dms_tensor out = rig_upload(&x->r, rig_shape(t->n, groups, t->count, 0), host);
    free(host);
    return out;
}

/* `count` more tokens of each sequence whose bit is in `which`, highest first; not yet entered. */
static inline tokens scene_tokens(scene *x, unsigned which, int count)
{
    tokens t = {.count = count};
    t.positions = malloc(sizeof(int32_t) * SCENE_ROWS * (size_t)count);
    for (int s = SCENE_ROWS - 1; s >= 0; s--)
        if (which >> s & 1) {
            const int64_t first = dms_cache_tokens(x->cache, s);
            for (int i = 0; i < count; i++)
                t.positions[t.n * count + i] = (int32_t)first + i;
            t.sequences[t.n++] = s;
        }
    dms_tensor shape = rig_shape(t.n, 0, 0, 0);
    shape.dtype = DMS_I32;
    t.on_device[0] = rig_upload(&x->r, shape, t.sequences);
    t.on_device[1] = rig_upload(&x->r, rig_shape_i32(t.n, count), t.positions);
    const int wide = x->s.groups * x->s.head_dim;
    t.q = scene_fill(x, &t, SCENE_Q, wide * x->s.reps);
    t.k = scene_fill(x, &t, SCENE_K, wide);
    t.v = scene_fill(x, &t, SCENE_V, wide);
    t.z = scene_decisions(x, &t);
    return t;
}

static inline void tokens_close(tokens *t)
{
    free(t->positions);
}

static inline void scene_append(scene *x, const tokens *t)
{
    const dms_paged_rows rows = scene_rows(t);
    must(dms_cache_reserve(x->cache, t->sequences, t->n, t->count, SCENE_LAYER));
    must(
        dms_paged_append(dms_cache_paged(x->cache), &rows, &t->k, &t->v, x->evicts ? &t->z : NULL));
    must(dms_cache_commit(x->cache, t->sequences, t->n, t->count, t->count == 1));
}

/* The unit of head g of a sequence, in the layer in use. */
static inline int64_t scene_unit(const scene *x, int sequence, int g)
{
    return ((int64_t)sequence * SCENE_LAYERS + SCENE_LAYER) * x->s.groups + g;
}

/* Element i of keys, values or bounds. */
static inline float stored(const dms_paged *c, const void *data, int64_t i)
{
    return c->dtype == DMS_F32 ? ((const float *)data)[i]
                               : dms_bf16_to_f32(((const uint16_t *)data)[i]);
}

static inline int slot_position(const copy *y, int64_t unit, int slot)
{
    return copy_page(y, unit, slot).at[slot % y->c.page_slots] >> 1;
}

static inline bool slot_evicted(const copy *y, int64_t unit, int slot)
{
    return copy_page(y, unit, slot).at[slot % y->c.page_slots] & 1;
}

static inline float slot_score(const copy *y, int64_t unit, int slot)
{
    return copy_page(y, unit, slot).score[slot % y->c.page_slots];
}

static inline float slot_key(const copy *y, int64_t unit, int slot, int e)
{
    const int64_t j = slot % y->c.page_slots;
    return stored(&y->c, copy_page(y, unit, slot).k, (int64_t)e * y->c.page_slots + j);
}

static inline float slot_value(const copy *y, int64_t unit, int slot, int e)
{
    const int64_t j = slot % y->c.page_slots;
    return stored(&y->c, copy_page(y, unit, slot).v, j * dms_page_padded(&y->c) + e);
}

/* Scores of a unit's slots become score(slot's position). */
static inline void scene_put_scores(scene *x, int64_t unit, float (*score)(int position))
{
    copy y = copy_open(x->cache);
    dms_device *dev = x->r.dev;
    dms_paged on_device = y.c;
    on_device.slabs = y.device_slabs;
    for (int i = 0; i < y.c.live[unit]; i++) {
        const int32_t number = y.c.unit_list[unit * y.c.unit_pages + i / y.c.page_slots];
        const float value = score(slot_position(&y, unit, i));
        float *at = dms_page_at(&on_device, number).score + i % y.c.page_slots;
        must(dev->upload(dev, at, &value, sizeof(value)));
    }
    copy_close(&y);
}

/* q.k/sqrt(E) of a slot. q: [E]. */
static inline double scene_score(const copy *y, int64_t unit, int slot, const float *q)
{
    double sum = 0;
    for (int e = 0; e < y->c.head_dim; e++)
        sum += (double)q[e] * (double)slot_key(y, unit, slot, e);
    return sum / sqrt((double)y->c.head_dim);
}

#endif
