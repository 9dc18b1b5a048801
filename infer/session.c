#include "infer/session.h"

#include <inttypes.h>
#include <stdlib.h>

#include "infer/replay.h"

enum { CHUNK = 256 };

struct dms_session {
    dms_session_options options;
    dms_cache *cache;
    dms_tape *tape;
    dms_replay *replay;
    dms_late *late;    /* NULL where the gate keeps the law's convention */
    dms_arena memory;  /* of the three tensors below */
    dms_tensor inputs; /* [3, rows], i32: token ids, positions, sequences */
    dms_tensor logits; /* [max_sequences, V] */
    int32_t *staged;   /* host copy of inputs */
    int64_t rows;      /* the most tokens of one pass */
};

static dms_status append_and_attend(const dms_cached_context *c, dms_tensor *o,
                                    const dms_paged_rows *rows, dms_var *const qkv[3],
                                    const dms_tensor *z)
{
    const dms_paged *paged = dms_cache_paged(c->cache);
    const int64_t tokens = dms_cols(rows->positions);
    const int n = (int)rows->sequences->shape[0];
    dms_tensor handed;
    if (z && c->late) {
        DMS_TRY(dms_late_hand_on(&handed, c->late, rows, c->sequences, z));
        z = &handed;
    }
    if (tokens > 1)
        DMS_TRY(dms_cache_reserve(c->cache, c->sequences, n, tokens, rows->layer));
    DMS_TRY(dms_paged_append(paged, rows, &qkv[1]->value, &qkv[2]->value, z));
    DMS_TRY(dms_paged_attention(o, paged, rows, &qkv[0]->value));
    return tokens > 1 ? dms_paged_compact(paged, rows) : DMS_OK;
}

dms_var *dms_attend_cached(const dms_pass *pass, int layer, dms_var *const qkv[3], dms_var *z)
{
    const dms_cached_context *c = pass->context;
    dms_var *o = qkv[0] ? dms_tape_input(pass->tape, qkv[0]->value) : NULL;
    if (!o || dms_tape_measures(pass->tape))
        return o;
    dms_paged_rows rows = *c->rows;
    rows.layer = layer;
    dms_tape_check(pass->tape,
                   append_and_attend(c, &o->value, &rows, qkv, z && !c->dense ? &z->value : NULL));
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
    dms_cached_context context = {s->cache, sequences, &rows, s->options.dense, s->late};
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
    return dms_arena_place(arena, &s->logits);
}

static dms_status open_buffers(dms_session *s)
{
    dms_device *dev = s->options.model->device;
    dms_arena measure = dms_arena_measure(dev);
    const int64_t vocab = s->options.model->config.vocab, n = s->options.max_sequences;
    s->inputs = (dms_tensor){.device = dev, .dtype = DMS_I32, .rank = 2, .shape = {3, s->rows}};
    s->logits = (dms_tensor){.device = dev, .dtype = DMS_F32, .rank = 2, .shape = {n, vocab}};
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
    const bool dense = o->dense || o->model->gate.kind == DMS_GATE_NONE;
    return dms_cache_open(&s->cache,
                          &(dms_cache_options){.device = o->model->device,
                                               .layers = c->layers,
                                               .groups = c->kv_heads,
                                               .head_dim = c->head_dim,
                                               .window = dense ? 0 : o->model->gate.window,
                                               .context = o->context,
                                               .max_sequences = o->max_sequences,
                                               .dtype = o->kv_dtype,
                                               .page_slots = o->page_slots,
                                               .slab_bytes = o->slab_bytes});
}

static dms_status open_late(dms_session *s)
{
    const dms_session_options *o = &s->options;
    if (!o->model->gate.own || o->dense)
        return DMS_OK;
    return dms_late_open(&s->late, &(dms_late_options){.device = o->model->device,
                                                       .layers = o->model->config.layers,
                                                       .sequences = o->max_sequences,
                                                       .groups = o->model->config.kv_heads,
                                                       .rows = s->rows});
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
    dms_late_close(session->late);
    dms_cache_close(session->cache);
    dms_tape_close(session->tape);
    dms_arena_close(&session->memory);
    free(session->staged);
    free(session);
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

static dms_status upload_staged(dms_session *s)
{
    dms_device *dev = s->inputs.device;
    return dev->upload(dev, s->inputs.data, s->staged, dms_tensor_bytes(&s->inputs));
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
    DMS_TRY(upload_staged(s));
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
    for (int64_t i = 0; i < n; i += step) {
        const int64_t count = n - i < step ? n - i : step;
        float *wanted = i + count == n ? logits : NULL;
        DMS_TRY(advised(prefill_chunk(session, wanted, sequence, tokens + i, count)));
    }
    return dms_cache_trim(session->cache);
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

/* Queues one decode step; what changes from step to step lies in s->inputs and in the cache. */
static dms_status run_step(void *context)
{
    const decode_step *step = context;
    dms_session *s = step->session;
    const dms_var *x = forward(s, s->tape, step->sequences, step->n, 1, false);
    DMS_TRY(dms_tape_status(s->tape));
    return project(s, &x->value, 0, step->n);
}

dms_status dms_session_decode(dms_session *session, float *logits, const int32_t *sequences,
                              const int32_t *tokens, int n)
{
    decode_step step = {session, sequences, n};
    DMS_TRY(check_batch(session, sequences, tokens, n));
    DMS_TRY(advised(dms_cache_reserve(session->cache, sequences, n, 1, -1)));
    for (int i = 0; i < n; i++)
        stage(session, i, sequences[i], tokens + i, 1);
    DMS_TRY(upload_staged(session));
    DMS_TRY(dms_replay_run(session->replay, n, dms_cache_paged(session->cache), run_step, &step));
    DMS_TRY(dms_cache_commit(session->cache, sequences, n, 1, true));
    return download_logits(session, logits, n);
}
