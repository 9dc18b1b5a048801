#include "infer/session.h"

#include <inttypes.h>
#include <stdlib.h>

#include "infer/replay.h"

enum { CHUNK = 256 };

struct dms_session {
    dms_session_options options;
    dms_policy policy; /* options.policy, or what stands for NULL */
    dms_policy_run *run;
    int64_t prompt_begin, prompt_end; /* of the prefill under way */
    dms_cache *cache;
    dms_tape *tape;
    dms_replay *replay, *step_replay; /* of decode and of step */
    dms_late *late;                   /* NULL where the gate keeps the law's convention */
    dms_arena memory;                 /* of the tensors below */
    dms_tensor inputs;                /* [3, rows], i32: token ids, positions, sequences */
    dms_tensor logits;                /* [max_sequences, V] */
    dms_tensor hidden;                /* [max_sequences, D], of dms_session_step */
    int32_t *staged;                  /* host copy of inputs */
    int64_t rows;                     /* the most tokens of one pass */
};

/* What decides on the tokens that enter: the model under policy "dms", the policy, or nobody. */
static dms_status decisions(dms_tensor *out, const dms_tensor **z, const dms_cached_context *c,
                            const dms_paged_rows *rows)
{
    const int64_t n = rows->sequences->shape[0], tokens = dms_cols(rows->positions);
    if (c->policy->policy.kind == DMS_POLICY_DMS) {
        if (!*z || !c->late)
            return DMS_OK;
        DMS_TRY(dms_late_hand_on(out, c->late, rows, c->sequences, *z));
        *z = out;
        return DMS_OK;
    }
    *z = dms_policy_run_decisions(out, c->policy, rows->layer, n, tokens) ? out : NULL;
    return DMS_OK;
}

/* Enters k and v under the decisions z; they may be NULL. */
static dms_status enter(const dms_cached_context *c, const dms_paged_rows *rows,
                        dms_var *const qkv[3], const dms_tensor *z)
{
    const int64_t tokens = dms_cols(rows->positions);
    dms_tensor made;
    if (tokens > 1)
        DMS_TRY(dms_cache_reserve(c->cache, c->sequences, (int)rows->sequences->shape[0], tokens,
                                  rows->layer));
    DMS_TRY(decisions(&made, &z, c, rows));
    return dms_paged_append(dms_cache_paged(c->cache), rows, &qkv[1]->value, &qkv[2]->value, z);
}

/* The five hooks of a policy around attention. o may be q, so probabilities are taken down first.
 */
static dms_status enter_and_attend(const dms_cached_context *c, dms_tensor *o,
                                   const dms_paged_rows *rows, dms_var *const qkv[3],
                                   const dms_tensor *z)
{
    const dms_policy_hooks *hooks = c->policy->hooks;
    DMS_TRY(enter(c, rows, qkv, z));
    const dms_policy_step step = {.cache = dms_cache_paged(c->cache),
                                  .rows = rows,
                                  .q = &qkv[0]->value,
                                  .k = &qkv[1]->value,
                                  .begin = c->begin,
                                  .end = c->end,
                                  .last = c->last};
    const dms_paged *read = step.cache;
    if (hooks->enter)
        DMS_TRY(hooks->enter(c->policy, &step));
    if (hooks->select)
        DMS_TRY(hooks->select(c->policy, &step, &read));
    if (hooks->weigh)
        DMS_TRY(hooks->weigh(c->policy, &step));
    DMS_TRY(dms_paged_attention(o, read, rows, &qkv[0]->value));
    return hooks->evict ? hooks->evict(c->policy, &step) : DMS_OK;
}

dms_var *dms_attend_cached(const dms_pass *pass, int layer, dms_var *const qkv[3], dms_var *z)
{
    const dms_cached_context *c = pass->context;
    dms_var *o = qkv[0] ? dms_tape_input(pass->tape, qkv[0]->value) : NULL;
    if (!o || dms_tape_measures(pass->tape))
        return o;
    dms_paged_rows rows = *c->rows;
    rows.layer = layer;
    dms_tape_check(pass->tape, enter_and_attend(c, &o->value, &rows, qkv, z ? &z->value : NULL));
    return dms_tape_status(pass->tape) ? NULL : o;
}

