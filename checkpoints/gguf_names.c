#include "checkpoints/gguf_names.h"

#include <stdio.h>
#include <string.h>

#include "checkpoints/model_type.h"

typedef struct {
    const char *gguf, *hf; /* without .weight or .bias */
} pair;

typedef struct {
    pair whole[5], layers[12];
} name_table;

static const name_table llama = {.whole = {{"token_embd", "model.embed_tokens"},
                                           {"output_norm", "model.norm"},
                                           {"output", "lm_head"}},
                                 .layers = {{"attn_norm", "input_layernorm"},
                                            {"ffn_norm", "post_attention_layernorm"},
                                            {"attn_q", "self_attn.q_proj"},
                                            {"attn_k", "self_attn.k_proj"},
                                            {"attn_v", "self_attn.v_proj"},
                                            {"attn_output", "self_attn.o_proj"},
                                            {"attn_q_norm", "self_attn.q_norm"},
                                            {"attn_k_norm", "self_attn.k_norm"},
                                            {"ffn_gate", "mlp.gate_proj"},
                                            {"ffn_up", "mlp.up_proj"},
                                            {"ffn_down", "mlp.down_proj"}}};
static const name_table gpt2 = {.whole = {{"token_embd", "transformer.wte"},
                                          {"position_embd", "transformer.wpe"},
                                          {"output_norm", "transformer.ln_f"},
                                          {"output", "lm_head"}},
                                .layers = {{"attn_norm", "ln_1"},
                                           {"ffn_norm", "ln_2"},
                                           {"attn_qkv", "attn.c_attn"},
                                           {"attn_output", "attn.c_proj"},
                                           {"ffn_up", "mlp.c_fc"},
                                           {"ffn_down", "mlp.c_proj"}}};

static const name_table *table_of(const char *family)
{
    return strcmp(family, "gpt2") ? &llama : &gpt2;
}

/* Hugging Face's prefix of a layer, before its number. */
static const char *layer_prefix(char text[32], const char *family)
{
    const dms_model_type *t = dms_model_type_find(family);
    snprintf(text, 32, "%s%s", t ? t->prefix : "", t ? t->in_layers : "");
    return text;
}

static bool same(const char *text, size_t n, const char *word)
{
    return strlen(word) == n && !memcmp(text, word, n);
}

/* The partner of text[n] in a list that ends with an empty pair; NULL where it is not in it. */
static const char *partner(const pair *list, const char *text, size_t n, bool from_hf)
{
    for (; list->gguf; list++)
        if (same(text, n, from_hf ? list->hf : list->gguf))
            return from_hf ? list->gguf : list->hf;
    return NULL;
}

/* Where ".weight" or ".bias" begins; NULL for other names. */
static const char *find_suffix(const char *name)
{
    const char *dot = strrchr(name, '.');
    return dot && (!strcmp(dot, ".weight") || !strcmp(dot, ".bias")) ? dot : NULL;
}

/* Layer number and where the rest begins, of PREFIX N "." rest; 0: no such name. */
static size_t layer_of(int *layer, const char *name, const char *prefix)
{
    const size_t n = strlen(prefix);
    int used = 0;
    if (strncmp(name, prefix, n) || name[n] < '0' || name[n] > '9' ||
        sscanf(name + n, "%4d.%n", layer, &used) != 1 || !used)
        return 0;
    return n + (size_t)used;
}

void dms_gguf_to_hf(char *out, size_t n, const char *name, const char *family)
{
    char layers[32];
    const name_table *t = table_of(family);
    const char *dot = find_suffix(name);
    int layer = 0;
    snprintf(out, n, "%s", name);
    if (!dot)
        return;
    const size_t rest = layer_of(&layer, name, "blk.");
    const char *at = name + rest;
    const char *hf =
        partner(rest ? t->layers : t->whole, at, at < dot ? (size_t)(dot - at) : 0, false);
    if (hf && rest)
        snprintf(out, n, "%s%d.%s%s", layer_prefix(layers, family), layer, hf, dot);
    else if (hf)
        snprintf(out, n, "%s%s", hf, dot);
}

bool dms_gguf_from_hf(char *out, size_t n, const char *name, const char *family)
{
    const name_table *t = table_of(family);
    char full[256], layers[32];
    int layer = 0;
    const bool bare =
        t == &gpt2 && strncmp(name, "transformer.", 12) && strncmp(name, "lm_head", 7);
    snprintf(full, sizeof(full), "%s%s", bare ? "transformer." : "", name);
    const char *dot = find_suffix(full);
    *out = 0;
    if (!dot)
        return false;
    const size_t rest = layer_of(&layer, full, layer_prefix(layers, family));
    const char *at = full + rest;
    const char *gguf =
        partner(rest ? t->layers : t->whole, at, at < dot ? (size_t)(dot - at) : 0, true);
    if (gguf && rest)
        snprintf(out, n, "blk.%d.%s%s", layer, gguf, dot);
    else if (gguf)
        snprintf(out, n, "%s%s", gguf, dot);
    return gguf != NULL;
}

bool dms_gguf_is_transposed(const char *name, const char *family)
{
    const size_t n = strlen(name);
    return !strcmp(family, "gpt2") && n > 7 && !strcmp(name + n - 7, ".weight") &&
           (strstr(name, ".attn.c_") || strstr(name, ".mlp.c_"));
}

void dms_gguf_layer_name(char *out, size_t n, const char *family, int64_t layer, const char *rest)
{
    char layers[32];
    const dms_model_type *t = dms_model_type_find(family);
    snprintf(out, n, "%s%lld.%s.%s", layer_prefix(layers, family), (long long)layer,
             t ? t->attention : "", rest);
}

void dms_gguf_query_name(char *out, size_t n, const char *family, int64_t layer, const char *suffix)
{
    char rest[64];
    const dms_model_type *t = dms_model_type_find(family);
    snprintf(rest, sizeof(rest), "%s.%s", t ? t->query : "", suffix);
    dms_gguf_layer_name(out, n, family, layer, rest);
}
