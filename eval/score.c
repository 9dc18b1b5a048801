#include "eval/score.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    dms_policy policy;
    int64_t window;
    dms_tally scores;
    dms_kv_count kv;
} tally;

struct dms_scorer {
    dms_score_options options;
    dms_device *device;
    dms_tape *tape;              /* of one pass at a time, teacher or student */
    dms_arena memory;            /* of the tensors below */
    dms_tensor ids, positions;   /* [B, T] */
    dms_tensor next, weight;     /* [B*T] */
    dms_tensor teacher_x;        /* [B, T, D] */
    dms_tensor given, decisions; /* [L, B, G, T] */
    dms_tensor scores;           /* [DMS_N_SCORES, B*T] */
    tally *tallies;
    int64_t sequences;
    float *host_scores;    /* [DMS_N_SCORES, B*T] */
    float *host_decisions; /* [L, B, G, T] */
    float *host_weight;    /* [B*T] */
    int32_t *host_ids, *host_next;
};

static dms_status place_tensors(dms_scorer *s, dms_arena *arena)
{
    const dms_config *c = &s->options.teacher->config;
    const int64_t B = s->options.batch, T = s->options.context;
    s->ids = s->positions = (dms_tensor){.dtype = DMS_I32, .rank = 2, .shape = {B, T}};
    s->next = (dms_tensor){.dtype = DMS_I32, .rank = 1, .shape = {B * T}};
    s->weight = (dms_tensor){.dtype = DMS_F32, .rank = 1, .shape = {B * T}};
    s->teacher_x = (dms_tensor){.dtype = DMS_F32, .rank = 3, .shape = {B, T, c->width}};
    s->given = s->decisions =
        (dms_tensor){.dtype = DMS_F32, .rank = 4, .shape = {c->layers, B, c->kv_heads, T}};
    s->scores = (dms_tensor){.dtype = DMS_F32, .rank = 2, .shape = {DMS_N_SCORES, B * T}};
    dms_tensor *const all[] = {&s->ids,       &s->positions, &s->next,      &s->weight,
                               &s->teacher_x, &s->given,     &s->decisions, &s->scores};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        DMS_TRY(dms_arena_place(arena, all[i]));
    return DMS_OK;
}

static dms_pass pass_of(dms_scorer *s, const dms_model *model)
{
    return (dms_pass){.tape = s->tape,
                      .model = model,
                      .ids = &s->ids,
                      .positions = &s->positions,
                      .attend = dms_attend_dense};
}

/* Hidden states of one policy; NULL on a poisoned tape. */
static dms_var *run_policy(dms_scorer *s, const tally *t, bool given)
{
    const bool own = t->policy.kind == DMS_POLICY_DMS;
    dms_hard_context context = {
        .window = t->window, .given = given ? &s->given : NULL, .decisions = &s->decisions};
    dms_pass pass = pass_of(s, own ? s->options.student : s->options.teacher);
    pass.gated = own;
    pass.attend = dms_attend_hard;
    pass.context = &context;
    return dms_transformer_forward(&pass);
}

/* Finds out what the largest pass needs, then opens a tape of that size. */
static dms_status open_tape(dms_scorer *s)
{
    dms_status status = DMS_OK;
    dms_tape_options options = {.device = s->device,
                                .max_nodes = dms_transformer_nodes(s->options.teacher),
                                .measure = true};
    DMS_TRY(dms_tape_open(&s->tape, &options));
    for (int i = 0; !status && i < s->options.n_policies; i++) {
        const tally *t = &s->tallies[i];
        dms_tape_reset(s->tape);
        run_policy(s, t, t->policy.kind != DMS_POLICY_DMS);
        status = dms_tape_status(s->tape);
    }
    dms_tape_peak(s->tape, &options.keep_bytes, &options.scratch_bytes);
    dms_tape_close(s->tape);
    s->tape = NULL;
    DMS_TRY(status);
    options.measure = false;
    return dms_tape_open(&s->tape, &options);
}

