#include "eval/jobs.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A sequence of the cache that works on a job. */
typedef struct {
    dms_job *job;     /* NULL: idle */
    int32_t sequence; /* -1: none yet */
    int64_t done;     /* tokens of the answer or of `given` that are behind */
} worker;

typedef struct {
    const dms_jobs_options *options;
    dms_run_cost *cost;
    dms_sampler *sampler;
    worker *workers;                  /* [sequences] */
    int32_t *sequences, *tokens, *at; /* [sequences], of one step: at = worker of a row */
    float *logits;                    /* [sequences, V] */
    dms_job *jobs;
    int64_t n, next, finished;
    bool held;            /* the prompt of the next job is in the cache: */
    int held_sequence;    /* nobody works on it yet, chains are forked from it */
    float *prompt_logits; /* [V], after it */
} run;

static dms_status check_jobs(const run *r)
{
    const int64_t context = dms_session_context(r->options->session);
    for (int64_t i = 0; i < r->n; i++) {
        const dms_job *j = &r->jobs[i];
        const int64_t after = j->given ? j->n_given : j->max_new;
        if (j->n_prompt < 1 || after < 1 || j->n_prompt + after > context)
            return dms_fail(DMS_ERR_ARG,
                            "item %" PRId64 " has a prompt of %" PRId64 " tokens and takes %" PRId64
                            " more; a context of %" PRId64 " tokens is open",
                            i, j->n_prompt, after, context);
    }
    return DMS_OK;
}

static dms_status open_run(run *r)
{
    const size_t sequences = (size_t)r->options->sequences;
    r->workers = calloc(sequences, sizeof(*r->workers));
    r->sequences = malloc(3 * sequences * sizeof(int32_t));
    r->logits = malloc((sequences + 1) * (size_t)r->options->vocab * sizeof(float));
    if (!r->workers || !r->sequences || !r->logits)
        return dms_fail(DMS_ERR_NOMEM, "no memory for %zu sequences", sequences);
    r->tokens = r->sequences + sequences;
    r->at = r->tokens + sequences;
    r->prompt_logits = r->logits + sequences * (size_t)r->options->vocab;
    return dms_sampler_open(&r->sampler, &r->options->sampling, r->options->vocab);
}

static void close_run(run *r)
{
    dms_sampler_close(r->sampler);
    free(r->workers);
    free(r->sequences);
    free(r->logits);
}

/* log softmax(logits)[id]; whether id is the most probable token (the first of equals). */
static double log_probability(const float *logits, int64_t vocab, int32_t id, bool *top)
{
    double sum = 0;
    int64_t best = 0;
    for (int64_t v = 1; v < vocab; v++)
        best = logits[v] > logits[best] ? v : best;
    for (int64_t v = 0; v < vocab; v++)
        sum += exp((double)logits[v] - (double)logits[best]);
    *top = best == id;
    return (double)logits[id] - (double)logits[best] - log(sum);
}

static dms_status finish(run *r, worker *w)
{
    w->job = NULL;
    r->finished++;
    if (r->options->progress)
        r->options->progress(r->options->context, r->finished, r->n);
    return w->sequence < 0 ? DMS_OK
                           : dms_cache_release(dms_session_cache(r->options->session), w->sequence);
}

/* Weighs the next given token; *more: it is to be fed. */
static bool weigh(run *r, worker *w, const float *logits)
{
    dms_job *j = w->job;
    bool top;
    j->log_likelihood += log_probability(logits, r->options->vocab, j->given[w->done], &top);
    j->greedy = j->greedy && top;
    return ++w->done < j->n_given;
}

/* Draws the next token of an answer; *more: it goes on. */
static dms_status draw(run *r, worker *w, const float *logits, bool *more)
{
    dms_job *j = w->job;
    int32_t id;
    bool keep = true;
    DMS_TRY(dms_sampler_pick(r->sampler, &id, logits, j->stream, j->n_prompt + w->done));
    DMS_TRY(r->options->ends(r->options->context, j, id, &j->ended, &keep));
    *more = !j->ended;
    if (!keep)
        return DMS_OK;
    DMS_TRY(dms_tokens_reserve(&j->answer, 1));
    j->answer.ids[j->answer.n++] = id;
    *more = ++w->done < j->max_new && *more;
    return DMS_OK;
}

/* What the logits after the worker's last token mean for its job. */
static dms_status take(run *r, worker *w, const float *logits)
{
    bool more;
    if (w->job->given)
        more = weigh(r, w, logits);
    else
        DMS_TRY(draw(r, w, logits, &more));
    return more ? DMS_OK : finish(r, w);
}

