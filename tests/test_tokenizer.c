/* Tokenizer: every id and text of Hugging Face tokenizers, hostile files, hostile text. */
#include <ctype.h>
#include <jansson.h>
#include <string.h>
#include <unistd.h>

#include "checkpoints/source.h"
#include "data/pretokenizer.h"
#include "data/tokenizer.h"
#include "data/utf8.h"
#include "tests/fixtures.h"
#include "tests/rig.h"
#include "tests/tokens.h"

static const char *const styles[] = {"gpt2", "smollm", "llama3", "qwen2"};

/* The file's bytes and a 0; the caller frees them. */
static char *slurp(const char *path, size_t *n)
{
    FILE *file = fopen(path, "rb");
    cr_assert(file, "%s is missing", path);
    fseek(file, 0, SEEK_END);
    *n = (size_t)ftell(file);
    rewind(file);
    char *text = malloc(*n + 1);
    cr_assert(text && fread(text, 1, *n, file) == *n);
    text[*n] = 0;
    fclose(file);
    return text;
}

static char *style_json(const char *style, size_t *n)
{
    char relative[64], path[1024];
    snprintf(relative, sizeof(relative), "tokenizers/%s/tokenizer.json", style);
    return slurp(fixture(path, relative), n);
}

static dms_tokenizer *open_style(const char *style)
{
    size_t n;
    char *json = style_json(style, &n);
    dms_tokenizer *t;
    must(dms_tokenizer_open(&t, json, n, style));
    free(json);
    return t;
}

/* One line of cases.jsonl: text to ids, ids to text, and the same one id at a time. */
static void check_case(dms_tokenizer *t, const char *style, const char *line, size_t n)
{
    json_t *c = json_loadb(line, n, JSON_ALLOW_NUL, NULL);
    const json_t *text = json_object_get(c, "text"), *ids = json_object_get(c, "ids");
    const json_t *decoded = json_object_get(c, "decoded");
    dms_tokens got = {0};
    dms_text bytes = {0}, clean = {0}, streamed = {0};
    dms_decoder d = {.tokenizer = t};
    cr_assert(json_is_string(text) && json_is_array(ids) && json_is_string(decoded));
    must(dms_tokenizer_encode(t, &got, json_string_value(text), json_string_length(text), true));
    cr_expect(same_ids(&got, ids), "%s: ids differ: %.*s", style, (int)n, line);
    must(dms_tokenizer_decode(t, &bytes, got.ids, got.n, false));
    must(dms_utf8_replace(&clean, bytes.bytes, bytes.n));
    cr_expect(same_text(&clean, decoded), "%s: text differs: %.*s", style, (int)n, line);
    for (int64_t i = 0; i < got.n; i++) {
        must(dms_decoder_put(&d, &streamed, got.ids[i]));
        cr_assert(dms_utf8_valid(streamed.bytes, streamed.n) == streamed.n);
    }
    must(dms_decoder_end(&d, &streamed));
    cr_expect(same_text(&streamed, decoded), "%s: stream differs: %.*s", style, (int)n, line);
    dms_tokens_free(&got);
    dms_text_free(&bytes);
    dms_text_free(&clean);
    dms_text_free(&streamed);
    json_decref(c);
}

/* All cases of one file below the fixtures. */
static void check_cases(dms_tokenizer *t, const char *style, const char *relative)
{
    char path[1024];
    size_t n, n_cases = 0;
    char *cases = slurp(fixture(path, relative), &n);
    for (char *line = cases, *end; (end = strchr(line, '\n')); line = end + 1, n_cases++)
        check_case(t, style, line, (size_t)(end - line));
    cr_expect(n_cases >= 100, "%s: only %zu cases", style, n_cases);
    free(cases);
}

Test(tokenizer, gives_every_id_and_text_of_the_reference)
{
    for (size_t i = 0; i < COUNT(styles); i++) {
        char relative[64];
        snprintf(relative, sizeof(relative), "tokenizers/%s/cases.jsonl", styles[i]);
        dms_tokenizer *t = open_style(styles[i]);
        check_cases(t, styles[i], relative);
        dms_tokenizer_close(t);
    }
}

