/* Token files of other tools: NumPy's .npy and llm.c's .bin by their beginnings, any other input as
 * nanoGPT's .bin. */
#include <string.h>

#include "data/loader.h"
#include "data/shard_format.h"
#include "tests/fuzz/fuzz.h"

void fuzz_npy(const uint8_t *data, size_t size)
{
    int32_t ids[16];
    dms_shard *s;
    dms_loader *l;
    const char *path = fuzz_named_file("x.bin", data, size);
    const dms_loader_options o = {.shards = &path, .n_shards = 1, .context = 8, .sequences = 2};
    (void)dms_shard_recognise_any(path);
    if (dms_shard_open(&s, path))
        return;
    const int64_t n = dms_shard_get_info(s)->n_tokens, some = n < 16 ? n : 16;
    (void)dms_shard_verify(s);
    (void)dms_shard_read(s, ids, 0, some);
    (void)dms_shard_read(s, ids, n - some, some);
    (void)dms_shard_read(s, ids, n, 1);
    dms_shard_close(s);
    if (dms_loader_open(&l, &o))
        return;
    (void)dms_loader_read(l, 0, 0, 2, ids, NULL);
    dms_loader_close(l);
}

/* The lengths of headers, and of what comes behind llm.c's. */
size_t fuzz_mend_npy(uint8_t *data, size_t size, size_t room)
{
    enum { LLMC_HEADER = 1024 };
    (void)room;
    if (size >= LLMC_HEADER && shard_get(data, 4) == 20240520)
        shard_put(data + 8, (size - LLMC_HEADER) / 2, 4);
    const uint8_t *end = size > 12 ? memrchr(data + 10, '}', size - 10) : NULL;
    if (end && !memcmp(data, "\x93NUMPY", 6)) {
        const int wide = data[6] == 1 ? 2 : 4;
        if (end + 1 >= data + 8 + wide)
            shard_put(data + 8, (uint64_t)(end + 1 - (data + 8 + wide)), wide);
    }
    return size;
}