/* The token that a busy worker feeds next. */
static int32_t next_token(const worker *w)
{
    return w->job->given ? w->job->given[w->done - 1] : w->job->answer.ids[w->done - 1];
}

/* Whether the job after the next one has the same prompt and can run beside it. */
static bool goes_on(const run *r)
{
    const dms_job *a = &r->jobs[r->next], *b = a + 1;
    return r->options->sequences > 1 && r->next + 1 < r->n && a->n_prompt == b->n_prompt &&
           !memcmp(a->prompt, b->prompt, (size_t)a->n_prompt * sizeof(*a->prompt));
}

static bool is_vacant(const run *r)
{
    return dms_cache_vacant(dms_session_cache(r->options->session)) > 0;
}

/* The last job of a prompt takes the prompt's own sequence, all others want one more. */
static bool can_begin(const run *r)
{
    return r->next < r->n && (is_vacant(r) || (r->held && !goes_on(r)));
}

static dms_status hold_prompt(run *r)
{
    const dms_job *j = &r->jobs[r->next];
    DMS_TRY(dms_cache_admit(dms_session_cache(r->options->session), &r->held_sequence));
    DMS_TRY(dms_session_prefill(r->options->session, r->prompt_logits, r->held_sequence, j->prompt,
                                j->n_prompt, 0));
    r->cost->prefilled += j->n_prompt;
    r->held = true;
    return DMS_OK;
}

/* Begins the next job, or only its prompt, where there is room for no more. A job that ends with
 * its prompt needs no sequence of its own. */
static dms_status begin(run *r, worker *w)
{
    if (!r->held)
        DMS_TRY(hold_prompt(r));
    if (!can_begin(r))
        return DMS_OK;
    const bool fork = goes_on(r);
    dms_job *j = &r->jobs[r->next++];
    *w = (worker){j, fork ? -1 : r->held_sequence, 0};
    r->held = fork;
    j->log_likelihood = 0;
    j->greedy = true;
    j->ended = false;
    j->answer.n = 0;
    DMS_TRY(take(r, w, r->prompt_logits));
    if (!w->job || !fork)
        return DMS_OK;
    return dms_session_fork(r->options->session, r->held_sequence, &w->sequence);
}

/* Gives idle workers the next jobs; a job may end with its prompt. */
static dms_status fill(run *r)
{
    double start;
    DMS_TRY(dms_cost_begin(&start, r->options->session));
    for (int i = 0; i < r->options->sequences; i++)
        while (!r->workers[i].job && can_begin(r))
            DMS_TRY(begin(r, &r->workers[i]));
    return dms_cost_end(r->cost, start, r->options->session, false);
}

static bool has_idle(const run *r)
{
    for (int i = 0; i < r->options->sequences; i++)
        if (!r->workers[i].job)
            return true;
    return false;
}

/* One token of each busy worker. */
static dms_status step(run *r)
{
    int n = 0;
    for (int i = 0; i < r->options->sequences; i++) {
        const worker *w = &r->workers[i];
        if (!w->job)
            continue;
        r->at[n] = i;
        r->sequences[n] = w->sequence;
        r->tokens[n++] = next_token(w);
    }
    DMS_TRY(dms_session_decode(r->options->session, r->logits, r->sequences, r->tokens, n));
    r->cost->decoded += n;
    for (int i = 0; i < n; i++)
        DMS_TRY(take(r, &r->workers[r->at[i]], r->logits + i * r->options->vocab));
    return DMS_OK;
}

/* Steps until a worker is idle for whom there is a job, or none is left. */
static dms_status steps(run *r)
{
    double start;
    DMS_TRY(dms_cost_begin(&start, r->options->session));
    while (r->finished < r->n && !(has_idle(r) && can_begin(r)))
        DMS_TRY(step(r));
    return dms_cost_end(r->cost, start, r->options->session, true);
}

dms_status dms_jobs_run(dms_run_cost *cost, const dms_jobs_options *options, dms_job *jobs,
                        int64_t n)
{
    run r = {.options = options, .cost = cost, .jobs = jobs, .n = n};
    dms_status status = DMS_OK;
    DMS_TRY(check_jobs(&r));
    DMS_TRY_OR(done, open_run(&r));
    while (r.finished < n) {
        DMS_TRY_OR(done, fill(&r));
        DMS_TRY_OR(done, steps(&r));
    }
    DMS_TRY_OR(done, dms_cost_reads(cost, options->session));
done:
    close_run(&r);
    return status;
}
