#define PCRE2_CODE_UNIT_WIDTH 8
#include "data/pattern.h"

#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

#include "data/buffer.h"

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

/* Appends what the escape \e means; false where PCRE2 and Oniguruma differ beyond translation. */
static bool translate_escape(dms_status *status, dms_text *out, char e, bool in_set)
{
    const char *text = NULL;
    const bool letter = (e >= 'a' && e <= 'z') || (e >= 'A' && e <= 'Z');
    if (e == 's')
        text = in_set ? SPACES : "[" SPACES "]";
    else if (e == 'S' && !in_set)
        text = "[^" SPACES "]";
    else if (letter && !strchr("rntfpPdDx", e))
        return false;
    if (text) {
        *status = dms_text_append(out, text, strlen(text));
        return true;
    }
    const char same[2] = {'\\', e};
    *status = dms_text_append(out, same, 2);
    return true;
}

static dms_status translate(dms_text *out, const char *regex, size_t n, const char *origin)
{
    bool in_set = false;
    for (size_t i = 0; i < n; i++) {
        const char c = regex[i];
        dms_status status = DMS_OK;
        if (c == '\\' && i + 1 < n) {
            if (!translate_escape(&status, out, regex[++i], in_set))
                return dms_fail(DMS_ERR_FORMAT,
                                "%s: regular expression \"%.128s\": \\%c at "
                                "character %zu is not supported",
                                origin, regex, regex[i], i);
        } else if (in_set && (c == '[' || (c == '&' && i + 1 < n && regex[i + 1] == '&'))) {
            return dms_fail(DMS_ERR_FORMAT,
                            "%s: regular expression \"%.128s\": a set within a set "
                            "at character %zu is not supported",
                            origin, regex, i);
        } else {
            in_set = c == '[' || (in_set && c != ']');
            status = dms_text_append(out, &c, 1);
        }
        DMS_TRY(status);
    }
    return DMS_OK;
}

static dms_status compile(dms_pattern *p, const dms_text *regex, const char *origin)
{
    int error;
    PCRE2_SIZE at;
    char message[256];
    p->code =
        pcre2_compile((PCRE2_SPTR)regex->bytes, regex->n, PCRE2_UTF | PCRE2_UCP, &error, &at, NULL);
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
