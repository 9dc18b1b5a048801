/* Named tensors to be written: a list, and a function that fetches one when its turn comes. */
#ifndef DMS_TENSOR_SET_H
#define DMS_TENSOR_SET_H

#include <stdint.h>

#include "kernels/status.h"
#include "kernels/tensor.h"

DMS_BEGIN_C

typedef struct {
    const char *name; /* printable ASCII */
    dms_dtype dtype;
    int rank; /* 0..4 */
    int64_t shape[4];
} dms_tensor_entry;

typedef struct {
    const dms_tensor_entry *entries;
    int64_t count;
    /* Writes the whole of tensor i, in its dtype, to dst. */
    dms_status (*fetch)(void *context, int64_t i, void *dst);
    void *context;
} dms_tensor_set;

/* Bytes of one entry. Shapes are ours, so they do not overflow. */
static inline size_t dms_tensor_entry_bytes(const dms_tensor_entry *e)
{
    size_t bytes = dms_dtype_bytes(e->dtype);
    for (int i = 0; i < e->rank; i++)
        bytes *= (size_t)e->shape[i];
    return bytes;
}

DMS_END_C
#endif
