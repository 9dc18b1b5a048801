#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/files.h"
#include "checkpoints/huggingface.h"
#include "checkpoints/model_folder.h"
#include "checkpoints/safetensors.h"
#include "checkpoints/source_build.h"

/* 15 digits: a number such as 1e-5 prints as its author wrote it. */
enum { JSON_STYLE = JSON_INDENT(2) | JSON_REAL_PRECISION(15) };

static dms_status write_text(const char *folder, const char *name, const char *text, size_t length)
{
    char *path = dms_path_join(folder, name);
    if (!path)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a file name");
    const dms_status status = dms_file_write(path, text, length);
    free(path);
    return status;
}

static dms_status write_json(const char *folder, const char *name, const json_t *tree)
{
    char *text = tree ? json_dumps(tree, JSON_STYLE) : NULL;
    if (!text)
        return dms_fail(DMS_ERR_NOMEM, "no memory for the text of %s", name);
    const dms_status status = write_text(folder, name, text, strlen(text));
    free(text);
    return status;
}

/* The text of a token id, borrowed from the tokenizer's tree; NULL where it has none. */
static const char *token_text(const json_t *tokenizer, json_int_t id)
{
    const json_t *added = json_object_get(tokenizer, "added_tokens");
    json_t *vocab = json_object_get(json_object_get(tokenizer, "model"), "vocab"), *value;
    const char *text;
    for (size_t i = 0; i < json_array_size(added); i++) {
        const json_t *item = json_array_get(added, i);
        if (json_integer_value(json_object_get(item, "id")) == id)
            return json_string_value(json_object_get(item, "content"));
    }
    json_object_foreach(vocab, text, value)
    {
        if (json_is_integer(value) && json_integer_value(value) == id)
            return text;
    }
    return NULL;
}

/* tokenizer_config key `name` from config key `name`_id, which is a number or a list of numbers.
 * False without memory. */
static bool copy_token(json_t *out, const char *name, const dms_hf_model *model,
                       const json_t *tokenizer)
{
    char key[32];
    snprintf(key, sizeof(key), "%s_id", name);
    const json_t *id = json_object_get(model->config, key);
    if (json_is_array(id))
        id = json_array_get(id, 0);
    const char *text = json_is_integer(id) ? token_text(tokenizer, json_integer_value(id)) : NULL;
    return !text || !json_object_set_new(out, name, json_string(text));
}

/* tokenizer_config.json of a model that brought none. */
static dms_status make_tokenizer_config(const char *folder, const dms_hf_model *model,
                                        const json_t *tokenizer)
{
    json_t *out = json_pack("{s:s, s:b}", "tokenizer_class", "PreTrainedTokenizerFast",
                            "clean_up_tokenization_spaces", 0);
    json_t *longest = json_object_get(model->config, "max_position_embeddings");
    dms_status status = DMS_OK;
    if (!copy_token(out, "bos_token", model, tokenizer) ||
        !copy_token(out, "eos_token", model, tokenizer) ||
        !copy_token(out, "pad_token", model, tokenizer) ||
        (longest && json_object_set(out, "model_max_length", longest)))
        status = dms_fail(DMS_ERR_NOMEM, "no memory for tokenizer_config.json");
    if (!status && model->chat_template &&
        json_object_set_new(out, "chat_template", json_string(model->chat_template)))
        status = dms_fail(DMS_ERR_FORMAT, "the chat template is no UTF-8");
    if (!status)
        status = write_json(folder, "tokenizer_config.json", out);
    json_decref(out);
    return status;
}

static const char *carried(const dms_hf_model *model, const char *name)
{
    for (int i = 0; i < DMS_HF_CARRIED; i++)
        if (!strcmp(dms_hf_carried[i], name))
            return model->carried[i];
    return NULL;
}

static dms_status write_carried(const char *folder, const dms_hf_model *model)
{
    for (int i = 0; i < DMS_HF_CARRIED; i++)
        if (model->carried[i])
            DMS_TRY(write_text(folder, dms_hf_carried[i], model->carried[i],
                               strlen(model->carried[i])));
    /* A template of its own file stays one. */
    const char *config = carried(model, "tokenizer_config.json");
    if (!config || !model->chat_template)
        return DMS_OK;
    json_t *keys = json_loads(config, JSON_ALLOW_NUL, NULL);
    const bool inside = json_object_get(keys, "chat_template");
    json_decref(keys);
    return inside ? DMS_OK
                  : write_text(folder, "chat_template.jinja", model->chat_template,
                               strlen(model->chat_template));
}

