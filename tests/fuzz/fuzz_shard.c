#include <string.h>

#include "data/loader.h"
#include "data/shard_format.h"
#include "tests/fuzz/fuzz.h"

static void read_batches(const char *path)
{
    int32_t ids[16], next[16];
    dms_loader *l;
    const dms_loader_options o = {
        .shards = &path, .n_shards = 1, .context = 8, .sequences = 2, .seed = 1, .shuffled = true};
    if (dms_loader_open(&l, &o))
        return;
    for (int64_t step = 0; step < 3; step++)
        (void)dms_loader_read(l, step, 0, 2, ids, next);
    dms_loader_close(l);
}

void fuzz_shard(const uint8_t *data, size_t size)
{
    int32_t ids[64];
    dms_shard *s;
    const char *path = fuzz_file(data, size);
    (void)dms_shard_recognise(path);
    read_batches(path);
    if (dms_shard_open(&s, path))
        return;
    const dms_shard_info *info = dms_shard_get_info(s);
    const int64_t n = info->n_tokens < 64 ? info->n_tokens : 64;
    (void)dms_shard_verify(s);
    (void)dms_shard_read(s, ids, 0, n);
    (void)dms_shard_read(s, ids, info->n_tokens - n, n);
    (void)dms_shard_read(s, ids, info->n_tokens, 1);
    dms_shard_close(s);
}

/* The header's CRC over its first 60 bytes. */
size_t fuzz_mend_shard(uint8_t *data, size_t size, size_t room)
{
    (void)room;
    if (size >= SHARD_HEADER_BYTES)
        shard_put(data + 60, crc32(0, data, 60), 4);
    return size;
}
