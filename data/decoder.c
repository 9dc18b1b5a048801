#include <string.h>

#include "data/tokenizer.h"
#include "data/utf8.h"

/* Hands on the first `ready` bytes as text, and keeps the rest. */
static dms_status hand_on(dms_decoder *d, dms_text *out, const dms_text *bytes, size_t ready)
{
    const char strips = dms_tokenizer_strips(d->tokenizer);
    const bool first = !d->begun && !d->within && ready > 0;
    const size_t skipped = first && strips && bytes->bytes[0] == strips;
    d->begun |= bytes->n > 0;
    DMS_TRY(dms_utf8_replace(out, bytes->bytes + skipped, ready - skipped));
    d->n_pending = (int)(bytes->n - ready);
    if (d->n_pending > 0)
        memcpy(d->pending, bytes->bytes + ready, (size_t)d->n_pending);
    return DMS_OK;
}

dms_status dms_decoder_put(dms_decoder *d, dms_text *out, int32_t id)
{
    dms_text bytes = {0};
    dms_status status = DMS_OK;
    DMS_TRY_OR(done, dms_text_append(&bytes, d->pending, (size_t)d->n_pending));
    DMS_TRY_OR(done, dms_tokenizer_decode(d->tokenizer, &bytes, &id, 1, d->skip_specials));
    /* Only the last 3 bytes can be the start of a character that is cut short. */
    size_t ready = bytes.n, back = 1;
    for (; back <= 3 && back <= bytes.n; back++)
        if (dms_utf8_step(bytes.bytes + bytes.n - back, back) == 0)
            ready = bytes.n - back;
    if (bytes.n > 0)
        status = hand_on(d, out, &bytes, ready);
done:
    dms_text_free(&bytes);
    return status;
}

dms_status dms_decoder_end(dms_decoder *d, dms_text *out)
{
    DMS_TRY(dms_utf8_replace(out, d->pending, (size_t)d->n_pending));
    d->n_pending = 0;
    d->begun = false;
    return DMS_OK;
}
