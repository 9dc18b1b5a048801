#include "infer/policy_run.h"

#include <stdlib.h>

static const dms_policy_hooks *hooks_of(dms_policy_kind kind)
{
    static const dms_policy_hooks *const all[] = {
        [DMS_POLICY_DMS] = &dms_policy_law_hooks,
        [DMS_POLICY_DENSE] = &dms_policy_law_hooks,
        [DMS_POLICY_WINDOW] = &dms_policy_decided_hooks,
        [DMS_POLICY_RANDOM] = &dms_policy_decided_hooks,
        [DMS_POLICY_STREAMING] = &dms_policy_streaming_hooks,
        [DMS_POLICY_TOVA] = &dms_policy_tova_hooks,
        [DMS_POLICY_H2O] = &dms_policy_h2o_hooks,
        [DMS_POLICY_SNAPKV] = &dms_policy_snapkv_hooks,
        [DMS_POLICY_QUEST] = &dms_policy_quest_hooks,
    };
    return all[kind];
}

dms_status dms_policy_prepare(dms_cache_options *o, const dms_policy *p, const dms_model *model)
{
    const dms_policy_hooks *hooks = hooks_of(p->kind);
    int64_t window = -1;
    DMS_TRY(dms_policy_window(&window, p, &model->gate));
    if (p->turned && model->config.positions != DMS_POSITIONS_ROPE)
        return dms_fail(DMS_ERR_ARG,
                        "policy %s re-rotates keys, and this family has learned positions; "
                        "streaming-abs:N does not",
                        p->name);
    if (p->kind == DMS_POLICY_QUEST && p->fraction > 0)
        return dms_fail(DMS_ERR_ARG, "policy %s reads a fixed number of pages; give tokens",
                        p->name);
    if (p->kind == DMS_POLICY_QUEST && o->page_slots && o->page_slots != 16)
        return dms_fail(DMS_ERR_ARG, "policy %s wants pages of 16 slots, not %d", p->name,
                        o->page_slots);
    o->window = window < 0 ? 0 : window;
    o->scored = hooks->scored;
    o->bounded = hooks->bounded;
    return DMS_OK;
}

static dms_status place(dms_policy_run *r, dms_arena *arena, const dms_policy_run_options *o)
{
    const dms_paged *c = dms_cache_paged(o->cache);
    const int64_t units = (int64_t)c->sequences * c->layers * c->groups;
    if (r->hooks->decide) {
        r->z = (dms_tensor){.dtype = DMS_F32, .rank = 2, .shape = {c->layers, o->rows * c->groups}};
        DMS_TRY(dms_arena_place(arena, &r->z));
    }
    if (r->hooks->ranked) {
        r->last = r->best = (dms_tensor){.dtype = DMS_I32, .rank = 1, .shape = {c->sequences}};
        DMS_TRY(dms_arena_place(arena, &r->last));
        DMS_TRY(dms_arena_place(arena, &r->best));
    }
    if (r->policy.turned && r->policy.sink) {
        const int64_t sink = r->policy.sink;
        r->kept = (dms_tensor){.dtype = DMS_F32, .rank = 3, .shape = {units, sink, c->head_dim}};
        DMS_TRY(dms_arena_place(arena, &r->kept));
    }
    if (r->hooks->select) {
        r->list = (dms_tensor){.dtype = DMS_I32, .rank = 2, .shape = {units, c->unit_pages}};
        r->live = (dms_tensor){.dtype = DMS_I32, .rank = 1, .shape = {units}};
        DMS_TRY(dms_arena_place(arena, &r->list));
        DMS_TRY(dms_arena_place(arena, &r->live));
    }
    return DMS_OK;
}

static dms_status open_parts(dms_policy_run *r, const dms_policy_run_options *o)
{
    const size_t sequences = (size_t)r->sequences;
    dms_arena measure = dms_arena_measure(o->model->device);
    DMS_TRY(place(r, &measure, o));
    if (measure.peak)
        DMS_TRY(dms_arena_open(&r->memory, o->model->device, measure.peak));
    DMS_TRY(place(r, &r->memory, o));
    r->budgets = calloc(2 * sequences, sizeof(*r->budgets));
    r->numbers = calloc(sequences, sizeof(*r->numbers));
    r->staged = r->z.rank ? malloc(dms_tensor_bytes(&r->z)) : NULL;
    if (!r->budgets || !r->numbers || (r->z.rank && !r->staged))
        return dms_fail(DMS_ERR_NOMEM, "no memory for policy %s", r->policy.name);
    return DMS_OK;
}

dms_status dms_policy_run_open(dms_policy_run **out, const dms_policy_run_options *options)
{
    dms_policy_run *r = calloc(1, sizeof(*r));
    if (!r)
        return dms_fail(DMS_ERR_NOMEM, "no memory for policy %s", options->policy->name);
    r->hooks = hooks_of(options->policy->kind);
    r->policy = *options->policy;
    r->model = options->model;
    r->seed = options->seed;
    r->sequences = dms_cache_paged(options->cache)->sequences;
    const dms_status status = open_parts(r, options);
    if (status) {
        dms_policy_run_close(r);
        return status;
    }
    *out = r;
    return DMS_OK;
}

