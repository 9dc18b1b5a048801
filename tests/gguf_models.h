/* For tests of GGUF files of our own: a model to write, what comes back, and the file itself. */
#ifndef DMS_TEST_GGUF_MODELS_H
#define DMS_TEST_GGUF_MODELS_H

#include "checkpoints/f16.h"
#include "checkpoints/file_types.h"
#include "checkpoints/gguf_read.h"
#include "checkpoints/gguf_write.h"
#include "kernels/bf16.h"
#include "tests/files.h"
#include "tests/fixtures.h"

enum { MOST = 64 };

/* Tensors of a source, those of a second one (an adapter's) behind them. */
typedef struct {
    const dms_source *sources[2];
    dms_tensor_entry entries[MOST];
    const dms_source *from[MOST];
    int64_t count;
} tensor_list;

static inline dms_status fetch(void *context, int64_t i, void *dst)
{
    const tensor_list *l = context;
    return dms_source_read(l->from[i], l->entries[i].name, dst, DMS_F32);
}

static inline void add_tensors(tensor_list *l, const dms_source *s, const char *only)
{
    for (int64_t i = 0; i < dms_source_count(s); i++) {
        const dms_tensor_info *t = dms_source_info(s, i);
        if (only && !strstr(t->name, only))
            continue;
        cr_assert_lt(l->count, MOST);
        dms_tensor_entry *e = &l->entries[l->count];
        *e = (dms_tensor_entry){.name = t->name, .dtype = DMS_F32, .rank = t->rank};
        memcpy(e->shape, t->shape, sizeof(e->shape));
        l->from[l->count++] = s;
    }
}

static inline dms_gguf_model model_of(tensor_list *l, const dms_source *s, dms_file_type type)
{
    *l = (tensor_list){0};
    add_tensors(l, s, NULL);
    dms_gguf_model m = {.name = "tiny",
                        .config = dms_source_config(s),
                        .chat_template = dms_source_chat_template(s),
                        .tensors = {l->entries, l->count, fetch, l},
                        .type = type};
    m.tokenizer = dms_source_tokenizer(s, &m.tokenizer_length);
    return m;
}

static inline dms_source *open_path(const char *path)
{
    dms_source *s;
    must(dms_source_open(&s, path));
    return s;
}

static inline dms_source *open_fixture(const char *name)
{
    char path[1024];
    return open_path(fixture(path, name));
}

/* Every tensor of the list is in s, with these bits. */
static inline void expect_tensors(const dms_source *s, const tensor_list *l)
{
    for (int64_t i = 0; i < l->count; i++) {
        int64_t n, m;
        float *want = read_f32(l->from[i], l->entries[i].name, &n);
        float *got = read_f32(s, l->entries[i].name, &m);
        cr_assert_eq(n, m, "%s has another size", l->entries[i].name);
        cr_expect(!memcmp(want, got, (size_t)n * 4), "%s differs", l->entries[i].name);
        free(want);
        free(got);
    }
}

/* Keys of the config that decide what a model computes, and all that begin with dms_. */
static inline void expect_config(const dms_source *s, const json_t *want)
{
    static const char *const same[] = {"model_type",
                                       "rms_norm_eps",
                                       "vocab_size",
                                       "n_embd",
                                       "n_layer",
                                       "n_head",
                                       "hidden_size",
                                       "intermediate_size",
                                       "num_hidden_layers",
                                       "num_attention_heads",
                                       "num_key_value_heads",
                                       "max_position_embeddings",
                                       "bos_token_id",
                                       "eos_token_id"};
    const char *key;
    json_t *value;
    for (size_t i = 0; i < COUNT(same); i++) {
        const json_t *found = json_object_get(dms_source_config(s), same[i]);
        const json_t *wanted = json_object_get(want, same[i]);
        cr_expect(!wanted || json_equal(found, wanted), "%s differs", same[i]);
    }
    json_object_foreach((json_t *)(uintptr_t)want, key, value)
    {
        if (!strncmp(key, "dms_", 4))
            cr_expect(json_equal(json_object_get(dms_source_config(s), key), value), "%s differs",
                      key);
    }
}

typedef struct {
    dms_mapping map;
    dms_gguf_part part;
} raw_file;

static inline raw_file raw_open(const char *path)
{
    raw_file r;
    must(dms_mapping_open(&r.map, path));
    must(dms_gguf_part_read(&r.part, &r.map, path));
    return r;
}

static inline void raw_close(raw_file *r)
{
    dms_gguf_part_free(&r->part);
    dms_mapping_close(&r->map);
}

static inline const dms_gguf_tensor *raw_find(const raw_file *r, dms_gguf_string name)
{
    for (uint64_t i = 0; i < r->part.n_tensors; i++) {
        const dms_gguf_tensor *t = &r->part.tensors[i];
        if (t->name.length == name.length && !memcmp(t->name.text, name.text, name.length))
            return t;
    }
    cr_assert_fail("no tensor %.*s", (int)name.length, name.text);
    return NULL;
}

/* One number as a type stores it, where that does not depend on its neighbours. */
static inline float rounded(float x, dms_file_type type)
{
    const uint16_t half = dms_f16_bits(x);
    return type == DMS_FILE_F16    ? dms_f16_to_f32(half)
           : type == DMS_FILE_BF16 ? dms_bf16_to_f32(dms_bf16_from_f32(x))
                                   : x;
}

static inline json_t *with_gate(const json_t *config, bool adapter)
{
    json_t *out = json_deep_copy(config);
    json_object_update_new(out, json_pack("{s:i, s:f, s:f, s:b, s:s, s:f, s:n}", "dms_window_size",
                                          12, "dms_alpha_scale", 4.0, "dms_initial_alpha_offset",
                                          1.1, "dms_separate_alpha", adapter, "dms_alpha_per",
                                          "head", "dms_tau", 0.1, "dms_chunked_prefill"));
    json_object_del(out, "dms_chunked_prefill"); /* null keys are left out */
    return out;
}

/* Folders of the fixtures, below tiny/. */
static const char *const families[] = {"llama", "llama3", "qwen2", "qwen3"};

#endif
