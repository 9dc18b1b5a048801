/* A task as a YAML mapping says it: one table of keys for everything that reads such mappings. */
#ifndef DMS_TASK_SPEC_H
#define DMS_TASK_SPEC_H

#include <jansson.h>

#include "eval/runner.h"

/* Room for the paths of many tasks; the caller's. */
typedef struct {
    const char **all; /* [most] */
    int n, most;
} dms_task_paths;

/* The values of a tree, which strings of *out point into: DMS_ERR_ARG names the key and what was
 * expected. Whole numbers go to 9e15. */
dms_status dms_value_text(const char **out, const json_t *value, const char *key);
dms_status dms_value_whole(int64_t *out, const json_t *value, const char *key, int64_t low);
/* A text or a list of them, appended to `out`, which has n and has room for `most`. */
dms_status dms_value_texts(const char **out, int *n, int most, const json_t *value,
                           const char *key);

/* Reads {task: kld, text: ..., ...} over the values in *spec; its keys are those of dms_task_spec,
 * with `text` for paths of text and `file` for items, and `name`, which goes to *name. `also`: a
 * key that the caller took out before, for the message that names the nearest; NULL: none.
 * DMS_ERR_ARG as above, and for an unknown key; whether the whole is sound, dms_task_positions
 * says.
 */
dms_status dms_task_spec_read(dms_task_spec *spec, const char **name, dms_task_paths *paths,
                              const json_t *tree, const char *also);

#endif
