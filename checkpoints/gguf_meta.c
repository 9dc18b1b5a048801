#include <math.h>
#include <string.h>

#include "checkpoints/gguf_read.h"

bool dms_gguf_is(dms_gguf_string s, const char *text)
{
    return s.text && s.length == strlen(text) && !memcmp(s.text, text, s.length);
}

const dms_gguf_value *dms_gguf_find(const dms_gguf_meta *meta, const char *key)
{
    for (uint64_t i = 0; i < meta->count; i++)
        if (dms_gguf_is(meta->values[i].key, key))
            return &meta->values[i];
    return NULL;
}

/* GGUF is little-endian, and so are the machines this program is built for. */
#define LOAD(type, at)                         \
    do {                                       \
        type value_;                           \
        memcpy(&value_, (at), sizeof(value_)); \
        return (double)value_;                 \
    } while (0)

static double load_number(dms_gguf_type type, const uint8_t *at)
{
    switch (type) {
    case GGUF_U8:
    case GGUF_BOOL:
        return *at;
    case GGUF_I8:
        LOAD(int8_t, at);
    case GGUF_U16:
        LOAD(uint16_t, at);
    case GGUF_I16:
        LOAD(int16_t, at);
    case GGUF_U32:
        LOAD(uint32_t, at);
    case GGUF_I32:
        LOAD(int32_t, at);
    case GGUF_F32:
        LOAD(float, at);
    case GGUF_U64:
        LOAD(uint64_t, at);
    case GGUF_I64:
        LOAD(int64_t, at);
    case GGUF_F64:
        LOAD(double, at);
    default:
        return NAN;
    }
}

double dms_gguf_number(const dms_gguf_meta *meta, const char *key, double fallback)
{
    const dms_gguf_value *v = dms_gguf_find(meta, key);
    if (!v || v->array || v->type == GGUF_STRING)
        return fallback;
    return load_number(v->type, v->at);
}

double dms_gguf_first(const dms_gguf_value *v)
{
    return v->count ? load_number(v->type, v->at) : NAN;
}

/* Whole numbers up to 2^53 survive the way through double; nothing here is larger. */
static int64_t whole(double x, int64_t fallback)
{
    return fabs(x) <= 0x1p53 ? (int64_t)x : fallback;
}

int64_t dms_gguf_int(const dms_gguf_meta *meta, const char *key, int64_t fallback)
{
    return whole(dms_gguf_number(meta, key, (double)fallback), fallback);
}

dms_gguf_string dms_gguf_text(const dms_gguf_meta *meta, const char *key)
{
    const dms_gguf_value *v = dms_gguf_find(meta, key);
    if (!v || v->array || v->type != GGUF_STRING)
        return (dms_gguf_string){0};
    const uint8_t *at = v->at;
    return dms_gguf_next(&at);
}

size_t dms_gguf_bytes(dms_gguf_type type)
{
    static const uint8_t bytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return type < sizeof(bytes) ? bytes[type] : 0;
}

int64_t dms_gguf_item(const dms_gguf_value *array, uint64_t i)
{
    const size_t bytes = array ? dms_gguf_bytes(array->type) : 0;
    if (!bytes || i >= array->count)
        return -1;
    return whole(load_number(array->type, array->at + i * bytes), -1);
}

dms_gguf_string dms_gguf_next(const uint8_t **at)
{
    uint64_t length;
    memcpy(&length, *at, sizeof(length));
    const dms_gguf_string s = {(const char *)*at + 8, (size_t)length};
    *at += 8 + length;
    return s;
}
