#include <stdlib.h>
#include <string.h>

#include "checkpoints/gguf_pre.h"
#include "checkpoints/gguf_read.h"

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

static dms_status find_pre(const dms_gguf_pre **out, const dms_gguf_meta *meta)
{
    const dms_gguf_string model = dms_gguf_text(meta, "tokenizer.ggml.model");
    const dms_gguf_string pre = dms_gguf_text(meta, "tokenizer.ggml.pre");
    if (!dms_gguf_is(model, "gpt2"))
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: tokenizer.ggml.model is %.*s; only gpt2 (byte-level BPE) is read",
                        meta->path, model.text ? (int)(model.length < 40 ? model.length : 40) : 6,
                        model.text ? model.text : "absent");
    if (!pre.text)
        return dms_fail(DMS_ERR_FORMAT,
                        "%s has no key tokenizer.ggml.pre, so how it splits text is unknown; "
                        "convert the model again, or name it: %s",
                        meta->path, dms_gguf_pre_names());
    *out = dms_gguf_pre_find(pre.text, pre.length);
    return *out
               ? DMS_OK
               : dms_fail(DMS_ERR_FORMAT, "%s: tokenizer.ggml.pre is %.*s; %s are read", meta->path,
                          (int)(pre.length < 40 ? pre.length : 40), pre.text, dms_gguf_pre_names());
}

/* vocab: token -> id. added: control tokens (type 3) are special, user-defined ones (type 4) not.
 */
static dms_status put_tokens(json_t *vocab, json_t *added, const dms_gguf_meta *meta)
{
    enum { CONTROL = 3, USER_DEFINED = 4 };
    enum { MOST_ADDED = 1 << 16 }; /* each takes more room here than in the file */
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
        if (json_array_size(added) == MOST_ADDED)
            return malformed(meta, "token_type");
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
static json_t *assemble(const dms_gguf_meta *meta, const dms_gguf_pre *pre, json_t *vocab,
                        json_t *merges, json_t *added)
{
    json_t *normalizer = pre->nfc ? json_pack("{s:s}", "type", "NFC") : json_null();
    json_t *post = post_processor(vocab, meta, pre->add_bos);
    json_t *decoder = json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", 1,
                                "trim_offsets", 1, "use_regex", 1);
    json_t *model = json_pack(
        "{s:s, s:n, s:n, s:n, s:n, s:b, s:b, s:b, s:o, s:o}", "type", "BPE", "dropout", "unk_token",
        "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", 0, "byte_fallback", 0,
        "ignore_merges", pre->ignore_merges, "vocab", vocab, "merges", merges);
    return json_pack("{s:s, s:n, s:n, s:o, s:o, s:o, s:o, s:o, s:o}", "version", "1.0",
                     "truncation", "padding", "added_tokens", added, "normalizer", normalizer,
                     "pre_tokenizer", dms_gguf_pre_make(pre), "post_processor", post, "decoder",
                     decoder, "model", model);
}

static dms_status add_tokenizer(dms_source *s, const dms_gguf_meta *meta)
{
    const dms_gguf_pre *pre;
    dms_status status;
    json_t *vocab = json_object(), *merges = json_array(), *added = json_array(), *all = NULL;
    char *text = NULL;
    DMS_TRY_OR(done, find_pre(&pre, meta));
    DMS_TRY_OR(done, put_tokens(vocab, added, meta));
    DMS_TRY_OR(done, put_merges(merges, meta));
    all = assemble(meta, pre, vocab, merges, added);
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

/* The whole tokenizer.json, where the file has it (docs/gguf.md of ggml,
 * tokenizer.huggingface.json), says more than what can be made from ggml's keys. A file of numbers
 * alone has the model "none", once "no_vocab". */
dms_status dms_gguf_make_tokenizer(dms_source *s, const dms_gguf_meta *meta)
{
    const dms_gguf_string template = dms_gguf_text(meta, "tokenizer.chat_template");
    const dms_gguf_string whole = dms_gguf_text(meta, "tokenizer.huggingface.json");
    const dms_gguf_string model = dms_gguf_text(meta, "tokenizer.ggml.model");
    if (template.text)
        DMS_TRY(dms_source_add_text(s, DMS_NOTE_CHAT_TEMPLATE, template.text, template.length));
    if (whole.text)
        return dms_source_add_text(s, DMS_NOTE_TOKENIZER, whole.text, whole.length);
    if (!dms_gguf_find(meta, "tokenizer.ggml.model") || dms_gguf_is(model, "none") ||
        dms_gguf_is(model, "no_vocab"))
        return DMS_OK;
    return add_tokenizer(s, meta);
}
