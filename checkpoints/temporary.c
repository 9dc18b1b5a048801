#include "checkpoints/temporary.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "checkpoints/files.h"

static const char infix[] = ".dms-";
enum { DIGITS = 8, ENDING = sizeof(infix) - 1 + DIGITS + 4 }; /* .dms-XXXXXXXX.tmp */

/* A name of ours: anything, then ENDING characters that end in `end` (".tmp", ".old"). */
static bool is_ours(const char *name, const char *end)
{
    const size_t n = strlen(name);
    if (n <= ENDING || strcmp(name + n - 4, end) != 0)
        return false;
    const char *digits = name + n - 4 - DIGITS;
    return strspn(digits, "0123456789abcdef") == DIGITS &&
           !strncmp(digits - (sizeof(infix) - 1), infix, sizeof(infix) - 1);
}

static char *make_name(const char *target, const char *end)
{
    uint32_t number = 0;
    const size_t n = strlen(target) + ENDING + 1;
    char *path = malloc(n);
    if (getrandom(&number, sizeof(number), 0) != sizeof(number))
        number = (uint32_t)getpid(); /* the name is still created exclusively */
    if (path)
        snprintf(path, n, "%s%s%08x%s", target, infix, number, end);
    return path;
}

/* The open folder `name` of `parent`, with the files in it. */
static void remove_folder(int parent, const char *name, int fd)
{
    const int own = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = own < 0 ? NULL : fdopendir(own);
    for (struct dirent *e; dir && (e = readdir(dir));)
        unlinkat(fd, e->d_name, 0);
    if (dir)
        closedir(dir);
    else if (own >= 0)
        close(own);
    unlinkat(parent, name, AT_REMOVEDIR);
}

/* Removes what a killed process left. The lock is asked for before, and kept until it is gone. An
 * owner that has committed in the meantime has given lock and name away: then this is no longer
 * ours. */
static void remove_stale(int parent, const char *name)
{
    struct stat st, named;
    const int fd = openat(parent, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return;
    if (!flock(fd, LOCK_EX | LOCK_NB) && !fstat(fd, &st) &&
        !fstatat(parent, name, &named, AT_SYMLINK_NOFOLLOW) && st.st_ino == named.st_ino &&
        st.st_dev == named.st_dev) {
        if (S_ISDIR(st.st_mode))
            remove_folder(parent, name, fd);
        else if (S_ISREG(st.st_mode))
            unlinkat(parent, name, 0);
    }
    close(fd);
}

static dms_status open_folder(DIR **out, const char *path)
{
    char *folder = dms_path_folder(path);
    *out = folder ? opendir(folder) : NULL;
    free(folder);
    return folder ? DMS_OK : dms_fail(DMS_ERR_NOMEM, "no memory for a file name");
}

static dms_status remove_all_stale(const char *target)
{
    DIR *dir;
    DMS_TRY(open_folder(&dir, target));
    for (struct dirent *e; dir && (e = readdir(dir));)
        if (is_ours(e->d_name, ".tmp"))
            remove_stale(dirfd(dir), e->d_name);
    if (dir)
        closedir(dir);
    return DMS_OK;
}

static int create(const char *path, bool folder)
{
    if (!folder)
        return open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    return mkdir(path, 0777) ? -1 : open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

/* Whether the path still leads to it. */
static bool has_name(const dms_temporary *t)
{
    struct stat own, named;
    return t->path && t->fd >= 0 && !fstat(t->fd, &own) && !lstat(t->path, &named) &&
           own.st_ino == named.st_ino && own.st_dev == named.st_dev;
}

/* Locks it. False: another process has found it before, and removed it. */
static bool keep(const dms_temporary *t)
{
    while (flock(t->fd, LOCK_EX) && errno == EINTR)
        continue;
    return has_name(t);
}

dms_status dms_temporary_create(dms_temporary *out, const char *target, bool folder)
{
    DMS_TRY(remove_all_stale(target));
    for (int attempt = 0; attempt < 100; attempt++) {
        char *path = make_name(target, ".tmp");
        if (!path)
            return dms_fail(DMS_ERR_NOMEM, "no memory for a file name");
        dms_temporary t = {create(path, folder), path};
        const int error = errno;
        if (t.fd >= 0 && keep(&t)) {
            *out = t;
            return DMS_OK;
        }
        const bool other = t.fd < 0 && error != EEXIST;
        dms_temporary_close(&t);
        if (other)
            return dms_fail(DMS_ERR_IO, "%s cannot be created: %s", target, strerror(error));
    }
    return dms_fail(DMS_ERR_IO, "%s cannot be created: no free name for a temporary", target);
}

void dms_temporary_abort(dms_temporary *t)
{
    struct stat st;
    if (has_name(t) && !fstat(t->fd, &st)) { /* what was renamed is no longer temporary */
        if (S_ISDIR(st.st_mode))
            remove_folder(AT_FDCWD, t->path, t->fd);
        else
            unlink(t->path);
    }
    dms_temporary_close(t);
}

void dms_temporary_close(dms_temporary *t)
{
    if (t->fd >= 0)
        close(t->fd);
    free(t->path);
    *t = (dms_temporary){-1, NULL};
}

char *dms_aside_name(const char *target)
{
    return make_name(target, ".old");
}

/* `name` in the folder of `target`, as that is written. */
static char *beside(const char *target, const char *name)
{
    const char *slash = strrchr(target, '/');
    const size_t folder = slash ? (size_t)(slash - target) + 1 : 0, n = strlen(name) + 1;
    char *path = malloc(folder + n);
    if (path) {
        memcpy(path, target, folder);
        memcpy(path + folder, name, n);
    }
    return path;
}

dms_status dms_aside_find(char **out, const char *target)
{
    DIR *dir;
    dms_status status = DMS_OK;
    const char *slash = strrchr(target, '/'), *base = slash ? slash + 1 : target;
    const size_t n = strlen(base);
    *out = NULL;
    DMS_TRY(open_folder(&dir, target));
    for (struct dirent *e; !*out && !status && dir && (e = readdir(dir));) {
        if (strlen(e->d_name) != n + ENDING || strncmp(e->d_name, base, n) != 0 ||
            !is_ours(e->d_name, ".old"))
            continue;
        *out = beside(target, e->d_name);
        status = *out ? DMS_OK : dms_fail(DMS_ERR_NOMEM, "no memory for a file name");
    }
    if (dir)
        closedir(dir);
    return status;
}
