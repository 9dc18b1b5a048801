/* Cache policies against their definitions: what each keeps, reads and returns, step by step. */
#include <math.h>
#include <string.h>

#include "infer/session.h"
#include "tests/paged_copy.h"
#include "tests/policy_oracle.h"
#include "tests/rig.h"

enum { CASES = 200, FEW_CASES = 60, TEXTS = 3, MOST_LAYERS = 3, MOST_GROUPS = 2, WINDOW = 6 };

/* Outputs are sums of values in [-2, 2) by weights that f32 knows to about 2e-6. */
#define TOLERANCE 2e-5

/* A sequence of the cache, and the oracle of each of its layers. */
typedef struct {
    bool active;
    int sequence, number; /* of the cache; of the texts in the order they began */
    int goal, pause;      /* its last length; where a second prompt comes, or 0 */
    oracle layers[MOST_LAYERS];
} text;

typedef struct {
    rig r;
    int index, layers, groups, reps, dim;
    dms_model model;
    dms_policy policy;
    dms_cache *cache;
    dms_policy_run *run;
    dms_tape *tape;
    text texts[TEXTS];
    int begun, close, choices;
    long reads, bounds, visible, dense; /* of texts that have ended; dense: of all */
    double *got[MOST_LAYERS];           /* outputs of a pass: [n, count, H, E] */
} world;

/* A pass: `count` tokens of each of n texts. */
typedef struct {
    text *rows[TEXTS];
    int n, count;
    bool prefill;
    int begin, end; /* of the prompt */
} batch;

static int draw(world *w, int low, int high)
{
    const int n = high - low + 1;
    const int i = (int)((rig_random(&w->r) + 1) / 2 * (float)n);
    return low + (i < n ? i : n - 1);
}

/* ---- worlds --------------------------------------------------------------------------------- */

static const char *const forms[] = {"dense", "dms", "window", "streaming", "streaming-abs",
                                    "tova",  "h2o", "snapkv", "quest",     "random"};

static void write_policy(char name[40], world *w, const char *form)
{
    const bool part = draw(w, 0, 2) == 0;
    const int percent = draw(w, 3, 80);
    if (!strcmp(form, "dense") || !strcmp(form, "dms"))
        snprintf(name, 40, "%s", form);
    else if (!strcmp(form, "random"))
        snprintf(name, 40, "random:%d:%d", draw(w, 1, 8), draw(w, 0, 9));
    else if (!strncmp(form, "streaming", 9)) {
        const int sink = draw(w, 0, 5);
        snprintf(name, 40, part ? "%s:%d%%:%d" : "%s:%d:%d", form,
                 part ? percent : sink + draw(w, 1, 20), sink);
    } else if (!strcmp(form, "snapkv")) {
        const int observed = draw(w, 1, 12);
        snprintf(name, 40, part ? "%s:%d%%:%d" : "%s:%d:%d", form,
                 part ? percent : observed + draw(w, 0, 12), observed);
    } else
        snprintf(name, 40, part ? "%s:%d%%" : "%s:%d", form,
                 part                     ? percent
                 : !strcmp(form, "quest") ? draw(w, 16, 70)
                                          : draw(w, 2, 24));
}

/* All prompts count as 40 tokens for policies whose window is one of the whole cache. */
static void make_policy(world *w)
{
    char name[40];
    write_policy(name, w, forms[w->index % (int)COUNT(forms)]);
    must(dms_policy_parse(&w->policy, name));
    const dms_policy_kind kind = w->policy.kind;
    if (kind == DMS_POLICY_WINDOW || kind == DMS_POLICY_STREAMING || kind == DMS_POLICY_QUEST)
        dms_policy_settle(&w->policy, 40);
}

static void make_model(world *w)
{
    const int half = w->dim / 2;
    w->model = (dms_model){.config = {.positions = DMS_POSITIONS_ROPE,
                                      .layers = w->layers,
                                      .heads = w->groups * w->reps,
                                      .kv_heads = w->groups,
                                      .head_dim = w->dim,
                                      .rope_theta = 1000},
                           .gate = {.kind = DMS_GATE_NEURON, .window = WINDOW},
                           .device = w->r.dev};
    float *table = malloc(sizeof(float) * (size_t)(ORACLE_TOKENS * w->dim));
    for (int p = 0; p < ORACLE_TOKENS; p++)
        for (int i = 0; i < half; i++) {
            const double angle = p * pow(w->model.config.rope_theta, -2.0 * i / w->dim);
            table[p * w->dim + i] = (float)cos(angle);
            table[p * w->dim + half + i] = (float)sin(angle);
        }
    w->model.rope_table = rig_upload(&w->r, rig_shape(ORACLE_TOKENS, w->dim, 0, 0), table);
    free(table);
}

