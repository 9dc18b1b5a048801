/* Facts that stand twice, as two folders must not know each other: both must say the same. */
#include "checkpoints/gguf_pre.h"
#include "checkpoints/layout.h"
#include "checkpoints/model_type.h"
#include "data/splitter.h"
#include "model/family.h"
#include "model/gate.h"
#include "model/model.h"
#include "tests/rig.h"

static json_t *parse(const char *text)
{
    json_t *value = json_loads(text, 0, NULL);
    cr_assert_not_null(value, "%s", text);
    return value;
}

/* The smallest config of a family, with `more` in it ("" or ", \"key\": value"). */
static json_t *small_config(const dms_model_type *t, const char *more)
{
    char text[1024];
    snprintf(text, sizeof(text),
             "{\"model_type\": \"%s\", \"%s\": 64, \"%s\": 1, \"%s\": 4, \"%s\": 96, "
             "\"vocab_size\": 100%s}",
             t->name, t->width, t->layers, t->heads, t->ffn, more);
    return parse(text);
}

/* model/family.c says what a network computes, checkpoints/model_type.c how files name it. */
Test(doubles, both_tables_of_families_say_the_same)
{
    const dms_family *f;
    int n = 0;
    for (; (f = dms_family_at(n)); n++) {
        const dms_model_type *t = dms_model_type_at(n);
        cr_assert_not_null(t, "%s", f->model_type);
        cr_expect_str_eq(t->name, f->model_type);
        cr_expect_str_eq(t->width, f->keys->width);
        cr_expect_str_eq(t->layers, f->keys->layers);
        cr_expect_str_eq(t->heads, f->keys->heads);
        cr_expect_str_eq(t->ffn, f->keys->ffn);
        cr_expect_str_eq(t->positions, f->keys->positions);
        cr_expect_str_eq(t->norm_eps, f->keys->norm_eps);
        cr_expect_str_eq(t->activation_key, f->keys->activation);
        cr_expect_str_eq(t->activation, f->activation);
        cr_expect_eq(t->rotary, f->positions == DMS_POSITIONS_ROPE, "%s", t->name);
        cr_expect_eq(t->rotary, f->norm == DMS_NORM_RMS, "%s", t->name);
        cr_expect_eq(t->bias_by_key, f->qkv_bias == DMS_BIAS_BY_KEY, "%s", t->name);
        cr_expect_eq(t->tied_by_default, f->tied_by_default, "%s", t->name);
        cr_expect_eq(t->default_ffn, f->default_ffn, "%s", t->name);
        cr_expect_eq(t->default_positions, f->default_positions, "%s", t->name);
        cr_expect_eq(t->default_norm_eps, f->default_norm_eps, "%s", t->name);
    }
    cr_expect_null(dms_model_type_at(n));
    char list[128];
    cr_expect_str_eq(dms_model_type_list(list, "or"), "llama, qwen2, qwen3 or gpt2");
}

Test(doubles, both_know_a_tied_head)
{
    static const char *const more[] = {"", ", \"tie_word_embeddings\": true",
                                       ", \"tie_word_embeddings\": false"};
    const dms_model_type *t;
    for (int i = 0; (t = dms_model_type_at(i)); i++)
        for (size_t k = 0; k < COUNT(more); k++) {
            dms_config c;
            json_t *config = small_config(t, more[k]);
            must(dms_config_parse(&c, config));
            cr_expect_eq(dms_model_type_is_tied(config), c.tied, "%s%s", t->name, more[k]);
            json_decref(config);
        }
    cr_expect(!dms_model_type_is_tied(NULL));
}

Test(doubles, both_split_a_width_into_the_same_heads)
{
    static const char *const more[] = {"", ", \"num_key_value_heads\": 2",
                                       ", \"num_key_value_heads\": 1, \"head_dim\": 32"};
    const dms_model_type *t;
    for (int i = 0; (t = dms_model_type_at(i)); i++)
        for (size_t k = 0; k < (t->rotary ? COUNT(more) : 1); k++) {
            dms_config c;
            dms_model_heads h;
            json_t *config = small_config(t, more[k]);
            must(dms_config_parse(&c, config));
            cr_assert(dms_model_type_heads(&h, config));
            cr_expect(h.width == c.width && h.heads == c.heads && h.groups == c.kv_heads &&
                          h.head_dim == c.head_dim,
                      "%s%s", t->name, more[k]);
            json_decref(config);
        }
}

