#include <math.h>
#include <stdio.h>
#include <string.h>

#include "checkpoints/gguf_read.h"

/* Names: gguf-py's tensor_mapping.py (llama.cpp), for the families llama, qwen2, qwen3. */
static const struct {
    const char *gguf, *hf;
} whole_names[] = {{"token_embd", "model.embed_tokens"},
                   {"output_norm", "model.norm"},
                   {"output", "lm_head"}},
  layer_names[] = {{"attn_norm", "input_layernorm"},    {"ffn_norm", "post_attention_layernorm"},
                   {"attn_q", "self_attn.q_proj"},      {"attn_k", "self_attn.k_proj"},
                   {"attn_v", "self_attn.v_proj"},      {"attn_output", "self_attn.o_proj"},
                   {"attn_q_norm", "self_attn.q_norm"}, {"attn_k_norm", "self_attn.k_norm"},
                   {"ffn_gate", "mlp.gate_proj"},       {"ffn_up", "mlp.up_proj"},
                   {"ffn_down", "mlp.down_proj"}};

static bool same(const char *text, size_t n, const char *word)
{
    return strlen(word) == n && !memcmp(text, word, n);
}

void dms_gguf_rename(char *out, size_t n, const char *name)
{
    const char *dot = strrchr(name, '.');
    int layer, used = 0;
    snprintf(out, n, "%s", name);
    if (!dot || (strcmp(dot, ".weight") && strcmp(dot, ".bias")))
        return;
    if (sscanf(name, "blk.%d.%n", &layer, &used) == 1 && used && name + used < dot) {
        for (size_t i = 0; i < sizeof(layer_names) / sizeof(*layer_names); i++)
            if (same(name + used, (size_t)(dot - name) - (size_t)used, layer_names[i].gguf))
                snprintf(out, n, "model.layers.%d.%s%s", layer, layer_names[i].hf, dot);
        return;
    }
    for (size_t i = 0; i < sizeof(whole_names) / sizeof(*whole_names); i++)
        if (same(name, (size_t)(dot - name), whole_names[i].gguf))
            snprintf(out, n, "%s%s", whole_names[i].hf, dot);
}

dms_status dms_gguf_family(const char **out, const dms_gguf_meta *meta)
{
    static const char *const families[] = {"llama", "qwen2", "qwen3"};
    const dms_gguf_string s = dms_gguf_text(meta, "general.architecture");
    for (size_t i = 0; i < sizeof(families) / sizeof(*families); i++)
        if (dms_gguf_is(s, families[i])) {
            *out = families[i];
            return DMS_OK;
        }
    return dms_fail(DMS_ERR_FORMAT,
                    "%s: general.architecture is %.*s; llama, qwen2 and qwen3 are read", meta->path,
                    s.text ? (int)(s.length < 40 ? s.length : 40) : 6, s.text ? s.text : "absent");
}

/* What the keys of one file are made from. */
typedef struct {
    const dms_gguf_meta *meta;
    const char *family;
    json_t *config;
} maker;

static const char *full_key(char key[96], const maker *m, const char *name)
{
    snprintf(key, 96, "%s.%s", m->family, name);
    return key;
}

/* "FAMILY.name" must be a whole number from 1 to 2^31 - 1. */
static dms_status put_int(const maker *m, const char *hf, const char *name)
{
    char key[96];
    const int64_t value = dms_gguf_int(m->meta, full_key(key, m, name), 0);
    if (value < 1 || value > INT32_MAX)
        return dms_fail(DMS_ERR_FORMAT, "%s: key %s is missing or no positive whole number",
                        m->meta->path, key);
    json_object_set_new(m->config, hf, json_integer(value));
    return DMS_OK;
}

static int64_t get(const maker *m, const char *hf)
{
    return json_integer_value(json_object_get(m->config, hf));
}