static void open_cache(world *w)
{
    dms_cache_options o = {.device = w->r.dev,
                           .layers = w->layers,
                           .groups = w->groups,
                           .head_dim = w->dim,
                           .context = ORACLE_TOKENS,
                           .max_sequences = TEXTS,
                           .dtype = DMS_F32,
                           .slab_bytes = (size_t)draw(w, 0, 1)};
    if (w->policy.kind != DMS_POLICY_QUEST)
        o.page_slots = 16 * draw(w, 1, 2);
    must(dms_policy_prepare(&o, &w->policy, &w->model));
    must(dms_cache_open(&w->cache, &o));
    must(dms_policy_run_open(&w->run, &(dms_policy_run_options){.policy = &w->policy,
                                                                .model = &w->model,
                                                                .cache = w->cache,
                                                                .rows = ORACLE_TOKENS,
                                                                .seed = (uint64_t)w->index}));
}

/* Its parts point to each other: it stays where it is. One thread: ops this small spend their time
 * waiting for others. */
static void world_open(world *w, int index)
{
    static const int reps[] = {1, 3, 7};
    *w = (world){
        .r = rig_open_threads(rig_device(), 1), .index = index, .reps = reps[index / 10 % 3]};
    w->r.seed = 977u * (uint32_t)index + 3;
    w->groups = draw(w, 1, MOST_GROUPS);
    w->dim = 8 * draw(w, 1, 3);
    make_policy(w);
    w->layers = w->policy.kind == DMS_POLICY_QUEST ? 3 : draw(w, 1, MOST_LAYERS);
    make_model(w);
    open_cache(w);
    must(dms_tape_open(&w->tape, &(dms_tape_options){.device = w->r.dev,
                                                     .max_nodes = 4,
                                                     .keep_bytes = (size_t)1 << 20,
                                                     .scratch_bytes = 1024}));
    for (int l = 0; l < w->layers; l++)
        w->got[l] = malloc(sizeof(double) * (size_t)(ORACLE_TOKENS * w->groups * w->reps * w->dim));
}

static void world_close(world *w)
{
    for (int l = 0; l < w->layers; l++)
        free(w->got[l]);
    dms_tape_close(w->tape);
    dms_policy_run_close(w->run);
    dms_cache_close(w->cache);
    rig_close(&w->r);
}

/* ---- oracles -------------------------------------------------------------------------------- */

/* The budget as evaluation.md has it: tokens, or a part of the prompt. */
static int budget(const dms_policy *p, int prompt)
{
    const int least = p->kind == DMS_POLICY_H2O ? 2 : 1;
    const int part = (int)floor(p->fraction * prompt + 0.5);
    return !(p->fraction > 0) ? (int)p->size : part > least ? part : least;
}

static oracle_rule rule(const world *w, int prompt)
{
    static const oracle_kind kinds[] = {
        [DMS_POLICY_STREAMING] = ORACLE_STREAMING,
        [DMS_POLICY_TOVA] = ORACLE_TOVA,
        [DMS_POLICY_H2O] = ORACLE_H2O,
        [DMS_POLICY_SNAPKV] = ORACLE_SNAPKV,
        [DMS_POLICY_QUEST] = ORACLE_QUEST,
    };
    const dms_policy *p = &w->policy;
    oracle_rule r = {.kind = kinds[p->kind],
                     .size = budget(p, prompt),
                     .sink = (int)p->sink,
                     .turned = p->turned,
                     .observed = (int)p->observed};
    r.window = p->kind == DMS_POLICY_DMS      ? WINDOW
               : p->kind == DMS_POLICY_WINDOW ? r.size - 1
               : p->kind == DMS_POLICY_RANDOM ? (int)p->window
                                              : ORACLE_TOKENS;
    return r;
}

/* What one token feeds to one layer. */
typedef struct {
    double q[512], k[64], v[64];
    bool evicts[MOST_GROUPS];
} feed;

