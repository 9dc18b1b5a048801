#include "data/shuffle.h"

#include "kernels/rng.h"

/* More than the 4 that a pseudo-random permutation takes: small halves mix slowly. */
enum { ROUNDS = 8 };

/* Keeps these numbers apart from the gate noise, which may have the same seed. */
#define DOMAIN 0x53485546464C4531u

static uint64_t network(uint64_t x, int half_bits, uint64_t seed, uint64_t epoch)
{
    const uint64_t mask = ((uint64_t)1 << half_bits) - 1;
    uint64_t left = x >> half_bits, right = x & mask;
    for (uint32_t round = 0; round < ROUNDS; round++) {
        const uint64_t f = dms_philox(seed ^ DOMAIN, (uint32_t)right, round, (uint32_t)epoch,
                                      (uint32_t)(epoch >> 32));
        const uint64_t old = left;
        left = right;
        right = (old ^ f) & mask;
    }
    return left << half_bits | right;
}

int64_t dms_shuffle(int64_t i, int64_t n, uint64_t seed, uint64_t epoch)
{
    int half_bits = 1;
    while (half_bits < 31 && (int64_t)1 << 2 * half_bits < n)
        half_bits++;
    uint64_t x = (uint64_t)i;
    do
        x = network(x, half_bits, seed, epoch);
    while (x >= (uint64_t)n);
    return (int64_t)x;
}
