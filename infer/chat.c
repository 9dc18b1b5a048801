#include "infer/chat.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "infer/chat_parts.h"

/* A stretch of what somebody says. */
typedef struct {
    const char *text;
    size_t n;
} part;

static part whole(const char *text)
{
    return (part){text, strlen(text)};
}

static part strip_left(part p, bool (*goes)(char))
{
    for (; p.n && goes(*p.text); p.n--)
        p.text++;
    return p;
}

static part strip_right(part p, bool (*goes)(char))
{
    while (p.n && goes(p.text[p.n - 1]))
        p.n--;
    return p;
}

static bool is_space(char c)
{
    return isspace((unsigned char)c);
}

static bool is_newline(char c)
{
    return c == '\n';
}

/* What stands before the first `mark`, or after the last one; p itself where there is none. */
static part before_first(part p, const char *mark)
{
    const char *at = memmem(p.text, p.n, mark, strlen(mark));
    return at ? (part){p.text, (size_t)(at - p.text)} : p;
}

static part after_last(part p, const char *mark)
{
    const size_t n = strlen(mark);
    for (const char *at; (at = memmem(p.text, p.n, mark, n));) {
        p.n -= (size_t)(at + n - p.text);
        p.text = at + n;
    }
    return p;
}

static dms_status append(dms_text *out, part p)
{
    return dms_text_append(out, p.text, p.n);
}

/* `before` and the text are read as one piece, as in a rendered conversation. */
static dms_status say(const dms_chat *c, dms_tokens *out, const char *before, part text)
{
    dms_text all = {0};
    dms_status status = DMS_OK;
    if (c->format == DMS_CHAT_LLAMA3) /* whose templates trim */
        text = strip_left(strip_right(text, is_space), is_space);
    DMS_TRY_OR(done, append(&all, whole(before)));
    DMS_TRY_OR(done, append(&all, text));
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

/* The header of a turn, and what is said in it or the first of it. */
static dms_status turn(const dms_chat *c, dms_tokens *out, const char *role, part text)
{
    char header[32];
    if (c->format == DMS_CHAT_DEEPSEEK) {
        DMS_TRY(put(out, strcmp(role, "user") ? c->opened : c->open));
        return say(c, out, "", text);
    }
    DMS_TRY(put(out, c->open));
    if (c->format == DMS_CHAT_CHATML) {
        snprintf(header, sizeof(header), "%s\n", role);
        return say(c, out, header, text);
    }
    DMS_TRY(say(c, out, role, whole("")));
    DMS_TRY(put(out, c->opened));
    return say(c, out, "\n\n", text);
}

dms_status dms_chat_end_answer(const dms_chat *chat, dms_tokens *out)
{
    DMS_TRY(put(out, chat->end));
    return chat->format == DMS_CHAT_CHATML ? say(chat, out, "\n", whole("")) : DMS_OK;
}

static dms_status open_answer(const dms_chat *c, dms_tokens *out)
{
    const bool skips = c->can_skip_thinking && c->skip_thinking;
    return turn(c, out, "assistant",
                whole(skips               ? "<think>\n\n</think>\n\n"
                      : c->opens_thinking ? "<think>\n"
                                          : ""));
}

/* Llama 3.1 and later open every conversation with a system turn that begins with dates. */
static dms_status dated_system(const dms_chat *c, dms_tokens *out, const char *system)
{
    char dates[sizeof("\n\n" DMS_CHAT_CUTTING_DATE "\nToday Date: \n\n") + sizeof(c->date)];
    snprintf(dates, sizeof(dates), "\n\n" DMS_CHAT_CUTTING_DATE "\nToday Date: %s\n\n", c->date);
    DMS_TRY(put(out, c->open));
    DMS_TRY(say(c, out, "system", whole("")));
    DMS_TRY(put(out, c->opened));
    DMS_TRY(say(c, out, dates, whole(system ? system : "")));
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
    if (chat->format == DMS_CHAT_DEEPSEEK)
        return say(chat, out, "", whole(system));
    DMS_TRY(turn(chat, out, "system", whole(system)));
    return dms_chat_end_answer(chat, out);
}

dms_status dms_chat_ask(const dms_chat *chat, dms_tokens *out, const char *text)
{
    DMS_TRY(turn(chat, out, "user", whole(text)));
    if (chat->format != DMS_CHAT_DEEPSEEK)
        DMS_TRY(dms_chat_end_answer(chat, out));
    return open_answer(chat, out);
}

/* ---- whole conversations -------------------------------------------------------------------- */

/* Qwen3's last question: the last user message that is no answer of a tool; n - 1 without one. */
static size_t last_question(const dms_message *m, size_t n)
{
    static const char start[] = "<tool_response>", stop[] = "</tool_response>";
    for (size_t i = n; i-- > 0;) {
        const part p = whole(m[i].content);
        const bool tool = p.n >= strlen(start) && !memcmp(p.text, start, strlen(start)) &&
                          p.n >= strlen(stop) &&
                          !memcmp(p.text + p.n - strlen(stop), stop, strlen(stop));
        if (!strcmp(m[i].role, "user") && !tool)
            return i;
    }
    return n - 1;
}

/* Writes an answer to `said` as Qwen3's template does. `after`: it follows the last question. */
static dms_status answer_of_qwen3(dms_text *said, const dms_message *m, bool after, bool last)
{
    part content = whole(m->content), reasoning = whole(m->reasoning ? m->reasoning : "");
    if (!m->reasoning && strstr(m->content, "</think>")) {
        reasoning = strip_right(before_first(content, "</think>"), is_newline);
        reasoning = strip_left(after_last(reasoning, "<think>"), is_newline);
        content = strip_left(after_last(content, "</think>"), is_newline);
    }
    if (!after || (!last && !reasoning.n))
        return append(said, content);
    DMS_TRY(append(said, whole("<think>\n")));
    DMS_TRY(append(said, strip_left(strip_right(reasoning, is_newline), is_newline)));
    DMS_TRY(append(said, whole("\n</think>\n\n")));
    return append(said, strip_left(content, is_newline));
}

static dms_status render_answer(const dms_chat *c, dms_tokens *out, const dms_message *m,
                                bool after, bool last)
{
    dms_text said = {0};
    dms_status status = DMS_OK;
    if (!c->drops_reasoning)
        DMS_TRY_OR(done, append(&said, whole(m->content)));
    else if (c->format == DMS_CHAT_DEEPSEEK)
        DMS_TRY_OR(done, append(&said, after_last(whole(m->content), "</think>")));
    else
        DMS_TRY_OR(done, answer_of_qwen3(&said, m, after, last));
    DMS_TRY_OR(done, turn(c, out, "assistant", (part){said.bytes, said.n}));
    status = dms_chat_end_answer(c, out);
done:
    dms_text_free(&said);
    return status;
}

static bool is_role(const dms_message *m, const char *role)
{
    return !strcmp(m->role, role);
}

static dms_status check_roles(const dms_message *m, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!is_role(&m[i], "system") && !is_role(&m[i], "user") && !is_role(&m[i], "assistant"))
            return dms_fail(
                DMS_ERR_ARG,
                "message %zu has the role \"%.64s\", expected system, user or assistant", i,
                m[i].role);
    return DMS_OK;
}

