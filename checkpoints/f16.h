/* f16 from f32 on the host; the other way is dms_f16_to_f32. */
#ifndef DMS_F16_H
#define DMS_F16_H

#include <stdint.h>
#include <string.h>

/* IEEE half as raw bits. Rounds to nearest, ties to even; from 65520 on the result is infinite; a
 * NaN stays a NaN with the upper bits of its payload. */
static inline uint16_t dms_f16_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    const uint32_t sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
    uint32_t half;
    if (size > 0x7f800000u) {
        half = 0x7c00u | (size >> 13 & 0x3ffu);
        half |= half == 0x7c00u ? 0x200u : 0;
    } else if (size >= 0x477ff000u) {
        half = 0x7c00u;
    } else if (size < 0x38800000u) {
        /* A subnormal half is a multiple of 2^-24, which is the last place of numbers near 1/2. */
        float sum;
        memcpy(&sum, &size, sizeof(sum));
        sum += 0.5f;
        memcpy(&half, &sum, sizeof(half));
        half -= 0x3f000000u;
    } else {
        half = ((size + 0xfffu + (size >> 13 & 1u)) >> 13) - (112u << 10);
    }
    return (uint16_t)(sign | half);
}

#endif
