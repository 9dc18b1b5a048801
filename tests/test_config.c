/* What a config.json says, and the table of weights that follows from it. */
#include <math.h>
#include <stdio.h>

#include "model/gate.h"
#include "tests/fixtures.h"
#include "tests/rig.h"

static const char *const families[] = {"llama", "llama3", "qwen2", "qwen3"};

static void expect_failure(dms_status got, dms_status want, const char *const parts[3])
{
    cr_assert(got == want, "%d: %s", (int)got, dms_error_text());
    for (int i = 0; i < 3; i++)
        cr_assert(!parts[i] || strstr(dms_error_message(), parts[i]), "no \"%s\" in: %s", parts[i],
                  dms_error_message());
}

static json_t *read_keys(const char *family)
{
    char relative[64], path[1024];
    snprintf(relative, sizeof(relative), "tiny/%s/config.json", family);
    json_t *keys = json_load_file(fixture(path, relative), 0, NULL);
    cr_assert(keys, "%s", path);
    return keys;
}

/* ---- config ------------------------------------------------------------------------------ */

static double number(const json_t *keys, const char *key, double fallback)
{
    const json_t *v = json_object_get(keys, key);
    return v ? json_number_value(v) : fallback;
}

static void expect_numbers(const dms_config *c, const json_t *keys)
{
    const double heads = number(keys, "num_attention_heads", 0);
    const struct {
        const char *key;
        double got, fallback;
    } numbers[] = {
        {"num_hidden_layers", c->layers, 0},
        {"num_attention_heads", c->heads, 0},
        {"num_key_value_heads", c->kv_heads, heads},
        {"head_dim", c->head_dim, number(keys, "hidden_size", 0) / heads},
        {"hidden_size", (double)c->width, 0},
        {"intermediate_size", (double)c->ffn, 0},
        {"vocab_size", (double)c->vocab, 0},
        {"max_position_embeddings", (double)c->max_positions, 0},
        {"rms_norm_eps", (double)c->norm_eps, 0},
        {"rope_theta", c->rope_theta, 0},
        {"bos_token_id", c->bos, 0},
        {"eos_token_id", c->eos[0], 0},
    };
    for (size_t i = 0; i < COUNT(numbers); i++) {
        const double want = number(keys, numbers[i].key, numbers[i].fallback);
        cr_assert(fabs(numbers[i].got - want) <= 1e-7 * want, "%s is %g, expected %g",
                  numbers[i].key, numbers[i].got, want);
    }
}

Test(config, every_family_is_read_with_its_numbers)
{
    for (size_t f = 0; f < COUNT(families); f++) {
        const bool qwen2 = !strcmp(families[f], "qwen2"), qwen3 = !strcmp(families[f], "qwen3");
        json_t *keys = read_keys(families[f]);
        const json_t *scaling = json_object_get(keys, "rope_scaling");
        dms_config c;
        must(dms_config_parse(&c, keys));
        expect_numbers(&c, keys);
        cr_assert(!strcmp(c.family, qwen2 || qwen3 ? families[f] : "llama"));
        cr_assert(c.qkv_bias == qwen2 && !c.o_bias && c.qk_norm == qwen3);
        cr_assert(c.tied == json_is_true(json_object_get(keys, "tie_word_embeddings")));
        cr_assert(c.n_eos == 1 && dms_config_is_eos(&c, c.eos[0]));
        cr_assert(!dms_config_is_eos(&c, c.eos[0] + 1));
        cr_assert(c.rope_scaling.factor == number(scaling, "factor", 0));
        cr_assert(c.rope_scaling.low_freq_factor == number(scaling, "low_freq_factor", 0));
        cr_assert(c.rope_scaling.high_freq_factor == number(scaling, "high_freq_factor", 0));
        cr_assert((double)c.rope_scaling.original_positions ==
                  number(scaling, "original_max_position_embeddings", 0));
        json_decref(keys);
    }
}

static const char *const base =
    "{\"model_type\": \"llama\", \"hidden_size\": 64, \"intermediate_size\": 96,"
    " \"num_hidden_layers\": 2, \"num_attention_heads\": 8, \"vocab_size\": 320}";

