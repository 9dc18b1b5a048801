#include "checkpoints/gguf_write_meta.h"

#include <stdio.h>
#include <string.h>

#include "checkpoints/model_type.h"

static const json_t *rope_keys(const json_t *config)
{
    const json_t *both = json_object_get(config, "rope_parameters");
    return json_is_object(both) ? both : json_object_get(config, "rope_scaling");
}

static const char *rope_type(const json_t *config)
{
    const json_t *keys = rope_keys(config);
    const char *type = json_string_value(json_object_get(keys, "rope_type"));
    if (!type)
        type = json_string_value(json_object_get(keys, "type"));
    return type ? type : "default";
}

static double real(const json_t *keys, const char *key, double fallback)
{
    const json_t *v = json_object_get(keys, key);
    return json_is_number(v) ? json_number_value(v) : fallback;
}

static double read_theta(const json_t *config)
{
    const double theta = real(config, "rope_theta", 10000);
    return real(json_object_get(config, "rope_parameters"), "rope_theta", theta);
}

/* A whole number of the config; `fallback` 0: required. */
static dms_status get_int(int64_t *out, const json_t *config, const char *key, int64_t fallback)
{
    const json_t *v = json_object_get(config, key);
    const bool absent = !v || json_is_null(v);
    *out = absent ? fallback : json_integer_value(v);
    if (*out < 1 || *out > INT32_MAX)
        return dms_fail(DMS_ERR_ARG, "config key %s is %s, expected a positive whole number", key,
                        absent ? "absent" : "something else");
    return DMS_OK;
}

static dms_status read_rope(dms_gguf_sizes *z, const json_t *config)
{
    const char *type = rope_type(config);
    const json_t *keys = rope_keys(config);
    z->theta = read_theta(config);
    z->llama3 = !strcmp(type, "llama3");
    z->rope = (dms_gguf_llama3){.factor = real(keys, "factor", 8),
                                .low = real(keys, "low_freq_factor", 1),
                                .high = real(keys, "high_freq_factor", 4),
                                .original = real(keys, "original_max_position_embeddings", 8192)};
    if (!z->llama3 && strcmp(type, "default") && strcmp(type, "linear") && strcmp(type, "yarn"))
        return dms_fail(DMS_ERR_ARG,
                        "config key rope_type is \"%.40s\", GGUF has default, linear, yarn and "
                        "llama3",
                        type);
    return DMS_OK;
}

static dms_status read_gate(dms_gguf_sizes *z, const json_t *config)
{
    z->neuron = dms_model_type_borrows(config);
    z->adapter = !z->neuron && dms_model_type_has_gate(config);
    if (z->neuron && !strcmp(z->family, "qwen3"))
        return dms_fail(DMS_ERR_ARG,
                        "a neuron gate of family qwen3 has no dense form: q_norm sees the borrowed "
                        "row, so zeros there change the other channels; export it as hf");
    return DMS_OK;
}

static dms_status read_sizes(dms_gguf_sizes *z, const json_t *config)
{
    const dms_model_type *t = dms_model_type_find(z->family);
    DMS_TRY(get_int(&z->width, config, t->width, 0));
    DMS_TRY(get_int(&z->layers, config, t->layers, 0));
    DMS_TRY(get_int(&z->heads, config, t->heads, 0));
    DMS_TRY(get_int(&z->vocab, config, "vocab_size", 0));
    z->groups = z->heads;
    z->head_dim = z->width / z->heads;
    if (t->rotary) {
        DMS_TRY(get_int(&z->groups, config, "num_key_value_heads", z->heads));
        DMS_TRY(get_int(&z->head_dim, config, "head_dim", z->head_dim));
    }
    if (z->heads % z->groups || z->head_dim % 2)
        return dms_fail(DMS_ERR_ARG,
                        "config: %lld heads of width %lld do not split into %lld groups of even "
                        "heads",
                        (long long)z->heads, (long long)z->head_dim, (long long)z->groups);
    return DMS_OK;
}

dms_status dms_gguf_sizes_read(dms_gguf_sizes *z, const json_t *config)
{
    char known[128];
    const dms_model_type *t = dms_model_type_of(config);
    const char *type = json_string_value(json_object_get(config, "model_type"));
    *z = (dms_gguf_sizes){.family = t ? t->name : NULL};
    if (!t)
        return dms_fail(DMS_ERR_ARG, "config key model_type is \"%.40s\", GGUF is written for %s",
                        type ? type : "", dms_model_type_list(known, "and"));
    DMS_TRY(read_sizes(z, config));
    DMS_TRY(read_rope(z, config));
    return read_gate(z, config);
}

static const char *full_key(char key[96], const dms_gguf_sizes *z, const char *name)
{
    snprintf(key, 96, "%s.%s", z->family, name);
    return key;
}

