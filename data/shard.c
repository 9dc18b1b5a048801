#include "data/shard.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "data/shard_foreign.h"
#include "data/shard_format.h"

struct dms_shard {
    char *path;
    const uint8_t *map; /* the whole file */
    size_t map_bytes;
    size_t ids_at; /* where the ids begin in it */
    bool is_signed;
    uint32_t payload_crc;
    dms_shard_info info;
};

static dms_status map_file(dms_shard *s, int fd)
{
    struct stat st;
    if (fstat(fd, &st) != 0)
        return dms_fail(DMS_ERR_IO, "%s: %s", s->path, strerror(errno));
    if (!S_ISREG(st.st_mode) || st.st_size == 0)
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: is not a token shard (it is %s); make one with "
                        "dms-tokenize",
                        s->path, S_ISREG(st.st_mode) ? "empty" : "no regular file");
    void *map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (map == MAP_FAILED)
        return dms_fail(DMS_ERR_IO, "%s: mapping it: %s", s->path, strerror(errno));
    s->map = map;
    s->map_bytes = (size_t)st.st_size;
    return DMS_OK;
}

static dms_status read_header(dms_shard *s)
{
    shard_header h;
    if (s->map_bytes < SHARD_HEADER_BYTES)
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: is not a token shard (it is shorter than the header); make one with "
                        "dms-tokenize",
                        s->path);
    const char *wrong = shard_header_decode(&h, s->map);
    if (wrong)
        return dms_fail(DMS_ERR_FORMAT, "%s: %s", s->path, wrong);
    const size_t payload = s->map_bytes - SHARD_HEADER_BYTES;
    const uint64_t n = (uint64_t)h.info.n_tokens;
    if (payload % h.id_bytes != 0 || payload / h.id_bytes != n)
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: holds %zu bytes of ids, expected %llu ids of %u bytes; "
                        "it is truncated or damaged, make it again with dms-tokenize",
                        s->path, payload, (unsigned long long)n, h.id_bytes);
    s->ids_at = SHARD_HEADER_BYTES;
    s->payload_crc = h.payload_crc;
    s->info = h.info;
    s->info.id_bytes = (int)h.id_bytes;
    s->info.format = "token shard";
    return DMS_OK;
}

static inline int64_t id_at(const uint8_t *at, int id_bytes, bool is_signed)
{
    if (id_bytes == 2)
        return (int64_t)shard_get(at, 2);
    if (id_bytes == 8)
        return (int64_t)shard_get(at, 8);
    return is_signed ? (int32_t)shard_get(at, 4) : (int64_t)shard_get(at, 4);
}

/* The vocabulary that the ids need. */
static dms_status measure(dms_shard *s)
{
    const dms_shard_info *info = &s->info;
    int64_t largest = -1;
    const uint8_t *at = s->map + s->ids_at;
    for (int64_t i = 0; i < info->n_tokens; i++, at += info->id_bytes) {
        const int64_t id = id_at(at, info->id_bytes, s->is_signed);
        if (id < 0 || id >= INT32_MAX)
            return dms_fail(DMS_ERR_FORMAT,
                            "%s: token %lld has id %lld, expected 0 to %d; is it a file of token "
                            "ids?",
                            s->path, (long long)i, (long long)id, INT32_MAX - 1);
        largest = id > largest ? id : largest;
    }
    s->info.vocab = largest + 1;
    return DMS_OK;
}

static dms_status read_foreign(dms_shard *s)
{
    dms_shard_foreign f;
    DMS_TRY(dms_shard_foreign_read(&f, s->map, s->map_bytes, s->path));
    s->ids_at = f.at;
    s->is_signed = f.is_signed;
    s->info = (dms_shard_info){
        .n_tokens = f.n_tokens, .foreign = true, .id_bytes = f.id_bytes, .format = f.format};
    return measure(s);
}

static bool is_ours(const uint8_t *bytes, size_t n)
{
    return n >= SHARD_MAGIC_BYTES && !memcmp(bytes, SHARD_MAGIC, SHARD_MAGIC_BYTES);
}

