#include "checkpoints/file_types.h"

#include <string.h>

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

/* Block layouts and formulas: ggml's quantised types (ggml-common.h, ggml-quants.c of llama.cpp).
 * Q8_0: f16 d, 32 int8 q; y = d q. */
static void widen_q8_0(float *y, const uint8_t *x, int64_t n)
{
    for (; n > 0; n -= 32, y += 32, x += 34) {
        const float d = dms_f16_to_f32(load16(x));
        for (int i = 0; i < 32; i++)
            y[i] = (float)(int8_t)x[2 + i] * d;
    }
}

/* f16 d, 16 bytes: element i in the low nibble of byte i, element i + 16 in its high nibble;
 * y = d (q - 8). */
static void widen_q4_0(float *y, const uint8_t *x, int64_t n)
{
    for (; n > 0; n -= 32, y += 32, x += 18) {
        const float d = dms_f16_to_f32(load16(x));
        for (int i = 0; i < 16; i++) {
            y[i] = (float)((x[2 + i] & 15) - 8) * d;
            y[i + 16] = (float)((x[2 + i] >> 4) - 8) * d;
        }
    }
}

/* f16 d, f16 m, nibbles as in Q4_0; y = d q + m. */
static void widen_q4_1(float *y, const uint8_t *x, int64_t n)
{
    for (; n > 0; n -= 32, y += 32, x += 20) {
        const float d = dms_f16_to_f32(load16(x)), m = dms_f16_to_f32(load16(x + 2));
        for (int i = 0; i < 16; i++) {
            y[i] = (float)(x[4 + i] & 15) * d + m;
            y[i + 16] = (float)(x[4 + i] >> 4) * d + m;
        }
    }
}

/* Half a Q6_K block: 128 elements from 64 bytes of low nibbles, 32 bytes of upper bit pairs, 8
 * scales of 16 elements each. */
static void widen_q6_half(float *y, const uint8_t *low, const uint8_t *high, const int8_t *scale,
                          float d)
{
    for (int part = 0; part < 4; part++)
        for (int i = 0; i < 32; i++) {
            const int nibble = low[32 * (part & 1) + i] >> (part & 2 ? 4 : 0) & 15;
            const int q = (nibble | (high[i] >> (2 * part) & 3) << 4) - 32;
            y[32 * part + i] = d * (float)scale[2 * part + i / 16] * (float)q;
        }
}

/* 128 bytes low, 64 bytes high, 16 int8 scales, f16 d; y = d scale (q - 32). */
static void widen_q6_k(float *y, const uint8_t *x, int64_t n)
{
    for (; n > 0; n -= 256, y += 256, x += 210) {
        int8_t scale[16];
        memcpy(scale, x + 192, sizeof(scale));
        const float d = dms_f16_to_f32(load16(x + 208));
        widen_q6_half(y, x, x + 128, scale, d);
        widen_q6_half(y + 128, x + 64, x + 160, scale + 8, d);
    }
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
    case DMS_FILE_Q8_0:
        return widen_q8_0;
    case DMS_FILE_Q4_0:
        return widen_q4_0;
    case DMS_FILE_Q4_1:
        return widen_q4_1;
    case DMS_FILE_Q6_K:
        return widen_q6_k;
    default:
        return NULL;
    }
}
