/* Token files of other tools, which dms_shard_open reads as they are: where their ids lie. */
#ifndef DMS_SHARD_FOREIGN_H
#define DMS_SHARD_FOREIGN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/status.h"

DMS_BEGIN_C

/* All little-endian, and without a word of the tokenizer that the ids are of:
 *    NumPy      .npy of version 1.0 or 2.0 (numpy.lib.format): one dimension of <u2, <u4, <i4 or
 *               <i8, known by its first bytes
 *    llm.c      i32 20240520, i32 1, i32 number of ids, zeros up to 1024 bytes; then u16 ids; for
 *               Llama 3 20240801, 7 and u32 ids (dev/data/data_common.py); known by the first two
 *    nanoGPT    u16 ids from the first byte to the last (data/.../prepare.py's tofile), known by
 * the name's ending in .bin */
typedef struct {
    const char *format; /* for people: "NumPy array of u16" */
    size_t at;          /* where the ids begin */
    int id_bytes;       /* 2, 4 or 8 */
    bool is_signed;
    int64_t n_tokens;
} dms_shard_foreign;

/* How many bytes of its beginning tell what a file is. */
enum { DMS_SHARD_FOREIGN_BYTES = 8 };
/* By the file's first n bytes (all of a shorter file) and its name. */
bool dms_shard_foreign_recognise(const uint8_t *bytes, size_t n, const char *path);
/* Of a whole file that was recognised. The ids themselves are not looked at. Errors:
 * DMS_ERR_FORMAT: what the header has and should have, a size other than it says. */
dms_status dms_shard_foreign_read(dms_shard_foreign *out, const uint8_t *bytes, size_t n,
                                  const char *path);

DMS_END_C
#endif
