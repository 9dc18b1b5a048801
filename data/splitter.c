#include "data/splitter.h"

#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <utf8proc.h>

#include "data/utf8.h"

#define LIKE_LLAMA3(digits)                                              \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits \
    "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

static const char *const regexes[] = {
    [DMS_SPLIT_UNKNOWN] = NULL,
    [DMS_SPLIT_GPT2] =
        "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
    [DMS_SPLIT_LLAMA3] = LIKE_LLAMA3("\\p{N}{1,3}"),
    [DMS_SPLIT_QWEN2] = LIKE_LLAMA3("\\p{N}"),
};

const char *dms_splitter_regex(dms_splitter splitter)
{
    return regexes[splitter];
}

dms_splitter dms_splitter_recognise(const char *regex, size_t n)
{
    for (int i = DMS_SPLIT_GPT2; i <= DMS_SPLIT_QWEN2; i++)
        if (strlen(regexes[i]) == n && !memcmp(regexes[i], regex, n))
            return (dms_splitter)i;
    return DMS_SPLIT_UNKNOWN;
}

/* Classes of code points; each has one. BREAK: \r and \n. */
enum { OTHER = 1, LETTER = 2, NUMBER = 4, SPACE = 8, BREAK = 16 };

/* clang-format off */
#define O OTHER
#define L LETTER
#define N NUMBER
#define S SPACE
#define B BREAK
static const uint8_t ascii[128] = {
    O, O, O, O, O, O, O, O, O, S, B, S, S, B, O, O,
    O, O, O, O, O, O, O, O, O, O, O, O, O, O, O, O,
    S, O, O, O, O, O, O, O, O, O, O, O, O, O, O, O,
    N, N, N, N, N, N, N, N, N, N, O, O, O, O, O, O,
    O, L, L, L, L, L, L, L, L, L, L, L, L, L, L, L,
    L, L, L, L, L, L, L, L, L, L, L, O, O, O, O, O,
    O, L, L, L, L, L, L, L, L, L, L, L, L, L, L, L,
    L, L, L, L, L, L, L, L, L, L, L, O, O, O, O, O,
};
#undef O
#undef L
#undef N
#undef S
#undef B
/* clang-format on */

static int class_of(int32_t code)
{
    switch (utf8proc_category(code)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
        return LETTER;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
        return NUMBER;
    default:
        return dms_code_is_space(code) ? SPACE : OTHER;
    }
}

/* The class of the code point at `at`, and where it ends; 0 at the end of the text. */
static inline int look(const char *text, size_t n, size_t at, size_t *end)
{
    if (at == n) {
        *end = n;
        return 0;
    }
    if ((uint8_t)text[at] < 0x80) {
        *end = at + 1;
        return ascii[(uint8_t)text[at]];
    }
    int length;
    const int32_t code = dms_utf8_code(text + at, &length);
    *end = at + (size_t)length;
    return class_of(code);
}

/* Where the run of code points of the classes in `mask` that begins at `at` ends. */
static inline size_t run(const char *text, size_t n, size_t at, int mask)
{
    for (size_t end; look(text, n, at, &end) & mask;)
        at = end;
    return at;
}

/* The end of 's, 't, 're, 've, 'm, 'll or 'd at the apostrophe `at`; `at` where there is none. */
static size_t contraction(const char *text, size_t n, size_t at, bool any_case)
{
    static const char pairs[][2] = {{'r', 'e'}, {'v', 'e'}, {'l', 'l'}};
    const int fold = any_case ? 0x20 : 0;
    const size_t left = n - at;
    /* The fold of A to Z; what else it maps to a letter is none of those below. */
    const int a = left > 1 ? text[at + 1] | fold : 0, b = left > 2 ? text[at + 2] | fold : 0;
    if (a == 's' || a == 't' || a == 'm' || a == 'd')
        return at + 2;
    for (int i = 0; i < 3; i++)
        if (a == pairs[i][0] && b == pairs[i][1])
            return at + 3;
    /* U+017F, the long s, is an s in another case. */
    return any_case && left > 2 && !memcmp(text + at + 1, "\xC5\xBF", 2) ? at + 3 : at;
}

/* \s+(?!\S)|\s+ : all spaces to the end of the text, else all but the last, else one. */
static size_t spaces(const char *text, size_t n, size_t from)
{
    size_t last = from, at = from, end;
    for (; look(text, n, at, &end) & (SPACE | BREAK); at = end)
        last = at;
    return at == n || last == from ? at : last;
}

static size_t next_gpt2(const char *text, size_t n, size_t from)
{
    size_t first_end, second_end;
    const int first = look(text, n, from, &first_end);
    if (text[from] == '\'') {
        const size_t end = contraction(text, n, from, false);
        if (end > from)
            return end;
    }
    if (first & (LETTER | NUMBER | OTHER))
        return run(text, n, first_end, first);
    if (text[from] == ' ') {
        const int second = look(text, n, first_end, &second_end);
        if (second & (LETTER | NUMBER | OTHER))
            return run(text, n, second_end, second);
    }
    return spaces(text, n, from);
}

/* \s*[\r\n]+ : to the last break of the run of spaces; `from` where it has none. */
static size_t breaks(const char *text, size_t n, size_t from)
{
    size_t end, broken = from;
    for (size_t at = from;; at = end) {
        const int class = look(text, n, at, &end);
        if (!(class & (SPACE | BREAK)))
            return broken;
        if (class == BREAK)
            broken = end;
    }
}

/* \p{N}{1,most} */
static size_t digits(const char *text, size_t n, size_t from, int most)
{
    for (size_t end; most > 0 && look(text, n, from, &end) == NUMBER; most--)
        from = end;
    return from;
}

static size_t next_llama3(const char *text, size_t n, size_t from, int most_digits)
{
    size_t first_end, second_end;
    const int first = look(text, n, from, &first_end);
    if (first == LETTER)
        return run(text, n, first_end, LETTER);
    if (first == NUMBER)
        return digits(text, n, from, most_digits);
    if (text[from] == '\'') {
        const size_t end = contraction(text, n, from, true);
        if (end > from)
            return end;
    }
    const int second = look(text, n, first_end, &second_end);
    if (second == LETTER && first != BREAK)
        return run(text, n, second_end, LETTER);
    if (first == OTHER || (second == OTHER && text[from] == ' ')) {
        const size_t end = run(text, n, first_end, OTHER);
        return run(text, n, end, BREAK);
    }
    const size_t broken = breaks(text, n, from);
    return broken > from ? broken : spaces(text, n, from);
}

size_t dms_splitter_next(dms_splitter splitter, const char *text, size_t n, size_t from)
{
    switch (splitter) {
    case DMS_SPLIT_LLAMA3:
        return next_llama3(text, n, from, 3);
    case DMS_SPLIT_QWEN2:
        return next_llama3(text, n, from, 1);
    default:
        return next_gpt2(text, n, from);
    }
}
