#include "infer/bench_run.h"

#include <stdlib.h>

#include "infer/session.h"
#include "kernels/rng.h"
#include "model/dms.h"

void dms_bench_ids(int32_t *ids, int64_t n, int64_t vocab, uint64_t seed)
{
    for (int64_t i = 0; i < n; i++)
        ids[i] = (int32_t)(dms_philox(seed, (uint32_t)i, 0, 0, 0) % (uint64_t)vocab);
}

static bool is_multiplied(const dms_model *m, const dms_weight *w)
{
    return w->var->value.rank == 2 && (w->var != &m->embedding || m->config.tied);
}

int64_t dms_bench_matrix_count(const dms_model *model, unsigned mask)
{
    int64_t n = 0;
    for (int i = 0; i < model->n_weights; i++) {
        const dms_weight *w = &model->weights[i];
        if (is_multiplied(model, w) && mask & (1u << w->role))
            n += dms_count(&w->var->value);
    }
    return n;
}

size_t dms_bench_weight_bytes(const dms_model *model)
{
    size_t bytes = 0;
    for (int i = 0; i < model->n_weights; i++) {
        const dms_weight *w = &model->weights[i];
        if (w->var != &model->embedding || model->config.tied)
            bytes += dms_tensor_bytes(&w->var->value);
    }
    return bytes;
}

/* ---- prefill -------------------------------------------------------------------------------- */

typedef struct {
    const dms_model *model;
    dms_tape *tape;
    dms_tensor ids, positions, decisions;
    bool gated;
} prefill;

static dms_status place(prefill *p, dms_arena *arena, int64_t context)
{
    const dms_config *c = &p->model->config;
    p->ids = p->positions = (dms_tensor){.dtype = DMS_I32, .rank = 2, .shape = {1, context}};
    p->decisions =
        (dms_tensor){.dtype = DMS_F32, .rank = 4, .shape = {c->layers, 1, c->kv_heads, context}};
    DMS_TRY(dms_arena_place(arena, &p->ids));
    DMS_TRY(dms_arena_place(arena, &p->positions));
    return dms_arena_place(arena, &p->decisions);
}

static dms_status upload_text(prefill *p)
{
    dms_device *dev = p->model->device;
    const int64_t n = dms_count(&p->ids);
    const size_t bytes = dms_tensor_bytes(&p->ids);
    dms_status status = DMS_OK;
    int32_t *host = malloc(bytes);
    if (!host)
        return dms_fail(DMS_ERR_NOMEM, "no memory for %lld tokens", (long long)n);
    dms_bench_ids(host, n, p->model->config.vocab, 1);
    DMS_TRY_OR(done, dev->upload(dev, p->ids.data, host, bytes));
    for (int64_t i = 0; i < n; i++)
        host[i] = (int32_t)i;
    DMS_TRY_OR(done, dev->upload(dev, p->positions.data, host, bytes));
done:
    free(host);
    return status;
}

static dms_status run_forward(prefill *p)
{
    dms_hard_context hard = {.window = p->model->gate.window, .decisions = &p->decisions};
    const dms_pass pass = {.tape = p->tape,
                           .model = p->model,
                           .ids = &p->ids,
                           .positions = &p->positions,
                           .gated = p->gated,
                           .attend = p->gated ? dms_attend_hard : dms_attend_dense,
                           .context = &hard};
    dms_tape_reset(p->tape);
    dms_var *x = dms_transformer_forward(&pass);
    DMS_TRY(dms_tape_status(p->tape));
    return dms_tape_measures(p->tape) ? DMS_OK : dms_bench_wait(&x->value);
}

static dms_status open_tape(prefill *p)
{
    dms_tape_options o = {
        .device = p->model->device, .max_nodes = dms_transformer_nodes(p->model), .measure = true};
    DMS_TRY(dms_tape_open(&p->tape, &o));
    const dms_status status = run_forward(p);
    dms_tape_peak(p->tape, &o.keep_bytes, &o.scratch_bytes);
    dms_tape_close(p->tape);
    p->tape = NULL;
    DMS_TRY(status);
    o.measure = false;
    return dms_tape_open(&p->tape, &o);
}

dms_status dms_bench_prefill(dms_sample *rate, const dms_model *model, int64_t context, bool gated,
                             int repetitions)
{
    prefill p = {.model = model, .gated = gated};
    dms_arena arena = dms_arena_measure(model->device);
    dms_status status = DMS_OK;
    *rate = (dms_sample){0};
    DMS_TRY(place(&p, &arena, context));
    DMS_TRY(dms_arena_open(&arena, model->device, arena.peak));
    DMS_TRY_OR(done, place(&p, &arena, context));
    DMS_TRY_OR(done, upload_text(&p));
    DMS_TRY_OR(done, open_tape(&p));
    for (int i = -1; i < repetitions; i++) {
        const double start = dms_bench_now();
        DMS_TRY_OR(done, run_forward(&p));
        if (i >= 0)
            dms_sample_add(rate, (double)context / (dms_bench_now() - start));
    }
done:
    dms_tape_close(p.tape);
    dms_arena_close(&arena);
    return status;
}

