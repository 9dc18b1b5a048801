#include "model/gate.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/decimal.h"

static const char *const names[] = {
    [DMS_GATE_NONE] = "none", [DMS_GATE_NEURON] = "neuron", [DMS_GATE_ADAPTER] = "adapter"};

const char *dms_gate_name(dms_gate_kind kind)
{
    return names[kind];
}

dms_status dms_gate_from_name(dms_gate_kind *out, const char *name)
{
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (!strcmp(name, names[i])) {
            *out = (dms_gate_kind)i;
            return DMS_OK;
        }
    return dms_fail(DMS_ERR_ARG, "gate is \"%s\", expected neuron, adapter or none", name);
}

dms_gate dms_gate_defaults(void)
{
    return (dms_gate){.window = 512, .alpha_scale = 100.0f, .alpha_offset = 5.0f, .tau = 0.1f};
}

static dms_status read_number(double *out, const json_t *keys, const char *key, double low)
{
    const json_t *v = json_object_get(keys, key);
    if (!v || json_is_null(v))
        return DMS_OK;
    if (!json_is_number(v) || !(json_number_value(v) >= low) || json_number_value(v) > 1e9) {
        char expected[48];
        snprintf(expected, sizeof(expected), "a number from %g to 1e9", low);
        return dms_config_refuse(key, v, expected);
    }
    *out = json_number_value(v);
    return DMS_OK;
}

/* Whether the config describes a gate at all. */
static bool has_gate(const json_t *keys)
{
    static const char *const any[] = {"dms_window_size", "dms_alpha_scale",
                                      "dms_initial_alpha_offset", "dms_separate_alpha"};
    for (size_t i = 0; i < sizeof(any) / sizeof(any[0]); i++) {
        const json_t *v = json_object_get(keys, any[i]);
        if (v && !json_is_null(v))
            return true;
    }
    return false;
}

/* Settings that change what a checkpoint computes and that have one supported value. */
static dms_status check_fixed(const json_t *keys)
{
    const json_t *per = json_object_get(keys, "dms_alpha_per");
    const json_t *off = json_object_get(keys, "dms_disable_eviction");
    if (per && !json_is_null(per) &&
        (!json_is_string(per) || strcmp(json_string_value(per), "head") != 0))
        return dms_config_refuse("dms_alpha_per", per, "\"head\"");
    if (off && !json_is_null(off) && !json_is_false(off))
        return dms_config_refuse(
            "dms_disable_eviction", off,
            "false; set it so, and run the model without eviction if you wish");
    return DMS_OK;
}

static dms_status read_flag(bool *out, const json_t *keys, const char *key)
{
    const json_t *v = json_object_get(keys, key);
    if (v && !json_is_null(v) && !json_is_boolean(v))
        return dms_config_refuse(key, v, "true or false");
    *out = json_is_true(v);
    return DMS_OK;
}

static dms_status read_shift(bool *own, const json_t *keys)
{
    const json_t *v = json_object_get(keys, "dms_shift");
    const json_int_t shift = json_is_integer(v) ? json_integer_value(v) : -1;
    if (v && !json_is_null(v) && shift != 0 && shift != 1)
        return dms_config_refuse("dms_shift", v, "1 or 0");
    *own = shift == 0;
    return DMS_OK;
}

dms_status dms_gate_parse(dms_gate *out, const json_t *keys)
{
    dms_gate gate = dms_gate_defaults();
    double window = (double)gate.window, scale = (double)gate.alpha_scale;
    double offset = (double)gate.alpha_offset, tau = (double)gate.tau;
    bool separate = false;
    if (!has_gate(keys)) {
        *out = gate;
        return DMS_OK;
    }
    DMS_TRY(read_number(&window, keys, "dms_window_size", 0));
    if (window != floor(window))
        return dms_config_refuse("dms_window_size", json_object_get(keys, "dms_window_size"),
                                 "a whole number");
    DMS_TRY(read_number(&scale, keys, "dms_alpha_scale", 0));
    DMS_TRY(read_number(&offset, keys, "dms_initial_alpha_offset", -1e9));
    DMS_TRY(read_number(&tau, keys, "dms_tau", 1e-6));
    DMS_TRY(read_flag(&separate, keys, "dms_separate_alpha"));
    DMS_TRY(check_fixed(keys));
    DMS_TRY(read_shift(&gate.own, keys));
    *out = (dms_gate){.kind = separate ? DMS_GATE_ADAPTER : DMS_GATE_NEURON,
                      .window = (int64_t)window,
                      .alpha_scale = (float)scale,
                      .alpha_offset = (float)offset,
                      .tau = (float)tau,
                      .own = gate.own};
    return DMS_OK;
}

dms_status dms_gate_settle(dms_gate *gate, int64_t shift)
{
    if (shift < 0 && gate->own)
        return dms_fail(
            DMS_ERR_ARG,
            "the model's decisions govern their own token (shift 0, as FastDMS trains), "
            "expected the one before (shift 1); say --dms-shift 0 to run it as trained");
    if (shift == 0 && gate->kind == DMS_GATE_NONE)
        return dms_fail(DMS_ERR_ARG, "--dms-shift 0 is for models with a gate, this one has none");
    if (shift >= 0)
        gate->own = shift == 0;
    return DMS_OK;
}

dms_status dms_gate_write(json_t *keys, const dms_gate *gate, double cr)
{
    int bad = 0;
    if (gate->kind == DMS_GATE_NONE)
        return DMS_OK;
    bad |= json_object_set_new(keys, "dms_window_size", json_integer(gate->window));
    bad |= json_object_set_new(keys, "dms_alpha_scale", json_real(dms_decimal(gate->alpha_scale)));
    bad |= json_object_set_new(keys, "dms_initial_alpha_offset",
                               json_real(dms_decimal(gate->alpha_offset)));
    bad |= json_object_set_new(keys, "dms_separate_alpha",
                               json_boolean(gate->kind == DMS_GATE_ADAPTER));
    bad |= json_object_set_new(keys, "dms_alpha_per", json_string("head"));
    bad |= json_object_set_new(keys, "dms_tau", json_real(dms_decimal(gate->tau)));
    json_object_del(keys, "dms_shift");
    if (gate->own)
        bad |= json_object_set_new(keys, "dms_shift", json_integer(0));
    if (cr > 0)
        bad |= json_object_set_new(keys, "dms_cr", json_real(cr));
    return bad ? dms_fail(DMS_ERR_NOMEM, "no memory for the config's keys") : DMS_OK;
}
