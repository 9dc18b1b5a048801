#define PCRE2_CODE_UNIT_WIDTH 8
#include "data/pattern.h"

#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/buffer.h"
#include "data/keys.h"

/* Unicode White_Space as the inside of a set. */
#define SPACES                                                                         \
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}" \
    "\\x{202f}\\x{205f}\\x{3000}"

struct dms_pattern {
    pcre2_code *code;
    pcre2_match_data *match;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
    /* pcre2_jit_match where there is a JIT for this processor, else pcre2_match. */
    int (*run)(const pcre2_code *, PCRE2_SPTR, PCRE2_SIZE, PCRE2_SIZE, uint32_t, pcre2_match_data *,
               pcre2_match_context *);
    char *regex; /* as the file has it, for messages */
};

/* All code points but those, and what Oniguruma's \w has: Unicode's Alphabetic but for a few marks,
 * the numbers that are digits or letters, connectors, and (its tables' own) six of Latin-1. */
#define NO_SPACES                                                                  \
    "\\x{0}-\\x{8}\\x{e}-\\x{1f}\\x{21}-\\x{84}\\x{86}-\\x{9f}\\x{a1}-\\x{167f}"   \
    "\\x{1681}-\\x{1fff}\\x{200b}-\\x{2027}\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}" \
    "\\x{2060}-\\x{2fff}\\x{3001}-\\x{10ffff}"
#define WORD                                                                                   \
    "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}\\x{24b6}-\\x{24e9}" \
    "\\x{1f130}-\\x{1f149}\\x{1f150}-\\x{1f169}\\x{1f170}-\\x{1f189}"
#define HEX "0-9A-Fa-f"

/* What an escape means in PCRE2's words, in a set and outside; NULL: nothing there. */
static const struct {
    char escape;
    const char *inside, *outside;
} escapes[] = {
    {'s', SPACES, "[" SPACES "]"},
    {'S', NO_SPACES, "[^" SPACES "]"},
    {'w', WORD, "[" WORD "]"},
    {'W', NULL, "[^" WORD "]"},
    {'h', HEX, "[" HEX "]"},
    {'H', NULL, "[^" HEX "]"},
    {'v', "\\x{b}", "\\x{b}"},
    {'b', "\\x{8}", "(?:(?<=[" WORD "])(?![" WORD "])|(?<![" WORD "])(?=[" WORD "]))"},
    {'B', NULL, "(?:(?<=[" WORD "])(?=[" WORD "])|(?<![" WORD "])(?![" WORD "]))"},
};

typedef struct {
    const char *text; /* the expression as the file has it */
    size_t n, at;     /* `at`: the character that is read next */
    bool in_set;
    dms_text *out;
    const char *origin;
} translation;

static dms_status refuse(const translation *t, size_t at, const char *what)
{
    return dms_fail(DMS_ERR_FORMAT,
                    "%s: regular expression \"%.128s\": %s at character %zu is not supported",
                    t->origin, t->text, what, at);
}

