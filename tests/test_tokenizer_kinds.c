/* Tokenizers of every kind of tokenizer.json: ids, texts and pieces of Hugging Face tokenizers,
 * from small files that tests/tokenizers/make.py made with it. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "data/pattern.h"
#include "data/pretokenizer.h"
#include "data/splitter.h"
#include "data/tokenizer.h"
#include "data/utf8.h"
#include "tests/rig.h"
#include "tests/tokens.h"

static const char *const kinds[] = {"qwen3",       "deepseek_r1_qwen", "deepseek_r1_llama",
                                    "deepseek_v3", "llama2",           "characters",
                                    "flags"};

static FILE *open_file(const char *name, const char *tail)
{
    char path[1024];
    snprintf(path, sizeof(path), DMS_SOURCE_DIR "/tests/tokenizers/%s%s", name, tail);
    FILE *file = fopen(path, "rb");
    cr_assert(file, "%s is missing", path);
    return file;
}

static dms_tokenizer *open_kind(const char *kind)
{
    dms_tokenizer *t;
    FILE *file = open_file(kind, ".json");
    json_t *root = json_loadf(file, JSON_ALLOW_NUL, NULL);
    char *json = json_dumps(root, JSON_COMPACT);
    must(dms_tokenizer_open(&t, json, strlen(json), kind));
    free(json);
    json_decref(root);
    fclose(file);
    return t;
}

static void check_case(dms_tokenizer *t, const char *kind, const char *line)
{
    json_t *c = json_loads(line, JSON_ALLOW_NUL, NULL);
    const json_t *text = json_object_get(c, "text");
    dms_tokens ids = {0};
    dms_text streamed = {0};
    dms_decoder d = {.tokenizer = t};
    must(dms_tokenizer_encode(t, &ids, json_string_value(text), json_string_length(text), true));
    cr_expect(same_ids(&ids, json_object_get(c, "ids")), "%s: ids differ: %s", kind, line);
    for (int64_t i = 0; i < ids.n; i++) {
        must(dms_decoder_put(&d, &streamed, ids.ids[i]));
        cr_assert(dms_utf8_valid(streamed.bytes, streamed.n) == streamed.n);
    }
    must(dms_decoder_end(&d, &streamed));
    cr_expect(same_text(&streamed, json_object_get(c, "decoded")), "%s: text differs: %s\n%.*s",
              kind, line, (int)streamed.n, streamed.bytes);
    dms_tokens_free(&ids);
    dms_text_free(&streamed);
    json_decref(c);
}

Test(tokenizer_kinds, give_every_id_and_text_of_the_reference)
{
    for (size_t i = 0; i < COUNT(kinds); i++) {
        char *line = NULL;
        size_t room = 0, n = 0;
        dms_tokenizer *t = open_kind(kinds[i]);
        FILE *file = open_file(kinds[i], ".jsonl");
        for (; getline(&line, &room, file) > 0; n++)
            check_case(t, kinds[i], line);
        cr_expect(n >= 100, "%s: only %zu cases", kinds[i], n);
        free(line);
        fclose(file);
        dms_tokenizer_close(t);
    }
}

typedef struct {
    const json_t *want;
    size_t n;
    bool same;
} pieces;

static dms_status compare_piece(void *user, const char *text, size_t n)
{
    pieces *p = user;
    const dms_text got = {(char *)text, n, n};
    p->same &= same_text(&got, json_array_get(p->want, p->n++));
    return DMS_OK;
}

Test(tokenizer_kinds, split_as_the_reference_does_with_each_behavior_and_expression)
{
    char *line = NULL;
    size_t room = 0, n = 0;
    FILE *file = open_file("pieces", ".jsonl");
    for (; getline(&line, &room, file) > 0; n++) {
        json_t *c = json_loads(line, JSON_ALLOW_NUL, NULL), *text = json_object_get(c, "text");
        pieces got = {json_object_get(c, "pieces"), 0, true};
        dms_pretokenizer *p;
        must(dms_pretokenizer_open(&p, json_object_get(c, "pre_tokenizer"), "pieces.jsonl"));
        must(dms_pretokenizer_run(p, &(dms_piece_sink){compare_piece, &got},
                                  json_string_value(text), json_string_length(text)));
        cr_expect(got.same && got.n == json_array_size(got.want), "%s", line);
        dms_pretokenizer_close(p);
        json_decref(c);
    }
    cr_expect(n > 300, "only %zu cases", n);
    free(line);
    fclose(file);
}

static uint32_t random_word(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

static void append_code(dms_text *text, int32_t code)
{
    char bytes[4];
    const size_t n = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    const int lead[] = {0, 0, 0xC0, 0xE0, 0xF0};
    for (size_t i = n; i-- > 1; code >>= 6)
        bytes[i] = (char)(0x80 | (code & 0x3F));
    bytes[0] = (char)(lead[n] | code);
    must(dms_text_append(text, bytes, n));
}

/* Characters that decide splits, and any others that PCRE2's version of Unicode
 * knows: it is older than utf8proc's. */
