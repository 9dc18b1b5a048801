/* Rows of numbers as a GGUF file stores them; inside this folder only. */
#ifndef DMS_GGUF_ENCODE_H
#define DMS_GGUF_ENCODE_H

#include "checkpoints/source.h"

/* n numbers as F32, F16, BF16 or Q8_0 (then n is a multiple of 32) to y. false where a finite
 * number is too large for the type, or one for Q8_0 is not finite. */
bool dms_gguf_encode(uint8_t *y, const float *x, int64_t n, dms_file_type type);

#endif
