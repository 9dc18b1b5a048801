#include "model/family.h"

#include <string.h>

static const dms_family_keys common_keys = {.width = "hidden_size",
                                            .layers = "num_hidden_layers",
                                            .heads = "num_attention_heads",
                                            .ffn = "intermediate_size",
                                            .positions = "max_position_embeddings",
                                            .norm_eps = "rms_norm_eps",
                                            .activation = "hidden_act"};
static const dms_family_keys gpt2_keys = {.width = "n_embd",
                                          .layers = "n_layer",
                                          .heads = "n_head",
                                          .ffn = "n_inner",
                                          .positions = "n_positions",
                                          .norm_eps = "layer_norm_epsilon",
                                          .activation = "activation_function"};

#define COMMON_DEFAULTS \
    .default_positions = 2048, .default_norm_eps = 1e-6, .fixed = {"mlp_bias", "use_sliding_window"}

static const dms_family families[] = {
    {.model_type = "llama",
     .models = "Llama 2, 3, 3.1, 3.2; SmolLM2; DeepSeek-R1-Distill-Llama",
     .keys = &common_keys,
     .activation = "silu",
     .norm = DMS_NORM_RMS,
     .positions = DMS_POSITIONS_ROPE,
     .ffn = DMS_FFN_SWIGLU,
     .qkv_bias = DMS_BIAS_BY_KEY,
     .o_bias = DMS_BIAS_BY_KEY,
     COMMON_DEFAULTS},
    {.model_type = "qwen2",
     .models = "Qwen2, Qwen2.5; DeepSeek-R1-Distill-Qwen",
     .keys = &common_keys,
     .activation = "silu",
     .norm = DMS_NORM_RMS,
     .positions = DMS_POSITIONS_ROPE,
     .ffn = DMS_FFN_SWIGLU,
     .qkv_bias = DMS_BIAS_ALWAYS,
     COMMON_DEFAULTS},
    {.model_type = "qwen3",
     .models = "Qwen3",
     .keys = &common_keys,
     .activation = "silu",
     .norm = DMS_NORM_RMS,
     .positions = DMS_POSITIONS_ROPE,
     .ffn = DMS_FFN_SWIGLU,
     .qkv_bias = DMS_BIAS_BY_KEY,
     .o_bias = DMS_BIAS_BY_KEY,
     .qk_norm = true,
     COMMON_DEFAULTS},
    {.model_type = "gpt2",
     .models = "GPT-2 (small to XL), DistilGPT-2",
     .keys = &gpt2_keys,
     .activation = "gelu_new",
     .norm = DMS_NORM_LAYER,
     .positions = DMS_POSITIONS_LEARNED,
     .ffn = DMS_FFN_GELU,
     .qkv_bias = DMS_BIAS_ALWAYS,
     .o_bias = DMS_BIAS_ALWAYS,
     .tied_by_default = true,
     .default_positions = 1024,
     .default_ffn = 4,
     .default_norm_eps = 1e-5,
     .fixed = {"!scale_attn_weights", "scale_attn_by_inverse_layer_idx", "add_cross_attention"}},
};

const dms_family *dms_family_at(int i)
{
    const int n = (int)(sizeof(families) / sizeof(*families));
    return i >= 0 && i < n ? &families[i] : NULL;
}

const dms_family *dms_family_find(const char *model_type)
{
    const dms_family *f;
    for (int i = 0; model_type && (f = dms_family_at(i)); i++)
        if (!strcmp(f->model_type, model_type))
            return f;
    return NULL;
}

const char *dms_norm_name(dms_norm_kind kind)
{
    static const char *const names[] = {[DMS_NORM_RMS] = "RMSNorm", [DMS_NORM_LAYER] = "LayerNorm"};
    return names[kind];
}

const char *dms_position_name(dms_position_kind kind)
{
    static const char *const names[] = {
        [DMS_POSITIONS_ROPE] = "RoPE", [DMS_POSITIONS_LEARNED] = "learned"};
    return names[kind];
}

const char *dms_ffn_name(dms_ffn_kind kind)
{
    static const char *const names[] = {[DMS_FFN_SWIGLU] = "SwiGLU", [DMS_FFN_GELU] = "GELU"};
    return names[kind];
}

const char *dms_bias_name(dms_bias_rule rule)
{
    static const char *const names[] = {[DMS_BIAS_NEVER] = "never",
                                        [DMS_BIAS_BY_KEY] = "attention_bias",
                                        [DMS_BIAS_ALWAYS] = "always"};
    return names[rule];
}
