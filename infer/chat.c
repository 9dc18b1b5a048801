#include "infer/chat.h"

#include <ctype.h>
#include <string.h>

/* System prompts that templates fall back to. Sources: the chat_template of
 * HuggingFaceTB/SmolLM2-*-Instruct, Qwen/Qwen2.5-*-Instruct, Qwen/Qwen2-*-Instruct. A later one may
 * be part of an earlier one. */
static const char *const default_systems[] = {
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are a helpful assistant",
};

/* Source: the chat_template of meta-llama/Llama-3.1-8B-Instruct; the date it states where nobody
 * gives one. */
static const char dates[] =
    "\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n";

/* The Llama 3 templates trim what is said. */
static const char *trim(const dms_chat *c, const char *text, size_t *n)
{
    *n = strlen(text);
    if (c->format != DMS_CHAT_LLAMA3)
        return text;
    while (*n && isspace((unsigned char)text[*n - 1]))
        --*n;
    while (*n && isspace((unsigned char)*text)) {
        text++;
        --*n;
    }
    return text;
}

/* `before` and the text are read as one piece, as in a rendered conversation. */
static dms_status say(const dms_chat *c, dms_tokens *out, const char *before, const char *text)
{
    dms_text all = {0};
    dms_status status = DMS_OK;
    size_t n;
    text = trim(c, text, &n);
    DMS_TRY_OR(done, dms_text_append(&all, before, strlen(before)));
    DMS_TRY_OR(done, dms_text_append(&all, text, n));
    if (all.n)
        status = dms_tokenizer_encode(c->tokenizer, out, all.bytes, all.n, false);
done:
    dms_text_free(&all);
    return status;
}

static dms_status put(dms_tokens *out, int32_t id)
{
    if (id < 0)
        return DMS_OK;
    DMS_TRY(dms_tokens_reserve(out, 1));
    out->ids[out->n++] = id;
    return DMS_OK;
}

static dms_status named(const char *chat_template)
{
    char start[81];
    size_t n = strlen(chat_template);
    n = n < sizeof(start) - 1 ? n : sizeof(start) - 1;
    for (size_t i = 0; i < n; i++)
        start[i] = isprint((unsigned char)chat_template[i]) ? chat_template[i] : ' ';
    start[n] = 0;
    return dms_fail(DMS_ERR_FORMAT,
                    "the model's chat template is of no known format (ChatML, Llama 3); it begins "
                    "\"%s\"; use -p with the prompt as the model expects it",
                    start);
}

static void find_system(dms_chat *c, const char *chat_template)
{
    const int n = (int)(sizeof(default_systems) / sizeof(*default_systems));
    for (int i = 0; i < n && !c->system; i++)
        if (strstr(chat_template, default_systems[i]))
            c->system = default_systems[i];
}

dms_status dms_chat_recognise(dms_chat *out, dms_tokenizer *tokenizer, const char *chat_template)
{
    dms_chat c = {.tokenizer = tokenizer, .begin = -1, .opened = -1};
    if (!chat_template)
        return dms_fail(DMS_ERR_FORMAT,
                        "the model has no chat template: it is no instruction-tuned "
                        "model, or its files lack it; use -p");
    if (strstr(chat_template, "<|im_start|>")) {
        c.format = DMS_CHAT_CHATML;
        c.open = dms_tokenizer_find(tokenizer, "<|im_start|>");
        c.end = dms_tokenizer_find(tokenizer, "<|im_end|>");
        find_system(&c, chat_template);
    } else if (strstr(chat_template, "<|start_header_id|>")) {
        c.format = DMS_CHAT_LLAMA3;
        c.begin = dms_tokenizer_find(tokenizer, "<|begin_of_text|>");
        c.open = dms_tokenizer_find(tokenizer, "<|start_header_id|>");
        c.opened = dms_tokenizer_find(tokenizer, "<|end_header_id|>");
        c.end = dms_tokenizer_find(tokenizer, "<|eot_id|>");
        c.dated = strstr(chat_template, "Cutting Knowledge Date") != NULL;
    } else
        return named(chat_template);
    if (c.open < 0 || c.end < 0 || (c.format == DMS_CHAT_LLAMA3 && (c.begin < 0 || c.opened < 0)))
        return dms_fail(DMS_ERR_FORMAT, "the chat template uses tokens that the tokenizer lacks");
    *out = c;
    return DMS_OK;
}

/* The header of a turn and what is said in it. */
static dms_status turn(const dms_chat *c, dms_tokens *out, const char *role, const char *text)
{
    DMS_TRY(put(out, c->open));
    if (c->format == DMS_CHAT_CHATML)
        return say(c, out, role, text);
    DMS_TRY(say(c, out, role, ""));
    DMS_TRY(put(out, c->opened));
    return say(c, out, "\n\n", text);
}

dms_status dms_chat_end_answer(const dms_chat *chat, dms_tokens *out)
{
    DMS_TRY(put(out, chat->end));
    return chat->format == DMS_CHAT_CHATML ? say(chat, out, "\n", "") : DMS_OK;
}

static const char *role(const dms_chat *c, const char *chatml, const char *llama)
{
    return c->format == DMS_CHAT_CHATML ? chatml : llama;
}

/* Llama 3.1 and later open every conversation with a system turn that begins with dates. */
static dms_status dated_system(const dms_chat *c, dms_tokens *out, const char *system)
{
    DMS_TRY(put(out, c->open));
    DMS_TRY(say(c, out, "system", ""));
    DMS_TRY(put(out, c->opened));
    DMS_TRY(say(c, out, dates, system ? system : ""));
    return put(out, c->end);
}

dms_status dms_chat_begin(const dms_chat *chat, dms_tokens *out, const char *system)
{
    DMS_TRY(put(out, chat->begin));
    if (!system)
        system = chat->system;
    if (chat->dated)
        return dated_system(chat, out, system);
    if (!system)
        return DMS_OK;
    DMS_TRY(turn(chat, out, role(chat, "system\n", "system"), system));
    return dms_chat_end_answer(chat, out);
}

dms_status dms_chat_ask(const dms_chat *chat, dms_tokens *out, const char *text)
{
    DMS_TRY(turn(chat, out, role(chat, "user\n", "user"), text));
    DMS_TRY(dms_chat_end_answer(chat, out));
    return turn(chat, out, role(chat, "assistant\n", "assistant"), "");
}
