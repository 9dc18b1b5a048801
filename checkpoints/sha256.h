/* SHA-256 (FIPS 180-4). */
#ifndef DMS_SHA256_H
#define DMS_SHA256_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint32_t state[8];
    uint64_t length; /* bytes so far */
    uint8_t block[64];
} dms_sha256;

void dms_sha256_start(dms_sha256 *h);
void dms_sha256_add(dms_sha256 *h, const void *bytes, size_t n);
/* 64 lower-case digits and a final 0. */
void dms_sha256_finish(dms_sha256 *h, char hex[65]);

#endif
