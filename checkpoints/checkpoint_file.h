/* What writer and reader of our checkpoint share; inside this folder only. */
#ifndef DMS_CHECKPOINT_FILE_H
#define DMS_CHECKPOINT_FILE_H

#define H5_USE_110_API /* later libraries give links another form */
#include <hdf5.h>

#include "checkpoints/checkpoint.h"
#include "checkpoints/files.h"

/* Bytes [offset, offset + size) of one dataset. */
typedef struct {
    uint64_t offset, size;
} dms_extent;

typedef struct {
    dms_extent *items; /* by offset once the trailer is made or read */
    size_t count, room;
} dms_extents;

/* The trailer, all little-endian: count extents; then the footer: size of the HDF5 part, count (8
 * bytes each), CRC-32, version 1 (4 bytes each), the magic word (8 bytes). The CRC runs over the
 * bytes of the HDF5 part outside the extents, the extents, and the footer's first 16 bytes. */
#define DMS_TRAILER_MAGIC "DMStrail"

dms_status dms_extents_add(dms_extents *e, uint64_t offset, uint64_t size);
/* Appends the trailer to a closed HDF5 file. Sorts e. */
dms_status dms_trailer_write(int fd, const char *path, dms_extents *e);
/* Checks signature, trailer and CRC; fills e, which the caller frees. */
dms_status dms_trailer_read(dms_extents *e, const dms_mapping *m, const char *path);
/* Whether this is exactly one of the extents. */
bool dms_extents_have(const dms_extents *e, uint64_t offset, uint64_t size);

/* The unsigned number of so many bytes, lowest first. */
uint64_t dms_little_endian(const uint8_t *at, int bytes);

/* CRC-32 of zlib over any number of bytes, started with 0. */
uint32_t dms_crc32(uint32_t crc, const void *bytes, size_t n);

/* Version 2 has F16 tensors and compressed ones. Version 1 is read. */
enum { DMS_CHECKPOINT_VERSION = 2 };

/* The HDF5 type of F32, F16, BF16 or I32, to be closed by the caller; negative on failure. bf16:
 * sign bit 15, exponent bits 7..14 with bias 127, mantissa bits 0..6. */
hid_t dms_hdf5_type(dms_file_type type);
/* Access properties of both sides; to be closed. */
hid_t dms_hdf5_access(void);
/* Closes anything but a file; negative ids are legal. */
void dms_hdf5_drop(hid_t id);

#endif
