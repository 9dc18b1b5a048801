#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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
    const uint8_t *at;
    dms_gguf_string s;
    uint64_t bytes;
    if (type == GGUF_STRING) {
        for (uint64_t i = 0; i < count; i++)
            DMS_TRY(take_string(&s, c));
        return DMS_OK;
    }
    if (!dms_gguf_bytes(type))
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: metadata at offset %lld have type %d, which no known "
                        "key uses",
                        c->path, (long long)(c->at - c->start), (int)type);
    if (__builtin_mul_overflow(count, (uint64_t)dms_gguf_bytes(type), &bytes))
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
    /* The smallest entries have 13 and 33 bytes: more of them than fit is a lie. An entry of the
     * tensor list takes more room here than in the file, hence its own bound: 40 MiB. */
    const uint64_t left = (uint64_t)(c->end - c->at);
    if (*n_values > left / 13 || *n_tensors > left / 33 || *n_tensors > 1 << 16)
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

static void set_type(dms_gguf_tensor *t, uint32_t id)
{
    t->type = DMS_FILE_OTHER;
    for (size_t i = 0; i < sizeof(types) / sizeof(*types); i++)
        if (types[i].id == id)
            t->type = types[i].type;
}

uint32_t dms_gguf_type_id(dms_file_type type)
{
    for (size_t i = 0; i < sizeof(types) / sizeof(*types); i++)
        if (types[i].type == type)
            return types[i].id;
    return UINT32_MAX;
}

static int name_length(const dms_gguf_tensor *t)
{
    return (int)t->name.length;
}

static dms_status take_shape(dms_gguf_tensor *t, cursor *c)
{
    uint32_t rank;
    DMS_TRY(take_u32(&rank, c));
    if (rank < 1 || rank > 4)
        return dms_fail(DMS_ERR_FORMAT, "%s: tensor %.*s has %u dimensions, expected 1 to 4",
                        c->path, name_length(t), t->name.text, rank);
    t->rank = (int)rank;
    /* GGUF lists the fastest dimension first. */
    for (uint32_t i = rank; i-- > 0;) {
        uint64_t n;
        DMS_TRY(take_u64(&n, c));
        if (n < 1 || n > 1ull << 48)
            return dms_fail(DMS_ERR_FORMAT, "%s: tensor %.*s has an impossible dimension %llu",
                            c->path, name_length(t), t->name.text, (unsigned long long)n);
        t->shape[i] = (int64_t)n;
    }
    return DMS_OK;
}

static dms_status take_tensor(dms_gguf_tensor *t, cursor *c)
{
    uint32_t type;
    DMS_TRY(take_string(&t->name, c));
    if (t->name.length >= DMS_GGUF_NAME / 2 || memchr(t->name.text, 0, t->name.length))
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: a tensor's name has %zu bytes, at most 127 without a 0 "
                        "are allowed",
                        c->path, t->name.length);
    DMS_TRY(take_shape(t, c));
    DMS_TRY(take_u32(&type, c));
    DMS_TRY(take_u64(&t->offset, c));
    set_type(t, type);
    return DMS_OK;
}

/* No type has less than one bit an element: a larger shape is a lie. */
static dms_status check_unknown(const dms_gguf_tensor *t, const cursor *c, uint64_t room)
{
    uint64_t n = 1;
    for (int i = 0; i < t->rank; i++)
        if (__builtin_mul_overflow(n, (uint64_t)t->shape[i], &n) || n > 8 * room)
            return dms_fail(DMS_ERR_FORMAT, "%s: tensor %.*s is larger than the file", c->path,
                            name_length(t), t->name.text);
    return DMS_OK;
}

static dms_status size_of(dms_gguf_tensor *t)
{
    char name[DMS_GGUF_NAME];
    snprintf(name, sizeof(name), "%.*s", name_length(t), t->name.text);
    dms_source_tensor as = {.info = {.name = name, .type = t->type, .rank = t->rank}};
    memcpy(as.info.shape, t->shape, sizeof(t->shape));
    return dms_tensor_size(&t->bytes, &as);
}