/* The real tokenizer, through the tokenizer.json that a source makes of a GGUF file's metadata. */
Test(tokenizer, of_a_real_model_file_gives_every_id_and_text_of_the_reference)
{
    const char *model = getenv("DMS_MODEL");
    size_t n = 0;
    dms_source *source = NULL;
    dms_tokenizer *t = NULL;
    if (!model)
        model = DMS_SOURCE_DIR "/cache/SmolLM2-135M-Instruct.Q4_1.gguf";
    if (access(model, R_OK) != 0)
        cr_skip_test("%s is not there; scripts/quickstart.sh fetches it, or set DMS_MODEL", model);
    must(dms_source_open(&source, model));
    const char *json = dms_source_tokenizer(source, &n);
    must(dms_tokenizer_open(&t, json, n, model));
    check_cases(t, "smollm2-135m", "smollm2-135m/tokenizer.jsonl");
    dms_tokenizer_close(t);
    dms_source_close(source);
}

/* A vocabulary of all bytes' characters but those in `without`, then "ab", "abc", "bc". */
static json_t *small_vocab(const char *without)
{
    json_t *vocab = json_object();
    for (int c = 0x21; c < 0x7F; c++) {
        const char text[2] = {(char)c, 0};
        if (!strchr(without, c))
            json_object_set_new(vocab, text, json_integer((json_int_t)json_object_size(vocab)));
    }
    static const char *const more[] = {"\u0120", "\u00c3", "\u00a9", "ab", "abc", "bc"};
    for (size_t i = 0; i < COUNT(more); i++)
        json_object_set_new(vocab, more[i], json_integer((json_int_t)json_object_size(vocab)));
    return vocab;
}

/* A tokenizer.json with GPT-2's splits; `patch` is an object whose keys replace its own, those
 * under "model" one level down. The caller drops it. */
static json_t *small_json(const char *patch, const char *without)
{
    json_t *root =
        json_pack("{s:n, s:{s:s, s:b, s:b}, s:{s:s}, s:[], s:{s:s, s:o, s:[s, [s, s]]}}",
                  "normalizer", "pre_tokenizer", "type", "ByteLevel", "add_prefix_space", 0,
                  "use_regex", 1, "decoder", "type", "ByteLevel", "added_tokens", "model", "type",
                  "BPE", "vocab", small_vocab(without), "merges", "b c", "ab", "c");
    json_t *changes = json_loads(patch, JSON_ALLOW_NUL, NULL);
    cr_assert(root && changes, "%s", patch);
    json_t *model = json_object_get(changes, "model");
    if (json_is_object(model)) {
        json_object_update(json_object_get(root, "model"), model);
        json_object_del(changes, "model");
    }
    json_object_update(root, changes);
    json_decref(changes);
    return root;
}

static dms_status open_small(dms_tokenizer **t, const char *patch, const char *without)
{
    json_t *root = small_json(patch, without);
    char *json = json_dumps(root, JSON_COMPACT);
    const dms_status status = dms_tokenizer_open(t, json, strlen(json), "small.json");
    free(json);
    json_decref(root);
    return status;
}

/* Expects text to become the tokens named in `want`, with a bar after each. */
static void expect_tokens(dms_tokenizer *t, const char *text, bool specials, const char *want)
{
    dms_tokens ids = {0};
    dms_text got = {0};
    must(dms_tokenizer_encode(t, &ids, text, strlen(text), specials));
    for (int64_t i = 0; i < ids.n; i++) {
        must(dms_tokenizer_decode(t, &got, &ids.ids[i], 1, false));
        must(dms_text_append(&got, "|", 1));
    }
    must(dms_text_append(&got, "", 1));
    cr_expect_str_eq(got.bytes, want, "\"%s\" gave %s, expected %s", text, got.bytes, want);
    dms_tokens_free(&ids);
    dms_text_free(&got);
}

#define ADDED(content, id, flags) \
    "{\"id\":" #id ",\"content\":\"" content "\",\"special\":true,\"normalized\":false" flags "}"