static feed draw_feed(world *w, const text *x, int layer, int t)
{
    feed f;
    for (int i = 0; i < w->groups * w->reps * w->dim; i++)
        f.q[i] = 2 * (double)rig_random(&w->r);
    for (int i = 0; i < w->groups * w->dim; i++) {
        f.k[i] = 2 * (double)rig_random(&w->r);
        f.v[i] = 2 * (double)rig_random(&w->r);
    }
    for (int g = 0; g < w->groups; g++)
        f.evicts[g] = w->policy.kind == DMS_POLICY_WINDOW ? true
                      : w->policy.kind == DMS_POLICY_DMS  ? rig_random(&w->r) > -0.6f
                      : w->policy.kind == DMS_POLICY_RANDOM
                          ? dms_policy_decision(&w->policy, (uint64_t)w->index, x->number,
                                                layer * w->groups + g, t) > 0
                          : false;
    return f;
}

/* ---- passes --------------------------------------------------------------------------------- */

static void turn_heads(float *out, const double *x, const oracle *o, int heads, int position)
{
    double turned[64];
    for (int h = 0; h < heads; h++) {
        oracle_turn(turned, x + h * o->dim, o, position);
        for (int e = 0; e < o->dim; e++)
            out[h * o->dim + e] = (float)turned[e];
    }
}

/* Draws the tokens of one layer, enters them in the oracles, and uploads them. */
static void feed_layer(world *w, const batch *b, int layer, dms_var in[3], dms_var *z)
{
    const int wide = w->groups * w->dim, heads = w->groups * w->reps, all = b->n * b->count;
    float *q = malloc(sizeof(float) * (size_t)(all * wide * w->reps));
    float *k = malloc(sizeof(float) * (size_t)(all * wide));
    float *v = malloc(sizeof(float) * (size_t)(all * wide));
    float *d = malloc(sizeof(float) * (size_t)(all * w->groups));
    for (int i = 0; i < all; i++) {
        const int row = i / b->count, ahead = i % b->count;
        oracle *o = &b->rows[row]->layers[layer];
        const feed f = draw_feed(w, b->rows[row], layer, o->tokens + ahead);
        oracle_enter(o, ahead, f.q, f.k, f.v, f.evicts);
        turn_heads(q + i * wide * w->reps, f.q, o, heads, o->tokens + ahead);
        turn_heads(k + i * wide, f.k, o, w->groups, o->tokens + ahead);
        for (int e = 0; e < wide; e++)
            v[i * wide + e] = (float)f.v[e];
        for (int g = 0; g < w->groups; g++)
            d[(row * w->groups + g) * b->count + ahead] = f.evicts[g] ? 0.5f : -0.5f;
    }
    in[0].value = rig_upload(&w->r, rig_shape(b->n, b->count, wide * w->reps, 0), q);
    in[1].value = rig_upload(&w->r, rig_shape(b->n, b->count, wide, 0), k);
    in[2].value = rig_upload(&w->r, rig_shape(b->n, b->count, wide, 0), v);
    z->value = rig_upload(&w->r, rig_shape(b->n, w->groups, b->count, 0), d);
    free(q);
    free(k);
    free(v);
    free(d);
}

static void run_layer(world *w, const batch *b, const dms_cached_context *context, int layer)
{
    dms_var in[3] = {{.wants_grad = false}}, z = {.wants_grad = false};
    const dms_pass pass = {
        .tape = w->tape, .model = &w->model, .context = (void *)(uintptr_t)context};
    feed_layer(w, b, layer, in, &z);
    dms_tape_reset(w->tape);
    dms_var *const qkv[3] = {&in[0], &in[1], &in[2]};
    const dms_var *o =
        dms_attend_cached(&pass, layer, qkv, w->policy.kind == DMS_POLICY_DMS ? &z : NULL);
    must(dms_tape_status(w->tape));
    float *out = rig_read(&o->value);
    for (int64_t i = 0; i < dms_count(&o->value); i++)
        w->got[layer][i] = (double)out[i];
    free(out);
}

