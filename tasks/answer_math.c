#include "tasks/answer_math.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    const char *from, *to;
} replacement;

/* In the original's order; the later ones see what the earlier ones left. */
static const replacement before_units[] = {
    {"\n", ""},     {"\\!", ""},     {"\\\\", "\\"},    {"tfrac", "frac"}, {"dfrac", "frac"},
    {"\\left", ""}, {"\\right", ""}, {"^{\\circ}", ""}, {"^\\circ", ""},   {"\\$", ""},
};
static const replacement after_units[] = {{"\\%", ""}, {" .", " 0."}, {"{.", "{0."}};

static dms_status replace_all(dms_text *t, const replacement *list, size_t n)
{
    for (size_t i = 0; i < n; i++)
        DMS_TRY(dms_text_replace(t, list[i].from, list[i].to));
    return DMS_OK;
}

static dms_span span_of(const dms_text *t)
{
    return (dms_span){t->bytes, t->n};
}

static dms_span after(dms_span s, size_t n)
{
    return (dms_span){s.bytes + n, s.n - n};
}

/* Bytes of the code point at the beginning of s, which is not empty. */
static size_t first_length(dms_span s)
{
    size_t n = 1;
    while (n < s.n && ((unsigned char)s.bytes[n] & 0xC0) == 0x80)
        n++;
    return n;
}

/* Cuts the text at the only "\text{ "; two of them are more than the original can take. */
static void cut_units(dms_text *t, bool *fails)
{
    static const char mark[] = "\\text{ ";
    const size_t at = dms_span_find(span_of(t), mark);
    if (at == SIZE_MAX)
        return;
    *fails = dms_span_find(after(span_of(t), at + strlen(mark)), mark) != SIZE_MAX;
    t->n = at;
}

/* "x=5" is 5 where there is one = with at most two characters before it. */
static void cut_name(dms_text *t)
{
    const dms_span s = span_of(t);
    const size_t at = dms_span_find(s, "=");
    if (at == SIZE_MAX || dms_span_find(after(s, at + 1), "=") != SIZE_MAX ||
        dms_span_length((dms_span){s.bytes, at}) > 2)
        return;
    t->n -= at + 1;
    memmove(t->bytes, t->bytes + at + 1, t->n);
}

static dms_status append(dms_text *out, const char *text)
{
    return dms_text_append(out, text, strlen(text));
}

static dms_status append_braced(dms_text *out, dms_span s)
{
    DMS_TRY(append(out, "{"));
    DMS_TRY(dms_text_append(out, s.bytes, s.n));
    return append(out, "}");
}

/* What follows one \sqrt: its first character in braces, unless it has them. */
static dms_status fix_sqrt(dms_text *out, bool *stop, bool *fails, dms_span part)
{
    (void)stop;
    *fails = part.n == 0;
    if (*fails || part.bytes[0] == '{')
        return dms_text_append(out, part.bytes, part.n);
    const size_t n = first_length(part);
    DMS_TRY(append_braced(out, (dms_span){part.bytes, n}));
    return dms_text_append(out, part.bytes + n, part.n - n);
}

/* What follows one \frac: \frac12 and \frac1{72} get their braces; *stop where there is one
 * character only, which leaves all of the text as it was. */
static dms_status fix_frac(dms_text *out, bool *stop, bool *fails, dms_span part)
{
    *fails = part.n == 0;
    if (*fails || part.bytes[0] == '{')
        return dms_text_append(out, part.bytes, part.n);
    const dms_span a = {part.bytes, first_length(part)}, rest = after(part, a.n);
    *stop = rest.n == 0;
    if (*stop)
        return DMS_OK;
    const dms_span b = {rest.bytes, first_length(rest)}, tail = after(rest, b.n);
    DMS_TRY(append_braced(out, a));
    if (b.bytes[0] == '{')
        DMS_TRY(append(out, "{"));
    else
        DMS_TRY(append_braced(out, b));
    return dms_text_append(out, tail.bytes, tail.n);
}

/* Rewrites what follows each `command`. */
static dms_status fix(dms_text *t, bool *fails, const char *command,
                      dms_status (*part)(dms_text *, bool *, bool *, dms_span))
{
    dms_status status = DMS_OK;
    dms_text out = {0};
    bool stop = false;
    dms_span rest = span_of(t);
    size_t at = dms_span_find(rest, command);
    if (at == SIZE_MAX)
        return DMS_OK;
    DMS_TRY(dms_text_append(&out, rest.bytes, at));
    while (at != SIZE_MAX && !stop && !*fails) {
        rest = after(rest, at + strlen(command));
        at = dms_span_find(rest, command);
        const dms_span one = {rest.bytes, at == SIZE_MAX ? rest.n : at};
        DMS_TRY_OR(end, append(&out, command));
        DMS_TRY_OR(end, part(&out, &stop, fails, one));
    }
    if (!stop && !*fails) {
        const dms_text old = *t;
        *t = out;
        out = old;
    }
end:
    dms_text_free(&out);
    return status;
}