Test(tokenizer, merges_by_rank_and_not_by_length)
{
    dms_tokenizer *t;
    must(open_small(&t, "{}", ""));
    expect_tokens(t, "abc", true, "a|bc|"); /* "b c" ranks first; "ab c" never gets its "ab" */
    dms_tokenizer_close(t);
    must(open_small(&t, "{\"model\":{\"merges\":[\"a b\",\"b c\",\"ab c\"]}}", ""));
    expect_tokens(t, "abc bc", true, "abc| |bc|");
    dms_tokenizer_close(t);
    must(open_small(&t, "{\"model\":{\"merges\":[],\"ignore_merges\":true}}", ""));
    expect_tokens(t, "abc abcd", true, "abc| |a|b|c|d|");
    dms_tokenizer_close(t);
}

static dms_status add_piece(void *user, const char *text, size_t n)
{
    DMS_TRY(dms_text_append(user, text, n));
    return dms_text_append(user, "|", 1);
}

static void expect_pieces(const char *json, const char *text, const char *want)
{
    json_t *root = json_loads(json, 0, NULL);
    dms_pretokenizer *p;
    dms_text got = {0};
    must(dms_pretokenizer_open(&p, root, "split.json"));
    must(dms_pretokenizer_run(p, &(dms_piece_sink){add_piece, &got}, text, strlen(text)));
    must(dms_text_append(&got, "", 1));
    cr_expect_str_eq(got.bytes, want, "\"%s\" gave %s, expected %s", text, got.bytes, want);
    dms_text_free(&got);
    dms_pretokenizer_close(p);
    json_decref(root);
}

#define SEQUENCE(first) \
    "{\"type\":\"Sequence\",\"pretokenizers\":[" first ",{\"type\":\"ByteLevel\"}]}"
#define SPLIT(regex) \
    "{\"type\":\"Split\",\"behavior\":\"Isolated\",\"pattern\":{\"Regex\":\"" regex "\"}}"

/* Oniguruma's \s is White_Space, which U+180E left in Unicode 6.3; PCRE2's \s still has it. */
Test(tokenizer, splits_as_the_reference_does)
{
    static const char gpt2[] = "{\"type\":\"ByteLevel\",\"add_prefix_space\":false}";
    static const char no_regex[] = "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,"
                                   "\"use_regex\":false}";
    expect_pieces(gpt2, "it's  a\n\nb 12!", "it|'s| | a|\n|\n|b| 12|!|");
    expect_pieces(gpt2, "a\u1680\u1680b", "a|\u1680|\u1680|b|");
    expect_pieces(gpt2, "a\u180e\u180e!", "a|\u180e\u180e!|");
    expect_pieces(gpt2, "a\xC2\x85\xC2\x85!", "a|\xC2\x85|\xC2\x85|!|");
    expect_pieces(no_regex, "it's  a", "it's  a|");
    expect_pieces("{\"type\":\"ByteLevel\"}", "a b", " a| b|");
    expect_pieces(SEQUENCE("{\"type\":\"Digits\",\"individual_digits\":true}"), "a12\u00bd",
                  " a| 1| 2| \u00bd|");
    expect_pieces(SEQUENCE("{\"type\":\"Digits\"}"), "a12b", " a| 12| b|");
    expect_pieces(SEQUENCE(SPLIT("b+")), "abba", " a| bb| a|");
    expect_pieces(SEQUENCE(SPLIT("(?=b)")), "abba", " a| b| ba|");
    expect_pieces(SEQUENCE(SPLIT("[\\\\s,]")), "a,\u2003b", " a| ,| \u2003| b|");
}

Test(tokenizer, drops_bytes_without_a_token_unless_one_stands_for_the_unknown)
{
    dms_tokenizer *t;
    must(open_small(&t, "{}", "x"));
    expect_tokens(t, "axbxxc", true,
                  "a|bc|"); /* what a dropped byte parted merges: as the reference */
    dms_tokenizer_close(t);
    must(open_small(&t, "{\"model\":{\"unk_token\":\"?\"}}", "x"));
    expect_tokens(t, "axbxxc", true, "a|?|b|?|?|c|");
    dms_tokenizer_close(t);
    must(open_small(&t, "{\"model\":{\"unk_token\":\"?\",\"fuse_unk\":true}}", "x"));
    expect_tokens(t, "axbxxc", true, "a|?|b|?|c|");
    dms_tokenizer_close(t);
}

