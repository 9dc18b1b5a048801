/* safetensors files: 8 bytes of header length, a JSON header, raw tensors without gaps. */
#ifndef DMS_SAFETENSORS_H
#define DMS_SAFETENSORS_H

#include "checkpoints/tensor_set.h"
#include "kernels/status.h"

DMS_BEGIN_C

/* Format: https://github.com/huggingface/safetensors (README). Reading goes through
 * dms_source_open, which takes F32, F16, BF16, I32 and lists the rest. The header is checked fully:
 * length, JSON without repeated keys, types, shapes, and that the tensors cover the rest of the
 * file without gap or overlap. */

/* Writes one file with metadata {"format": "pt"}, under a temporary name until it is complete.
 * Tensors are fetched one at a time, in order.
 * Errors: DMS_ERR_IO (disk full: nothing is left behind and an older file stays), DMS_ERR_NOMEM,
 * DMS_ERR_ARG (empty set), and what the set's fetch returns. */
dms_status dms_safetensors_write(const char *path, const dms_tensor_set *set);

/* Writes folder/model.safetensors where all tensors fit into shard_bytes; else
 * folder/model-00001-of-0000N.safetensors ... and folder/model.safetensors.index.json. A shard
 * holds whole tensors in order: one larger than shard_bytes gets a shard of its own. shard_bytes 0:
 * no limit. */
dms_status dms_safetensors_write_shards(const char *folder, const dms_tensor_set *set,
                                        size_t shard_bytes);

DMS_END_C
#endif
