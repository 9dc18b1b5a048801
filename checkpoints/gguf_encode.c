#include "checkpoints/gguf_encode.h"

#include <math.h>
#include <string.h>

#include "checkpoints/f16.h"
#include "checkpoints/gguf_dequant.h"
#include "kernels/bf16.h"

/* Numbers of 16 bits; `infinity` are the bits of its infinity. */
static bool encode_16(uint8_t *y, const float *x, int64_t n, bool half)
{
    const uint16_t infinity = half ? 0x7c00 : 0x7f80;
    bool fits = true;
    for (int64_t i = 0; i < n; i++) {
        const uint16_t bits = half ? dms_f16_bits(x[i]) : dms_bf16_from_f32(x[i]);
        fits &= (bits & 0x7fff) != infinity || !isfinite(x[i]);
        memcpy(y + 2 * i, &bits, sizeof(bits));
    }
    return fits;
}

static bool encode_q8_0(uint8_t *y, const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (!(fabsf(x[i]) < 65504.0f * 127)) /* the scale is an f16 */
            return false;
    dms_q8_0_from_f32(y, x, n);
    return true;
}

bool dms_gguf_encode(uint8_t *y, const float *x, int64_t n, dms_file_type type)
{
    switch (type) {
    case DMS_FILE_F32:
        memcpy(y, x, (size_t)n * sizeof(*x));
        return true;
    case DMS_FILE_F16:
        return encode_16(y, x, n, true);
    case DMS_FILE_BF16:
        return encode_16(y, x, n, false);
    default:
        return encode_q8_0(y, x, n);
    }
}