static dms_tensor view(const dms_tensor *from, int64_t first, int rank, int64_t a, int64_t b)
{
    dms_tensor t = *from;
    t.rank = rank;
    t.shape[0] = a;
    t.shape[1] = b;
    t.data = (char *)from->data + (size_t)first * dms_dtype_bytes(from->dtype);
    return t;
}

/* One pass over n sequences of `tokens` tokens each; ids and positions are staged. */
static dms_var *forward(dms_session *s, dms_tape *tape, const int32_t *sequences, int64_t n,
                        int64_t tokens, bool prefill)
{
    const dms_tensor ids = view(&s->inputs, 0, 2, n, tokens);
    const dms_tensor positions = view(&s->inputs, s->rows, 2, n, tokens);
    const dms_tensor units = view(&s->inputs, 2 * s->rows, 1, n, 1);
    const dms_paged_rows rows = {&units, &positions, 0, prefill};
    dms_cached_context context = {.cache = s->cache,
                                  .sequences = sequences,
                                  .rows = &rows,
                                  .policy = s->run,
                                  .begin = s->prompt_begin,
                                  .end = s->prompt_end,
                                  .last = prefill ? s->staged[s->rows + tokens - 1] : 0,
                                  .late = s->late};
    const dms_pass pass = {.tape = tape,
                           .model = s->options.model,
                           .ids = &ids,
                           .positions = &positions,
                           .gated = s->options.model->gate.kind != DMS_GATE_NONE,
                           .attend = dms_attend_cached,
                           .context = &context};
    dms_tape_reset(tape);
    return dms_transformer_forward(&pass);
}

/* What the tape needs for prefill of one chunk and for decode of all sequences. */
static dms_status measure(dms_session *s, dms_tape_options *o)
{
    const int64_t shapes[2][2] = {{1, s->options.chunk}, {s->options.max_sequences, 1}};
    for (int i = 0; i < 2; i++) {
        dms_tape *tape = NULL;
        size_t keep, scratch;
        dms_tape_options measuring = *o;
        measuring.measure = true;
        DMS_TRY(dms_tape_open(&tape, &measuring));
        forward(s, tape, NULL, shapes[i][0], shapes[i][1], i == 0);
        const dms_status status = dms_tape_status(tape);
        dms_tape_peak(tape, &keep, &scratch);
        dms_tape_close(tape);
        DMS_TRY(status);
        o->keep_bytes = keep > o->keep_bytes ? keep : o->keep_bytes;
        o->scratch_bytes = scratch > o->scratch_bytes ? scratch : o->scratch_bytes;
    }
    return DMS_OK;
}

static dms_status open_tape(dms_session *s)
{
    dms_tape_options o = {.device = s->options.model->device,
                          .max_nodes = dms_transformer_nodes(s->options.model)};
    DMS_TRY(measure(s, &o));
    return dms_tape_open(&s->tape, &o);
}

static dms_status place_buffers(dms_session *s, dms_arena *arena)
{
    DMS_TRY(dms_arena_place(arena, &s->inputs));
    DMS_TRY(dms_arena_place(arena, &s->hidden));
    return dms_arena_place(arena, &s->logits);
}

static dms_status open_buffers(dms_session *s)
{
    dms_device *dev = s->options.model->device;
    dms_arena measure = dms_arena_measure(dev);
    const int64_t vocab = s->options.model->config.vocab, n = s->options.max_sequences;
    const int64_t width = s->options.model->config.width;
    s->inputs = (dms_tensor){.device = dev, .dtype = DMS_I32, .rank = 2, .shape = {3, s->rows}};
    s->logits = (dms_tensor){.device = dev, .dtype = DMS_F32, .rank = 2, .shape = {n, vocab}};
    s->hidden = (dms_tensor){.device = dev, .dtype = DMS_F32, .rank = 2, .shape = {n, width}};
    DMS_TRY(place_buffers(s, &measure));
    DMS_TRY(dms_arena_open(&s->memory, dev, measure.peak));
    DMS_TRY(place_buffers(s, &s->memory));
    s->staged = malloc((size_t)(3 * s->rows) * sizeof(*s->staged));
    if (!s->staged)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a session of %" PRId64 " sequences", n);
    return DMS_OK;
}

