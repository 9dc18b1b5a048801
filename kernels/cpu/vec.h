/* Functions of one float that the compiler turns into vector code: no branch, no call. */
#ifndef DMS_CPU_VEC_H
#define DMS_CPU_VEC_H

#include <stdint.h>
#include <string.h>

/* exp(x) within 2 units in the last place; 0 below -87.33 (where exp leaves the normal numbers)
 * and for -infinity, infinity above 88.72, NaN for NaN. For use in `#pragma omp simd` loops.
 *
 * x = n ln 2 + r with |r| <= ln(2)/2; the sum with 1.5*2^23 rounds n to an integer and leaves it
 * in the low bits; ln 2 is taken off in two parts, the first exact in n; exp(r) = 1 + r + r^2 P(r),
 * P interpolates at the five Chebyshev nodes; n is added to the exponent. */
static inline float dms_fast_expf(float x)
{
    const float magic = 0x1.8p23f;
    float clamped = x < -87.33f ? -87.33f : x;
    clamped = clamped > 88.72283f ? 88.72283f : clamped;
    const float shifted = clamped * 1.44269504f + magic, n = shifted - magic;
    const float r = clamped - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.39262131e-3f;
    p = p * r + 8.36320315e-3f;
    p = p * r + 4.16665561e-2f;
    p = p * r + 1.66665763e-1f;
    p = p * r + 0.5f;
    p = p * (r * r) + r + 1.0f;
    uint32_t power, bits;
    memcpy(&power, &shifted, sizeof(power));
    memcpy(&bits, &p, sizeof(bits));
    bits += power << 23;
    memcpy(&p, &bits, sizeof(p));
    p = x < -87.33f ? 0.0f : p;
    p = x > 88.72283f ? __builtin_inff() : p;
    return x != x ? x : p;
}

#endif
