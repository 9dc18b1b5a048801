/* A YAML document as a tree of JSON values. */
#ifndef DMS_YAML_TREE_H
#define DMS_YAML_TREE_H

#include <jansson.h>

#include "kernels/status.h"

/* Mappings become objects, sequences arrays; of plain scalars whole numbers become integers,
 * decimal ones reals, true and false booleans, null and nothing null; all else strings. The caller
 * ends it with json_decref. DMS_ERR_IO; DMS_ERR_ARG with file and line: not YAML, a key twice, an
 * alias, a key that is no scalar, more than 64 levels; DMS_ERR_NOMEM. */
dms_status dms_yaml_read(json_t **out, const char *path);
/* The same from text; `name` stands for the file in messages. */
dms_status dms_yaml_parse(json_t **out, const char *text, size_t length, const char *name);

#endif
