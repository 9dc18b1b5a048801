#include <math.h>
#include <stdio.h>
#include <string.h>

#include "checkpoints/gguf_names.h"
#include "checkpoints/gguf_read.h"
#include "checkpoints/model_type.h"

/* The sizes that the gate's tensors follow from. */
typedef struct {
    dms_source *s;
    const char *family;
    dms_model_heads heads;
} gate_sizes;

/* A number, text or truth of the metadata as the config's key dms_NAME. */
static dms_status put_key(dms_source *s, const dms_gguf_meta *meta, const dms_gguf_value *v)
{
    char key[64];
    json_t *value;
    if (v->key.length >= sizeof(key))
        return DMS_OK; /* none of ours */
    snprintf(key, sizeof(key), "dms_%.*s", (int)v->key.length - 4, v->key.text + 4);
    if (v->type == GGUF_STRING) {
        const uint8_t *at = v->at;
        const dms_gguf_string text = dms_gguf_next(&at);
        value = json_stringn(text.text, text.length);
    } else {
        const double x = dms_gguf_first(v);
        const bool real = v->type == GGUF_F32 || v->type == GGUF_F64;
        value = v->type == GGUF_BOOL ? json_boolean(x != 0)
                : real               ? json_real(x)
                : fabs(x) <= 0x1p53  ? json_integer((json_int_t)x)
                                     : NULL;
    }
    if (json_object_set_new(s->config, key, value))
        return dms_fail(DMS_ERR_FORMAT, "%s: key %s is not finite, no UTF-8, or too large",
                        meta->path, key);
    return DMS_OK;
}

/* One of the metadata's arrays that are tensors: dms.blk.LAYER.PART. */
typedef struct {
    const dms_gguf_meta *meta;
    const dms_gguf_value *value;
    char key[64];
    int layer;
    const char *part; /* in key */
} gate_array;

static dms_status check_array(const gate_array *a, int64_t n)
{
    if (a->value->type != GGUF_F32 || a->value->count != (uint64_t)n)
        return dms_fail(DMS_ERR_FORMAT, "%s: key %s is no array of %lld F32", a->meta->path, a->key,
                        (long long)n);
    return DMS_OK;
}

/* A tensor of the adapter gate. */
static dms_status add_adapter(const gate_sizes *z, const gate_array *a)
{
    char name[128], rest[64];
    const bool matrix = !strcmp(a->part, "alpha.weight");
    const int64_t width = z->heads.width;
    const int64_t rows = strcmp(a->part, "alpha_norm.weight") ? z->heads.groups : width;
    const int64_t n = matrix ? rows * width : rows;
    snprintf(rest, sizeof(rest), "dms_proj_%s", a->part);
    dms_gguf_layer_name(name, sizeof(name), z->family, a->layer, rest);
    DMS_TRY(check_array(a, n));
    return dms_source_add_tensor(
        z->s, &(dms_source_tensor){.info = {.name = name,
                                            .type = DMS_FILE_F32,
                                            .rank = matrix ? 2 : 1,
                                            .shape = {rows, matrix ? width : 1, 1, 1}},
                                   .data = a->value->at,
                                   .bytes = (size_t)n * sizeof(float),
                                   .type_name = "F32"});
}

/* The rows of the query projection that the neuron gate borrows: the dense form has zeros there.
 * Row k is the last channel of group k's first query head. */
static dms_status set_rows(const gate_sizes *z, const gate_array *a)
{
    char name[128];
    const char *suffix = a->part + strlen("rows.");
    const bool bias = !strcmp(suffix, "bias");
    const dms_model_heads *h = &z->heads;
    DMS_TRY(check_array(a, bias ? h->groups : h->groups * h->width));
    dms_gguf_query_name(name, sizeof(name), z->family, a->layer, suffix);
    dms_source_tensor *q = dms_source_entry(z->s, name);
    size_t block;
    /* A bias is patched number by number, which a block of several cannot be. */
    if (q && bias && dms_file_type_block(q->info.type, &block) != 1)
        return dms_fail(DMS_ERR_FORMAT, "%s: tensor %s is stored as %s, expected F32, F16 or BF16",
                        a->meta->path, name, q->type_name);
    if (!q || q->info.rank != (bias ? 1 : 2))
        return dms_fail(DMS_ERR_FORMAT, "%s: key %s has no tensor %s to belong to", a->meta->path,
                        a->key, name);
    const int64_t step = h->heads / h->groups * h->head_dim;
    const int64_t last = (h->groups - 1) * step + h->head_dim - 1;
    const int64_t have = q->info.shape[q->transposed ? 1 : 0];
    const int64_t width = bias ? h->width : q->info.shape[q->transposed ? 0 : 1];
    if (last >= have || width != h->width)
        return dms_fail(DMS_ERR_FORMAT, "%s: tensor %s has another shape than the config says",
                        a->meta->path, name);
    q->own_rows = a->value->at;
    q->own_first = h->head_dim - 1;
    q->own_step = step;
    q->own_count = h->groups;
    return DMS_OK;
}

static dms_status add_array(const gate_sizes *z, const dms_gguf_meta *meta, const dms_gguf_value *v)
{
    static const char *const adapter[] = {"alpha_norm.weight", "alpha.weight", "alpha.bias"};
    gate_array a = {.meta = meta, .value = v};
    int used = 0;
    if (v->key.length >= sizeof(a.key))
        return DMS_OK; /* none of ours */
    snprintf(a.key, sizeof(a.key), "%.*s", (int)v->key.length, v->key.text);
    if (sscanf(a.key, "dms.blk.%5d.%n", &a.layer, &used) != 1 || !used || a.layer < 0)
        return DMS_OK;
    a.part = a.key + used;
    for (int i = 0; i < 3; i++)
        if (!strcmp(a.part, adapter[i]))
            return add_adapter(z, &a);
    return !strcmp(a.part, "rows.weight") || !strcmp(a.part, "rows.bias") ? set_rows(z, &a)
                                                                          : DMS_OK;
}

static dms_status find_sizes(gate_sizes *z, dms_source *s, const char *family)
{
    *z = (gate_sizes){.s = s, .family = family};
    if (!dms_model_type_heads(&z->heads, s->config) || z->heads.heads > 1 << 20 ||
        z->heads.head_dim > 1 << 20)
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: its heads do not split into groups, so its dms keys mean nothing",
                        s->path);
    return DMS_OK;
}

dms_status dms_gguf_add_gate(dms_source *s, const dms_gguf_meta *meta, const char *family)
{
    gate_sizes z = {0};
    for (uint64_t i = 0; i < meta->count; i++) {
        const dms_gguf_value *v = &meta->values[i];
        if (v->key.length <= 4 || memcmp(v->key.text, "dms.", 4) != 0)
            continue;
        if (!z.s)
            DMS_TRY(find_sizes(&z, s, family));
        DMS_TRY(v->array ? add_array(&z, meta, v) : put_key(s, meta, v));
    }
    return DMS_OK;
}
