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

#include "data/jsonl.h"
#include "data/packed.h"
#include "data/shard.h"

struct dms_corpus {
    char **paths;
    size_t n, next;
    gzFile file;      /* the file in hand, or NULL */
    dms_jsonl *lines; /* of JSON Lines, or NULL */
    size_t taken;     /* bytes of the line's text that were read */
    char *name;       /* "PATH, line N" of a line */
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
static dms_status close_file(dms_corpus *c)
{
    dms_status status = DMS_OK;
    if (c->file && gzeof(c->file))
        status = dms_packed_check_end(c->file, c->paths[c->next - 1]);
    dms_jsonl_close(c->lines);
    c->lines = NULL;
    const int result = c->file ? gzclose_r(c->file) : Z_OK;
    c->file = NULL;
    if (result == Z_BUF_ERROR)
        return dms_fail(DMS_ERR_FORMAT, "%s: the gzip file ends early; it is truncated",
                        c->paths[c->next - 1]);
    return status;
}

void dms_corpus_close(dms_corpus *c)
{
    if (!c)
        return;
    dms_jsonl_close(c->lines);
    free(c->name);
    if (c->file)
        gzclose_r(c->file);
    for (size_t i = 0; i < c->n; i++)
        free(c->paths[i]);
    free(c->paths);
    free(c);
}

static dms_status open_file(dms_corpus *c)
{
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
    DMS_TRY(dms_packed_check_start(c->file, path));
    return dms_jsonl_recognise(path) ? dms_jsonl_open(&c->lines, c->file, path) : DMS_OK;
}

/* *name = NULL after the last line. */
static dms_status next_line(dms_corpus *c, const char **name)
{
    bool found;
    free(c->name);
    c->name = NULL;
    c->taken = 0;
    *name = NULL;
    DMS_TRY(dms_jsonl_next(c->lines, &found));
    if (!found)
        return DMS_OK;
    if (asprintf(&c->name, "%s, line %lld", c->paths[c->next - 1], dms_jsonl_line(c->lines)) < 0) {
        c->name = NULL;
        return dms_fail(DMS_ERR_NOMEM, "no memory to read %s", c->paths[c->next - 1]);
    }
    *name = c->name;
    return DMS_OK;
}

dms_status dms_corpus_next(dms_corpus *c, const char **name)
{
    *name = NULL;
    for (;;) {
        if (c->lines)
            DMS_TRY(next_line(c, name));
        if (*name)
            return DMS_OK;
        DMS_TRY(close_file(c));
        if (c->next == c->n)
            return DMS_OK;
        DMS_TRY(open_file(c));
        if (!c->lines) {
            *name = c->paths[c->next - 1];
            return DMS_OK;
        }
    }
}

static size_t read_line(dms_corpus *c, char *out, size_t capacity)
{
    size_t n;
    const char *text = dms_jsonl_text(c->lines, &n);
    n -= c->taken;
    n = n < capacity ? n : capacity;
    if (n > 0)
        memcpy(out, text + c->taken, n);
    c->taken += n;
    return n;
}

const dms_message *dms_corpus_messages(const dms_corpus *c, size_t *n)
{
    *n = 0;
    return c->lines ? dms_jsonl_messages(c->lines, n) : NULL;
}

dms_status dms_corpus_read(dms_corpus *c, char *out, size_t capacity, size_t *n)
{
    *n = 0;
    if (!c->file)
        return DMS_OK;
    if (c->lines) {
        *n = read_line(c, out, capacity);
        return DMS_OK;
    }
    const unsigned room = capacity < INT_MAX ? (unsigned)capacity : INT_MAX;
    const int got = gzread(c->file, out, room);
    int code = Z_OK;
    /* A short read is the end: then what stands before a cut in the file is no success either. */
    if (got >= 0 && (unsigned)got < room)
        gzerror(c->file, &code);
    if (got < 0 || code != Z_OK)
        return dms_gzip_failed(c->file, c->paths[c->next - 1]);
    *n = (size_t)got;
    return DMS_OK;
}
