/* What is in a model file, as JSON objects: weights, texts, a checkpoint's state, integrity. */
#ifndef DMS_INSPECT_H
#define DMS_INSPECT_H

#include <jansson.h>

#include "checkpoints/source.h"

DMS_BEGIN_C

/* docs/inspect.md documents every key. Functions that make an object give it to the caller; NULL,
 * without a message, where there is no memory. */

/* A string whatever the bytes: each that begins no character of UTF-8 becomes U+FFFD. */
json_t *dms_inspect_text(const char *text);
/* What dms_error_message says, as such a string. */
json_t *dms_inspect_problem(void);

/* Sets the keys path, format, files, file_bytes, weights and texts; with `tensors` also
 * tensor_list. DMS_ERR_NOMEM. */
dms_status dms_inspect_weights(json_t *out, const dms_source *s, const char *path, bool tensors);

/* Sets the key checkpoint: numbers, groups and teacher of one of our checkpoints, else null.
 * Errors: those of dms_checkpoint_open. */
dms_status dms_inspect_checkpoint(json_t *out, const dms_source *s, const char *path);

/* Sets the key integrity: what opening has checked; with `verify` also every CRC-32 of a checkpoint
 * and that every value is finite. A file that fails is described (integrity.problem), DMS_OK.
 * Errors: DMS_ERR_NOMEM; those of dms_checkpoint_open. */
dms_status dms_inspect_integrity(json_t *out, const dms_source *s, const char *path, bool verify);

/* The comparison of two files (dms_source_diff), all keys of that view. */
dms_status dms_inspect_diff(json_t *out, const char *const paths[2], double tolerance);

DMS_END_C
#endif
