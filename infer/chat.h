/* The turn formats of instruction-tuned models, from what users say to token ids. */
#ifndef DMS_CHAT_H
#define DMS_CHAT_H

#include <stdbool.h>

#include "data/tokenizer.h"

typedef enum { DMS_CHAT_CHATML, DMS_CHAT_LLAMA3 } dms_chat_format;

/* A value; refers to the tokenizer, which must outlive it. Rendering is that of the model's own
 * template for plain conversations (no tools), with these differences: text of special tokens in
 * what a user says stays text; where the template trims, only ASCII white space goes; answers stay
 * in the conversation as the model wrote them, with their reasoning (Qwen3 would drop it). */
typedef struct {
    dms_tokenizer *tokenizer;
    dms_chat_format format;
    const char *system; /* what the template says where there is no system message, or NULL */
    /* Llama 3.1 and later state "Today Date: " before the system message; empty: a template without
     * dates. dms_chat_recognise writes the local date of its call, "%d %b %Y" in English, as
     * llama.cpp (common/chat.cpp, Llama 3.x) does and the templates since 3.2 do; the 3.1 template
     * by itself would always say "26 Jul 2024". A caller that wants the same ids every day
     * overwrites it. */
    char date[32];
    int32_t begin;        /* <|begin_of_text|>, or -1 */
    int32_t open, opened; /* <|im_start|>, -1; or <|start_header_id|>, <|end_header_id|> */
    int32_t end;          /* <|im_end|> or <|eot_id|>: ends a turn */
} dms_chat;

/* Recognises ChatML (SmolLM2, Qwen2, Qwen2.5, Qwen3) and Llama 3 headers by the template's text and
 * the tokenizer's special tokens. chat_template: NULL where the model has none. DMS_ERR_FORMAT,
 * with the template's beginning, for none and for one that may render otherwise: another format, an
 * answer that opens with more than its header, a system message of its own that is not known. */
dms_status dms_chat_recognise(dms_chat *out, dms_tokenizer *tokenizer, const char *chat_template);

/* Each appends ids to `out`. Errors: those of dms_tokenizer_encode. */
/* The beginning of a conversation; system: NULL for the template's own. */
dms_status dms_chat_begin(const dms_chat *chat, dms_tokens *out, const char *system);
/* What a user says, and the opening of the answer. */
dms_status dms_chat_ask(const dms_chat *chat, dms_tokens *out, const char *text);
/* The end of an answer, which the model writes itself or not at all (when it was stopped). */
dms_status dms_chat_end_answer(const dms_chat *chat, dms_tokens *out);

#endif
