#include "checkpoints/safetensors.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/safetensors_read.h"

static const struct {
    const char *name;
    dms_file_type type;
    size_t bytes; /* an element */
} types[] = {
    {"F32", DMS_FILE_F32, 4},    {"F16", DMS_FILE_F16, 2},       {"BF16", DMS_FILE_BF16, 2},
    {"I32", DMS_FILE_I32, 4},    {"I64", DMS_FILE_I64, 8},       {"F64", DMS_FILE_OTHER, 8},
    {"U64", DMS_FILE_OTHER, 8},  {"U32", DMS_FILE_OTHER, 4},     {"I16", DMS_FILE_OTHER, 2},
    {"U16", DMS_FILE_OTHER, 2},  {"I8", DMS_FILE_OTHER, 1},      {"U8", DMS_FILE_OTHER, 1},
    {"BOOL", DMS_FILE_OTHER, 1}, {"F8_E4M3", DMS_FILE_OTHER, 1}, {"F8_E5M2", DMS_FILE_OTHER, 1}};

/* A file being read: where the tensors start and how many bytes they have. */
typedef struct {
    dms_source *source;
    const char *path;
    const uint8_t *data;
    size_t size;
} reader;

static dms_status read_header(json_t **out, reader *r, const dms_mapping *m)
{
    /* The reference implementation's limit, too. */
    enum { HEADER_MAX = 100000000 };
    uint64_t length = 0;
    json_error_t error;
    for (size_t i = 8; m->size >= 8 && i-- > 0;)
        length = length << 8 | m->bytes[i];
    if (m->size < 8 || length > m->size - 8 || length > HEADER_MAX)
        return dms_fail(
            DMS_ERR_FORMAT,
            "%s: the header should have %llu bytes, the file has %zu: it is cut short or "
            "no safetensors file",
            r->path, (unsigned long long)length, m->size);
    *out = json_loadb((const char *)m->bytes + 8, length, JSON_REJECT_DUPLICATES, &error);
    if (!json_is_object(*out)) {
        json_decref(*out);
        return dms_fail(DMS_ERR_FORMAT, "%s: the header is no JSON object: %s", r->path,
                        error.text);
    }
    r->data = m->bytes + 8 + length;
    r->size = m->size - 8 - length;
    return DMS_OK;
}

static dms_status read_type(dms_source_tensor *t, size_t *element, const reader *r,
                            const json_t *value)
{
    const char *name = json_string_value(json_object_get(value, "dtype"));
    for (size_t i = 0; name && i < sizeof(types) / sizeof(*types); i++)
        if (!strcmp(types[i].name, name)) {
            t->info.type = types[i].type;
            t->type_name = types[i].name;
            *element = types[i].bytes;
            return DMS_OK;
        }
    return dms_fail(DMS_ERR_FORMAT, "%s: tensor %s has the unknown dtype %s", r->path, t->info.name,
                    name ? name : "(none)");
}

static dms_status read_shape(dms_source_tensor *t, size_t element, const reader *r,
                             const json_t *value)
{
    const json_t *shape = json_object_get(value, "shape");
    size_t bytes = element;
    if (!json_is_array(shape) || json_array_size(shape) > 4)
        return dms_fail(DMS_ERR_FORMAT, "%s: tensor %s needs a shape of at most 4 dimensions",
                        r->path, t->info.name);
    t->info.rank = (int)json_array_size(shape);
    for (int i = 0; i < t->info.rank; i++) {
        const json_t *item = json_array_get(shape, (size_t)i);
        const json_int_t n = json_is_integer(item) ? json_integer_value(item) : -1;
        /* 2^48 elements a dimension: keeps every later product of two within 64 bits. */
        if (n < 0 || n > 1ll << 48 || __builtin_mul_overflow(bytes, (size_t)n, &bytes))
            return dms_fail(DMS_ERR_FORMAT, "%s: tensor %s has an impossible dimension %d", r->path,
                            t->info.name, i);
        t->info.shape[i] = n;
    }
    t->bytes = bytes;
    return DMS_OK;
}

