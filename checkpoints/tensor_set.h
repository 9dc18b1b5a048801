/* Named tensors to be written: a list, and a function that fetches one when its turn comes. */
#ifndef DMS_TENSOR_SET_H
#define DMS_TENSOR_SET_H

#include <stdint.h>

#include "checkpoints/source.h"
#include "kernels/status.h"
#include "kernels/tensor.h"

DMS_BEGIN_C

typedef struct {
    const char *name; /* printable ASCII */
    dms_dtype dtype;  /* what is fetched */
    int rank;         /* 0..4 */
    int64_t shape[4];
    bool half; /* stored as F16, of which dms_dtype knows nothing; dtype is F32 */
} dms_tensor_entry;

typedef struct {
    const dms_tensor_entry *entries;
    int64_t count;
    /* Writes the whole of tensor i, in its dtype, to dst. */
    dms_status (*fetch)(void *context, int64_t i, void *dst);
    void *context;
} dms_tensor_set;

/* Elements of one entry. Shapes are ours, so they do not overflow. */
static inline int64_t dms_tensor_entry_count(const dms_tensor_entry *e)
{
    int64_t n = 1;
    for (int i = 0; i < e->rank; i++)
        n *= e->shape[i];
    return n;
}

/* How the file stores it. */
static inline dms_file_type dms_tensor_entry_type(const dms_tensor_entry *e)
{
    return e->half                ? DMS_FILE_F16
           : e->dtype == DMS_F32  ? DMS_FILE_F32
           : e->dtype == DMS_BF16 ? DMS_FILE_BF16
                                  : DMS_FILE_I32;
}

/* Bytes of one entry in the file. */
static inline size_t dms_tensor_entry_bytes(const dms_tensor_entry *e)
{
    return (size_t)dms_tensor_entry_count(e) * (e->half ? 2 : dms_dtype_bytes(e->dtype));
}

/* Memory in which any tensor of the set can be fetched, at least one byte; the caller frees it.
 * NULL without memory, which is then the error. */
void *dms_tensor_set_buffer(const dms_tensor_set *set);
/* Tensor i as the file stores it, in such a buffer. DMS_ERR_ARG where a number is too large for
 * F16; else what `fetch` returns. */
dms_status dms_tensor_set_fetch(const dms_tensor_set *set, int64_t i, void *buffer);

DMS_END_C
#endif