/* How many of the first bytes of a regular file there are; 0 where it cannot be read. */
static size_t read_start(uint8_t start[DMS_SHARD_FOREIGN_BYTES], const char *path)
{
    struct stat st;
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return 0;
    /* Reading from a pipe would take its first bytes away from whoever reads it next. */
    const bool regular = fstat(fd, &st) == 0 && S_ISREG(st.st_mode);
    const ssize_t n = regular ? read(fd, start, DMS_SHARD_FOREIGN_BYTES) : 0;
    close(fd);
    return n > 0 ? (size_t)n : 0;
}

bool dms_shard_recognise(const char *path)
{
    uint8_t start[DMS_SHARD_FOREIGN_BYTES];
    static_assert((int)sizeof(start) >= (int)SHARD_MAGIC_BYTES, "enough to know our own by");
    return is_ours(start, read_start(start, path));
}

bool dms_shard_recognise_any(const char *path)
{
    uint8_t start[DMS_SHARD_FOREIGN_BYTES];
    const size_t n = read_start(start, path);
    return n > 0 && (is_ours(start, n) || dms_shard_foreign_recognise(start, n, path));
}

dms_status dms_shard_open(dms_shard **out, const char *path)
{
    dms_status status = DMS_OK;
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return dms_fail(DMS_ERR_IO, "%s: %s", path, strerror(errno));
    dms_shard *s = calloc(1, sizeof(*s));
    if (s)
        s->path = strdup(path);
    if (!s || !s->path)
        DMS_TRY_OR(failed, dms_fail(DMS_ERR_NOMEM, "no memory to open %s", path));
    DMS_TRY_OR(failed, map_file(s, fd));
    const bool foreign =
        !is_ours(s->map, s->map_bytes) && dms_shard_foreign_recognise(s->map, s->map_bytes, path);
    DMS_TRY_OR(failed, foreign ? read_foreign(s) : read_header(s));
    s->info.file_bytes = (int64_t)s->map_bytes;
    close(fd);
    *out = s;
    return DMS_OK;
failed:
    close(fd);
    dms_shard_close(s);
    return status;
}

void dms_shard_close(dms_shard *s)
{
    if (!s)
        return;
    if (s->map)
        munmap((void *)s->map, s->map_bytes);
    free(s->path);
    free(s);
}

const dms_shard_info *dms_shard_get_info(const dms_shard *s)
{
    return &s->info;
}

dms_status dms_shard_read(const dms_shard *s, int32_t *ids, int64_t start, int64_t n)
{
    const dms_shard_info *info = &s->info;
    if (start < 0 || n < 0 || start > info->n_tokens || n > info->n_tokens - start)
        return dms_fail(DMS_ERR_ARG, "%s: %lld tokens from %lld asked for, it holds %lld", s->path,
                        (long long)n, (long long)start, (long long)info->n_tokens);
    const uint8_t *at = s->map + s->ids_at + start * info->id_bytes;
    for (int64_t i = 0; i < n; i++, at += info->id_bytes) {
        const int64_t id = id_at(at, info->id_bytes, s->is_signed);
        if (id < 0 || id >= info->vocab)
            return dms_fail(DMS_ERR_FORMAT,
                            "%s: token %lld has id %lld, expected less than %lld; "
                            "the file is damaged, make it again with dms-tokenize",
                            s->path, (long long)(start + i), (long long)id, (long long)info->vocab);
        ids[i] = (int32_t)id;
    }
    return DMS_OK;
}

dms_status dms_shard_verify(const dms_shard *s)
{
    if (s->info.foreign)
        return DMS_OK;
    const uint32_t crc = (uint32_t)crc32_z(0, s->map + s->ids_at, s->map_bytes - s->ids_at);
    if (crc != s->payload_crc)
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: the CRC-32 of its ids is %08x, expected %08x; the file "
                        "is damaged, make it again with dms-tokenize",
                        s->path, crc, s->payload_crc);
    return DMS_OK;
}