Test(doubles, both_know_a_gate_by_the_same_keys)
{
    static const char *const configs[] = {
        "{}",
        "{\"dms_separate_alpha\": true}",
        "{\"dms_separate_alpha\": null}",
        "{\"dms_initial_alpha_offset\": 5}",
        "{\"dms_window_size\": 16}",
        "{\"dms_window_size\": 16, \"dms_separate_alpha\": false}",
        "{\"dms_window_size\": 16, \"dms_separate_alpha\": true}",
        "{\"dms_window_size\": 16, \"dms_alpha_scale\": 10.0, \"dms_initial_alpha_offset\": 1.0}"};
    for (size_t i = 0; i < COUNT(configs); i++) {
        dms_gate gate;
        json_t *config = parse(configs[i]);
        must(dms_gate_parse(&gate, config));
        cr_expect_eq(dms_model_type_has_gate(config), gate.kind != DMS_GATE_NONE, "%s", configs[i]);
        cr_expect_eq(dms_model_type_borrows(config), gate.kind == DMS_GATE_NEURON, "%s",
                     configs[i]);
        json_decref(config);
    }
}

/* Every weight of a network is found in a folder of its family, and from there the way back. */
Test(doubles, the_layout_has_every_weight_of_a_network)
{
    const dms_model_type *t;
    dms_device *device = rig_open_device(DMS_CPU, 1);
    for (int i = 0; (t = dms_model_type_at(i)); i++) {
        dms_model *m = NULL;
        json_t *config = small_config(t, "");
        dms_model_options o = {.device = device, .matrix_type = DMS_F32, .positions = 8};
        must(dms_config_parse(&o.config, config));
        o.gate = dms_gate_defaults();
        o.gate.kind = DMS_GATE_ADAPTER;
        must(dms_model_open(&m, &o));
        for (int k = 0; k < m->n_weights; k++) {
            char ours[96];
            dms_layout_place place, back;
            const char *name = m->weights[k].name;
            const bool other = !t->rotary; /* of these families GPT-2 alone has other names */
            cr_expect_eq(dms_layout_find(&place, config, name), other, "%s: %s", t->name, name);
            cr_expect_eq(dms_layout_is_gate(name), m->weights[k].role == DMS_ROLE_GATE, "%s", name);
            if (!other)
                continue;
            cr_expect(dms_layout_back(&back, ours, config, place.name, place.part));
            cr_expect_str_eq(ours, name);
            cr_expect(dms_layout_back(&back, ours, config, place.bare, place.part));
            cr_expect_str_eq(ours, name);
            cr_expect_eq(dms_layout_is_gate(place.name), dms_layout_is_gate(name));
        }
        dms_model_close(m);
        json_decref(config);
    }
    device->close(device);
}

/* A GGUF file's pre-tokeniser becomes a regular expression that has a splitter of its own. */
Test(doubles, the_patterns_made_for_gguf_files_are_those_with_a_fast_splitter)
{
    static const struct {
        const char *name;
        dms_splitter splitter;
    } cases[] = {{"llama-bpe", DMS_SPLIT_LLAMA3},
                 {"llama3", DMS_SPLIT_LLAMA3},
                 {"qwen2", DMS_SPLIT_QWEN2},
                 {"deepseek-r1-qwen", DMS_SPLIT_QWEN2}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        const dms_gguf_pre *pre = dms_gguf_pre_find(cases[i].name, strlen(cases[i].name));
        cr_assert_not_null(pre);
        json_t *made = dms_gguf_pre_make(pre);
        const json_t *split = json_array_get(json_object_get(made, "pretokenizers"), 0);
        const char *regex =
            json_string_value(json_object_get(json_object_get(split, "pattern"), "Regex"));
        cr_assert_not_null(regex, "%s", cases[i].name);
        cr_expect_eq(dms_splitter_recognise(regex, strlen(regex)), cases[i].splitter, "%s",
                     cases[i].name);
        json_decref(made);
    }
}
