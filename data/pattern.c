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

/* Most matches are found by `quick`, within a window of so many bytes and in so many of PCRE2's
 * steps a start, each of which passes over a window at most: that bounds what they cost. The others
 * are found by `counted`, the same expression with a callout before each of its items, which counts
 * what it does against a budget for the whole text. (PCRE2's limits hold for each start of each
 * match, and what one step passes over is not counted: both can be all of a text.) */
enum { WINDOW = 64, WIDEST = 1024, QUICK_STEPS = 64, STEPS_A_BYTE = 256, STEPS_A_TEXT = 1 << 14 };

typedef int run_function(const pcre2_code *, PCRE2_SPTR, PCRE2_SIZE, PCRE2_SIZE, uint32_t,
                         pcre2_match_data *, pcre2_match_context *);

struct dms_pattern {
    pcre2_code *quick, *counted;
    pcre2_match_context *quickly, *counting;
    pcre2_match_data *match;
    const PCRE2_SIZE *ends; /* in `match`: where a match begins and ends */
    pcre2_jit_stack *stack;
    run_function *run, *run_counted; /* NULL until it is used; see choose */
    char *regex;                     /* as the file has it, for messages */
    int64_t left;                    /* steps, of the text's budget */
    int64_t item_steps;              /* what an item may pass over and then fail: its {n,m} */
    bool refers;                     /* has \1: may pass over all of the match again */
    size_t last;                     /* where the last callout was */
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
/* ^, which holds after a line feed unless that is the text's last character: PCRE2's own would not
 * say at the end of a window (dms_pattern_find) that it depends on what follows. */
#define LINE_BEGINS "(?:\\A|(?<=\\n)(?=\\p{Any}))"

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
    bool refers; /* has \\1 */
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

/* \p{Han}: PCRE2 takes a script's extensions in too, unless told not to; before 10.40 it knew
 * neither the extensions nor the word. */
static const char *script_alone(void)
{
    char version[64] = "";
    int major = 0, minor = 0;
    pcre2_config(PCRE2_CONFIG_VERSION, version);
    sscanf(version, "%d.%d", &major, &minor);
    return major > 10 || (major == 10 && minor >= 40) ? "sc:" : "";
}

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
        DMS_TRY(dms_text_append(t->out, script_alone(), strlen(script_alone())));
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
    t->refers |= e >= '1' && e <= '9';
    if (letter && !strchr(t->in_set ? "rntfaedDx" : "rntfaedDxAzZ", e))
        return refuse(t, t->at - 1, same);
    DMS_TRY(dms_text_append(t->out, same, 2));
    return e == 'x' ? copy_braces(t) : DMS_OK;
}

