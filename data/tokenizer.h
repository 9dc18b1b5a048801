/* Text to token ids and back: byte-pair encoding as a Hugging Face tokenizer.json describes it. */
#ifndef DMS_TOKENIZER_H
#define DMS_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "data/buffer.h"
#include "kernels/status.h"

DMS_BEGIN_C

/* Ids and texts equal those of Hugging Face tokenizers with add_special_tokens = false: what a
 * file's post_processor, truncation and padding would add or cut is not done here. */
typedef struct dms_tokenizer dms_tokenizer;

/* `json` is the text of a tokenizer.json, `origin` its name in messages; both are copied.
 * Errors: DMS_ERR_FORMAT (no JSON; a key of the wrong type; a model, normalizer, pre-tokenizer or
 * decoder that is not supported, named in the message), DMS_ERR_NOMEM. */
dms_status dms_tokenizer_open(dms_tokenizer **out, const char *json, size_t length,
                              const char *origin);
/* NULL is legal. */
void dms_tokenizer_close(dms_tokenizer *t);

/* Appends the ids of `text`, which may hold 0; invalid UTF-8 is replaced by U+FFFD as Python's
 * errors='replace' does. `specials`: texts of special tokens become these tokens (files,
 * templates); false takes them for plain text (what a user says in a chat). Added tokens that are
 * not special are always found. Fills caches: not for two threads at once. On failure `out` may
 * hold a part. Errors: DMS_ERR_ARG (a word of 2 GiB), DMS_ERR_FORMAT (the file's regular expression
 * takes too many steps), DMS_ERR_NOMEM. */
dms_status dms_tokenizer_encode(dms_tokenizer *t, dms_tokens *out, const char *text, size_t length,
                                bool specials);
/* Where a long text can be cut so that the two parts' ids are the whole's: a length 0 < k < length,
 * the largest one found; 0 where none is known (then the text must stay whole). */
size_t dms_tokenizer_cut(const dms_tokenizer *t, const char *text, size_t length);

/* Appends the bytes of n tokens; they need not be UTF-8 (dms_utf8_replace makes them so), and are
 * those of tokens within a text: see dms_tokenizer_strips.
 * Ids that have no token give nothing, and neither do special ones with `skip_specials`.
 * Errors: DMS_ERR_NOMEM. */
dms_status dms_tokenizer_decode(const dms_tokenizer *t, dms_text *out, const int32_t *ids,
                                int64_t n, bool skip_specials);

/* The character (" ") that the file's decoder takes off the start of a text that has it, or 0: its
 * normalizer put it there. dms_decoder takes it off. */
char dms_tokenizer_strips(const dms_tokenizer *t);

/* The largest id + 1: a model's embedding may have more rows, never fewer. */
int64_t dms_tokenizer_size(const dms_tokenizer *t);
/* The id of a token by its text in the file, or -1. */
int32_t dms_tokenizer_find(const dms_tokenizer *t, const char *token);
bool dms_tokenizer_is_special(const dms_tokenizer *t, int32_t id);
/* The token that opens or ends a text, by the names the supported families give it
 * ("<|begin_of_text|>"; "<|endoftext|>", "<|end_of_text|>", ...), or -1. The model's own config
 * (bos_token_id, eos_token_id) comes first where there is one. */
int32_t dms_tokenizer_begin_of_text(const dms_tokenizer *t);
int32_t dms_tokenizer_end_of_text(const dms_tokenizer *t);
/* CRC-32 of the file's text: the identity that token shards carry. */
uint32_t dms_tokenizer_crc(const dms_tokenizer *t);

/* Decodes a stream of ids to text that is valid UTF-8 at every moment: bytes of a character that
 * is not complete wait for the next id. A value; what follows `within` is its own. */
typedef struct {
    const dms_tokenizer *tokenizer;
    bool skip_specials;
    bool within; /* the ids go on a text: nothing is taken off their start */
    bool begun;
    char pending[4];
    int n_pending;
} dms_decoder;

/* Appends what the id completes; all calls and dms_decoder_end together give
 * dms_utf8_replace(dms_tokenizer_decode(all ids)), less dms_tokenizer_strips. Byte tokens of byte
 * fallback that are no UTF-8 are replaced as dms_utf8_replace does, where Hugging Face tokenizers
 * replaces each byte of their run. Errors: DMS_ERR_NOMEM. */
dms_status dms_decoder_put(dms_decoder *d, dms_text *out, int32_t id);
/* Appends U+FFFD for a character that was never completed; the decoder is then fresh. */
dms_status dms_decoder_end(dms_decoder *d, dms_text *out);

DMS_END_C
#endif