Test(tokenizer, finds_special_tokens_in_files_but_not_in_what_a_user_says)
{
    dms_tokenizer *t;
    must(open_small(&t, "{\"added_tokens\":[" ADDED("<e>", 100, "") "," ADDED("<e>>", 101, "") "]}",
                    ""));
    expect_tokens(t, "a<e>b<e>>", true, "a|<e>|b|<e>>|");
    expect_tokens(t, "a<e>b", false, "a|<|e|>|b|");
    cr_expect(dms_tokenizer_is_special(t, 100) && !dms_tokenizer_is_special(t, 0));
    cr_expect_eq(dms_tokenizer_find(t, "<e>"), 100);
    cr_expect_eq(dms_tokenizer_find(t, "<f>"), -1);
    cr_expect_eq(dms_tokenizer_size(t), 102);
    dms_text text = {0};
    must(dms_tokenizer_decode(t, &text, (int32_t[]){0, 100, -1, 1 << 30, 1}, 5, true));
    cr_expect(text.n == 2 && memcmp(text.bytes, "!\"", 2) == 0);
    dms_text_free(&text);
    dms_tokenizer_close(t);
}

Test(tokenizer, honours_the_flags_of_added_tokens)
{
    dms_tokenizer *t;
    must(open_small(
        &t,
        "{\"added_tokens\":[" ADDED("<l>", 100, ",\"lstrip\":true") "," ADDED(
            "<r>", 101, ",\"rstrip\":true") "," ADDED("w", 102, ",\"single_word\":true") "]}",
        "w"));
    expect_tokens(t, "a  <l> b", true, "a|<l>| |b|");
    expect_tokens(t, "a <r>  b", true, "a| |<r>|b|");
    expect_tokens(t, "<r>  <l>", true, "<r>|<l>|");
    expect_tokens(t, "w aw w", true, "w| |a| |w|"); /* w alone is no byte's token here */
    cr_expect_eq(dms_tokenizer_find(t, "w"), 102);
    dms_tokenizer_close(t);
}

Test(tokenizer, replaces_invalid_bytes_as_python_does)
{
    /* From CPython: bytes.decode('utf-8', 'replace'). */
    static const struct {
        const char *bytes, *text;
    } cases[] = {
        {"a\x80z", "a\uFFFDz"},
        {"\xC0\xAF", "\uFFFD\uFFFD"},
        {"\xE0\x80\x80", "\uFFFD\uFFFD\uFFFD"},
        {"\xED\xA0\x80", "\uFFFD\uFFFD\uFFFD"},
        {"\xE2\x82", "\uFFFD"},
        {"\xE2\x82x", "\uFFFDx"},
        {"\xF0\x9F\x98", "\uFFFD"},
        {"\xF0\x9F\x98\xF0\x9F\x98\x80", "\uFFFD\U0001F600"},
        {"\xF4\x90\x80\x80", "\uFFFD\uFFFD\uFFFD\uFFFD"},
        {"\xFF\xFE", "\uFFFD\uFFFD"},
    };
    dms_tokenizer *t = open_style("gpt2");
    for (size_t i = 0; i < COUNT(cases); i++) {
        dms_tokens ids = {0};
        dms_text text = {0};
        must(dms_tokenizer_encode(t, &ids, cases[i].bytes, strlen(cases[i].bytes), true));
        must(dms_tokenizer_decode(t, &text, ids.ids, ids.n, false));
        must(dms_text_append(&text, "", 1));
        cr_expect_str_eq(text.bytes, cases[i].text, "case %zu", i);
        dms_tokens_free(&ids);
        dms_text_free(&text);
    }
    dms_tokenizer_close(t);
}