/* The base with some keys changed; those that are null are taken away. */
static json_t *altered(const char *changes)
{
    json_error_t where;
    const char *key;
    json_t *value, *keys = json_loads(base, 0, NULL), *other = json_loads(changes, 0, &where);
    cr_assert(other, "%s: %s", changes, where.text);
    json_object_foreach(other, key, value)
    {
        if (json_is_null(value))
            json_object_del(keys, key);
        else
            json_object_set(keys, key, value);
    }
    json_decref(other);
    return keys;
}

static dms_config parse_altered(const char *changes)
{
    dms_config c;
    json_t *keys = altered(changes);
    must(dms_config_parse(&c, keys));
    json_decref(keys);
    return c;
}

Test(config, absent_keys_take_the_values_of_transformers)
{
    const dms_config c = parse_altered("{}");
    cr_assert(c.kv_heads == 8 && c.head_dim == 8 && c.max_positions == 2048);
    cr_assert(c.norm_eps == 1e-6f && c.rope_theta == 10000 && c.rope_scaling.factor == 0);
    cr_assert(!c.tied && !c.qkv_bias && !c.o_bias && c.n_eos == 0 && c.bos == -1);
}

Test(config, options_of_the_families_are_understood)
{
    dms_config c = parse_altered("{\"attention_bias\": true}");
    cr_assert(c.qkv_bias && c.o_bias);
    c = parse_altered("{\"model_type\": \"qwen2\", \"use_sliding_window\": false,"
                      " \"sliding_window\": 4096}");
    cr_assert(c.qkv_bias && !c.o_bias);
    c = parse_altered("{\"eos_token_id\": [7, 9, 11]}");
    cr_assert(c.n_eos == 3 && dms_config_is_eos(&c, 7) && dms_config_is_eos(&c, 11));
    cr_assert(!dms_config_is_eos(&c, 8));
    c = parse_altered("{\"rope_parameters\": {\"rope_type\": \"default\", \"rope_theta\": 5e5}}");
    cr_assert(c.rope_theta == 5e5 && c.rope_scaling.factor == 0);
    c = parse_altered("{\"rope_parameters\": {\"rope_type\": \"llama3\", \"rope_theta\": 3,"
                      " \"factor\": 32, \"original_max_position_embeddings\": 16}}");
    cr_assert(c.rope_theta == 3 && c.rope_scaling.factor == 32);
    cr_assert(c.rope_scaling.original_positions == 16 && c.rope_scaling.high_freq_factor == 4);
}

/* Changes to the base, and what the message must hold: the key, what was found, what was expected.
 */
