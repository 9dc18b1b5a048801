#include "model/config.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef enum { REQUIRED, OPTIONAL } need;

dms_status dms_config_refuse(const char *key, const json_t *value, const char *expected)
{
    char *text = value ? json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT) : NULL;
    const dms_status status =
        dms_fail(DMS_ERR_FORMAT, "config key %s is %.80s, expected %s", key,
                 value ? (text ? text : "too large to show") : "absent", expected);
    free(text);
    return status;
}

static dms_status get_int(int64_t *out, const json_t *keys, const char *key, int64_t fallback,
                          need n)
{
    const json_t *v = json_object_get(keys, key);
    *out = fallback;
    if (!v || json_is_null(v))
        return n == OPTIONAL
                   ? DMS_OK
                   : dms_fail(DMS_ERR_FORMAT, "config has no key %s, expected a number", key);
    if (!json_is_integer(v) || json_integer_value(v) < 1 || json_integer_value(v) > INT32_MAX)
        return dms_config_refuse(key, v, "a whole number from 1 to 2147483647");
    *out = json_integer_value(v);
    return DMS_OK;
}

static dms_status get_real(double *out, const json_t *keys, const char *key, double fallback)
{
    const json_t *v = json_object_get(keys, key);
    *out = fallback;
    if (!v || json_is_null(v))
        return DMS_OK;
    /* Also as a float it must be neither 0 nor infinite. */
    if (!json_is_number(v) || !(json_number_value(v) >= 1e-30 && json_number_value(v) <= 1e30))
        return dms_config_refuse(key, v, "a number above 0 (1e-30 to 1e30)");
    *out = json_number_value(v);
    return DMS_OK;
}

static dms_status get_bool(bool *out, const json_t *keys, const char *key, bool fallback)
{
    const json_t *v = json_object_get(keys, key);
    *out = fallback;
    if (!v || json_is_null(v))
        return DMS_OK;
    if (!json_is_boolean(v))
        return dms_config_refuse(key, v, "true or false");
    *out = json_is_true(v);
    return DMS_OK;
}

/* Whether a key holds a text; an absent one holds `fallback`. */
static bool holds(const json_t *keys, const char *key, const char *fallback, const char *text)
{
    const json_t *v = json_object_get(keys, key);
    const char *found = !v || json_is_null(v) ? fallback : json_string_value(v);
    return found && !strcmp(found, text);
}

/* An option that the forward pass has only one value for: false, or true where `key` begins with !.
 */
static dms_status refuse_other(const json_t *keys, const char *key)
{
    const bool expected = key[0] == '!';
    bool set;
    key += expected;
    DMS_TRY(get_bool(&set, keys, key, expected));
    if (set != expected)
        return dms_config_refuse(key, json_object_get(keys, key),
                                 expected ? "true: it is not supported otherwise"
                                          : "false: it is not supported");
    return DMS_OK;
}

static dms_status parse_sizes(dms_config *c, const json_t *keys, const dms_family *f)
{
    int64_t layers, heads, kv_heads, head_dim;
    DMS_TRY(get_int(&c->width, keys, f->keys->width, 0, REQUIRED));
    DMS_TRY(get_int(&layers, keys, f->keys->layers, 0, REQUIRED));
    DMS_TRY(get_int(&heads, keys, f->keys->heads, 0, REQUIRED));
    DMS_TRY(get_int(&kv_heads, keys, "num_key_value_heads", heads, OPTIONAL));
    DMS_TRY(get_int(&head_dim, keys, "head_dim", c->width / heads, OPTIONAL));
    DMS_TRY(get_int(&c->ffn, keys, f->keys->ffn, f->default_ffn * c->width,
                    f->default_ffn ? OPTIONAL : REQUIRED));
    DMS_TRY(get_int(&c->vocab, keys, "vocab_size", 0, REQUIRED));
    DMS_TRY(get_int(&c->max_positions, keys, f->keys->positions, f->default_positions, OPTIONAL));
    if (heads % kv_heads)
        return dms_fail(DMS_ERR_FORMAT,
                        "config keys %s and num_key_value_heads are %" PRId64 " and %" PRId64
                        ", expected a multiple",
                        f->keys->heads, heads, kv_heads);
    if (head_dim < 2 || head_dim % 2 || head_dim > 512)
        return dms_fail(DMS_ERR_FORMAT,
                        "config key head_dim is %" PRId64 ", expected an even number from 2 to 512",
                        head_dim);
    if (layers > 1024 || heads > 1024)
        return dms_fail(DMS_ERR_FORMAT,
                        "config keys %s and %s are %" PRId64 " and %" PRId64
                        ", expected at most 1024 each",
                        f->keys->layers, f->keys->heads, layers, heads);
    c->layers = (int)layers;
    c->heads = (int)heads;
    c->kv_heads = (int)kv_heads;
    c->head_dim = (int)head_dim;
    return DMS_OK;
}

