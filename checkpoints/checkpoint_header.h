/* Datasets as the reader of our checkpoint meets them: their types, and the headers of the plain
 * ones read where they lie; inside this folder only. */
#ifndef DMS_CHECKPOINT_HEADER_H
#define DMS_CHECKPOINT_HEADER_H

#include "checkpoints/checkpoint_file.h"

enum { DMS_TENSOR_TYPES = 4, DMS_TYPE_CODE = 20 };

/* The HDF5 types of tensors, made once an opening: as libhdf5 has them and as a file has them. */
typedef struct {
    hid_t ids[DMS_TENSOR_TYPES];
    uint8_t codes[DMS_TENSOR_TYPES][2 + DMS_TYPE_CODE]; /* of H5Tencode: two bytes of its own */
    size_t sizes[DMS_TENSOR_TYPES];                     /* bytes of the code; 0: none */
} dms_tensor_types;

/* A failure shows as types that no dataset has. To be dropped. */
void dms_tensor_types_make(dms_tensor_types *types);
void dms_tensor_types_drop(dms_tensor_types *types);
/* The type of an open dataset; false: none of ours. */
bool dms_tensor_types_find(dms_file_type *out, const dms_tensor_types *types, hid_t set);

/* A contiguous dataset with a CRC. */
typedef struct {
    dms_file_type type;
    int rank; /* 0 to 4 */
    hsize_t shape[4];
    haddr_t offset; /* HADDR_UNDEF: no bytes */
    uint32_t crc;
} dms_dataset_header;

/* Reads the object header at `address` of the file without libhdf5, which takes 15 us for it. False
 * where the header is anything but what our writer makes of a contiguous tensor: then libhdf5 is
 * to read it. Believes nothing: the caller checks shape and offset.
 * Source: HDF5 file format specification 3.0, IV.A.1.b and IV.A.2. */
bool dms_dataset_header_read(dms_dataset_header *out, const dms_tensor_types *types,
                             const dms_mapping *m, haddr_t address);

#endif
