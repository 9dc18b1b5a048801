#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "infer/chat.h"
#include "infer/chat_parts.h"

/* What a template is, told by its text. */

/* System prompts that templates fall back to. Sources: the chat_template of
 * HuggingFaceTB/SmolLM2-*-Instruct, Qwen/Qwen2.5-*-Instruct, Qwen/Qwen2-*-Instruct,
 * Qwen/Qwen1.5-*-Chat. A later one may be part of an earlier one. */
static const char *const default_systems[] = {
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are a helpful assistant",
};

static dms_status unknown(const char *chat_template, const char *why)
{
    char start[81];
    size_t n = strlen(chat_template);
    n = n < sizeof(start) - 1 ? n : sizeof(start) - 1;
    for (size_t i = 0; i < n; i++)
        start[i] = isprint((unsigned char)chat_template[i]) ? chat_template[i] : ' ';
    start[n] = 0;
    return dms_fail(
        DMS_ERR_FORMAT,
        "the model's chat template is of no known format (ChatML, Llama 3, DeepSeek-R1): %s; it "
        "begins \"%s\"; write the turns as the model expects them and give that as plain text",
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

static bool has(const char *chat_template, const char *part)
{
    return strstr(chat_template, part) != NULL;
}

/* Qwen3: reasoning stays in answers after the last question, and goes from those before. Source:
 * the chat_template of Qwen/Qwen3-*. Templates that mention it must have all of these parts. */
static bool find_reasoning(dms_chat *c, const char *chat_template)
{
    static const char *const parts[] = {
        "reasoning_content.strip('",
        "loop.index0 > ns.last_query_index",
        "loop.last or (not loop.last and reasoning_content)",
        "content.split('</think>')[-1].lstrip('",
        ".split('<think>')[-1].lstrip('",
    };
    c->can_skip_thinking = has(chat_template, "enable_thinking is false");
    if (!has(chat_template, "reasoning_content") && !has(chat_template, "split('</think>')"))
        return true;
    for (size_t i = 0; i < sizeof(parts) / sizeof(*parts); i++)
        if (!has(chat_template, parts[i]))
            return false;
    c->drops_reasoning = true;
    return true;
}

/* Every message is said whole, whoever says it, and closed behind it. Not so in Qwen1.5's first
 * template, which leaves the last one open. */
static bool has_turns(const char *chat_template)
{
    return has(chat_template, "+ message['content'] + '<|im_end|>'") ||
           has(chat_template, "+ message.content + '<|im_end|>'") ||
           has(chat_template, "+ content + '<|im_end|>'");
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
    if (has(chat_template, "| trim") || has(chat_template, "|trim"))
        return unknown(chat_template, "ChatML, but with text trimmed");
    if (!find_reasoning(c, chat_template))
        return unknown(chat_template, "ChatML, but with other rules for reasoning");
    if (!find_system(c, chat_template))
        return unknown(chat_template, "ChatML, but with a system message of its own");
    if (!has_turns(chat_template))
        return unknown(chat_template, "ChatML, but with turns that may end otherwise");
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

/* The date that the template itself sets: 3.1 and 3.3 have one, 3.2 asks strftime_now. */
static bool copy_date(dms_chat *c, const char *chat_template)
{
    static const char set[] = "set date_string = \"";
    const char *at = strstr(chat_template, set), *date = at ? at + strlen(set) : NULL;
    const size_t n = date ? strcspn(date, "\"") : 0;
    if (!n || n >= sizeof(c->date) || date[n] != '"')
        return false;
    memcpy(c->date, date, n);
    c->date[n] = 0;
    return true;
}

static dms_status find_date(dms_chat *c, const char *chat_template)
{
    const bool dated = has(chat_template, "Knowledge Date") || has(chat_template, "date_string");
    if (!dated)
        return DMS_OK;
    if (has(chat_template, DMS_CHAT_CUTTING_DATE) && has(chat_template, "+ date_string +")) {
        if (has(chat_template, "strftime_now(\"%d %b %Y\")"))
            return write_today(c);
        if (!has(chat_template, "strftime_now") && copy_date(c, chat_template))
            return DMS_OK;
    }
    return unknown(chat_template, "Llama 3, but with other dates");
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
    if (!has(chat_template, "message['content'] | trim"))
        return unknown(chat_template, "Llama 3, but with text not trimmed");
    return find_date(c, chat_template);
}

/* DeepSeek-R1 and its distils, also the first version, whose answers do not open with <think>.
 * Later models of the name have templates with more rules (is_last_user, thinking). Source: the
 * chat_template of deepseek-ai/DeepSeek-R1-Distill-*. */
static dms_status read_deepseek(dms_chat *c, const char *chat_template)
{
    static const char *const others[] = {"is_last_user", "is_first_sp", "thinking", "is_prefix"};
    c->format = DMS_CHAT_DEEPSEEK;
    c->begin = dms_tokenizer_find(c->tokenizer, DMS_CHAT_BEGIN_OF_SENTENCE);
    c->open = dms_tokenizer_find(c->tokenizer, DMS_CHAT_USER);
    c->opened = dms_tokenizer_find(c->tokenizer, DMS_CHAT_ASSISTANT);
    c->end = dms_tokenizer_find(c->tokenizer, DMS_CHAT_END_OF_SENTENCE);
    for (size_t i = 0; i < sizeof(others) / sizeof(*others); i++)
        if (has(chat_template, others[i]))
            return unknown(chat_template, "DeepSeek, but a later one than R1");
    if (!has(chat_template, "ns.system_prompt}}") ||
        !has(chat_template, "'" DMS_CHAT_USER "' + message['content']}}") ||
        !has(chat_template, "'" DMS_CHAT_ASSISTANT "' + content + '" DMS_CHAT_END_OF_SENTENCE "'"))
        return unknown(chat_template, "DeepSeek, but with other turns");
    c->opens_thinking = has(chat_template, "'" DMS_CHAT_ASSISTANT "<think>\\n'");
    c->drops_reasoning = has(chat_template, "content.split('</think>')[-1]");
    if (!c->opens_thinking && !has(chat_template, "{{'" DMS_CHAT_ASSISTANT "'}}"))
        return unknown(chat_template, "DeepSeek, but answers do not open as R1's");
    return DMS_OK;
}

dms_status dms_chat_recognise(dms_chat *out, dms_tokenizer *tokenizer, const char *chat_template)
{
    dms_chat c = {.tokenizer = tokenizer, .begin = -1, .opened = -1};
    if (!chat_template)
        return dms_fail(DMS_ERR_FORMAT,
                        "the model has no chat template: it is no instruction-tuned "
                        "model, or its files lack it; give it plain text");
    if (strstr(chat_template, "<|im_start|>"))
        DMS_TRY(read_chatml(&c, chat_template));
    else if (strstr(chat_template, "<|start_header_id|>"))
        DMS_TRY(read_llama3(&c, chat_template));
    else if (strstr(chat_template, DMS_CHAT_ASSISTANT))
        DMS_TRY(read_deepseek(&c, chat_template));
    else
        return unknown(chat_template, "it has the headers of none");
    if (c.open < 0 || c.end < 0 || (c.format != DMS_CHAT_CHATML && (c.begin < 0 || c.opened < 0)))
        return dms_fail(DMS_ERR_FORMAT, "the chat template uses tokens that the tokenizer lacks");
    *out = c;
    return DMS_OK;
}
