#include <math.h>
#include <stdio.h>
#include <string.h>

#include "checkpoints/gguf_read.h"
#include "checkpoints/layout.h"
#include "checkpoints/model_type.h"
#include "kernels/decimal.h"

dms_status dms_gguf_family(const char **out, const dms_gguf_meta *meta)
{
    char known[128];
    const dms_model_type *t;
    const dms_gguf_string s = dms_gguf_text(meta, "general.architecture");
    for (int i = 0; (t = dms_model_type_at(i)); i++)
        if (dms_gguf_is(s, t->name)) {
            *out = t->name;
            return DMS_OK;
        }
    return dms_fail(DMS_ERR_FORMAT, "%s: general.architecture is %.*s; %s are read", meta->path,
                    s.text ? (int)(s.length < 40 ? s.length : 40) : 6, s.text ? s.text : "absent",
                    dms_model_type_list(known, "and"));
}

/* What the keys of one file are made from. */
typedef struct {
    const dms_gguf_meta *meta;
    const dms_model_type *type;
    json_t *config;
    bool *failed; /* a key could not be set */
} maker;

static void put(const maker *m, const char *hf, json_t *value)
{
    *m->failed |= json_object_set_new(m->config, hf, value) != 0;
}

static const char *full_key(char key[96], const maker *m, const char *name)
{
    snprintf(key, 96, "%s.%s", m->type->name, name);
    return key;
}

static bool has(const maker *m, const char *name)
{
    char key[96];
    return dms_gguf_find(m->meta, full_key(key, m, name)) != NULL;
}

/* "FAMILY.name" must be a whole number from 1 to 2^31 - 1. */
static dms_status put_int(const maker *m, const char *hf, const char *name)
{
    char key[96];
    const int64_t value = dms_gguf_int(m->meta, full_key(key, m, name), 0);
    if (value < 1 || value > INT32_MAX)
        return dms_fail(DMS_ERR_FORMAT, "%s: key %s is missing or no positive whole number",
                        m->meta->path, key);
    put(m, hf, json_integer(value));
    return DMS_OK;
}

static int64_t get(const maker *m, const char *hf)
{
    return json_integer_value(json_object_get(m->config, hf));
}

static dms_status put_vocab(const maker *m, const dms_source *s)
{
    static const char embedding[] = "model.embed_tokens.weight";
    dms_layout_place place;
    const bool other = dms_layout_find(&place, m->config, embedding);
    const dms_tensor_info *info = dms_source_find(s, other ? place.name : embedding);
    if (!info || info->rank != 2)
        return dms_fail(DMS_ERR_FORMAT, "%s: tensor token_embd.weight is missing or no matrix",
                        s->path);
    put(m, "vocab_size", json_integer(info->shape[0]));
    return DMS_OK;
}

static dms_status put_groups(const maker *m)
{
    char key[96];
    const int64_t heads = get(m, m->type->heads);
    if (has(m, "attention.head_count_kv"))
        DMS_TRY(put_int(m, "num_key_value_heads", "attention.head_count_kv"));
    else
        put(m, "num_key_value_heads", json_integer(heads));
    if (has(m, "attention.key_length"))
        DMS_TRY(put_int(m, "head_dim", "attention.key_length"));
    else if (heads)
        put(m, "head_dim", json_integer(get(m, m->type->width) / heads));
    const int64_t rotary =
        dms_gguf_int(m->meta, full_key(key, m, "rope.dimension_count"), get(m, "head_dim"));
    if (rotary != get(m, "head_dim"))
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: %s is %lld, expected the head width %lld: partial rotary "
                        "embeddings are not supported",
                        m->meta->path, key, (long long)rotary, (long long)get(m, "head_dim"));
    return DMS_OK;
}

static dms_status put_sizes(const maker *m, const dms_source *s)
{
    DMS_TRY(put_int(m, m->type->width, "embedding_length"));
    DMS_TRY(put_int(m, m->type->ffn, "feed_forward_length"));
    DMS_TRY(put_int(m, m->type->layers, "block_count"));
    DMS_TRY(put_int(m, m->type->heads, "attention.head_count"));
    if (m->type->rotary)
        DMS_TRY(put_groups(m));
    DMS_TRY(put_int(m, m->type->positions, "context_length"));
    return put_vocab(m, s);
}

