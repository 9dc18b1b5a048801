#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "data/shard.h"
#include "data/shard_format.h"

enum { BUFFER_BYTES = 1 << 16 };

struct dms_shard_writer {
    char *path, *partial;
    int fd;
    bool committed;
    shard_header header; /* as far as written */
    size_t used;         /* bytes of buffer not written yet */
    uint8_t buffer[BUFFER_BYTES];
};

static dms_status failed_io(const dms_shard_writer *w, const char *what)
{
    return dms_fail(DMS_ERR_IO, "%s: %s: %s", w->partial, what, strerror(errno));
}

static dms_status write_all(const dms_shard_writer *w, const uint8_t *bytes, size_t n, off_t at)
{
    while (n > 0) {
        const ssize_t written = pwrite(w->fd, bytes, n, at);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return failed_io(w, "writing");
        bytes += written;
        at += written;
        n -= (size_t)written;
    }
    return DMS_OK;
}

/* n_tokens counts the buffered ids too. */
static dms_status flush(dms_shard_writer *w)
{
    const off_t end =
        SHARD_HEADER_BYTES + (off_t)w->header.info.n_tokens * (off_t)w->header.id_bytes;
    DMS_TRY(write_all(w, w->buffer, w->used, end - (off_t)w->used));
    w->header.payload_crc = (uint32_t)crc32(w->header.payload_crc, w->buffer, (unsigned)w->used);
    w->used = 0;
    return DMS_OK;
}

dms_status dms_shard_writer_open(dms_shard_writer **out, const char *path, int64_t vocab,
                                 uint32_t tokenizer_crc)
{
    dms_status status = DMS_OK;
    if (vocab < 1 || vocab > INT32_MAX)
        return dms_fail(DMS_ERR_ARG, "%s: a vocabulary of %lld tokens, expected 1 to %d", path,
                        (long long)vocab, INT32_MAX);
    dms_shard_writer *w = calloc(1, sizeof(*w));
    if (!w)
        return dms_fail(DMS_ERR_NOMEM, "no memory to write %s", path);
    w->fd = -1;
    w->header = (shard_header){.id_bytes = shard_id_bytes(vocab),
                               .info = {.vocab = vocab, .tokenizer_crc = tokenizer_crc}};
    w->path = strdup(path);
    if (!w->path || asprintf(&w->partial, "%s.partial", path) < 0) {
        w->partial = NULL;
        DMS_TRY_OR(failed, dms_fail(DMS_ERR_NOMEM, "no memory to write %s", path));
    }
    w->fd = open(w->partial, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (w->fd < 0)
        DMS_TRY_OR(failed, failed_io(w, "creating"));
    *out = w;
    return DMS_OK;
failed:
    dms_shard_writer_close(w);
    return status;
}

dms_status dms_shard_writer_append(dms_shard_writer *w, const int32_t *ids, int64_t n)
{
    const int id_bytes = (int)w->header.id_bytes;
    for (int64_t i = 0; i < n; i++) {
        if (ids[i] < 0 || ids[i] >= w->header.info.vocab)
            return dms_fail(DMS_ERR_ARG, "%s: id %d, expected 0 to %lld", w->path, ids[i],
                            (long long)w->header.info.vocab - 1);
        if (w->used == BUFFER_BYTES)
            DMS_TRY(flush(w));
        shard_put(w->buffer + w->used, (uint64_t)ids[i], id_bytes);
        w->used += (size_t)id_bytes;
        w->header.info.n_tokens++;
    }
    return DMS_OK;
}

/* A rename is on the disk once its folder is. A folder that cannot be synced is no failure. */
static void sync_folder(const char *path)
{
    char *copy = strdup(path);
    const int fd = copy ? open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (fd >= 0) {
        (void)fsync(fd);
        close(fd);
    }
    free(copy);
}

dms_status dms_shard_writer_commit(dms_shard_writer *w)
{
    uint8_t header[SHARD_HEADER_BYTES];
    DMS_TRY(flush(w));
    shard_header_encode(header, &w->header);
    DMS_TRY(write_all(w, header, sizeof(header), 0));
    if (fsync(w->fd) != 0)
        return failed_io(w, "syncing");
    if (rename(w->partial, w->path) != 0)
        return failed_io(w, "renaming");
    w->committed = true;
    sync_folder(w->path);
    return DMS_OK;
}

void dms_shard_writer_close(dms_shard_writer *w)
{
    if (!w)
        return;
    if (w->fd >= 0) {
        close(w->fd);
        if (!w->committed)
            unlink(w->partial);
    }
    free(w->path);
    free(w->partial);
    free(w);
}
