/* The families as files name them: one row a model type, for every reader and writer here. */
#ifndef DMS_MODEL_TYPE_H
#define DMS_MODEL_TYPE_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

/* What a family computes is model/family.h's; this folder cannot include that, nor the other way
 * round (tests/test_model_type.c holds the two together). Sources: configuration_NAME.py and
 * modeling_NAME.py of transformers; GGUF's general.architecture is the same word. */
typedef struct {
    const char *name;           /* model_type of config.json */
    const char *class_begin;    /* of its classes in transformers: LlamaConfig, ... */
    const char *class_end;      /* LlamaForCausalLM, GPT2LMHeadModel */
    const char *width, *layers; /* keys of config.json */
    const char *heads, *ffn;    /*  */
    const char *positions, *norm_eps;
    const char *activation_key;
    const char *activation; /* the one value of that key */
    const char *prefix,
        *in_layers;                /* of names in a model folder, with their dots: all; a layer's */
    const char *attention, *query; /* a layer's attention there, and its query projection */
    bool rotary;                   /* RoPE, RMSNorm, num_key_value_heads and head_dim; else none */
    bool bias_by_key;              /* attention_bias says whether q, k and v have one */
    bool gguf_permuted;            /* rows of q and k in pairs (llama.cpp's LlamaModel) */
    int default_ffn;               /* widths of the model, without the key; 0: required */
    int default_positions;         /* without the key */
    double default_norm_eps;       /* without the key */
    bool tied_by_default;          /* without key tie_word_embeddings the head is the embedding */
} dms_model_type;

/* The i-th, NULL beyond the last. */
const dms_model_type *dms_model_type_at(int i);
/* NULL for others and for NULL. */
const dms_model_type *dms_model_type_find(const char *name);
/* By the config's key model_type; config may be NULL. */
const dms_model_type *dms_model_type_of(const json_t *config);
/* "llama, qwen2, qwen3 and gpt2", with that word before the last; returns text. */
const char *dms_model_type_list(char text[128], const char *before_last);

/* Whether the output head is the embedding. config may be NULL: no. */
bool dms_model_type_is_tied(const json_t *config);

/* Whether the config has one of the keys that every gate has. config may be NULL. */
bool dms_model_type_has_gate(const json_t *config);
/* Whether the config has a gate that borrows rows of the query projection (method.md's neuron
 * gate): such a key without dms_separate_alpha. config may be NULL. */
bool dms_model_type_borrows(const json_t *config);

typedef struct {
    int64_t width, heads, groups, head_dim;
} dms_model_heads;

/* False where the config names no family here, or its heads do not split into groups. */
bool dms_model_type_heads(dms_model_heads *out, const json_t *config);

#endif