static dms_status read_tensor(dms_source_tensor *t, const reader *r, const json_t *value)
{
    size_t element;
    DMS_TRY(read_type(t, &element, r, value));
    DMS_TRY(read_shape(t, element, r, value));
    const json_t *offsets = json_object_get(value, "data_offsets");
    const json_t *first = json_array_get(offsets, 0), *last = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(first) || !json_is_integer(last))
        return dms_fail(DMS_ERR_FORMAT, "%s: tensor %s needs data_offsets [begin, end]", r->path,
                        t->info.name);
    const json_int_t begin = json_integer_value(first), end = json_integer_value(last);
    if (begin < 0 || end < begin || (uint64_t)end > r->size)
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: tensor %s lies at [%lld, %lld), outside the %zu bytes of data: the "
                        "file is cut short or corrupt",
                        r->path, t->info.name, (long long)begin, (long long)end, r->size);
    if ((uint64_t)(end - begin) != t->bytes)
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: tensor %s has %lld bytes, its shape and dtype want %zu", r->path,
                        t->info.name, (long long)(end - begin), t->bytes);
    t->data = r->data + begin;
    return DMS_OK;
}

static int by_offset(const void *a, const void *b)
{
    const dms_source_tensor *x = a, *y = b;
    if (x->data != y->data)
        return x->data < y->data ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes;
}

/* Tensors must cover the data without gap and overlap; then they are added in file order. */
static dms_status add_sorted(const reader *r, dms_source_tensor *tensors, size_t n)
{
    const uint8_t *at = r->data;
    qsort(tensors, n, sizeof(*tensors), by_offset);
    for (size_t i = 0; i < n; i++) {
        if (tensors[i].data != at)
            return dms_fail(DMS_ERR_FORMAT, "%s: tensor %s begins at byte %lld, expected %lld",
                            r->path, tensors[i].info.name, (long long)(tensors[i].data - r->data),
                            (long long)(at - r->data));
        at += tensors[i].bytes;
        DMS_TRY(dms_source_add_tensor(r->source, &tensors[i]));
    }
    if (at != r->data + r->size)
        return dms_fail(DMS_ERR_FORMAT, "%s: %zu bytes follow the last tensor", r->path,
                        (size_t)(r->data + r->size - at));
    return DMS_OK;
}

static dms_status add_all(const reader *r, json_t *header)
{
    dms_status status = DMS_OK;
    const char *name;
    json_t *value;
    size_t n = 0;
    dms_source_tensor *tensors = calloc(json_object_size(header) + 1, sizeof(*tensors));
    if (!tensors)
        return dms_fail(DMS_ERR_NOMEM, "no memory for the tensors of %s", r->path);
    json_object_foreach(header, name, value)
    {
        if (!strcmp(name, "__metadata__"))
            continue;
        tensors[n].info.name = name;
        DMS_TRY_OR(done, read_tensor(&tensors[n], r, value));
        n++;
    }
    DMS_TRY_OR(done, add_sorted(r, tensors, n));
done:
    free(tensors);
    return status;
}

dms_status dms_safetensors_add(dms_source *s, json_t **metadata, const char *path)
{
    dms_mapping m;
    json_t *header = NULL;
    reader r = {.source = s, .path = path};
    DMS_TRY(dms_source_add_file(s, &m, path));
    DMS_TRY(read_header(&header, &r, &m));
    const dms_status status = add_all(&r, header);
    if (!status && metadata)
        *metadata = json_incref(json_object_get(header, "__metadata__"));
    json_decref(header);
    return status;
}

dms_status dms_safetensors_fill(dms_source *s, const char *path)
{
    json_t *metadata = NULL;
    const char *name;
    json_t *value;
    dms_status status = DMS_OK;
    s->format = "safetensors";
    DMS_TRY(dms_safetensors_add(s, &metadata, path));
    json_object_foreach(metadata, name, value)
    {
        if (!status && json_is_string(value))
            status =
                dms_source_add_text(s, name, json_string_value(value), json_string_length(value));
    }
    json_decref(metadata);
    return status;
}