/* A key of other networks, which holds what changes nothing: absent, null, false, or `neutral`. */
static dms_status check_neutral(const json_t *keys, const char *key, double neutral)
{
    char expected[96];
    const json_t *v = json_object_get(keys, key);
    if (!v || json_is_null(v) || json_is_false(v) ||
        (json_is_number(v) && json_number_value(v) == neutral))
        return DMS_OK;
    snprintf(expected, sizeof(expected), "%g or absent: the networks it is for are not supported",
             neutral);
    return dms_config_refuse(key, v, expected);
}

/* Keys that the families' own classes (configuration_llama.py, _qwen2, _qwen3, _gpt2 of
 * transformers 5) leave to the base class, or that other families' classes have, and that change
 * the network. The other keys of these classes are read, or tell about training, caching and output
 * alone. */
static dms_status refuse_foreign(const json_t *keys)
{
    static const struct {
        const char *key;
        double neutral;
    } scales[] = {{"partial_rotary_factor", 1},
                  {"rotary_pct", 1},
                  {"logit_scale", 1},
                  {"logits_scaling", 1},
                  {"embedding_multiplier", 1},
                  {"residual_multiplier", 1},
                  {"scale_emb", 1},
                  {"attention_multiplier", 0},
                  {"query_pre_attn_scalar", 0},
                  {"attn_logit_softcapping", 0},
                  {"scale_depth", 0},
                  {"final_logit_softcapping", 0},
                  {"clip_qkv", 0},
                  {"num_experts", 0},
                  {"num_local_experts", 0},
                  {"num_kv_shared_layers", 0},
                  {"kv_lora_rank", 0},
                  {"no_rope_layers", 0},
                  {"use_qk_norm", 0},
                  {"qk_layernorm", 0},
                  {"attention_chunk_size", 0},
                  {"use_bidirectional_attention", 0},
                  {"alibi", 0},
                  {"add_cross_attention", 0}};
    const json_t *types = json_object_get(keys, "layer_types");
    const json_t *quantised = json_object_get(keys, "quantization_config");
    for (size_t i = 0; i < sizeof(scales) / sizeof(*scales); i++)
        DMS_TRY(check_neutral(keys, scales[i].key, scales[i].neutral));
    if (quantised && !json_is_null(quantised))
        return dms_config_refuse("quantization_config", quantised,
                                 "none: such folders are not read; give the model before its "
                                 "quantisation, or a GGUF file");
    for (size_t i = 0; i < json_array_size(types); i++) {
        const char *type = json_string_value(json_array_get(types, i));
        if (!type || strcmp(type, "full_attention") != 0)
            return dms_config_refuse("layer_types", json_array_get(types, i),
                                     "full_attention in every layer: no other is supported");
    }
    return refuse_other(keys, "!is_causal");
}

static dms_status parse_llama3_scaling(dms_rope_scaling *s, const json_t *keys)
{
    DMS_TRY(get_real(&s->factor, keys, "factor", 8.0));
    DMS_TRY(get_real(&s->low_freq_factor, keys, "low_freq_factor", 1.0));
    DMS_TRY(get_real(&s->high_freq_factor, keys, "high_freq_factor", 4.0));
    DMS_TRY(
        get_int(&s->original_positions, keys, "original_max_position_embeddings", 8192, OPTIONAL));
    if (s->high_freq_factor == s->low_freq_factor)
        return dms_config_refuse("high_freq_factor", json_object_get(keys, "high_freq_factor"),
                                 "another value than low_freq_factor");
    return DMS_OK;
}

/* Everything in them is known: what is not would change the angles. */
static dms_status check_rope_keys(const json_t *scaling)
{
    static const char *const known[] = {"rope_type",
                                        "type",
                                        "rope_theta",
                                        "factor",
                                        "low_freq_factor",
                                        "high_freq_factor",
                                        "partial_rotary_factor",
                                        "original_max_position_embeddings"};
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)scaling, name, value)
    {
        bool found = json_is_null(value);
        for (size_t i = 0; i < sizeof(known) / sizeof(*known); i++)
            found |= !strcmp(name, known[i]);
        if (!found)
            return dms_config_refuse(name, value,
                                     "no such key among those of the rotary positions: its effect "
                                     "is not supported");
    }
    return check_neutral(scaling, "partial_rotary_factor", 1);
}

/* An object or nothing. */
static dms_status get_object(const json_t **out, const json_t *keys, const char *key)
{
    const json_t *v = json_object_get(keys, key);
    *out = json_is_object(v) ? v : NULL;
    return !v || json_is_null(v) || *out ? DMS_OK : dms_config_refuse(key, v, "an object or null");
}

