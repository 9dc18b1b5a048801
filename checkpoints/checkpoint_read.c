#include <stdlib.h>
#include <string.h>

#include "checkpoints/checkpoint_file.h"
#include "checkpoints/source_build.h"

typedef struct {
    char *name;
    bool whole; /* stored as an integer */
    int64_t i;
    double x;
} number;

struct dms_checkpoint {
    dms_mapping map;
    dms_checkpoint_tensor *tensors;
    int64_t n_tensors;
    dms_source_note *texts;
    int n_texts;
    number *numbers;
    int n_numbers;
};

/* The file while it is being opened. */
typedef struct {
    dms_checkpoint *c;
    const char *path;
    dms_extents extents;
} opening;

static dms_status corrupt(const opening *o, const char *what, const char *name)
{
    return dms_fail(DMS_ERR_FORMAT, "%s: %s of %s is malformed: the file is corrupt", o->path, what,
                    name);
}

/* Grows an array by one item, zeroed. */
static void *grow(void **items, int64_t count, size_t size)
{
    char *grown = realloc(*items, (size_t)(count + 1) * size);
    if (!grown)
        return NULL;
    *items = grown;
    return memset(grown + (size_t)count * size, 0, size);
}

static bool read_crc(uint32_t *crc, hid_t set)
{
    const hid_t attribute = H5Aopen(set, "crc32", H5P_DEFAULT);
    const hid_t space = attribute < 0 ? -1 : H5Aget_space(attribute);
    const bool ok = space >= 0 && H5Sget_simple_extent_npoints(space) == 1 &&
                    H5Aread(attribute, H5T_NATIVE_UINT32, crc) >= 0;
    dms_hdf5_drop(space);
    dms_hdf5_drop(attribute);
    return ok;
}

/* Where a dataset's bytes are; they must be one of the trailer's extents. */
static bool place(const uint8_t **data, const opening *o, hid_t set, size_t bytes)
{
    const haddr_t offset = bytes ? H5Dget_offset(set) : 0;
    if (bytes &&
        (offset == HADDR_UNDEF || offset % 64 || !dms_extents_have(&o->extents, offset, bytes)))
        return false;
    *data = o->c->map.bytes + offset;
    return true;
}

static bool read_dtype(dms_dtype *out, hid_t set)
{
    const hid_t type = H5Dget_type(set);
    bool found = false;
    for (int i = DMS_F32; type >= 0 && !found && i <= DMS_I32; i++) {
        const hid_t ours = dms_hdf5_type((dms_dtype)i);
        found = H5Tequal(type, ours) > 0;
        *out = (dms_dtype)i;
        dms_hdf5_drop(ours);
    }
    dms_hdf5_drop(type);
    return found;
}

static bool read_shape(dms_checkpoint_tensor *t, size_t *bytes, hid_t set)
{
    hsize_t dims[4];
    const hid_t space = H5Dget_space(set);
    const int rank = space < 0 ? -1 : H5Sget_simple_extent_ndims(space);
    bool ok = rank >= 0 && rank <= 4 && H5Sget_simple_extent_dims(space, dims, NULL) >= 0;
    dms_hdf5_drop(space);
    *bytes = dms_dtype_bytes(t->dtype);
    t->rank = rank;
    for (int i = 0; ok && i < 4; i++) {
        t->shape[i] = i < rank ? (int64_t)dims[i] : 1;
        ok = t->shape[i] >= 0 && !__builtin_mul_overflow(*bytes, (size_t)t->shape[i], bytes);
    }
    return ok;
}

static dms_status add_tensor(opening *o, hid_t set, const char *group, const char *name)
{
    dms_checkpoint *c = o->c;
    dms_checkpoint_tensor t = {0};
    const uint8_t *data;
    if (!read_dtype(&t.dtype, set) || !read_shape(&t, &t.bytes, set))
        return corrupt(o, "type or shape", name);
    if (!place(&data, o, set, t.bytes) || !read_crc(&t.crc, set))
        return corrupt(o, "place or CRC", name);
    t.data = data;
    dms_checkpoint_tensor *slot = grow((void **)&c->tensors, c->n_tensors, sizeof(*slot));
    t.group = slot ? strdup(group) : NULL;
    t.name = slot ? strdup(name) : NULL;
    if (!t.group || !t.name) {
        free((char *)(uintptr_t)t.group);
        free((char *)(uintptr_t)t.name);
        return dms_fail(DMS_ERR_NOMEM, "no memory for the tensors of %s", o->path);
    }
    *slot = t;
    c->n_tensors++;
    return DMS_OK;
}

