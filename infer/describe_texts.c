#include <stdio.h>
#include <string.h>

#include "checkpoints/inspect.h"
#include "infer/chat.h"
#include "infer/describe.h"

/* ---- tokenizer ------------------------------------------------------------------------------ */

static const char *type_of(const json_t *part)
{
    return json_string_value(json_object_get(part, "type"));
}

/* The list, or NULL where something could not be appended. */
static json_t *whole(json_t *list, int bad)
{
    if (!bad)
        return list;
    json_decref(list);
    return NULL;
}

/* The types of a part, those within a Sequence one by one. */
static json_t *types_of(const json_t *part, const char *items)
{
    json_t *list = json_array();
    const json_t *parts = json_object_get(part, items);
    const size_t n = json_is_array(parts) ? json_array_size(parts) : 1;
    int bad = 0;
    for (size_t i = 0; i < n; i++) {
        const char *type = type_of(json_is_array(parts) ? json_array_get(parts, i) : part);
        if (type)
            bad |= json_array_append_new(list, json_string(type));
    }
    return whole(list, bad);
}

/* Id and text of each special token of the file. */
static json_t *specials_of(const json_t *added)
{
    json_t *list = json_array();
    int bad = 0;
    for (size_t i = 0; i < json_array_size(added); i++) {
        const json_t *token = json_array_get(added, i);
        json_t *id = json_object_get(token, "id"), *text = json_object_get(token, "content");
        if (json_is_true(json_object_get(token, "special")) && json_is_integer(id) &&
            json_is_string(text))
            bad |= json_array_append_new(list, json_pack("{s:O, s:O}", "id", id, "text", text));
    }
    return whole(list, bad);
}

static const char *kind_of(const json_t *root)
{
    const char *model = type_of(json_object_get(root, "model"));
    const char *decoder = type_of(json_object_get(root, "decoder"));
    const bool bpe = model && !strcmp(model, "BPE");
    if (bpe && decoder && !strcmp(decoder, "ByteLevel"))
        return "byte-level BPE";
    return model;
}

/* What the text says, whether or not we can use it. valid: it is known to be JSON. */
static json_t *read_facts(const char *text, size_t length, bool valid)
{
    json_t *root = json_loadb(text, length, JSON_ALLOW_NUL, NULL);
    if (!root && valid)
        return NULL;
    const json_t *model = json_object_get(root, "model");
    const json_t *added = json_object_get(root, "added_tokens");
    json_t *facts =
        json_pack("{s:I, s:s?, s:I, s:I, s:I, s:o, s:o, s:o}", "bytes", (json_int_t)length, "kind",
                  kind_of(root), "vocabulary_entries",
                  (json_int_t)json_object_size(json_object_get(model, "vocab")), "merges",
                  (json_int_t)json_array_size(json_object_get(model, "merges")), "added_tokens",
                  (json_int_t)json_array_size(added), "normalizer",
                  types_of(json_object_get(root, "normalizer"), "normalizers"), "pre_tokenizer",
                  types_of(json_object_get(root, "pre_tokenizer"), "pretokenizers"),
                  "special_tokens", specials_of(added));
    json_decref(root);
    return facts;
}

static json_t *id_or_null(int32_t id)
{
    return id < 0 ? json_null() : json_integer(id);
}

/* t: NULL where it could not be opened. */
static json_t *describe_tokenizer(const char *text, size_t length, const dms_tokenizer *t)
{
    char crc[16] = "";
    if (t)
        snprintf(crc, sizeof(crc), "%08x", dms_tokenizer_crc(t));
    json_t *problem = t ? json_null() : dms_inspect_problem();
    json_t *facts = read_facts(text, length, t != NULL);
    const int bad =
        json_object_set_new(facts, "supported", json_boolean(t != NULL)) |
        json_object_set_new(facts, "problem", problem) |
        json_object_set_new(facts, "size", t ? json_integer(dms_tokenizer_size(t)) : json_null()) |
        json_object_set_new(facts, "crc32", t ? json_string(crc) : json_null()) |
        json_object_set_new(facts, "begin_of_text",
                            id_or_null(t ? dms_tokenizer_begin_of_text(t) : -1)) |
        json_object_set_new(facts, "end_of_text",
                            id_or_null(t ? dms_tokenizer_end_of_text(t) : -1));
    if (!bad)
        return facts;
    json_decref(facts);
    return NULL;
}

/* ---- turn format ---------------------------------------------------------------------------- */

static const char *format_name(dms_chat_format format)
{
    static const char *const names[] = {[DMS_CHAT_CHATML] = "ChatML",
                                        [DMS_CHAT_LLAMA3] = "Llama 3",
                                        [DMS_CHAT_DEEPSEEK] = "DeepSeek-R1"};
    return names[format];
}

static json_t *describe_chat(const char *chat_template, dms_tokenizer *t)
{
    dms_chat chat;
    const json_int_t bytes = (json_int_t)strlen(chat_template);
    const dms_status status =
        t ? dms_chat_recognise(&chat, t, chat_template)
          : dms_fail(DMS_ERR_FORMAT, "the tokenizer that it belongs to cannot be used");
    if (status == DMS_ERR_NOMEM)
        return NULL;
    if (status)
        return json_pack("{s:I, s:s, s:n, s:o}", "bytes", bytes, "format", "unknown", "system",
                         "problem", dms_inspect_problem());
    return json_pack("{s:I, s:s, s:s?, s:n}", "bytes", bytes, "format", format_name(chat.format),
                     "system", chat.system, "problem");
}

dms_status dms_describe_texts(json_t *out, const dms_source *s, const char *path)
{
    size_t length;
    dms_tokenizer *opened = NULL, *t = NULL;
    const char *text = dms_source_tokenizer(s, &length);
    const char *chat_template = dms_source_chat_template(s);
    const dms_status status = text ? dms_tokenizer_open(&opened, text, length, path) : DMS_OK;
    if (status == DMS_ERR_NOMEM)
        return status;
    t = status ? NULL : opened;
    const int bad =
        json_object_set_new(out, "tokenizer",
                            text ? describe_tokenizer(text, length, t) : json_null()) |
        json_object_set_new(out, "chat_template",
                            chat_template ? describe_chat(chat_template, t) : json_null());
    dms_tokenizer_close(t);
    return bad ? dms_fail(DMS_ERR_NOMEM, "no memory to describe %s", path) : DMS_OK;
}
