#include "eval/contexts.h"

#include <inttypes.h>

dms_status dms_contexts_open(dms_contexts *out, const dms_contexts_options *o)
{
    dms_contexts c = {.context = o->context};
    const int64_t T = o->context;
    const dms_stream_options stream = {
        .paths = o->paths,
        .n_paths = o->n_paths,
        .tokenizer = o->tokenizer,
        .end_of_text =
            o->config->n_eos ? o->config->eos[0] : dms_tokenizer_end_of_text(o->tokenizer),
        .limit = o->sequences ? o->sequences * T + o->beyond + 1 : 0};
    dms_status status = dms_stream_read(&c.stream, &c.foreign, &stream);
    const int64_t found = c.stream.n / T;
    if (!status && !found)
        status = dms_fail(DMS_ERR_ARG,
                          "the text has %" PRId64 " tokens, one context takes %" PRId64
                          "; lower the context or give more text",
                          c.stream.n, T);
    if (status) {
        dms_contexts_close(&c);
        return status;
    }
    c.sequences = o->sequences && o->sequences < found ? o->sequences : found;
    *out = c;
    return DMS_OK;
}

void dms_contexts_close(dms_contexts *c)
{
    dms_tokens_free(&c->stream);
}

/* The id at `at` and the one after it, -1 at the text's end. */
static int32_t following(const dms_contexts *c, int64_t at)
{
    return at + 1 < c->stream.n ? c->stream.ids[at + 1] : -1;
}

static dms_status read_contexts(void *context, int64_t first, int64_t n, int32_t *ids,
                                int32_t *next)
{
    const dms_contexts *c = context;
    for (int64_t i = 0; i < n * c->context; i++) {
        ids[i] = c->stream.ids[first * c->context + i];
        next[i] = following(c, first * c->context + i);
    }
    return DMS_OK;
}

dms_score_feed dms_contexts_feed(dms_contexts *c)
{
    return (dms_score_feed){.read = read_contexts, .context = c, .sequences = c->sequences};
}

static void count(double *bytes, double *words, const dms_text *text)
{
    *bytes = (double)text->n;
    *words = 0;
    for (size_t i = 0; i < text->n; i++) {
        const unsigned char c = (unsigned char)text->bytes[i];
        *words += c > ' ' && (!i || (unsigned char)text->bytes[i - 1] <= ' ');
    }
}

dms_status dms_contexts_measure(double *bytes, double *words, const dms_contexts *c,
                                dms_tokenizer *tokenizer, const dms_config *config, int64_t from)
{
    const int64_t T = c->context;
    dms_tokens predicted = {0};
    dms_text text = {0};
    dms_status status = DMS_OK;
    DMS_TRY_OR(done, dms_tokens_reserve(&predicted, c->sequences * T));
    for (int64_t i = 0; i < c->sequences * T; i++)
        if (i % T >= from && following(c, i) >= 0 && !dms_config_is_eos(config, c->stream.ids[i]))
            predicted.ids[predicted.n++] = following(c, i);
    DMS_TRY_OR(done, dms_tokenizer_decode(tokenizer, &text, predicted.ids, predicted.n, false));
    count(bytes, words, &text);
done:
    dms_tokens_free(&predicted);
    dms_text_free(&text);
    return status;
}
