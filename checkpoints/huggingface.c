#include "checkpoints/huggingface.h"

#include <stdlib.h>
#include <string.h>

#include "checkpoints/layout.h"
#include "checkpoints/model_type.h"
#include "checkpoints/safetensors_read.h"

const char *const dms_hf_carried[DMS_HF_CARRIED] = {"generation_config.json",
                                                    "tokenizer_config.json",
                                                    "special_tokens_map.json",
                                                    "added_tokens.json",
                                                    "vocab.json",
                                                    "merges.txt"};

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
        status = dms_source_take_text(s, as, &text, length);
    free(text);
    free(path);
    return status;
}

/* The template in tokenizer_config.json: a text, or a list of named ones, of which "default". */
static const json_t *template_of(const json_t *config)
{
    const json_t *value = json_object_get(config, "chat_template");
    for (size_t i = 0; i < json_array_size(value); i++) {
        const json_t *item = json_array_get(value, i);
        const char *name = json_string_value(json_object_get(item, "name"));
        if (name && !strcmp(name, "default"))
            return json_object_get(item, "template");
    }
    return value;
}

static dms_status keep_texts(dms_source *s, const char *folder)
{
    dms_status status;
    json_t *config = NULL;
    DMS_TRY(keep_text(s, folder, "tokenizer.json", DMS_NOTE_TOKENIZER));
    for (int i = 0; i < DMS_HF_CARRIED; i++)
        DMS_TRY(keep_text(s, folder, dms_hf_carried[i], dms_hf_carried[i]));
    DMS_TRY(keep_text(s, folder, DMS_NOTE_SENTENCEPIECE, DMS_NOTE_SENTENCEPIECE));
    DMS_TRY(keep_text(s, folder, "chat_template.jinja", DMS_NOTE_CHAT_TEMPLATE));
    DMS_TRY_OR(done, read_json(&config, folder, "tokenizer_config.json"));
    const json_t *template = template_of(config);
    if (json_is_string(template) && !dms_source_chat_template(s))
        DMS_TRY_OR(done, dms_source_add_text(s, DMS_NOTE_CHAT_TEMPLATE, json_string_value(template),
                                             json_string_length(template)));
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

/* config key `key` from the first of the names that FastDMS looks for; it falls back to
 * `fallback`. */
static dms_status take_number(json_t *config, const char *key, const json_t *from,
                              const char *const names[3], double fallback)
{
    json_t *value = NULL;
    for (int i = 0; i < 3 && names[i] && !value; i++)
        value = json_object_get(from, names[i]);
    if (value && !json_is_number(value))
        return dms_fail(DMS_ERR_FORMAT, "dms_metadata.json: %s is no number", key);
    const int bad = value ? json_object_set(config, key, value)
                          : json_object_set_new(config, key, json_real(fallback));
    return bad ? dms_fail(DMS_ERR_NOMEM, "no memory for the config's keys") : DMS_OK;
}

/* A folder of FastDMS says what its gate is in dms_metadata.json (fastdms/engine/dms.py of
 * shisa-ai/FastDMS): the neuron gate of the config's keys, but each decision governs its own token.
 */
static dms_status read_fastdms(dms_source *s, const char *folder)
{
    static const char *const window[3] = {"window_size", "dms_window_size"};
    static const char *const scale[3] = {"alpha_scale", "dms_alpha_scale"};
    static const char *const offset[3] = {"alpha_offset", "dms_alpha_offset",
                                          "dms_initial_alpha_offset"};
    dms_status status = DMS_OK;
    json_t *file = NULL;
    DMS_TRY(read_json(&file, folder, "dms_metadata.json"));
    if (!file)
        return DMS_OK;
    const json_t *inner = json_object_get(file, "config"), *from = inner ? inner : file;
    DMS_TRY_OR(done, take_number(s->config, "dms_window_size", from, window, 256));
    DMS_TRY_OR(done, take_number(s->config, "dms_alpha_scale", from, scale, 100));
    DMS_TRY_OR(done, take_number(s->config, "dms_initial_alpha_offset", from, offset, 5));
    if (json_object_set_new(s->config, "dms_shift", json_integer(0)))
        DMS_TRY_OR(done, dms_fail(DMS_ERR_NOMEM, "no memory for the config's keys"));
done:
    json_decref(file);
    return status;
}

/* Where the head is tied, a lm_head in the file can only say the same. transformers 5 would run the
 * two as different; the older ones, and we, would ignore one: refused. */
static dms_status check_tied_head(const dms_source *s, const char *folder)
{
    static const char ours[] = "model.embed_tokens.weight";
    const dms_source_tensor *head = dms_source_entry(s, "lm_head.weight");
    const dms_source_tensor *embedding = dms_source_entry(s, ours);
    dms_layout_place place;
    if (!embedding && dms_layout_find(&place, s->config, ours)) {
        embedding = dms_source_entry(s, place.name);
        embedding = embedding ? embedding : dms_source_entry(s, place.bare);
    }
    if (!head || !embedding || !dms_model_type_is_tied(s->config) ||
        (head->bytes == embedding->bytes && !memcmp(head->data, embedding->data, head->bytes)))
        return DMS_OK;
    return dms_fail(DMS_ERR_FORMAT,
                    "%s has a lm_head.weight that differs from %s, expected the same as "
                    "tie_word_embeddings is true; set it to false in config.json to use both",
                    folder, embedding->info.name);
}

/* The layer's number in a tensor's name; -1: none. */
static int layer_of(const char *name)
{
    static const char *const before[] = {"model.layers.", "transformer.h.", "h."};
    for (size_t i = 0; i < sizeof(before) / sizeof(*before); i++) {
        const size_t n = strlen(before[i]);
        if (!strncmp(name, before[i], n) && name[n] >= '0' && name[n] <= '9')
            return (int)strtol(name + n, NULL, 10);
    }
    return -1;
}

/* A file with more layers than the config says is another model's. */
static dms_status check_layers(const dms_source *s, const char *folder)
{
    const char *key = "num_hidden_layers";
    const json_t *layers = json_object_get(s->config, key);
    if (!layers)
        layers = json_object_get(s->config, key = "n_layer");
    for (int64_t i = 0; json_is_integer(layers) && i < s->n_tensors; i++)
        if (layer_of(s->tensors[i].info.name) >= json_integer_value(layers))
            return dms_fail(DMS_ERR_FORMAT,
                            "%s: config key %s is %lld, but the weights have tensor %s, expected "
                            "no such layer; set the key to the number of layers in the weights",
                            folder, key, (long long)json_integer_value(layers),
                            s->tensors[i].info.name);
    return DMS_OK;
}

dms_status dms_hf_fill(dms_source *s, const char *folder)
{
    s->format = "huggingface";
    DMS_TRY(read_json(&s->config, folder, "config.json"));
    if (!s->config)
        return dms_fail(DMS_ERR_IO, "%s has no config.json: give a Hugging Face model folder",
                        folder);
    DMS_TRY(read_fastdms(s, folder));
    DMS_TRY(keep_texts(s, folder));
    DMS_TRY(add_weights(s, folder));
    DMS_TRY(check_layers(s, folder));
    return check_tied_head(s, folder);
}