/* As dms_session runs a pass, without the model around the attention. */
static void run_pass(world *w, const batch *b)
{
    int32_t sequences[TEXTS], positions[TEXTS * ORACLE_TOKENS];
    const size_t mark = w->r.arena.used;
    for (int i = 0; i < b->n; i++) {
        sequences[i] = b->rows[i]->sequence;
        for (int t = 0; t < b->count; t++)
            positions[i * b->count + t] = b->rows[i]->layers[0].tokens + t;
    }
    dms_tensor units = rig_shape(b->n, 0, 0, 0);
    units.dtype = DMS_I32;
    const dms_tensor on_device[] = {rig_upload(&w->r, units, sequences),
                                    rig_upload(&w->r, rig_shape_i32(b->n, b->count), positions)};
    const dms_paged_rows rows = {&on_device[0], &on_device[1], 0, b->prefill};
    const dms_cached_context context = {.cache = w->cache,
                                        .sequences = sequences,
                                        .rows = &rows,
                                        .policy = w->run,
                                        .begin = b->begin,
                                        .end = b->end,
                                        .last = b->prefill ? positions[b->count - 1] : 0};
    if (b->count == 1)
        must(dms_cache_reserve(w->cache, sequences, b->n, 1, -1));
    must(dms_policy_run_decide(
        w->run, &(dms_policy_pass){sequences, positions, b->n, b->count, b->prefill}));
    for (int l = 0; l < w->layers; l++)
        run_layer(w, b, &context, l);
    must(dms_cache_commit(w->cache, sequences, b->n, b->count, !b->prefill));
    w->r.arena.used = mark;
}

/* ---- what the implementation holds and read ------------------------------------------------- */

/* A unit's tokens, from the first `live` slots of a list of pages. Tokens that a ranking marked
 * are gone but for the newest, whose slot the next token takes. */
static void read_slots(bool *out, const copy *y, const int32_t *list, int live, const oracle *o)
{
    memset(out, 0, ORACLE_TOKENS * sizeof(bool));
    for (int i = 0; i < live; i++) {
        const dms_page page = dms_page_at(&y->c, list[i / y->c.page_slots]);
        const int32_t at = page.at[i % y->c.page_slots];
        cr_assert(at >> 1 < ORACLE_TOKENS && !out[at >> 1], "position %d is wrong or twice",
                  at >> 1);
        out[at >> 1] = o->rule.kind <= ORACLE_STREAMING || !(at & 1);
        cr_assert(out[at >> 1] || at >> 1 == o->tokens, "token %d is marked and there", at >> 1);
    }
}

static int64_t unit_of(const world *w, const text *x, int layer, int g)
{
    return ((int64_t)x->sequence * w->layers + layer) * w->groups + g;
}

/* kept, read: [G, tokens]; read NULL: not of a decode step */
static void read_sets(const world *w, const text *x, int layer, const copy *y, bool *kept,
                      bool *read)
{
    const dms_paged *c = &y->c;
    oracle ahead = x->layers[layer];
    const bool chooses = read && w->policy.kind == DMS_POLICY_QUEST && layer >= ORACLE_DENSE_LAYERS;
    dms_device *dev = w->r.dev;
    int32_t list[ORACLE_TOKENS], live;
    for (int g = 0; g < w->groups; g++) {
        const int64_t unit = unit_of(w, x, layer, g), first = unit * c->unit_pages;
        bool *out = kept + g * ORACLE_TOKENS;
        read_slots(out, y, c->unit_list + first, c->live[unit], &ahead);
        if (read)
            memcpy(read + g * ORACLE_TOKENS, out, ORACLE_TOKENS * sizeof(bool));
        if (!chooses)
            continue;
        must(dev->download(dev, list, (const int32_t *)w->run->list.data + first,
                           (size_t)c->unit_pages * sizeof(int32_t)));
        must(dev->download(dev, &live, (const int32_t *)w->run->live.data + unit, sizeof(live)));
        read_slots(read + g * ORACLE_TOKENS, y, list, live, &ahead);
    }
}

/* ---- checks --------------------------------------------------------------------------------- */