/* Sets where a tensor's bytes are. The size of an unknown type is unknown: it gets none. */
static dms_status place(dms_gguf_tensor *t, const cursor *c, const uint8_t *data,
                        uint64_t alignment)
{
    const uint64_t room = (uint64_t)(c->end - data);
    if (t->type == DMS_FILE_OTHER)
        DMS_TRY(check_unknown(t, c, room));
    else
        DMS_TRY(size_of(t));
    if (t->offset % alignment || t->offset > room || t->bytes > room - t->offset)
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: tensor %.*s (%zu bytes at offset %llu of the data) does not lie "
                        "within the %llu bytes of data: the file is cut short or corrupt",
                        c->path, name_length(t), t->name.text, t->bytes,
                        (unsigned long long)t->offset, (unsigned long long)room);
    t->data = data + t->offset;
    return DMS_OK;
}

static int by_offset(const void *a, const void *b)
{
    const dms_gguf_tensor *const *x = a, *const *y = b;
    return (*x)->offset < (*y)->offset ? -1 : (*x)->offset > (*y)->offset;
}

static dms_status check_overlap(const dms_gguf_part *part)
{
    const uint64_t n = part->n_tensors;
    dms_status status = DMS_OK;
    const dms_gguf_tensor **order = calloc(n + 1, sizeof(*order));
    if (!order)
        return dms_fail(DMS_ERR_NOMEM, "no memory for the tensors of %s", part->meta.path);
    for (uint64_t i = 0; i < n; i++)
        order[i] = &part->tensors[i];
    qsort(order, n, sizeof(*order), by_offset);
    for (uint64_t i = 1; !status && i < n; i++) {
        const dms_gguf_tensor *a = order[i - 1], *b = order[i];
        const size_t bytes = a->bytes ? a->bytes : 1; /* of unknown types */
        if (b->offset < a->offset + bytes)
            status = dms_fail(DMS_ERR_FORMAT, "%s: tensors %.*s and %.*s overlap", part->meta.path,
                              name_length(a), a->name.text, name_length(b), b->name.text);
    }
    free(order);
    return status;
}

static dms_status take_tensors(dms_gguf_part *part, uint64_t n, cursor *c)
{
    part->tensors = calloc(n + 1, sizeof(*part->tensors));
    if (!part->tensors)
        return dms_fail(DMS_ERR_NOMEM, "no memory for the tensors of %s", c->path);
    for (; part->n_tensors < n; part->n_tensors++)
        DMS_TRY(take_tensor(&part->tensors[part->n_tensors], c));
    const int64_t alignment = dms_gguf_int(&part->meta, "general.alignment", 32);
    if (alignment < 8 || alignment > 1 << 20 || (alignment & (alignment - 1)))
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: general.alignment is %lld, expected a power of two "
                        "from 8",
                        c->path, (long long)alignment);
    const uint64_t used = (uint64_t)(c->at - c->start), step = (uint64_t)alignment;
    const uint64_t begin = (used + step - 1) / step * step, size = (uint64_t)(c->end - c->start);
    for (uint64_t i = 0; i < n; i++)
        DMS_TRY(place(&part->tensors[i], c, c->start + (begin < size ? begin : size), step));
    return check_overlap(part);
}

dms_status dms_gguf_part_read(dms_gguf_part *part, const dms_mapping *m, const char *path)
{
    uint64_t n_tensors, n_values;
    cursor c = {path, m->bytes, m->bytes, m->bytes + m->size};
    *part = (dms_gguf_part){0};
    DMS_TRY(take_counts(&n_tensors, &n_values, &c));
    DMS_TRY(take_meta(&part->meta, n_values, &c));
    return take_tensors(part, n_tensors, &c);
}

void dms_gguf_part_free(dms_gguf_part *part)
{
    free(part->meta.values);
    free(part->tensors);
    *part = (dms_gguf_part){0};
}