static dms_status write_tokenizer(const char *folder, const dms_hf_model *model)
{
    json_error_t error;
    dms_status status = DMS_OK;
    json_t *tokenizer =
        json_loadb(model->tokenizer, model->tokenizer_length, JSON_ALLOW_NUL, &error);
    if (!json_is_object(tokenizer)) {
        json_decref(tokenizer);
        return dms_fail(DMS_ERR_FORMAT, "the tokenizer is no JSON object: line %d: %s", error.line,
                        error.text);
    }
    if (!carried(model, "tokenizer_config.json"))
        status = make_tokenizer_config(folder, model, tokenizer);
    if (!status)
        status = write_text(folder, "tokenizer.json", model->tokenizer, model->tokenizer_length);
    json_decref(tokenizer);
    return status;
}

/* generation_config.json: the token ids of the config. */
static dms_status make_generation(const char *folder, const dms_hf_model *model)
{
    static const char *const keys[] = {"bos_token_id", "eos_token_id", "pad_token_id"};
    json_t *out = json_object();
    bool complete = out != NULL;
    for (size_t i = 0; i < sizeof(keys) / sizeof(*keys); i++) {
        json_t *value = json_object_get(model->config, keys[i]);
        if (value && json_object_set(out, keys[i], value))
            complete = false;
    }
    const dms_status status = complete
                                  ? write_json(folder, "generation_config.json", out)
                                  : dms_fail(DMS_ERR_NOMEM, "no memory for generation_config.json");
    json_decref(out);
    return status;
}

static dms_status write_all(const char *folder, const dms_hf_model *model)
{
    DMS_TRY(write_json(folder, "config.json", model->config));
    DMS_TRY(write_carried(folder, model));
    if (model->tokenizer_model)
        DMS_TRY(write_text(folder, DMS_NOTE_SENTENCEPIECE, model->tokenizer_model,
                           model->tokenizer_model_length));
    if (!carried(model, "generation_config.json"))
        DMS_TRY(make_generation(folder, model));
    if (model->tokenizer)
        DMS_TRY(write_tokenizer(folder, model));
    DMS_TRY(dms_safetensors_write_shards(folder, &model->tensors, model->shard_bytes));
    return dms_folder_sync(folder);
}

/* Opens what was written and compares it with what should have been. */
static dms_status check_written(const char *folder, const dms_hf_model *model)
{
    dms_source *back = NULL;
    dms_status status = DMS_OK;
    char *wanted = json_dumps(model->config, JSON_STYLE), *found = NULL;
    DMS_TRY_OR(done, dms_source_open(&back, folder));
    found = json_dumps(back->config, JSON_STYLE);
    if (!wanted || !found)
        DMS_TRY_OR(done, dms_fail(DMS_ERR_NOMEM, "no memory to compare the config"));
    if (strcmp(wanted, found) != 0)
        DMS_TRY_OR(
            done, dms_fail(DMS_ERR_IO, "%s/config.json reads back otherwise than written", folder));
    DMS_TRY_OR(done, dms_source_compare(back, &model->tensors));
done:
    free(wanted);
    free(found);
    dms_source_close(back);
    return status;
}

dms_status dms_hf_write(const char *folder, const dms_hf_model *model)
{
    dms_status status;
    dms_model_folder f = DMS_MODEL_FOLDER_NONE;
    DMS_TRY_OR(done, dms_model_folder_begin(&f, folder, model->force));
    DMS_TRY_OR(done, write_all(f.made.path, model));
    DMS_TRY_OR(done, check_written(f.made.path, model));
    DMS_TRY_OR(done, dms_model_folder_commit(&f));
    if (model->removed) {
        *model->removed = f.removed;
        f.removed = NULL;
    }
done:
    dms_model_folder_abort(&f);
    return status;
}
