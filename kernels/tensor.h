/* A typed, shaped view of memory on one device. */
#ifndef DMS_TENSOR_H
#define DMS_TENSOR_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/device.h"
#include "kernels/portable.h"

enum { DMS_MAX_RANK = 4 };

typedef enum { DMS_F32, DMS_BF16, DMS_I32 } dms_dtype;

/* Rows are contiguous and the slowest dimension comes first, always: an op that needs another
 * layout makes a new tensor. Copying the struct copies the view, never the data. */
typedef struct {
    void *data;         /* borrowed from an arena or a buffer */
    dms_device *device; /* whose memory `data` points into */
    dms_dtype dtype;
    int rank; /* 1..DMS_MAX_RANK */
    int64_t shape[DMS_MAX_RANK];
    bool frozen; /* contents never change while the memory lives: a device may keep them packed */
} dms_tensor;

/* Number of elements. */
static inline int64_t dms_count(const dms_tensor *t)
{
    int64_t n = 1;
    for (int i = 0; i < t->rank; i++)
        n *= t->shape[i];
    return n;
}

/* The fastest dimension, and the product of all others. */
static inline int64_t dms_cols(const dms_tensor *t)
{
    return t->shape[t->rank - 1];
}

static inline int64_t dms_rows(const dms_tensor *t)
{
    return dms_count(t) / dms_cols(t);
}

DMS_INLINE size_t dms_dtype_bytes(dms_dtype dtype)
{
    return dtype == DMS_BF16 ? 2 : 4;
}

static inline size_t dms_tensor_bytes(const dms_tensor *t)
{
    return (size_t)dms_count(t) * dms_dtype_bytes(t->dtype);
}

#endif
