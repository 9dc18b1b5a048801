#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "checkpoints/checkpoint_chunks.h"
#include "checkpoints/checkpoint_file.h"

/* libhdf5 1.10 cannot close a file whose last flush fails. So it must never meet a full disk: space
 * for what comes next, and this much for its own structures, is reserved before each call. */
enum { SLACK_BYTES = 1 << 20 };

struct dms_checkpoint_writer {
    hid_t file;
    dms_temporary temporary; /* the same file: fd for reserving, the trailer and fsync */
    char *path;
    bool finished; /* nothing is missing but the name */
    dms_extents extents;
    uint64_t reserved; /* bytes the file system has promised */
    bool compressed;   /* tensors, from now on */
};

static dms_status failed(const dms_checkpoint_writer *w, const char *what, const char *name)
{
    return dms_fail(DMS_ERR_IO, "%s: HDF5 cannot %s %s", w->path, what, name);
}

static dms_status reserve_to(dms_checkpoint_writer *w, uint64_t size)
{
    if (size <= w->reserved)
        return DMS_OK;
    int error;
    do {
        error = posix_fallocate(w->temporary.fd, (off_t)w->reserved, (off_t)(size - w->reserved));
    } while (error == EINTR);
    if (error)
        return dms_fail(DMS_ERR_IO,
                        "%s cannot grow to %llu bytes: %s; free some space and try again", w->path,
                        (unsigned long long)size, strerror(error));
    w->reserved = size;
    return DMS_OK;
}

static dms_status reserve(dms_checkpoint_writer *w, uint64_t bytes)
{
    hsize_t used;
    if (H5Fget_filesize(w->file, &used) < 0)
        return failed(w, "tell the size of", "the file");
    return reserve_to(w, used + bytes + SLACK_BYTES);
}

static dms_status put_header(const dms_checkpoint_writer *w)
{
    const int32_t version = DMS_CHECKPOINT_VERSION;
    const hid_t text = H5Tcopy(H5T_C_S1), space = H5Screate(H5S_SCALAR);
    hid_t format = -1, number = -1;
    dms_status status = DMS_OK;
    if (text < 0 || space < 0 || H5Tset_size(text, 3) < 0 ||
        H5Tset_strpad(text, H5T_STR_NULLPAD) < 0)
        DMS_TRY_OR(done, failed(w, "describe", "the format"));
    format = H5Acreate2(w->file, "format", text, space, H5P_DEFAULT, H5P_DEFAULT);
    number = H5Acreate2(w->file, "version", H5T_STD_I32LE, space, H5P_DEFAULT, H5P_DEFAULT);
    if (format < 0 || number < 0 || H5Awrite(format, text, "dms") < 0 ||
        H5Awrite(number, H5T_NATIVE_INT32, &version) < 0)
        DMS_TRY_OR(done, failed(w, "write", "the format"));
done:
    dms_hdf5_drop(format);
    dms_hdf5_drop(number);
    dms_hdf5_drop(space);
    dms_hdf5_drop(text);
    return status;
}

/* Creates the HDF5 file over the empty one. */
static dms_status create(dms_checkpoint_writer *w)
{
    const unsigned order = H5P_CRT_ORDER_TRACKED | H5P_CRT_ORDER_INDEXED;
    DMS_TRY(reserve_to(w, SLACK_BYTES));
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    const hid_t access = dms_hdf5_access(), create = H5Pcreate(H5P_FILE_CREATE);
    if (access >= 0 && create >= 0 && H5Pset_link_creation_order(create, order) >= 0 &&
        H5Pset_attr_creation_order(create, order) >= 0)
        w->file = H5Fcreate(w->temporary.path, H5F_ACC_TRUNC, create, access);
    dms_hdf5_drop(access);
    dms_hdf5_drop(create);
    if (w->file < 0)
        return failed(w, "create", "the file");
    w->reserved = 0; /* creating has cut the file to nothing */
    DMS_TRY(reserve(w, 0));
    return put_header(w);
}

dms_status dms_checkpoint_writer_open(dms_checkpoint_writer **out, const char *path)
{
    dms_status status = DMS_OK;
    dms_checkpoint_writer *w = calloc(1, sizeof(*w));
    if (!w)
        return dms_fail(DMS_ERR_NOMEM, "no memory to write %s", path);
    w->file = w->temporary.fd = -1;
    w->path = strdup(path);
    if (!w->path)
        DMS_TRY_OR(failed, dms_fail(DMS_ERR_NOMEM, "no memory to write %s", path));
    DMS_TRY_OR(failed, dms_temporary_create(&w->temporary, path, false));
    DMS_TRY_OR(failed, create(w));
    *out = w;
    return DMS_OK;
failed:
    dms_checkpoint_writer_abort(w);
    return status;
}

