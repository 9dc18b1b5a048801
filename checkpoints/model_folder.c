#include "checkpoints/model_folder.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "checkpoints/files.h"

static bool ends_with(const char *name, const char *end)
{
    const size_t n = strlen(name), k = strlen(end);
    return n >= k && !strcmp(name + n - k, end);
}

bool dms_model_folder_owns(const char *name)
{
    static const char *const names[] = {"config.json",
                                        "generation_config.json",
                                        "model.safetensors.index.json",
                                        "dms_metadata.json",
                                        "tokenizer.json",
                                        "tokenizer_config.json",
                                        "tokenizer.model",
                                        "special_tokens_map.json",
                                        "added_tokens.json",
                                        "vocab.json",
                                        "merges.txt",
                                        "chat_template.jinja",
                                        "chat_template.json"};
    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
        if (!strcmp(name, names[i]))
            return true;
    return ends_with(name, ".safetensors");
}

static bool is_dots(const char *name)
{
    return !strcmp(name, ".") || !strcmp(name, "..");
}

/* ---- what is in the way --------------------------------------------------------------------- */

/* What an existing folder holds. */
typedef struct {
    bool empty, config, weights;
    char inner[NAME_MAX + 1]; /* one of its folders */
} contents;

static contents list(DIR *dir)
{
    struct stat st;
    contents c = {.empty = true};
    for (struct dirent *e; (e = readdir(dir));) {
        if (is_dots(e->d_name))
            continue;
        c.empty = false;
        c.config |= !strcmp(e->d_name, "config.json");
        c.weights |= ends_with(e->d_name, ".safetensors");
        if (fstatat(dirfd(dir), e->d_name, &st, AT_SYMLINK_NOFOLLOW) || S_ISDIR(st.st_mode))
            snprintf(c.inner, sizeof(c.inner), "%s", e->d_name);
    }
    return c;
}

static dms_status check_contents(const char *folder, const contents *c, bool force)
{
    static const char other[] = "exists and is no plain model folder";
    if (c->empty)
        return DMS_OK;
    if (!c->config || !c->weights)
        return dms_fail(DMS_ERR_IO, "%s %s (it has no %s); choose another one", folder, other,
                        c->config ? "*.safetensors" : "config.json");
    if (c->inner[0])
        return dms_fail(DMS_ERR_IO, "%s %s (it holds the folder %s); choose another one", folder,
                        other, c->inner);
    if (!force)
        return dms_fail(DMS_ERR_IO,
                        "%s already holds a model; choose another folder, or replace the model in "
                        "it with --force",
                        folder);
    if (access(folder, W_OK | X_OK))
        return dms_fail(DMS_ERR_IO,
                        "%s cannot be replaced: %s; make it writable (chmod u+w), or choose "
                        "another one",
                        folder, strerror(errno));
    return DMS_OK;
}

static dms_status check_target(const char *folder, bool force)
{
    struct stat st;
    if (lstat(folder, &st)) {
        const int error = errno;
        return error == ENOENT
                   ? DMS_OK
                   : dms_fail(DMS_ERR_IO, "%s cannot be examined: %s", folder, strerror(error));
    }
    if (!S_ISDIR(st.st_mode))
        return dms_fail(DMS_ERR_IO,
                        "%s exists and is no plain model folder (it is no folder); choose another "
                        "one",
                        folder);
    DIR *dir = opendir(folder);
    if (!dir)
        return dms_fail(DMS_ERR_IO, "folder %s cannot be read: %s", folder, strerror(errno));
    const contents c = list(dir);
    closedir(dir);
    return check_contents(folder, &c, force);
}

/* ---- the user's own files ------------------------------------------------------------------- */

static bool copy_bytes(int to, int from)
{
    char bytes[1 << 16];
    ssize_t n;
    while ((n = read(from, bytes, sizeof(bytes))) > 0)
        for (ssize_t done = 0, k; done < n; done += k)
            if ((k = write(to, bytes + done, (size_t)(n - done))) <= 0)
                return false;
    return !n;
}

