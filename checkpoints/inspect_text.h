/* The views of dms-inspect as readable lines, made from their JSON objects alone. */
#ifndef DMS_INSPECT_TEXT_H
#define DMS_INSPECT_TEXT_H

#include <jansson.h>
#include <stdio.h>

/* Views: model, shard, diff, families (docs/inspect.md). Only printable ASCII is written, all else
 * as \uXXXX: a file's text must not steer a terminal. Failures of `out` stay in its error flag. */
void dms_inspect_print(FILE *out, const json_t *view);

#endif
