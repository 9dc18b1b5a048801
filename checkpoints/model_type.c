#include "checkpoints/model_type.h"

#include <stdio.h>
#include <string.h>

#define COMMON                                                                           \
    .class_end = "ForCausalLM", .width = "hidden_size", .layers = "num_hidden_layers",   \
    .heads = "num_attention_heads", .ffn = "intermediate_size",                          \
    .positions = "max_position_embeddings", .norm_eps = "rms_norm_eps",                  \
    .activation_key = "hidden_act", .activation = "silu", .prefix = "model.",            \
    .in_layers = "layers.", .attention = "self_attn", .query = "q_proj", .rotary = true, \
    .default_positions = 2048, .default_norm_eps = 1e-6

static const dms_model_type types[] = {
    {.name = "llama", .class_begin = "Llama", .gguf_permuted = true, .bias_by_key = true, COMMON},
    {.name = "qwen2", .class_begin = "Qwen2", COMMON},
    {.name = "qwen3", .class_begin = "Qwen3", .bias_by_key = true, COMMON},
    {.name = "gpt2",
     .class_begin = "GPT2",
     .class_end = "LMHeadModel",
     .width = "n_embd",
     .layers = "n_layer",
     .heads = "n_head",
     .ffn = "n_inner",
     .positions = "n_positions",
     .norm_eps = "layer_norm_epsilon",
     .activation_key = "activation_function",
     .activation = "gelu_new",
     .prefix = "transformer.",
     .in_layers = "h.",
     .attention = "attn",
     .query = "c_attn",
     .default_ffn = 4,
     .default_positions = 1024,
     .default_norm_eps = 1e-5,
     .tied_by_default = true}};

const dms_model_type *dms_model_type_at(int i)
{
    const int n = (int)(sizeof(types) / sizeof(*types));
    return i >= 0 && i < n ? &types[i] : NULL;
}

const dms_model_type *dms_model_type_find(const char *name)
{
    const dms_model_type *t;
    for (int i = 0; name && (t = dms_model_type_at(i)); i++)
        if (!strcmp(t->name, name))
            return t;
    return NULL;
}

const dms_model_type *dms_model_type_of(const json_t *config)
{
    return dms_model_type_find(json_string_value(json_object_get(config, "model_type")));
}

const char *dms_model_type_list(char text[128], const char *before_last)
{
    int n = snprintf(text, 128, "%s", types[0].name);
    const dms_model_type *t;
    for (int i = 1; (t = dms_model_type_at(i)) && n < 128; i++) {
        const char *word = dms_model_type_at(i + 1) ? "" : before_last;
        n += snprintf(text + n, (size_t)(128 - n), "%s%s %s", *word ? " " : ",", word, t->name);
    }
    return text;
}

bool dms_model_type_is_tied(const json_t *config)
{
    const dms_model_type *t = dms_model_type_of(config);
    const json_t *key = json_object_get(config, "tie_word_embeddings");
    return json_is_true(key) || ((!key || json_is_null(key)) && t && t->tied_by_default);
}

bool dms_model_type_has_gate(const json_t *config)
{
    static const char *const any[] = {"dms_window_size", "dms_alpha_scale",
                                      "dms_initial_alpha_offset", "dms_separate_alpha"};
    for (size_t i = 0; i < sizeof(any) / sizeof(*any); i++) {
        const json_t *v = json_object_get(config, any[i]);
        if (v && !json_is_null(v))
            return true;
    }
    return false;
}

bool dms_model_type_borrows(const json_t *config)
{
    return dms_model_type_has_gate(config) &&
           !json_is_true(json_object_get(config, "dms_separate_alpha"));
}

/* A whole number from 1 to 2^31 - 1, or `fallback`. */
static int64_t size_of(const json_t *config, const char *key, int64_t fallback)
{
    const json_int_t n = json_integer_value(json_object_get(config, key));
    return n >= 1 && n <= INT32_MAX ? n : fallback;
}

bool dms_model_type_heads(dms_model_heads *out, const json_t *config)
{
    const dms_model_type *t = dms_model_type_of(config);
    if (!t)
        return false;
    out->width = size_of(config, t->width, 0);
    out->heads = size_of(config, t->heads, 0);
    if (!out->heads)
        return false;
    out->groups = t->rotary ? size_of(config, "num_key_value_heads", out->heads) : out->heads;
    out->head_dim = out->width / out->heads;
    if (t->rotary)
        out->head_dim = size_of(config, "head_dim", out->head_dim);
    return out->head_dim > 0 && out->heads % out->groups == 0;
}