/* Contents, permissions and times of a regular file; 0 or the error. */
static int copy_file(int to, int from, const char *name)
{
    struct stat st;
    int out = -1;
    const int in = openat(from, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    bool done = in >= 0 && !fstat(in, &st);
    if (done && !S_ISREG(st.st_mode)) {
        errno = ENOTSUP;
        done = false;
    }
    if (done)
        out = openat(to, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (done && out >= 0) {
        const struct timespec times[2] = {st.st_atim, st.st_mtim};
        done = copy_bytes(out, in) && !fchmod(out, st.st_mode & 07777) && !futimens(out, times) &&
               !fsync(out);
    }
    const int error = done && out >= 0 ? 0 : errno;
    if (in >= 0)
        close(in);
    if (out >= 0)
        close(out);
    return error;
}

/* A link to the same file keeps all about it, also what a program has open. */
static dms_status bring_along(int to, DIR *from, const char *folder)
{
    for (struct dirent *e; (e = readdir(from));) {
        if (is_dots(e->d_name) || dms_model_folder_owns(e->d_name) ||
            !linkat(dirfd(from), e->d_name, to, e->d_name, 0))
            continue;
        const int error = copy_file(to, dirfd(from), e->d_name);
        if (error)
            return dms_fail(DMS_ERR_IO, "%s/%s cannot be kept: %s; move it elsewhere", folder,
                            e->d_name, strerror(error));
    }
    return DMS_OK;
}

/* Of the old folder, what exports write and what has come along; nothing else. */
static dms_status remove_old(const char *old, const char *target)
{
    struct stat st;
    const int now = open(target, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = now < 0 ? NULL : opendir(old);
    int error = dir ? 0 : errno;
    for (struct dirent *e; dir && (e = readdir(dir));)
        if (!is_dots(e->d_name) && (dms_model_folder_owns(e->d_name) ||
                                    !fstatat(now, e->d_name, &st, AT_SYMLINK_NOFOLLOW)))
            error = unlinkat(dirfd(dir), e->d_name, 0) && errno != ENOENT ? errno : error;
    if (dir)
        closedir(dir);
    if (now >= 0)
        close(now);
    if (!rmdir(old) || errno == ENOENT)
        return DMS_OK;
    error = error ? error : errno;
    return dms_fail(DMS_ERR_IO,
                    "%s holds the new model, but the old one, now %s, cannot be removed: %s; "
                    "remove it by hand",
                    target, old, strerror(error));
}

/* ---- from the beginning to the end ----------------------------------------------------------- */

/* Puts back what an interrupted export moved aside and did not replace. */
static dms_status recover(const char *target)
{
    if (dms_path_exists(target) || errno != ENOENT)
        return DMS_OK;
    char *aside;
    DMS_TRY(dms_aside_find(&aside, target));
    const int error = aside && rename(aside, target) ? errno : 0;
    const dms_status status =
        error ? dms_fail(DMS_ERR_IO,
                         "%s, which an interrupted export left, cannot be renamed to "
                         "%s: %s",
                         aside, target, strerror(error))
              : DMS_OK;
    free(aside);
    return status;
}

/* What an export left that was killed before it had removed the old model. */
static dms_status remove_asides(const char *target)
{
    char *aside = NULL;
    if (dms_path_exists(target))
        DMS_TRY(dms_aside_find(&aside, target));
    if (aside)
        remove_old(aside, target); /* what cannot be removed is in nobody's way */
    free(aside);
    return DMS_OK;
}

static char *without_slashes(const char *folder)
{
    size_t n = strlen(folder);
    while (n > 1 && folder[n - 1] == '/')
        n--;
    return strndup(folder, n);
}

dms_status dms_model_folder_begin(dms_model_folder *f, const char *target, bool force)
{
    f->force = force;
    f->target = without_slashes(target);
    if (!f->target)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a file name");
    DMS_TRY(recover(f->target));
    DMS_TRY(check_target(f->target, force));
    DMS_TRY(remove_asides(f->target));
    return dms_temporary_create(&f->made, f->target, true);
}

static dms_status fail_to_rename(const char *from, const char *to, int error)
{
    return dms_fail(DMS_ERR_IO, "%s cannot be renamed to %s: %s", from, to, strerror(error));
}

/* Two steps, for file systems that cannot swap: what is old lies aside between them. */
static dms_status replace_in_two_steps(const char *made, const char *target)
{
    dms_status status = DMS_OK;
    char *aside = dms_aside_name(target);
    if (!aside)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a file name");
    if (rename(target, aside))
        DMS_TRY_OR(done, fail_to_rename(target, aside, errno));
    if (rename(made, target)) {
        const int error = errno;
        if (rename(aside, target))
            DMS_TRY_OR(done, dms_fail(DMS_ERR_IO,
                                      "%s cannot be renamed to %s: %s; the old model is in %s",
                                      made, target, strerror(error), aside));
        DMS_TRY_OR(done, fail_to_rename(made, target, error));
    }
    DMS_TRY_OR(done, remove_old(aside, target));
done:
    free(aside);
    return status;
}

static dms_status replace(dms_model_folder *f, DIR *old)
{
    struct stat st;
    DMS_TRY(bring_along(f->made.fd, old, f->target));
    if (!fstat(dirfd(old), &st))
        fchmod(f->made.fd, st.st_mode & 07777);
    DMS_TRY(dms_folder_sync(f->made.path));
    if (!renameat2(AT_FDCWD, f->made.path, AT_FDCWD, f->target, RENAME_EXCHANGE))
        return remove_old(f->made.path, f->target);
    if (errno != EINVAL && errno != ENOSYS && errno != EOPNOTSUPP)
        return fail_to_rename(f->made.path, f->target, errno);
    return replace_in_two_steps(f->made.path, f->target);
}

dms_status dms_model_folder_commit(dms_model_folder *f)
{
    dms_status status = DMS_OK;
    char *parent = dms_path_folder(f->target);
    DIR *old = opendir(f->target);
    const bool replaces = old && !list(old).empty;
    if (!parent)
        DMS_TRY_OR(done, dms_fail(DMS_ERR_NOMEM, "no memory for a file name"));
    DMS_TRY_OR(done, check_target(f->target, f->force)); /* others may have come first */
    if (replaces) {
        rewinddir(old);
        DMS_TRY_OR(done, replace(f, old));
    } else if (rename(f->made.path, f->target)) {
        DMS_TRY_OR(done, fail_to_rename(f->made.path, f->target, errno));
    }
    dms_temporary_close(&f->made);
    DMS_TRY_OR(done, dms_folder_sync(parent));
done:
    if (old)
        closedir(old);
    free(parent);
    return status;
}

void dms_model_folder_abort(dms_model_folder *f)
{
    dms_temporary_abort(&f->made);
    free(f->target);
    f->target = NULL;
}
