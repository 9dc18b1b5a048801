#include "data/normalizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "data/keys.h"
#include "data/pattern.h"
#include "data/utf8.h"

typedef enum { FORM, REPLACE, PREPEND } step_kind;

typedef struct {
    step_kind kind;
    int form;             /* FORM: options of utf8proc */
    dms_pattern *pattern; /* REPLACE, else NULL */
    dms_text content;     /* of REPLACE and PREPEND */
} step;

enum { MAX_STEPS = 8 };

struct dms_normalizer {
    step steps[MAX_STEPS];
    int n;
    dms_text scratch[2]; /* what a step but the last makes */
};

static const struct {
    const char *name;
    int form;
} forms[] = {
    {"NFC", UTF8PROC_STABLE | UTF8PROC_COMPOSE},
    {"NFD", UTF8PROC_STABLE | UTF8PROC_DECOMPOSE},
    {"NFKC", UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT},
    {"NFKD", UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT},
};

static dms_status read_content(step *s, const json_t *json, const char *key, const char *origin)
{
    const json_t *text = json_object_get(json, key);
    if (!json_is_string(text))
        return dms_fail(DMS_ERR_FORMAT, "%s: normalizer: \"%s\" is %s, expected a string", origin,
                        key, dms_key_type(text));
    return dms_text_append(&s->content, json_string_value(text), json_string_length(text));
}

static dms_status read_replace(step *s, const json_t *json, const char *origin)
{
    char where[256];
    s->kind = REPLACE;
    snprintf(where, sizeof(where), "%.200s: normalizer Replace", origin);
    DMS_TRY(dms_pattern_read(&s->pattern, json_object_get(json, "pattern"), where));
    return read_content(s, json, "content", origin);
}

static dms_status read_step(step *s, const char *type, const json_t *json, const char *origin)
{
    for (size_t i = 0; i < sizeof(forms) / sizeof(*forms); i++)
        if (type && !strcmp(type, forms[i].name)) {
            s->form = forms[i].form;
            return DMS_OK;
        }
    if (type && !strcmp(type, "Replace"))
        return read_replace(s, json, origin);
    s->kind = PREPEND;
    if (type && !strcmp(type, "Prepend"))
        return read_content(s, json, "prepend", origin);
    return dms_fail(DMS_ERR_FORMAT,
                    "%s: normalizer.type is \"%.64s\"; supported: NFC, NFD, NFKC, NFKD, Replace, "
                    "Prepend, Sequence",
                    origin, type ? type : "missing");
}

static dms_status read_one(dms_normalizer *z, const json_t *json, const char *origin)
{
    const char *type;
    if (!json || json_is_null(json))
        return DMS_OK;
    if (!json_is_object(json))
        return dms_fail(DMS_ERR_FORMAT, "%s: normalizer is %s, expected an object or null", origin,
                        dms_key_type(json));
    DMS_TRY(dms_key_text(&type, json, "type", origin));
    if (z->n == MAX_STEPS)
        return dms_fail(DMS_ERR_FORMAT, "%s: normalizer has more than %d steps", origin, MAX_STEPS);
    return read_step(&z->steps[z->n++], type, json, origin);
}

static dms_status read_all(dms_normalizer *z, const json_t *json, const char *origin)
{
    const char *type = json_string_value(json_object_get(json, "type"));
    if (!type || strcmp(type, "Sequence") != 0)
        return read_one(z, json, origin);
    const json_t *list = json_object_get(json, "normalizers");
    if (!json_is_array(list))
        return dms_fail(DMS_ERR_FORMAT, "%s: normalizer.normalizers is %s, expected an array",
                        origin, dms_key_type(list));
    size_t i;
    json_t *entry;
    json_array_foreach(list, i, entry) DMS_TRY(read_one(z, entry, origin));
    return DMS_OK;
}

dms_status dms_normalizer_open(dms_normalizer **out, const json_t *json, const char *origin)
{
    dms_normalizer *z = calloc(1, sizeof(*z));
    if (!z)
        return dms_fail(DMS_ERR_NOMEM, "no memory for the normalizer");
    const dms_status status = read_all(z, json, origin);
    if (status)
        dms_normalizer_close(z);
    else
        *out = z;
    return status;
}

void dms_normalizer_close(dms_normalizer *z)
{
    if (!z)
        return;
    for (int i = 0; i < z->n; i++) {
        dms_pattern_close(z->steps[i].pattern);
        dms_text_free(&z->steps[i].content);
    }
    dms_text_free(&z->scratch[0]);
    dms_text_free(&z->scratch[1]);
    free(z);
}

/* utf8proc orders a row of combining marks in time that grows with its square. No script has rows
 * of more than a few. */
