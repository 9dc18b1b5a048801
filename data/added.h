/* Finds added tokens ("<|im_end|>") in text, before it is pre-tokenised. */
#ifndef DMS_ADDED_H
#define DMS_ADDED_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "data/buffer.h"
#include "data/normalizer.h"
#include "kernels/status.h"

DMS_BEGIN_C

typedef struct dms_added dms_added;

/* `list` is added_tokens or NULL, its contents and ids already checked by dms_vocab_open. Takes
 * the tokens whose flag "normalized" is `normalized`; these are then normalised themselves, being
 * looked for in normalised text. Errors: DMS_ERR_FORMAT (a flag that is no boolean), DMS_ERR_NOMEM.
 */
dms_status dms_added_open(dms_added **out, const json_t *list, bool normalized,
                          dms_normalizer *normalizer, const char *origin);
/* NULL is legal. */
void dms_added_close(dms_added *a);

/* Text [start, end) is token `id`. `resume` is where the search goes on, at or before `end`
 * (a token may take the spaces beside it). Begin with zeros. */
typedef struct {
    size_t start, end, resume;
    int32_t id;
} dms_added_match;

/* Moves m to the next match in valid UTF-8: leftmost, and of those the longest; single_word, lstrip
 * and rstrip as Hugging Face tokenizers has them. Without `specials` special tokens are text.
 * False where there is none left. */
bool dms_added_next(const dms_added *a, dms_added_match *m, const char *text, size_t n,
                    bool specials);

/* Whether none of the tokens can reach across a cut made before a space. */
bool dms_added_keeps_spaces(const dms_added *a);

DMS_END_C
#endif
