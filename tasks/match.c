#include "tasks/match.h"

#include <string.h>

/* *found: the reference lies in `text`, which is in lower case already. */
static dms_status find(bool *found, dms_span text, const char *reference)
{
    dms_status status = DMS_OK;
    dms_text lower = {0}, store = {0};
    dms_span valid;
    DMS_TRY_OR(end, dms_span_valid(&valid, &store, dms_span_of(reference)));
    DMS_TRY_OR(end, dms_text_lower(&lower, valid));
    *found =
        lower.n == 0 || (text.n > 0 && memmem(text.bytes, text.n, lower.bytes, lower.n) != NULL);
end:
    dms_text_free(&lower);
    dms_text_free(&store);
    return status;
}

dms_status dms_match_score(double *score, dms_match match, dms_span output,
                           const char *const *references, size_t n)
{
    dms_status status = DMS_OK;
    dms_text text = {0}, store = {0};
    dms_span valid;
    size_t hits = 0;
    DMS_TRY_OR(end, dms_span_valid(&valid, &store, output));
    DMS_TRY_OR(end, dms_text_lower(&text, dms_span_strip(valid)));
    for (size_t i = 0; i < text.n; i++)
        if ((unsigned char)text.bytes[i] < 0x20)
            text.bytes[i] = '\n';
    const dms_span bare = dms_span_strip((dms_span){text.bytes, text.n});
    for (size_t i = 0; i < n; i++) {
        bool found;
        DMS_TRY_OR(end, find(&found, bare, references[i]));
        hits += found;
    }
    *score = match == DMS_MATCH_ALL ? (double)hits / (double)n : hits > 0;
end:
    dms_text_free(&text);
    dms_text_free(&store);
    return status;
}
