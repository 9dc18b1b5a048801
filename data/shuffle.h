/* A permutation of 0..n-1 without a table: a Feistel network whose values past n - 1 walk on
 * (Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002). */
#ifndef DMS_SHUFFLE_H
#define DMS_SHUFFLE_H

#include <stdint.h>

/* The image of i (0 <= i < n <= 2^62) under the permutation that (seed, epoch) names. The domain of
 * the network is the power of 4 at or above n, so 4 rounds of walking are expected at most. */
int64_t dms_shuffle(int64_t i, int64_t n, uint64_t seed, uint64_t epoch);

#endif