/* transformers 5 keeps everything in rope_parameters; before, rope_theta and rope_scaling. */
static dms_status parse_rope(dms_config *c, const json_t *keys)
{
    const json_t *both, *old;
    DMS_TRY(get_object(&both, keys, "rope_parameters"));
    DMS_TRY(get_object(&old, keys, "rope_scaling"));
    const json_t *scaling = both ? both : old;
    if (scaling)
        DMS_TRY(check_rope_keys(scaling));
    DMS_TRY(get_real(&c->rope_theta, keys, "rope_theta", 10000.0));
    if (json_is_object(both))
        DMS_TRY(get_real(&c->rope_theta, both, "rope_theta", c->rope_theta));
    if (!json_is_object(scaling))
        return DMS_OK;
    const char *key = json_object_get(scaling, "rope_type") ? "rope_type" : "type";
    if (holds(scaling, key, "default", "default"))
        return DMS_OK;
    if (holds(scaling, key, "default", "llama3"))
        return parse_llama3_scaling(&c->rope_scaling, scaling);
    return dms_config_refuse("rope_type", json_object_get(scaling, key), "default or llama3");
}

/* "llama, qwen2, qwen3 or gpt2" for messages. */
static const char *known_families(char text[128])
{
    size_t n = 0;
    const dms_family *f;
    for (int i = 0; (f = dms_family_at(i)) && n < 128; i++) {
        const char *before = !i ? "" : dms_family_at(i + 1) ? ", " : " or ";
        n += (size_t)snprintf(text + n, 128 - n, "%s%s", before, f->model_type);
    }
    return text;
}

static bool has_bias(dms_bias_rule rule, bool by_key)
{
    return rule == DMS_BIAS_ALWAYS || (rule == DMS_BIAS_BY_KEY && by_key);
}

static dms_status find_family(const dms_family **out, const json_t *keys)
{
    char known[128];
    const json_t *type = json_object_get(keys, "model_type");
    *out = dms_family_find(json_string_value(type));
    return *out ? DMS_OK : dms_config_refuse("model_type", type, known_families(known));
}

static dms_status parse_family(dms_config *c, const json_t *keys, const dms_family *family)
{
    const char *activation = family->keys->activation;
    snprintf(c->family, sizeof(c->family), "%s", family->model_type);
    DMS_TRY(get_bool(&c->attention_bias, keys, "attention_bias", false));
    if (json_is_null(json_object_get(keys, "tie_word_embeddings")))
        return dms_config_refuse("tie_word_embeddings", json_null(),
                                 "true or false: programs read null as either");
    DMS_TRY(get_bool(&c->tied, keys, "tie_word_embeddings", family->tied_by_default));
    c->norm = family->norm;
    c->positions = family->positions;
    c->ffn_kind = family->ffn;
    c->qkv_bias = has_bias(family->qkv_bias, c->attention_bias);
    c->o_bias = has_bias(family->o_bias, c->attention_bias);
    c->qk_norm = family->qk_norm;
    if (!holds(keys, activation, family->activation, family->activation))
        return dms_config_refuse(activation, json_object_get(keys, activation), family->activation);
    for (int i = 0; i < 4 && family->fixed[i]; i++)
        DMS_TRY(refuse_other(keys, family->fixed[i]));
    return DMS_OK;
}

static dms_status parse_token(int32_t *out, const json_t *v, const char *key)
{
    if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) > INT32_MAX)
        return dms_config_refuse(key, v, "a token id");
    *out = (int32_t)json_integer_value(v);
    return DMS_OK;
}

static dms_status parse_specials(dms_config *c, const json_t *keys)
{
    const json_t *bos = json_object_get(keys, "bos_token_id");
    const json_t *eos = json_object_get(keys, "eos_token_id");
    c->bos = -1;
    if (json_is_integer(bos))
        DMS_TRY(parse_token(&c->bos, bos, "bos_token_id"));
    if (!eos || json_is_null(eos))
        return DMS_OK;
    if (!json_is_array(eos)) {
        c->n_eos = 1;
        return parse_token(&c->eos[0], eos, "eos_token_id");
    }
    if (json_array_size(eos) > DMS_MAX_EOS)
        return dms_fail(DMS_ERR_FORMAT,
                        "config key eos_token_id has %zu tokens, expected at most %d",
                        json_array_size(eos), DMS_MAX_EOS);
    for (size_t i = 0; i < json_array_size(eos); i++)
        DMS_TRY(parse_token(&c->eos[i], json_array_get(eos, i), "eos_token_id"));
    c->n_eos = (int)json_array_size(eos);
    return DMS_OK;
}

dms_status dms_config_parse(dms_config *out, const json_t *keys)
{
    const dms_family *family;
    dms_config c = {0};
    double eps;
    if (!json_is_object(keys))
        return dms_fail(DMS_ERR_FORMAT, "the model has no config keys, expected a config.json");
    DMS_TRY(find_family(&family, keys));
    DMS_TRY(parse_family(&c, keys, family));
    DMS_TRY(refuse_foreign(keys));
    DMS_TRY(parse_sizes(&c, keys, family));
    DMS_TRY(parse_rope(&c, keys));
    DMS_TRY(parse_specials(&c, keys));
    DMS_TRY(get_real(&eps, keys, family->keys->norm_eps, family->default_norm_eps));
    c.norm_eps = (float)eps;
    *out = c;
    return DMS_OK;
}

bool dms_config_is_eos(const dms_config *c, int32_t token)
{
    for (int i = 0; i < c->n_eos; i++)
        if (c->eos[i] == token)
            return true;
    return false;
}
