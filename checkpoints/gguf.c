#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/file_types.h"
#include "checkpoints/gguf_read.h"

/* What is left of the file to parse. */
typedef struct {
    const char *path;
    const uint8_t *start, *at, *end;
} cursor;

/* ggml's type numbers. Types without an entry here are listed as DMS_FILE_OTHER. */
static const struct {
    uint32_t id;
    dms_file_type type;
} types[] = {{0, DMS_FILE_F32},     {1, DMS_FILE_F16},     {2, DMS_FILE_Q4_0},  {3, DMS_FILE_Q4_1},
             {6, DMS_FILE_Q5_0},    {7, DMS_FILE_Q5_1},    {8, DMS_FILE_Q8_0},  {10, DMS_FILE_Q2_K},
             {11, DMS_FILE_Q3_K},   {12, DMS_FILE_Q4_K},   {13, DMS_FILE_Q5_K}, {14, DMS_FILE_Q6_K},
             {20, DMS_FILE_IQ4_NL}, {23, DMS_FILE_IQ4_XS}, {26, DMS_FILE_I32},  {27, DMS_FILE_I64},
             {30, DMS_FILE_BF16}};

static dms_status take(const uint8_t **out, cursor *c, uint64_t n)
{
    if (n > (uint64_t)(c->end - c->at))
        return dms_fail(
            DMS_ERR_FORMAT,
            "%s: the header wants %llu more bytes at offset %lld, the file has %lld: it "
            "is cut short or corrupt",
            c->path, (unsigned long long)n, (long long)(c->at - c->start),
            (long long)(c->end - c->at));
    *out = c->at;
    c->at += n;
    return DMS_OK;
}

static dms_status take_u32(uint32_t *out, cursor *c)
{
    const uint8_t *at;
    DMS_TRY(take(&at, c, sizeof(*out)));
    memcpy(out, at, sizeof(*out));
    return DMS_OK;
}

static dms_status take_u64(uint64_t *out, cursor *c)
{
    const uint8_t *at;
    DMS_TRY(take(&at, c, sizeof(*out)));
    memcpy(out, at, sizeof(*out));
    return DMS_OK;
}

static dms_status take_string(dms_gguf_string *out, cursor *c)
{
    const uint8_t *at;
    uint64_t length;
    DMS_TRY(take_u64(&length, c));
    DMS_TRY(take(&at, c, length));
    *out = (dms_gguf_string){(const char *)at, (size_t)length};
    return DMS_OK;
}

/* Moves behind `count` items of a type. */
static dms_status skip_items(cursor *c, dms_gguf_type type, uint64_t count)
{
    static const uint8_t sizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    const uint8_t *at;
    dms_gguf_string s;
    uint64_t bytes;
    if (type == GGUF_STRING) {
        for (uint64_t i = 0; i < count; i++)
            DMS_TRY(take_string(&s, c));
        return DMS_OK;
    }
    if (type == GGUF_ARRAY || type > GGUF_F64)
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: metadata at offset %lld have type %d, which no known "
                        "key uses",
                        c->path, (long long)(c->at - c->start), (int)type);
    if (__builtin_mul_overflow(count, (uint64_t)sizes[type], &bytes))
        bytes = UINT64_MAX;
    DMS_TRY(take(&at, c, bytes));
    return DMS_OK;
}

static dms_status take_value(dms_gguf_value *v, cursor *c)
{
    uint32_t type;
    DMS_TRY(take_string(&v->key, c));
    DMS_TRY(take_u32(&type, c));
    v->count = 1;
    v->array = type == GGUF_ARRAY;
    if (v->array) {
        DMS_TRY(take_u32(&type, c));
        DMS_TRY(take_u64(&v->count, c));
    }
    v->type = (dms_gguf_type)type;
    v->at = c->at;
    DMS_TRY(skip_items(c, v->type, v->count));
    v->end = c->at;
    return DMS_OK;
}

static dms_status take_counts(uint64_t *n_tensors, uint64_t *n_values, cursor *c)
{
    const uint8_t *magic;
    uint32_t version;
    DMS_TRY(take(&magic, c, 4));
    DMS_TRY(take_u32(&version, c));
    if (version != 2 && version != 3)
        return dms_fail(DMS_ERR_FORMAT, "%s is GGUF version %u%s; versions 2 and 3 are read",
                        c->path, version, version == 3u << 24 ? " (big-endian)" : "");
    DMS_TRY(take_u64(n_tensors, c));
    DMS_TRY(take_u64(n_values, c));
    /* The smallest entries have 13 and 24 bytes: more of them than fit is a lie. */
    const uint64_t left = (uint64_t)(c->end - c->at);
    if (*n_values > left / 13 || *n_tensors > left / 24)
        return dms_fail(DMS_ERR_FORMAT, "%s: %llu keys and %llu tensors do not fit into the file",
                        c->path, (unsigned long long)*n_values, (unsigned long long)*n_tensors);
    return DMS_OK;
}