static dms_status put_sizes(const maker *m, const dms_source *s)
{
    char key[96];
    DMS_TRY(put_int(m, "hidden_size", "embedding_length"));
    DMS_TRY(put_int(m, "intermediate_size", "feed_forward_length"));
    DMS_TRY(put_int(m, "num_hidden_layers", "block_count"));
    DMS_TRY(put_int(m, "num_attention_heads", "attention.head_count"));
    if (dms_gguf_find(m->meta, full_key(key, m, "attention.head_count_kv")))
        DMS_TRY(put_int(m, "num_key_value_heads", "attention.head_count_kv"));
    else
        json_object_set(m->config, "num_key_value_heads",
                        json_object_get(m->config, "num_attention_heads"));
    if (dms_gguf_find(m->meta, full_key(key, m, "attention.key_length")))
        DMS_TRY(put_int(m, "head_dim", "attention.key_length"));
    else
        json_object_set_new(m->config, "head_dim",
                            json_integer(get(m, "hidden_size") / get(m, "num_attention_heads")));
    const int64_t rotary =
        dms_gguf_int(m->meta, full_key(key, m, "rope.dimension_count"), get(m, "head_dim"));
    if (rotary != get(m, "head_dim"))
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: %s is %lld, expected the head width %lld: partial rotary "
                        "embeddings are not supported",
                        m->meta->path, key, (long long)rotary, (long long)get(m, "head_dim"));
    DMS_TRY(put_int(m, "max_position_embeddings", "context_length"));
    const dms_tensor_info *embedding = dms_source_find(s, "model.embed_tokens.weight");
    if (!embedding || embedding->rank != 2)
        return dms_fail(DMS_ERR_FORMAT, "%s: tensor token_embd.weight is missing or no matrix",
                        s->path);
    json_object_set_new(m->config, "vocab_size", json_integer(embedding->shape[0]));
    return DMS_OK;
}

/* A float stored as f32 prints as the decimal number its author wrote: 1e-5, not 9.99e-06. */
static double shortest(double x)
{
    char text[32];
    double y = x;
    for (int digits = 6; digits <= 9; digits++) {
        snprintf(text, sizeof(text), "%.*g", digits, x);
        sscanf(text, "%lf", &y);
        if ((float)y == (float)x)
            break;
    }
    return y;
}

static dms_status put_reals(const maker *m)
{
    char key[96];
    const double eps =
        dms_gguf_number(m->meta, full_key(key, m, "attention.layer_norm_rms_epsilon"), 0);
    if (!(eps > 0 && eps < 1))
        return dms_fail(DMS_ERR_FORMAT, "%s: key %s is missing or not between 0 and 1",
                        m->meta->path, key);
    json_object_set_new(m->config, "rms_norm_eps", json_real(shortest(eps)));
    /* llama.cpp's default where a file has none. */
    const double theta = dms_gguf_number(m->meta, full_key(key, m, "rope.freq_base"), 10000);
    if (!(theta > 1 && theta < 1e30))
        return dms_fail(DMS_ERR_FORMAT, "%s: key %s is %g, expected more than 1", m->meta->path,
                        key, theta);
    json_object_set_new(m->config, "rope_theta", json_real(shortest(theta)));
    return DMS_OK;
}

static void put_token(const maker *m, const char *hf, const char *key)
{
    const int64_t id = dms_gguf_int(m->meta, key, -1);
    if (id >= 0 && id < get(m, "vocab_size"))
        json_object_set_new(m->config, hf, json_integer(id));
}

/* Llama 3's scaling of frequency i, as the divisor llama.cpp stores (convert_hf_to_gguf.py):
 * wave length l = 2 pi theta^(2i/E); 1 below original/high, factor above original/low, smooth
 * between. */
static double llama3_divisor(double length, double factor, double original)
{
    const double low = 1, high = 4;
    if (length < original / high)
        return 1;
    if (length > original / low)
        return factor;
    const double smooth = (original / length - low) / (high - low);
    return 1 / ((1 - smooth) / factor + smooth);
}

/* The rope_freqs tensor keeps the divisors but not their parameters. Every Llama 3 has low 1 and
 * high 4; the factor is the last divisor; the original context is the power of two that explains
 * all of them. */
