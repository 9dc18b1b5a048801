#include "data/utf8.h"

#include <string.h>
#include <utf8proc.h>

int dms_utf8_step(const char *text, size_t n)
{
    const uint8_t *s = (const uint8_t *)text;
    const uint8_t lead = s[0];
    if (lead < 0x80)
        return 1;
    if (lead < 0xC2 || lead > 0xF4)
        return -1;
    const int length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    /* The second byte is what rules out overlong forms, surrogates and codes past U+10FFFF. */
    uint8_t low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
    uint8_t high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
    for (int i = 1; i < length; i++) {
        if ((size_t)i >= n)
            return 0;
        if (s[i] < low || s[i] > high)
            return -i;
        low = 0x80;
        high = 0xBF;
    }
    return length;
}

size_t dms_utf8_valid(const char *text, size_t n)
{
    size_t at = 0;
    while (at < n) {
        uint64_t word = 0;
        while (n - at >= sizeof(word)) {
            memcpy(&word, text + at, sizeof(word));
            if (word & 0x8080808080808080u)
                break;
            at += sizeof(word);
        }
        if (at == n)
            break;
        const int step = dms_utf8_step(text + at, n - at);
        if (step <= 0)
            break;
        at += (size_t)step;
    }
    return at;
}

dms_status dms_utf8_replace(dms_text *out, const char *text, size_t n)
{
    while (n > 0) {
        const size_t valid = dms_utf8_valid(text, n);
        DMS_TRY(dms_text_append(out, text, valid));
        text += valid;
        n -= valid;
        if (n == 0)
            break;
        const int step = dms_utf8_step(text, n);
        const size_t bad = step < 0 ? (size_t)-step : n;
        DMS_TRY(dms_text_append(out, "\xEF\xBF\xBD", 3));
        text += bad;
        n -= bad;
    }
    return DMS_OK;
}

int32_t dms_utf8_code(const char *text, int *length)
{
    const uint8_t *s = (const uint8_t *)text;
    if (s[0] < 0x80) {
        *length = 1;
        return s[0];
    }
    if (s[0] < 0xE0) {
        *length = 2;
        return (s[0] & 0x1F) << 6 | (s[1] & 0x3F);
    }
    if (s[0] < 0xF0) {
        *length = 3;
        return (s[0] & 0x0F) << 12 | (s[1] & 0x3F) << 6 | (s[2] & 0x3F);
    }
    *length = 4;
    return (s[0] & 0x07) << 18 | (s[1] & 0x3F) << 12 | (s[2] & 0x3F) << 6 | (s[3] & 0x3F);
}

bool dms_code_is_space(int32_t code)
{
    return (code >= 0x09 && code <= 0x0D) || code == 0x20 || code == 0x85 || code == 0xA0 ||
           code == 0x1680 || (code >= 0x2000 && code <= 0x200A) || code == 0x2028 ||
           code == 0x2029 || code == 0x202F || code == 0x205F || code == 0x3000;
}

/* The symbols (category So) that Unicode calls Other_Alphabetic: letters in circles and squares. */
static bool is_enclosed_letter(int32_t code)
{
    return (code >= 0x24B6 && code <= 0x24E9) || (code >= 0x1F130 && code <= 0x1F149) ||
           (code >= 0x1F150 && code <= 0x1F169) || (code >= 0x1F170 && code <= 0x1F189);
}

bool dms_code_is_word(int32_t code)
{
    switch (utf8proc_category(code)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
        return true;
    default:
        return code == 0x200C || code == 0x200D || is_enclosed_letter(code);
    }
}

bool dms_code_is_number(int32_t code)
{
    if (code < 0x80)
        return code >= '0' && code <= '9';
    const utf8proc_category_t category = utf8proc_category(code);
    return category == UTF8PROC_CATEGORY_ND || category == UTF8PROC_CATEGORY_NL ||
           category == UTF8PROC_CATEGORY_NO;
}