static dms_status add_text(opening *o, hid_t set, const char *name)
{
    dms_checkpoint *c = o->c;
    const uint8_t *data;
    uint32_t crc = 0;
    const hid_t type = H5Dget_type(set);
    const size_t bytes = type >= 0 && H5Tget_class(type) == H5T_STRING ? H5Tget_size(type) : 0;
    dms_hdf5_drop(type);
    if (!bytes || !place(&data, o, set, bytes) || !read_crc(&crc, set))
        return corrupt(o, "place or CRC", name);
    if (dms_crc32(0, data, bytes) != crc)
        return dms_fail(DMS_ERR_FORMAT, "%s: CRC-32 of text %s is wrong: the file is corrupt",
                        o->path, name);
    const size_t length = bytes == 1 && !data[0] ? 0 : bytes;
    dms_source_note *note = grow((void **)&c->texts, c->n_texts, sizeof(*note));
    if (note) {
        c->n_texts++;
        *note = (dms_source_note){strdup(name), malloc(length + 1), length};
    }
    if (!note || !note->name || !note->text)
        return dms_fail(DMS_ERR_NOMEM, "no memory for text %s of %s", name, o->path);
    memcpy(note->text, data, length);
    note->text[length] = 0;
    return DMS_OK;
}

/* Calls `each` for all links of a group, in the order they were made. */
static dms_status walk(opening *o, hid_t group, const char *group_name,
                       dms_status (*each)(opening *o, hid_t group, const char *group_name,
                                          const char *name))
{
    H5G_info_t info;
    char name[512];
    if (group < 0 || H5Gget_info(group, &info) < 0)
        return corrupt(o, "the list", group_name);
    for (hsize_t i = 0; i < info.nlinks; i++) {
        const ssize_t n = H5Lget_name_by_idx(group, ".", H5_INDEX_CRT_ORDER, H5_ITER_INC, i, name,
                                             sizeof(name), H5P_DEFAULT);
        if (n <= 0 || (size_t)n >= sizeof(name))
            return corrupt(o, "a name", group_name);
        DMS_TRY(each(o, group, group_name, name));
    }
    return DMS_OK;
}

static dms_status visit_dataset(opening *o, hid_t group, const char *group_name, const char *name)
{
    const hid_t set = H5Dopen2(group, name, H5P_DEFAULT);
    if (set < 0)
        return corrupt(o, "the dataset", name);
    const dms_status status =
        strcmp(group_name, "texts") ? add_tensor(o, set, group_name, name) : add_text(o, set, name);
    dms_hdf5_drop(set);
    return status;
}

static dms_status visit_group(opening *o, hid_t root, const char *root_name, const char *name)
{
    (void)root_name;
    const hid_t group = H5Gopen2(root, name, H5P_DEFAULT);
    const dms_status status = walk(o, group, name, visit_dataset);
    dms_hdf5_drop(group);
    return status;
}

/* One root attribute; those that are no single number are not ours to read. */
static herr_t visit_attribute(hid_t root, const char *name, const H5A_info_t *info, void *context)
{
    dms_checkpoint *c = context;
    (void)info;
    herr_t result = 0;
    const hid_t attribute = H5Aopen(root, name, H5P_DEFAULT);
    const hid_t type = attribute < 0 ? -1 : H5Aget_type(attribute);
    const hid_t space = attribute < 0 ? -1 : H5Aget_space(attribute);
    number n = {0};
    n.whole = type >= 0 && H5Tget_class(type) == H5T_INTEGER;
    const bool single = space >= 0 && H5Sget_simple_extent_npoints(space) == 1;
    if (single && n.whole)
        result = H5Aread(attribute, H5T_NATIVE_INT64, &n.i);
    else if (single && type >= 0 && H5Tget_class(type) == H5T_FLOAT)
        result = H5Aread(attribute, H5T_NATIVE_DOUBLE, &n.x);
    else
        goto done;
    number *slot = grow((void **)&c->numbers, c->n_numbers, sizeof(*slot));
    n.name = slot ? strdup(name) : NULL;
    if (!n.name)
        result = -1;
    if (slot && n.name) {
        n.x = n.whole ? (double)n.i : n.x;
        *slot = n;
        c->n_numbers++;
    }
done:
    dms_hdf5_drop(space);
    dms_hdf5_drop(type);
    dms_hdf5_drop(attribute);
    return result;
}