static dms_status check_name(const dms_checkpoint_writer *w, const char *name)
{
    if (!*name || strchr(name, '/') || !strcmp(name, ".") || !strcmp(name, "format") ||
        !strcmp(name, "version"))
        return dms_fail(DMS_ERR_ARG, "%s: '%s' cannot be the name of a dataset, group or number",
                        w->path, name);
    return DMS_OK;
}

static hid_t open_group(const dms_checkpoint_writer *w, const char *name)
{
    if (H5Lexists(w->file, name, H5P_DEFAULT) > 0)
        return H5Gopen2(w->file, name, H5P_DEFAULT);
    const hid_t order = H5Pcreate(H5P_GROUP_CREATE);
    hid_t group = -1;
    if (H5Pset_link_creation_order(order, H5P_CRT_ORDER_TRACKED | H5P_CRT_ORDER_INDEXED) >= 0)
        group = H5Gcreate2(w->file, name, H5P_DEFAULT, order, H5P_DEFAULT);
    dms_hdf5_drop(order);
    return group;
}

/* A dataset to be written: type and space are closed by put_dataset. */
typedef struct {
    const char *group, *name;
    hid_t type, space;
    const void *data;
    size_t bytes;
    const dms_chunking *chunking; /* NULL: contiguous */
    int rank;
    const hsize_t *chunk; /* dimensions of a chunk */
} dataset;

/* A dataset's chunks in memory. */
typedef struct {
    uint8_t **bytes;
    size_t *sizes, total;
    int64_t count;
} packed;

static bool put_crc(hid_t set, const dataset *d)
{
    const uint32_t crc = dms_crc32(0, d->data, d->bytes);
    const hid_t space = H5Screate(H5S_SCALAR);
    const hid_t attribute =
        H5Acreate2(set, "crc32", H5T_STD_U32LE, space, H5P_DEFAULT, H5P_DEFAULT);
    const bool ok = attribute >= 0 && H5Awrite(attribute, H5T_NATIVE_UINT32, &crc) >= 0;
    dms_hdf5_drop(attribute);
    dms_hdf5_drop(space);
    return ok;
}

/* Contiguous, allocated at once, never filled: so it has an offset and is written only once. Or in
 * chunks with the two filters. */
static hid_t create_dataset(hid_t group, const dataset *d)
{
    hid_t set = -1;
    const hid_t how = H5Pcreate(H5P_DATASET_CREATE);
    const bool ok = d->chunking
                        ? H5Pset_chunk(how, d->rank, d->chunk) >= 0 && H5Pset_shuffle(how) >= 0 &&
                              H5Pset_deflate(how, DMS_CHUNK_LEVEL) >= 0
                        : H5Pset_layout(how, H5D_CONTIGUOUS) >= 0 &&
                              H5Pset_alloc_time(how, H5D_ALLOC_TIME_EARLY) >= 0;
    if (ok && H5Pset_fill_time(how, H5D_FILL_TIME_NEVER) >= 0)
        set = H5Dcreate2(group, d->name, d->type, d->space, H5P_DEFAULT, how, H5P_DEFAULT);
    dms_hdf5_drop(how);
    return set;
}

static dms_status write_whole(dms_checkpoint_writer *w, hid_t set, const dataset *d)
{
    if (H5Dwrite(set, d->type, H5S_ALL, H5S_ALL, H5P_DEFAULT, d->data) < 0)
        return failed(w, "write", d->name);
    const haddr_t offset = H5Dget_offset(set);
    if (d->bytes && offset == HADDR_UNDEF)
        return failed(w, "place", d->name);
    return d->bytes ? dms_extents_add(&w->extents, offset, d->bytes) : DMS_OK;
}

/* The chunks go to the file as they are, past HDF5's own filters. */
static dms_status write_chunks(dms_checkpoint_writer *w, hid_t set, const dataset *d,
                               const packed *p)
{
    for (int64_t i = 0; i < p->count; i++) {
        hsize_t at[4] = {(hsize_t)(i * d->chunking->chunk_rows)}, size = 0;
        haddr_t address = HADDR_UNDEF;
        unsigned mask = 0;
        if (H5Dwrite_chunk(set, H5P_DEFAULT, 0, at, p->sizes[i], p->bytes[i]) < 0)
            return failed(w, "write", d->name);
        if (H5Dget_chunk_info_by_coord(set, at, &mask, &address, &size) < 0 ||
            address == HADDR_UNDEF || size != p->sizes[i])
            return failed(w, "place", d->name);
        DMS_TRY(dms_extents_add(&w->extents, address, size));
    }
    return DMS_OK;
}

