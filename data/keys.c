#include "data/keys.h"

#include <string.h>

const char *dms_key_type(const json_t *value)
{
    static const char *const names[] = {
        [JSON_OBJECT] = "an object", [JSON_ARRAY] = "an array", [JSON_STRING] = "a string",
        [JSON_INTEGER] = "a number", [JSON_REAL] = "a number",  [JSON_TRUE] = "true",
        [JSON_FALSE] = "false",      [JSON_NULL] = "null",
    };
    return value ? names[json_typeof(value)] : "missing";
}

dms_status dms_key_bool(bool *out, const json_t *object, const char *key, const char *where,
                        bool absent)
{
    const json_t *value = json_object_get(object, key);
    if (value && !json_is_null(value) && !json_is_boolean(value))
        return dms_fail(DMS_ERR_FORMAT, "%s: \"%s\" is %s, expected true or false", where, key,
                        dms_key_type(value));
    *out = value && json_is_boolean(value) ? json_is_true(value) : absent;
    return DMS_OK;
}

dms_status dms_key_text(const char **out, const json_t *object, const char *key, const char *where)
{
    const json_t *value = json_object_get(object, key);
    if (value && !json_is_null(value) && !json_is_string(value))
        return dms_fail(DMS_ERR_FORMAT, "%s: \"%s\" is %s, expected a string", where, key,
                        dms_key_type(value));
    const char *text = json_string_value(value);
    if (text && strlen(text) != json_string_length(value))
        return dms_fail(DMS_ERR_FORMAT, "%s: \"%s\" holds a NUL character", where, key);
    *out = text;
    return DMS_OK;
}