static dms_status read_all(opening *o, hid_t file)
{
    hsize_t index = 0;
    int64_t version;
    if (H5Aiterate2(file, H5_INDEX_NAME, H5_ITER_INC, &index, visit_attribute, o->c) < 0)
        return corrupt(o, "an attribute", "the file");
    if (!dms_checkpoint_int(o->c, "version", &version) || version != 1)
        return dms_fail(DMS_ERR_FORMAT, "%s has no version or another than 1", o->path);
    return walk(o, file, "/", visit_group);
}

static dms_status read_file(opening *o)
{
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    const hid_t access = dms_hdf5_access();
    const hid_t file = access < 0 ? -1 : H5Fopen(o->path, H5F_ACC_RDONLY, access);
    dms_hdf5_drop(access);
    if (file < 0)
        return dms_fail(DMS_ERR_FORMAT, "%s cannot be opened by HDF5: the file is corrupt",
                        o->path);
    const dms_status status = read_all(o, file);
    H5Fclose(file);
    return status;
}

dms_status dms_checkpoint_open(dms_checkpoint **out, const char *path)
{
    dms_status status = DMS_OK;
    dms_checkpoint *c = calloc(1, sizeof(*c));
    opening o = {.c = c, .path = path};
    if (!c)
        return dms_fail(DMS_ERR_NOMEM, "no memory to open %s", path);
    DMS_TRY_OR(done, dms_mapping_open(&c->map, path));
    DMS_TRY_OR(done, dms_trailer_read(&o.extents, &c->map, path));
    DMS_TRY_OR(done, read_file(&o));
    *out = c;
    c = NULL;
done:
    dms_checkpoint_close(c);
    free(o.extents.items);
    return status;
}

void dms_checkpoint_close(dms_checkpoint *c)
{
    if (!c)
        return;
    for (int64_t i = 0; i < c->n_tensors; i++) {
        free((char *)(uintptr_t)c->tensors[i].group);
        free((char *)(uintptr_t)c->tensors[i].name);
    }
    for (int i = 0; i < c->n_texts; i++) {
        free(c->texts[i].name);
        free(c->texts[i].text);
    }
    for (int i = 0; i < c->n_numbers; i++)
        free(c->numbers[i].name);
    dms_mapping_close(&c->map);
    free(c->tensors);
    free(c->texts);
    free(c->numbers);
    free(c);
}

int64_t dms_checkpoint_count(const dms_checkpoint *c)
{
    return c->n_tensors;
}

const dms_checkpoint_tensor *dms_checkpoint_info(const dms_checkpoint *c, int64_t i)
{
    return &c->tensors[i];
}

const dms_checkpoint_tensor *dms_checkpoint_find(const dms_checkpoint *c, const char *group,
                                                 const char *name)
{
    for (int64_t i = 0; i < c->n_tensors; i++)
        if (!strcmp(c->tensors[i].name, name) && !strcmp(c->tensors[i].group, group))
            return &c->tensors[i];
    return NULL;
}

dms_status dms_checkpoint_read(const dms_checkpoint *c, const char *group, const char *name,
                               dms_dtype dtype, int64_t count, void *dst)
{
    static const char *const names[] = {"F32", "BF16", "I32"};
    const dms_checkpoint_tensor *t = dms_checkpoint_find(c, group, name);
    if (!t)
        return dms_fail(DMS_ERR_FORMAT, "the checkpoint has no tensor %s/%s", group, name);
    const int64_t found = (int64_t)(t->bytes / dms_dtype_bytes(t->dtype));
    if (t->dtype != dtype || found != count)
        return dms_fail(DMS_ERR_FORMAT, "%s/%s has %lld %s, expected %lld %s", group, name,
                        (long long)found, names[t->dtype], (long long)count, names[dtype]);
    if (t->bytes)
        memcpy(dst, t->data, t->bytes);
    return DMS_OK;
}

