#include "checkpoints/files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static dms_status map_fd(dms_mapping *out, int fd, const char *path)
{
    struct stat st;
    if (fstat(fd, &st))
        return dms_fail(DMS_ERR_IO, "%s cannot be examined: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode))
        return dms_fail(DMS_ERR_IO, "%s is not a regular file", path);
    dms_mapping m = {.size = (size_t)st.st_size};
    if (m.size) {
        void *bytes = mmap(NULL, m.size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (bytes == MAP_FAILED)
            return dms_fail(DMS_ERR_IO, "%s cannot be mapped: %s", path, strerror(errno));
        m.bytes = bytes;
    }
    *out = m;
    return DMS_OK;
}

static dms_status fail_to_open(const char *path, int error)
{
    char *aside = NULL;
    if (error == ENOENT)
        DMS_TRY(dms_aside_find(&aside, path));
    const dms_status status =
        aside ? dms_fail(DMS_ERR_IO,
                         "%s is missing, but an interrupted export has left the old one as %s; "
                         "rename that to %s, or export again",
                         path, aside, path)
              : dms_fail(DMS_ERR_IO, "%s cannot be opened: %s", path, strerror(error));
    free(aside);
    return status;
}

dms_status dms_mapping_open(dms_mapping *out, const char *path)
{
    /* O_NONBLOCK: a named pipe must not hang the open. */
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return fail_to_open(path, errno);
    const dms_status status = map_fd(out, fd, path);
    close(fd);
    return status;
}

void dms_mapping_close(dms_mapping *m)
{
    if (m->bytes)
        munmap((void *)(uintptr_t)m->bytes, m->size);
    *m = (dms_mapping){0};
}

char *dms_path_join(const char *folder, const char *name)
{
    const size_t n = strlen(folder) + strlen(name) + 2;
    char *path = malloc(n);
    if (path)
        snprintf(path, n, "%s/%s", folder, name);
    return path;
}

char *dms_path_folder(const char *path)
{
    const char *slash = strrchr(path, '/');
    if (!slash)
        return strdup(".");
    return slash == path ? strdup("/") : strndup(path, (size_t)(slash - path));
}

bool dms_path_exists(const char *path)
{
    struct stat st;
    return !lstat(path, &st);
}

dms_status dms_path_refuse_latest(const char *path)
{
    struct stat st;
    const char *slash = strrchr(path, '/');
    if (strcmp(slash ? slash + 1 : path, "latest") != 0 || lstat(path, &st) || !S_ISLNK(st.st_mode))
        return DMS_OK;
    return dms_fail(DMS_ERR_IO,
                    "%s is the link by which a training run finds its newest checkpoint; choose "
                    "another name",
                    path);
}

static const char *kind_of(mode_t mode)
{
    return S_ISDIR(mode)    ? "a folder"
           : S_ISFIFO(mode) ? "a named pipe"
           : S_ISSOCK(mode) ? "a socket"
                            : "a device";
}

dms_status dms_path_check_target(const char *path, bool force)
{
    struct stat st;
    const bool exists = dms_path_exists(path);
    DMS_TRY(dms_path_refuse_latest(path));
    if (exists && stat(path, &st))
        return dms_fail(DMS_ERR_IO, "%s is a link that leads nowhere (%s); choose another name",
                        path, strerror(errno));
    if (exists && !S_ISREG(st.st_mode))
        return dms_fail(DMS_ERR_IO,
                        "%s is %s, expected a regular file or none; choose another name", path,
                        kind_of(st.st_mode));
    if (exists && !force)
        return dms_fail(DMS_ERR_IO, "%s exists; choose another name, or replace it with --force",
                        path);
    return DMS_OK;
}

void dms_path_keep_mode(int fd, const char *path)
{
    struct stat st;
    if (!stat(path, &st) && S_ISREG(st.st_mode) && fchmod(fd, st.st_mode & 0777))
        errno = 0; /* a file system without permissions has none to keep */
}

dms_status dms_text_read(char **out, size_t *length, const char *path)
{
    dms_mapping m;
    struct stat st;
    if (stat(path, &st) && errno == ENOENT) {
        *out = NULL;
        return DMS_OK;
    }
    DMS_TRY(dms_mapping_open(&m, path));
    char *text = malloc(m.size + 1);
    if (text) {
        if (m.size)
            memcpy(text, m.bytes, m.size);
        text[m.size] = 0;
        if (length)
            *length = m.size;
    }
    dms_mapping_close(&m);
    if (!text)
        return dms_fail(DMS_ERR_NOMEM, "no memory for the text of %s", path);
    *out = text;
    return DMS_OK;
}

dms_status dms_folder_lock(int *fd, const char *path)
{
    char *folder = dms_path_folder(path);
    if (!folder)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a file name");
    *fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    free(folder);
    while (*fd >= 0 && flock(*fd, LOCK_EX) && errno == EINTR)
        continue;
    return DMS_OK;
}

dms_status dms_folder_sync(const char *folder)
{
    const int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return dms_fail(DMS_ERR_IO, "folder %s cannot be opened: %s", folder, strerror(errno));
    /* Some file systems know no fsync of a folder (EINVAL): then there is nothing to wait for. */
    const int error = fsync(fd) && errno != EINVAL ? errno : 0;
    close(fd);
    if (error)
        return dms_fail(DMS_ERR_IO, "folder %s cannot be synced: %s", folder, strerror(error));
    return DMS_OK;
}

dms_status dms_outfile_open(dms_outfile *out, const char *path)
{
    dms_outfile f = DMS_OUTFILE_NONE;
    f.path = strdup(path);
    const dms_status status = f.path ? dms_temporary_create(&f.temporary, path, false)
                                     : dms_fail(DMS_ERR_NOMEM, "no memory for a file name");
    if (status)
        free(f.path);
    else
        *out = f;
    return status;
}

dms_status dms_outfile_write(dms_outfile *f, const void *bytes, size_t n)
{
    const uint8_t *at = bytes;
    while (n) {
        const ssize_t done = write(f->temporary.fd, at, n < 1u << 30 ? n : 1u << 30);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return dms_fail(DMS_ERR_IO, "%s cannot be written: %s; free some space and try again",
                            f->path, strerror(done ? errno : ENOSPC));
        at += done;
        n -= (size_t)done;
    }
    return DMS_OK;
}

static dms_status publish(dms_outfile *f)
{
    dms_status status = DMS_OK;
    char *folder = dms_path_folder(f->path); /* before the file is replaced: this can fail */
    if (!folder)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a file name");
    dms_path_keep_mode(f->temporary.fd, f->path);
    if (fsync(f->temporary.fd))
        DMS_TRY_OR(done, dms_fail(DMS_ERR_IO, "%s cannot be synced: %s", f->path, strerror(errno)));
    if (rename(f->temporary.path, f->path))
        DMS_TRY_OR(done, dms_fail(DMS_ERR_IO, "%s cannot be renamed to %s: %s", f->temporary.path,
                                  f->path, strerror(errno)));
    dms_temporary_close(&f->temporary);
    DMS_TRY_OR(done, dms_folder_sync(folder));
done:
    free(folder);
    return status;
}

dms_status dms_outfile_commit(dms_outfile *f)
{
    const dms_status status = publish(f);
    dms_outfile_abort(f);
    return status;
}

void dms_outfile_abort(dms_outfile *f)
{
    dms_temporary_abort(&f->temporary);
    free(f->path);
    f->path = NULL;
}

dms_status dms_file_write(const char *path, const void *bytes, size_t n)
{
    dms_status status;
    dms_outfile f;
    DMS_TRY(dms_outfile_open(&f, path));
    DMS_TRY_OR(done, dms_outfile_write(&f, bytes, n));
    DMS_TRY_OR(done, dms_outfile_commit(&f));
done:
    dms_outfile_abort(&f);
    return status;
}