static dms_status take_meta(dms_gguf_meta *meta, uint64_t n, cursor *c)
{
    meta->path = c->path;
    meta->values = calloc(n + 1, sizeof(*meta->values));
    if (!meta->values)
        return dms_fail(DMS_ERR_NOMEM, "no memory for the metadata of %s", c->path);
    for (; meta->count < n; meta->count++)
        DMS_TRY(take_value(&meta->values[meta->count], c));
    return DMS_OK;
}

/* One entry of the tensor list, before it is placed. */
typedef struct {
    char name[256], file_name[256];
    dms_source_tensor tensor;
    uint64_t offset;
} listed;

static void set_type(dms_source_tensor *t, uint32_t id)
{
    t->info.type = DMS_FILE_OTHER;
    for (size_t i = 0; i < sizeof(types) / sizeof(*types); i++)
        if (types[i].id == id)
            t->info.type = types[i].type;
    t->type_name = dms_file_type_name(t->info.type);
}

static dms_status take_shape(dms_source_tensor *t, cursor *c)
{
    uint32_t rank;
    DMS_TRY(take_u32(&rank, c));
    if (rank < 1 || rank > 4)
        return dms_fail(DMS_ERR_FORMAT, "%s: tensor %s has %u dimensions, expected 1 to 4", c->path,
                        t->info.name, rank);
    t->info.rank = (int)rank;
    /* GGUF lists the fastest dimension first. */
    for (uint32_t i = rank; i-- > 0;) {
        uint64_t n;
        DMS_TRY(take_u64(&n, c));
        if (n < 1 || n > 1ull << 48)
            return dms_fail(DMS_ERR_FORMAT, "%s: tensor %s has an impossible dimension %llu",
                            c->path, t->info.name, (unsigned long long)n);
        t->info.shape[i] = (int64_t)n;
    }
    return DMS_OK;
}

static dms_status take_listed(listed *l, cursor *c)
{
    dms_gguf_string name;
    uint32_t type;
    DMS_TRY(take_string(&name, c));
    if (name.length >= sizeof(l->file_name) / 2 || memchr(name.text, 0, name.length))
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: a tensor's name has %zu bytes, at most 127 without a 0 "
                        "are allowed",
                        c->path, name.length);
    memcpy(l->file_name, name.text, name.length);
    l->file_name[name.length] = 0;
    dms_gguf_rename(l->name, sizeof(l->name), l->file_name);
    l->tensor = (dms_source_tensor){.info.name = l->name};
    DMS_TRY(take_shape(&l->tensor, c));
    DMS_TRY(take_u32(&type, c));
    DMS_TRY(take_u64(&l->offset, c));
    set_type(&l->tensor, type);
    return DMS_OK;
}

/* No type has less than one bit an element: a larger shape is a lie. */
static dms_status check_unknown(const dms_source_tensor *t, const cursor *c, uint64_t room)
{
    uint64_t n = 1;
    for (int i = 0; i < t->info.rank; i++)
        if (__builtin_mul_overflow(n, (uint64_t)t->info.shape[i], &n) || n > 8 * room)
            return dms_fail(DMS_ERR_FORMAT, "%s: tensor %s is larger than the file", c->path,
                            t->info.name);
    return DMS_OK;
}

/* Sets where a tensor's bytes are. The size of an unknown type is unknown: it gets none. */
static dms_status place(listed *l, const cursor *c, const uint8_t *data, uint64_t alignment)
{
    dms_source_tensor *t = &l->tensor;
    const uint64_t room = (uint64_t)(c->end - data);
    if (t->info.type == DMS_FILE_OTHER)
        DMS_TRY(check_unknown(t, c, room));
    else
        DMS_TRY(dms_tensor_size(&t->bytes, t));
    if (l->offset % alignment || l->offset > room || t->bytes > room - l->offset)
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: tensor %s (%zu bytes at offset %llu of the data) does not lie within "
                        "the %llu bytes of data: the file is cut short or corrupt",
                        c->path, l->file_name, t->bytes, (unsigned long long)l->offset,
                        (unsigned long long)room);
    t->data = data + l->offset;
    return DMS_OK;
}

static int by_offset(const void *a, const void *b)
{
    const listed *const *x = a, *const *y = b;
    return (*x)->offset < (*y)->offset ? -1 : (*x)->offset > (*y)->offset;
}

static dms_status check_overlap(const listed *tensors, uint64_t n, const char *path)
{
    dms_status status = DMS_OK;
    const listed **order = calloc(n + 1, sizeof(*order));
    if (!order)
        return dms_fail(DMS_ERR_NOMEM, "no memory for the tensors of %s", path);
    for (uint64_t i = 0; i < n; i++)
        order[i] = &tensors[i];
    qsort(order, n, sizeof(*order), by_offset);
    for (uint64_t i = 1; !status && i < n; i++)
        if (order[i]->offset < order[i - 1]->offset + order[i - 1]->tensor.bytes)
            status = dms_fail(DMS_ERR_FORMAT, "%s: tensors %s and %s overlap", path,
                              order[i - 1]->file_name, order[i]->file_name);
    free(order);
    return status;
}

