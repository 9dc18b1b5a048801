#include "eval/decode_score.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "infer/session.h"

/* Rows of one batch lie step by step: row i*B + b is step i of context b. */
struct dms_decode_scorer {
    dms_decode_score_options options;
    dms_device *device;
    int64_t steps;                   /* T - P */
    dms_arena memory;                /* of the tensors below */
    dms_tensor ids, positions;       /* [1, T], of the teacher's pass */
    dms_tensor teacher_x;            /* [batches, steps*B, D] */
    dms_tensor student_x;            /* [steps*B, D] */
    dms_tensor next, weight, scores; /* [steps*B], [steps*B], [DMS_N_SCORES, steps*B] */
    dms_tally tally;
    int32_t *text, *following; /* [sequences, T], host */
    int32_t *host_next;        /* [steps*B] */
    float *host_weight, *host_scores;
};

static dms_tensor rows_of(const dms_tensor *x, int64_t first, int64_t n)
{
    dms_tensor rows = *x;
    const int64_t width = dms_cols(x);
    rows.rank = 2;
    rows.shape[0] = n;
    rows.shape[1] = width;
    rows.data = (float *)x->data + first * width;
    return rows;
}

static int64_t batches(const dms_decode_scorer *s)
{
    return (s->options.sequences + s->options.batch - 1) / s->options.batch;
}

/* Contexts of batch i. */
static int batch_of(const dms_decode_scorer *s, int64_t i)
{
    const int64_t left = s->options.sequences - i * s->options.batch;
    return (int)(left < s->options.batch ? left : s->options.batch);
}

static dms_status place(dms_decode_scorer *s, dms_arena *arena)
{
    const int64_t T = s->options.context, D = s->options.teacher->config.width;
    const int64_t rows = s->steps * s->options.batch;
    s->ids = s->positions = (dms_tensor){.dtype = DMS_I32, .rank = 2, .shape = {1, T}};
    s->teacher_x = (dms_tensor){.dtype = DMS_F32, .rank = 3, .shape = {batches(s), rows, D}};
    s->student_x = (dms_tensor){.dtype = DMS_F32, .rank = 2, .shape = {rows, D}};
    s->next = (dms_tensor){.dtype = DMS_I32, .rank = 1, .shape = {rows}};
    s->weight = (dms_tensor){.dtype = DMS_F32, .rank = 1, .shape = {rows}};
    s->scores = (dms_tensor){.dtype = DMS_F32, .rank = 2, .shape = {DMS_N_SCORES, rows}};
    dms_tensor *const all[] = {&s->ids,  &s->positions, &s->teacher_x, &s->student_x,
                               &s->next, &s->weight,    &s->scores};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        DMS_TRY(dms_arena_place(arena, all[i]));
    return DMS_OK;
}

static dms_status open_host(dms_decode_scorer *s)
{
    const size_t rows = (size_t)(s->steps * s->options.batch);
    const size_t tokens = (size_t)(s->options.sequences * s->options.context);
    s->text = malloc(tokens * sizeof(*s->text));
    s->following = malloc(tokens * sizeof(*s->following));
    s->host_next = malloc(rows * sizeof(*s->host_next));
    s->host_weight = malloc(rows * sizeof(*s->host_weight));
    s->host_scores = malloc(rows * DMS_N_SCORES * sizeof(*s->host_scores));
    if (!s->text || !s->following || !s->host_next || !s->host_weight || !s->host_scores)
        return dms_fail(DMS_ERR_NOMEM, "no memory for %zu tokens of text", tokens);
    return dms_tally_open(&s->tally, s->options.sequences * s->steps, s->options.sequences);
}

static dms_status check_options(const dms_decode_score_options *o)
{
    if (o->batch < 1 || o->sequences < 1 || o->context < 2 || o->prompt < 1 ||
        o->prompt >= o->context)
        return dms_fail(DMS_ERR_ARG,
                        "a prompt of %" PRId64 " of %" PRId64
                        " tokens, expected at least one and one left to score",
                        o->prompt, o->context);
    const int64_t a = o->student->rope_table.shape[0], b = o->teacher->rope_table.shape[0];
    if (o->context > a || o->context > b)
        return dms_fail(DMS_ERR_ARG,
                        "a context is %" PRId64 " tokens, the models are open for %" PRId64,
                        o->context, a < b ? a : b);
    return DMS_OK;
}

