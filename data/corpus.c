#include "data/corpus.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <zlib.h>

#include "data/shard.h"

struct dms_corpus {
    char **paths;
    size_t n, next;
    gzFile file; /* the document in hand, or NULL */
};

static int by_bytes(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static dms_status add_path(dms_corpus *c, const char *folder, const char *name)
{
    char *path = NULL;
    const int n = folder ? asprintf(&path, "%s/%s", folder, name) : asprintf(&path, "%s", name);
    char **paths = n < 0 ? NULL : realloc(c->paths, (c->n + 1) * sizeof(*paths));
    if (!paths) {
        if (n >= 0)
            free(path);
        return dms_fail(DMS_ERR_NOMEM, "no memory for the files of %s", folder ? folder : name);
    }
    c->paths = paths;
    c->paths[c->n++] = path;
    return DMS_OK;
}

/* A shard that is being written, perhaps into this folder. */
static bool is_unfinished(const char *name)
{
    const size_t n = strlen(name), tail = sizeof(".partial") - 1;
    return n > tail && !strcmp(name + n - tail, ".partial");
}

static dms_status list_folder(dms_corpus *c, const char *folder)
{
    dms_status status = DMS_OK;
    struct dirent *entry;
    struct stat st;
    DIR *dir = opendir(folder);
    if (!dir)
        return dms_fail(DMS_ERR_IO, "%s: %s", folder, strerror(errno));
    while ((entry = readdir(dir))) {
        if (entry->d_name[0] == '.' || is_unfinished(entry->d_name) ||
            fstatat(dirfd(dir), entry->d_name, &st, 0) != 0 || !S_ISREG(st.st_mode))
            continue;
        DMS_TRY_OR(done, add_path(c, folder, entry->d_name));
    }
    if (c->n == 0)
        DMS_TRY_OR(done, dms_fail(DMS_ERR_ARG,
                                  "%s: the folder holds no files; name a text or gzip "
                                  "file, or a folder of them",
                                  folder));
    qsort(c->paths, c->n, sizeof(*c->paths), by_bytes);
done:
    closedir(dir);
    return status;
}

dms_status dms_corpus_open(dms_corpus **out, const char *path)
{
    struct stat st;
    dms_status status = DMS_OK;
    if (stat(path, &st) != 0)
        return dms_fail(DMS_ERR_IO, "%s: %s", path, strerror(errno));
    dms_corpus *c = calloc(1, sizeof(*c));
    if (!c)
        return dms_fail(DMS_ERR_NOMEM, "no memory to read %s", path);
    if (S_ISDIR(st.st_mode))
        DMS_TRY_OR(failed, list_folder(c, path));
    else
        DMS_TRY_OR(failed, add_path(c, NULL, path));
    *out = c;
    return DMS_OK;
failed:
    dms_corpus_close(c);
    return status;
}

/* zlib tells of a truncated file only here. */
static dms_status close_document(dms_corpus *c)
{
    const int result = c->file ? gzclose_r(c->file) : Z_OK;
    c->file = NULL;
    if (result == Z_BUF_ERROR)
        return dms_fail(DMS_ERR_FORMAT, "%s: the gzip file ends early; it is truncated",
                        c->paths[c->next - 1]);
    return DMS_OK;
}

void dms_corpus_close(dms_corpus *c)
{
    if (!c)
        return;
    if (c->file)
        gzclose_r(c->file);
    for (size_t i = 0; i < c->n; i++)
        free(c->paths[i]);
    free(c->paths);
    free(c);
}

dms_status dms_corpus_next(dms_corpus *c, const char **name)
{
    DMS_TRY(close_document(c));
    if (c->next == c->n) {
        *name = NULL;
        return DMS_OK;
    }
    const char *path = c->paths[c->next++];
    if (dms_shard_recognise(path)) /* beside the text it was made of, perhaps */
        return dms_fail(DMS_ERR_ARG, "%s is a token shard, not text; keep shards in another folder",
                        path);
    errno = 0;
    c->file = gzopen(path, "rb");
    if (!c->file)
        return dms_fail(errno ? DMS_ERR_IO : DMS_ERR_NOMEM, "%s: %s", path,
                        errno ? strerror(errno) : "no memory");
    gzbuffer(c->file, 128 << 10);
    *name = path;
    return DMS_OK;
}

static dms_status read_failed(dms_corpus *c)
{
    int code;
    const char *path = c->paths[c->next - 1];
    const char *message = gzerror(c->file, &code);
    if (code == Z_ERRNO)
        return dms_fail(DMS_ERR_IO, "%s: %s", path, strerror(errno));
    if (code == Z_MEM_ERROR)
        return dms_fail(DMS_ERR_NOMEM, "%s: no memory to unpack it", path);
    if (code == Z_BUF_ERROR)
        return dms_fail(DMS_ERR_FORMAT, "%s: the gzip file ends early; it is truncated", path);
    return dms_fail(DMS_ERR_FORMAT, "%s: the gzip file is corrupt (%s)", path, message);
}

dms_status dms_corpus_read(dms_corpus *c, char *out, size_t capacity, size_t *n)
{
    *n = 0;
    if (!c->file)
        return DMS_OK;
    const unsigned room = capacity < INT_MAX ? (unsigned)capacity : INT_MAX;
    const int got = gzread(c->file, out, room);
    int code = Z_OK;
    /* A short read is the end: then what stands before a cut in the file is no success either. */
    if (got >= 0 && (unsigned)got < room)
        gzerror(c->file, &code);
    if (got < 0 || code != Z_OK)
        return read_failed(c);
    *n = (size_t)got;
    return DMS_OK;
}
