/* Compressed tensors of our checkpoint: chunks of whole rows, shuffled and deflated; inside this
 * folder only. */
#ifndef DMS_CHECKPOINT_CHUNKS_H
#define DMS_CHECKPOINT_CHUNKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/status.h"

/* Of zlib. */
enum { DMS_CHUNK_LEVEL = 4 };

/* How a tensor is cut: chunk i holds rows [i*chunk_rows, (i+1)*chunk_rows), zeros beyond the last
 * row. HDF5 wants every chunk of the same size. */
typedef struct {
    int64_t rows, chunk_rows;
    size_t row_bytes, element;
} dms_chunking;

/* Whether a tensor of this many bytes is worth cutting, and how. shape: of rank >= 1. */
bool dms_chunking_plan(dms_chunking *out, int rank, const int64_t *shape, size_t element);
int64_t dms_chunking_count(const dms_chunking *c);
/* Bytes of one chunk, inflated. */
size_t dms_chunking_bytes(const dms_chunking *c);

/* Chunk i of `data` (the whole tensor) through HDF5's filters: shuffle (all first bytes of the
 * elements, then all second ones, ...), then deflate in zlib's format. The caller frees *out. */
dms_status dms_chunk_deflate(uint8_t **out, size_t *size, const dms_chunking *c, int64_t i,
                             const void *data);
/* Back into its rows of `data`; DMS_ERR_FORMAT where it is not exactly one chunk. */
dms_status dms_chunk_inflate(void *data, const dms_chunking *c, int64_t i, const uint8_t *from,
                             size_t size);

#endif
