/* Splits text into the pieces that are merged on their own: the key pre_tokenizer. */
#ifndef DMS_PRETOKENIZER_H
#define DMS_PRETOKENIZER_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "kernels/status.h"

DMS_BEGIN_C

typedef struct dms_pretokenizer dms_pretokenizer;

/* `json` is the key "pre_tokenizer": NULL or null (all of a text is one piece), ByteLevel, Digits,
 * Split (by a regular expression or a text, with any behavior), or a Sequence of these, in which
 * ByteLevel comes last. Errors: DMS_ERR_FORMAT, naming the key and what is supported;
 * DMS_ERR_NOMEM. */
dms_status dms_pretokenizer_open(dms_pretokenizer **out, const json_t *json, const char *origin);
/* NULL is legal. */
void dms_pretokenizer_close(dms_pretokenizer *p);

/* Takes one piece, which it must not keep. A failure ends the run. */
typedef struct {
    dms_status (*piece)(void *user, const char *text, size_t n);
    void *user;
} dms_piece_sink;

/* Hands the pieces of valid UTF-8 to the sink in order, as raw bytes (mapping them to the
 * byte-level alphabet is left to the tables). Not for two threads at once.
 * Errors: the sink's, and those of dms_pattern_find. */
dms_status dms_pretokenizer_run(dms_pretokenizer *p, const dms_piece_sink *sink, const char *text,
                                size_t n);

/* Whether the symbols of the model are bytes (ByteLevel), not characters. */
bool dms_pretokenizer_is_byte_level(const dms_pretokenizer *p);
/* Whether text may be cut before a space that follows an ASCII letter, with the same
 * pieces: known of the splits of GPT-2, Llama 3 and Qwen 2, false for any other. */
bool dms_pretokenizer_splits_at_spaces(const dms_pretokenizer *p);

DMS_END_C
#endif
