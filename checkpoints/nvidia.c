#include "checkpoints/nvidia.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "checkpoints/model_type.h"

/* Sets a key that is absent or null. */
static int set_default(json_t *keys, const char *key, json_t *value)
{
    const json_t *old = json_object_get(keys, key);
    if (old && !json_is_null(old)) {
        json_decref(value);
        return 0;
    }
    return json_object_set_new(keys, key, value);
}

static double number_of(const json_t *keys, const char *key, double fallback)
{
    const json_t *value = json_object_get(keys, key);
    return json_is_number(value) ? json_number_value(value) : fallback;
}

/* A key that NVIDIA's class declares as int: 8.0 becomes 8. */
static int make_whole(json_t *keys, const char *key)
{
    const double x = number_of(keys, key, 0.5);
    if (!json_is_real(json_object_get(keys, key)) || x != floor(x) || fabs(x) > 1e9)
        return 0;
    return json_object_set_new(keys, key, json_integer((json_int_t)x));
}

/* auto_map and, where the layout has them, architectures. */
static int set_classes(json_t *keys, const dms_model_type *family, bool adapter)
{
    char config[96], model[96], plain[48];
    const char *end = adapter ? "DMS" : "";
    snprintf(plain, sizeof(plain), "%s%s", family->class_begin, family->class_end);
    snprintf(config, sizeof(config), "configuration_%s_dms.%sConfig%s", family->name,
             family->class_begin, end);
    snprintf(model, sizeof(model), "modeling_%s_dms.%s%s", family->name, plain, end);
    json_object_del(keys, "architectures");
    int bad = adapter ? 0 : json_object_set_new(keys, "architectures", json_pack("[s]", plain));
    bad |= json_object_set_new(
        keys, "auto_map",
        json_pack("{s:s, s:s}", "AutoConfig", config, "AutoModelForCausalLM", model));
    return bad;
}

static int set_common(json_t *keys)
{
    return set_default(keys, "dms_alpha_scale", json_real(100)) |
           set_default(keys, "dms_initial_alpha_offset", json_real(5)) |
           set_default(keys, "dms_window_size", json_integer(512)) |
           make_whole(keys, "dms_window_size") | make_whole(keys, "dms_cr");
}

static int set_trainer(json_t *keys)
{
    json_int_t block = 256;
    const double window = number_of(keys, "dms_window_size", 512);
    while ((double)block >= window)
        block /= 2;
    if (number_of(keys, "dms_paged_attention_block_size", 256) >= window)
        json_object_del(keys, "dms_paged_attention_block_size");
    return set_default(keys, "dms_paged_attention_block_size", json_integer(block)) |
           set_default(keys, "dms_alpha_per", json_string("head")) |
           set_default(keys, "dms_tau", json_real(0.1)) |
           set_default(keys, "dms_disable_eviction", json_false()) |
           set_default(keys, "dms_manual_inference_mode", json_false()) |
           set_default(keys, "dms_chunked_prefill", json_null()) |
           set_default(keys, "dms_preallocate_for_tokens", json_integer(4096));
}

/* The released checkpoint has no other keys: these are left out where they say nothing new. */
static void drop_trainer(json_t *keys)
{
    json_object_del(keys, "dms_separate_alpha");
    json_object_del(keys, "dms_alpha_per");
    if (number_of(keys, "dms_tau", 0.1) == 0.1)
        json_object_del(keys, "dms_tau");
}

static dms_status check(const json_t *config, bool adapter)
{
    if (!dms_model_type_of(config)) {
        char known[128];
        const char *type = json_string_value(json_object_get(config, "model_type"));
        return dms_fail(DMS_ERR_ARG, "model_type is %.40s, expected %s", type ? type : "absent",
                        dms_model_type_list(known, "or"));
    }
    if (!dms_model_type_has_gate(config))
        return dms_fail(DMS_ERR_ARG, "the model has no gate (no dms_ keys in its config), expected "
                                     "a retrofitted one");
    if (number_of(config, "dms_shift", 1) == 0)
        return dms_fail(
            DMS_ERR_ARG,
            "the model's decisions govern their own token (dms_shift 0), "
            "NVIDIA's the one before: it cannot have NVIDIA's layout; --to hf keeps it as it is");
    if (adapter && number_of(config, "dms_window_size", 512) < 2)
        return dms_fail(DMS_ERR_ARG,
                        "dms_window_size is %g, expected 2 or more: it must exceed "
                        "dms_paged_attention_block_size in NVIDIA's layout",
                        number_of(config, "dms_window_size", 512));
    return DMS_OK;
}

dms_status dms_nvidia_config(json_t **out, const json_t *config)
{
    const bool adapter = json_is_true(json_object_get(config, "dms_separate_alpha"));
    DMS_TRY(check(config, adapter));
    json_t *keys = json_deep_copy(config);
    int bad = !keys || set_common(keys);
    if (!bad && adapter)
        bad = set_trainer(keys);
    else if (!bad)
        drop_trainer(keys);
    json_object_del(keys, "dms_shift");
    bad = bad || set_classes(keys, dms_model_type_of(config), adapter);
    if (bad) {
        json_decref(keys);
        return dms_fail(DMS_ERR_NOMEM, "no memory for the config's keys");
    }
    *out = keys;
    return DMS_OK;
}

/* Whether auto_map names code of this layout. */
static bool names_dms_code(const json_t *config)
{
    const char *key;
    json_t *value, *map = json_object_get(config, "auto_map");
    json_object_foreach(map, key, value)
    {
        const char *code = json_string_value(value);
        if (code && strstr(code, "_dms."))
            return true;
    }
    return false;
}

dms_status dms_plain_config(json_t **out, const json_t *config)
{
    char name[48];
    const dms_model_type *family = dms_model_type_of(config);
    json_t *keys = json_deep_copy(config);
    int bad = !keys;
    if (names_dms_code(keys)) {
        json_object_del(keys, "auto_map");
        if (family) {
            snprintf(name, sizeof(name), "%s%s", family->class_begin, family->class_end);
            bad |= set_default(keys, "architectures", json_pack("[s]", name));
        }
    }
    if (bad) {
        json_decref(keys);
        return dms_fail(DMS_ERR_NOMEM, "no memory for the config's keys");
    }
    *out = keys;
    return DMS_OK;
}
