/* The choice of the greatest of many values, ties broken by an index: exact, in linear time. */
#ifndef DMS_CPU_SELECT_H
#define DMS_CPU_SELECT_H

#include <stdint.h>
#include <string.h>

/* Keys are in the order of their values, those of equal values (0 and -0 are equal) in the order of
 * `index` >= 0. A NaN is beyond the infinity of its sign. */
static inline uint64_t ranked_key(float value, int32_t index)
{
    const float plain = value + 0.0f; /* makes -0 0 */
    uint32_t bits;
    memcpy(&bits, &plain, sizeof(bits));
    bits ^= bits >> 31 ? UINT32_MAX : UINT32_C(1) << 31;
    return (uint64_t)bits << 32 | (uint32_t)index;
}

/* The key that rank - 1 others of the n exceed, 1 <= rank <= n, found byte by byte from the
 * greatest; keys are distinct. */
static inline uint64_t nth_greatest(const uint64_t *keys, int64_t n, int64_t rank)
{
    uint64_t found = 0;
    for (int shift = 56; shift >= 0; shift -= 8) {
        int64_t counts[256] = {0};
        int byte = 255;
        for (int64_t i = 0; i < n; i++)
            counts[keys[i] >> shift & 255] += ((keys[i] ^ found) >> shift >> 8) == 0;
        for (; byte > 0 && counts[byte] < rank; byte--)
            rank -= counts[byte];
        found |= (uint64_t)byte << shift;
    }
    return found;
}

#endif