static const struct {
    const char *changes, *parts[3];
} refusals[] = {
    {"{\"model_type\": \"gptj\"}", {"model_type", "\"gptj\"", "llama, qwen2, qwen3 or gpt2"}},
    {"{\"model_type\": null}", {"model_type", "absent", "llama, qwen2, qwen3 or gpt2"}},
    {"{\"model_type\": 5}", {"model_type", "5", "llama, qwen2, qwen3 or gpt2"}},
    {"{\"head_dim\": 7}", {"head_dim", "7", "an even number from 2 to 512"}},
    {"{\"head_dim\": 514}", {"head_dim", "514", "an even number from 2 to 512"}},
    {"{\"hidden_size\": 56}", {"head_dim", "7", "an even number"}},
    {"{\"hidden_size\": 4}", {"head_dim", "0", "an even number"}},
    {"{\"num_key_value_heads\": 3}", {"num_key_value_heads", "8 and 3", "multiple"}},
    {"{\"num_key_value_heads\": 16}", {"num_key_value_heads", "8 and 16", "multiple"}},
    {"{\"hidden_size\": null}", {"hidden_size", "no key", "number"}},
    {"{\"intermediate_size\": null}", {"intermediate_size", "no key", "number"}},
    {"{\"num_hidden_layers\": null}", {"num_hidden_layers", "no key", "number"}},
    {"{\"num_attention_heads\": null}", {"num_attention_heads", "no key", "number"}},
    {"{\"vocab_size\": null}", {"vocab_size", "no key", "number"}},
    {"{\"hidden_size\": \"64\"}", {"hidden_size", "\"64\"", "a whole number from 1"}},
    {"{\"hidden_size\": 64.5}", {"hidden_size", "64.5", "a whole number from 1"}},
    {"{\"vocab_size\": 0}", {"vocab_size", "0", "a whole number from 1"}},
    {"{\"vocab_size\": -320}", {"vocab_size", "-320", "a whole number from 1"}},
    {"{\"vocab_size\": 4294967296}", {"vocab_size", "4294967296", "to 2147483647"}},
    {"{\"num_hidden_layers\": 2000}", {"num_hidden_layers", "2000", "at most 1024"}},
    {"{\"num_attention_heads\": 2048, \"hidden_size\": 4096}",
     {"num_attention_heads", "2048", "at most 1024"}},
    {"{\"rms_norm_eps\": \"tiny\"}", {"rms_norm_eps", "\"tiny\"", "a number above 0"}},
    {"{\"rms_norm_eps\": 0}", {"rms_norm_eps", "0", "a number above 0"}},
    {"{\"rope_theta\": -1}", {"rope_theta", "-1", "a number above 0"}},
    {"{\"tie_word_embeddings\": \"yes\"}", {"tie_word_embeddings", "\"yes\"", "true or false"}},
    {"{\"attention_bias\": 1}", {"attention_bias", "1", "true or false"}},
    {"{\"hidden_act\": \"gelu\"}", {"hidden_act", "\"gelu\"", "silu"}},
    {"{\"hidden_act\": 3}", {"hidden_act", "3", "silu"}},
    {"{\"mlp_bias\": true}", {"mlp_bias", "true", "false"}},
    {"{\"use_sliding_window\": true}", {"use_sliding_window", "true", "false"}},
    {"{\"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 4}}",
     {"rope_type", "\"yarn\"", "default or llama3"}},
    {"{\"rope_scaling\": {\"type\": \"linear\", \"factor\": 4}}",
     {"rope_type", "\"linear\"", "default or llama3"}},
    {"{\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": \"8\"}}",
     {"factor", "\"8\"", "a number above 0"}},
    {"{\"rope_scaling\": {\"rope_type\": \"llama3\", \"low_freq_factor\": 4,"
     " \"high_freq_factor\": 4}}",
     {"high_freq_factor", "4", "low_freq_factor"}},
    {"{\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 1e300}}",
     {"factor", "1e300", "1e-30 to 1e30"}},
    {"{\"rope_scaling\": \"yarn\"}", {"rope_scaling", "\"yarn\"", "an object"}},
    {"{\"rope_parameters\": [1]}", {"rope_parameters", "[1]", "an object"}},
    {"{\"rope_parameters\": {\"full_attention\": {\"rope_theta\": 5}}}",
     {"full_attention", "rope_theta", "no such key"}},
    {"{\"rope_scaling\": {\"rope_type\": \"default\", \"mrope_section\": [16, 24]}}",
     {"mrope_section", "16", "no such key"}},
    {"{\"rope_parameters\": {\"rope_type\": \"default\", \"partial_rotary_factor\": 0.5}}",
     {"partial_rotary_factor", "0.5", "1 or absent"}},
    {"{\"partial_rotary_factor\": 0.25}", {"partial_rotary_factor", "0.25", "1 or absent"}},
    {"{\"quantization_config\": {\"bits\": 4}}", {"quantization_config", "bits", "a GGUF file"}},
    {"{\"layer_types\": [\"full_attention\", \"sliding_attention\"]}",
     {"layer_types", "sliding_attention", "full_attention in every layer"}},
    {"{\"is_causal\": false}", {"is_causal", "false", "true"}},
    {"{\"logit_scale\": 0.0625}", {"logit_scale", "0.0625", "1 or absent"}},
    {"{\"attention_multiplier\": 0.5}", {"attention_multiplier", "0.5", "absent"}},
    {"{\"attn_logit_softcapping\": 50}", {"attn_logit_softcapping", "50", "absent"}},
    {"{\"num_local_experts\": 8}", {"num_local_experts", "8", "absent"}},
    {"{\"no_rope_layers\": [1, 0]}", {"no_rope_layers", "1", "absent"}},
    {"{\"eos_token_id\": [1, 2, 3, 4, 5, 6, 7, 8, 9]}", {"eos_token_id", "9", "at most 8"}},
    {"{\"eos_token_id\": \"</s>\"}", {"eos_token_id", "\"</s>\"", "token id"}},
    {"{\"eos_token_id\": [1, -2]}", {"eos_token_id", "-2", "token id"}},
    {"{\"bos_token_id\": -5}", {"bos_token_id", "-5", "token id"}},
};

