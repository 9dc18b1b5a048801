/* The turn formats of instruction-tuned models, from what users say to token ids. */
#ifndef DMS_CHAT_H
#define DMS_CHAT_H

#include <stdbool.h>

#include "data/tokenizer.h"

typedef enum { DMS_CHAT_CHATML, DMS_CHAT_LLAMA3 } dms_chat_format;

/* A value; refers to the tokenizer, which must outlive it. Rendering is that of the model's own
 * template for plain conversations, with one difference: text of special tokens in what a user says
 * stays text. */
typedef struct {
    dms_tokenizer *tokenizer;
    dms_chat_format format;
    const char *system;   /* what the template says where there is no system message, or NULL */
    bool dated;           /* Llama 3.1 and later: dates before the system message */
    int32_t begin;        /* <|begin_of_text|>, or -1 */
    int32_t open, opened; /* <|im_start|>, -1; or <|start_header_id|>, <|end_header_id|> */
    int32_t end;          /* <|im_end|> or <|eot_id|>: ends a turn */
} dms_chat;

/* Recognises ChatML (SmolLM2, Qwen2, Qwen2.5, Qwen3) and Llama 3 headers by the template's text and
 * the tokenizer's special tokens. chat_template: NULL where the model has none. DMS_ERR_FORMAT for
 * none or another one, with its beginning. */
dms_status dms_chat_recognise(dms_chat *out, dms_tokenizer *tokenizer, const char *chat_template);

/* Each appends ids to `out`. Errors: those of dms_tokenizer_encode. */
/* The beginning of a conversation; system: NULL for the template's own. */
dms_status dms_chat_begin(const dms_chat *chat, dms_tokens *out, const char *system);
/* What a user says, and the opening of the answer. */
dms_status dms_chat_ask(const dms_chat *chat, dms_tokens *out, const char *text);
/* The end of an answer, which the model writes itself or not at all (when it was stopped). */
dms_status dms_chat_end_answer(const dms_chat *chat, dms_tokens *out);

#endif
