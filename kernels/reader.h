/* Named tensors from anywhere: what a network asks of a file without knowing its format. */
#ifndef DMS_READER_H
#define DMS_READER_H

#include "kernels/tensor.h"

typedef struct {
    const void *context; /* passed to both functions; borrowed */
    /* Rank (0..4) and shape of the tensor `name`; false when there is none. */
    bool (*find)(const void *context, const char *name, int *rank, int64_t shape[DMS_MAX_RANK]);
    /* Writes all of it to host memory `dst`, converted to f32 or bf16. */
    dms_status (*read)(const void *context, const char *name, void *dst, dms_dtype dtype);
} dms_reader;

#endif