static dms_status open_host(dms_scorer *s)
{
    const int64_t rows = s->options.batch * s->options.context;
    s->host_scores = malloc(dms_tensor_bytes(&s->scores));
    s->host_decisions = malloc(dms_tensor_bytes(&s->decisions));
    s->host_weight = malloc((size_t)rows * sizeof(float));
    s->host_ids = malloc((size_t)rows * sizeof(int32_t));
    s->host_next = malloc((size_t)rows * sizeof(int32_t));
    if (!s->host_scores || !s->host_decisions || !s->host_weight || !s->host_ids || !s->host_next)
        return dms_fail(DMS_ERR_NOMEM, "no memory for the scores of %" PRId64 " tokens", rows);
    for (int64_t i = 0; i < rows; i++)
        s->host_ids[i] = (int32_t)(i % s->options.context);
    return s->device->upload(s->device, s->positions.data, s->host_ids,
                             dms_tensor_bytes(&s->positions));
}

static dms_status open_tallies(dms_scorer *s)
{
    const dms_score_options *o = &s->options;
    s->tallies = calloc((size_t)o->n_policies, sizeof(*s->tallies));
    if (!s->tallies)
        return dms_fail(DMS_ERR_NOMEM, "no memory for %d policies", o->n_policies);
    for (int i = 0; i < o->n_policies; i++) {
        tally *t = &s->tallies[i];
        t->policy = o->policies[i];
        DMS_TRY(dms_policy_window(&t->window, &t->policy, &o->student->gate));
        if (!dms_policy_is_law(&t->policy))
            return dms_fail(DMS_ERR_ARG, "policy %s is scored by decoding, not by masked passes",
                            t->policy.name);
        DMS_TRY(dms_tally_open(&t->scores, o->sequences * o->context, o->sequences));
    }
    return DMS_OK;
}

static dms_status check_options(const dms_score_options *o)
{
    const dms_config *a = &o->student->config, *b = &o->teacher->config;
    const int64_t longest = o->student->rope_table.shape[0] < o->teacher->rope_table.shape[0]
                                ? o->student->rope_table.shape[0]
                                : o->teacher->rope_table.shape[0];
    if (o->batch < 1 || o->context < 1 || o->sequences < 1 || o->n_policies < 1)
        return dms_fail(DMS_ERR_ARG, "batch, context, sequences and policies start at 1");
    if (o->context > longest)
        return dms_fail(DMS_ERR_ARG,
                        "context is %" PRId64 " tokens, the models are open for %" PRId64,
                        o->context, longest);
    if (a->vocab != b->vocab || a->layers != b->layers || a->width != b->width ||
        a->kv_heads != b->kv_heads)
        return dms_fail(DMS_ERR_ARG,
                        "the teacher has %d layers of width %" PRId64 " and %" PRId64
                        " tokens, expected the student's %d, %" PRId64 " and %" PRId64,
                        b->layers, b->width, b->vocab, a->layers, a->width, a->vocab);
    return DMS_OK;
}

static dms_status open_parts(dms_scorer *s)
{
    dms_arena measure = dms_arena_measure(s->device);
    DMS_TRY(open_tallies(s));
    DMS_TRY(place_tensors(s, &measure));
    DMS_TRY(dms_arena_open(&s->memory, s->device, measure.peak));
    DMS_TRY(place_tensors(s, &s->memory));
    DMS_TRY(open_host(s));
    return open_tape(s);
}

dms_status dms_scorer_open(dms_scorer **out, const dms_score_options *options)
{
    DMS_TRY(check_options(options));
    dms_scorer *s = calloc(1, sizeof(*s));
    if (!s)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a scorer");
    s->options = *options;
    s->device = options->teacher->device;
    const dms_status status = open_parts(s);
    if (status) {
        if (status == DMS_ERR_NOMEM)
            dms_trail_note("scoring; lower the batch or the context");
        dms_scorer_close(s);
        return status;
    }
    *out = s;
    return DMS_OK;
}