static void check_layer(world *w, const batch *b, int row, int layer, const copy *y)
{
    bool kept[MOST_GROUPS * ORACLE_TOKENS], read[MOST_GROUPS * ORACLE_TOKENS] = {false};
    oracle *o = &b->rows[row]->layers[layer];
    const int wide = w->groups * w->reps * w->dim * b->count, from = o->tokens;
    double *want = malloc(sizeof(double) * (size_t)wide);
    o->tokens += b->count - 1; /* the newest */
    read_sets(w, b->rows[row], layer, y, kept, b->prefill ? NULL : read);
    o->tokens = from;
    const oracle_pass pass = {b->count, b->prefill, b->prefill && from + b->count == b->end, read,
                              kept};
    const char *wrong = oracle_step(o, &pass, want);
    cr_assert_null(wrong, "case %d, %s, text %d, layer %d, %d tokens: %s", w->index, w->policy.name,
                   b->rows[row]->number, layer, o->tokens, wrong);
    for (int i = 0; i < wide; i++)
        cr_assert(fabs(w->got[layer][row * wide + i] - want[i]) <= TOLERANCE,
                  "case %d, %s, text %d, layer %d, %d + %d tokens: output %d is %g, expected %g",
                  w->index, w->policy.name, b->rows[row]->number, layer, from, b->count, i,
                  w->got[layer][row * wide + i], want[i]);
    free(want);
}

/* The most slots that a unit may take in a pass: a prompt is dense until it is cut; after that what
 * is kept, which is within the budget, and the new token. */
static int bound(const batch *b, const oracle *o, int before, int kept, int after)
{
    if (o->rule.kind <= ORACLE_STREAMING)
        return before > after ? before : after;
    return b->prefill ? before + b->count : kept + 1;
}

typedef struct {
    int32_t live[TEXTS * MOST_LAYERS * MOST_GROUPS]; /* slots of each unit before a pass */
    int kept[TEXTS * MOST_LAYERS * MOST_GROUPS];     /* of these, what the policy keeps */
} before_pass;

static before_pass look(const world *w, const batch *b)
{
    before_pass p = {{0}, {0}};
    copy y = copy_open(w->cache);
    memcpy(p.live, y.c.live, sizeof(int32_t) * (size_t)(TEXTS * w->layers * w->groups));
    for (int i = 0; i < b->n; i++)
        for (int l = 0; l < w->layers; l++)
            for (int g = 0; g < w->groups; g++)
                p.kept[unit_of(w, b->rows[i], l, g)] = oracle_live(&b->rows[i]->layers[l], g);
    copy_close(&y);
    must(dms_cache_reset_peak(w->cache));
    return p;
}

static void check_peak(const world *w, const batch *b, const before_pass *p, const copy *y)
{
    const bool chunk = b->prefill && (b->count > 1 || w->policy.kind == DMS_POLICY_STREAMING);
    const bool dense = w->policy.kind >= DMS_POLICY_TOVA;
    int64_t most = chunk && !dense ? b->count * w->groups : 0, live = 0;
    for (int u = 0; u < TEXTS * w->layers * w->groups; u++) {
        const text *x = NULL;
        for (int i = 0; i < b->n; i++)
            x = b->rows[i]->sequence == u / (w->layers * w->groups) ? b->rows[i] : x;
        const oracle *o = x ? &x->layers[u / w->groups % w->layers] : NULL;
        most += o ? bound(b, o, p->live[u], p->kept[u], y->c.live[u]) : p->live[u];
        live += y->c.live[u];
    }
    cr_assert_eq(y->counters[DMS_PAGED_LIVE], live);
    cr_assert_leq(y->counters[DMS_PAGED_PEAK], most, "case %d, %s: a peak of %d slots, at most %d",
                  w->index, w->policy.name, (int)y->counters[DMS_PAGED_PEAK], (int)most);
}

static void check_counters(world *w, const batch *b)
{
    long reads = w->reads, bounds = w->bounds, visible = w->visible;
    dms_cache_stats s;
    must(dms_cache_measure(&s, w->cache));
    for (int i = 0; i < TEXTS; i++)
        for (int l = 0; l < w->layers && w->texts[i].active; l++) {
            reads += w->texts[i].layers[l].reads;
            bounds += w->texts[i].layers[l].bounds;
            visible += w->texts[i].layers[l].visible;
        }
    for (int i = 0; i < b->n && !b->prefill; i++)
        w->dense += b->rows[i]->layers[0].tokens * w->layers * w->groups;
    cr_assert_eq(s.kv_reads, reads, "case %d, %s: kv_reads %ld, expected %ld", w->index,
                 w->policy.name, (long)s.kv_reads, reads);
    cr_assert_eq(s.bound_reads, bounds, "case %d, %s: bound_reads %ld, expected %ld", w->index,
                 w->policy.name, (long)s.bound_reads, bounds);
    cr_assert_eq(s.prefill_reads, visible, "case %d, %s: prefill_reads %ld, expected %ld", w->index,
                 w->policy.name, (long)s.prefill_reads, visible);
    cr_assert_eq(s.dense_reads, w->dense);
}