/* The system message that a conversation begins with, or NULL: the first of all messages; DeepSeek
 * takes the last system message from wherever it is. */
static const char *find_system(const dms_chat *c, const dms_message *m, size_t n)
{
    if (c->format != DMS_CHAT_DEEPSEEK)
        return n && is_role(&m[0], "system") ? m[0].content : NULL;
    while (n-- > 0)
        if (is_role(&m[n], "system"))
            return m[n].content;
    return NULL;
}

/* `question`: the last one. */
static dms_status render_one(const dms_chat *c, dms_tokens *out, const dms_message *m, size_t n,
                             size_t i, size_t question)
{
    if (is_role(&m[i], "assistant"))
        return render_answer(c, out, &m[i], i > question, i + 1 == n);
    if (is_role(&m[i], "system") && (i == 0 || c->format == DMS_CHAT_DEEPSEEK))
        return DMS_OK; /* said at the beginning */
    DMS_TRY(turn(c, out, m[i].role, whole(m[i].content)));
    return c->format == DMS_CHAT_DEEPSEEK ? DMS_OK : dms_chat_end_answer(c, out);
}

dms_status dms_chat_render(const dms_chat *chat, dms_tokens *out, const dms_message *messages,
                           size_t n, bool answer)
{
    DMS_TRY(check_roles(messages, n));
    DMS_TRY(dms_chat_begin(chat, out, find_system(chat, messages, n)));
    const size_t question = last_question(messages, n);
    for (size_t i = 0; i < n; i++)
        DMS_TRY(render_one(chat, out, messages, n, i, question));
    return answer ? open_answer(chat, out) : DMS_OK;
}
