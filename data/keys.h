/* Typed reads of a JSON object's keys, with messages that name the key. */
#ifndef DMS_KEYS_H
#define DMS_KEYS_H

#include <jansson.h>
#include <stdbool.h>

#include "kernels/status.h"

DMS_BEGIN_C

/* "a string", "an object", ...; "missing" for NULL. */
const char *dms_key_type(const json_t *value);
/* `where` names the object in messages ("tokenizer.json: model"). An absent key and null give
 * `absent`; another type is DMS_ERR_FORMAT. */
dms_status dms_key_bool(bool *out, const json_t *object, const char *key, const char *where,
                        bool absent);
/* The text belongs to the object; NULL where the key is absent or null. Text with a 0 inside is
 * DMS_ERR_FORMAT. */
dms_status dms_key_text(const char **out, const json_t *object, const char *key, const char *where);

DMS_END_C
#endif
