/* What a model reads of an item: its prompt as tokens, and the continuations that are weighed. */
#ifndef DMS_PROMPT_H
#define DMS_PROMPT_H

#include "infer/chat.h"
#include "tasks/items.h"

typedef struct {
    dms_tokenizer *tokenizer;
    const dms_chat *chat; /* prompts are a user's turn; NULL: plain text, after begin-of-text where
                             the family has one */
    int32_t begin;        /* before plain text; -1: nothing */
    int64_t longest;      /* tokens that prompt and answer may have together */
} dms_prompt_style;

/* Both append. What does not fit is cut from the left, *cut is then set. Errors: those of the
 * tokenizer and of dms_chat_render; DMS_ERR_ARG for an answer that alone is too long. */
/* The prompt of an item whose answer is drawn, with the answer's prefix; room for max_new tokens.
 */
dms_status dms_prompt_write(dms_tokens *out, bool *cut, const dms_prompt_style *style,
                            const dms_item *item, int64_t max_new);
/* Choice i: context and continuation, tokenised as one text; white space at the context's end
 * belongs to the continuation, which gets at least one token. */
dms_status dms_prompt_choice(dms_tokens *context, dms_tokens *given, bool *cut,
                             const dms_prompt_style *style, const dms_item *item, size_t i);

#endif