static bool is_hex(char c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

/* \uHHHH of Ruby's syntax; the escape is read up to the u. */
static dms_status translate_code(translation *t)
{
    char code[16];
    size_t digits = 0;
    while (digits < 4 && t->at + digits < t->n && is_hex(t->text[t->at + digits]))
        digits++;
    if (digits < 4)
        return refuse(t, t->at, "\\u without four hexadecimal digits");
    snprintf(code, sizeof(code), "\\x{%.4s}", t->text + t->at);
    t->at += digits;
    return dms_text_append(t->out, code, strlen(code));
}

/* What stands in braces next, the braces too: so that the } is not taken for the end of {n,m}. */
static dms_status copy_braces(translation *t)
{
    const char *end = memchr(t->text + t->at, '}', t->n - t->at);
    if (!end || t->text[t->at] != '{')
        return DMS_OK;
    const size_t n = (size_t)(end + 1 - (t->text + t->at));
    DMS_TRY(dms_text_append(t->out, t->text + t->at, n));
    t->at += n;
    return DMS_OK;
}

/* \p{Han}: PCRE2 would take a script's extensions in too, unless told not to. */
static dms_status translate_property(translation *t, char p)
{
    const char head[3] = {'\\', p, '{'};
    if (t->at == t->n || t->text[t->at] != '{')
        return refuse(t, t->at, "a property without its name in braces");
    DMS_TRY(dms_text_append(t->out, head, 3));
    t->at++;
    if (t->text[t->at] == '^') {
        DMS_TRY(dms_text_append(t->out, "^", 1));
        t->at++;
    }
    const size_t n = strcspn(t->text + t->at, "}");
    if (n > 2)
        DMS_TRY(dms_text_append(t->out, "sc:", 3));
    DMS_TRY(dms_text_append(t->out, t->text + t->at, n));
    t->at += n;
    if (t->text[t->at] != '}')
        return refuse(t, t->at, "a property without its closing brace");
    t->at++;
    return dms_text_append(t->out, "}", 1);
}

/* The escape whose backslash was read. */
static dms_status translate_escape(translation *t)
{
    const char e = t->text[t->at++];
    const bool letter = (e >= 'a' && e <= 'z') || (e >= 'A' && e <= 'Z');
    for (size_t i = 0; i < sizeof(escapes) / sizeof(*escapes); i++) {
        const char *text = t->in_set ? escapes[i].inside : escapes[i].outside;
        if (escapes[i].escape == e && text)
            return dms_text_append(t->out, text, strlen(text));
    }
    if (e == 'u')
        return translate_code(t);
    if (e == 'p' || e == 'P')
        return translate_property(t, e);
    const char same[3] = {'\\', e, 0};
    if (letter && !strchr(t->in_set ? "rntfaedDx" : "rntfaedDxAzZ", e))
        return refuse(t, t->at - 1, same);
    DMS_TRY(dms_text_append(t->out, same, 2));
    return e == 'x' ? copy_braces(t) : DMS_OK;
}

/* (?m of Ruby's syntax is PCRE2's (?s. */
static dms_status translate_flags(translation *t)
{
    while (t->at < t->n && strchr("imx-", t->text[t->at])) {
        const char *flag = t->text[t->at] == 'm' ? "s" : t->text + t->at;
        DMS_TRY(dms_text_append(t->out, flag, 1));
        t->at++;
    }
    return DMS_OK;
}

/* The beginning of a set; a ] that comes first is itself. */
static dms_status translate_set(translation *t)
{
    t->in_set = true;
    for (int i = 0; i < 2 && t->at < t->n; i++) {
        const char c = t->text[t->at];
        if (!(c == '^' && i == 0) && c != ']')
            break;
        DMS_TRY(dms_text_append(t->out, &c, 1));
        t->at++;
        if (c == ']')
            break;
    }
    return DMS_OK;
}

static dms_status translate_one(translation *t)
{
    const char c = t->text[t->at++], next = t->at < t->n ? t->text[t->at] : 0;
    if (c == '\\' && t->at < t->n)
        return translate_escape(t);
    if (t->in_set && (c == '[' || (c == '&' && next == '&')))
        return refuse(t, t->at - 1, "a set within a set");
    if (!t->in_set && c == '}' && next == '+')
        return refuse(t, t->at, "+ after {n,m}"); /* there no possessive, but a second repeat */
    DMS_TRY(dms_text_append(t->out, &c, 1));
    if (t->in_set) {
        t->in_set = c != ']';
        return DMS_OK;
    }
    if (c == '[')
        return translate_set(t);
    if (c != '(' || next != '?')
        return DMS_OK;
    t->at++;
    DMS_TRY(dms_text_append(t->out, "?", 1));
    return translate_flags(t);
}

static dms_status translate(dms_text *out, const char *regex, size_t n, const char *origin)
{
    translation t = {.text = regex, .n = n, .out = out, .origin = origin};
    while (t.at < n)
        DMS_TRY(translate_one(&t));
    return DMS_OK;
}

static dms_status compile(dms_pattern *p, const dms_text *regex, const char *origin)
{
    int error;
    PCRE2_SIZE at;
    char message[256];
    p->code = pcre2_compile((PCRE2_SPTR)regex->bytes, regex->n,
                            PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE, &error, &at, NULL);
    if (!p->code) {
        pcre2_get_error_message(error, (PCRE2_UCHAR *)message, sizeof(message));
        return dms_fail(DMS_ERR_FORMAT, "%s: regular expression \"%.128s\": %s", origin, p->regex,
                        message);
    }
    p->match = pcre2_match_data_create(1, NULL);
    p->context = pcre2_match_context_create(NULL);
    if (!p->match || !p->context)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a regular expression");
    p->run = pcre2_match;
    if (pcre2_jit_compile(p->code, PCRE2_JIT_COMPLETE) == 0) {
        p->run = pcre2_jit_match;
        p->stack = pcre2_jit_stack_create(32 << 10, 1 << 20, NULL);
        pcre2_jit_stack_assign(p->context, NULL, p->stack);
    }
    return DMS_OK;
}

dms_status dms_pattern_open(dms_pattern **out, const char *regex, size_t n, const char *origin)
{
    dms_status status = DMS_OK;
    dms_text translated = {0};
    dms_pattern *p = calloc(1, sizeof(*p));
    if (!p)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a regular expression");
    p->regex = malloc(n + 1);
    if (!p->regex)
        DMS_TRY_OR(failed, dms_fail(DMS_ERR_NOMEM, "no memory for a regular expression"));
    memcpy(p->regex, regex, n);
    p->regex[n] = 0;
    DMS_TRY_OR(failed, dms_text_reserve(&translated, 1));
    DMS_TRY_OR(failed, translate(&translated, p->regex, n, origin));
    DMS_TRY_OR(failed, compile(p, &translated, origin));
    dms_text_free(&translated);
    *out = p;
    return DMS_OK;
failed:
    dms_text_free(&translated);
    dms_pattern_close(p);
    return status;
}

void dms_pattern_close(dms_pattern *p)
{
    if (!p)
        return;
    pcre2_jit_stack_free(p->stack);
    pcre2_match_context_free(p->context);
    pcre2_match_data_free(p->match);
    pcre2_code_free(p->code);
    free(p->regex);
    free(p);
}

dms_status dms_pattern_find(dms_pattern *p, size_t *start, size_t *end, const char *text, size_t n,
                            size_t from)
{
    char message[256];
    const int found =
        p->run(p->code, (PCRE2_SPTR)text, n, from, PCRE2_NO_UTF_CHECK, p->match, p->context);
    if (found == PCRE2_ERROR_NOMATCH) {
        *start = *end = n + 1;
        return DMS_OK;
    }
    if (found < 0) {
        pcre2_get_error_message(found, (PCRE2_UCHAR *)message, sizeof(message));
        return dms_fail(DMS_ERR_FORMAT, "regular expression \"%.128s\" on this text: %s", p->regex,
                        message);
    }
    const PCRE2_SIZE *ends = pcre2_get_ovector_pointer(p->match);
    *start = ends[0];
    *end = ends[1];
    return DMS_OK;
}

/* Every character but letters, digits and what lies outside ASCII is escaped. */
static dms_status escape(dms_text *out, const char *text, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const char c = text[i];
        const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                           (c >= '0' && c <= '9') || (unsigned char)c >= 0x80 ||
                           (unsigned char)c <= 0x20;
        if (!plain)
            DMS_TRY(dms_text_append(out, "\\", 1));
        DMS_TRY(dms_text_append(out, &c, 1));
    }
    return DMS_OK;
}

dms_status dms_pattern_read(dms_pattern **out, const json_t *json, const char *where)
{
    dms_text escaped = {0};
    const json_t *regex = json_object_get(json, "Regex"), *text = json_object_get(json, "String");
    if (json_is_string(regex))
        return dms_pattern_open(out, json_string_value(regex), json_string_length(regex), where);
    if (json_string_length(text) == 0)
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: pattern.Regex is %s, and pattern.String %s, expected one that is a "
                        "string",
                        where, dms_key_type(regex), json_is_string(text) ? "is empty" : "is none");
    dms_status status = escape(&escaped, json_string_value(text), json_string_length(text));
    if (!status)
        status = dms_pattern_open(out, escaped.bytes, escaped.n, where);
    dms_text_free(&escaped);
    return status;
}