void dms_scorer_close(dms_scorer *s)
{
    if (!s)
        return;
    for (int i = 0; s->tallies && i < s->options.n_policies; i++)
        dms_tally_close(&s->tallies[i].scores);
    free(s->tallies);
    free(s->host_scores);
    free(s->host_decisions);
    free(s->host_weight);
    free(s->host_ids);
    free(s->host_next);
    dms_tape_close(s->tape);
    dms_arena_close(&s->memory);
    free(s);
}

/* Rows beyond the n given ones keep token 0 and weight 0. */
static dms_status upload_batch(dms_scorer *s, const int32_t *ids, const int32_t *next, int64_t n)
{
    const int64_t rows = s->options.batch * s->options.context, used = n * s->options.context;
    const int64_t vocab = s->options.teacher->config.vocab;
    for (int64_t i = 0; i < rows; i++) {
        if (i < used && (ids[i] < 0 || ids[i] >= vocab || next[i] >= vocab))
            return dms_fail(DMS_ERR_ARG,
                            "the text has token %" PRId32 " before %" PRId32 ", the model %" PRId64
                            " tokens: another tokenizer?",
                            ids[i], next[i], vocab);
        const bool counts = i < used && !dms_config_is_eos(&s->options.teacher->config, ids[i]);
        s->host_ids[i] = i < used ? ids[i] : 0;
        s->host_next[i] = i < used ? next[i] : -1;
        s->host_weight[i] = counts ? 1.0f : 0.0f;
    }
    dms_device *dev = s->device;
    DMS_TRY(dev->upload(dev, s->ids.data, s->host_ids, dms_tensor_bytes(&s->ids)));
    DMS_TRY(dev->upload(dev, s->next.data, s->host_next, dms_tensor_bytes(&s->next)));
    return dev->upload(dev, s->weight.data, s->host_weight, dms_tensor_bytes(&s->weight));
}

static dms_status run_teacher(dms_scorer *s)
{
    dms_tape_reset(s->tape);
    const dms_pass pass = pass_of(s, s->options.teacher);
    dms_var *x = dms_transformer_forward(&pass);
    DMS_TRY(dms_tape_status(s->tape));
    return dms_cast(&s->teacher_x, &x->value);
}

/* Hands out the student's hidden states and fills s->decisions. */
static dms_status run_student(dms_scorer *s, const tally *t, const dms_tensor **x)
{
    if (t->policy.kind == DMS_POLICY_DENSE) {
        *x = &s->teacher_x;
        return s->device->zero(s->device, s->decisions.data, dms_tensor_bytes(&s->decisions));
    }
    const bool given = t->policy.kind != DMS_POLICY_DMS;
    if (given) {
        const int64_t *n = s->given.shape;
        const dms_policy_shape shape = {s->options.seed, s->sequences, n[0], n[1], n[2], n[3]};
        dms_policy_decide(s->host_decisions, &t->policy, &shape);
        DMS_TRY(s->device->upload(s->device, s->given.data, s->host_decisions,
                                  dms_tensor_bytes(&s->given)));
    }
    dms_tape_reset(s->tape);
    dms_var *hidden = run_policy(s, t, given);
    DMS_TRY(dms_tape_status(s->tape));
    *x = &hidden->value;
    return DMS_OK;
}

static dms_status score_rows(dms_scorer *s, const tally *t, const dms_tensor *x)
{
    const dms_model *student =
        t->policy.kind == DMS_POLICY_DMS ? s->options.student : s->options.teacher;
    dms_tensor row[DMS_N_SCORES];
    for (int i = 0; i < DMS_N_SCORES; i++) {
        row[i] = s->weight;
        row[i].data = (float *)s->scores.data + (size_t)i * (size_t)dms_count(&s->weight);
    }
    const dms_score_out out = {&row[DMS_SCORE_NLL],        &row[DMS_SCORE_NLL_TEACHER],
                               &row[DMS_SCORE_KL_FORWARD], &row[DMS_SCORE_KL_REVERSE],
                               &row[DMS_SCORE_AGREE],      &s->next};
    const dms_distill_in in = {.xs = x,
                               .ws = &student->head->value,
                               .xt = &s->teacher_x,
                               .wt = &s->options.teacher->head->value,
                               .weight = &s->weight};
    DMS_TRY(dms_score(&out, &in));
    DMS_TRY(s->device->download(s->device, s->host_scores, s->scores.data,
                                dms_tensor_bytes(&s->scores)));
    return s->device->download(s->device, s->host_decisions, s->decisions.data,
                               dms_tensor_bytes(&s->decisions));
}