/* The teacher's tape for one context; it is only needed while opening. */
static dms_var *teacher_pass(dms_decode_scorer *s, dms_tape *tape)
{
    const dms_pass pass = {.tape = tape,
                           .model = s->options.teacher,
                           .ids = &s->ids,
                           .positions = &s->positions,
                           .attend = dms_attend_dense};
    dms_tape_reset(tape);
    return dms_transformer_forward(&pass);
}

static dms_status open_tape(dms_tape **out, dms_decode_scorer *s)
{
    dms_tape *tape = NULL;
    dms_tape_options o = {.device = s->device,
                          .max_nodes = dms_transformer_nodes(s->options.teacher),
                          .measure = true};
    DMS_TRY(dms_tape_open(&tape, &o));
    teacher_pass(s, tape);
    const dms_status status = dms_tape_status(tape);
    dms_tape_peak(tape, &o.keep_bytes, &o.scratch_bytes);
    dms_tape_close(tape);
    DMS_TRY(status);
    o.measure = false;
    return dms_tape_open(out, &o);
}

/* The teacher's states at the scored positions of context i. */
static dms_status run_context(dms_decode_scorer *s, dms_tape *tape, int64_t i)
{
    const int64_t B = s->options.batch, T = s->options.context, P = s->options.prompt;
    DMS_TRY(s->device->upload(s->device, s->ids.data, s->text + i * T, dms_tensor_bytes(&s->ids)));
    const dms_var *x = teacher_pass(s, tape);
    DMS_TRY(dms_tape_status(tape));
    for (int64_t t = 0; t < s->steps; t++) {
        dms_tensor to = rows_of(&s->teacher_x, (i / B * s->steps + t) * B + i % B, 1);
        const dms_tensor from = rows_of(&x->value, P + t, 1);
        DMS_TRY(dms_cast(&to, &from));
    }
    return DMS_OK;
}

static dms_status run_teacher(dms_decode_scorer *s)
{
    dms_tape *tape = NULL;
    dms_status status = DMS_OK;
    int32_t *positions = malloc(dms_tensor_bytes(&s->positions));
    if (!positions)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a context");
    for (int64_t t = 0; t < s->options.context; t++)
        positions[t] = (int32_t)t;
    DMS_TRY_OR(done, s->device->upload(s->device, s->positions.data, positions,
                                       dms_tensor_bytes(&s->positions)));
    DMS_TRY_OR(done,
               s->device->zero(s->device, s->teacher_x.data, dms_tensor_bytes(&s->teacher_x)));
    DMS_TRY_OR(done, open_tape(&tape, s));
    for (int64_t i = 0; i < s->options.sequences; i++)
        DMS_TRY_OR(done, run_context(s, tape, i));
done:
    dms_tape_close(tape);
    free(positions);
    return status;
}

static dms_status check_text(const dms_decode_scorer *s)
{
    const int64_t n = s->options.sequences * s->options.context;
    const int64_t vocab = s->options.teacher->config.vocab;
    for (int64_t i = 0; i < n; i++)
        if (s->text[i] < 0 || s->text[i] >= vocab || s->following[i] >= vocab)
            return dms_fail(DMS_ERR_ARG,
                            "the text has token %" PRId32 " before %" PRId32 ", the model %" PRId64
                            " tokens: another tokenizer?",
                            s->text[i], s->following[i], vocab);
    return DMS_OK;
}

static dms_status open_parts(dms_decode_scorer *s, const dms_score_feed *feed)
{
    dms_arena measure = dms_arena_measure(s->device);
    DMS_TRY(place(s, &measure));
    DMS_TRY(dms_arena_open(&s->memory, s->device, measure.peak));
    DMS_TRY(place(s, &s->memory));
    DMS_TRY(open_host(s));
    DMS_TRY(feed->read(feed->context, 0, s->options.sequences, s->text, s->following));
    DMS_TRY(check_text(s));
    return run_teacher(s);
}