static void put_rope(dms_gguf_out *out, const dms_gguf_sizes *z, const json_t *config)
{
    char key[96];
    const json_t *keys = rope_keys(config);
    const char *type = rope_type(config);
    dms_gguf_key_u32(out, full_key(key, z, "rope.dimension_count"), z->head_dim);
    dms_gguf_key_f32(out, full_key(key, z, "rope.freq_base"), z->theta);
    if (z->llama3) { /* the tensor rope_freqs says it to llama.cpp; these keys are ours */
        dms_gguf_key_f64(out, full_key(key, z, "rope.llama3.factor"), z->rope.factor);
        dms_gguf_key_f64(out, full_key(key, z, "rope.llama3.low_freq_factor"), z->rope.low);
        dms_gguf_key_f64(out, full_key(key, z, "rope.llama3.high_freq_factor"), z->rope.high);
        dms_gguf_key_f64(out, full_key(key, z, "rope.llama3.original_context"), z->rope.original);
    } else if (strcmp(type, "default") != 0) {
        const int64_t original = (int64_t)real(keys, "original_max_position_embeddings", 0);
        dms_gguf_key_text(out, full_key(key, z, "rope.scaling.type"), type, strlen(type));
        dms_gguf_key_f32(out, full_key(key, z, "rope.scaling.factor"), real(keys, "factor", 1));
        if (original > 0)
            dms_gguf_key_u32(out, full_key(key, z, "rope.scaling.original_context_length"),
                             original);
    }
}

static dms_status put_sizes(dms_gguf_out *out, const dms_gguf_sizes *z, const json_t *config)
{
    char key[96];
    int64_t ffn, positions;
    const dms_model_type *t = dms_model_type_find(z->family);
    DMS_TRY(get_int(&ffn, config, t->ffn, t->default_ffn * z->width));
    DMS_TRY(get_int(&positions, config, t->positions, t->default_positions));
    dms_gguf_key_u32(out, full_key(key, z, "block_count"), z->layers);
    dms_gguf_key_u32(out, full_key(key, z, "context_length"), positions);
    dms_gguf_key_u32(out, full_key(key, z, "embedding_length"), z->width);
    dms_gguf_key_u32(out, full_key(key, z, "feed_forward_length"), ffn);
    dms_gguf_key_u32(out, full_key(key, z, "attention.head_count"), z->heads);
    dms_gguf_key_u32(out, full_key(key, z, "vocab_size"), z->vocab);
    if (!t->rotary) {
        dms_gguf_key_f32(out, full_key(key, z, "attention.layer_norm_epsilon"),
                         real(config, t->norm_eps, t->default_norm_eps));
        return DMS_OK;
    }
    dms_gguf_key_u32(out, full_key(key, z, "attention.head_count_kv"), z->groups);
    dms_gguf_key_u32(out, full_key(key, z, "attention.key_length"), z->head_dim);
    dms_gguf_key_u32(out, full_key(key, z, "attention.value_length"), z->head_dim);
    dms_gguf_key_f32(out, full_key(key, z, "attention.layer_norm_rms_epsilon"),
                     real(config, t->norm_eps, t->default_norm_eps));
    put_rope(out, z, config);
    return DMS_OK;
}

/* dms_NAME of the config is dms.NAME: whole numbers, numbers, truths and texts. */
static dms_status put_gate_keys(dms_gguf_out *out, const json_t *config)
{
    const char *name;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)config, name, v)
    {
        char key[64];
        if (strncmp(name, "dms_", 4) != 0 || json_is_null(v))
            continue;
        if (strlen(name) >= sizeof(key) || json_is_object(v) || json_is_array(v))
            return dms_fail(DMS_ERR_ARG, "config key %.80s has no form in GGUF's metadata", name);
        snprintf(key, sizeof(key), "dms.%s", name + 4);
        if (json_is_integer(v))
            dms_gguf_key_i64(out, key, json_integer_value(v));
        else if (json_is_real(v))
            dms_gguf_key_f64(out, key, json_real_value(v));
        else if (json_is_boolean(v))
            dms_gguf_key_bool(out, key, json_is_true(v));
        else
            dms_gguf_key_text(out, key, json_string_value(v), json_string_length(v));
    }
    return DMS_OK;
}

dms_status dms_gguf_put_config(dms_gguf_out *out, const dms_gguf_sizes *z,
                               const dms_gguf_model *model)
{
    /* llama.cpp's numbers of whole files (llama.h, llama_ftype). */
    const uint32_t file_type = model->type == DMS_FILE_F32    ? 0
                               : model->type == DMS_FILE_F16  ? 1
                               : model->type == DMS_FILE_Q8_0 ? 7
                                                              : 32;
    dms_gguf_key_text(out, "general.architecture", z->family, strlen(z->family));
    dms_gguf_key_text(out, "general.name", model->name, strlen(model->name));
    dms_gguf_key_u32(out, "general.file_type", file_type);
    dms_gguf_key_u32(out, "general.quantization_version", 2);
    DMS_TRY(put_sizes(out, z, model->config));
    return put_gate_keys(out, model->config);
}
