#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "checkpoints/checkpoint_chunks.h"
#include "checkpoints/checkpoint_header.h"
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
    dms_mapping *inflated; /* anonymous memory of the compressed tensors */
    int n_inflated;
    size_t inflated_bytes;
};

/* The file while it is being opened. */
typedef struct {
    dms_checkpoint *c;
    const char *path;
    dms_extents extents;
    dms_tensor_types types;
    bool no_memory; /* why the walk over the attributes stopped */
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

/* Whether a dataset's bytes are one of the trailer's extents. */
static bool place(const void **data, const opening *o, haddr_t offset, size_t bytes)
{
    if (bytes &&
        (offset == HADDR_UNDEF || offset % 64 || !dms_extents_have(&o->extents, offset, bytes)))
        return false;
    *data = o->c->map.bytes + (bytes ? offset : 0);
    return true;
}

/* Bytes of an element of such a type. */
static size_t element_bytes(dms_file_type type)
{
    size_t bytes;
    dms_file_type_block(type, &bytes);
    return bytes;
}

/* Takes a shape of rank 0 to 4 over, and the bytes that it makes. */
static bool take_shape(dms_checkpoint_tensor *t, int rank, const hsize_t *dims)
{
    bool ok = rank >= 0 && rank <= 4;
    t->bytes = element_bytes(t->type);
    t->rank = rank;
    for (int i = 0; ok && i < 4; i++) {
        t->shape[i] = i < rank ? (int64_t)dims[i] : 1;
        ok = t->shape[i] >= 0 && !__builtin_mul_overflow(t->bytes, (size_t)t->shape[i], &t->bytes);
    }
    return ok;
}

static bool read_shape(dms_checkpoint_tensor *t, hid_t set)
{
    hsize_t dims[4];
    const hid_t space = H5Dget_space(set);
    const int rank = space < 0 ? -1 : H5Sget_simple_extent_ndims(space);
    const bool ok = rank >= 0 && rank <= 4 && H5Sget_simple_extent_dims(space, dims, NULL) >= 0 &&
                    take_shape(t, rank, dims);
    dms_hdf5_drop(space);
    return ok;
}

/* How a chunked dataset is cut, where it is cut as our writer does: chunks of whole rows through
 * shuffle and deflate. */
static bool read_chunking(dms_chunking *out, hid_t set, const dms_checkpoint_tensor *t)
{
    hsize_t dims[4] = {0};
    const hid_t how = H5Dget_create_plist(set);
    bool ok = how >= 0 && t->rank > 0 && H5Pget_chunk(how, 4, dims) == t->rank &&
              H5Pget_nfilters(how) == 2;
    for (unsigned i = 0; ok && i < 2; i++) {
        unsigned flags, config;
        size_t n = 0;
        const H5Z_filter_t filter = H5Pget_filter2(how, i, &flags, &n, NULL, 0, NULL, &config);
        ok = filter == (i ? H5Z_FILTER_DEFLATE : H5Z_FILTER_SHUFFLE);
    }
    dms_hdf5_drop(how);
    for (int i = 1; ok && i < t->rank; i++)
        ok = dims[i] == (hsize_t)t->shape[i];
    ok = ok && t->bytes && dims[0] > 0 && dims[0] <= (hsize_t)t->shape[0];
    if (ok)
        *out = (dms_chunking){t->shape[0], (int64_t)dims[0], t->bytes / (size_t)t->shape[0],
                              element_bytes(t->type)};
    return ok;
}

static dms_status inflate_into(const opening *o, hid_t set, const dms_checkpoint_tensor *t,
                               const dms_chunking *c, void *to)
{
    for (int64_t i = 0; i < dms_chunking_count(c); i++) {
        const hsize_t at[4] = {(hsize_t)(i * c->chunk_rows)};
        hsize_t size = 0;
        haddr_t address = HADDR_UNDEF;
        unsigned mask = 0;
        if (H5Dget_chunk_info_by_coord(set, at, &mask, &address, &size) < 0 || mask ||
            address == HADDR_UNDEF || !dms_extents_have(&o->extents, address, size))
            return corrupt(o, "a chunk", t->name);
        const dms_status status = dms_chunk_inflate(to, c, i, o->c->map.bytes + address, size);
        if (status == DMS_ERR_FORMAT)
            return corrupt(o, "a compressed chunk", t->name);
        DMS_TRY(status);
    }
    return DMS_OK;
}

/* A compressed tensor, in memory of its own that the checkpoint owns. */
static dms_status inflate(dms_checkpoint_tensor *t, opening *o, hid_t set)
{
    dms_chunking chunking;
    dms_checkpoint *c = o->c;
    if (!read_chunking(&chunking, set, t))
        return corrupt(o, "the cut into chunks", t->name);
    if (t->bytes > 4 * c->map.size + (64u << 20) - c->inflated_bytes)
        return dms_fail(DMS_ERR_FORMAT,
                        "%s (%zu bytes) says that tensor %s inflates to %zu bytes, expected at "
                        "most 4 times the file and 64 MiB in all",
                        o->path, c->map.size, t->name, t->bytes);
    void *memory = mmap(NULL, t->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    dms_mapping *slot =
        memory == MAP_FAILED ? NULL : grow((void **)&c->inflated, c->n_inflated, sizeof(*slot));
    if (!slot) {
        if (memory != MAP_FAILED)
            munmap(memory, t->bytes);
        return dms_fail(DMS_ERR_NOMEM, "no memory for %zu bytes of tensor %s", t->bytes, t->name);
    }
    *slot = (dms_mapping){memory, t->bytes};
    c->n_inflated++;
    c->inflated_bytes += t->bytes;
    t->data = memory;
    return inflate_into(o, set, t, &chunking, memory);
}

static bool is_chunked(hid_t set)
{
    const hid_t how = H5Dget_create_plist(set);
    const bool chunked = how >= 0 && H5Pget_layout(how) == H5D_CHUNKED;
    dms_hdf5_drop(how);
    return chunked;
}

/* Through libhdf5: any tensor. */
static dms_status read_tensor(dms_checkpoint_tensor *t, opening *o, hid_t set)
{
    if (!dms_tensor_types_find(&t->type, &o->types, set) || !read_shape(t, set))
        return corrupt(o, "type or shape", t->name);
    if (!read_crc(&t->crc, set))
        return corrupt(o, "CRC", t->name);
    if (is_chunked(set))
        return inflate(t, o, set);
    return place(&t->data, o, t->bytes ? H5Dget_offset(set) : 0, t->bytes)
               ? DMS_OK
               : corrupt(o, "place", t->name);
}

/* Past libhdf5: a contiguous tensor without fault. */
static bool read_plain_tensor(dms_checkpoint_tensor *t, const opening *o, haddr_t address)
{
    dms_dataset_header h;
    if (!dms_dataset_header_read(&h, &o->types, &o->c->map, address))
        return false;
    t->type = h.type;
    t->crc = h.crc;
    return take_shape(t, h.rank, h.shape) && place(&t->data, o, h.offset, t->bytes);
}

static dms_status add_tensor(opening *o, const dms_checkpoint_tensor *t, const char *group)
{
    dms_checkpoint *c = o->c;
    dms_checkpoint_tensor *slot = grow((void **)&c->tensors, c->n_tensors, sizeof(*slot));
    char *group_copy = slot ? strdup(group) : NULL, *name = slot ? strdup(t->name) : NULL;
    if (!group_copy || !name) {
        free(group_copy);
        free(name);
        return dms_fail(DMS_ERR_NOMEM, "no memory for the tensors of %s", o->path);
    }
    *slot = *t;
    slot->group = group_copy;
    slot->name = name;
    c->n_tensors++;
    return DMS_OK;
}

static dms_status add_text(opening *o, hid_t set, const char *name)
{
    dms_checkpoint *c = o->c;
    const void *data;
    uint32_t crc = 0;
    const hid_t type = H5Dget_type(set);
    const size_t bytes = type >= 0 && H5Tget_class(type) == H5T_STRING ? H5Tget_size(type) : 0;
    dms_hdf5_drop(type);
    if (!bytes || !place(&data, o, H5Dget_offset(set), bytes) || !read_crc(&crc, set))
        return corrupt(o, "place or CRC", name);
    if (dms_crc32(0, data, bytes) != crc)
        return dms_fail(DMS_ERR_FORMAT, "%s: CRC-32 of text %s is wrong: the file is corrupt",
                        o->path, name);
    size_t length = bytes;
    while (length && !((const char *)data)[length - 1]) /* padding (H5T_STR_NULLPAD) */
        length--;
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

/* A link of a group. */
typedef struct {
    const char *name;
    haddr_t address; /* of the object header; HADDR_UNDEF where only libhdf5 can tell */
} linked;

typedef dms_status visit_fn(opening *o, hid_t group, const char *group_name, const linked *at);

/* A group while its links are visited. */
typedef struct {
    opening *o;
    const char *group_name;
    visit_fn *each;
    dms_status status; /* why the walk stopped */
} walking;

static herr_t visit_link(hid_t group, const char *name, const H5L_info_t *info, void *context)
{
    walking *w = context;
    const linked at = {name, info->type == H5L_TYPE_HARD ? info->u.address : HADDR_UNDEF};
    w->status = *name && strlen(name) < 512 ? w->each(w->o, group, w->group_name, &at)
                                            : corrupt(w->o, "a name", w->group_name);
    return w->status ? -1 : 0;
}

/* Calls `each` for all links of a group, in the order they were made. */
static dms_status walk(opening *o, hid_t group, const char *group_name, visit_fn *each)
{
    hsize_t at = 0;
    walking w = {o, group_name, each, DMS_OK};
    if (group >= 0 && H5Literate(group, H5_INDEX_CRT_ORDER, H5_ITER_INC, &at, visit_link, &w) >= 0)
        return DMS_OK;
    return w.status ? w.status : corrupt(o, "the list", group_name);
}

static dms_status visit_dataset(opening *o, hid_t group, const char *group_name, const linked *at)
{
    const bool text = !strcmp(group_name, "texts");
    dms_checkpoint_tensor t = {.name = at->name};
    if (!text && read_plain_tensor(&t, o, at->address))
        return add_tensor(o, &t, group_name);
    const hid_t set = H5Dopen2(group, at->name, H5P_DEFAULT);
    if (set < 0)
        return corrupt(o, "the dataset", at->name);
    dms_status status = text ? add_text(o, set, at->name) : read_tensor(&t, o, set);
    dms_hdf5_drop(set);
    if (!status && !text)
        status = add_tensor(o, &t, group_name);
    return status;
}

static dms_status visit_group(opening *o, hid_t root, const char *root_name, const linked *at)
{
    (void)root_name;
    const hid_t group = H5Gopen2(root, at->name, H5P_DEFAULT);
    const dms_status status = walk(o, group, at->name, visit_dataset);
    dms_hdf5_drop(group);
    return status;
}

/* One root attribute; those that are no single number are not ours to read. */
static herr_t visit_attribute(hid_t root, const char *name, const H5A_info_t *info, void *context)
{
    opening *o = context;
    dms_checkpoint *c = o->c;
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
    if (!n.name) {
        o->no_memory = true;
        result = -1;
    } else {
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
    if (H5Aiterate2(file, H5_INDEX_NAME, H5_ITER_INC, &index, visit_attribute, o) < 0)
        return o->no_memory ? dms_fail(DMS_ERR_NOMEM, "no memory for the numbers of %s", o->path)
                            : corrupt(o, "an attribute", "the file");
    if (!dms_checkpoint_int(o->c, "version", &version) || version < 1)
        return dms_fail(DMS_ERR_FORMAT, "%s has no version, expected a checkpoint of dms.c",
                        o->path);
    if (version > DMS_CHECKPOINT_VERSION)
        return dms_fail(DMS_ERR_FORMAT,
                        "%s is of version %lld, this program reads 1 to %d; use a newer dms.c",
                        o->path, (long long)version, DMS_CHECKPOINT_VERSION);
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
    dms_tensor_types_make(&o->types);
    const dms_status status = read_all(o, file);
    dms_tensor_types_drop(&o->types);
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
    for (int i = 0; i < c->n_inflated; i++)
        dms_mapping_close(&c->inflated[i]);
    dms_mapping_close(&c->map);
    free(c->inflated);
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
    static const dms_file_type types[] = {DMS_FILE_F32, DMS_FILE_BF16, DMS_FILE_I32};
    const dms_checkpoint_tensor *t = dms_checkpoint_find(c, group, name);
    if (!t)
        return dms_fail(DMS_ERR_FORMAT, "the checkpoint has no tensor %s/%s", group, name);
    const int64_t found = (int64_t)(t->bytes / element_bytes(t->type));
    if (t->type != types[dtype] || found != count)
        return dms_fail(DMS_ERR_FORMAT, "%s/%s has %lld %s, expected %lld %s", group, name,
                        (long long)found, dms_file_type_name(t->type), (long long)count,
                        dms_file_type_name(types[dtype]));
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

static dms_status show_texts(dms_source *s, dms_checkpoint *c)
{
    for (int i = 0; i < c->n_texts; i++) {
        dms_source_note *note = &c->texts[i];
        json_error_t error;
        if (!strcmp(note->name, "config")) {
            s->config = json_loadb(note->text, note->length, JSON_REJECT_DUPLICATES, &error);
            if (!json_is_object(s->config))
                return dms_fail(DMS_ERR_FORMAT, "%s: its text config is no JSON object: %s",
                                s->path, error.text);
            continue;
        }
        const bool tokenizer = !strcmp(note->name, "tokenizer");
        DMS_TRY(dms_source_take_text(s, tokenizer ? DMS_NOTE_TOKENIZER : note->name, &note->text,
                                     note->length));
    }
    return DMS_OK;
}

static dms_status show_tensors(dms_source *s, const dms_checkpoint *c)
{
    for (int64_t i = 0; i < c->n_tensors; i++) {
        const dms_checkpoint_tensor *t = &c->tensors[i];
        if (strcmp(t->group, "weights"))
            continue;
        dms_source_tensor shown = {.info = {.name = t->name, .rank = t->rank}};
        memcpy(shown.info.shape, t->shape, sizeof(shown.info.shape));
        shown.info.type = t->type;
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
    for (int i = 0; i < c->n_inflated; i++)
        DMS_TRY_OR(done, dms_source_adopt(s, &c->inflated[i]));
done:
    dms_checkpoint_close(c);
    return status;
}
