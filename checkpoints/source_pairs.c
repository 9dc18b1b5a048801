#include "checkpoints/source_pairs.h"

#include <stdlib.h>
#include <string.h>

#include "checkpoints/model_type.h"
#include "checkpoints/source_build.h"
#include "checkpoints/source_reader.h"

enum { A, B, ALL = 0xff };

static const char head[] = "lm_head.weight", embedding[] = "model.embed_tokens.weight";

typedef struct {
    const dms_source *s[2];
    const json_t *config[2];
    uint8_t *met; /* a tensor of b: its parts that a has, as bits, or ALL */
    dms_pair_fn *each;
    void *context;
} matching;

static dms_pair_side as_it_is(const dms_tensor_info *t)
{
    return (dms_pair_side){.info = *t};
}

/* Ours in a file's tensor; as it is where it cannot hold that, so that its shape is shown. */
static dms_pair_side as_ours(const dms_tensor_info *t, const dms_layout_place *place)
{
    dms_pair_side side = as_it_is(t);
    int64_t shape[DMS_MAX_RANK] = {1, 1, 1, 1};
    if (t->rank < 1 || t->rank > 2 || !dms_layout_shape(shape, place, t->rank, t->shape))
        return side;
    memcpy(side.info.shape, shape, sizeof(side.info.shape));
    side.place = *place;
    return side;
}

static const dms_tensor_info *stored(const dms_source *s, const dms_layout_place *place)
{
    const dms_tensor_info *t = dms_source_find(s, place->name);
    return t ? t : dms_source_find(s, place->bare);
}

/* The same whole tensor on another side, with the family's prefix or without. */
static const dms_tensor_info *find_same(const matching *m, int side, const char *name)
{
    char ours[96];
    dms_layout_place place;
    const dms_tensor_info *t = dms_source_find(m->s[side], name);
    if (t || !dms_layout_back(&place, ours, m->config[!side], name, 0))
        return t;
    return stored(m->s[side], &place);
}

static void meet(const matching *m, const dms_tensor_info *b, int parts)
{
    m->met[dms_source_entry(m->s[B], b->name) - m->s[B]->tensors] |= (uint8_t)parts;
}

static dms_status both(const matching *m, const char *name, const dms_pair_side *a,
                       const dms_pair_side *b)
{
    const bool part = b->place.parts > 1;
    const dms_source_pair pair = {.name = name, .a = a, .b = b};
    meet(m, dms_source_find(m->s[B], b->info.name), part ? 1 << b->place.part : ALL);
    return m->each(m->context, &pair);
}

static dms_status alone(const matching *m, int side, const char *name, const dms_pair_side *t)
{
    const bool out =
        strcmp(name, head) != 0 && dms_layout_leaves_out(m->config[side], t->info.name);
    const dms_source_pair pair = {
        .name = name, .a = side == A ? t : NULL, .b = side == B ? t : NULL, .no_weight = out};
    return m->each(m->context, &pair);
}

/* One side's head and the other's embedding, where that one is tied. */
static dms_status tied_head(bool *done, const matching *m, int side, const dms_tensor_info *t)
{
    dms_layout_place place = {0};
    *done = false;
    if (strcmp(t->name, head) != 0 || !dms_model_type_is_tied(m->config[!side]))
        return DMS_OK;
    const dms_tensor_info *other = dms_source_find(m->s[!side], embedding);
    if (!other && dms_layout_find(&place, m->config[!side], embedding))
        other = stored(m->s[!side], &place);
    if (!other)
        return DMS_OK;
    const dms_pair_side mine = as_it_is(t), theirs = as_it_is(other);
    const dms_source_pair pair = {.name = head,
                                  .a = side == A ? &mine : &theirs,
                                  .b = side == B ? &mine : &theirs,
                                  .tied = true};
    *done = true;
    return m->each(m->context, &pair);
}

/* A tensor of a that holds several of ours, which b may have each by itself. */
static dms_status split(bool *done, const matching *m, const dms_tensor_info *t)
{
    char ours[96];
    dms_layout_place place;
    bool any = false;
    for (int k = 0; dms_layout_back(&place, ours, m->config[A], t->name, k); k++)
        any |= dms_source_find(m->s[B], ours) != NULL;
    *done = any;
    for (int k = 0; any && dms_layout_back(&place, ours, m->config[A], t->name, k); k++) {
        const dms_pair_side a = as_ours(t, &place);
        const dms_tensor_info *u = dms_source_find(m->s[B], ours);
        const dms_pair_side b = u ? as_it_is(u) : (dms_pair_side){0};
        DMS_TRY(u ? both(m, ours, &a, &b) : alone(m, A, ours, &a));
    }
    return DMS_OK;
}

static dms_status match_a(const matching *m, const dms_tensor_info *t)
{
    dms_layout_place place;
    const dms_pair_side a = as_it_is(t);
    bool done;
    const dms_tensor_info *u = find_same(m, B, t->name);
    if (u) {
        const dms_pair_side b = as_it_is(u);
        return both(m, t->name, &a, &b);
    }
    if (dms_layout_find(&place, m->config[B], t->name) && (u = stored(m->s[B], &place))) {
        const dms_pair_side b = as_ours(u, &place);
        return both(m, t->name, &a, &b);
    }
    DMS_TRY(split(&done, m, t));
    if (!done)
        DMS_TRY(tied_head(&done, m, A, t));
    return done ? DMS_OK : alone(m, A, t->name, &a);
}

/* What a lacks of it. */
static dms_status match_b(const matching *m, const dms_tensor_info *t, uint8_t met)
{
    char ours[96];
    dms_layout_place place;
    bool done = false;
    if (met == ALL)
        return DMS_OK;
    for (int k = 0; met && dms_layout_back(&place, ours, m->config[B], t->name, k); k++) {
        const dms_pair_side b = as_ours(t, &place);
        if (!(met >> k & 1))
            DMS_TRY(alone(m, B, ours, &b));
    }
    if (!met)
        DMS_TRY(tied_head(&done, m, B, t));
    const dms_pair_side b = as_it_is(t);
    return met || done ? DMS_OK : alone(m, B, t->name, &b);
}

static dms_status match(const matching *m)
{
    for (int64_t i = 0; i < dms_source_count(m->s[A]); i++)
        DMS_TRY(match_a(m, dms_source_info(m->s[A], i)));
    for (int64_t i = 0; i < dms_source_count(m->s[B]); i++)
        DMS_TRY(match_b(m, dms_source_info(m->s[B], i), m->met[i]));
    return DMS_OK;
}

dms_status dms_source_pairs(const dms_source *a, const dms_source *b, dms_pair_fn *each,
                            void *context)
{
    const json_t *x = dms_source_config(a), *y = dms_source_config(b);
    const matching m = {.s = {a, b},
                        .config = {x ? x : y, y ? y : x},
                        .met = calloc((size_t)dms_source_count(b) + 1, 1),
                        .each = each,
                        .context = context};
    if (!m.met)
        return dms_fail(DMS_ERR_NOMEM, "no memory to compare two lists of tensors");
    const dms_status status = match(&m);
    free(m.met);
    return status;
}

dms_status dms_pair_read(const dms_source *s, const dms_pair_side *side, void *dst, dms_dtype dtype)
{
    const dms_tensor_info *t = dms_source_find(s, side->info.name);
    return side->place.parts ? dms_source_read_part(s, t, &side->place, dst, dtype)
                             : dms_source_read(s, side->info.name, dst, dtype);
}
