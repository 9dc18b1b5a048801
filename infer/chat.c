#include "infer/chat.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

/* System prompts that templates fall back to. Sources: the chat_template of
 * HuggingFaceTB/SmolLM2-*-Instruct, Qwen/Qwen2.5-*-Instruct, Qwen/Qwen2-*-Instruct,
 * Qwen/Qwen1.5-*-Chat. A later one may be part of an earlier one. */
static const char *const default_systems[] = {
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are a helpful assistant",
};

/* What a Llama 3.1 or later template states before the date. Source: the chat_template of
 * meta-llama/Llama-3.1-8B-Instruct and Llama-3.2-3B-Instruct. */
#define CUTTING_DATE "Cutting Knowledge Date: December 2023"

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

static dms_status unknown(const char *chat_template, const char *why)
{
    char start[81];
    size_t n = strlen(chat_template);
    n = n < sizeof(start) - 1 ? n : sizeof(start) - 1;
    for (size_t i = 0; i < n; i++)
        start[i] = isprint((unsigned char)chat_template[i]) ? chat_template[i] : ' ';
    start[n] = 0;
    return dms_fail(DMS_ERR_FORMAT,
                    "the model's chat template is of no known format (ChatML, Llama 3): %s; it "
                    "begins \"%s\"; use -p with the prompt as the model expects it",
                    why, start);
}

/* What follows a header and its n newlines, each a newline or its escape in a string; or NULL. */
static const char *after_header(const char *at, const char *header, int newlines)
{
    at += strlen(header);
    for (int i = 0; i < newlines; i++) {
        if (*at != '\n' && strncmp(at, "\\n", 2) != 0)
            return NULL;
        at += *at == '\n' ? 1 : 2;
    }
    return at;
}

static bool is_quote(char c)
{
    return c == '\'' || c == '"';
}

/* True where the string that opens an answer is its header and nothing else. */
static bool opens_answers(const char *chat_template, const char *header, int newlines)
{
    for (const char *at = chat_template; (at = strstr(at, header)); at++) {
        const char *rest = after_header(at, header, newlines);
        if (rest && is_quote(*rest))
            return true;
    }
    return false;
}

/* The system message that the template writes out, or else names; false for an unknown one. */
static bool find_system(dms_chat *c, const char *chat_template)
{
    static const char header[] = "<|im_start|>system";
    const int n = (int)(sizeof(default_systems) / sizeof(*default_systems));
    for (const char *at = chat_template; (at = strstr(at, header)); at++) {
        const char *text = after_header(at, header, 1);
        if (!text || is_quote(*text))
            continue;
        for (int i = 0; i < n && !c->system; i++) {
            const size_t length = strlen(default_systems[i]);
            if (!strncmp(text, default_systems[i], length) &&
                !strncmp(text + length, "<|im_end|>", strlen("<|im_end|>")))
                c->system = default_systems[i];
        }
        return c->system != NULL;
    }
    for (int i = 0; i < n && !c->system; i++)
        if (strstr(chat_template, default_systems[i]))
            c->system = default_systems[i];
    return true;
}

static dms_status read_chatml(dms_chat *c, const char *chat_template)
{
    c->format = DMS_CHAT_CHATML;
    c->open = dms_tokenizer_find(c->tokenizer, "<|im_start|>");
    c->end = dms_tokenizer_find(c->tokenizer, "<|im_end|>");
    if (!opens_answers(chat_template, "<|im_start|>assistant", 1))
        return unknown(chat_template, "ChatML, but answers do not open with their header alone");
    if (strstr(chat_template, "strftime_now"))
        return unknown(chat_template, "ChatML, but with dates");
    if (!find_system(c, chat_template))
        return unknown(chat_template, "ChatML, but with a system message of its own");
    return DMS_OK;
}

/* In English, whatever the locale. */
static dms_status write_today(dms_chat *c)
{
    static const char months[][4] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                     "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
    const time_t now = time(NULL);
    struct tm day;
    if (!localtime_r(&now, &day))
        return dms_fail(DMS_ERR_ARG, "the clock says no date that a chat could begin with");
    snprintf(c->date, sizeof(c->date), "%02d %s %d", day.tm_mday, months[day.tm_mon],
             day.tm_year + 1900);
    return DMS_OK;
}

static dms_status read_llama3(dms_chat *c, const char *chat_template)
{
    c->format = DMS_CHAT_LLAMA3;
    c->begin = dms_tokenizer_find(c->tokenizer, "<|begin_of_text|>");
    c->open = dms_tokenizer_find(c->tokenizer, "<|start_header_id|>");
    c->opened = dms_tokenizer_find(c->tokenizer, "<|end_header_id|>");
    c->end = dms_tokenizer_find(c->tokenizer, "<|eot_id|>");
    if (!opens_answers(chat_template, "<|start_header_id|>assistant<|end_header_id|>", 2))
        return unknown(chat_template, "Llama 3, but answers do not open with their header alone");
    if (strstr(chat_template, CUTTING_DATE) && strstr(chat_template, "date_string"))
        return write_today(c);
    if (strstr(chat_template, "Knowledge Date") || strstr(chat_template, "date_string"))
        return unknown(chat_template, "Llama 3, but with other dates");
    return DMS_OK;
}

dms_status dms_chat_recognise(dms_chat *out, dms_tokenizer *tokenizer, const char *chat_template)
{
    dms_chat c = {.tokenizer = tokenizer, .begin = -1, .opened = -1};
    if (!chat_template)
        return dms_fail(DMS_ERR_FORMAT,
                        "the model has no chat template: it is no instruction-tuned "
                        "model, or its files lack it; use -p");
    if (strstr(chat_template, "<|im_start|>"))
        DMS_TRY(read_chatml(&c, chat_template));
    else if (strstr(chat_template, "<|start_header_id|>"))
        DMS_TRY(read_llama3(&c, chat_template));
    else
        return unknown(chat_template, "it has the headers of neither");
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
    char dates[sizeof("\n\n" CUTTING_DATE "\nToday Date: \n\n") + sizeof(c->date)];
    snprintf(dates, sizeof(dates), "\n\n" CUTTING_DATE "\nToday Date: %s\n\n", c->date);
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
    if (chat->date[0])
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
