#include "checkpoints/checkpoint_file.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

enum { FOOTER = 32, CRC_AT = 16 };

uint32_t dms_crc32(uint32_t crc, const void *bytes, size_t n)
{
    const uint8_t *at = bytes;
    while (n) {
        const uInt take = n < 1u << 30 ? (uInt)n : 1u << 30;
        crc = (uint32_t)crc32(crc, at, take);
        at += take;
        n -= take;
    }
    return crc;
}

/* Two bytes: the sign, `exponent` bits with that bias, the mantissa. */
static hid_t short_float(size_t exponent, size_t bias)
{
    const size_t mantissa = 15 - exponent;
    const hid_t type = H5Tcopy(H5T_IEEE_F32LE);
    if (H5Tset_fields(type, 15, mantissa, exponent, 0, mantissa) < 0 || H5Tset_size(type, 2) < 0 ||
        H5Tset_ebias(type, bias) < 0) {
        dms_hdf5_drop(type);
        return -1;
    }
    return type;
}

hid_t dms_hdf5_type(dms_file_type type)
{
    switch (type) {
    case DMS_FILE_F16:
        return short_float(5, 15);
    case DMS_FILE_BF16:
        return short_float(8, 127);
    case DMS_FILE_I32:
        return H5Tcopy(H5T_STD_I32LE);
    default:
        return H5Tcopy(H5T_IEEE_F32LE);
    }
}

hid_t dms_hdf5_access(void)
{
    const hid_t access = H5Pcreate(H5P_FILE_ACCESS);
    /* Every dataset starts at a multiple of 64 bytes, so that it can be used in the mapping. No
     * locks: files are only ever replaced by rename, and some file systems have none. */
    if (access < 0 || H5Pset_libver_bounds(access, H5F_LIBVER_LATEST, H5F_LIBVER_LATEST) < 0 ||
        H5Pset_alignment(access, 1, 64) < 0 || H5Pset_small_data_block_size(access, 0) < 0 ||
        H5Pset_fclose_degree(access, H5F_CLOSE_STRONG) < 0 ||
        H5Pset_file_locking(access, 0, 1) < 0) {
        dms_hdf5_drop(access);
        return -1;
    }
    return access;
}

void dms_hdf5_drop(hid_t id)
{
    if (id >= 0)
        H5Idec_ref(id);
}

dms_status dms_extents_add(dms_extents *e, uint64_t offset, uint64_t size)
{
    if (e->count == e->room) {
        const size_t room = e->room ? 2 * e->room : 64;
        dms_extent *items = realloc(e->items, room * sizeof(*items));
        if (!items)
            return dms_fail(DMS_ERR_NOMEM, "no memory for a list of datasets");
        e->items = items;
        e->room = room;
    }
    e->items[e->count++] = (dms_extent){offset, size};
    return DMS_OK;
}

