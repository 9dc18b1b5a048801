/* Our checkpoint: one HDF5 file with weights, configuration, tokenizer and the state of training.
 */
#ifndef DMS_CHECKPOINT_H
#define DMS_CHECKPOINT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "checkpoints/source.h"
#include "checkpoints/tensor_set.h"
#include "kernels/status.h"
#include "kernels/tensor.h"

DMS_BEGIN_C

/* Layout (docs/format.md has all of it). Root attributes: format "dms", version 2, and every
 * number. A group a kind of tensor (/weights, /masters, /adam_m, /adam_v, or what the writer
 * names), in it one dataset a tensor under its name, contiguous or in compressed chunks of rows:
 * F32 and I32 as such, F16 and BF16 as 2-byte float types. Group /texts: one string dataset a text.
 * Each dataset has the attribute crc32 (of zlib) over its bytes, uncompressed. Version 1, without
 * F16 and compression, is read.
 *
 * HDF5's own structures are not fully guarded against corruption. So behind the end HDF5 knows, the
 * file has a trailer of ours: the list of the datasets' extents and a CRC-32 over everything
 * outside them. Opening checks the HDF5 signature, the trailer, that CRC, and every extent against
 * the file's size before libhdf5 sees a byte, and reads texts and tensors from our own mapping.
 * What this does not cover: someone who forges the CRC as well can hand libhdf5 a hostile
 * structure; and a file changed by another HDF5 program no longer opens. The 1.10 library has one
 * global state: use checkpoints from one thread at a time. */

/* Writing */

typedef struct dms_checkpoint_writer dms_checkpoint_writer;

/* Starts a temporary beside PATH; an older PATH stays as it is until commit. */
dms_status dms_checkpoint_writer_open(dms_checkpoint_writer **out, const char *path);
/* Host data, copied to the file at once. Names of group and tensor: no '/', not empty.
 * DMS_ERR_IO when the disk is full. After an error the only legal call is abort. */
dms_status dms_checkpoint_put_tensor(dms_checkpoint_writer *w, const char *group, const char *name,
                                     dms_dtype dtype, int rank, const int64_t *shape,
                                     const void *data);
/* The same for a tensor that may be F16; data as the file stores it. */
dms_status dms_checkpoint_put_entry(dms_checkpoint_writer *w, const char *group,
                                    const dms_tensor_entry *entry, const void *data);
/* Tensors put from now on are stored with HDF5's shuffle and gzip filters, in chunks of about 4
 * MiB: 1.2 to 1.4 times smaller for weights, but read into memory at 0.2 to 0.4 GB/s when the file
 * is opened, instead of mapped. Small ones stay contiguous, and so do those that gain nothing or
 * more than fourfold: no reader need fear a file that grows without measure. */
void dms_checkpoint_writer_compress(dms_checkpoint_writer *w);
dms_status dms_checkpoint_put_text(dms_checkpoint_writer *w, const char *name, const char *text,
                                   size_t length);
dms_status dms_checkpoint_put_real(dms_checkpoint_writer *w, const char *name, double value);
dms_status dms_checkpoint_put_int(dms_checkpoint_writer *w, const char *name, int64_t value);
/* Flush and fsync: the file is complete under its temporary name, *file (NULL: not asked for),
 * which lives until commit or abort, the only calls that are legal now. */
dms_status dms_checkpoint_writer_finish(const char **file, dms_checkpoint_writer *w);
/* Finish where that was not called yet, rename to PATH, fsync of the folder; closes w in any case.
 * On failure the temporary is removed and an older PATH is intact. */
dms_status dms_checkpoint_writer_commit(dms_checkpoint_writer *w);
/* Removes the temporary and closes w. NULL is legal. */
void dms_checkpoint_writer_abort(dms_checkpoint_writer *w);

/* Reading */

typedef struct dms_checkpoint dms_checkpoint;

typedef struct {
    const char *group, *name; /* owned by the checkpoint */
    dms_file_type type;       /* F32, F16, BF16 or I32 */
    int rank;
    int64_t shape[4]; /* 1 beyond the rank */
    const void *data; /* in the mapping or inflated; aligned to 64 bytes */
    size_t bytes;
    uint32_t crc; /* what the file says it should be */
} dms_checkpoint_tensor;

/* Opens and checks bounds, not yet the tensors' CRCs (those of texts are checked). Compressed
 * tensors are inflated here; refused where they would take more than 4 times the file's size and
 * 64 MiB.
 * Errors: DMS_ERR_IO, DMS_ERR_FORMAT (no checkpoint, cut short, corrupt), DMS_ERR_NOMEM. */
dms_status dms_checkpoint_open(dms_checkpoint **out, const char *path);
void dms_checkpoint_close(dms_checkpoint *c);
int64_t dms_checkpoint_count(const dms_checkpoint *c);
const dms_checkpoint_tensor *dms_checkpoint_info(const dms_checkpoint *c, int64_t i);
/* NULL when absent. */
const dms_checkpoint_tensor *dms_checkpoint_find(const dms_checkpoint *c, const char *group,
                                                 const char *name);
/* Copies a tensor that must have this dtype and this many elements; DMS_ERR_FORMAT otherwise. */
dms_status dms_checkpoint_read(const dms_checkpoint *c, const char *group, const char *name,
                               dms_dtype dtype, int64_t count, void *dst);
/* 0-terminated; length may be NULL; NULL when absent. */
const char *dms_checkpoint_text(const dms_checkpoint *c, const char *name, size_t *length);
/* False when absent. An integer is also a real; a real is no integer. */
bool dms_checkpoint_real(const dms_checkpoint *c, const char *name, double *out);
bool dms_checkpoint_int(const dms_checkpoint *c, const char *name, int64_t *out);
/* The i-th number's name, NULL beyond the last. */
const char *dms_checkpoint_number_name(const dms_checkpoint *c, int i);
/* Compares every tensor with its CRC-32; DMS_ERR_FORMAT names the first that differs. */
dms_status dms_checkpoint_verify(const dms_checkpoint *c);

/* Names by convention. Texts: "config" (config.json), "tokenizer" (tokenizer.json),
 * "chat_template", the files in dms_hf_carried, "teacher_path", "teacher_hash" (dms_source_hash),
 * "run_config" (resolved YAML), "arithmetic" (device and type, as "cuda in bf16").
 * Numbers that training writes: "step" (optimiser steps done), "shift" (a decision governs the
 * token that many before its own: 1), "dropped" (1 once a neuron gate's borrowed rows are 0).
 * Readers must not count on others: the gate's settings stand in "config", seed and data in
 * "run_config". As a source, a checkpoint shows the tensors of /weights; dms_source_text and
 * dms_source_number find the rest. */

DMS_END_C
#endif