dms_status dms_decode_scorer_open(dms_decode_scorer **out, const dms_decode_score_options *options,
                                  const dms_score_feed *feed)
{
    DMS_TRY(check_options(options));
    dms_decode_scorer *s = calloc(1, sizeof(*s));
    if (!s)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a scorer");
    s->options = *options;
    if (s->options.batch > s->options.sequences)
        s->options.batch = (int)s->options.sequences;
    s->device = options->teacher->device;
    s->steps = options->context - options->prompt;
    const dms_status status = open_parts(s, feed);
    if (status) {
        if (status == DMS_ERR_NOMEM)
            dms_trail_note("scoring; lower the batch, the contexts or their length");
        dms_decode_scorer_close(s);
        return status;
    }
    *out = s;
    return DMS_OK;
}

void dms_decode_scorer_close(dms_decode_scorer *s)
{
    if (!s)
        return;
    dms_tally_close(&s->tally);
    dms_arena_close(&s->memory);
    free(s->text);
    free(s->following);
    free(s->host_next);
    free(s->host_weight);
    free(s->host_scores);
    free(s);
}

/* One policy's run over all batches. */
typedef struct {
    dms_decode_scorer *scorer;
    dms_session *session;
    const dms_model *model;
    dms_run_cost *cost;
    int32_t *sequences, *tokens; /* [B] */
    void (*progress)(void *context, int64_t done, int64_t total);
    void *context;
} run;

static dms_status prefill_one(run *r, int64_t batch, int b)
{
    const dms_decode_score_options *o = &r->scorer->options;
    const int32_t *text = r->scorer->text + (batch * o->batch + b) * o->context;
    int sequence;
    DMS_TRY(dms_cache_admit(dms_session_cache(r->session), &sequence));
    r->sequences[b] = sequence;
    return dms_session_prefill(r->session, NULL, sequence, text, o->prompt, 0);
}

/* The peak is that of the first context, which is alone in the cache. */
static dms_status prefill(run *r, int64_t batch, int n)
{
    dms_run_cost others = {0};
    double start;
    DMS_TRY(dms_cost_begin(&start, r->session));
    DMS_TRY(prefill_one(r, batch, 0));
    DMS_TRY(dms_cost_end(r->cost, start, r->session, false));
    DMS_TRY(dms_cost_begin(&start, r->session));
    for (int b = 1; b < n; b++)
        DMS_TRY(prefill_one(r, batch, b));
    DMS_TRY(dms_cost_end(&others, start, r->session, false));
    r->cost->prefill_s += others.prefill_s;
    r->cost->prefilled += n * r->scorer->options.prompt;
    return DMS_OK;
}

static dms_status decode(run *r, int64_t batch, int n)
{
    dms_decode_scorer *s = r->scorer;
    const dms_decode_score_options *o = &s->options;
    double start;
    DMS_TRY(dms_cost_begin(&start, r->session));
    for (int64_t t = 0; t < s->steps; t++) {
        dms_tensor hidden, to = rows_of(&s->student_x, t * o->batch, n);
        for (int b = 0; b < n; b++)
            r->tokens[b] = s->text[(batch * o->batch + b) * o->context + o->prompt + t];
        DMS_TRY(dms_session_step(r->session, &hidden, r->sequences, r->tokens, n));
        DMS_TRY(dms_cast(&to, &hidden));
        if (r->progress)
            r->progress(r->context, batch * s->steps + t + 1, batches(s) * s->steps);
    }
    r->cost->decoded += s->steps * n;
    return dms_cost_end(r->cost, start, r->session, true);
}

/* What follows each scored token, and whether it counts. */
static dms_status upload_targets(dms_decode_scorer *s, int64_t batch, int n)
{
    const dms_decode_score_options *o = &s->options;
    for (int64_t i = 0; i < s->steps * o->batch; i++) {
        const int64_t b = i % o->batch, at = o->prompt + i / o->batch;
        const int64_t row = (batch * o->batch + b) * o->context + at;
        const bool counts = b < n && !dms_config_is_eos(&o->teacher->config, s->text[row]);
        s->host_next[i] = counts ? s->following[row] : -1;
        s->host_weight[i] = counts ? 1.0f : 0.0f;
    }
    dms_device *dev = s->device;
    DMS_TRY(dev->upload(dev, s->next.data, s->host_next, dms_tensor_bytes(&s->next)));
    return dev->upload(dev, s->weight.data, s->host_weight, dms_tensor_bytes(&s->weight));
}