Test(config, messages_name_key_value_and_expectation)
{
    for (size_t i = 0; i < COUNT(refusals); i++) {
        dms_config c = {.layers = 77};
        json_t *keys = altered(refusals[i].changes);
        expect_failure(dms_config_parse(&c, keys), DMS_ERR_FORMAT, refusals[i].parts);
        cr_assert(c.layers == 77, "a refused config is not written");
        json_decref(keys);
    }
}

/* What transformers writes beside the keys that matter, at values that change nothing. */
Test(config, keys_that_change_nothing_are_no_obstacle)
{
    parse_altered("{\"partial_rotary_factor\": 1.0, \"layer_types\": [\"full_attention\"],"
                  " \"logit_scale\": 1, \"use_qk_norm\": false, \"sliding_window\": 4096,"
                  " \"pretraining_tp\": 2, \"attention_dropout\": 0.1, \"mlp_bias\": false,"
                  " \"rope_parameters\": {\"rope_type\": \"default\", \"rope_theta\": 1e4,"
                  " \"partial_rotary_factor\": 1}}");
}

Test(config, a_null_for_the_head_is_neither_tied_nor_not)
{
    dms_config c;
    json_t *keys = altered("{}");
    json_object_set_new(keys, "tie_word_embeddings", json_null());
    cr_expect_eq(dms_config_parse(&c, keys), DMS_ERR_FORMAT);
    cr_expect(strstr(dms_error_text(), "tie_word_embeddings is null, expected true or false"));
    json_decref(keys);
}

/* Its keys have other names, and most have defaults (configuration_gpt2.py of transformers). */
Test(config, gpt2_has_keys_and_facts_of_its_own)
{
    static const struct {
        const char *changes, *parts[3];
    } cases[] = {
        {"{\"n_embd\": null}", {"n_embd", "no key", "number"}},
        {"{\"n_head\": 2048}", {"n_layer and n_head", "2048", "at most 1024"}},
        {"{\"activation_function\": \"gelu\"}", {"activation_function", "\"gelu\"", "gelu_new"}},
        {"{\"scale_attn_weights\": false}", {"scale_attn_weights", "false", "true"}},
        {"{\"scale_attn_by_inverse_layer_idx\": true}",
         {"scale_attn_by_inverse_layer_idx", "true", "false"}},
        {"{\"add_cross_attention\": true}", {"add_cross_attention", "true", "false"}}};
    dms_config c;
    json_t *keys = json_pack("{s:s, s:i, s:i, s:i, s:n, s:i, s:i}", "model_type", "gpt2", "n_embd",
                             4096, "n_layer", 12, "n_head", 64, "n_inner", "vocab_size", 50257,
                             "eos_token_id", 50256);
    must(dms_config_parse(&c, keys));
    cr_assert(c.width == 4096 && c.layers == 12 && c.heads == 64 && c.kv_heads == 64);
    cr_assert(c.head_dim == 64 && c.ffn == 16384 && c.max_positions == 1024);
    cr_assert(c.norm == DMS_NORM_LAYER && c.positions == DMS_POSITIONS_LEARNED);
    cr_assert(c.ffn_kind == DMS_FFN_GELU && c.norm_eps == 1e-5f);
    cr_assert(c.qkv_bias && c.o_bias && !c.attention_bias && c.tied && !c.qk_norm);
    cr_assert(dms_config_is_eos(&c, 50256));
    for (size_t i = 0; i < COUNT(cases); i++) {
        json_t *bad = json_copy(keys), *changes = json_loads(cases[i].changes, 0, NULL);
        json_object_update(bad, changes);
        expect_failure(dms_config_parse(&c, bad), DMS_ERR_FORMAT, cases[i].parts);
        json_decref(bad);
        json_decref(changes);
    }
    json_decref(keys);
}

