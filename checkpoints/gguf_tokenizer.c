#include <stdlib.h>
#include <string.h>

#include "checkpoints/gguf_read.h"

/* How a tokenizer.ggml.pre name maps to a pre-tokeniser of tokenizer.json. Patterns: the
 * tokenizer.json files of Llama 3 and Qwen 2. */
typedef enum { BYTE_LEVEL, DIGITS, SPLIT_LLAMA3, SPLIT_QWEN2 } splitter;

static const struct {
    const char *pre;
    splitter split;
    bool ignore_merges, nfc, add_bos;
} styles[] = {{"gpt-2", BYTE_LEVEL, false, false, false},
              {"default", BYTE_LEVEL, false, false, false},
              {"smollm", DIGITS, false, false, false},
              {"llama-bpe", SPLIT_LLAMA3, true, false, true},
              {"llama3", SPLIT_LLAMA3, true, false, true},
              {"llama-v3", SPLIT_LLAMA3, true, false, true},
              {"qwen2", SPLIT_QWEN2, false, true, false},
              {"deepseek-r1-qwen", SPLIT_QWEN2, false, true, false}};

#define SPLIT_PATTERN(digits)                                            \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits \
    "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

static dms_status malformed(const dms_gguf_meta *meta, const char *what)
{
    return dms_fail(DMS_ERR_FORMAT, "%s: the tokenizer's %s are missing, no UTF-8, or malformed",
                    meta->path, what);
}

static const dms_gguf_value *strings(const dms_gguf_meta *meta, const char *key)
{
    const dms_gguf_value *v = dms_gguf_find(meta, key);
    return v && v->array && v->type == GGUF_STRING ? v : NULL;
}

static dms_status find_style(size_t *out, const dms_gguf_meta *meta)
{
    const dms_gguf_string model = dms_gguf_text(meta, "tokenizer.ggml.model");
    dms_gguf_string pre = dms_gguf_text(meta, "tokenizer.ggml.pre");
    if (!dms_gguf_is(model, "gpt2"))
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: tokenizer.ggml.model is %.*s; only gpt2 (byte-level BPE) is read",
                        meta->path, model.text ? (int)(model.length < 40 ? model.length : 40) : 6,
                        model.text ? model.text : "absent");
    if (!pre.text)
        pre = (dms_gguf_string){"default", 7};
    for (size_t i = 0; i < sizeof(styles) / sizeof(*styles); i++)
        if (dms_gguf_is(pre, styles[i].pre)) {
            *out = i;
            return DMS_OK;
        }
    return dms_fail(DMS_ERR_FORMAT,
                    "%s: tokenizer.ggml.pre is %.*s; gpt-2, default, smollm, llama-bpe, qwen2 and "
                    "deepseek-r1-qwen are read",
                    meta->path, (int)(pre.length < 40 ? pre.length : 40), pre.text);
}

/* vocab: token -> id. added: control tokens (type 3) are special, user-defined ones (type 4) not.
 */
static dms_status put_tokens(json_t *vocab, json_t *added, const dms_gguf_meta *meta)
{
    enum { CONTROL = 3, USER_DEFINED = 4 };
    const dms_gguf_value *tokens = strings(meta, "tokenizer.ggml.tokens");
    const dms_gguf_value *kinds = dms_gguf_find(meta, "tokenizer.ggml.token_type");
    if (!tokens || tokens->count > INT32_MAX)
        return malformed(meta, "tokens");
    const uint8_t *at = tokens->at;
    for (uint64_t i = 0; i < tokens->count; i++) {
        const dms_gguf_string s = dms_gguf_next(&at);
        const int64_t kind = kinds && kinds->array ? dms_gguf_item(kinds, i) : 1;
        if (memchr(s.text, 0, s.length))
            return malformed(meta, "tokens");
        /* Where a token appears twice, its first id is the one that text becomes. */
        if (!json_object_getn(vocab, s.text, s.length) &&
            json_object_setn_new(vocab, s.text, s.length, json_integer((json_int_t)i)))
            return malformed(meta, "tokens");
        if (kind != CONTROL && kind != USER_DEFINED)
            continue;
        json_t *item = json_pack("{s:I, s:s%, s:b, s:b, s:b, s:b, s:b}", "id", (json_int_t)i,
                                 "content", s.text, s.length, "single_word", 0, "lstrip", 0,
                                 "rstrip", 0, "normalized", 0, "special", kind == CONTROL);
        if (!item || json_array_append_new(added, item))
            return malformed(meta, "tokens");
    }
    return DMS_OK;
}

/* "left right" -> ["left", "right"]; the left half has at least one byte. */
static dms_status put_merges(json_t *merges, const dms_gguf_meta *meta)
{
    const dms_gguf_value *lines = strings(meta, "tokenizer.ggml.merges");
    if (!lines)
        return malformed(meta, "merges");
    const uint8_t *at = lines->at;
    for (uint64_t i = 0; i < lines->count; i++) {
        const dms_gguf_string s = dms_gguf_next(&at);
        const char *space = s.length > 2 ? memchr(s.text + 1, ' ', s.length - 1) : NULL;
        if (!space)
            return malformed(meta, "merges");
        const size_t left = (size_t)(space - s.text);
        json_t *pair = json_pack("[s%, s%]", s.text, left, space + 1, s.length - left - 1);
        if (!pair || json_array_append_new(merges, pair))
            return malformed(meta, "merges");
    }
    return DMS_OK;
}