static dms_status score_rows(run *r, int64_t batch)
{
    dms_decode_scorer *s = r->scorer;
    const int64_t rows = dms_count(&s->weight);
    const dms_tensor teacher = rows_of(&s->teacher_x, batch * rows, rows);
    dms_tensor row[DMS_N_SCORES];
    for (int i = 0; i < DMS_N_SCORES; i++) {
        row[i] = s->weight;
        row[i].data = (float *)s->scores.data + i * rows;
    }
    const dms_score_out out = {&row[DMS_SCORE_NLL],        &row[DMS_SCORE_NLL_TEACHER],
                               &row[DMS_SCORE_KL_FORWARD], &row[DMS_SCORE_KL_REVERSE],
                               &row[DMS_SCORE_AGREE],      &s->next};
    const dms_distill_in in = {.xs = &s->student_x,
                               .ws = &r->model->head->value,
                               .xt = &teacher,
                               .wt = &s->options.teacher->head->value,
                               .weight = &s->weight};
    DMS_TRY(dms_score(&out, &in));
    return s->device->download(s->device, s->host_scores, s->scores.data,
                               dms_tensor_bytes(&s->scores));
}

static void add_scores(dms_decode_scorer *s, int n)
{
    const int64_t B = s->options.batch, rows = s->steps * B;
    for (int b = 0; b < n; b++) {
        dms_tally_rows of = {
            .weight = s->host_weight + b, .next = s->host_next + b, .n = s->steps, .stride = B};
        for (int k = 0; k < DMS_N_SCORES; k++)
            of.scores[k] = s->host_scores + k * rows + b;
        dms_tally_add(&s->tally, &of);
    }
}

static dms_status run_batch(run *r, int64_t batch)
{
    dms_decode_scorer *s = r->scorer;
    const int n = batch_of(s, batch);
    DMS_TRY(s->device->zero(s->device, s->student_x.data, dms_tensor_bytes(&s->student_x)));
    DMS_TRY(prefill(r, batch, n));
    DMS_TRY(decode(r, batch, n));
    DMS_TRY(upload_targets(s, batch, n));
    DMS_TRY(score_rows(r, batch));
    add_scores(s, n);
    for (int b = 0; b < n; b++)
        DMS_TRY(dms_cache_release(dms_session_cache(r->session), r->sequences[b]));
    return DMS_OK;
}

static dms_status open_session(run *r, const dms_policy *policy)
{
    const dms_decode_score_options *o = &r->scorer->options;
    dms_policy settled = *policy;
    dms_policy_settle(&settled, o->prompt);
    r->model = policy->kind == DMS_POLICY_DMS ? o->student : o->teacher;
    return dms_session_open(&r->session, &(dms_session_options){.model = r->model,
                                                                .context = o->context,
                                                                .max_sequences = o->batch,
                                                                .kv_dtype = o->kv_dtype,
                                                                .policy = &settled,
                                                                .seed = o->seed});
}

/* The peaks of one context, of those that were in the cache side by side; what the policy holds is
 * for all of them. */
static void share_peaks(const run *r, const dms_decode_score_options *o)
{
    dms_run_cost *c = r->cost;
    c->kv_peak_tokens /= o->batch;
    c->kv_peak_bytes /= o->batch;
    c->kv_prefill_peak_bytes -=
        (double)dms_session_policy_bytes(r->session) * (o->batch - 1) / o->batch;
    c->dense_peak_tokens = (double)o->context;
}

dms_status dms_decode_scorer_run(dms_scores *scores, dms_run_cost *cost, dms_decode_scorer *s,
                                 const dms_policy *policy,
                                 void (*progress)(void *context, int64_t done, int64_t total),
                                 void *context)
{
    const size_t ids = (size_t)s->options.batch * sizeof(int32_t);
    run r = {.scorer = s, .cost = cost, .progress = progress, .context = context};
    dms_status status = DMS_OK;
    *cost = (dms_run_cost){0};
    dms_tally_reset(&s->tally);
    r.sequences = malloc(2 * ids);
    if (!r.sequences)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a batch");
    r.tokens = r.sequences + s->options.batch;
    DMS_TRY_OR(done, open_session(&r, policy));
    for (int64_t i = 0; i < batches(s); i++)
        DMS_TRY_OR(done, run_batch(&r, i));
    DMS_TRY_OR(done, dms_cost_reads(cost, r.session));
    share_peaks(&r, &s->options);
    *scores = dms_tally_report(&s->tally);
done:
    dms_session_close(r.session);
    free(r.sequences);
    return status;
}
