#include "tasks/long_decimal.h"

#include <string.h>
#include <strings.h>

/* Its digits without zeros at the ends, as indices of the text, and the exponent of the last one.
 */
typedef struct {
    enum { FINITE, INFINITE, NOT_A_NUMBER } kind;
    bool minus;
    size_t first, last; /* of the digits; first > last: zero */
    int64_t exponent;
} decimal;

enum { MAX_EXPONENT = 1 << 30 };

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool is_word(dms_span s, const char *word)
{
    return s.n == strlen(word) && !strncasecmp(s.bytes, word, s.n);
}

/* Infinity, or NaN with or without digits behind it. */
static bool read_word(decimal *out, dms_span s)
{
    char word[64];
    size_t n = 0;
    for (size_t i = 0; i < s.n; i++)
        if (s.bytes[i] != '_' && n < sizeof(word))
            word[n++] = s.bytes[i];
    const dms_span whole = {word, n};
    while (n > 3 && is_digit(word[n - 1]))
        n--;
    const dms_span bare = {word, n};
    if (is_word(whole, "inf") || is_word(whole, "infinity"))
        out->kind = INFINITE;
    else if (is_word(bare, "nan") || is_word(bare, "snan"))
        out->kind = NOT_A_NUMBER;
    else
        return false;
    return true;
}

/* [sign] digits behind e, at `at`; all to the end. */
static bool read_exponent(int64_t *out, dms_span s, size_t at)
{
    const bool sign = at < s.n && (s.bytes[at] == '-' || s.bytes[at] == '+');
    const bool minus = sign && s.bytes[at] == '-';
    bool any = false;
    int64_t value = 0;
    for (at += sign; at < s.n; at++) {
        if (s.bytes[at] == '_')
            continue;
        if (!is_digit(s.bytes[at]))
            return false;
        any = true;
        if (value < MAX_EXPONENT)
            value = 10 * value + (s.bytes[at] - '0');
    }
    *out = minus ? -value : value;
    return any;
}

static bool read_decimal(decimal *out, dms_span s)
{
    bool point = false, any = false;
    int64_t exponent = 0, behind = 0, last_behind = 0; /* digits behind the point */
    size_t at = 0;
    while (at < s.n && s.bytes[at] == '_')
        at++;
    const bool sign = at < s.n && (s.bytes[at] == '-' || s.bytes[at] == '+');
    *out = (decimal){.kind = FINITE, .minus = sign && s.bytes[at] == '-', .first = 1, .last = 0};
    for (at += sign; at < s.n && s.bytes[at] == '_'; at++)
        continue;
    if (at < s.n && strchr("iInNsS", s.bytes[at]))
        return read_word(out, (dms_span){s.bytes + at, s.n - at});
    for (; at < s.n; at++) {
        const char c = s.bytes[at];
        if (c == '_')
            continue;
        if (c == '.' && !point) {
            point = true;
        } else if (is_digit(c)) {
            any = true;
            behind += point;
            if (c == '0')
                continue;
            if (out->first > out->last)
                out->first = at;
            out->last = at;
            last_behind = point ? -behind : 0;
        } else {
            break;
        }
    }
    if (!any)
        return false;
    if (at < s.n && ((s.bytes[at] | 0x20) != 'e' || !read_exponent(&exponent, s, at + 1)))
        return false;
    if (last_behind == 0 && out->first <= out->last)
        /* Zeros between the last digit and the point. */
        for (size_t i = out->last + 1; i < s.n && (is_digit(s.bytes[i]) || s.bytes[i] == '_'); i++)
            last_behind += s.bytes[i] != '_';
    out->exponent = exponent + last_behind;
    return true;
}

/* The next digit at or behind *at: not a point or an underscore. */
static char next_digit(dms_span s, size_t *at)
{
    while (!is_digit(s.bytes[*at]))
        (*at)++;
    return s.bytes[(*at)++];
}

static bool same_digits(const decimal *x, dms_span a, const decimal *y, dms_span b)
{
    size_t i = x->first, j = y->first;
    while (i <= x->last && j <= y->last)
        if (next_digit(a, &i) != next_digit(b, &j))
            return false;
    return i > x->last && j > y->last;
}

bool dms_decimal_equal(bool *equal, dms_span a, dms_span b)
{
    decimal x, y;
    if (!read_decimal(&x, a) || !read_decimal(&y, b))
        return false;
    const bool zero_x = x.first > x.last, zero_y = y.first > y.last;
    if (x.kind != y.kind || x.kind == NOT_A_NUMBER)
        *equal = false;
    else if (x.kind == INFINITE)
        *equal = x.minus == y.minus;
    else if (zero_x || zero_y)
        *equal = zero_x && zero_y;
    else
        *equal = x.minus == y.minus && x.exponent == y.exponent && same_digits(&x, a, &y, b);
    return true;
}