static void random_text(dms_text *text, uint32_t *state, dms_pattern *unknown)
{
    static const char *const parts[] = {"a",  "Z",      "'s", "'LL",    "'",    "'\u017f",
                                        "1",  "\u00bd", " ",  " ",      "\n",   "\r",
                                        "\t", "\u00a0", "!",  "_",      "word", "#",
                                        "  ", "'re",    ".",  "\u3000", "\v",   "\xC2\x85"};
    text->n = 0;
    for (uint32_t n = random_word(state) % 40; n > 0; n--) {
        if (random_word(state) % 4) {
            const char *part = parts[random_word(state) % COUNT(parts)];
            must(dms_text_append(text, part, strlen(part)));
            continue;
        }
        const size_t before = text->n;
        size_t start, end;
        const int32_t code =
            (int32_t)(random_word(state) % (random_word(state) % 2 ? 0x3000 : 0x20000));
        append_code(text, code >= 0xD800 && code < 0xE000 ? 'a' : code);
        dms_pattern_begin(unknown, text->n);
        must(dms_pattern_find(unknown, &start, &end, text->bytes, text->n, before));
        text->n = start < text->n ? before : text->n;
    }
}

static void check_splits(dms_splitter splitter, dms_pattern *pattern, const char *text, size_t n)
{
    dms_pattern_begin(pattern, n);
    for (size_t from = 0, start, end; from < n; from = end) {
        must(dms_pattern_find(pattern, &start, &end, text, n, from));
        const size_t got = dms_splitter_next(splitter, text, n, from);
        cr_assert(start == from && got == end, "splitter %d at byte %zu of \"%.*s\": %zu, not %zu",
                  (int)splitter, from, (int)n, text, got, end);
    }
}

static void read_file(dms_text *text, const char *name)
{
    char path[1024];
    snprintf(path, sizeof(path), DMS_SOURCE_DIR "/%s", name);
    FILE *file = fopen(path, "rb");
    cr_assert(file, "%s is missing", path);
    text->n = 0;
    must(dms_text_reserve(text, 1 << 20));
    text->n = fread(text->bytes, 1, 1 << 20, file);
    fclose(file);
}

/* The scanners against the expressions themselves, on random text and on this project's. */
Test(tokenizer_kinds, scanners_split_as_their_expressions_do)
{
    static const char *const files[] = {"README.md", "data/splitter.c", "tests/tokenizers/make.py"};
    uint32_t state = 5;
    dms_text text = {0};
    dms_pattern *unknown;
    must(dms_pattern_open(&unknown, "\\p{Cn}", 6, "test"));
    for (int s = DMS_SPLIT_GPT2; s <= DMS_SPLIT_QWEN2; s++) {
        dms_pattern *pattern;
        const char *regex = dms_splitter_regex((dms_splitter)s);
        must(dms_pattern_open(&pattern, regex, strlen(regex), "test"));
        cr_expect_eq(dms_splitter_recognise(regex, strlen(regex)), (dms_splitter)s);
        for (int round = 0; round < 20000; round++) {
            random_text(&text, &state, unknown);
            check_splits((dms_splitter)s, pattern, text.bytes, text.n);
        }
        for (size_t i = 0; i < COUNT(files); i++) {
            read_file(&text, files[i]);
            check_splits((dms_splitter)s, pattern, text.bytes, text.n);
        }
        dms_pattern_close(pattern);
    }
    cr_expect_eq(dms_splitter_recognise("\\p{L}+", 6), DMS_SPLIT_UNKNOWN);
    dms_pattern_close(unknown);
    dms_text_free(&text);
}

Test(tokenizer_kinds, a_text_that_goes_on_keeps_the_space_that_a_beginning_loses)
{
    dms_tokenizer *t = open_kind("llama2");
    for (int within = 0; within < 2; within++) {
        dms_tokens ids = {0};
        dms_text text = {0};
        dms_decoder d = {.tokenizer = t, .within = within};
        must(dms_tokenizer_encode(t, &ids, "the day", 7, true));
        for (int64_t i = 0; i < ids.n; i++)
            must(dms_decoder_put(&d, &text, ids.ids[i]));
        must(dms_decoder_end(&d, &text));
        must(dms_text_append(&text, "", 1));
        cr_expect_str_eq(text.bytes, within ? " the day" : "the day");
        dms_tokens_free(&ids);
        dms_text_free(&text);
    }
    dms_tokenizer_close(t);
}

/* The places a ^ or an assertion looks at may lie beyond the window in which a match is looked for.
 * A text of at most 64 bytes has no window; then the same matches come in a text of many such
 * parts, between rows of x of all lengths, so that windows end everywhere in them. */
