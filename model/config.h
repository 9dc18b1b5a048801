/* The numbers that describe a network, read from the keys of a Hugging Face config.json. */
#ifndef DMS_CONFIG_H
#define DMS_CONFIG_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "kernels/status.h"
#include "model/family.h"

enum { DMS_MAX_EOS = 8 };

/* Llama-3's scaling of rotary frequencies (Llama 3.1 model card; transformers
 * modeling_rope_utils). factor 0: none. */
typedef struct {
    double factor, low_freq_factor, high_freq_factor;
    int64_t original_positions;
} dms_rope_scaling;

/* What differs between families is a flag here, never a copy of the forward pass. */
typedef struct {
    char family[16]; /* model_type of dms_family (model/family.h) */
    dms_norm_kind norm;
    dms_position_kind positions;
    dms_ffn_kind ffn_kind;
    int layers;
    int heads, kv_heads;
    int head_dim;
    int64_t width; /* D */
    int64_t ffn;   /* F */
    int64_t vocab;
    int64_t max_positions;
    float norm_eps;
    double rope_theta;
    dms_rope_scaling rope_scaling;
    bool qkv_bias;       /* q, k, v projections have biases */
    bool o_bias;         /* so has the output projection */
    bool attention_bias; /* the key: then the adapter gate's projection has one too */
    bool qk_norm;        /* RMSNorm of each query and key head before RoPE */
    bool tied;           /* the output head is the embedding */
    int32_t eos[DMS_MAX_EOS];
    int n_eos;
    int32_t bos; /* -1: none */
} dms_config;

/* Errors: DMS_ERR_FORMAT names the key, its value and what was expected; families and options that
 * the forward pass does not know are refused, never approximated. */
dms_status dms_config_parse(dms_config *out, const json_t *keys);

/* Fails with DMS_ERR_FORMAT: "config key KEY is VALUE, expected EXPECTED"; value NULL: absent. */
dms_status dms_config_refuse(const char *key, const json_t *value, const char *expected);

/* True for any of the end-of-text tokens. */
bool dms_config_is_eos(const dms_config *c, int32_t token);

#endif
