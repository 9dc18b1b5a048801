#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/gguf_pre.h"
#include "checkpoints/gguf_write_meta.h"

/* ggml's kinds of tokens. */
enum { NORMAL = 1, CONTROL = 3, USER_DEFINED = 4, UNUSED = 5 };

/* The vocabulary by id. */
typedef struct {
    const char **texts; /* [vocab], borrowed from the tree; NULL: no token has this id */
    int32_t *kinds;
    int64_t vocab;
} token_list;

static dms_status set_token(token_list *list, const char *text, const json_t *id, int32_t kind)
{
    const json_int_t i = json_is_integer(id) ? json_integer_value(id) : -1;
    if (i < 0 || i >= list->vocab || !text)
        return dms_fail(DMS_ERR_ARG,
                        "the tokenizer gives token %.80s the id %lld, the model has %lld tokens",
                        text ? text : "without text", (long long)i, (long long)list->vocab);
    list->texts[i] = text;
    list->kinds[i] = kind;
    return DMS_OK;
}

static dms_status list_tokens(token_list *list, const json_t *tokenizer)
{
    json_t *vocab = json_object_get(json_object_get(tokenizer, "model"), "vocab"), *id;
    const json_t *added = json_object_get(tokenizer, "added_tokens");
    const char *text;
    list->texts = calloc((size_t)list->vocab, sizeof(*list->texts));
    list->kinds = calloc((size_t)list->vocab, sizeof(*list->kinds));
    if (!list->texts || !list->kinds)
        return dms_fail(DMS_ERR_NOMEM, "no memory for %lld tokens", (long long)list->vocab);
    json_object_foreach(vocab, text, id)
    {
        DMS_TRY(set_token(list, text, id, NORMAL));
    }
    for (size_t i = 0; i < json_array_size(added); i++) {
        const json_t *item = json_array_get(added, i);
        const bool special = json_is_true(json_object_get(item, "special"));
        DMS_TRY(set_token(list, json_string_value(json_object_get(item, "content")),
                          json_object_get(item, "id"), special ? CONTROL : USER_DEFINED));
    }
    return DMS_OK;
}

static void put_tokens(dms_gguf_out *out, const token_list *list)
{
    dms_gguf_key_array(out, "tokenizer.ggml.tokens", GGUF_STRING, (uint64_t)list->vocab);
    for (int64_t i = 0; i < list->vocab; i++) {
        char pad[32];
        snprintf(pad, sizeof(pad), "[PAD%lld]", (long long)i);
        const char *text = list->texts[i] ? list->texts[i] : pad;
        dms_gguf_put_string(out, text, strlen(text));
    }
    dms_gguf_key_array(out, "tokenizer.ggml.token_type", GGUF_I32, (uint64_t)list->vocab);
    for (int64_t i = 0; i < list->vocab; i++)
        dms_gguf_put_u32(out, (uint32_t)(list->texts[i] ? list->kinds[i] : UNUSED));
}

/* Each merge is "left right" or ["left", "right"]. */
static dms_status put_merges(dms_gguf_out *out, const json_t *tokenizer)
{
    const json_t *merges = json_object_get(json_object_get(tokenizer, "model"), "merges");
    dms_gguf_key_array(out, "tokenizer.ggml.merges", GGUF_STRING, json_array_size(merges));
    for (size_t i = 0; i < json_array_size(merges); i++) {
        const json_t *item = json_array_get(merges, i);
        const json_t *left = json_array_get(item, 0), *right = json_array_get(item, 1);
        if (json_is_string(item)) {
            dms_gguf_put_string(out, json_string_value(item), json_string_length(item));
            continue;
        }
        if (!json_is_string(left) || !json_is_string(right))
            return dms_fail(DMS_ERR_ARG, "the tokenizer's merge %zu is no pair of texts", i);
        dms_gguf_put_u64(out, json_string_length(left) + 1 + json_string_length(right));
        dms_gguf_put(out, json_string_value(left), json_string_length(left));
        dms_gguf_put(out, " ", 1);
        dms_gguf_put(out, json_string_value(right), json_string_length(right));
    }
    return DMS_OK;
}

