/* GGUF's block types to numbers: layouts and formulas of ggml's quantised types. */
#ifndef DMS_GGUF_DEQUANT_H
#define DMS_GGUF_DEQUANT_H

#include "checkpoints/file_types.h"

DMS_BEGIN_C

/* NULL for a type that has no blocks. */
dms_widen_fn *dms_gguf_dequant(dms_file_type type);

/* y[0..n-1] as raw bf16 from n elements in blocks of Q8_0: the bits that f32 and rounding to
 * nearest, ties to even, would give. n is a multiple of 32. */
void dms_q8_0_to_bf16(uint16_t *y, const uint8_t *x, int64_t n);

/* The other way, as ggml's quantize_row_q8_0_ref does it: d = max|x| / 127 as f16 beside
 * q = round(x / d), d in f32 (halves away from zero). n is a multiple of 32; numbers are finite. */
void dms_q8_0_from_f32(uint8_t *y, const float *x, int64_t n);

DMS_END_C
#endif
