#include "data/shard.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "data/shard_format.h"

struct dms_shard {
    char *path;
    const uint8_t *map; /* the whole file */
    size_t map_bytes;
    shard_header header;
};

static dms_status map_file(dms_shard *s, int fd)
{
    struct stat st;
    if (fstat(fd, &st) != 0)
        return dms_fail(DMS_ERR_IO, "%s: %s", s->path, strerror(errno));
    if (!S_ISREG(st.st_mode) || st.st_size < SHARD_HEADER_BYTES)
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: is not a token shard (it is %s); make one with "
                        "dms-tokenize",
                        s->path,
                        S_ISREG(st.st_mode) ? "shorter than the header" : "no regular file");
    void *map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (map == MAP_FAILED)
        return dms_fail(DMS_ERR_IO, "%s: mapping it: %s", s->path, strerror(errno));
    s->map = map;
    s->map_bytes = (size_t)st.st_size;
    return DMS_OK;
}

static dms_status check_header(dms_shard *s)
{
    const char *wrong = shard_header_decode(&s->header, s->map);
    if (wrong)
        return dms_fail(DMS_ERR_FORMAT, "%s: %s", s->path, wrong);
    const size_t payload = s->map_bytes - SHARD_HEADER_BYTES;
    const uint64_t n = (uint64_t)s->header.info.n_tokens;
    if (payload % s->header.id_bytes != 0 || payload / s->header.id_bytes != n)
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: holds %zu bytes of ids, expected %llu ids of %u bytes; "
                        "it is truncated or damaged, make it again with dms-tokenize",
                        s->path, payload, (unsigned long long)n, s->header.id_bytes);
    return DMS_OK;
}

bool dms_shard_recognise(const char *path)
{
    struct stat st;
    char magic[SHARD_MAGIC_BYTES];
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return false;
    /* Reading from a pipe would take its first bytes away from whoever reads it next. */
    const bool yes = fstat(fd, &st) == 0 && S_ISREG(st.st_mode) &&
                     read(fd, magic, sizeof(magic)) == (ssize_t)sizeof(magic) &&
                     !memcmp(magic, SHARD_MAGIC, sizeof(magic));
    close(fd);
    return yes;
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
    DMS_TRY_OR(failed, check_header(s));
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
    return &s->header.info;
}

dms_status dms_shard_read(const dms_shard *s, int32_t *ids, int64_t start, int64_t n)
{
    const dms_shard_info *info = &s->header.info;
    if (start < 0 || n < 0 || start > info->n_tokens || n > info->n_tokens - start)
        return dms_fail(DMS_ERR_ARG, "%s: %lld tokens from %lld asked for, it holds %lld", s->path,
                        (long long)n, (long long)start, (long long)info->n_tokens);
    const int id_bytes = (int)s->header.id_bytes;
    const uint8_t *at = s->map + SHARD_HEADER_BYTES + start * id_bytes;
    for (int64_t i = 0; i < n; i++, at += id_bytes) {
        const uint64_t id = id_bytes == 2 ? shard_get(at, 2) : shard_get(at, 4);
        if (id >= (uint64_t)info->vocab)
            return dms_fail(DMS_ERR_FORMAT,
                            "%s: token %lld has id %llu, expected less than %lld; "
                            "the file is damaged, make it again with dms-tokenize",
                            s->path, (long long)(start + i), (unsigned long long)id,
                            (long long)info->vocab);
        ids[i] = (int32_t)id;
    }
    return DMS_OK;
}

dms_status dms_shard_verify(const dms_shard *s)
{
    const size_t n = s->map_bytes - SHARD_HEADER_BYTES;
    const uint32_t crc = (uint32_t)crc32_z(0, s->map + SHARD_HEADER_BYTES, n);
    if (crc != s->header.payload_crc)
        return dms_fail(DMS_ERR_FORMAT,
                        "%s: the CRC-32 of its ids is %08x, expected %08x; the file "
                        "is damaged, make it again with dms-tokenize",
                        s->path, crc, s->header.payload_crc);
    return DMS_OK;
}