static void add_scores(dms_scorer *s, tally *t, int64_t n)
{
    const int64_t rows = dms_count(&s->weight), T = s->options.context;
    for (int64_t b = 0; b < n; b++) {
        dms_tally_rows of = {
            .weight = s->host_weight + b * T, .next = s->host_next + b * T, .n = T, .stride = 1};
        for (int k = 0; k < DMS_N_SCORES; k++)
            of.scores[k] = s->host_scores + k * rows + b * T;
        dms_tally_add(&t->scores, &of);
    }
}

static void add_decisions(dms_scorer *s, tally *t, int64_t n)
{
    const int64_t *size = s->decisions.shape;
    for (int64_t l = 0; l < size[0]; l++)
        for (int64_t b = 0; b < n; b++)
            for (int64_t g = 0; g < size[2]; g++)
                dms_kv_count_add(&t->kv,
                                 s->host_decisions + ((l * size[1] + b) * size[2] + g) * size[3],
                                 size[3], t->window);
}

dms_status dms_scorer_add(dms_scorer *s, const int32_t *ids, const int32_t *next, int64_t n)
{
    if (n < 1 || n > s->options.batch || s->sequences + n > s->options.sequences)
        return dms_fail(DMS_ERR_ARG,
                        "%" PRId64 " sequences after %" PRId64 ", expected at most %" PRId64
                        " at once and %" PRId64 " in all",
                        n, s->sequences, s->options.batch, s->options.sequences);
    DMS_TRY(upload_batch(s, ids, next, n));
    DMS_TRY(run_teacher(s));
    for (int i = 0; i < s->options.n_policies; i++) {
        tally *t = &s->tallies[i];
        const dms_tensor *x = NULL;
        DMS_TRY(run_student(s, t, &x));
        DMS_TRY(score_rows(s, t, x));
        add_scores(s, t, n);
        add_decisions(s, t, n);
    }
    s->sequences += n;
    return DMS_OK;
}

void dms_scorer_reset(dms_scorer *s)
{
    s->sequences = 0;
    for (int i = 0; i < s->options.n_policies; i++) {
        dms_tally_reset(&s->tallies[i].scores);
        s->tallies[i].kv = (dms_kv_count){0};
    }
}

dms_score_report dms_scorer_report(dms_scorer *s, int i)
{
    tally *t = &s->tallies[i];
    const dms_scores scores = dms_tally_report(&t->scores);
    if (!scores.counted)
        return (dms_score_report){.window = t->window};
    return (dms_score_report){.scores = scores,
                              .decision_cr = dms_kv_decision_cr(&t->kv),
                              .cache_cr = dms_kv_cache_cr(&t->kv),
                              .read_ratio = dms_kv_read_ratio(&t->kv),
                              .window = t->window};
}

dms_status dms_scorer_sweep(dms_scorer *s, const dms_score_feed *feed)
{
    const int64_t T = s->options.context, B = s->options.batch;
    dms_status status = DMS_OK;
    int32_t *ids = malloc((size_t)(2 * B * T) * sizeof(*ids));
    if (!ids)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a batch of text");
    dms_scorer_reset(s);
    for (int64_t first = 0; first < feed->sequences; first += B) {
        const int64_t n = feed->sequences - first < B ? feed->sequences - first : B;
        DMS_TRY_OR(done, feed->read(feed->context, first, n, ids, ids + B * T));
        DMS_TRY_OR(done, dms_scorer_add(s, ids, ids + B * T, n));
        if (feed->progress)
            feed->progress(feed->context, first + n, feed->sequences);
    }
done:
    free(ids);
    return status;
}