static uint32_t random_word(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

/* Bytes of all kinds: any byte, a few that pair up, whole characters, special tokens. */
static void random_text(dms_text *text, size_t n, uint32_t *state)
{
    static const char *const parts[] = {" ",       "\n",     "  ",     "<|endoftext|>",
                                        "the ",    "'s",     "1234",   "\u00e9",
                                        "e\u0301", "\u180e", "\u3000", "\U0001F600"};
    text->n = 0;
    while (text->n < n) {
        const char byte = (char)random_word(state);
        const char *part = parts[random_word(state) % COUNT(parts)];
        if (random_word(state) % 2)
            must(dms_text_append(text, &byte, 1));
        else
            must(dms_text_append(text, part, strlen(part)));
    }
}

/* Qwen 2 composes characters: its texts come back normalised, so they are left out here. */
Test(tokenizer, returns_any_bytes_as_their_valid_form)
{
    uint32_t state = 7;
    dms_text text = {0}, want = {0}, got = {0};
    dms_tokens ids = {0};
    for (size_t i = 0; i < COUNT(styles); i++) {
        dms_tokenizer *t = open_style(styles[i]);
        for (int round = 0; round < 200; round++) {
            random_text(&text, random_word(&state) % 300, &state);
            ids.n = 0;
            want.n = got.n = 0;
            must(dms_tokenizer_encode(t, &ids, text.bytes, text.n, round % 2));
            must(dms_tokenizer_decode(t, &got, ids.ids, ids.n, false));
            must(dms_utf8_replace(&want, text.bytes, text.n));
            if (strcmp(styles[i], "qwen2") != 0)
                cr_assert(got.n == want.n && memcmp(got.bytes, want.bytes, got.n) == 0,
                          "%s, round %d", styles[i], round);
            cr_assert(dms_utf8_valid(got.bytes, got.n) == got.n);
        }
        dms_tokenizer_close(t);
    }
    dms_text_free(&text);
    dms_text_free(&want);
    dms_text_free(&got);
    dms_tokens_free(&ids);
}

Test(tokenizer, decodes_any_ids_as_a_stream_that_is_always_valid)
{
    uint32_t state = 3;
    dms_tokenizer *t = open_style("llama3");
    dms_text all = {0}, want = {0}, got = {0};
    dms_decoder d = {.tokenizer = t};
    for (int i = 0; i < 20000; i++) {
        const int32_t id = (int32_t)(random_word(&state) % 300); /* mostly single bytes */
        must(dms_tokenizer_decode(t, &all, &id, 1, false));
        must(dms_decoder_put(&d, &got, id));
    }
    must(dms_decoder_end(&d, &got));
    must(dms_utf8_replace(&want, all.bytes, all.n));
    cr_expect(got.n == want.n && memcmp(got.bytes, want.bytes, got.n) == 0);
    dms_text_free(&all);
    dms_text_free(&want);
    dms_text_free(&got);
    dms_tokenizer_close(t);
}

/* Encodes text in parts that dms_tokenizer_cut allows. */
static void encode_in_parts(dms_tokenizer *t, dms_tokens *out, const dms_text *text, size_t most)
{
    for (size_t at = 0; at < text->n;) {
        size_t n = text->n - at;
        if (n > most) {
            n = most;
            const size_t cut = dms_tokenizer_cut(t, text->bytes + at, n);
            cr_assert(cut < n);
            n = cut ? cut : text->n - at;
        }
        must(dms_tokenizer_encode(t, out, text->bytes + at, n, true));
        at += n;
    }
}

Test(tokenizer, may_be_given_a_text_in_the_parts_it_cuts)
{
    static const char *const words[] = {"the ",    "a ",  "it's ", "x1 ", "I \n",         "\n\n ",
                                        "\u00e9 ", "cut", "  ",    ", ",  "<|endoftext|>"};
    uint32_t state = 11;
    for (size_t i = 0; i < COUNT(styles); i++) {
        dms_tokenizer *t = open_style(styles[i]);
        dms_text text = {0};
        dms_tokens whole = {0}, parts = {0};
        for (int w = 0; w < 5000; w++) {
            const char *word = words[random_word(&state) % COUNT(words)];
            must(dms_text_append(&text, word, strlen(word)));
        }
        cr_expect(dms_tokenizer_cut(t, text.bytes, text.n) > 0);
        must(dms_tokenizer_encode(t, &whole, text.bytes, text.n, true));
        encode_in_parts(t, &parts, &text, 50);
        cr_expect(whole.n == parts.n &&
                      memcmp(whole.ids, parts.ids, (size_t)whole.n * sizeof(int32_t)) == 0,
                  "%s", styles[i]);
        dms_text_free(&text);
        dms_tokens_free(&whole);
        dms_tokens_free(&parts);
        dms_tokenizer_close(t);
    }
}

Test(tokenizer, takes_one_endless_word_in_time_that_grows_with_its_length)
{
    static const char fill[] = {'a', ' ', '\n', '1', '.'};
    for (size_t i = 0; i < COUNT(styles); i++) {
        dms_tokenizer *t = open_style(styles[i]);
        for (size_t f = 0; f < sizeof(fill); f++) {
            const size_t n = 300000;
            char *text = malloc(n);
            cr_assert(text);
            memset(text, fill[f], n);
            dms_tokens ids = {0};
            dms_text back = {0};
            must(dms_tokenizer_encode(t, &ids, text, n, true));
            must(dms_tokenizer_decode(t, &back, ids.ids, ids.n, true));
            cr_expect(back.n == n && memcmp(back.bytes, text, n) == 0);
            dms_tokens_free(&ids);
            dms_text_free(&back);
            free(text);
        }
        dms_tokenizer_close(t);
    }
}

static const struct {
    const char *patch, *message;
} unsupported[] = {
    {"{\"model\":3}", "model is a number"},
    {"{\"model\":{\"type\":\"WordPiece\"}}", "model.type is \"WordPiece\""},
    {"{\"model\":{\"vocab\":[]}}", "model.vocab is an array"},
    {"{\"model\":{\"vocab\":{}}}", "vocabulary is empty"},
    {"{\"model\":{\"vocab\":{\"a\":-1}}}", "\"a\" has id -1"},
    {"{\"model\":{\"vocab\":{\"a\":\"b\"}}}", "the id of token \"a\" is a string"},
    {"{\"model\":{\"vocab\":{\"a\":0,\"b\":0}}}", "id 0 is given to"},
    {"{\"model\":{\"vocab\":{\"a\":2000000000}}}", "largest token id is 2000000000"},
    {"{\"model\":{\"vocab\":{\"a\":9000000000}}}", "has id 9000000000"},
    {"{\"model\":{\"merges\":{}}}", "model.merges is an object"},
    {"{\"model\":{\"merges\":[\"a b\",7]}}", "model.merges[1] is a number"},
    {"{\"model\":{\"merges\":[\"a b c\"]}}", "model.merges[0]"},
    {"{\"model\":{\"merges\":[[\"a\"]]}}", "model.merges[0]"},
    {"{\"model\":{\"merges\":[\"a zzz\"]}}", "joins \"zzz\" (second operand)"},
    {"{\"model\":{\"merges\":[\"z z\"]}}", "makes \"zz\""},
    {"{\"model\":{\"dropout\":0.1}}", "dropout"},
    {"{\"model\":{\"unk_token\":\"nothing\"}}", "unk_token \"nothing\""},
    {"{\"model\":{\"end_of_word_suffix\":\"</w>\"}}", "end_of_word_suffix"},
    {"{\"model\":{\"ignore_merges\":1}}", "\"ignore_merges\" is a number"},
    {"{\"normalizer\":{\"type\":\"Lowercase\"}}", "normalizer.type is \"Lowercase\""},
    {"{\"normalizer\":[]}", "normalizer is an array"},
    {"{\"pre_tokenizer\":null}", "the pre_tokenizer has no ByteLevel"},
    {"{\"pre_tokenizer\":{}}", "pre_tokenizer.type is \"missing\""},
    {"{\"pre_tokenizer\":{\"type\":\"Metaspace\"}}", "\"Metaspace\""},
    {"{\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[]}}", "no ByteLevel"},
    {"{\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"}}}",
     "\"content\" is missing"},
    {"{\"normalizer\":{\"type\":\"Replace\",\"content\":\"a\"}}", "pattern.Regex is missing"},
    {"{\"pre_tokenizer\":{\"type\":\"Digits\"}}", "no ByteLevel"},
    {"{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"String\":\"\"},\"behavior\":"
     "\"Isolated\"}}",
     "pattern.String is empty"},
    {"{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\"},\"behavior\":"
     "\"Deleted\"}}",
     "behavior is \"Deleted\""},
    {"{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(a\"},\"behavior\":"
     "\"Isolated\"}}",
     "regular expression \"(a\""},
    {"{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\K+\"},\"behavior\":"
     "\"Isolated\"}}",
     "\\K at character 1"},
    {"{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[a[b]]\"},\"behavior\":"
     "\"Isolated\"}}",
     "a set within a set at character 2"},
    {"{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a{2}+\"},\"behavior\":"
     "\"Isolated\"}}",
     "+ after {n,m} at character 4"},
    {"{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"xa{2}?\"},\"behavior\":"
     "\"Isolated\"}}",
     "? after {n} at character 5"},
    {"{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(*LIMIT_MATCH=9)a\"},"
     "\"behavior\":\"Isolated\"}}",
     "(* at character 0"},
    {"{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a(?R)?\"},\"behavior\":"
     "\"Isolated\"}}",
     "such a group at character 3"},
    {"{\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Metaspace\"}]}}",
     "decoder has \"Metaspace\""},
    {"{\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Strip\"}]}}",
     "\"Strip\" without Fuse"},
    {"{\"decoder\":{\"type\":\"Sequence\",\"decoders\":[]},\"pre_tokenizer\":null,"
     "\"model\":{\"byte_fallback\":true,\"merges\":[]}}",
     "the vocabulary has no \"<0x00>\""},
    {"{\"decoder\":null}", "decoder.type"},
    {"{\"added_tokens\":7}", "added_tokens is a number"},
    {"{\"added_tokens\":[7]}", "added_tokens[0].content is missing"},
    {"{\"added_tokens\":[{\"content\":\"<e>\"}]}", "token \"<e>\" is missing"},
    {"{\"added_tokens\":[" ADDED("<e>", 3, "") "]}", "id 3 is given to"},
    {"{\"added_tokens\":[" ADDED("a", 200, "") "]}", "\"a\" has id 200, but"},
    {"{\"added_tokens\":[{\"id\":200,\"content\":\"<e>\",\"special\":\"yes\"}]}",
     "\"special\" is a string"},
};