static dms_status open_cache(dms_session *s)
{
    const dms_session_options *o = &s->options;
    const dms_config *c = &o->model->config;
    dms_cache_options cache = {.device = o->model->device,
                               .layers = c->layers,
                               .groups = c->kv_heads,
                               .head_dim = c->head_dim,
                               .context = o->context,
                               .max_sequences = o->max_sequences,
                               .dtype = o->kv_dtype,
                               .page_slots = o->page_slots,
                               .slab_bytes = o->slab_bytes};
    DMS_TRY(dms_policy_prepare(&cache, &s->policy, o->model));
    DMS_TRY(dms_cache_open(&s->cache, &cache));
    return dms_policy_run_open(&s->run, &(dms_policy_run_options){.policy = &s->policy,
                                                                  .model = o->model,
                                                                  .cache = s->cache,
                                                                  .rows = s->rows,
                                                                  .seed = o->seed});
}

static dms_status open_late(dms_session *s)
{
    const dms_session_options *o = &s->options;
    if (!o->model->gate.own || s->policy.kind != DMS_POLICY_DMS)
        return DMS_OK;
    return dms_late_open(&s->late, &(dms_late_options){.device = o->model->device,
                                                       .layers = o->model->config.layers,
                                                       .sequences = o->max_sequences,
                                                       .groups = o->model->config.kv_heads,
                                                       .rows = s->rows});
}

/* The policy of a session that names none. */
static dms_policy default_policy(const dms_model *model)
{
    static const dms_policy own = {.name = "dms", .kind = DMS_POLICY_DMS, .window = -1};
    return model->gate.kind == DMS_GATE_NONE ? dms_policy_dense : own;
}

static dms_status check_options(const dms_session_options *o)
{
    const int64_t positions = o->model->rope_table.shape[0];
    if (o->context < 1 || o->context > positions)
        return dms_fail(DMS_ERR_ARG,
                        "a context of %" PRId64 " tokens, expected 1 to %" PRId64
                        ", what the model was opened for",
                        o->context, positions);
    if (o->chunk < 0 || o->max_sequences < 1)
        return dms_fail(DMS_ERR_ARG,
                        "chunks of %" PRId64 " tokens and %d sequences, expected 1 or more",
                        o->chunk, o->max_sequences);
    return DMS_OK;
}

/* `status`, with what to do about too little memory. */
static dms_status advised(dms_status status)
{
    if (status == DMS_ERR_NOMEM)
        dms_trail_note("a shorter context or fewer sequences need less");
    return status;
}

dms_status dms_session_open(dms_session **out, const dms_session_options *options)
{
    dms_status status = DMS_OK;
    DMS_TRY(check_options(options));
    dms_session *s = calloc(1, sizeof(*s));
    if (!s)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a session");
    s->options = *options;
    s->policy = options->policy ? *options->policy : default_policy(options->model);
    if (!s->options.chunk)
        s->options.chunk = CHUNK;
    if (s->options.chunk > options->context)
        s->options.chunk = options->context;
    s->rows = s->options.chunk > options->max_sequences ? s->options.chunk : options->max_sequences;
    DMS_TRY_OR(fail, open_buffers(s));
    DMS_TRY_OR(fail, open_tape(s));
    DMS_TRY_OR(fail, open_cache(s));
    DMS_TRY_OR(fail, open_late(s));
    DMS_TRY_OR(fail, dms_replay_open(&s->replay, options->model->device, options->max_sequences));
    DMS_TRY_OR(fail,
               dms_replay_open(&s->step_replay, options->model->device, options->max_sequences));
    *out = s;
    return DMS_OK;
fail:
    dms_session_close(s);
    return advised(status);
}

void dms_session_close(dms_session *session)
{
    if (!session)
        return;
    dms_replay_close(session->replay);
    dms_replay_close(session->step_replay);
    dms_policy_run_close(session->run);
    dms_late_close(session->late);
    dms_cache_close(session->cache);
    dms_tape_close(session->tape);
    dms_arena_close(&session->memory);
    free(session->staged);
    free(session);
}

int64_t dms_session_context(const dms_session *session)
{
    return session->options.context;
}

dms_cache *dms_session_cache(dms_session *session)
{
    return session->cache;
}

