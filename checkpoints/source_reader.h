/* A source as the network sees it: named tensors, no format. */
#ifndef DMS_SOURCE_READER_H
#define DMS_SOURCE_READER_H

#include "checkpoints/layout.h"
#include "checkpoints/source.h"
#include "kernels/reader.h"

/* Borrows s. */
dms_reader dms_source_reader(const dms_source *s);

/* Whether the file holds an adapter gate and nothing else (dms-export --to adapter). */
bool dms_source_is_adapter(const dms_source *s);
/* DMS_ERR_FORMAT where it does, for those who want the whole model. */
dms_status dms_source_expect_model(const dms_source *s);

/* What of a file's tensor is ours, by that place, to dst of dtype F32 or BF16.
 * Errors: DMS_ERR_FORMAT (of another shape), those of dms_source_read. */
dms_status dms_source_read_part(const dms_source *s, const dms_tensor_info *info,
                                const dms_layout_place *place, void *dst, dms_dtype dtype);

#endif
