#include "data/buffer.h"

#include <stdlib.h>
#include <string.h>

/* Capacity of at least n + more elements, at least doubled so that appending is linear in time;
 * 0 where a size_t of bytes cannot hold it. */
static size_t grown(size_t n, size_t more, size_t capacity, size_t element)
{
    const size_t most = SIZE_MAX / 4 / element;
    if (n > most || more > most - n)
        return 0;
    const size_t twice = capacity < most / 2 ? 2 * capacity : most;
    const size_t needed = n + more > 64 ? n + more : 64;
    return needed > twice ? needed : twice;
}

dms_status dms_tokens_reserve(dms_tokens *t, int64_t more)
{
    if (more <= t->capacity - t->n)
        return DMS_OK;
    const size_t capacity = grown((size_t)t->n, (size_t)more, (size_t)t->capacity, sizeof(*t->ids));
    int32_t *ids = capacity ? realloc(t->ids, capacity * sizeof(*ids)) : NULL;
    if (!ids)
        return dms_fail(DMS_ERR_NOMEM, "no memory for %lld more token ids after %lld",
                        (long long)more, (long long)t->n);
    t->ids = ids;
    t->capacity = (int64_t)capacity;
    return DMS_OK;
}

dms_status dms_text_reserve(dms_text *t, size_t more)
{
    if (more <= t->capacity - t->n)
        return DMS_OK;
    const size_t capacity = grown(t->n, more, t->capacity, 1);
    char *bytes = capacity ? realloc(t->bytes, capacity) : NULL;
    if (!bytes)
        return dms_fail(DMS_ERR_NOMEM, "no memory for %zu more bytes of text after %zu", more,
                        t->n);
    t->bytes = bytes;
    t->capacity = capacity;
    return DMS_OK;
}

dms_status dms_text_append(dms_text *t, const char *bytes, size_t n)
{
    if (n == 0)
        return DMS_OK;
    DMS_TRY(dms_text_reserve(t, n));
    memcpy(t->bytes + t->n, bytes, n);
    t->n += n;
    return DMS_OK;
}

void dms_tokens_free(dms_tokens *t)
{
    free(t->ids);
    *t = (dms_tokens){0};
}

void dms_text_free(dms_text *t)
{
    free(t->bytes);
    *t = (dms_text){0};
}
