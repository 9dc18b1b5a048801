#include "checkpoints/huggingface.h"

#include <stdlib.h>
#include <string.h>

#include "checkpoints/safetensors_read.h"

/* Parses folder/name; *out stays NULL where the file is missing. */
static dms_status read_json(json_t **out, const char *folder, const char *name)
{
    json_error_t error;
    char *text = NULL, *path = dms_path_join(folder, name);
    size_t length = 0;
    dms_status status = DMS_OK;
    if (!path)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a file name");
    DMS_TRY_OR(done, dms_text_read(&text, &length, path));
    if (!text)
        goto done;
    json_t *parsed = json_loadb(text, length, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &error);
    if (json_is_object(parsed)) {
        *out = parsed;
        goto done;
    }
    json_decref(parsed);
    status =
        dms_fail(DMS_ERR_FORMAT, "%s is no JSON object: line %d: %s", path, error.line, error.text);
done:
    free(text);
    free(path);
    return status;
}

/* Keeps folder/name, where it exists, under the name `as`. */
static dms_status keep_text(dms_source *s, const char *folder, const char *name, const char *as)
{
    size_t length = 0;
    char *text = NULL, *path = dms_path_join(folder, name);
    if (!path)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a file name");
    dms_status status = dms_text_read(&text, &length, path);
    if (!status && text)
        status = dms_source_add_text(s, as, text, length);
    free(text);
    free(path);
    return status;
}

/* The template in tokenizer_config.json: a text, or a list of named ones, of which "default". */
static const char *template_of(const json_t *config)
{
    const json_t *value = json_object_get(config, "chat_template");
    for (size_t i = 0; i < json_array_size(value); i++) {
        const json_t *item = json_array_get(value, i);
        const char *name = json_string_value(json_object_get(item, "name"));
        if (name && !strcmp(name, "default"))
            return json_string_value(json_object_get(item, "template"));
    }
    return json_string_value(value);
}

static dms_status keep_texts(dms_source *s, const char *folder)
{
    dms_status status;
    json_t *config = NULL;
    DMS_TRY(keep_text(s, folder, "tokenizer.json", DMS_NOTE_TOKENIZER));
    DMS_TRY(keep_text(s, folder, "generation_config.json", "generation_config.json"));
    DMS_TRY(keep_text(s, folder, "tokenizer_config.json", "tokenizer_config.json"));
    DMS_TRY(keep_text(s, folder, "chat_template.jinja", DMS_NOTE_CHAT_TEMPLATE));
    DMS_TRY_OR(done, read_json(&config, folder, "tokenizer_config.json"));
    const char *template = template_of(config);
    if (template && !dms_source_chat_template(s))
        DMS_TRY_OR(done,
                   dms_source_add_text(s, DMS_NOTE_CHAT_TEMPLATE, template, strlen(template)));
done:
    json_decref(config);
    return status;
}

static dms_status add_file(dms_source *s, const char *folder, const char *name)
{
    char *path = dms_path_join(folder, name);
    if (!path)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a file name");
    const dms_status status = dms_safetensors_add(s, NULL, path);
    free(path);
    return status;
}

/* A shard's name must stay inside the folder. */
static bool plain_name(const char *name)
{
    return name && *name && *name != '.' && !strchr(name, '/');
}

static dms_status add_shards(dms_source *s, const char *folder, json_t *map)
{
    const char *tensor;
    json_t *value;
    dms_status status = DMS_OK;
    json_t *seen = json_object();
    json_object_foreach(map, tensor, value)
    {
        const char *name = json_string_value(value);
        if (!plain_name(name))
            DMS_TRY_OR(done, dms_fail(DMS_ERR_FORMAT,
                                      "%s: the index gives tensor %.200s no file of "
                                      "this folder",
                                      folder, tensor));
        if (!json_object_get(seen, name))
            DMS_TRY_OR(done, add_file(s, folder, name));
        if (json_object_set_new(seen, name, json_true()))
            DMS_TRY_OR(done, dms_fail(DMS_ERR_NOMEM, "no memory for a list of shards"));
        if (!dms_source_find(s, tensor))
            DMS_TRY_OR(done, dms_fail(DMS_ERR_FORMAT,
                                      "%s: tensor %.200s is in the index but not in "
                                      "%.200s",
                                      folder, tensor, name));
    }
done:
    json_decref(seen);
    return status;
}

static dms_status add_weights(dms_source *s, const char *folder)
{
    json_t *index = NULL;
    char *single = dms_path_join(folder, "model.safetensors");
    if (!single)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a file name");
    const bool exists = dms_path_exists(single);
    free(single);
    if (exists)
        return add_file(s, folder, "model.safetensors");
    DMS_TRY(read_json(&index, folder, "model.safetensors.index.json"));
    if (!index)
        return dms_fail(DMS_ERR_IO,
                        "%s has neither model.safetensors nor model.safetensors.index.json",
                        folder);
    json_t *map = json_object_get(index, "weight_map");
    const dms_status status =
        json_object_size(map)
            ? add_shards(s, folder, map)
            : dms_fail(DMS_ERR_FORMAT, "%s/model.safetensors.index.json has no weight_map", folder);
    json_decref(index);
    return status;
}

dms_status dms_hf_fill(dms_source *s, const char *folder)
{
    s->format = "huggingface";
    DMS_TRY(read_json(&s->config, folder, "config.json"));
    if (!s->config)
        return dms_fail(DMS_ERR_IO, "%s has no config.json: give a Hugging Face model folder",
                        folder);
    DMS_TRY(keep_texts(s, folder));
    DMS_TRY(add_weights(s, folder));
    return DMS_OK;
}
