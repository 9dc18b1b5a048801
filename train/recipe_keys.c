#include "train/recipe_keys.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/nearest.h"

#define AT(field) offsetof(dms_recipe, field)

static const dms_recipe_key keys[] = {
    {"model", "path", DMS_KEY_TEXT, AT(model.path), 0, 0, {0}},
    {"data", "train", DMS_KEY_PATHS, AT(data.train), 0, 0, {0}},
    {"data", "weights", DMS_KEY_REALS, AT(data.weights), 1e-6, 1e6, {0}},
    {"data", "heldout", DMS_KEY_TEXT, AT(data.heldout), 0, 0, {0}},
    {"data", "context", DMS_KEY_WHOLE, AT(data.context), 2, 1 << 20, {0}},
    {"dms", "gate", DMS_KEY_CHOICE, AT(dms.gate), 0, 0, {"none", "neuron", "adapter"}},
    {"dms", "window", DMS_KEY_WHOLE, AT(dms.window), 0, 1 << 20, {0}},
    {"dms", "tau", DMS_KEY_REAL, AT(dms.tau), 1e-3, 100, {0}},
    {"dms", "alpha_scale", DMS_KEY_REAL, AT(dms.alpha_scale), 1e-6, 1e6, {0}},
    {"dms", "alpha_offset", DMS_KEY_REAL, AT(dms.alpha_offset), -1e6, 1e6, {0}},
    {"schedule", "steps", DMS_KEY_WHOLE, AT(schedule.steps), 1, 1e9, {0}},
    {"schedule", "fade_steps", DMS_KEY_WHOLE, AT(schedule.fade_steps), 0, 1e9, {0}},
    {"schedule", "cr", DMS_KEY_REAL, AT(schedule.cr), 1, 1000, {0}},
    {"schedule", "ramp_steps", DMS_KEY_WHOLE, AT(schedule.ramp_steps), 1, 1e9, {0}},
    {"loss", "direction", DMS_KEY_CHOICE, AT(loss.direction), 0, 0, {"reverse", "forward"}},
    {"loss", "lambda", DMS_KEY_REAL, AT(loss.lambda), 0, 1e6, {0}},
    {"optim", "train", DMS_KEY_CHOICE, AT(optim.train), 0, 0, {"all", "attention", "gate"}},
    {"optim", "lr", DMS_KEY_REAL, AT(optim.lr), 0, 10, {0}},
    {"optim", "beta1", DMS_KEY_REAL, AT(optim.beta1), 0, 0.999999, {0}},
    {"optim", "beta2", DMS_KEY_REAL, AT(optim.beta2), 0, 0.999999, {0}},
    {"optim", "eps", DMS_KEY_REAL, AT(optim.eps), 1e-20, 1, {0}},
    {"optim", "weight_decay", DMS_KEY_REAL, AT(optim.weight_decay), 0, 10, {0}},
    {"optim", "clip", DMS_KEY_REAL, AT(optim.clip), 0, 1e9, {0}},
    {"run", "folder", DMS_KEY_TEXT, AT(run.folder), 0, 0, {0}},
    {"run", "seed", DMS_KEY_WHOLE, AT(run.seed), 0, 9e15, {0}},
    {"run", "batch", DMS_KEY_WHOLE, AT(run.batch), 1, 65536, {0}},
    {"run", "accumulate", DMS_KEY_WHOLE, AT(run.accumulate), 1, 65536, {0}},
    {"run", "compute", DMS_KEY_CHOICE, AT(run.compute), 0, 0, {"auto", "bf16", "f32"}},
    {"run", "replay", DMS_KEY_BOOL, AT(run.replay), 0, 0, {0}},
    {"run", "save_every", DMS_KEY_WHOLE, AT(run.save_every), 1, 1e9, {0}},
    {"run", "keep", DMS_KEY_WHOLE, AT(run.keep), 1, 1e6, {0}},
    {"run", "eval_every", DMS_KEY_WHOLE, AT(run.eval_every), 0, 1e9, {0}},
    {"run", "eval_sequences", DMS_KEY_WHOLE, AT(run.eval_sequences), 1, 1e9, {0}},
    {"device", "kind", DMS_KEY_CHOICE, AT(device.kind), 0, 0, {"auto", "cpu", "cuda", "cuda_emu"}},
    {"device", "threads", DMS_KEY_WHOLE, AT(device.threads), 0, 1024, {0}},
};
enum { N_KEYS = sizeof(keys) / sizeof(keys[0]), MAX_NAME = 64 };

const dms_recipe_key *dms_recipe_keys(size_t *n)
{
    *n = N_KEYS;
    return keys;
}

