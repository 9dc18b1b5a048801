#include <jansson.h>

#include "model/gate.h"
#include "tests/fuzz/fuzz.h"

void fuzz_config(const uint8_t *data, size_t size)
{
    dms_config config;
    dms_gate gate;
    json_t *keys =
        json_loadb((const char *)data, size, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, NULL);
    if (json_is_object(keys)) {
        (void)dms_config_parse(&config, keys);
        (void)dms_gate_parse(&gate, keys);
    }
    json_decref(keys);
}
