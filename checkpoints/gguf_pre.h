/* The pre-tokenisers that GGUF's key tokenizer.ggml.pre names, as tokenizer.json states them. */
#ifndef DMS_GGUF_PRE_H
#define DMS_GGUF_PRE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "kernels/status.h"

/* What llama.cpp does for a name (llama-vocab.cpp); NFC, which it does not know, is Qwen 2's. */
typedef struct {
    const char *name;
    int splitter; /* private */
    bool ignore_merges, nfc, add_bos;
} dms_gguf_pre;

/* By tokenizer.ggml.pre, text[n]; NULL for names we do not know. */
const dms_gguf_pre *dms_gguf_pre_find(const char *text, size_t n);
/* All names, for a message; static. */
const char *dms_gguf_pre_names(void);
/* Its pre_tokenizer; NULL without memory. */
json_t *dms_gguf_pre_make(const dms_gguf_pre *pre);
/* The one whose splits and ignore_merges are those of a whole tokenizer.json; NULL where none is.
 * DMS_ERR_NOMEM. */
dms_status dms_gguf_pre_of(const dms_gguf_pre **out, const json_t *tokenizer);

#endif