static int by_offset(const void *a, const void *b)
{
    const dms_extent *x = a, *y = b;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

bool dms_extents_have(const dms_extents *e, uint64_t offset, uint64_t size)
{
    const dms_extent key = {offset, size};
    const dms_extent *found = bsearch(&key, e->items, e->count, sizeof(key), by_offset);
    return found && found->size == size;
}

static void store64(uint8_t *at, uint64_t value)
{
    for (int i = 0; i < 8; i++)
        at[i] = (uint8_t)(value >> (8 * i));
}

uint64_t dms_little_endian(const uint8_t *at, int bytes)
{
    uint64_t value = 0;
    while (bytes-- > 0)
        value = value << 8 | at[bytes];
    return value;
}

/* CRC of the HDF5 part outside the extents. */
static uint32_t crc_outside(const dms_extents *e, const uint8_t *bytes, uint64_t size)
{
    uint32_t crc = 0;
    uint64_t at = 0;
    for (size_t i = 0; i < e->count; i++) {
        crc = dms_crc32(crc, bytes + at, e->items[i].offset - at);
        at = e->items[i].offset + e->items[i].size;
    }
    return dms_crc32(crc, bytes + at, size - at);
}

static dms_status append(int fd, const char *path, const uint8_t *bytes, size_t n, uint64_t at)
{
    while (n) {
        const ssize_t done = pwrite(fd, bytes, n, (off_t)at);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return dms_fail(DMS_ERR_IO, "%s cannot be written: %s; free some space and try again",
                            path, strerror(done ? errno : ENOSPC));
        bytes += done;
        n -= (size_t)done;
        at += (uint64_t)done;
    }
    return DMS_OK;
}

dms_status dms_trailer_write(int fd, const char *path, dms_extents *e)
{
    dms_mapping m;
    DMS_TRY(dms_mapping_open(&m, path));
    const size_t table = e->count * sizeof(*e->items), n = table + FOOTER;
    uint8_t *trailer = calloc(1, n);
    if (!trailer) {
        dms_mapping_close(&m);
        return dms_fail(DMS_ERR_NOMEM, "no memory for the trailer of %s", path);
    }
    if (e->count)
        qsort(e->items, e->count, sizeof(*e->items), by_offset);
    for (size_t i = 0; i < e->count; i++) {
        store64(trailer + 16 * i, e->items[i].offset);
        store64(trailer + 16 * i + 8, e->items[i].size);
    }
    uint8_t *footer = trailer + table;
    store64(footer, m.size);
    store64(footer + 8, e->count);
    const uint32_t crc = dms_crc32(crc_outside(e, m.bytes, m.size), trailer, table + CRC_AT);
    store64(footer + CRC_AT, (uint64_t)1 << 32 | crc);
    memcpy(footer + 24, DMS_TRAILER_MAGIC, 8);
    const dms_status status = append(fd, path, trailer, n, m.size);
    dms_mapping_close(&m);
    free(trailer);
    return status;
}

/* The extents must be in order, apart, and inside the HDF5 part. */
static dms_status read_extents(dms_extents *e, const uint8_t *table, uint64_t count, uint64_t body,
                               const char *path)
{
    uint64_t at = 0;
    for (uint64_t i = 0; i < count; i++) {
        const uint64_t offset = dms_little_endian(table + 16 * i, 8),
                       size = dms_little_endian(table + 16 * i + 8, 8);
        if (offset < at || offset > body || size > body - offset)
            return dms_fail(DMS_ERR_FORMAT,
                            "%s: the extent of dataset %llu is impossible: the file "
                            "is corrupt",
                            path, (unsigned long long)i);
        at = offset + size;
        DMS_TRY(dms_extents_add(e, offset, size));
    }
    return DMS_OK;
}

dms_status dms_trailer_read(dms_extents *e, const dms_mapping *m, const char *path)
{
    const uint8_t *footer = m->size < FOOTER ? NULL : m->bytes + m->size - FOOTER;
    if (m->size < FOOTER + 8 || memcmp(m->bytes, "\x89HDF\r\n\x1a\n", 8) ||
        memcmp(footer + 24, DMS_TRAILER_MAGIC, 8))
        return dms_fail(DMS_ERR_FORMAT,
                        "%s (%zu bytes) is no complete checkpoint of dms.c: cut short, changed by "
                        "another program, or another HDF5 file",
                        path, m->size);
    const uint64_t body = dms_little_endian(footer, 8), count = dms_little_endian(footer + 8, 8);
    const uint32_t crc = (uint32_t)dms_little_endian(footer + CRC_AT, 4);
    const uint64_t version = dms_little_endian(footer + 20, 4), rest = m->size - FOOTER;
    if (version != 1)
        return dms_fail(DMS_ERR_FORMAT,
                        "%s has a trailer of version %llu, this program reads version 1: it was "
                        "written by another version of dms.c",
                        path, (unsigned long long)version);
    if (count > rest / 16 || body != rest - 16 * count)
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: its trailer speaks of %llu bytes and %llu datasets, the "
                        "file has %zu bytes: it is corrupt",
                        path, (unsigned long long)body, (unsigned long long)count, m->size);
    DMS_TRY(read_extents(e, m->bytes + body, count, body, path));
    const uint32_t found =
        dms_crc32(crc_outside(e, m->bytes, body), m->bytes + body, (size_t)(16 * count + CRC_AT));
    if (found != crc)
        return dms_fail(
            DMS_ERR_FORMAT,
            "%s: CRC-32 of its structure is %08x, expected %08x: the file is corrupt; use "
            "an older checkpoint",
            path, found, crc);
    return DMS_OK;
}
