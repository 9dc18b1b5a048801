#include "data/encode.h"

#include <string.h>

enum { PART = 1 << 16 };

/* Tokenises the first n bytes of what is read. */
static dms_status take(dms_encoder *e, size_t n, const dms_id_sink *sink, bool *stop)
{
    e->ids.n = 0;
    DMS_TRY(dms_tokenizer_encode(e->tokenizer, &e->ids, e->text.bytes, n, e->specials));
    e->text.n -= n;
    memmove(e->text.bytes, e->text.bytes + n, e->text.n);
    return sink->put(sink->context, e->ids.ids, e->ids.n, stop);
}

static dms_status take_conversation(dms_encoder *e, const dms_message *messages, size_t n,
                                    const dms_id_sink *sink)
{
    bool stop = false;
    e->ids.n = 0;
    DMS_TRY(e->turns->render(e->turns->context, &e->ids, messages, n));
    return sink->put(sink->context, e->ids.ids, e->ids.n, &stop);
}

dms_status dms_encoder_run(dms_encoder *e, dms_corpus *corpus, const char *name,
                           const dms_id_sink *sink)
{
    size_t n = 1, wanted = PART, n_messages;
    bool stop = false;
    const dms_message *messages = dms_corpus_messages(corpus, &n_messages);
    if (messages && !e->turns)
        return dms_fail(DMS_ERR_ARG,
                        "%s is a conversation, expected text; make a token shard of it with "
                        "dms-tokenize",
                        name);
    if (messages)
        return take_conversation(e, messages, n_messages, sink);
    e->text.n = 0;
    while (n > 0 && !stop) {
        DMS_TRY(dms_text_reserve(&e->text, PART));
        DMS_TRY(dms_corpus_read(corpus, e->text.bytes + e->text.n, PART, &n));
        e->text.n += n;
        if (n == 0 || e->text.n < wanted)
            continue;
        const size_t cut = dms_tokenizer_cut(e->tokenizer, e->text.bytes, e->text.n);
        if (cut > 0)
            DMS_TRY(take(e, cut, sink, &stop));
        /* Without a place to cut, wait for twice as much: the search stays linear in all. */
        wanted = cut > 0 ? PART : 2 * e->text.n;
    }
    return e->text.n > 0 && !stop ? take(e, e->text.n, sink, &stop) : DMS_OK;
}

void dms_encoder_free(dms_encoder *e)
{
    dms_text_free(&e->text);
    dms_tokens_free(&e->ids);
}