/* Of the digits that Python prints an int with: no leading zero, no plus, "-" before no zero. */
static bool is_plain_integer(dms_span s)
{
    const size_t sign = s.n > 0 && s.bytes[0] == '-';
    const dms_span digits = after(s, sign);
    if (digits.n == 0 || digits.n > 4300) /* where Python stops reading them */
        return false;
    for (size_t i = 0; i < digits.n; i++)
        if (digits.bytes[i] < '0' || digits.bytes[i] > '9')
            return false;
    return digits.bytes[0] != '0' || (digits.n == 1 && !sign);
}

/* a/b of two whole numbers becomes \frac{a}{b}. */
static dms_status fix_slash(dms_text *t)
{
    dms_status status = DMS_OK;
    dms_text out = {0};
    const size_t at = dms_span_find(span_of(t), "/");
    if (at == SIZE_MAX)
        return DMS_OK;
    const dms_span a = {t->bytes, at}, b = after(span_of(t), at + 1);
    if (!is_plain_integer(a) || !is_plain_integer(b))
        return DMS_OK;
    DMS_TRY_OR(end, append(&out, "\\frac"));
    DMS_TRY_OR(end, append_braced(&out, a));
    DMS_TRY_OR(end, append_braced(&out, b));
    const dms_text old = *t;
    *t = out;
    out = old;
end:
    dms_text_free(&out);
    return status;
}

static dms_status normalise(dms_text *t, bool *fails)
{
    DMS_TRY(replace_all(t, before_units, sizeof(before_units) / sizeof(*before_units)));
    cut_units(t, fails);
    DMS_TRY(replace_all(t, after_units, sizeof(after_units) / sizeof(*after_units)));
    if (t->n == 0 || *fails)
        return DMS_OK;
    if (t->bytes[0] == '.') {
        DMS_TRY(dms_text_append(t, "0", 1));
        memmove(t->bytes + 1, t->bytes, t->n - 1);
        t->bytes[0] = '0';
    }
    cut_name(t);
    DMS_TRY(fix(t, fails, "\\sqrt", fix_sqrt));
    if (*fails)
        return DMS_OK;
    DMS_TRY(dms_text_replace(t, " ", ""));
    DMS_TRY(fix(t, fails, "\\frac", fix_frac));
    if (dms_span_equal(span_of(t), dms_span_of("0.5"))) {
        t->n = 0;
        DMS_TRY(append(t, "\\frac{1}{2}"));
    }
    return fix_slash(t);
}

dms_status dms_math_normalise(dms_text *out, bool *fails, dms_span answer)
{
    dms_status status = DMS_OK;
    dms_text t = {0};
    *fails = false;
    DMS_TRY_OR(end, dms_text_append(&t, answer.bytes, answer.n));
    DMS_TRY_OR(end, normalise(&t, fails));
    DMS_TRY_OR(end, dms_text_append(out, t.bytes, t.n));
end:
    dms_text_free(&t);
    return status;
}

/* A decimal number without a sign, whose commas stand before three digits each. */
static bool read_decimal(double *out, dms_span s)
{
    char digits[64];
    size_t n = 0, since = 0; /* since: digits after the last comma, or before the first */
    bool comma = false, point = false, any = false;
    for (size_t i = 0; i < s.n; i++) {
        const char c = s.bytes[i];
        if (c == ',' && !point && since > 0 && since <= 3 && (!comma || since == 3)) {
            comma = true;
            since = 0;
            continue;
        }
        if (c == '.' && !point && (!comma || since == 3))
            point = true;
        else if (c >= '0' && c <= '9')
            any = true;
        else
            return false;
        since += !point;
        if (n == sizeof(digits) - 1)
            return false;
        digits[n++] = c;
    }
    digits[n] = 0;
    *out = any ? strtod(digits, NULL) : 0;
    return any && (!comma || since == 3);
}

/* The same with a sign before it, or without. */
static bool read_signed(double *out, dms_span s)
{
    const bool sign = s.n > 0 && (s.bytes[0] == '-' || s.bytes[0] == '+');
    if (!read_decimal(out, after(s, sign)))
        return false;
    *out = sign && s.bytes[0] == '-' ? -*out : *out;
    return true;
}

static bool read_ratio(double *out, dms_span above, dms_span below)
{
    double b;
    if (!read_signed(out, above) || !read_signed(&b, below) || b == 0)
        return false;
    *out /= b;
    return true;
}

bool dms_math_number(double *out, dms_span s)
{
    static const char frac[] = "\\frac{";
    s = dms_span_strip(s);
    const size_t slash = dms_span_find(s, "/"), start = dms_span_find(s, frac);
    if (slash != SIZE_MAX)
        return read_ratio(out, (dms_span){s.bytes, slash}, after(s, slash + 1));
    if (start == SIZE_MAX)
        return read_signed(out, s);
    const dms_span in = after(s, start + strlen(frac));
    const size_t middle = dms_span_find(in, "}{");
    if (start > 1 || (start == 1 && s.bytes[0] != '-' && s.bytes[0] != '+') || middle == SIZE_MAX ||
        in.bytes[in.n - 1] != '}')
        return false;
    if (!read_ratio(out, (dms_span){in.bytes, middle},
                    (dms_span){in.bytes + middle + 2, in.n - middle - 3}))
        return false;
    *out = s.bytes[0] == '-' ? -*out : *out;
    return true;
}