static dms_status put_llama3(const maker *m, const float *divisors, int64_t n)
{
    const double theta = json_number_value(json_object_get(m->config, "rope_theta"));
    const double factor = shortest((double)divisors[n - 1]);
    for (int64_t original = 16; original <= 1 << 20; original *= 2) {
        bool fits = true;
        for (int64_t i = 0; fits && i < n; i++) {
            const double length = 2 * 3.14159265358979323846 * pow(theta, (double)i / (double)n);
            const double want = llama3_divisor(length, factor, (double)original);
            fits = fabs((double)divisors[i] - want) <= 1e-3 * want;
        }
        if (!fits)
            continue;
        json_t *scaling = json_pack("{s:s, s:f, s:f, s:f, s:I}", "rope_type", "llama3", "factor",
                                    factor, "low_freq_factor", 1.0, "high_freq_factor", 4.0,
                                    "original_max_position_embeddings", (json_int_t)original);
        json_object_set_new(m->config, "rope_scaling", scaling);
        return DMS_OK;
    }
    return dms_fail(DMS_ERR_FORMAT,
                    "%s: rope_freqs.weight does not follow Llama 3's rule; use the model's Hugging "
                    "Face folder",
                    m->meta->path);
}

static dms_status put_scaling(const maker *m, const float *divisors, int64_t n)
{
    char key[96];
    if (divisors && n == get(m, "head_dim") / 2 && n > 0)
        return put_llama3(m, divisors, n);
    if (divisors)
        return dms_fail(DMS_ERR_FORMAT, "%s: rope_freqs.weight has %lld values, expected %lld",
                        m->meta->path, (long long)n, (long long)get(m, "head_dim") / 2);
    const dms_gguf_string type = dms_gguf_text(m->meta, full_key(key, m, "rope.scaling.type"));
    if (!type.text || dms_gguf_is(type, "none"))
        return DMS_OK;
    const double factor = dms_gguf_number(m->meta, full_key(key, m, "rope.scaling.factor"), 1);
    json_t *scaling =
        json_pack("{s:s%, s:f}", "rope_type", type.text, type.length, "factor", factor);
    if (!scaling)
        return dms_fail(DMS_ERR_FORMAT, "%s: the keys %s.rope.scaling are malformed", m->meta->path,
                        m->family);
    json_object_set_new(m->config, "rope_scaling", scaling);
    return DMS_OK;
}

static dms_status put_all(const maker *m, const dms_source *s, const float *divisors, int64_t n)
{
    DMS_TRY(put_sizes(m, s));
    DMS_TRY(put_reals(m));
    DMS_TRY(put_scaling(m, divisors, n));
    const bool tied = !dms_source_find(s, "lm_head.weight");
    json_object_set_new(m->config, "tie_word_embeddings", json_boolean(tied));
    /* Qwen2's biases are part of the family, not a key. */
    if (strcmp(m->family, "qwen2")) {
        const bool bias = dms_source_find(s, "model.layers.0.self_attn.q_proj.bias");
        json_object_set_new(m->config, "attention_bias", json_boolean(bias));
    }
    put_token(m, "bos_token_id", "tokenizer.ggml.bos_token_id");
    put_token(m, "eos_token_id", "tokenizer.ggml.eos_token_id");
    put_token(m, "pad_token_id", "tokenizer.ggml.padding_token_id");
    return DMS_OK;
}

dms_status dms_gguf_make_config(dms_source *s, const dms_gguf_meta *meta, const char *family,
                                const float *rope_factors, int64_t n_factors)
{
    const char *class = !strcmp(family, "llama")   ? "LlamaForCausalLM"
                        : !strcmp(family, "qwen2") ? "Qwen2ForCausalLM"
                                                   : "Qwen3ForCausalLM";
    s->config = json_pack("{s:[s], s:s, s:s, s:s}", "architectures", class, "model_type", family,
                          "hidden_act", "silu", "torch_dtype", "bfloat16");
    if (!s->config)
        return dms_fail(DMS_ERR_NOMEM, "no memory for the configuration of %s", meta->path);
    const maker m = {meta, family, s->config};
    DMS_TRY(put_all(&m, s, rope_factors, n_factors));
    return DMS_OK;
}
