#include "checkpoints/gguf_put.h"

#include <stdlib.h>
#include <string.h>

void dms_gguf_out_free(dms_gguf_out *out)
{
    free(out->bytes);
    *out = (dms_gguf_out){0};
}

void dms_gguf_put(dms_gguf_out *out, const void *bytes, size_t n)
{
    if (out->failed || !n)
        return;
    if (n > out->room - out->n) {
        const size_t room = 2 * out->room + n + 4096;
        uint8_t *grown = realloc(out->bytes, room);
        if (!grown) {
            out->failed = true;
            return;
        }
        out->bytes = grown;
        out->room = room;
    }
    memcpy(out->bytes + out->n, bytes, n);
    out->n += n;
}

void dms_gguf_put_u32(dms_gguf_out *out, uint32_t x)
{
    dms_gguf_put(out, &x, sizeof(x));
}

void dms_gguf_put_u64(dms_gguf_out *out, uint64_t x)
{
    dms_gguf_put(out, &x, sizeof(x));
}

void dms_gguf_put_string(dms_gguf_out *out, const char *text, size_t n)
{
    dms_gguf_put_u64(out, n);
    dms_gguf_put(out, text, n);
}

static void begin(dms_gguf_out *out, const char *key, dms_gguf_type type)
{
    dms_gguf_put_string(out, key, strlen(key));
    dms_gguf_put_u32(out, type);
    out->keys++;
}

void dms_gguf_key_text(dms_gguf_out *out, const char *key, const char *text, size_t n)
{
    begin(out, key, GGUF_STRING);
    dms_gguf_put_string(out, text, n);
}

void dms_gguf_key_u32(dms_gguf_out *out, const char *key, int64_t x)
{
    begin(out, key, GGUF_U32);
    dms_gguf_put_u32(out, (uint32_t)x);
}

void dms_gguf_key_i64(dms_gguf_out *out, const char *key, int64_t x)
{
    begin(out, key, GGUF_I64);
    dms_gguf_put_u64(out, (uint64_t)x);
}

void dms_gguf_key_f32(dms_gguf_out *out, const char *key, double x)
{
    const float value = (float)x;
    begin(out, key, GGUF_F32);
    dms_gguf_put(out, &value, sizeof(value));
}

void dms_gguf_key_f64(dms_gguf_out *out, const char *key, double x)
{
    begin(out, key, GGUF_F64);
    dms_gguf_put(out, &x, sizeof(x));
}

void dms_gguf_key_bool(dms_gguf_out *out, const char *key, bool x)
{
    const uint8_t value = x;
    begin(out, key, GGUF_BOOL);
    dms_gguf_put(out, &value, sizeof(value));
}

void dms_gguf_key_array(dms_gguf_out *out, const char *key, dms_gguf_type type, uint64_t n)
{
    begin(out, key, GGUF_ARRAY);
    dms_gguf_put_u32(out, type);
    dms_gguf_put_u64(out, n);
}
