#include "checkpoints/file_types.h"

#include <string.h>

#include "checkpoints/gguf_dequant.h"
#include "kernels/bf16.h"

static uint16_t load16(const uint8_t *x)
{
    return (uint16_t)(x[0] | x[1] << 8);
}

float dms_f16_to_f32(uint16_t bits)
{
    /* The exponent moves from bias 15 to bias 127; subnormals are multiples of 2^-24. */
    const uint32_t sign = (uint32_t)(bits & 0x8000u) << 16, rest = bits & 0x7fffu;
    uint32_t wide = (rest << 13) + (112u << 23);
    float value;
    if (rest >= 0x7c00u)
        wide += 112u << 23;
    memcpy(&value, &wide, sizeof(value));
    if (rest < 0x0400u)
        value = (float)rest * 0x1p-24f;
    memcpy(&wide, &value, sizeof(wide));
    wide |= sign;
    memcpy(&value, &wide, sizeof(value));
    return value;
}

static void widen_f32(float *y, const uint8_t *x, int64_t n)
{
    memcpy(y, x, (size_t)n * sizeof(float));
}

static void widen_f16(float *y, const uint8_t *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = dms_f16_to_f32(load16(x + 2 * i));
}

static void widen_bf16(float *y, const uint8_t *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = dms_bf16_to_f32(load16(x + 2 * i));
}

dms_widen_fn *dms_file_type_widen(dms_file_type type)
{
    switch (type) {
    case DMS_FILE_F32:
        return widen_f32;
    case DMS_FILE_F16:
        return widen_f16;
    case DMS_FILE_BF16:
        return widen_bf16;
    default:
        return dms_gguf_dequant(type);
    }
}