const dms_recipe_key *dms_recipe_find(const char *section, const char *key)
{
    for (size_t i = 0; i < N_KEYS; i++)
        if (!strcmp(keys[i].section, section) && !strcmp(keys[i].key, key))
            return &keys[i];
    return NULL;
}

dms_status dms_recipe_unknown(const char *section, const char *key)
{
    char wanted[MAX_NAME], text[N_KEYS][MAX_NAME];
    const char *names[N_KEYS + 1];
    snprintf(wanted, sizeof(wanted), "%s.%s", section, key);
    for (size_t i = 0; i < N_KEYS; i++) {
        snprintf(text[i], sizeof(text[i]), "%s.%s", keys[i].section, keys[i].key);
        names[i] = text[i];
    }
    names[N_KEYS] = "eval";
    return dms_fail(DMS_ERR_ARG, "unknown key %s; the nearest known key is %s", wanted,
                    dms_nearest(wanted, names, N_KEYS + 1));
}

static dms_status refuse(const dms_recipe_key *key, const char *value, const char *expected)
{
    return dms_fail(DMS_ERR_ARG, "%s.%s is \"%s\", expected %s", key->section, key->key, value,
                    expected);
}

static dms_status assign_number(void *field, const dms_recipe_key *key, const char *value)
{
    char expected[96], *end = NULL;
    const bool whole = key->type == DMS_KEY_WHOLE;
    errno = 0;
    const double real = strtod(value, &end);
    const bool bad = end == value || *end || errno || isnan(real) || real < key->low ||
                     real > key->high || (whole && floor(real) != real);
    snprintf(expected, sizeof(expected), "a %s from %g to %g", whole ? "whole number" : "number",
             key->low, key->high);
    if (bad)
        return refuse(key, value, expected);
    if (whole)
        *(int64_t *)field = (int64_t)real;
    else
        *(double *)field = real;
    return DMS_OK;
}

static dms_status assign_choice(int *field, const dms_recipe_key *key, const char *value)
{
    char expected[96] = "";
    for (int i = 0; key->choices[i]; i++) {
        if (!strcmp(key->choices[i], value)) {
            *field = i;
            return DMS_OK;
        }
        strcat(strcat(expected, i ? ", " : "one of "), key->choices[i]);
    }
    return refuse(key, value, expected);
}

static dms_status assign_bool(bool *field, const dms_recipe_key *key, const char *value)
{
    if (strcmp(value, "true") != 0 && strcmp(value, "false") != 0)
        return refuse(key, value, "true or false");
    *field = !strcmp(value, "true");
    return DMS_OK;
}

static dms_status assign_text(char *field, const dms_recipe_key *key, const char *value)
{
    if (strlen(value) >= DMS_PATH_SIZE)
        return refuse(key, value, "at most 511 characters");
    strcpy(field, value);
    return DMS_OK;
}

static dms_status assign_path(dms_paths *field, const dms_recipe_key *key, const char *value,
                              bool append)
{
    const int at = append ? field->n : 0;
    if (at == DMS_MAX_SHARDS)
        return refuse(key, value, "at most 16 files");
    DMS_TRY(assign_text(field->path[at], key, value));
    field->n = at + 1;
    return DMS_OK;
}

static dms_status assign_weight(dms_weights *field, const dms_recipe_key *key, const char *value,
                                bool append)
{
    const int at = append ? field->n : 0;
    if (at == DMS_MAX_SHARDS)
        return refuse(key, value, "at most 16 numbers");
    DMS_TRY(assign_number(&field->value[at], key, value));
    field->n = at + 1;
    return DMS_OK;
}

void dms_recipe_clear(dms_recipe *recipe, const dms_recipe_key *key)
{
    void *field = (char *)recipe + key->offset;
    if (key->type == DMS_KEY_PATHS)
        ((dms_paths *)field)->n = 0;
    else
        ((dms_weights *)field)->n = 0;
}

dms_status dms_recipe_assign(dms_recipe *recipe, const dms_recipe_key *key, const char *value,
                             bool append)
{
    void *field = (char *)recipe + key->offset;
    switch (key->type) {
    case DMS_KEY_TEXT:
        return assign_text(field, key, value);
    case DMS_KEY_PATHS:
        return assign_path(field, key, value, append);
    case DMS_KEY_REALS:
        return assign_weight(field, key, value, append);
    case DMS_KEY_WHOLE:
    case DMS_KEY_REAL:
        return assign_number(field, key, value);
    case DMS_KEY_BOOL:
        return assign_bool(field, key, value);
    case DMS_KEY_CHOICE:
        return assign_choice(field, key, value);
    }
    return DMS_OK;
}