Test(tokenizer, names_the_key_it_does_not_support)
{
    for (size_t i = 0; i < COUNT(unsupported); i++) {
        dms_tokenizer *t = NULL;
        cr_expect_eq(open_small(&t, unsupported[i].patch, ""), DMS_ERR_FORMAT, "%s",
                     unsupported[i].patch);
        cr_expect(strstr(dms_error_text(), unsupported[i].message) &&
                      strstr(dms_error_text(), "small"),
                  "%s: %s", unsupported[i].patch, dms_error_text());
        cr_expect_null(t);
    }
}

Test(tokenizer, refuses_a_file_cut_short_anywhere)
{
    json_t *root = small_json("{}", "");
    char *json = json_dumps(root, JSON_COMPACT);
    for (size_t n = 0; n < strlen(json); n++) {
        dms_tokenizer *t;
        char *copy = malloc(n ? n : 1); /* so that a sanitizer sees reads past the end */
        cr_assert(copy);
        memcpy(copy, json, n);
        cr_assert_eq(dms_tokenizer_open(&t, copy, n, "cut.json"), DMS_ERR_FORMAT, "%zu", n);
        free(copy);
    }
    free(json);
    json_decref(root);
}

Test(tokenizer, opens_or_refuses_damaged_files_without_a_crash)
{
    uint32_t state = 5;
    json_t *root = small_json("{\"normalizer\":{\"type\":\"NFC\"},\"added_tokens\":[" ADDED(
                                  "<e>", 100, ",\"lstrip\":true") "]}",
                              "");
    char *json = json_dumps(root, JSON_COMPACT), *copy = strdup(json);
    const size_t n = strlen(json);
    for (int round = 0; round < 3000; round++) {
        dms_tokenizer *t;
        memcpy(copy, json, n);
        for (uint32_t edits = 1 + random_word(&state) % 3; edits > 0; edits--) {
            static const char likely[] = "\"\\{}[]:,0129-et \x80";
            copy[random_word(&state) % n] = likely[random_word(&state) % (sizeof(likely) - 1)];
        }
        if (dms_tokenizer_open(&t, copy, n, "damaged.json"))
            continue;
        dms_tokens ids = {0};
        must(dms_tokenizer_encode(t, &ids, "abc <e> \u00e9 12", 14, true));
        dms_tokens_free(&ids);
        dms_tokenizer_close(t);
    }
    free(copy);
    free(json);
    json_decref(root);
}