/* The template of a post_processor, alone or in a sequence. */
static const json_t *template_of(const json_t *post)
{
    const char *type = json_string_value(json_object_get(post, "type"));
    const json_t *parts = json_object_get(post, "processors");
    const json_t *found = NULL;
    if (type && !strcmp(type, "TemplateProcessing"))
        return json_object_get(post, "single");
    for (size_t i = 0; !found && i < json_array_size(parts); i++) {
        const json_t *part = json_array_get(parts, i);
        type = json_string_value(json_object_get(part, "type"));
        if (type && !strcmp(type, "TemplateProcessing"))
            found = json_object_get(part, "single");
    }
    return found;
}

static void put_added(dms_gguf_out *out, const json_t *tokenizer)
{
    const json_t *items = template_of(json_object_get(tokenizer, "post_processor"));
    const size_t n = json_array_size(items);
    const json_t *first = json_array_get(items, 0), *last = n ? json_array_get(items, n - 1) : NULL;
    dms_gguf_key_bool(out, "tokenizer.ggml.add_bos_token", json_object_get(first, "SpecialToken"));
    dms_gguf_key_bool(out, "tokenizer.ggml.add_eos_token", json_object_get(last, "SpecialToken"));
}

static void put_id(dms_gguf_out *out, const char *key, const json_t *id, int64_t vocab)
{
    if (json_is_integer(id) && json_integer_value(id) >= 0 && json_integer_value(id) < vocab)
        dms_gguf_key_u32(out, key, json_integer_value(id));
}

/* GGUF has one token for the end of a text, one of a turn and one of a message; llama.cpp stops at
 * each. */
static void put_special(dms_gguf_out *out, const dms_gguf_sizes *z, const json_t *config)
{
    static const char *const ends[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                       "tokenizer.ggml.eom_token_id"};
    const json_t *eos = json_object_get(config, "eos_token_id");
    put_id(out, "tokenizer.ggml.bos_token_id", json_object_get(config, "bos_token_id"), z->vocab);
    put_id(out, "tokenizer.ggml.padding_token_id", json_object_get(config, "pad_token_id"),
           z->vocab);
    put_id(out, ends[0], eos, z->vocab);
    for (size_t i = 0; i < json_array_size(eos) && i < 3; i++)
        put_id(out, ends[i], json_array_get(eos, i), z->vocab);
}

static dms_status put_all(dms_gguf_out *out, const dms_gguf_sizes *z, const json_t *tokenizer)
{
    dms_status status;
    token_list list = {.vocab = z->vocab};
    const char *type =
        json_string_value(json_object_get(json_object_get(tokenizer, "model"), "type"));
    const dms_gguf_pre *pre;
    DMS_TRY(dms_gguf_pre_of(&pre, tokenizer));
    if (!type || strcmp(type, "BPE") != 0 || !pre)
        return dms_fail(DMS_ERR_ARG,
                        "the tokenizer has no name in GGUF (its pre_tokenizer and ignore_merges "
                        "are those of none of %s), and llama.cpp would split text otherwise",
                        dms_gguf_pre_names());
    dms_gguf_key_text(out, "tokenizer.ggml.model", "gpt2", 4);
    dms_gguf_key_text(out, "tokenizer.ggml.pre", pre->name, strlen(pre->name));
    DMS_TRY_OR(done, list_tokens(&list, tokenizer));
    put_tokens(out, &list);
    DMS_TRY_OR(done, put_merges(out, tokenizer));
    put_added(out, tokenizer);
done:
    free(list.texts);
    free(list.kinds);
    return status;
}

dms_status dms_gguf_put_tokenizer(dms_gguf_out *out, const dms_gguf_sizes *z,
                                  const dms_gguf_model *model)
{
    json_error_t error;
    put_special(out, z, model->config);
    if (model->chat_template)
        dms_gguf_key_text(out, "tokenizer.chat_template", model->chat_template,
                          strlen(model->chat_template));
    if (!model->tokenizer) {
        dms_gguf_key_text(out, "tokenizer.ggml.model", "none", 4);
        return DMS_OK;
    }
    json_t *tokenizer =
        json_loadb(model->tokenizer, model->tokenizer_length, JSON_ALLOW_NUL, &error);
    if (!json_is_object(tokenizer)) {
        json_decref(tokenizer);
        return dms_fail(DMS_ERR_FORMAT, "the tokenizer is no JSON object: line %d: %s", error.line,
                        error.text);
    }
    const dms_status status = put_all(out, z, tokenizer);
    json_decref(tokenizer);
    dms_gguf_key_text(out, "tokenizer.huggingface.json", model->tokenizer, model->tokenizer_length);
    return status;
}
