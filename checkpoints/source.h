/* A model file of any format, opened read-only: named tensors, a tree of config keys, a tokenizer.
 */
#ifndef DMS_SOURCE_H
#define DMS_SOURCE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/status.h"
#include "kernels/tensor.h"

DMS_BEGIN_C

/* How a file stores a tensor: type, its name in messages, elements a block, bytes a block. Sizes of
 * quantised types: ggml's block structs. DMS_FILE_OTHER can be listed but not read. */
#define DMS_FILE_TYPE_LIST(X)     \
    X(F32, "F32", 1, 4)           \
    X(F16, "F16", 1, 2)           \
    X(BF16, "BF16", 1, 2)         \
    X(I32, "I32", 1, 4)           \
    X(I64, "I64", 1, 8)           \
    X(Q8_0, "Q8_0", 32, 34)       \
    X(Q4_0, "Q4_0", 32, 18)       \
    X(Q4_1, "Q4_1", 32, 20)       \
    X(Q6_K, "Q6_K", 256, 210)     \
    X(Q5_0, "Q5_0", 32, 22)       \
    X(Q5_1, "Q5_1", 32, 24)       \
    X(Q2_K, "Q2_K", 256, 84)      \
    X(Q3_K, "Q3_K", 256, 110)     \
    X(Q4_K, "Q4_K", 256, 144)     \
    X(Q5_K, "Q5_K", 256, 176)     \
    X(IQ4_NL, "IQ4_NL", 32, 18)   \
    X(IQ4_XS, "IQ4_XS", 256, 136) \
    X(OTHER, "another type", 1, 1)

typedef enum {
#define X(type, name, elements, bytes) DMS_FILE_##type,
    DMS_FILE_TYPE_LIST(X)
#undef X
} dms_file_type;

/* "F32", "Q4_1", ...; never NULL. */
const char *dms_file_type_name(dms_file_type type);

typedef struct dms_source dms_source;

/* Hugging Face name and shape, slowest dimension first. Rank 0 is a scalar of one element. */
typedef struct {
    const char *name; /* owned by the source */
    dms_file_type type;
    int rank;         /* 0..4 */
    int64_t shape[4]; /* 1 beyond the rank */
} dms_tensor_info;

/* Opens a Hugging Face folder, a GGUF file, a safetensors file alone (no config, no tokenizer) or
 * one of our HDF5 checkpoints; contents decide, never the name. The files stay mapped until
 * dms_source_close: replacing a file by rename is safe, truncating it in place is not.
 * Errors: DMS_ERR_IO (missing, unreadable), DMS_ERR_FORMAT (malformed, or none of the formats),
 * DMS_ERR_NOMEM. *out is written last. */
dms_status dms_source_open(dms_source **out, const char *path);
/* NULL is legal. Everything the source handed out dies with it. */
void dms_source_close(dms_source *s);

/* "huggingface", "gguf", "safetensors" or "dms". */
const char *dms_source_format(const dms_source *s);
/* The keys of a Hugging Face config.json, translated from a GGUF file's metadata where needed;
 * NULL where the file has none. */
const json_t *dms_source_config(const dms_source *s);
/* The text of tokenizer.json, 0-terminated, and its length (`length` may be NULL); made from a
 * GGUF file's metadata; NULL where there is none. */
const char *dms_source_tokenizer(const dms_source *s, size_t *length);
/* Jinja text, 0-terminated, or NULL where there is none. */
const char *dms_source_chat_template(const dms_source *s);
/* Any text the file carries beside these, by name, or NULL. Our checkpoints: "teacher_path",
 * "teacher_hash", "run_config" and whatever the writer put. Folders: "generation_config.json",
 * "tokenizer_config.json". */
const char *dms_source_text(const dms_source *s, const char *name);
/* The same with its length, for those with zeros in them: a folder's "tokenizer.model". `length`
 * may be NULL. */
const char *dms_source_bytes(const dms_source *s, const char *name, size_t *length);
/* A number one of our checkpoints carries ("step", "window", ...): false where it has none. */
bool dms_source_number(const dms_source *s, const char *name, double *out);

int64_t dms_source_count(const dms_source *s);
/* i in 0..count-1, in the order of the file. */
const dms_tensor_info *dms_source_info(const dms_source *s, int64_t i);
/* By name, in constant time; NULL when absent. */
const dms_tensor_info *dms_source_find(const dms_source *s, const char *name);

/* Copies the whole tensor to dst in Hugging Face order, converted to DMS_F32 or DMS_BF16 (rounded
 * to nearest, ties to even); DMS_I32 from I32 only. dst holds count * dms_dtype_bytes(dtype) bytes.
 * Errors: DMS_ERR_ARG (no such tensor), DMS_ERR_DTYPE (cannot be converted), DMS_ERR_NOMEM. */
dms_status dms_source_read(const dms_source *s, const char *name, void *dst, dms_dtype dtype);

/* The tensor's bytes as the file stores them, in its mapping (any alignment), where they lie in
 * Hugging Face order; NULL where they do not, or there is no such tensor. */
const void *dms_source_stored(const dms_source *s, const char *name, size_t *bytes);

/* The identity of a model's weights: SHA-256, in hexadecimal, of each tensor in the order of names
 * (byte order): name with its final 0, type name with its final 0, rank and shape as little-endian
 * 64-bit integers, then stored bytes: all of them up to 1 MiB, else 16 blocks of 64 KiB, the k-th
 * at floor(k * (size - 65536) / 15). So it reads at most 1 MiB a tensor, and tells fine-tunes of
 * one model apart; it is no proof against tampering. The same weights in two formats differ.
 * Errors: DMS_ERR_NOMEM. */
dms_status dms_source_hash(const dms_source *s, char hex[65]);

DMS_END_C
#endif