Test(config, a_file_without_config_is_a_status)
{
    dms_config c;
    json_t *list = json_array();
    const char *const parts[3] = {"config.json"};
    expect_failure(dms_config_parse(&c, NULL), DMS_ERR_FORMAT, parts);
    expect_failure(dms_config_parse(&c, list), DMS_ERR_FORMAT, parts);
    json_decref(list);
}

/* ---- gate -------------------------------------------------------------------------------- */

Test(gate, keys_that_are_written_are_read_back)
{
    for (int kind = DMS_GATE_NEURON; kind <= DMS_GATE_ADAPTER; kind++)
        for (int cr = 0; cr <= 8; cr += 8) {
            const dms_gate want = {(dms_gate_kind)kind, 16, 4, -1.5f, 0.25f, cr > 0};
            dms_gate got;
            json_t *keys = json_object();
            must(dms_gate_write(keys, &want, cr));
            cr_assert(number(keys, "dms_cr", 0) == cr);
            must(dms_gate_parse(&got, keys));
            cr_assert(got.kind == want.kind && got.window == 16 && got.alpha_scale == 4);
            cr_assert(got.alpha_offset == -1.5f && got.tau == 0.25f && got.own == want.own);
            json_decref(keys);
        }
}

Test(gate, absent_keys_mean_no_gate_or_the_values_of_the_released_checkpoint)
{
    dms_gate got;
    json_t *none = json_object(),
           *released = json_pack("{s:i,s:i}", "dms_window_size", 512, "dms_cr", 8);
    const dms_gate defaults = dms_gate_defaults();
    must(dms_gate_parse(&got, none));
    cr_assert(got.kind == DMS_GATE_NONE && got.window == 512);
    must(dms_gate_parse(&got, released));
    cr_assert(got.kind == DMS_GATE_NEURON && got.alpha_scale == 100 && got.alpha_offset == 5);
    cr_assert(got.tau == 0.1f && defaults.kind == DMS_GATE_NONE && defaults.tau == 0.1f);
    must(dms_gate_write(none, &defaults, 8));
    cr_assert(json_object_size(none) == 0, "no gate, no keys");
    json_decref(none);
    json_decref(released);
}

Test(gate, messages_name_key_value_and_expectation)
{
    static const struct {
        const char *keys, *parts[3];
    } cases[] = {
        {"{\"dms_window_size\": -1}", {"dms_window_size", "-1", "number from 0"}},
        {"{\"dms_window_size\": \"512\"}", {"dms_window_size", "\"512\"", "number from 0"}},
        {"{\"dms_window_size\": 1e10}", {"dms_window_size", "1", "to 1e9"}},
        {"{\"dms_alpha_scale\": -3}", {"dms_alpha_scale", "-3", "number from 0"}},
        {"{\"dms_alpha_scale\": 3, \"dms_tau\": 0}", {"dms_tau", "0", "number from 1e-06"}},
        {"{\"dms_alpha_scale\": 3, \"dms_initial_alpha_offset\": []}",
         {"dms_initial_alpha_offset", "[]", "number"}},
        {"{\"dms_alpha_scale\": 3, \"dms_separate_alpha\": \"no\"}",
         {"dms_separate_alpha", "\"no\"", "true or false"}},
        {"{\"dms_alpha_scale\": 3, \"dms_alpha_per\": \"layer\"}",
         {"dms_alpha_per", "\"layer\"", "head"}},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        dms_gate got = {.window = 77};
        json_t *keys = json_loads(cases[i].keys, 0, NULL);
        expect_failure(dms_gate_parse(&got, keys), DMS_ERR_FORMAT, cases[i].parts);
        cr_assert(got.window == 77);
        json_decref(keys);
    }
}

Test(gate, names_are_read_and_written)
{
    for (int kind = DMS_GATE_NONE; kind <= DMS_GATE_ADAPTER; kind++) {
        dms_gate_kind got = DMS_GATE_NONE;
        must(dms_gate_from_name(&got, dms_gate_name((dms_gate_kind)kind)));
        cr_assert((int)got == kind);
    }
    dms_gate_kind got;
    expect_failure(dms_gate_from_name(&got, "sieve"), DMS_ERR_ARG,
                   (const char *const[3]){"gate", "\"sieve\"", "neuron, adapter or none"});
}