static dms_status put_dataset(dms_checkpoint_writer *w, const dataset *d, const packed *p)
{
    dms_status status = DMS_OK;
    hid_t group = -1, set = -1;
    if (d->type < 0 || d->space < 0)
        DMS_TRY_OR(done, failed(w, "describe", d->name));
    DMS_TRY_OR(done, check_name(w, d->group));
    DMS_TRY_OR(done, check_name(w, d->name));
    DMS_TRY_OR(done, reserve(w, d->chunking ? p->total + 64 * (size_t)p->count : d->bytes));
    group = open_group(w, d->group);
    set = group < 0 ? -1 : create_dataset(group, d);
    if (set < 0)
        DMS_TRY_OR(done, failed(w, "create", d->name));
    DMS_TRY_OR(done, d->chunking ? write_chunks(w, set, d, p) : write_whole(w, set, d));
    if (!put_crc(set, d))
        DMS_TRY_OR(done, failed(w, "write", d->name));
done:
    dms_hdf5_drop(set);
    dms_hdf5_drop(group);
    dms_hdf5_drop(d->space);
    dms_hdf5_drop(d->type);
    return status;
}

void dms_checkpoint_writer_compress(dms_checkpoint_writer *w)
{
    w->compressed = true;
}

static void drop_packed(packed *p)
{
    for (int64_t i = 0; p->bytes && i < p->count; i++)
        free(p->bytes[i]);
    free(p->bytes);
    free(p->sizes);
}

static dms_status pack(packed *p, const dms_chunking *c, const void *data)
{
    p->count = dms_chunking_count(c);
    p->bytes = calloc((size_t)p->count, sizeof(*p->bytes));
    p->sizes = calloc((size_t)p->count, sizeof(*p->sizes));
    if (!p->bytes || !p->sizes)
        return dms_fail(DMS_ERR_NOMEM, "no memory for %lld chunks", (long long)p->count);
    for (int64_t i = 0; i < p->count; i++) {
        DMS_TRY(dms_chunk_deflate(&p->bytes[i], &p->sizes[i], c, i, data));
        p->total += p->sizes[i];
    }
    return DMS_OK;
}

/* Whether the gain is worth the chunks, and no bomb. */
static bool worth_it(const packed *p, size_t bytes)
{
    return p->total < bytes - bytes / 32 && p->total > bytes / 4;
}

dms_status dms_checkpoint_put_entry(dms_checkpoint_writer *w, const char *group,
                                    const dms_tensor_entry *entry, const void *data)
{
    hsize_t dims[4] = {1, 1, 1, 1}, chunk[4];
    const size_t element = entry->half ? 2 : dms_dtype_bytes(entry->dtype);
    size_t bytes = element;
    packed p = {0};
    dms_chunking chunking;
    dms_status status = DMS_OK;
    if (entry->rank < 0 || entry->rank > 4)
        return dms_fail(DMS_ERR_ARG, "%s has rank %d, expected 0 to 4", entry->name, entry->rank);
    for (int i = 0; i < entry->rank; i++) {
        if (entry->shape[i] < 0)
            return dms_fail(DMS_ERR_ARG, "dimension %d of %s is negative", i, entry->name);
        dims[i] = (hsize_t)entry->shape[i];
        bytes *= (size_t)entry->shape[i];
    }
    memcpy(chunk, dims, sizeof(chunk));
    bool cut = w->compressed && dms_chunking_plan(&chunking, entry->rank, entry->shape, element);
    if (cut) {
        chunk[0] = (hsize_t)chunking.chunk_rows;
        DMS_TRY_OR(done, pack(&p, &chunking, data));
        cut = worth_it(&p, bytes);
    }
    const hid_t space =
        entry->rank ? H5Screate_simple(entry->rank, dims, NULL) : H5Screate(H5S_SCALAR);
    const hid_t type = dms_hdf5_type(dms_tensor_entry_type(entry));
    status = put_dataset(w,
                         &(dataset){group, entry->name, type, space, data, bytes,
                                    cut ? &chunking : NULL, entry->rank, chunk},
                         &p);
done:
    drop_packed(&p);
    return status;
}

dms_status dms_checkpoint_put_tensor(dms_checkpoint_writer *w, const char *group, const char *name,
                                     dms_dtype dtype, int rank, const int64_t *shape,
                                     const void *data)
{
    dms_tensor_entry entry = {.name = name, .dtype = dtype, .rank = rank};
    for (int i = 0; i < rank && i < 4; i++)
        entry.shape[i] = shape[i];
    return dms_checkpoint_put_entry(w, group, &entry, data);
}

