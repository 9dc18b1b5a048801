/* The families of networks as one table of facts: what the one forward pass does for each. */
#ifndef DMS_FAMILY_H
#define DMS_FAMILY_H

#include <stdbool.h>

/* LayerNorm: with a bias. */
typedef enum { DMS_NORM_RMS, DMS_NORM_LAYER } dms_norm_kind;
/* Learned: an embedding of the position is added to the token's, and nothing is rotated. */
typedef enum { DMS_POSITIONS_ROPE, DMS_POSITIONS_LEARNED } dms_position_kind;
/* GELU: down(gelu(up(x))), with biases. */
typedef enum { DMS_FFN_SWIGLU, DMS_FFN_GELU } dms_ffn_kind;
/* Where an attention projection has a bias. By key: where the config key attention_bias is true. */
typedef enum { DMS_BIAS_NEVER, DMS_BIAS_BY_KEY, DMS_BIAS_ALWAYS } dms_bias_rule;

/* How the keys of config.json are called. */
typedef struct {
    const char *width, *layers, *heads, *ffn, *positions, *norm_eps, *activation;
} dms_family_keys;

/* Sources: configuration_NAME.py and modeling_NAME.py of transformers 5, NAME the model type. */
typedef struct {
    const char *model_type; /* key of config.json; shorter than dms_config.family */
    const char *models;     /* what people know it by */
    const dms_family_keys *keys;
    const char *activation; /* the value of the activation's key it is made for */
    dms_norm_kind norm;
    dms_position_kind positions;
    dms_ffn_kind ffn;
    dms_bias_rule qkv_bias, o_bias;
    bool qk_norm;            /* norm of each query and key head before the positions */
    bool tied_by_default;    /* without key tie_word_embeddings the output head is the embedding */
    int default_positions;   /* without the key of the positions */
    int default_ffn;         /* widths of the model, without the key of that width; 0: required */
    double default_norm_eps; /* without the key */
    const char *fixed[4];    /* keys that must be absent or false; with a leading !: or true */
} dms_family;

/* The i-th family, NULL beyond the last. */
const dms_family *dms_family_at(int i);
/* By model_type; NULL for others and for NULL. */
const dms_family *dms_family_find(const char *model_type);

/* "RMSNorm", "LayerNorm"; "RoPE", "learned"; "SwiGLU", "GELU"; "never", "attention_bias", "always".
 */
const char *dms_norm_name(dms_norm_kind kind);
const char *dms_position_name(dms_position_kind kind);
const char *dms_ffn_name(dms_ffn_kind kind);
const char *dms_bias_name(dms_bias_rule rule);

#endif
