/* A GGUF file's metadata, and what this folder makes of it; inside this folder only. */
#ifndef DMS_GGUF_READ_H
#define DMS_GGUF_READ_H

#include "checkpoints/source_build.h"

/* Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md */
typedef enum {
    GGUF_U8,
    GGUF_I8,
    GGUF_U16,
    GGUF_I16,
    GGUF_U32,
    GGUF_I32,
    GGUF_F32,
    GGUF_BOOL,
    GGUF_STRING,
    GGUF_ARRAY,
    GGUF_U64,
    GGUF_I64,
    GGUF_F64
} dms_gguf_type;

/* Bytes in the mapping: no final 0. */
typedef struct {
    const char *text;
    size_t length;
} dms_gguf_string;

typedef struct {
    dms_gguf_string key;
    dms_gguf_type type; /* of the value, or of an array's items */
    bool array;
    uint64_t count;    /* items of an array, else 1 */
    const uint8_t *at; /* the first item; all of them lie within the file */
    const uint8_t *end;
} dms_gguf_value;

typedef struct {
    const char *path;
    dms_gguf_value *values;
    uint64_t count;
} dms_gguf_meta;

/* NULL where there is no such key. */
const dms_gguf_value *dms_gguf_find(const dms_gguf_meta *meta, const char *key);
/* A single number (integers, bool and floats convert); `fallback` where the key is absent or no
 * single number. */
double dms_gguf_number(const dms_gguf_meta *meta, const char *key, double fallback);
int64_t dms_gguf_int(const dms_gguf_meta *meta, const char *key, int64_t fallback);
/* A single string; text NULL where absent. */
dms_gguf_string dms_gguf_text(const dms_gguf_meta *meta, const char *key);
/* Item i of an array of integers; -1 beyond its end or for other types. */
int64_t dms_gguf_item(const dms_gguf_value *array, uint64_t i);
/* Steps through an array of strings: reads the string at *at and moves behind it. */
dms_gguf_string dms_gguf_next(const uint8_t **at);
/* Whether a string equals a text. */
bool dms_gguf_is(dms_gguf_string s, const char *text);

/* "llama", "qwen2" or "qwen3"; fails for all others. The result is static. */
dms_status dms_gguf_family(const char **out, const dms_gguf_meta *meta);
/* The Hugging Face name of a tensor, written to out[n]; names we do not know stay as they are. */
void dms_gguf_rename(char *out, size_t n, const char *name);
/* Fills s->config; the tensors must have been added. `rope_factors`: the rope_freqs tensor's values
 * [n_factors], or NULL. */
dms_status dms_gguf_make_config(dms_source *s, const dms_gguf_meta *meta, const char *family,
                                const float *rope_factors, int64_t n_factors);
/* Adds the texts tokenizer.json and chat template, where the metadata have them. */
dms_status dms_gguf_make_tokenizer(dms_source *s, const dms_gguf_meta *meta);

#endif