/* Architecture llama: q and k rows are permuted (llama.cpp's convert_hf_to_gguf.py, LlamaModel). */
static dms_status set_rotary(dms_source *s, const dms_gguf_meta *meta)
{
    const int64_t heads = dms_gguf_int(meta, "llama.attention.head_count", 0);
    const int64_t kv = dms_gguf_int(meta, "llama.attention.head_count_kv", heads);
    for (int64_t i = 0; i < s->n_tensors; i++) {
        dms_source_tensor *t = &s->tensors[i];
        const bool q = strstr(t->info.name, ".self_attn.q_proj.") != NULL;
        if (!q && !strstr(t->info.name, ".self_attn.k_proj."))
            continue;
        const int64_t n = q ? heads : kv;
        size_t block;
        const bool vector_ok = t->info.rank == 1 && dms_file_type_block(t->info.type, &block) == 1;
        if (n < 1 || n > 1 << 20 || t->info.shape[0] % (2 * n) || !(t->info.rank == 2 || vector_ok))
            return dms_fail(DMS_ERR_FORMAT, "%s: tensor %s does not split into %lld rotary heads",
                            s->path, t->info.name, (long long)n);
        t->rotary_heads = n;
    }
    return DMS_OK;
}

/* Adds the tensors and makes the configuration from them. The rope factors are no weight: they say
 * how the frequencies are scaled. */
static dms_status add_tensors(dms_source *s, const dms_gguf_meta *meta, const listed *list,
                              uint64_t n)
{
    const float *factors = NULL;
    int64_t n_factors = 0;
    const char *family;
    for (uint64_t i = 0; i < n; i++) {
        const dms_source_tensor *t = &list[i].tensor;
        if (strcmp(list[i].file_name, "rope_freqs.weight")) {
            DMS_TRY(dms_source_add_tensor(s, t));
            continue;
        }
        if (t->info.type != DMS_FILE_F32 || (uintptr_t)t->data % sizeof(float))
            return dms_fail(DMS_ERR_FORMAT,
                            "%s: tensor rope_freqs.weight is stored as %s, expected aligned F32",
                            s->path, t->type_name);
        factors = (const float *)(const void *)t->data;
        n_factors = (int64_t)(t->bytes / sizeof(float));
    }
    DMS_TRY(dms_gguf_family(&family, meta));
    DMS_TRY(dms_gguf_make_config(s, meta, family, factors, n_factors));
    if (!strcmp(family, "llama"))
        DMS_TRY(set_rotary(s, meta));
    DMS_TRY(dms_gguf_make_tokenizer(s, meta));
    return DMS_OK;
}

static dms_status read_tensors(dms_source *s, const dms_gguf_meta *meta, cursor *c, uint64_t n)
{
    dms_status status = DMS_OK;
    listed *list = calloc(n + 1, sizeof(*list));
    if (!list)
        return dms_fail(DMS_ERR_NOMEM, "no memory for the tensors of %s", c->path);
    for (uint64_t i = 0; i < n; i++)
        DMS_TRY_OR(done, take_listed(&list[i], c));
    const int64_t alignment = dms_gguf_int(meta, "general.alignment", 32);
    if (alignment < 8 || alignment > 1 << 20 || (alignment & (alignment - 1)))
        DMS_TRY_OR(done, dms_fail(DMS_ERR_FORMAT,
                                  "%s: general.alignment is %lld, expected a power "
                                  "of two from 8",
                                  c->path, (long long)alignment));
    const uint64_t used = (uint64_t)(c->at - c->start), step = (uint64_t)alignment;
    const uint64_t begin = (used + step - 1) / step * step, size = (uint64_t)(c->end - c->start);
    for (uint64_t i = 0; i < n; i++)
        DMS_TRY_OR(done, place(&list[i], c, c->start + (begin < size ? begin : size), step));
    DMS_TRY_OR(done, check_overlap(list, n, c->path));
    DMS_TRY_OR(done, add_tensors(s, meta, list, n));
done:
    free(list);
    return status;
}

dms_status dms_gguf_fill(dms_source *s, const char *path)
{
    dms_status status;
    dms_mapping m;
    dms_gguf_meta meta = {0};
    uint64_t n_tensors, n_values;
    s->format = "gguf";
    DMS_TRY(dms_source_add_file(s, &m, path));
    cursor c = {path, m.bytes, m.bytes, m.bytes + m.size};
    DMS_TRY(take_counts(&n_tensors, &n_values, &c));
    DMS_TRY_OR(done, take_meta(&meta, n_values, &c));
    DMS_TRY_OR(done, read_tensors(s, &meta, &c, n_tensors));
done:
    free(meta.values);
    return status;
}