static dms_status put_epsilon(const maker *m, const char *hf, const char *name)
{
    char key[96];
    const double eps = dms_gguf_number(m->meta, full_key(key, m, name), 0);
    if (!(eps > 0 && eps < 1))
        return dms_fail(DMS_ERR_FORMAT, "%s: key %s is missing or not between 0 and 1",
                        m->meta->path, key);
    put(m, hf, json_real(dms_decimal((float)eps)));
    return DMS_OK;
}

static dms_status put_theta(const maker *m)
{
    char key[96];
    /* llama.cpp's default where a file has none. */
    const double theta = dms_gguf_number(m->meta, full_key(key, m, "rope.freq_base"), 10000);
    if (!(theta > 1 && theta < 1e30))
        return dms_fail(DMS_ERR_FORMAT, "%s: key %s is %g, expected more than 1", m->meta->path,
                        key, theta);
    put(m, "rope_theta", json_real(dms_decimal((float)theta)));
    return DMS_OK;
}

static void put_token(const maker *m, const char *hf, const char *key)
{
    const int64_t id = dms_gguf_int(m->meta, key, -1);
    if (id >= 0 && id < get(m, "vocab_size"))
        put(m, hf, json_integer(id));
}

/* All tokens that end a text: of llama.cpp's keys, end of text, of a turn and of a message. */
static void put_ends(const maker *m)
{
    static const char *const keys[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                       "tokenizer.ggml.eom_token_id"};
    int64_t ids[3];
    int n = 0;
    for (int i = 0; i < 3; i++) {
        ids[n] = dms_gguf_int(m->meta, keys[i], -1);
        bool wanted = ids[n] >= 0 && ids[n] < get(m, "vocab_size");
        for (int k = 0; k < n; k++)
            wanted &= ids[k] != ids[n];
        n += wanted;
    }
    if (n == 1)
        put(m, "eos_token_id", json_integer(ids[0]));
    if (n == 2)
        put(m, "eos_token_id", json_pack("[I, I]", (json_int_t)ids[0], (json_int_t)ids[1]));
    if (n == 3)
        put(m, "eos_token_id",
            json_pack("[I, I, I]", (json_int_t)ids[0], (json_int_t)ids[1], (json_int_t)ids[2]));
}

bool dms_gguf_factors_fit(const dms_gguf_factors *factors, const dms_gguf_llama3 *p, double theta)
{
    for (int64_t i = 0; i < factors->n; i++) {
        const double want = dms_gguf_llama3_factor(p, theta, (double)i / (double)factors->n);
        if (!(fabs((double)factors->values[i] - want) <= 1e-3 * want))
            return false;
    }
    return true;
}

double dms_gguf_llama3_factor(const dms_gguf_llama3 *p, double theta, double fraction)
{
    const double length = 2 * 3.14159265358979323846 * pow(theta, fraction);
    if (length < p->original / p->high)
        return 1;
    if (length > p->original / p->low)
        return p->factor;
    const double smooth = (p->original / length - p->low) / (p->high - p->low);
    return 1 / ((1 - smooth) / p->factor + smooth);
}

/* The rope_freqs tensor keeps the divisors but not their parameters. Files of ours name them; else:
 * every Llama 3 has low 1 and high 4, the factor is the last divisor, and the original context is
 * the power of two that explains all of them. */
static bool find_llama3(dms_gguf_llama3 *p, const maker *m, const dms_gguf_factors *factors)
{
    char key[96];
    const double theta = json_number_value(json_object_get(m->config, "rope_theta"));
    *p = (dms_gguf_llama3){
        .factor = dms_gguf_number(m->meta, full_key(key, m, "rope.llama3.factor"), 0),
        .low = dms_gguf_number(m->meta, full_key(key, m, "rope.llama3.low_freq_factor"), 1),
        .high = dms_gguf_number(m->meta, full_key(key, m, "rope.llama3.high_freq_factor"), 4),
        .original = dms_gguf_number(m->meta, full_key(key, m, "rope.llama3.original_context"), 0)};
    if (p->factor > 0 && p->original >= 1 && p->original < 1e9)
        return dms_gguf_factors_fit(factors, p, theta);
    *p = (dms_gguf_llama3){dms_decimal(factors->values[factors->n - 1]), 1, 4, 16};
    for (; p->original <= 1 << 20; p->original *= 2)
        if (dms_gguf_factors_fit(factors, p, theta))
            return true;
    return false;
}

