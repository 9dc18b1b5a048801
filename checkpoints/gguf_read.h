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
/* The number, or an array's first; NaN for other types. */
double dms_gguf_first(const dms_gguf_value *v);
/* Bytes of a number or a truth; 0 for other types and for those that GGUF has not. */
size_t dms_gguf_bytes(dms_gguf_type type);
/* Item i of an array of integers; -1 beyond its end or for other types. */
int64_t dms_gguf_item(const dms_gguf_value *array, uint64_t i);
/* Steps through an array of strings: reads the string at *at and moves behind it. */
dms_gguf_string dms_gguf_next(const uint8_t **at);
/* Whether a string equals a text. */
bool dms_gguf_is(dms_gguf_string s, const char *text);

/* Longest name of a tensor, ours or the file's, with its final 0. */
enum { DMS_GGUF_NAME = 256 };

/* One entry of the tensor list. */
typedef struct {
    dms_gguf_string name;
    dms_file_type type;
    int rank;
    int64_t shape[4]; /* slowest dimension first */
    uint64_t offset;  /* in the data */
    const uint8_t *data;
    size_t bytes; /* 0 for DMS_FILE_OTHER */
} dms_gguf_tensor;

/* One file: all of it lies in its mapping. */
typedef struct {
    dms_gguf_meta meta;
    dms_gguf_tensor *tensors;
    uint64_t n_tensors;
} dms_gguf_part;

/* Every tensor lies within the file and overlaps no other. To be freed also after a failure. `path`
 * is borrowed, for messages. */
dms_status dms_gguf_part_read(dms_gguf_part *part, const dms_mapping *m, const char *path);
void dms_gguf_part_free(dms_gguf_part *part);

/* ggml's number of a type; UINT32_MAX for DMS_FILE_OTHER. */
uint32_t dms_gguf_type_id(dms_file_type type);

/* The rope_freqs tensor; values NULL where there is none. */
typedef struct {
    const float *values;
    int64_t n;
} dms_gguf_factors;

/* Llama 3's scaling of rotary frequencies (transformers, modeling_rope_utils.py). */
typedef struct {
    double factor, low, high, original;
} dms_gguf_llama3;

/* The divisor of the frequency at `fraction` = 2i/E, as llama.cpp stores it
 * (convert_hf_to_gguf.py): of wave length l = 2 pi theta^fraction; 1 below original/high, factor
 * above original/low, smooth between. */
double dms_gguf_llama3_factor(const dms_gguf_llama3 *p, double theta, double fraction);
/* Whether all divisors of a tensor are these, to a thousandth. */
bool dms_gguf_factors_fit(const dms_gguf_factors *factors, const dms_gguf_llama3 *p, double theta);

/* "llama", "qwen2", "qwen3" or "gpt2"; fails for all others. The result is static. */
dms_status dms_gguf_family(const char **out, const dms_gguf_meta *meta);
/* Fills s->config; the tensors must have been added. */
dms_status dms_gguf_make_config(dms_source *s, const dms_gguf_meta *meta, const char *family,
                                const dms_gguf_factors *factors);
/* What the metadata hold of a retrofitted model (gguf_write.h): the config's dms_ keys, the adapter
 * gate's tensors, the rows that the neuron gate borrows. After dms_gguf_make_config. */
dms_status dms_gguf_add_gate(dms_source *s, const dms_gguf_meta *meta, const char *family);
/* Adds the texts tokenizer.json and chat template, where the metadata have them. */
dms_status dms_gguf_make_tokenizer(dms_source *s, const dms_gguf_meta *meta);

#endif
