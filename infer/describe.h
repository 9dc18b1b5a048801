/* What a model file means to this program, as JSON objects: network, gate, tokenizer, turn format.
 */
#ifndef DMS_DESCRIBE_H
#define DMS_DESCRIBE_H

#include <jansson.h>

#include "checkpoints/source.h"

/* docs/inspect.md documents every key. What a file holds and this program cannot use is described
 * with a `problem`, DMS_OK. Errors, of all: DMS_ERR_NOMEM. */

/* Sets the key architecture (null where there is no config): the numbers of the network, and
 * whether all of its weights are there in the right shapes. path: for messages. */
dms_status dms_describe_architecture(json_t *out, const dms_source *s, const char *path);
/* Sets the key dms (null without a gate): its settings, and the config's own dms_ keys. */
dms_status dms_describe_gate(json_t *out, const dms_source *s);
/* Sets the keys tokenizer and chat_template, null where the file has none. */
dms_status dms_describe_texts(json_t *out, const dms_source *s, const char *path);

/* Sets the key families: the table of model/family.h. */
dms_status dms_describe_families(json_t *out);
/* Sets the keys of a token shard. A wrong CRC-32 (with `verify`) is described. Errors: those of
 * dms_shard_open. */
dms_status dms_describe_shard(json_t *out, const char *path, bool verify);

#endif