static void step(world *w, const batch *b)
{
    const before_pass before = look(w, b);
    run_pass(w, b);
    copy y = copy_open(w->cache);
    for (int i = 0; i < b->n; i++)
        for (int l = 0; l < w->layers; l++)
            check_layer(w, b, i, l, &y);
    check_peak(w, b, &before, &y);
    check_counters(w, b);
    copy_close(&y);
}

/* ---- texts ---------------------------------------------------------------------------------- */

static void prefill(world *w, text *x, int n)
{
    const int sizes[] = {1, 2, 5, 16, 17, n};
    const int chunk = sizes[draw(w, 0, (int)COUNT(sizes) - 1)], begin = x->layers[0].tokens;
    for (int done = 0; done < n; done += chunk)
        step(w, &(batch){.rows = {x},
                         .n = 1,
                         .count = n - done < chunk ? n - done : chunk,
                         .prefill = true,
                         .begin = begin,
                         .end = begin + n});
}

static void begin_text(world *w, text *x)
{
    static const int edges[] = {1, 2, 15, 16, 17, 32, 33, 48};
    const bool quest = w->policy.kind == DMS_POLICY_QUEST;
    const int n =
        draw(w, 0, 1) ? edges[draw(w, 0, (int)COUNT(edges) - 1)] : draw(w, 3, quest ? 100 : 60);
    const int shape[3] = {w->groups, w->reps, w->dim};
    const oracle_rule r = rule(w, n);
    *x = (text){.active = true, .number = w->begun++, .goal = n + draw(w, 3, 40)};
    x->pause = draw(w, 0, 2) ? 0 : n + draw(w, 1, 5);
    must(dms_cache_admit(w->cache, &x->sequence));
    must(dms_policy_run_begin(w->run, x->sequence, n));
    for (int l = 0; l < w->layers; l++)
        x->layers[l] = oracle_open(&r, l, shape, w->model.config.rope_theta);
    prefill(w, x, n);
}

static void end_text(world *w, text *x)
{
    for (int l = 0; l < w->layers; l++) {
        oracle *o = &x->layers[l];
        w->reads += o->reads;
        w->bounds += o->bounds;
        w->visible += o->visible;
        w->close += o->close;
        w->choices += o->tokens;
        oracle_close(o);
    }
    x->active = false;
    must(dms_cache_release(w->cache, x->sequence));
}

static void decode(world *w)
{
    batch b = {.count = 1};
    for (int i = TEXTS - 1; i >= 0; i--)
        if (w->texts[i].active && draw(w, 0, 3))
            b.rows[b.n++] = &w->texts[i];
    if (b.n)
        step(w, &b);
}

/* Texts begin and end at different times; some have a second prompt. */
static void run_world(world *w)
{
    const int all = 3 + draw(w, 0, 1);
    for (bool busy = true; busy;) {
        busy = w->begun < all;
        for (int i = 0; i < TEXTS; i++) {
            text *x = &w->texts[i];
            const int tokens = x->active ? x->layers[0].tokens : 0;
            if (!x->active && w->begun < all && !draw(w, 0, 5))
                begin_text(w, x);
            else if (x->active && tokens >= x->goal)
                end_text(w, x);
            else if (x->active && x->pause && tokens >= x->pause &&
                     w->policy.kind != DMS_POLICY_STREAMING) {
                x->pause = 0;
                prefill(w, x, draw(w, 1, 20));
            }
            busy = busy || x->active;
        }
        decode(w);
    }
}

Test(policies, keep_read_and_return_what_their_definitions_say_at_every_step)
{
    int close = 0, choices = 0;
    /* elsewhere a few: each policy with each number of heads a group, in seconds under emulation */
    const int cases = rig_device() == DMS_CPU ? CASES : FEW_CASES;
    for (int i = 0; i < cases; i++) {
        world w;

        world_open(&w, i);

        run_world(&w);
        close += w.close;
        choices += w.choices;
        world_close(&w);
    }
    cr_assert_leq(close * 1000, choices, "rounding decided %d choices of %d", close, choices);
}
