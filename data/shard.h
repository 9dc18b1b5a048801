/* Token shards: files of token ids, written once and then mapped. */
#ifndef DMS_SHARD_H
#define DMS_SHARD_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/status.h"

DMS_BEGIN_C

/* The file, little-endian: a header of 64 bytes, then the ids.
 *    0  "DMSTOKS1"
 *    8  u32 bytes an id: 2 for vocabularies up to 65,536, else 4
 *   12  u32 CRC-32 of the tokenizer.json the ids came from
 *   16  u64 number of ids
 *   24  u64 vocabulary size: each id is below it
 *   32  u32 CRC-32 of the ids' bytes
 *   36  zeros
 *   60  u32 CRC-32 of the 60 bytes before
 * Documents lie one after another, each ended by the end-of-text id. */
typedef struct {
    int64_t n_tokens, vocab; /* vocab of a foreign file: its largest id + 1 */
    uint32_t tokenizer_crc;  /* of a foreign file 0 */
    bool foreign;            /* a token file of another tool (data/shard_foreign.h) */
    int id_bytes;
    int64_t file_bytes;
    const char *format; /* for people: "token shard", "NumPy array of u16", ... */
} dms_shard_info;

typedef struct dms_shard dms_shard;

/* True for a regular file that begins as our shards do; false also where it cannot be read. */
bool dms_shard_recognise(const char *path);
/* The same, or a token file of another tool by its beginning or its name: whatever may be opened,
 * but not what may be replaced. */
bool dms_shard_recognise_any(const char *path);
/* Maps the file; replacing it by rename is safe meanwhile, truncating it is not. All ids of a
 * foreign file are looked at, for nothing else says what they are below. Errors: DMS_ERR_IO;
 * DMS_ERR_FORMAT (no shard, a damaged header, a size other than the header says, a foreign file's
 * id that is negative or above 2^31 - 2); DMS_ERR_NOMEM. */
dms_status dms_shard_open(dms_shard **out, const char *path);
/* NULL is legal. */
void dms_shard_close(dms_shard *s);
const dms_shard_info *dms_shard_get_info(const dms_shard *s);
/* ids[i] = token start + i, for i < n. Errors: DMS_ERR_ARG (not within the shard), DMS_ERR_FORMAT
 * (an id that is not below the vocabulary size: the file is damaged). */
dms_status dms_shard_read(const dms_shard *s, int32_t *ids, int64_t start, int64_t n);
/* Reads all of the file: DMS_ERR_FORMAT where its CRC-32 differs. A foreign one has none. */
dms_status dms_shard_verify(const dms_shard *s);

typedef struct dms_shard_writer dms_shard_writer;

/* Writes to "PATH.partial"; nothing is at PATH, or the file that was there stays, until commit.
 * Errors: DMS_ERR_ARG (vocab not in 1..2^31-1), DMS_ERR_IO, DMS_ERR_NOMEM. */
dms_status dms_shard_writer_open(dms_shard_writer **out, const char *path, int64_t vocab,
                                 uint32_t tokenizer_crc);
/* Errors: DMS_ERR_ARG (an id outside 0..vocab-1), DMS_ERR_IO. */
dms_status dms_shard_writer_append(dms_shard_writer *w, const int32_t *ids, int64_t n);
/* Completes the header, syncs and renames. The writer takes nothing more; close it.
 * Errors: DMS_ERR_IO (PATH is as it was). */
dms_status dms_shard_writer_commit(dms_shard_writer *w);
/* Frees the writer and, without a commit, drops what was written. NULL is legal. */
void dms_shard_writer_close(dms_shard_writer *w);

DMS_END_C
#endif
