#include "infer/describe.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/inspect.h"
#include "checkpoints/source_reader.h"
#include "data/shard.h"
#include "kernels/decimal.h"
#include "model/family.h"
#include "model/model.h"

static dms_status set(json_t *out, const char *key, json_t *value)
{
    return json_object_set_new(out, key, value)
               ? dms_fail(DMS_ERR_NOMEM, "no memory to describe a file")
               : DMS_OK;
}

/* ---- network -------------------------------------------------------------------------------- */

/* Whether the file has every weight that its config and gate want. */
static dms_status check_weights(const dms_source *s, const dms_config *c)
{
    dms_device *device;
    dms_model *model = NULL;
    dms_status status;
    DMS_TRY(dms_cpu_open(&device, 1));
    dms_model_options o = {.config = *c, .device = device, .matrix_type = DMS_F32, .positions = 1};
    DMS_TRY_OR(done, dms_gate_parse(&o.gate, dms_source_config(s)));
    DMS_TRY_OR(done, dms_model_open(&model, &o));
    const dms_reader reader = dms_source_reader(s);
    DMS_TRY_OR(done, dms_model_check(model, &reader, false));
done:
    dms_model_close(model);
    device->close(device);
    return status;
}

static json_t *eos_list(const dms_config *c)
{
    json_t *list = json_array();
    int bad = 0;
    for (int i = 0; i < c->n_eos; i++)
        bad |= json_array_append_new(list, json_integer(c->eos[i]));
    if (!bad)
        return list;
    json_decref(list);
    return NULL;
}

static json_t *rope(const dms_config *c)
{
    const dms_rope_scaling *r = &c->rope_scaling;
    if (c->positions != DMS_POSITIONS_ROPE)
        return json_null();
    if (r->factor == 0)
        return json_pack("{s:f, s:n}", "theta", c->rope_theta, "scaling");
    return json_pack("{s:f, s:{s:s, s:f, s:f, s:f, s:I}}", "theta", c->rope_theta, "scaling",
                     "type", "llama3", "factor", r->factor, "low_freq_factor", r->low_freq_factor,
                     "high_freq_factor", r->high_freq_factor, "original_positions",
                     (json_int_t)r->original_positions);
}

static json_t *network(const dms_config *c)
{
    const dms_family *f = dms_family_find(c->family);
    return json_pack(
        "{s:s, s:i, s:i, s:i, s:i, s:I, s:I, s:I, s:I, s:s, s:f, s:s, s:o, s:s, s:b, s:b, s:b, "
        "s:b, s:o, s:o}",
        "model_type", c->family, "layers", c->layers, "heads", c->heads, "kv_heads", c->kv_heads,
        "head_dim", c->head_dim, "width", (json_int_t)c->width, "ffn", (json_int_t)c->ffn,
        "vocabulary", (json_int_t)c->vocab, "positions", (json_int_t)c->max_positions, "norm",
        dms_norm_name(f->norm), "norm_eps", dms_decimal(c->norm_eps), "position_kind",
        dms_position_name(f->positions), "rope", rope(c), "ffn_kind", dms_ffn_name(f->ffn),
        "qkv_bias", c->qkv_bias, "o_bias", c->o_bias, "qk_norm", c->qk_norm, "tied", c->tied, "bos",
        c->bos < 0 ? json_null() : json_integer(c->bos), "eos", eos_list(c));
}

dms_status dms_describe_architecture(json_t *out, const dms_source *s, const char *path)
{
    const json_t *config = dms_source_config(s);
    dms_config c;
    dms_status status;
    json_t *value;
    if (!config)
        return set(out, "architecture", json_null());
    const bool adapter = dms_source_is_adapter(s);
    if (adapter)
        status = dms_fail(DMS_ERR_FORMAT, "%s holds an adapter gate alone, without its base model",
                          path);
    else
        status = dms_config_parse(&c, config);
    if (status) {
        const char *type = json_string_value(json_object_get(config, "model_type"));
        value = json_pack("{s:s?}", "model_type", type);
    } else {
        value = network(&c);
        status = check_weights(s, &c);
    }
    json_t *problem = status ? dms_inspect_problem() : json_null();
    if (status == DMS_ERR_NOMEM ||
        json_object_set_new(value, "adapter_only", json_boolean(adapter)) ||
        json_object_set_new(value, "supported", json_boolean(!status)) ||
        json_object_set(value, "problem", problem)) {
        json_decref(value);
        value = NULL;
    }
    json_decref(problem);
    return set(out, "architecture", value);
}

/* ---- gate ----------------------------------------------------------------------------------- */

/* The keys that begin with dms_, as they are. */
static json_t *gate_keys(const json_t *config)
{
    json_t *keys = json_object(), *value;
    const char *name;
    int bad = keys ? 0 : 1;
    json_object_foreach((json_t *)(uintptr_t)config, name, value)
    {
        if (!strncmp(name, "dms_", 4))
            bad |= json_object_set(keys, name, value);
    }
    if (!bad)
        return keys;
    json_decref(keys);
    return NULL;
}

