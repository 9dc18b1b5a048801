/* A GGUF header under construction: bytes that grow, and the keys that are put into them. */
#ifndef DMS_GGUF_PUT_H
#define DMS_GGUF_PUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "checkpoints/gguf_read.h"

/* Zeroed at the start. After a failed allocation `failed` stays and nothing more is put. */
typedef struct {
    uint8_t *bytes;
    size_t n, room;
    uint64_t keys; /* how many were put */
    bool failed;
} dms_gguf_out;

void dms_gguf_out_free(dms_gguf_out *out);

void dms_gguf_put(dms_gguf_out *out, const void *bytes, size_t n);
void dms_gguf_put_u32(dms_gguf_out *out, uint32_t x);
void dms_gguf_put_u64(dms_gguf_out *out, uint64_t x);
/* Length and text, as strings are. */
void dms_gguf_put_string(dms_gguf_out *out, const char *text, size_t n);

/* A key with its value. */
void dms_gguf_key_text(dms_gguf_out *out, const char *key, const char *text, size_t n);
void dms_gguf_key_u32(dms_gguf_out *out, const char *key, int64_t x);
void dms_gguf_key_i64(dms_gguf_out *out, const char *key, int64_t x);
void dms_gguf_key_f32(dms_gguf_out *out, const char *key, double x);
void dms_gguf_key_f64(dms_gguf_out *out, const char *key, double x);
void dms_gguf_key_bool(dms_gguf_out *out, const char *key, bool x);
/* A key that begins an array of n items, which the caller puts next. */
void dms_gguf_key_array(dms_gguf_out *out, const char *key, dms_gguf_type type, uint64_t n);

#endif