static dms_status check_tokens(const dms_session *s, int sequence, const int32_t *tokens, int64_t n)
{
    const int64_t length = dms_cache_tokens(s->cache, sequence), most = s->options.context;
    if (length < 0)
        return dms_fail(DMS_ERR_ARG, "there is no sequence %d; admit it first", sequence);
    if (!dms_cache_is_whole(s->cache, sequence))
        return dms_fail(DMS_ERR_ARG, "sequence %d failed half-way before; release it", sequence);
    if (n < 1 || n > most - length)
        return dms_fail(DMS_ERR_ARG,
                        "%" PRId64 " tokens after %" PRId64 ", the context allows %" PRId64
                        " in all; shorten the text or open a longer context",
                        n, length, most);
    for (int64_t i = 0; i < n; i++)
        if (tokens[i] < 0 || tokens[i] >= s->options.model->config.vocab)
            return dms_fail(DMS_ERR_ARG, "token %" PRId64 " is %" PRId32 ", expected 0 to %" PRId64,
                            i, tokens[i], s->options.model->config.vocab - 1);
    return DMS_OK;
}

/* Row i of the pass: the next `tokens` tokens of a sequence. */
static void stage(dms_session *s, int64_t i, int32_t sequence, const int32_t *ids, int64_t tokens)
{
    const int64_t first = dms_cache_tokens(s->cache, sequence);
    for (int64_t t = 0; t < tokens; t++) {
        s->staged[i * tokens + t] = ids[t];
        s->staged[s->rows + i * tokens + t] = (int32_t)(first + t);
    }
    s->staged[2 * s->rows + i] = sequence;
}

/* Uploads what is staged, and the policy's decisions about it. */
static dms_status upload_staged(dms_session *s, int64_t n, int64_t tokens, bool prefill)
{
    dms_device *dev = s->inputs.device;
    DMS_TRY(dev->upload(dev, s->inputs.data, s->staged, dms_tensor_bytes(&s->inputs)));
    return dms_policy_run_decide(s->run, &(dms_policy_pass){.sequences = s->staged + 2 * s->rows,
                                                            .positions = s->staged + s->rows,
                                                            .n = n,
                                                            .tokens = tokens,
                                                            .prefill = prefill});
}

/* s->logits[0, n) = head times rows [first, first + n) of x. */
static dms_status project(dms_session *s, const dms_tensor *x, int64_t first, int64_t n)
{
    const dms_model *m = s->options.model;
    const int64_t width = m->config.width;
    const dms_tensor rows = view(x, first * width, 2, n, width);
    dms_tensor logits = view(&s->logits, 0, 2, n, m->config.vocab);
    return dms_linear(&logits, &rows, &m->head->value, NULL, NULL);
}

static dms_status download_logits(dms_session *s, float *host, int64_t n)
{
    dms_device *dev = s->logits.device;
    const dms_tensor logits = view(&s->logits, 0, 2, n, s->options.model->config.vocab);
    return dev->download(dev, host, logits.data, dms_tensor_bytes(&logits));
}

static dms_status prefill_chunk(dms_session *s, float *logits, int32_t sequence,
                                const int32_t *tokens, int64_t n)
{
    stage(s, 0, sequence, tokens, n);
    if (n == 1) /* longer chunks reserve for each layer in turn */
        DMS_TRY(dms_cache_reserve(s->cache, &sequence, 1, 1, -1));
    DMS_TRY(upload_staged(s, 1, n, true));
    const dms_var *x = forward(s, s->tape, &sequence, 1, n, true);
    DMS_TRY(dms_tape_status(s->tape));
    DMS_TRY(dms_cache_commit(s->cache, &sequence, 1, n, false));
    if (!logits)
        return DMS_OK;
    DMS_TRY(project(s, &x->value, n - 1, 1));
    return download_logits(s, logits, 1);
}

dms_status dms_session_prefill(dms_session *session, float *logits, int sequence,
                               const int32_t *tokens, int64_t n, int64_t chunk)
{
    const int64_t most = session->options.chunk;
    const int64_t step = chunk > 0 && chunk < most ? chunk : most;
    DMS_TRY(check_tokens(session, sequence, tokens, n));
    session->prompt_begin = dms_cache_tokens(session->cache, sequence);
    session->prompt_end = session->prompt_begin + n;
    if (!session->prompt_begin)
        DMS_TRY(dms_policy_run_begin(session->run, sequence, n));
    for (int64_t i = 0; i < n; i += step) {
        const int64_t count = n - i < step ? n - i : step;
        float *wanted = i + count == n ? logits : NULL;
        DMS_TRY(advised(prefill_chunk(session, wanted, sequence, tokens + i, count)));
    }
    return dms_cache_trim(session->cache);
}