/* ---- decode --------------------------------------------------------------------------------- */

typedef struct {
    const dms_bench_decode_options *options;
    dms_session *session;
    float *logits;      /* [batch, V] */
    int32_t *text;      /* [prompt] */
    int32_t *sequences; /* [batch] */
} decode;

static dms_status admit_all(decode *d)
{
    const dms_bench_decode_options *o = d->options;
    for (int b = 0; b < o->batch; b++) {
        int sequence;
        DMS_TRY(dms_cache_admit(dms_session_cache(d->session), &sequence));
        d->sequences[b] = sequence;
        dms_bench_ids(d->text, o->prompt, o->model->config.vocab, (uint64_t)b);
        DMS_TRY(dms_session_prefill(d->session, NULL, sequence, d->text, o->prompt, 0));
    }
    return DMS_OK;
}

/* Steps before those that --steps asks for: a graph is recorded in the second. */
static int64_t extra_steps(const dms_bench_decode_options *o)
{
    return o->model->device->record ? 2 : 0;
}

int64_t dms_bench_decode_steps(const dms_bench_decode_options *options, int repetitions)
{
    return repetitions * (options->steps + extra_steps(options));
}

int64_t dms_bench_decode_tokens(const dms_bench_decode_options *options, int repetitions)
{
    return options->prompt + dms_bench_decode_steps(options, options->once ? repetitions : 1);
}

static dms_status time_steps(decode *d, double *rate)
{
    const dms_bench_decode_options *o = d->options;
    double start = 0;
    for (int64_t i = -extra_steps(o); i < o->steps; i++) {
        int32_t tokens[DMS_MAX_BENCH_BATCH];
        dms_bench_ids(tokens, o->batch, o->model->config.vocab, 100 + (uint64_t)i);
        DMS_TRY(dms_session_decode(d->session, d->logits, d->sequences, tokens, o->batch));
        if (i == 0)
            start = dms_bench_now();
    }
    *rate = (double)o->batch * (double)(o->steps - 1) / (dms_bench_now() - start);
    return DMS_OK;
}

static dms_status run_decode(decode *d, dms_sample *rate, dms_cache_stats *stats, int repetitions)
{
    dms_cache *cache = dms_session_cache(d->session);
    const bool once = d->options->once;
    for (int i = 0; i < repetitions; i++) {
        double value;
        if (!once || i == 0)
            DMS_TRY(admit_all(d));
        DMS_TRY(time_steps(d, &value));
        dms_sample_add(rate, value);
        DMS_TRY(dms_cache_measure(stats, cache));
        for (int b = 0; !once && b < d->options->batch; b++)
            DMS_TRY(dms_cache_release(cache, d->sequences[b]));
    }
    return DMS_OK;
}

dms_status dms_bench_decode(dms_sample *rate, dms_cache_stats *stats,
                            const dms_bench_decode_options *options, int repetitions)
{
    const dms_bench_decode_options *o = options;
    if (o->batch < 1 || o->batch > DMS_MAX_BENCH_BATCH || o->steps < 2 || o->prompt < 1)
        return dms_fail(DMS_ERR_ARG, "decoding %d sequences, expected 1 to %d", o->batch,
                        DMS_MAX_BENCH_BATCH);
    decode d = {.options = o};
    dms_status status = DMS_OK;
    const dms_session_options session = {.model = o->model,
                                         .context = dms_bench_decode_tokens(o, repetitions),
                                         .max_sequences = o->batch,
                                         .kv_dtype = o->model->matrix_type,
                                         .policy = o->dense ? &dms_policy_dense : NULL};
    *rate = (dms_sample){0};
    d.logits = malloc((size_t)o->batch * (size_t)o->model->config.vocab * sizeof(float));
    d.text = malloc((size_t)o->prompt * sizeof(int32_t));
    d.sequences = malloc((size_t)o->batch * sizeof(int32_t));
    if (!d.logits || !d.text || !d.sequences)
        status = dms_fail(DMS_ERR_NOMEM, "no memory for the logits of %d sequences", o->batch);
    if (!status)
        status = dms_session_open(&d.session, &session);
    if (!status)
        status = run_decode(&d, rate, stats, repetitions);
    dms_session_close(d.session);
    free(d.logits);
    free(d.text);
    free(d.sequences);
    return status;
}
