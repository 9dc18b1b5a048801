/* Growable arrays of token ids and of text bytes, owned by the caller. */
#ifndef DMS_BUFFER_H
#define DMS_BUFFER_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/status.h"

DMS_BEGIN_C

/* Zero is an empty array. Functions that fill one append to it; `n = 0` empties it without freeing.
 */
typedef struct {
    int32_t *ids;
    int64_t n, capacity;
} dms_tokens;

/* The same for bytes; no 0 follows them unless one was appended. */
typedef struct {
    char *bytes;
    size_t n, capacity;
} dms_text;

/* Makes room for `more` elements after the first n. Errors: DMS_ERR_NOMEM (nothing changed). */
dms_status dms_tokens_reserve(dms_tokens *t, int64_t more);
dms_status dms_text_reserve(dms_text *t, size_t more);
/* Errors: DMS_ERR_NOMEM. `bytes` must not lie in t. */
dms_status dms_text_append(dms_text *t, const char *bytes, size_t n);
/* Frees the elements and leaves an empty array. */
void dms_tokens_free(dms_tokens *t);
void dms_text_free(dms_text *t);

DMS_END_C
#endif
