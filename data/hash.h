/* One hash of short byte strings, for the tokenizer's tables. */
#ifndef DMS_HASH_H
#define DMS_HASH_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Spreads x over all bits: two rounds of multiply and fold. */
static inline uint64_t dms_hash_mix(uint64_t x)
{
    x *= 0x9E3779B97F4A7C15u;
    x ^= x >> 32;
    x *= 0xD6E8FEB86659FD93u;
    return x ^ x >> 29;
}

/* Not seeded: tables that use it must stay correct, if slow, when strings collide. */
static inline uint64_t dms_hash(const char *bytes, size_t n)
{
    uint64_t h = n;
    for (; n >= 8; n -= 8, bytes += 8) {
        uint64_t word;
        memcpy(&word, bytes, 8);
        h = dms_hash_mix(h ^ word);
    }
    /* The rest as one word, without a loop: halves that overlap, or first, middle and last. */
    uint64_t rest = 0;
    if (n >= 4) {
        uint32_t first, last;
        memcpy(&first, bytes, 4);
        memcpy(&last, bytes + n - 4, 4);
        rest = (uint64_t)first << 32 | last;
    } else if (n > 0) {
        rest = (uint64_t)(uint8_t)bytes[0] << 16 | (uint64_t)(uint8_t)bytes[n / 2] << 8 |
               (uint8_t)bytes[n - 1];
    }
    return dms_hash_mix(h ^ rest);
}

#endif
