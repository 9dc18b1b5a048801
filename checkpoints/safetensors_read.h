/* Adding a safetensors file's tensors to a source; inside this folder only. */
#ifndef DMS_SAFETENSORS_READ_H
#define DMS_SAFETENSORS_READ_H

#include "checkpoints/source_build.h"

/* metadata (may be NULL): the header's __metadata__, owned by the caller, NULL where absent. */
dms_status dms_safetensors_add(dms_source *s, json_t **metadata, const char *path);

#endif