/* What is remembered of a sequence beside its slots. */
static dms_status fork_state(dms_session *s, int from, int to)
{
    DMS_TRY(dms_policy_run_fork(s->run, from, to));
    return s->late ? dms_late_fork(s->late, from, to) : DMS_OK;
}

dms_status dms_session_fork(dms_session *session, int from, int *sequence)
{
    int to = -1;
    DMS_TRY(
        advised(dms_cache_fork(session->cache, from, dms_policy_run_shares(session->run), &to)));
    const dms_status status = fork_state(session, from, to);
    if (status) {
        dms_cache_release(session->cache, to);
        return status;
    }
    *sequence = to;
    return DMS_OK;
}

static dms_status check_batch(const dms_session *s, const int32_t *sequences, const int32_t *tokens,
                              int n)
{
    if (n < 1 || n > s->options.max_sequences)
        return dms_fail(DMS_ERR_ARG, "a batch of %d sequences, expected 1 to %d", n,
                        s->options.max_sequences);
    for (int i = 0; i < n; i++) {
        DMS_TRY(check_tokens(s, sequences[i], tokens + i, 1));
        for (int j = 0; j < i; j++)
            if (sequences[j] == sequences[i])
                return dms_fail(DMS_ERR_ARG, "sequence %d is twice in one batch", sequences[i]);
    }
    return DMS_OK;
}

typedef struct {
    dms_session *session;
    const int32_t *sequences;
    int n;
} decode_step;

/* Queue one decode step; what changes from step to step lies in s->inputs and in the cache. */
static dms_status run_logits(void *context)
{
    const decode_step *step = context;
    dms_session *s = step->session;
    const dms_var *x = forward(s, s->tape, step->sequences, step->n, 1, false);
    DMS_TRY(dms_tape_status(s->tape));
    return project(s, &x->value, 0, step->n);
}

static dms_status run_hidden(void *context)
{
    const decode_step *step = context;
    dms_session *s = step->session;
    const int64_t width = s->options.model->config.width;
    const dms_var *x = forward(s, s->tape, step->sequences, step->n, 1, false);
    DMS_TRY(dms_tape_status(s->tape));
    dms_tensor out = view(&s->hidden, 0, 2, step->n, width);
    const dms_tensor in = view(&x->value, 0, 2, step->n, width);
    return dms_cast(&out, &in);
}

static dms_status run_decode(dms_session *s, dms_replay *replay, const int32_t *tokens,
                             decode_step *step)
{
    const int n = step->n;
    DMS_TRY(check_batch(s, step->sequences, tokens, n));
    DMS_TRY(advised(dms_cache_reserve(s->cache, step->sequences, n, 1, -1)));
    for (int i = 0; i < n; i++) {
        if (!dms_cache_tokens(s->cache, step->sequences[i]))
            DMS_TRY(dms_policy_run_begin(s->run, step->sequences[i], 1));
        stage(s, i, step->sequences[i], tokens + i, 1);
    }
    DMS_TRY(upload_staged(s, n, 1, false));
    DMS_TRY(dms_replay_run(replay, n, dms_cache_paged(s->cache),
                           replay == s->replay ? run_logits : run_hidden, step));
    return dms_cache_commit(s->cache, step->sequences, n, 1, true);
}

dms_status dms_session_decode(dms_session *session, float *logits, const int32_t *sequences,
                              const int32_t *tokens, int n)
{
    decode_step step = {session, sequences, n};
    DMS_TRY(run_decode(session, session->replay, tokens, &step));
    return download_logits(session, logits, n);
}

dms_status dms_session_step(dms_session *session, dms_tensor *hidden, const int32_t *sequences,
                            const int32_t *tokens, int n)
{
    decode_step step = {session, sequences, n};
    DMS_TRY(run_decode(session, session->step_replay, tokens, &step));
    *hidden = view(&session->hidden, 0, 2, n, session->options.model->config.width);
    return DMS_OK;
}

size_t dms_session_policy_bytes(const dms_session *session)
{
    return dms_policy_run_bytes(session->run);
}
