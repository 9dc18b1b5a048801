/* Byte-pair merging of one pre-tokenised piece, with a cache of pieces seen (Sennrich et al., 2016;
 * bytes as first symbols: Radford et al., 2019; byte fallback: Kudo, SentencePiece, 2018). */
#ifndef DMS_BPE_H
#define DMS_BPE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "data/buffer.h"
#include "data/vocab.h"
#include "kernels/status.h"

DMS_BEGIN_C

typedef struct dms_bpe dms_bpe;

/* `model` is the object "model" of a tokenizer.json; `vocab` must outlive the result. byte_level:
 * merging begins with bytes, whose characters are those of data/bytelevel.h; else with characters.
 * Errors: DMS_ERR_FORMAT (another model than BPE, an option that is not supported, a merge of a
 * token or into a token that the vocabulary lacks, byte_fallback without a token for each byte),
 * DMS_ERR_NOMEM. */
dms_status dms_bpe_open(dms_bpe **out, const json_t *model, const dms_vocab *vocab, bool byte_level,
                        const char *origin);
/* NULL is legal. */
void dms_bpe_close(dms_bpe *b);

/* Appends the ids of one piece of valid UTF-8: from one symbol a byte or character, the adjacent
 * pair of the lowest rank (the leftmost of equals) is merged until none is left. With ignore_merges
 * a piece that is a token is that token. A byte or character that the vocabulary lacks becomes the
 * tokens of its bytes (byte_fallback), the unknown token, or nothing where the model names none.
 * Not for two threads at once: it fills the cache. Errors: DMS_ERR_ARG (n > INT32_MAX),
 * DMS_ERR_NOMEM. */
dms_status dms_bpe_encode(dms_bpe *b, dms_tokens *out, const char *piece, size_t n);

DMS_END_C
#endif
