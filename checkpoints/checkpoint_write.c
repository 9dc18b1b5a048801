#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "checkpoints/checkpoint_file.h"

/* libhdf5 1.10 cannot close a file whose last flush fails. So it must never meet a full disk: space
 * for what comes next, and this much for its own structures, is reserved before each call. */
enum { SLACK_BYTES = 1 << 20 };

struct dms_checkpoint_writer {
    hid_t file;
    int fd; /* the same file: for reserving, the trailer and fsync */
    char *path, *temporary;
    dms_extents extents;
    uint64_t reserved; /* bytes the file system has promised */
};

static dms_status failed(const dms_checkpoint_writer *w, const char *what, const char *name)
{
    return dms_fail(DMS_ERR_IO, "%s: HDF5 cannot %s %s", w->temporary, what, name);
}

static dms_status reserve_to(dms_checkpoint_writer *w, uint64_t size)
{
    if (size <= w->reserved)
        return DMS_OK;
    int error;
    do {
        error = posix_fallocate(w->fd, (off_t)w->reserved, (off_t)(size - w->reserved));
    } while (error == EINTR);
    if (error)
        return dms_fail(DMS_ERR_IO,
                        "%s cannot grow to %llu bytes: %s; free some space and try again",
                        w->temporary, (unsigned long long)size, strerror(error));
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
    const int32_t version = 1;
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

/* Creates the HDF5 file over the temporary that w->fd has open. */
static dms_status create(dms_checkpoint_writer *w)
{
    const unsigned order = H5P_CRT_ORDER_TRACKED | H5P_CRT_ORDER_INDEXED;
    DMS_TRY(reserve_to(w, SLACK_BYTES));
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    const hid_t access = dms_hdf5_access(), create = H5Pcreate(H5P_FILE_CREATE);
    if (access >= 0 && create >= 0 && H5Pset_link_creation_order(create, order) >= 0 &&
        H5Pset_attr_creation_order(create, order) >= 0)
        w->file = H5Fcreate(w->temporary, H5F_ACC_TRUNC, create, access);
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
    const size_t n = strlen(path) + 5;
    dms_checkpoint_writer *w = calloc(1, sizeof(*w));
    if (!w)
        return dms_fail(DMS_ERR_NOMEM, "no memory to write %s", path);
    w->file = w->fd = -1;
    w->path = strdup(path);
    w->temporary = malloc(n);
    if (!w->path || !w->temporary)
        DMS_TRY_OR(failed, dms_fail(DMS_ERR_NOMEM, "no memory to write %s", path));
    snprintf(w->temporary, n, "%s.tmp", path);
    w->fd = open(w->temporary, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (w->fd < 0)
        DMS_TRY_OR(failed,
                   dms_fail(DMS_ERR_IO, "%s cannot be created: %s", w->temporary, strerror(errno)));
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
} dataset;

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

/* Contiguous, allocated at once, never filled: so it has an offset and is written only once. */
static hid_t create_dataset(hid_t group, const dataset *d)
{
    hid_t set = -1;
    const hid_t how = H5Pcreate(H5P_DATASET_CREATE);
    if (H5Pset_layout(how, H5D_CONTIGUOUS) >= 0 &&
        H5Pset_alloc_time(how, H5D_ALLOC_TIME_EARLY) >= 0 &&
        H5Pset_fill_time(how, H5D_FILL_TIME_NEVER) >= 0)
        set = H5Dcreate2(group, d->name, d->type, d->space, H5P_DEFAULT, how, H5P_DEFAULT);
    dms_hdf5_drop(how);
    return set;
}

static dms_status put_dataset(dms_checkpoint_writer *w, const dataset *d)
{
    dms_status status = DMS_OK;
    hid_t group = -1, set = -1;
    if (d->type < 0 || d->space < 0)
        DMS_TRY_OR(done, failed(w, "describe", d->name));
    DMS_TRY_OR(done, check_name(w, d->group));
    DMS_TRY_OR(done, check_name(w, d->name));
    DMS_TRY_OR(done, reserve(w, d->bytes));
    group = open_group(w, d->group);
    set = group < 0 ? -1 : create_dataset(group, d);
    if (set < 0)
        DMS_TRY_OR(done, failed(w, "create", d->name));
    if (H5Dwrite(set, d->type, H5S_ALL, H5S_ALL, H5P_DEFAULT, d->data) < 0 || !put_crc(set, d))
        DMS_TRY_OR(done, failed(w, "write", d->name));
    const haddr_t offset = H5Dget_offset(set);
    if (d->bytes && offset == HADDR_UNDEF)
        DMS_TRY_OR(done, failed(w, "place", d->name));
    if (d->bytes)
        DMS_TRY_OR(done, dms_extents_add(&w->extents, offset, d->bytes));
done:
    dms_hdf5_drop(set);
    dms_hdf5_drop(group);
    dms_hdf5_drop(d->space);
    dms_hdf5_drop(d->type);
    return status;
}

dms_status dms_checkpoint_put_tensor(dms_checkpoint_writer *w, const char *group, const char *name,
                                     dms_dtype dtype, int rank, const int64_t *shape,
                                     const void *data)
{
    hsize_t dims[4] = {1, 1, 1, 1};
    size_t bytes = dms_dtype_bytes(dtype);
    if (rank < 0 || rank > 4)
        return dms_fail(DMS_ERR_ARG, "%s has rank %d, expected 0 to 4", name, rank);
    for (int i = 0; i < rank; i++) {
        if (shape[i] < 0)
            return dms_fail(DMS_ERR_ARG, "dimension %d of %s is negative", i, name);
        dims[i] = (hsize_t)shape[i];
        bytes *= (size_t)shape[i];
    }
    const hid_t space = rank ? H5Screate_simple(rank, dims, NULL) : H5Screate(H5S_SCALAR);
    DMS_TRY(put_dataset(w, &(dataset){group, name, dms_hdf5_type(dtype), space, data, bytes}));
    return DMS_OK;
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
    DMS_TRY(put_dataset(
        w, &(dataset){"texts", name, type, H5Screate(H5S_SCALAR), length ? text : "", bytes}));
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
    if (pread(w->fd, superblock, sizeof(superblock), 0) != sizeof(superblock) ||
        superblock[8] < 2 || superblock[8] > 3)
        return failed(w, "finish", "the file");
    for (int i = 35; i >= 28; i--)
        end = end << 8 | superblock[i];
    if (ftruncate(w->fd, (off_t)end))
        return dms_fail(DMS_ERR_IO, "%s cannot be cut to %llu bytes: %s", w->temporary,
                        (unsigned long long)end, strerror(errno));
    return DMS_OK;
}

static dms_status finish(dms_checkpoint_writer *w)
{
    const herr_t closed = H5Fclose(w->file);
    w->file = -1;
    if (closed < 0)
        return failed(w, "close", "the file");
    DMS_TRY(cut_reserve(w));
    DMS_TRY(dms_trailer_write(w->fd, w->temporary, &w->extents));
    if (fsync(w->fd))
        return dms_fail(DMS_ERR_IO, "%s cannot be synced: %s", w->temporary, strerror(errno));
    if (rename(w->temporary, w->path))
        return dms_fail(DMS_ERR_IO, "%s cannot be renamed to %s: %s", w->temporary, w->path,
                        strerror(errno));
    free(w->temporary);
    w->temporary = NULL;
    char *folder = dms_path_folder(w->path);
    if (!folder)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a file name");
    const dms_status status = dms_folder_sync(folder);
    free(folder);
    return status;
}

dms_status dms_checkpoint_writer_commit(dms_checkpoint_writer *w)
{
    const dms_status status = finish(w);
    dms_checkpoint_writer_abort(w);
    return status;
}

void dms_checkpoint_writer_abort(dms_checkpoint_writer *w)
{
    if (!w)
        return;
    if (w->file >= 0)
        H5Fclose(w->file);
    if (w->fd >= 0)
        close(w->fd);
    if (w->temporary && w->fd >= 0)
        unlink(w->temporary);
    free(w->extents.items);
    free(w->path);
    free(w->temporary);
    free(w);
}