const char *dms_checkpoint_text(const dms_checkpoint *c, const char *name, size_t *length)
{
    for (int i = 0; i < c->n_texts; i++)
        if (!strcmp(c->texts[i].name, name)) {
            if (length)
                *length = c->texts[i].length;
            return c->texts[i].text;
        }
    return NULL;
}

const char *dms_checkpoint_text_name(const dms_checkpoint *c, int i)
{
    return i < c->n_texts ? c->texts[i].name : NULL;
}

static const number *find_number(const dms_checkpoint *c, const char *name)
{
    for (int i = 0; i < c->n_numbers; i++)
        if (!strcmp(c->numbers[i].name, name))
            return &c->numbers[i];
    return NULL;
}

bool dms_checkpoint_real(const dms_checkpoint *c, const char *name, double *out)
{
    const number *n = find_number(c, name);
    if (n)
        *out = n->x;
    return n != NULL;
}

bool dms_checkpoint_int(const dms_checkpoint *c, const char *name, int64_t *out)
{
    const number *n = find_number(c, name);
    if (!n || !n->whole)
        return false;
    *out = n->i;
    return true;
}

const char *dms_checkpoint_number_name(const dms_checkpoint *c, int i)
{
    return i < c->n_numbers ? c->numbers[i].name : NULL;
}

dms_status dms_checkpoint_verify(const dms_checkpoint *c)
{
    for (int64_t i = 0; i < c->n_tensors; i++) {
        const dms_checkpoint_tensor *t = &c->tensors[i];
        const uint32_t found = dms_crc32(0, t->data, t->bytes);
        if (found != t->crc)
            return dms_fail(DMS_ERR_FORMAT,
                            "CRC-32 of %s/%s is %08x, expected %08x: the file is corrupt; use an "
                            "older checkpoint",
                            t->group, t->name, found, t->crc);
    }
    return DMS_OK;
}

/* As a source. */

static dms_status show_texts(dms_source *s, const dms_checkpoint *c)
{
    for (int i = 0; i < c->n_texts; i++) {
        const dms_source_note *note = &c->texts[i];
        json_error_t error;
        if (!strcmp(note->name, "config")) {
            s->config = json_loadb(note->text, note->length, JSON_REJECT_DUPLICATES, &error);
            if (!json_is_object(s->config))
                return dms_fail(DMS_ERR_FORMAT, "%s: its text config is no JSON object: %s",
                                s->path, error.text);
            continue;
        }
        const bool tokenizer = !strcmp(note->name, "tokenizer");
        DMS_TRY(dms_source_add_text(s, tokenizer ? DMS_NOTE_TOKENIZER : note->name, note->text,
                                    note->length));
    }
    return DMS_OK;
}

static dms_status show_tensors(dms_source *s, const dms_checkpoint *c)
{
    static const dms_file_type types[] = {DMS_FILE_F32, DMS_FILE_BF16, DMS_FILE_I32};
    for (int64_t i = 0; i < c->n_tensors; i++) {
        const dms_checkpoint_tensor *t = &c->tensors[i];
        if (strcmp(t->group, "weights"))
            continue;
        dms_source_tensor shown = {.info = {.name = t->name, .rank = t->rank}};
        memcpy(shown.info.shape, t->shape, sizeof(shown.info.shape));
        shown.info.type = types[t->dtype];
        shown.type_name = dms_file_type_name(shown.info.type);
        shown.data = t->data;
        shown.bytes = t->bytes;
        DMS_TRY(dms_source_add_tensor(s, &shown));
    }
    return DMS_OK;
}

dms_status dms_checkpoint_fill(dms_source *s, const char *path)
{
    dms_status status;
    dms_checkpoint *c;
    s->format = "dms";
    DMS_TRY(dms_checkpoint_open(&c, path));
    DMS_TRY_OR(done, show_texts(s, c));
    DMS_TRY_OR(done, show_tensors(s, c));
    for (int i = 0; i < c->n_numbers; i++)
        DMS_TRY_OR(done, dms_source_add_number(s, c->numbers[i].name, c->numbers[i].x));
    DMS_TRY_OR(done, dms_source_adopt(s, &c->map));
done:
    dms_checkpoint_close(c);
    return status;
}