void dms_policy_run_close(dms_policy_run *run)
{
    if (!run)
        return;
    dms_arena_close(&run->memory);
    free(run->staged);
    free(run->budgets);
    free(run->numbers);
    free(run);
}

size_t dms_policy_run_bytes(const dms_policy_run *run)
{
    return run->memory.peak;
}

/* Of a budget: what is kept for being recent, and for its score. */
static void split(int32_t *last, int32_t *best, const dms_policy *p, int64_t budget)
{
    int64_t recent = 0;
    if (p->kind == DMS_POLICY_STREAMING)
        recent = budget - p->sink;
    else if (p->kind == DMS_POLICY_H2O)
        recent = budget / 2;
    else if (p->kind == DMS_POLICY_SNAPKV)
        recent = p->observed < budget ? p->observed : budget;
    *last = (int32_t)recent;
    *best = p->kind == DMS_POLICY_STREAMING ? 0 : (int32_t)(budget - recent);
}

static dms_status upload_budgets(dms_policy_run *r)
{
    dms_device *dev = r->model->device;
    DMS_TRY(dev->upload(dev, r->last.data, r->budgets, dms_tensor_bytes(&r->last)));
    return dev->upload(dev, r->best.data, r->budgets + r->sequences, dms_tensor_bytes(&r->best));
}

dms_status dms_policy_run_begin(dms_policy_run *run, int sequence, int64_t tokens)
{
    run->numbers[sequence] = run->next_number++;
    if (!run->hooks->ranked)
        return DMS_OK;
    split(&run->budgets[sequence], &run->budgets[run->sequences + sequence], &run->policy,
          dms_policy_budget(&run->policy, tokens));
    return upload_budgets(run);
}

bool dms_policy_run_shares(const dms_policy_run *run)
{
    return !run->hooks->ranked && !run->hooks->scored && !run->kept.rank;
}

/* The remembered keys of one sequence. */
static dms_tensor kept_of(const dms_policy_run *r, int sequence)
{
    const int64_t n = dms_count(&r->kept) / r->sequences;
    dms_tensor t = r->kept;
    t.rank = 1;
    t.shape[0] = n;
    t.data = (float *)r->kept.data + sequence * n;
    return t;
}

dms_status dms_policy_run_fork(dms_policy_run *run, int from, int to)
{
    run->numbers[to] = run->next_number++;
    if (run->kept.rank) {
        const dms_tensor x = kept_of(run, from);
        dms_tensor y = kept_of(run, to);
        DMS_TRY(dms_cast(&y, &x));
    }
    if (!run->hooks->ranked)
        return DMS_OK;
    for (int i = 0; i < 2; i++)
        run->budgets[i * run->sequences + to] = run->budgets[i * run->sequences + from];
    return upload_budgets(run);
}

dms_status dms_policy_run_decide(dms_policy_run *run, const dms_policy_pass *pass)
{
    if (!run->hooks->decide)
        return DMS_OK;
    const int64_t groups = run->model->config.kv_heads, layers = run->model->config.layers;
    dms_device *dev = run->model->device;
    for (int64_t l = 0; l < layers; l++) {
        float *z = run->staged + l * run->z.shape[1];
        for (int64_t b = 0; b < pass->n; b++)
            for (int64_t g = 0; g < groups; g++)
                for (int64_t t = 0; t < pass->tokens; t++)
                    *z++ = run->hooks->decide(run, run->numbers[pass->sequences[b]], l * groups + g,
                                              pass->positions[b * pass->tokens + t], pass->prefill);
    }
    return dev->upload(dev, run->z.data, run->staged, dms_tensor_bytes(&run->z));
}

bool dms_policy_run_decisions(dms_tensor *z, const dms_policy_run *run, int layer, int64_t n,
                              int64_t tokens)
{
    if (!run->hooks->decide)
        return false;
    *z = run->z;
    z->rank = 3;
    z->shape[0] = n;
    z->shape[1] = run->model->config.kv_heads;
    z->shape[2] = tokens;
    z->data = (float *)run->z.data + layer * run->z.shape[1];
    return true;
}

dms_status dms_policy_evict_expired(dms_policy_run *run, const dms_policy_step *step)
{
    (void)run;
    return dms_cols(step->rows->positions) > 1 ? dms_paged_compact(step->cache, step->rows)
                                               : DMS_OK;
}

dms_status dms_policy_keep(dms_policy_run *run, const dms_policy_step *step, int64_t first,
                           bool best)
{
    const dms_paged_kept kept = {first, &run->last, best ? &run->best : NULL};
    DMS_TRY(dms_paged_mark(step->cache, step->rows, &kept));
    return dms_paged_compact(step->cache, step->rows);
}
