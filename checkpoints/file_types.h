/* Rows of a stored type to f32. */
#ifndef DMS_FILE_TYPES_H
#define DMS_FILE_TYPES_H

#include "checkpoints/source.h"

DMS_BEGIN_C

/* y[0..n-1] from n stored elements at x (any alignment); n is a multiple of the type's block. */
typedef void dms_widen_fn(float *y, const uint8_t *x, int64_t n);

/* NULL for a type that cannot be read as numbers. */
dms_widen_fn *dms_file_type_widen(dms_file_type type);

/* IEEE half to single, exact; NaN stays NaN. */
float dms_f16_to_f32(uint16_t bits);

DMS_END_C
#endif
