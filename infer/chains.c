#include "infer/chains.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    const dms_chains_options *options;
    dms_chain *chains;
    int n, open;                      /* open: rows of a step */
    int32_t *sequences, *tokens, *at; /* [n], of one step: at = chain of a row */
} run;

static dms_status begin(run *r)
{
    const dms_chains_options *o = r->options;
    for (int i = 0; i < r->n; i++) {
        dms_chain *c = &r->chains[i];
        c->open = true;
        c->sequence = o->sequence;
        c->decoder =
            (dms_decoder){.tokenizer = o->tokenizer, .skip_specials = true, .within = true};
        if (i)
            DMS_TRY(dms_session_fork(o->session, o->sequence, &c->sequence));
    }
    return DMS_OK;
}

/* The next token of chain i. */
static dms_status draw(run *r, int i, const float *logits)
{
    const dms_chains_options *o = r->options;
    dms_chain *c = &r->chains[i];
    const int64_t seen = dms_cache_tokens(dms_session_cache(o->session), c->sequence);
    DMS_TRY(dms_sampler_pick(o->sampler, &c->last, logits, (uint32_t)i, seen));
    c->tokens++;
    c->ended = o->ends(o->context, c->last);
    if (!c->ended)
        DMS_TRY(dms_decoder_put(&c->decoder, &c->text, c->last));
    c->open = !c->ended && c->tokens < o->most && seen < dms_session_context(o->session);
    return c->open ? DMS_OK : dms_decoder_end(&c->decoder, &c->text);
}

static dms_status step(run *r)
{
    const dms_chains_options *o = r->options;
    r->open = 0;
    for (int i = 0; i < r->n; i++) {
        if (!r->chains[i].open)
            continue;
        r->at[r->open] = i;
        r->sequences[r->open] = r->chains[i].sequence;
        r->tokens[r->open++] = r->chains[i].last;
    }
    if (!r->open)
        return DMS_OK;
    DMS_TRY(dms_session_decode(o->session, o->logits, r->sequences, r->tokens, r->open));
    for (int i = 0; i < r->open; i++)
        DMS_TRY(draw(r, r->at[i], o->logits + i * o->vocab));
    return DMS_OK;
}

static dms_status run_all(run *r)
{
    const dms_chains_options *o = r->options;
    DMS_TRY(begin(r));
    for (int i = 0; i < r->n && o->most > 0 && !*o->stopped; i++)
        DMS_TRY(draw(r, i, o->logits));
    for (r->open = r->n; r->open && o->most > 0 && !*o->stopped;)
        DMS_TRY(step(r));
    for (int i = 0; i < r->n; i++)
        if (r->chains[i].open)
            DMS_TRY(dms_decoder_end(&r->chains[i].decoder, &r->chains[i].text));
    return DMS_OK;
}

dms_status dms_chains_run(dms_chain *chains, int n, const dms_chains_options *options)
{
    run r = {.options = options, .chains = chains, .n = n};
    r.sequences = malloc(3 * (size_t)n * sizeof(int32_t));
    if (!r.sequences)
        return dms_fail(DMS_ERR_NOMEM, "no memory for %d chains", n);
    r.tokens = r.sequences + n;
    r.at = r.tokens + n;
    const dms_status status = run_all(&r);
    free(r.sequences);
    return status;
}

void dms_chains_free(dms_chain *chains, int n)
{
    for (int i = 0; chains && i < n; i++)
        dms_text_free(&chains[i].text);
}
