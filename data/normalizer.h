/* What a tokenizer.json asks to be done to text before it is split: nothing, or Unicode NFC. */
#ifndef DMS_NORMALIZER_H
#define DMS_NORMALIZER_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "data/buffer.h"
#include "kernels/status.h"

DMS_BEGIN_C

typedef struct {
    bool nfc;
} dms_normalizer;

/* `json` is the key "normalizer": absent (NULL), null, NFC, or a Sequence of these.
 * Errors: DMS_ERR_FORMAT, naming the type found. */
dms_status dms_normalizer_read(dms_normalizer *out, const json_t *json, const char *origin);
/* Appends the normalised form of valid UTF-8. Errors: DMS_ERR_NOMEM; DMS_ERR_ARG (text past 1 GiB
 * without an ASCII character). */
dms_status dms_normalizer_apply(const dms_normalizer *z, dms_text *out, const char *text, size_t n);

DMS_END_C
#endif