Test(tokenizer_kinds, an_expression_finds_the_same_wherever_its_windows_end)
{
    static const char part[] = "x ab\n \n\nba  a\u00e4b12345\u00e4 '\nbbb x";
    static const char *const regexes[] = {"\\n^",        "\\s^a?",           "\\s+(?!\\S)|\\s+",
                                          "b(?=[^a]*')", "\\p{N}{1,3}",      "[^x\\n]+$",
                                          "^[^x\\n]+",   "\\b[ab]",          "(?<=\\n)\\n*",
                                          "[ab\u00e4]+", "(?:a|b|[ '\\n])+", "(?<!b)b(?!b)"};
    enum { PARTS = 40, PART = sizeof(part) - 1 };
    static char text[PARTS * (PART + 80)];
    for (size_t i = 0; i < COUNT(regexes); i++) {
        size_t start, end, n, starts[64], ends[64], found = 0;
        dms_pattern *p;
        must(dms_pattern_open(&p, regexes[i], strlen(regexes[i]), "test"));
        dms_pattern_begin(p, PART);
        for (size_t from = 0; from <= PART; from = end + (end == start)) {
            must(dms_pattern_find(p, &start, &end, part, PART, from));
            if (start > PART)
                break;
            starts[found] = start;
            ends[found++] = end;
        }
        cr_assert(found > 0, "%s", regexes[i]);
        for (size_t gap = 0; gap < 80; gap++) {
            for (n = 0; n < PARTS * (PART + gap); n++)
                text[n] = n % (PART + gap) < PART ? part[n % (PART + gap)] : 'x';
            dms_pattern_begin(p, n);
            start = end = 0;
            for (size_t k = 0; k < PARTS * found; k++) {
                const size_t base = k / found * (PART + gap);
                must(dms_pattern_find(p, &start, &end, text, n, end + (k > 0 && end == start)));
                cr_assert(start == base + starts[k % found] && end == base + ends[k % found],
                          "%s, gap %zu, match %zu: [%zu, %zu)", regexes[i], gap, k, start, end);
            }
        }
        dms_pattern_close(p);
    }
}

/* What Oniguruma has {,m} for; elsewhere, and without m, braces are themselves. */
Test(tokenizer_kinds, a_repeat_without_its_lower_bound_begins_at_none)
{
    static const struct {
        const char *regex;
        size_t start, end; /* in "xaaaa{,2}" */
    } cases[] = {{"xa{,3}", 0, 4},  {"b{,3}x", 0, 1},  {"xa{,2}?a{2}$", 9, 0},
                 {"a\\{,2}", 4, 9}, {"[{,2}]+", 5, 9}, {"a{1,2}?", 1, 2}};
    static const char text[] = "xaaaa{,2}";
    for (size_t i = 0; i < COUNT(cases); i++) {
        size_t start, end;
        dms_pattern *p;
        must(dms_pattern_open(&p, cases[i].regex, strlen(cases[i].regex), "test"));
        dms_pattern_begin(p, sizeof(text) - 1);
        must(dms_pattern_find(p, &start, &end, text, sizeof(text) - 1, 0));
        cr_expect(cases[i].end ? start == cases[i].start && end == cases[i].end : start > 9,
                  "%s: [%zu, %zu)", cases[i].regex, start, end);
        dms_pattern_close(p);
    }
}

static dms_status drop_piece(void *user, const char *text, size_t n)
{
    (void)user, (void)text, (void)n;
    return DMS_OK;
}

/* One row, then rows of 55 and 1,003: short of the windows in which a match is looked for,
 * and beyond them. Quadratic or worse without a budget; some end soon where rows are short. */
Test(tokenizer_kinds, end_an_expression_that_takes_too_many_steps_on_a_text)
{
    enum { N = 100000 };
    static const char *const regexes[] = {
        "a*[bc]|a",        "a*a*a*[bc]|a",     "(?:a*)*[bc]|a",   ".*.*[bc]|a",
        "a*?a*?a*?[bc]|a", "(a*)\\\\1[bc]|a",  "(?=a*[bc])|a",    "a{60000,}[bc]|a",
        "a*[bc]",          "(a{9000})*[bc]|a", "(?:a|aa)*[bc]|a", "(?<=a*?a{999})[bc]|a"};
    static const size_t rows[] = {N + 1, 56, 1004};
    char *text = malloc(N), json[256];
    cr_assert(text);
    for (size_t i = 0; i < COUNT(regexes) * COUNT(rows); i++) {
        const size_t row = rows[i % COUNT(rows)];
        dms_pretokenizer *p = NULL;
        for (size_t k = 0; k < N; k++)
            text[k] = k % row == row - 1 ? 'x' : 'a';
        snprintf(json, sizeof(json),
                 "{\"type\":\"Split\",\"behavior\":\"Isolated\",\"pattern\":{\"Regex\":\"%s\"}}",
                 regexes[i / COUNT(rows)]);
        json_t *root = json_loads(json, 0, NULL);
        cr_assert(root, "%s", json);
        dms_status status = dms_pretokenizer_open(&p, root, "split.json");
        if (!status)
            status = dms_pretokenizer_run(p, &(dms_piece_sink){drop_piece, NULL}, text, N);
        cr_expect(status == DMS_ERR_FORMAT || row == 56, "%s in rows of %zu: %d", json, row,
                  status);
        if (status && p)
            cr_expect(strstr(dms_error_text(), regexes[i / COUNT(rows)]) ||
                          strstr(regexes[i / COUNT(rows)], "\\"),
                      "%s", dms_error_text());
        dms_pretokenizer_close(p);
        json_decref(root);
    }
    free(text);
}
