#include "tasks/text.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <utf8proc.h>

#include "data/utf8.h"

dms_span dms_span_of(const char *text)
{
    return (dms_span){text, strlen(text)};
}

bool dms_span_equal(dms_span a, dms_span b)
{
    return a.n == b.n && (a.n == 0 || !memcmp(a.bytes, b.bytes, a.n));
}

static bool is_space(int32_t code)
{
    return dms_code_is_space(code) || (code >= 0x1C && code <= 0x1F);
}

dms_span dms_span_strip_end(dms_span s)
{
    while (s.n > 0) {
        size_t at = s.n - 1;
        int length;
        while (at > 0 && ((uint8_t)s.bytes[at] & 0xC0) == 0x80)
            at--;
        if (!is_space(dms_utf8_code(s.bytes + at, &length)))
            break;
        s.n = at;
    }
    return s;
}

dms_span dms_span_strip(dms_span s)
{
    int length;
    while (s.n > 0 && is_space(dms_utf8_code(s.bytes, &length))) {
        s.bytes += length;
        s.n -= (size_t)length;
    }
    return dms_span_strip_end(s);
}

size_t dms_span_find(dms_span s, const char *part)
{
    const char *at = s.n > 0 ? memmem(s.bytes, s.n, part, strlen(part)) : NULL;
    return at ? (size_t)(at - s.bytes) : SIZE_MAX;
}

size_t dms_span_find_last(dms_span s, const char *part)
{
    const size_t n = strlen(part);
    for (size_t at = s.n >= n ? s.n - n + 1 : 0; at-- > 0;)
        if (!memcmp(s.bytes + at, part, n))
            return at;
    return SIZE_MAX;
}

int64_t dms_span_length(dms_span s)
{
    int64_t length = 0;
    for (size_t i = 0; i < s.n; i++)
        length += ((uint8_t)s.bytes[i] & 0xC0) != 0x80;
    return length;
}

dms_status dms_text_replace(dms_text *t, const char *from, const char *to)
{
    dms_status status = DMS_OK;
    dms_text out = {0};
    dms_span rest = {t->bytes, t->n};
    size_t at = dms_span_find(rest, from);
    if (at == SIZE_MAX)
        return DMS_OK;
    for (; at != SIZE_MAX; at = dms_span_find(rest, from)) {
        DMS_TRY_OR(failed, dms_text_append(&out, rest.bytes, at));
        DMS_TRY_OR(failed, dms_text_append(&out, to, strlen(to)));
        rest.bytes += at + strlen(from);
        rest.n -= at + strlen(from);
    }
    DMS_TRY_OR(failed, dms_text_append(&out, rest.bytes, rest.n));
    dms_text_free(t);
    *t = out;
    return DMS_OK;
failed:
    dms_text_free(&out);
    return status;
}

dms_status dms_text_lower(dms_text *out, dms_span s)
{
    for (size_t at = 0; at < s.n;) {
        uint8_t bytes[8];
        int length;
        const int32_t code = dms_utf8_code(s.bytes + at, &length);
        at += (size_t)length;
        if (code == 0x130) { /* the only letter whose lower case is longer: i and U+0307 */
            DMS_TRY(dms_text_append(out, "i\xCC\x87", 3));
            continue;
        }
        const utf8proc_ssize_t n = utf8proc_encode_char(utf8proc_tolower(code), bytes);
        DMS_TRY(dms_text_append(out, (const char *)bytes, (size_t)n));
    }
    return DMS_OK;
}

dms_status dms_text_format(dms_text *out, const char *format, ...)
{
    va_list list, again;
    va_start(list, format);
    va_copy(again, list);
    const int n = vsnprintf(NULL, 0, format, list);
    dms_status status = n < 0 ? dms_fail(DMS_ERR_NOMEM, "no memory to format a text")
                              : dms_text_reserve(out, (size_t)n + 1);
    if (!status) {
        vsnprintf(out->bytes + out->n, (size_t)n + 1, format, again);
        out->n += (size_t)n;
    }
    va_end(again);
    va_end(list);
    return status;
}

dms_status dms_text_end(dms_text *t)
{
    DMS_TRY(dms_text_reserve(t, 1));
    t->bytes[t->n] = 0;
    return DMS_OK;
}

dms_status dms_span_valid(dms_span *out, dms_text *store, dms_span s)
{
    *out = s;
    if (dms_utf8_valid(s.bytes, s.n) == s.n)
        return DMS_OK;
    store->n = 0;
    DMS_TRY(dms_utf8_replace(store, s.bytes, s.n));
    *out = (dms_span){store->bytes, store->n};
    return DMS_OK;
}