dms_status dms_checkpoint_put_text(dms_checkpoint_writer *w, const char *name, const char *text,
                                   size_t length)
{
    /* HDF5 has no empty string type: an empty text is one 0. */
    const size_t bytes = length ? length : 1;
    hid_t type = H5Tcopy(H5T_C_S1);
    if (H5Tset_size(type, bytes) < 0 || H5Tset_strpad(type, H5T_STR_NULLPAD) < 0 ||
        H5Tset_cset(type, H5T_CSET_UTF8) < 0) {
        dms_hdf5_drop(type);
        type = -1;
    }
    const dataset d = {"texts", name, type, H5Screate(H5S_SCALAR), length ? text : "", bytes,
                       NULL,    0,    NULL};
    DMS_TRY(put_dataset(w, &d, NULL));
    return DMS_OK;
}

static dms_status put_number(dms_checkpoint_writer *w, const char *name, hid_t stored, hid_t native,
                             const void *value)
{
    DMS_TRY(check_name(w, name));
    DMS_TRY(reserve(w, 0));
    const hid_t space = H5Screate(H5S_SCALAR);
    const hid_t attribute = H5Acreate2(w->file, name, stored, space, H5P_DEFAULT, H5P_DEFAULT);
    const bool ok = attribute >= 0 && H5Awrite(attribute, native, value) >= 0;
    dms_hdf5_drop(attribute);
    dms_hdf5_drop(space);
    return ok ? DMS_OK : failed(w, "write number", name);
}

dms_status dms_checkpoint_put_real(dms_checkpoint_writer *w, const char *name, double value)
{
    return put_number(w, name, H5T_IEEE_F64LE, H5T_NATIVE_DOUBLE, &value);
}

dms_status dms_checkpoint_put_int(dms_checkpoint_writer *w, const char *name, int64_t value)
{
    return put_number(w, name, H5T_STD_I64LE, H5T_NATIVE_INT64, &value);
}

/* Gives back what was reserved beyond the HDF5 part, whose end stands at byte 28 of the superblock
 * (HDF5 file format specification 3.0, superblock versions 2 and 3). */
static dms_status cut_reserve(const dms_checkpoint_writer *w)
{
    uint8_t superblock[36];
    uint64_t end = 0;
    if (pread(w->temporary.fd, superblock, sizeof(superblock), 0) != sizeof(superblock) ||
        superblock[8] < 2 || superblock[8] > 3)
        return failed(w, "finish", "the file");
    for (int i = 35; i >= 28; i--)
        end = end << 8 | superblock[i];
    if (ftruncate(w->temporary.fd, (off_t)end))
        return dms_fail(DMS_ERR_IO, "%s cannot be cut to %llu bytes: %s", w->path,
                        (unsigned long long)end, strerror(errno));
    return DMS_OK;
}

dms_status dms_checkpoint_writer_finish(const char **file, dms_checkpoint_writer *w)
{
    const herr_t closed = H5Fclose(w->file);
    w->file = -1;
    if (closed < 0)
        return failed(w, "close", "the file");
    DMS_TRY(cut_reserve(w));
    DMS_TRY(dms_trailer_write(w->temporary.fd, w->temporary.path, &w->extents));
    if (fsync(w->temporary.fd))
        return dms_fail(DMS_ERR_IO, "%s cannot be synced: %s", w->path, strerror(errno));
    w->finished = true;
    if (file)
        *file = w->temporary.path;
    return DMS_OK;
}

static dms_status publish(dms_checkpoint_writer *w)
{
    dms_status status = DMS_OK;
    char *folder = dms_path_folder(w->path); /* before PATH is replaced: this can fail */
    if (!folder)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a file name");
    dms_path_keep_mode(w->temporary.fd, w->path);
    if (rename(w->temporary.path, w->path))
        DMS_TRY_OR(done, dms_fail(DMS_ERR_IO, "%s cannot be renamed to %s: %s", w->temporary.path,
                                  w->path, strerror(errno)));
    dms_temporary_close(&w->temporary);
    DMS_TRY_OR(done, dms_folder_sync(folder));
done:
    free(folder);
    return status;
}

dms_status dms_checkpoint_writer_commit(dms_checkpoint_writer *w)
{
    dms_status status = w->finished ? DMS_OK : dms_checkpoint_writer_finish(NULL, w);
    if (!status)
        status = publish(w);
    dms_checkpoint_writer_abort(w);
    return status;
}

void dms_checkpoint_writer_abort(dms_checkpoint_writer *w)
{
    if (!w)
        return;
    if (w->file >= 0)
        H5Fclose(w->file);
    dms_temporary_abort(&w->temporary);
    free(w->extents.items);
    free(w->path);
    free(w);
}
