/* Counter-based random numbers: Philox4x32-10 (Salmon et al., SC 2011). The same call gives the
 * same words, and the same uniform numbers, on every device and in every replay. Logistic noise may
 * differ between a CPU and a GPU by the rounding of logf, so that the decision that it makes is the
 * same wherever the argument of its gate is further than 1e-3 from 0. */
#ifndef DMS_RNG_H
#define DMS_RNG_H

#include <math.h>
#include <stdint.h>

#include "kernels/portable.h"

/* First output word for key (64 bit) and a counter of four words. */
DMS_INLINE uint32_t dms_philox(uint64_t key, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3)
{
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c0;
}

/* Uniform in (0, 1), never an end: ((x >> 9) + 0.5) * 2^-23. */
DMS_INLINE float dms_uniform(uint32_t x)
{
    return ((float)(x >> 9) + 0.5f) * 0x1p-23f;
}

/* Logistic(0, 1) noise from the first Philox word: log U - log(1 - U), method.md section 3. */
DMS_INLINE float dms_logistic(uint32_t x)
{
    const float u = dms_uniform(x);
    return logf(u) - logf(1.0f - u);
}

#endif