static dms_status put_llama3(const maker *m, const dms_gguf_factors *factors)
{
    dms_gguf_llama3 p;
    if (!find_llama3(&p, m, factors))
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: rope_freqs.weight does not follow Llama 3's rule; use the model's "
                        "Hugging Face folder",
                        m->meta->path);
    put(m, "rope_scaling",
        json_pack("{s:s, s:f, s:f, s:f, s:I}", "rope_type", "llama3", "factor", p.factor,
                  "low_freq_factor", p.low, "high_freq_factor", p.high,
                  "original_max_position_embeddings", (json_int_t)p.original));
    return DMS_OK;
}

static dms_status put_scaling(const maker *m, const dms_gguf_factors *factors)
{
    char key[96];
    const int64_t half = get(m, "head_dim") / 2;
    if (factors->values && factors->n == half && half > 0)
        return put_llama3(m, factors);
    if (factors->values)
        return dms_fail(DMS_ERR_FORMAT, "%s: rope_freqs.weight has %lld values, expected %lld",
                        m->meta->path, (long long)factors->n, (long long)half);
    const dms_gguf_string type = dms_gguf_text(m->meta, full_key(key, m, "rope.scaling.type"));
    if (!type.text || dms_gguf_is(type, "none"))
        return DMS_OK;
    const double factor = dms_gguf_number(m->meta, full_key(key, m, "rope.scaling.factor"), 1);
    const int64_t original =
        dms_gguf_int(m->meta, full_key(key, m, "rope.scaling.original_context_length"), 0);
    json_t *scaling =
        json_pack("{s:s%, s:f}", "rope_type", type.text, type.length, "factor", factor);
    if (!scaling)
        return dms_fail(DMS_ERR_FORMAT, "%s: the keys %s.rope.scaling are malformed", m->meta->path,
                        m->type->name);
    if (original > 0)
        *m->failed |= json_object_set_new(scaling, "original_max_position_embeddings",
                                          json_integer(original)) != 0;
    put(m, "rope_scaling", scaling);
    return DMS_OK;
}

static dms_status put_numbers(const maker *m, const dms_source *s, const dms_gguf_factors *factors)
{
    DMS_TRY(put_sizes(m, s));
    DMS_TRY(put_epsilon(m, m->type->norm_eps,
                        m->type->rotary ? "attention.layer_norm_rms_epsilon"
                                        : "attention.layer_norm_epsilon"));
    if (!m->type->rotary)
        return DMS_OK;
    DMS_TRY(put_theta(m));
    return put_scaling(m, factors);
}

static dms_status put_all(const maker *m, const dms_source *s, const dms_gguf_factors *factors)
{
    DMS_TRY(put_numbers(m, s, factors));
    put(m, "tie_word_embeddings", json_boolean(!dms_source_find(s, "lm_head.weight")));
    if (m->type->bias_by_key) {
        const bool bias = dms_source_find(s, "model.layers.0.self_attn.q_proj.bias");
        put(m, "attention_bias", json_boolean(bias));
    }
    put(m, m->type->activation_key, json_string(m->type->activation));
    put_token(m, "bos_token_id", "tokenizer.ggml.bos_token_id");
    put_ends(m);
    put_token(m, "pad_token_id", "tokenizer.ggml.padding_token_id");
    return *m->failed ? dms_fail(DMS_ERR_NOMEM, "no memory for the configuration of %s", s->path)
                      : DMS_OK;
}

dms_status dms_gguf_make_config(dms_source *s, const dms_gguf_meta *meta, const char *family,
                                const dms_gguf_factors *factors)
{
    bool failed = false;
    char class[64];
    const dms_model_type *type = dms_model_type_find(family);
    snprintf(class, sizeof(class), "%s%s", type->class_begin, type->class_end);
    s->config = json_pack("{s:[s], s:s, s:s}", "architectures", class, "model_type", family,
                          "torch_dtype", "bfloat16");
    if (!s->config)
        return dms_fail(DMS_ERR_NOMEM, "no memory for the configuration of %s", meta->path);
    const maker m = {meta, type, s->config, &failed};
    return put_all(&m, s, factors);
}