/* (?m of Ruby's syntax is PCRE2's (?s. The groups that it lacks are PCRE2's calls and callouts. */
static dms_status translate_flags(translation *t)
{
    const char *flags = t->text + t->at;
    if (t->at < t->n && (strchr("CPR&|+^0123456789", *flags) ||
                         (*flags == '-' && flags[1] >= '0' && flags[1] <= '9')))
        return refuse(t, t->at, "such a group");
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

/* After a {: Oniguruma's {,m} is {0,m}, and of {n}? the ? is a second repeat, not a lazy one. */
static dms_status translate_interval(translation *t)
{
    const char *low = t->text + t->at;
    const size_t n = strspn(low, "0123456789");
    if (!n && low[0] == ',') {
        const size_t m = strspn(low + 1, "0123456789");
        return dms_text_append(t->out, "0", m && low[1 + m] == '}');
    }
    if (n && low[n] == '}' && low[n + 1] == '?')
        return refuse(t, t->at + n + 1, "? after {n}");
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
    if (!t->in_set && c == '(' && next == '*')
        return refuse(t, t->at - 1, "(*");
    if (!t->in_set && c == '^')
        return dms_text_append(t->out, LINE_BEGINS, strlen(LINE_BEGINS));
    DMS_TRY(dms_text_append(t->out, &c, 1));
    if (t->in_set) {
        t->in_set = c != ']';
        return DMS_OK;
    }
    if (c == '[')
        return translate_set(t);
    if (c == '{')
        return translate_interval(t);
    if (c != '(' || next != '?')
        return DMS_OK;
    t->at++;
    DMS_TRY(dms_text_append(t->out, "?", 1));
    return translate_flags(t);
}

static dms_status translate(dms_text *out, bool *refers, const char *regex, size_t n,
                            const char *origin)
{
    translation t = {.text = regex, .n = n, .out = out, .origin = origin};
    while (t.at < n)
        DMS_TRY(translate_one(&t));
    *refers = t.refers;
    return DMS_OK;
}

/* PCRE2's callout: what was passed over since the last one is what the item before has cost. */
static int count(pcre2_callout_block *b, void *user)
{
    dms_pattern *p = user;
    const size_t at = b->current_position, before = p->refers ? b->start_match : p->last;
    p->left -= p->item_steps + (at > before ? (int64_t)(at - before) : 0);
    p->last = at;
    return p->left < 0 ? PCRE2_ERROR_CALLOUT : 0;
}

/* The sum of all n and m of {n,m}. */
static int64_t sum_of_counts(const char *regex)
{
    int64_t sum = 0;
    for (const char *at = strchr(regex, '{'); at; at = strchr(at, '{')) {
        const bool code = at - regex >= 2 && at[-1] == 'x' && at[-2] == '\\';
        char *end;
        const unsigned long n = strtoul(++at, &end, 10);
        const unsigned long m = *end == ',' ? strtoul(end + 1, &end, 10) : 0;
        if (!code && *end == '}' && n <= UINT16_MAX && m <= UINT16_MAX) /* PCRE2 takes no more */
            sum += (int64_t)(n + m);
    }
    return sum;
}

static dms_status compile(pcre2_code **out, const dms_text *regex, uint32_t more,
                          const dms_pattern *p, const char *origin)
{
    int error;
    PCRE2_SIZE at;
    char message[256];
    *out = pcre2_compile((PCRE2_SPTR)regex->bytes, regex->n,
                         PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | more, &error, &at, NULL);
    if (*out)
        return DMS_OK;
    pcre2_get_error_message(error, (PCRE2_UCHAR *)message, sizeof(message));
    return dms_fail(DMS_ERR_FORMAT, "%s: regular expression \"%.128s\": %s", origin, p->regex,
                    message);
}

/* pcre2_jit_match where there is a JIT for this processor, else pcre2_match. */
static run_function *choose(dms_pattern *p, pcre2_code *code, uint32_t modes)
{
    if (pcre2_jit_compile(code, modes) != 0)
        return pcre2_match;
    if (!p->stack)
        p->stack = pcre2_jit_stack_create(32 << 10, 1 << 20, NULL);
    pcre2_jit_stack_assign(p->quickly, NULL, p->stack);
    pcre2_jit_stack_assign(p->counting, NULL, p->stack);
    return pcre2_jit_match;
}

static dms_status prepare(dms_pattern *p, const dms_text *regex, const char *origin)
{
    DMS_TRY(compile(&p->quick, regex, 0, p, origin));
    DMS_TRY(compile(&p->counted, regex, PCRE2_AUTO_CALLOUT, p, origin));
    p->match = pcre2_match_data_create(1, NULL);
    p->quickly = pcre2_match_context_create(NULL);
    p->counting = pcre2_match_context_create(NULL);
    if (!p->match || !p->quickly || !p->counting)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a regular expression");
    p->ends = pcre2_get_ovector_pointer(p->match);
    pcre2_set_match_limit(p->quickly, QUICK_STEPS);
    pcre2_set_match_limit(p->counting, UINT32_MAX);
    pcre2_set_callout(p->counting, count, p);
    p->item_steps = 1 + sum_of_counts(p->regex);
    p->run = choose(p, p->quick, PCRE2_JIT_COMPLETE | PCRE2_JIT_PARTIAL_HARD);
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
    DMS_TRY_OR(failed, translate(&translated, &p->refers, p->regex, n, origin));
    DMS_TRY_OR(failed, prepare(p, &translated, origin));
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
    pcre2_match_context_free(p->quickly);
    pcre2_match_context_free(p->counting);
    pcre2_match_data_free(p->match);
    pcre2_code_free(p->quick);
    pcre2_code_free(p->counted);
    free(p->regex);
    free(p);
}

void dms_pattern_begin(dms_pattern *p, size_t n)
{
    const int64_t most = (INT64_MAX - STEPS_A_TEXT) / STEPS_A_BYTE;
    p->left = STEPS_A_TEXT + STEPS_A_BYTE * ((int64_t)n < most ? (int64_t)n : most);
}

static dms_status refuse_text(const dms_pattern *p, int code)
{
    char message[256];
    if (code == PCRE2_ERROR_CALLOUT)
        snprintf(message, sizeof(message), "takes more than %d steps a byte", STEPS_A_BYTE);
    else
        pcre2_get_error_message(code, (PCRE2_UCHAR *)message, sizeof(message));
    return dms_fail(DMS_ERR_FORMAT,
                    "regular expression \"%.128s\" on this text: %s; what it repeats fits in too "
                    "many ways: change it in tokenizer.json, or give the text in shorter documents",
                    p->regex, message);
}

static dms_status find_counted(dms_pattern *p, size_t *start, size_t *end, const char *text,
                               size_t n, size_t from)
{
    if (!p->run_counted)
        p->run_counted = choose(p, p->counted, PCRE2_JIT_COMPLETE);
    p->last = from;
    const int found = p->run_counted(p->counted, (PCRE2_SPTR)text, n, from, PCRE2_NO_UTF_CHECK,
                                     p->match, p->counting);
    if (found < 0 && found != PCRE2_ERROR_NOMATCH)
        return refuse_text(p, found);
    *start = found < 0 ? n + 1 : p->ends[0];
    *end = found < 0 ? n + 1 : p->ends[1];
    return DMS_OK;
}

/* Where the window from `at` on ends, between two characters. */
static inline size_t end_of_window(const char *text, size_t n, size_t at, size_t wide)
{
    if (n - at <= wide)
        return n;
    for (at += wide; ((uint8_t)text[at] & 0xC0) == 0x80;)
        at--;
    return at;
}

/* A partial match is one that has come to the window's end, where it cannot know what it would do
 * with the rest of the text. An empty one that begins there does not know either. */
dms_status dms_pattern_find(dms_pattern *p, size_t *start, size_t *end, const char *text, size_t n,
                            size_t from)
{
    for (size_t at = from, wide = WINDOW;; wide = wide < WIDEST ? 2 * wide : wide) {
        const size_t stop = end_of_window(text, n, at, wide);
        const uint32_t partial = stop < n ? PCRE2_PARTIAL_HARD : 0;
        const int found = p->run(p->quick, (PCRE2_SPTR)text, stop, at, PCRE2_NO_UTF_CHECK | partial,
                                 p->match, p->quickly);
        if (found >= 0 && (p->ends[0] < stop || stop == n)) {
            *start = p->ends[0];
            *end = p->ends[1];
            return DMS_OK;
        }
        if (found == PCRE2_ERROR_PARTIAL || found == PCRE2_ERROR_MATCHLIMIT)
            return find_counted(p, start, end, text, n, at);
        if (found < 0 && found != PCRE2_ERROR_NOMATCH)
            return refuse_text(p, found);
        if (stop == n) {
            *start = *end = n + 1;
            return DMS_OK;
        }
        at = stop;
    }
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
