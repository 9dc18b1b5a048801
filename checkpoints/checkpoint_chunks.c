#include "checkpoints/checkpoint_chunks.h"

#include <stdlib.h>
#include <string.h>
#include <zlib.h>

/* Chunks of about this size; nothing smaller than one page is compressed. */
enum { CHUNK_BYTES = 4 << 20, SMALLEST_BYTES = 4096 };

bool dms_chunking_plan(dms_chunking *out, int rank, const int64_t *shape, size_t element)
{
    size_t row_bytes = element;
    for (int i = 1; i < rank; i++)
        row_bytes *= (size_t)shape[i];
    const size_t rows = rank ? (size_t)shape[0] : 0;
    if (rows * row_bytes < SMALLEST_BYTES || row_bytes > 64 * (size_t)CHUNK_BYTES)
        return false;
    const size_t most = row_bytes < CHUNK_BYTES ? CHUNK_BYTES / row_bytes : 1;
    *out = (dms_chunking){(int64_t)rows, (int64_t)(rows < most ? rows : most), row_bytes, element};
    return true;
}

int64_t dms_chunking_count(const dms_chunking *c)
{
    return (c->rows + c->chunk_rows - 1) / c->chunk_rows;
}

size_t dms_chunking_bytes(const dms_chunking *c)
{
    return (size_t)c->chunk_rows * c->row_bytes;
}

/* Bytes of chunk i that are in the tensor, and where they start. */
static size_t used_bytes(const dms_chunking *c, int64_t i, size_t *offset)
{
    const int64_t first = i * c->chunk_rows, left = c->rows - first;
    *offset = (size_t)first * c->row_bytes;
    return (size_t)(left < c->chunk_rows ? left : c->chunk_rows) * c->row_bytes;
}

dms_status dms_chunk_deflate(uint8_t **out, size_t *size, const dms_chunking *c, int64_t i,
                             const void *data)
{
    const size_t bytes = dms_chunking_bytes(c), n = bytes / c->element;
    size_t offset;
    const size_t used = used_bytes(c, i, &offset) / c->element;
    const uint8_t *from = (const uint8_t *)data + offset;
    uLongf room = compressBound((uLong)bytes);
    uint8_t *shuffled = calloc(1, bytes), *packed = malloc(room);
    dms_status status = DMS_OK;
    if (!shuffled || !packed)
        DMS_TRY_OR(done, dms_fail(DMS_ERR_NOMEM, "no memory to compress a chunk"));
    for (size_t b = 0; b < c->element; b++)
        for (size_t k = 0; k < used; k++)
            shuffled[b * n + k] = from[k * c->element + b];
    if (compress2(packed, &room, shuffled, (uLong)bytes, DMS_CHUNK_LEVEL) != Z_OK)
        DMS_TRY_OR(done, dms_fail(DMS_ERR_NOMEM, "no memory to compress a chunk"));
    *out = packed;
    *size = room;
    packed = NULL;
done:
    free(shuffled);
    free(packed);
    return status;
}

dms_status dms_chunk_inflate(void *data, const dms_chunking *c, int64_t i, const uint8_t *from,
                             size_t size)
{
    const size_t bytes = dms_chunking_bytes(c), n = bytes / c->element;
    size_t offset;
    const size_t used = used_bytes(c, i, &offset) / c->element;
    uint8_t *to = (uint8_t *)data + offset, *shuffled = malloc(bytes);
    uLongf got = (uLongf)bytes;
    if (!shuffled)
        return dms_fail(DMS_ERR_NOMEM, "no memory to inflate a chunk of %zu bytes", bytes);
    const int error = uncompress(shuffled, &got, from, (uLong)size);
    if (error || got != bytes) {
        free(shuffled);
        return error == Z_MEM_ERROR
                   ? dms_fail(DMS_ERR_NOMEM, "no memory to inflate a chunk of %zu bytes", bytes)
                   : dms_fail(DMS_ERR_FORMAT, "a compressed chunk is malformed");
    }
    for (size_t b = 0; b < c->element; b++)
        for (size_t k = 0; k < used; k++)
            to[k * c->element + b] = shuffled[b * n + k];
    free(shuffled);
    return DMS_OK;
}
