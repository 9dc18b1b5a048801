/* One of our checkpoints. The trailer's CRC is mended; libhdf5's own checksums are forged
 * (forged_checksum.c). */
#include <stdbool.h>
#include <string.h>
#include <zlib.h>

#include "checkpoints/checkpoint.h"
#include "tests/fuzz/fuzz.h"

void fuzz_hdf5(const uint8_t *data, size_t size)
{
    dms_checkpoint *c;
    const char *path = fuzz_file(data, size);
    if (!fuzz_use_source(path) || dms_checkpoint_open(&c, path))
        return;
    (void)dms_checkpoint_verify(c);
    dms_checkpoint_close(c);
}

static uint64_t get(const uint8_t *at, int bytes)
{
    uint64_t value = 0;
    while (bytes-- > 0)
        value = value << 8 | at[bytes];
    return value;
}

static void put(uint8_t *at, uint64_t value, int bytes)
{
    for (int i = 0; i < bytes; i++)
        at[i] = (uint8_t)(value >> 8 * i);
}

/* CRC-32 of what lies outside the extents; false where they are out of order. */
static bool crc_outside(uint32_t *crc, const uint8_t *data, uint64_t body, uint64_t count)
{
    uint64_t at = 0;
    for (uint64_t i = 0; i < count; i++) {
        const uint64_t offset = get(data + body + 16 * i, 8);
        const uint64_t size = get(data + body + 16 * i + 8, 8);
        if (offset < at || offset > body || size > body - offset)
            return false;
        *crc = (uint32_t)crc32(*crc, data + at, (uInt)(offset - at));
        at = offset + size;
    }
    *crc = (uint32_t)crc32(*crc, data + at, (uInt)(body - at));
    return true;
}

/* The trailer of checkpoints/checkpoint_file.h, written here a second time: a reader that forgets a
 * check must not be mended by the same mistake. */
size_t fuzz_mend_hdf5(uint8_t *data, size_t size, size_t room)
{
    enum { FOOTER = 32, CRC_AT = 16 };
    uint32_t crc = 0;
    (void)room;
    if (size < FOOTER + 8)
        return size;
    uint8_t *footer = data + size - FOOTER;
    const uint64_t rest = size - FOOTER;
    uint64_t count = get(footer + 8, 8);
    if (count > rest / 16)
        count = 0;
    const uint64_t body = rest - 16 * count;
    put(footer, body, 8);
    put(footer + 8, count, 8);
    put(footer + 20, 1, 4);
    memcpy(footer + 24, "DMStrail", 8);
    memcpy(data, "\x89HDF\r\n\x1a\n", 8);
    if (crc_outside(&crc, data, body, count)) {
        crc = (uint32_t)crc32(crc, data + body, (uInt)(16 * count + CRC_AT));
        put(footer + CRC_AT, crc, 4);
    }
    return size;
}