static json_t *byte_level(bool use_regex)
{
    return json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", 0,
                     "trim_offsets", 1, "use_regex", use_regex);
}

static json_t *pre_tokenizer(splitter split)
{
    json_t *first;
    if (split == BYTE_LEVEL)
        return byte_level(true);
    if (split == DIGITS)
        first = json_pack("{s:s, s:b}", "type", "Digits", "individual_digits", 1);
    else
        first = json_pack("{s:s, s:{s:s}, s:s, s:b}", "type", "Split", "pattern", "Regex",
                          split == SPLIT_LLAMA3 ? SPLIT_PATTERN("\\p{N}{1,3}")
                                                : SPLIT_PATTERN("\\p{N}"),
                          "behavior", "Isolated", "invert", 0);
    return json_pack("{s:s, s:[o, o]}", "type", "Sequence", "pretokenizers", first,
                     byte_level(split == DIGITS));
}

/* Puts the text's first token in front, as Llama 3's tokenizer.json does; null where not wanted. */
static json_t *post_processor(const json_t *vocab, const dms_gguf_meta *meta, bool add_bos)
{
    const json_int_t bos = dms_gguf_int(meta, "tokenizer.ggml.bos_token_id", -1);
    const char *token, *name = NULL;
    json_t *id;
    if (!dms_gguf_int(meta, "tokenizer.ggml.add_bos_token", add_bos) || bos < 0)
        return json_null();
    json_object_foreach((json_t *)(uintptr_t)vocab, token, id)
    {
        if (json_integer_value(id) == bos)
            name = token;
    }
    if (!name)
        return json_null();
    return json_pack("{s:s, s:[{s:{s:s, s:i}}, {s:{s:s, s:i}}], "
                     "s:[{s:{s:s, s:i}}, {s:{s:s, s:i}}, {s:{s:s, s:i}}, {s:{s:s, s:i}}], "
                     "s:{s:{s:s, s:[I], s:[s]}}}",
                     "type", "TemplateProcessing", "single", "SpecialToken", "id", name, "type_id",
                     0, "Sequence", "id", "A", "type_id", 0, "pair", "SpecialToken", "id", name,
                     "type_id", 0, "Sequence", "id", "A", "type_id", 0, "SpecialToken", "id", name,
                     "type_id", 1, "Sequence", "id", "B", "type_id", 1, "special_tokens", name,
                     "id", name, "ids", bos, "tokens", name);
}

/* Takes over vocab, merges and added. */
static json_t *assemble(const dms_gguf_meta *meta, size_t style, json_t *vocab, json_t *merges,
                        json_t *added)
{
    json_t *normalizer = styles[style].nfc ? json_pack("{s:s}", "type", "NFC") : json_null();
    json_t *post = post_processor(vocab, meta, styles[style].add_bos);
    json_t *decoder = json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", 1,
                                "trim_offsets", 1, "use_regex", 1);
    json_t *model = json_pack(
        "{s:s, s:n, s:n, s:n, s:n, s:b, s:b, s:b, s:o, s:o}", "type", "BPE", "dropout", "unk_token",
        "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", 0, "byte_fallback", 0,
        "ignore_merges", styles[style].ignore_merges, "vocab", vocab, "merges", merges);
    return json_pack("{s:s, s:n, s:n, s:o, s:o, s:o, s:o, s:o, s:o}", "version", "1.0",
                     "truncation", "padding", "added_tokens", added, "normalizer", normalizer,
                     "pre_tokenizer", pre_tokenizer(styles[style].split), "post_processor", post,
                     "decoder", decoder, "model", model);
}

static dms_status add_tokenizer(dms_source *s, const dms_gguf_meta *meta)
{
    size_t style;
    dms_status status;
    json_t *vocab = json_object(), *merges = json_array(), *added = json_array(), *all = NULL;
    char *text = NULL;
    DMS_TRY_OR(done, find_style(&style, meta));
    DMS_TRY_OR(done, put_tokens(vocab, added, meta));
    DMS_TRY_OR(done, put_merges(merges, meta));
    all = assemble(meta, style, vocab, merges, added);
    vocab = merges = added = NULL;
    text = all ? json_dumps(all, JSON_COMPACT) : NULL;
    if (!text)
        DMS_TRY_OR(done, dms_fail(DMS_ERR_NOMEM, "no memory for the tokenizer of %s", meta->path));
    DMS_TRY_OR(done, dms_source_add_text(s, DMS_NOTE_TOKENIZER, text, strlen(text)));
done:
    json_decref(vocab);
    json_decref(merges);
    json_decref(added);
    json_decref(all);
    free(text);
    return status;
}

dms_status dms_gguf_make_tokenizer(dms_source *s, const dms_gguf_meta *meta)
{
    const dms_gguf_string template = dms_gguf_text(meta, "tokenizer.chat_template");
    if (template.text)
        DMS_TRY(dms_source_add_text(s, DMS_NOTE_CHAT_TEMPLATE, template.text, template.length));
    if (dms_gguf_find(meta, "tokenizer.ggml.model"))
        DMS_TRY(add_tokenizer(s, meta));
    return DMS_OK;
}
