/* The vocabulary of a tokenizer.json: id to text and bytes, text to id. */
#ifndef DMS_VOCAB_H
#define DMS_VOCAB_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "data/surface.h"
#include "kernels/status.h"

DMS_BEGIN_C

/* `text` as the file writes it ("\u0120the"); `bytes` what it stands for (" the", by
 * data/surface.h). Neither ends with 0. An id without a token has text NULL and no bytes. */
typedef struct {
    const char *text, *bytes;
    uint32_t n_text, n_bytes;
    bool special;  /* an added token marked special */
    bool in_model; /* of model.vocab: reachable by merges; false for one that is only added */
} dms_vocab_token;

typedef struct dms_vocab dms_vocab;

/* `vocab` is model.vocab ({text: id}), `added` the array added_tokens or NULL; both are copied.
 * `origin` names the file in messages. Errors: DMS_ERR_FORMAT (wrong types; an id that is negative,
 * given twice, or so large that fewer than half of the ids would have a token; an added token whose
 * id or text contradicts the vocabulary), DMS_ERR_NOMEM. */
dms_status dms_vocab_open(dms_vocab **out, const json_t *vocab, const json_t *added,
                          const dms_surface *surface, const char *origin);
/* NULL is legal. */
void dms_vocab_close(dms_vocab *v);

/* The largest id + 1. */
int64_t dms_vocab_size(const dms_vocab *v);
/* id in 0..size-1. */
const dms_vocab_token *dms_vocab_get(const dms_vocab *v, int32_t id);
/* The id of a text as the file writes it, or -1. */
int32_t dms_vocab_find(const dms_vocab *v, const char *text, size_t n);

DMS_END_C
#endif
