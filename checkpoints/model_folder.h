/* A model folder that takes its name only when complete, and leaves a user's own files alone. */
#ifndef DMS_MODEL_FOLDER_H
#define DMS_MODEL_FOLDER_H

#include <stdbool.h>

#include "checkpoints/temporary.h"

DMS_BEGIN_C

typedef struct {
    char *target;       /* without slashes at its end */
    dms_temporary made; /* where the caller writes, into made.path */
    char *removed;      /* after commit: the old model's files that the new one has no file of, ", "
                           between their names, not printable bytes as ?; NULL: none */
    bool force;
} dms_model_folder;

/* Nothing begun yet: what abort may be called on. */
#define DMS_MODEL_FOLDER_NONE ((dms_model_folder){.made = {.fd = -1}})

/* TARGET must be missing or an empty folder; with `force` it may be a folder with a config.json,
 * safetensors and no folders inside. One that an interrupted export moved aside is put back first.
 * DMS_ERR_IO says what is in the way. */
dms_status dms_model_folder_begin(dms_model_folder *f, const char *target, bool force);
/* A model's own files are config.json, generation_config.json, model.safetensors, its shards
 * (model-00001-of-00002.safetensors, and what the index lists) and the index, the files of a
 * tokenizer and its template, dms_adapter.safetensors and dms_metadata.json. The old ones go, also
 * those that the new model has none of (`removed`): they would contradict it; of what is replaced
 * the permissions stay. All other files of the old folder come along (as hard links, or copies
 * where the file system has none); then the folders change places in one step (renameat2), the old
 * one is removed, and the parent synced. A process killed at any moment leaves the old model or the
 * new one under the name, with those files in it. File systems without that step: the old one is
 * moved aside as TARGET.dms-XXXXXXXX.old and the new one takes its place; killed between the two,
 * dms_mapping_open names the former and dms_model_folder_begin puts it back. DMS_ERR_IO where it
 * failed; the target is as it was, except where the old folder cannot be removed, which the message
 * says. */
dms_status dms_model_folder_commit(dms_model_folder *f);
/* Removes what was made, where it was not committed, and frees. */
void dms_model_folder_abort(dms_model_folder *f);

DMS_END_C
#endif