static int64_t count_gate_tensors(const dms_source *s)
{
    int64_t n = 0;
    for (int64_t i = 0; i < dms_source_count(s); i++)
        n += dms_layout_is_gate(dms_source_info(s, i)->name);
    return n;
}

/* Whose classes the folder names as its code (checkpoints/nvidia.h). */
static const char *layout(const json_t *config)
{
    const json_t *map = json_object_get(config, "auto_map");
    const char *class = json_string_value(json_object_get(map, "AutoModelForCausalLM"));
    if (!class || !strstr(class, "_dms."))
        return "plain";
    return strstr(class, "ForCausalLMDMS") ? "nvidia-trainer" : "nvidia-released";
}

static json_t *settings(const dms_source *s, const dms_gate *g)
{
    const json_t *config = dms_source_config(s), *cr = json_object_get(config, "dms_cr");
    double shift = g->own ? 0 : 1;
    dms_source_number(s, "shift", &shift);
    return json_pack("{s:s, s:I, s:f, s:f, s:f, s:o, s:I, s:s}", "gate", dms_gate_name(g->kind),
                     "window", (json_int_t)g->window, "alpha_scale", dms_decimal(g->alpha_scale),
                     "alpha_offset", dms_decimal(g->alpha_offset), "tau", dms_decimal(g->tau), "cr",
                     json_is_number(cr) ? json_deep_copy(cr) : json_null(), "shift",
                     (json_int_t)shift, "layout", layout(config));
}

dms_status dms_describe_gate(json_t *out, const dms_source *s)
{
    const json_t *config = dms_source_config(s);
    const int64_t tensors = count_gate_tensors(s);
    dms_gate gate = dms_gate_defaults();
    json_t *keys = gate_keys(config);
    if (!keys)
        return set(out, "dms", NULL);
    if (!json_object_size(keys) && !tensors) {
        json_decref(keys);
        return set(out, "dms", json_null());
    }
    dms_status status = dms_gate_parse(&gate, config);
    if (!status && tensors && gate.kind != DMS_GATE_ADAPTER)
        status =
            dms_fail(DMS_ERR_FORMAT, "there are tensors dms_proj_alpha, but no config that says "
                                     "dms_separate_alpha: true with a dms_window_size");
    json_t *value = status ? json_object() : settings(s, &gate);
    const int bad =
        json_object_set_new(value, "gate_tensors", json_integer(tensors)) |
        json_object_set_new(value, "keys", keys) |
        json_object_set_new(value, "problem", status ? dms_inspect_problem() : json_null());
    if (!bad)
        return set(out, "dms", value);
    json_decref(value);
    return set(out, "dms", NULL);
}

/* ---- families and shards -------------------------------------------------------------------- */

dms_status dms_describe_families(json_t *out)
{
    json_t *list = json_array();
    const dms_family *f;
    int bad = 0;
    for (int i = 0; (f = dms_family_at(i)); i++)
        bad |= json_array_append_new(
            list, json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:b, s:b}", "model_type",
                            f->model_type, "models", f->models, "norm", dms_norm_name(f->norm),
                            "positions", dms_position_name(f->positions), "ffn",
                            dms_ffn_name(f->ffn), "activation", f->activation, "qkv_bias",
                            dms_bias_name(f->qkv_bias), "o_bias", dms_bias_name(f->o_bias),
                            "qk_norm", f->qk_norm, "tied_by_default", f->tied_by_default));
    if (!bad)
        return set(out, "families", list);
    json_decref(list);
    return set(out, "families", NULL);
}

static json_t *shard_keys(const dms_shard *shard)
{
    char crc[16];
    const dms_shard_info *info = dms_shard_get_info(shard);
    snprintf(crc, sizeof(crc), "%08x", info->tokenizer_crc);
    return json_pack("{s:s, s:I, s:I, s:I, s:I, s:s?}", "format", info->format, "file_bytes",
                     (json_int_t)info->file_bytes, "tokens", (json_int_t)info->n_tokens, "id_bytes",
                     (json_int_t)info->id_bytes, "vocabulary", (json_int_t)info->vocab,
                     "tokenizer_crc32", info->foreign ? NULL : crc);
}

dms_status dms_describe_shard(json_t *out, const char *path, bool verify)
{
    dms_shard *shard;
    DMS_TRY(dms_shard_open(&shard, path));
    const dms_status found = verify ? dms_shard_verify(shard) : DMS_OK;
    json_t *keys = shard_keys(shard);
    const bool foreign = dms_shard_get_info(shard)->foreign;
    json_t *integrity = json_pack(
        "{s:s, s:s?, s:b, s:o}", "opening",
        foreign ? "header, size of the file, every id" : "CRC-32 of the header, size of the file",
        "checksums", foreign ? NULL : "CRC-32", "verified", verify && !found, "problem",
        found ? dms_inspect_problem() : json_null());
    const int bad = json_object_set_new(out, "path", dms_inspect_text(path)) |
                    json_object_update(out, keys) |
                    json_object_set_new(out, "integrity", integrity);
    json_decref(keys);
    dms_shard_close(shard);
    return bad ? dms_fail(DMS_ERR_NOMEM, "no memory to describe %s", path) : DMS_OK;
}
