/* The header of a token shard, between its bytes and its fields. */
#ifndef DMS_SHARD_FORMAT_H
#define DMS_SHARD_FORMAT_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <zlib.h>

#include "data/shard.h"

#define SHARD_MAGIC "DMSTOKS1"

enum { SHARD_HEADER_BYTES = 64, SHARD_MAGIC_BYTES = sizeof(SHARD_MAGIC) - 1 };

typedef struct {
    uint32_t id_bytes, payload_crc;
    dms_shard_info info;
} shard_header;

static inline void shard_put(uint8_t *at, uint64_t value, int bytes)
{
    for (int i = 0; i < bytes; i++)
        at[i] = (uint8_t)(value >> 8 * i);
}

static inline uint64_t shard_get(const uint8_t *at, int bytes)
{
    uint64_t value = 0;
    for (int i = 0; i < bytes; i++)
        value |= (uint64_t)at[i] << 8 * i;
    return value;
}

static inline uint32_t shard_id_bytes(int64_t vocab)
{
    return vocab <= 65536 ? 2 : 4;
}

static inline void shard_header_encode(uint8_t out[SHARD_HEADER_BYTES], const shard_header *h)
{
    memset(out, 0, SHARD_HEADER_BYTES);
    memcpy(out, SHARD_MAGIC, SHARD_MAGIC_BYTES);
    shard_put(out + 8, h->id_bytes, 4);
    shard_put(out + 12, h->info.tokenizer_crc, 4);
    shard_put(out + 16, (uint64_t)h->info.n_tokens, 8);
    shard_put(out + 24, (uint64_t)h->info.vocab, 8);
    shard_put(out + 32, h->payload_crc, 4);
    shard_put(out + 60, crc32(0, out, 60), 4);
}

/* What is wrong with the bytes, or NULL. */
static inline const char *shard_header_decode(shard_header *h, const uint8_t in[SHARD_HEADER_BYTES])
{
    if (memcmp(in, SHARD_MAGIC, SHARD_MAGIC_BYTES) != 0)
        return "is not a token shard (its first bytes are not " SHARD_MAGIC "); make one with "
               "dms-tokenize";
    if (shard_get(in + 60, 4) != crc32(0, in, 60))
        return "has a damaged header (its CRC differs); make it again with dms-tokenize";
    *h = (shard_header){.id_bytes = (uint32_t)shard_get(in + 8, 4)};
    h->info.tokenizer_crc = (uint32_t)shard_get(in + 12, 4);
    h->info.n_tokens = (int64_t)shard_get(in + 16, 8);
    h->info.vocab = (int64_t)shard_get(in + 24, 8);
    h->payload_crc = (uint32_t)shard_get(in + 32, 4);
    if (h->info.vocab < 1 || h->info.vocab > INT32_MAX || h->info.n_tokens < 0 ||
        h->id_bytes != shard_id_bytes(h->info.vocab))
        return "has a header that contradicts itself; make it again with dms-tokenize";
    return NULL;
}

#endif
