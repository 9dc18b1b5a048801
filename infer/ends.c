#include "infer/ends.h"

#include <jansson.h>

void dms_ends_add(dms_ends *ends, int32_t id)
{
    if (id >= 0 && ends->n < DMS_MAX_EOS)
        ends->ids[ends->n++] = id;
}

void dms_ends_add_generation(dms_ends *ends, const char *text)
{
    json_t *keys = text ? json_loads(text, JSON_ALLOW_NUL, NULL) : NULL;
    const json_t *eos = json_object_get(keys, "eos_token_id");
    if (json_is_integer(eos))
        dms_ends_add(ends, (int32_t)json_integer_value(eos));
    for (size_t i = 0; i < json_array_size(eos); i++)
        if (json_is_integer(json_array_get(eos, i)))
            dms_ends_add(ends, (int32_t)json_integer_value(json_array_get(eos, i)));
    json_decref(keys);
}

bool dms_ends_have(const dms_ends *ends, const dms_config *config, int32_t id)
{
    bool found = dms_config_is_eos(config, id);
    for (int i = 0; i < ends->n; i++)
        found |= ends->ids[i] == id;
    return found;
}
