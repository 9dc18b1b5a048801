/* The turn formats of instruction-tuned models, from what users say to token ids. */
#ifndef DMS_CHAT_H
#define DMS_CHAT_H

#include <stdbool.h>

#include "data/message.h"
#include "data/tokenizer.h"

/* DMS_CHAT_DEEPSEEK: DeepSeek-R1 and its distils. */
typedef enum { DMS_CHAT_CHATML, DMS_CHAT_LLAMA3, DMS_CHAT_DEEPSEEK } dms_chat_format;

/* A value; refers to the tokenizer, which must outlive it. Rendering is that of the model's own
 * template for plain conversations (no tools), with these differences: text of special tokens in
 * what a user says stays text; where the template trims, only ASCII white space goes; in a
 * conversation that goes on (begin, ask, end_answer) answers stay as the model wrote them, with
 * their reasoning, which Qwen3 and DeepSeek-R1 would drop (dms_chat_render does). */
typedef struct {
    dms_tokenizer *tokenizer;
    dms_chat_format format;
    const char *system; /* what the template says where there is no system message, or NULL */
    /* Llama 3.1 and later state "Today Date: " before the system message; empty: a template without
     * dates. dms_chat_recognise writes the date that the template sets (3.1, 3.3: "26 Jul 2024",
     * as transformers renders it), or the local date of its call, "%d %b %Y" in English, where
     * the template asks for it (3.2). A caller that wants another overwrites it. */
    char date[32];
    int32_t begin;        /* <|begin_of_text|> or DeepSeek's, or -1 */
    int32_t open;         /* <|im_start|>, <|start_header_id|>, DeepSeek's User */
    int32_t opened;       /* -1, <|end_header_id|>, DeepSeek's Assistant */
    int32_t end;          /* <|im_end|>, <|eot_id|>, DeepSeek's end of sentence: ends a turn */
    bool drops_reasoning; /* of earlier answers: up to </think> */
    bool opens_thinking;  /* answers open with <think> and a newline */
    bool can_skip_thinking;
    bool skip_thinking; /* set by the caller where can_skip_thinking: answers open with an empty
                           <think></think>, as enable_thinking=false of Qwen3's template */
} dms_chat;

/* Recognises ChatML (SmolLM2, Qwen2, Qwen2.5, Qwen3), Llama 3 headers and DeepSeek-R1 by the
 * template's text and the tokenizer's special tokens. chat_template: NULL where the model has none.
 * DMS_ERR_FORMAT, with the template's beginning, for none and for one that may render otherwise:
 * another format, an answer that opens with more than its header, a system message of its own or
 * rules for reasoning that are not known. */
dms_status dms_chat_recognise(dms_chat *out, dms_tokenizer *tokenizer, const char *chat_template);

/* Each appends ids to `out`. Errors: those of dms_tokenizer_encode. */
/* The beginning of a conversation; system: NULL for the template's own. */
dms_status dms_chat_begin(const dms_chat *chat, dms_tokens *out, const char *system);
/* What a user says, and the opening of the answer. */
dms_status dms_chat_ask(const dms_chat *chat, dms_tokens *out, const char *text);
/* The end of an answer, which the model writes itself or not at all (when it was stopped). */
dms_status dms_chat_end_answer(const dms_chat *chat, dms_tokens *out);

/* A whole conversation of n messages, as the template renders it; answer: with the opening of an
 * answer behind it (add_generation_prompt). DMS_ERR_ARG for a role that is not system, user or
 * assistant. */
dms_status dms_chat_render(const dms_chat *chat, dms_tokens *out, const dms_message *messages,
                           size_t n, bool answer);

#endif