static dms_status check_marks(const char *text, size_t n)
{
    enum { MOST = 1024 };
    size_t row = 0;
    int length;
    if (n < MOST) /* a mark has two bytes or more */
        return DMS_OK;
    for (size_t at = 0; at < n; at += (size_t)length) {
        const int32_t code = dms_utf8_code(text + at, &length);
        row = utf8proc_get_property(code)->combining_class ? row + 1 : 0;
        if (row > MOST)
            return dms_fail(DMS_ERR_ARG,
                            "the text has more than %d combining marks in a row, expected fewer: "
                            "they cannot be normalised; remove them",
                            MOST);
    }
    return DMS_OK;
}

static dms_status compose(dms_text *out, int form, const char *text, size_t n)
{
    utf8proc_uint8_t *composed = NULL;
    if (n > (size_t)1 << 30)
        return dms_fail(DMS_ERR_ARG,
                        "%zu bytes of text without an ASCII character, at most 1 GiB "
                        "can be normalised",
                        n);
    DMS_TRY(check_marks(text, n));
    const utf8proc_ssize_t length = utf8proc_map(
        (const utf8proc_uint8_t *)text, (utf8proc_ssize_t)n, &composed, (utf8proc_option_t)form);
    if (length < 0)
        return dms_fail(DMS_ERR_NOMEM, "Unicode normalisation: %s", utf8proc_errmsg(length));
    const dms_status status = dms_text_append(out, (const char *)composed, (size_t)length);
    free(composed);
    return status;
}

static size_t ascii_length(const char *text, size_t n)
{
    size_t at = 0;
    for (uint64_t word; n - at >= sizeof(word); at += sizeof(word)) {
        memcpy(&word, text + at, sizeof(word));
        if (word & 0x8080808080808080u)
            break;
    }
    while (at < n && (uint8_t)text[at] < 0x80)
        at++;
    return at;
}

static dms_status apply_form(int form, dms_text *out, const char *text, size_t n)
{
    while (n > 0) {
        /* ASCII is in every normal form, and an ASCII character composes with nothing before it,
         * only with marks after it: so each run of others is normalised with the one character
         * before. */
        const size_t ascii = ascii_length(text, n);
        const size_t kept = ascii < n && ascii > 0 ? ascii - 1 : ascii;
        DMS_TRY(dms_text_append(out, text, kept));
        size_t end = ascii;
        while (end < n && (uint8_t)text[end] >= 0x80)
            end++;
        if (end > ascii)
            DMS_TRY(compose(out, form, text + kept, end - kept));
        text += end;
        n -= end;
    }
    return DMS_OK;
}

/* A tokenizer's Replace steps may multiply a text, but not without end. */
static dms_status check_growth(const dms_text *out, size_t most)
{
    if (out->n <= most)
        return DMS_OK;
    return dms_fail(DMS_ERR_FORMAT,
                    "normalizer Replace makes a text more than four times and 64 MiB longer: the "
                    "tokenizer is damaged");
}

/* most: what `out` may grow to. */
static dms_status apply_replace(step *s, dms_text *out, const char *text, size_t n, size_t most)
{
    size_t done = 0, from = 0, start, end;
    bool any = false;
    dms_pattern_begin(s->pattern, n);
    while (from <= n) {
        DMS_TRY(dms_pattern_find(s->pattern, &start, &end, text, n, from));
        if (start > n)
            break;
        int length = 0;
        if (end > start || !any || start > done) { /* as in data/pretokenizer.c */
            DMS_TRY(dms_text_append(out, text + done, start - done));
            DMS_TRY(dms_text_append(out, s->content.bytes, s->content.n));
            DMS_TRY(check_growth(out, most));
            done = end;
        }
        any = true;
        if (end == start && end < n)
            dms_utf8_code(text + end, &length);
        else if (end == start)
            length = 1;
        from = end + (size_t)length;
    }
    return dms_text_append(out, text + done, n - done);
}

static dms_status apply_one(step *s, dms_text *out, const char *text, size_t n, size_t most)
{
    if (s->kind == FORM)
        return apply_form(s->form, out, text, n);
    if (s->kind == REPLACE)
        return apply_replace(s, out, text, n, most);
    if (n > 0)
        DMS_TRY(dms_text_append(out, s->content.bytes, s->content.n));
    return dms_text_append(out, text, n);
}

dms_status dms_normalizer_apply(dms_normalizer *z, dms_text *out, const char *text, size_t n)
{
    if (z->n == 0)
        return dms_text_append(out, text, n);
    const size_t grown = 4 * n + ((size_t)64 << 20);
    for (int i = 0; i < z->n; i++) {
        dms_text *made = i + 1 == z->n ? out : &z->scratch[i % 2];
        if (made != out)
            made->n = 0;
        DMS_TRY(apply_one(&z->steps[i], made, text, n, made->n + grown));
        text = made->bytes;
        n = made->n;
    }
    return DMS_OK;
}

bool dms_normalizer_is_empty(const dms_normalizer *z)
{
    return z->n == 0;
}

bool dms_normalizer_keeps_spaces(const dms_normalizer *z)
{
    for (int i = 0; i < z->n; i++)
        if (z->steps[i].kind != FORM)
            return false;
    return true;
}
