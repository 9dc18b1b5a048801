/* What a tokenizer.json asks to be done to text before it is split: the key normalizer. */
#ifndef DMS_NORMALIZER_H
#define DMS_NORMALIZER_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "data/buffer.h"
#include "kernels/status.h"

DMS_BEGIN_C

typedef struct dms_normalizer dms_normalizer;

/* `json` is the key "normalizer": absent (NULL), null, NFC, NFD, NFKC, NFKD, Replace, Prepend, or a
 * Sequence of these. Errors: DMS_ERR_FORMAT, naming the type found; DMS_ERR_NOMEM. */
dms_status dms_normalizer_open(dms_normalizer **out, const json_t *json, const char *origin);
/* NULL is legal. */
void dms_normalizer_close(dms_normalizer *z);

/* Appends the normalised form of valid UTF-8. Not for two threads at once. Errors: DMS_ERR_NOMEM;
 * DMS_ERR_ARG (text past 1 GiB without an ASCII character); those of dms_pattern_find. */
dms_status dms_normalizer_apply(dms_normalizer *z, dms_text *out, const char *text, size_t n);
/* Whether it does nothing. */
bool dms_normalizer_is_empty(const dms_normalizer *z);
/* Whether text may be cut before an ASCII space that follows an ASCII letter, with the same result:
 * true of Unicode's normal forms. */
bool dms_normalizer_keeps_spaces(const dms_normalizer *z);

DMS_END_C
#endif
