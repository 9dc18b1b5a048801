#include "checkpoints/model_folder.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
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

static const char index_name[] = "model.safetensors.index.json";

/* model-00001-of-00002.safetensors. */
static bool is_shard(const char *name)
{
    static const char pattern[] = "model-#####-of-#####.safetensors";
    bool same = strlen(name) == sizeof(pattern) - 1;
    for (size_t i = 0; same && pattern[i]; i++)
        same = pattern[i] == '#' ? name[i] >= '0' && name[i] <= '9' : name[i] == pattern[i];
    return same;
}

/* Whether a file is a model's own. index: that folder's, or NULL. */
static bool is_own(const char *name, const json_t *index)
{
    static const char *const names[] = {"config.json",
                                        "generation_config.json",
                                        "model.safetensors",
                                        index_name,
                                        "dms_adapter.safetensors",
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
    const char *tensor, *file;
    json_t *value;
    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
        if (!strcmp(name, names[i]))
            return true;
    json_object_foreach(json_object_get(index, "weight_map"), tensor, value)
    {
        file = json_string_value(value);
        if (file && !strcmp(file, name) && ends_with(name, ".safetensors"))
            return true;
    }
    return is_shard(name);
}

/* The index of a folder; NULL where there is none that can be read. */
static dms_status read_index(json_t **out, const char *folder)
{
    size_t length = 0;
    char *text = NULL, *path = dms_path_join(folder, index_name);
    *out = NULL;
    if (!path)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a file name");
    const dms_status status = dms_text_read(&text, &length, path);
    if (!status && text)
        *out = json_loadb(text, length, JSON_ALLOW_NUL, NULL);
    free(text);
    free(path);
    return status == DMS_ERR_NOMEM ? status : DMS_OK;
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
    DMS_TRY(dms_path_refuse_latest(folder));
    if (lstat(folder, &st)) {
        const int error = errno;
        return error == ENOENT
                   ? DMS_OK
                   : dms_fail(DMS_ERR_IO, "%s cannot be examined: %s", folder, strerror(error));
    }
    if (!S_ISDIR(st.st_mode))
        return dms_fail(DMS_ERR_IO,
                        "%s exists and is no plain model folder (it is %s); choose another one",
                        folder, S_ISLNK(st.st_mode) ? "a link" : "no folder");
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

/* Adds a name to those that are removed. */
static dms_status note_removed(dms_model_folder *f, const char *name)
{
    const size_t n = f->removed ? strlen(f->removed) : 0;
    char *grown = realloc(f->removed, n + strlen(name) + 3);
    if (!grown)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a list of file names");
    strcpy(stpcpy(grown + n, n ? ", " : ""), name);
    for (char *c = grown + n; *c; c++)
        if (*c < ' ' || *c > '~')
            *c = '?';
    f->removed = grown;
    return DMS_OK;
}

/* A model's own file: the new one of its name keeps its permissions. */
static dms_status succeed(dms_model_folder *f, DIR *from, const char *name)
{
    struct stat st, now;
    if (fstatat(f->made.fd, name, &now, 0))
        return note_removed(f, name);
    if (!fstatat(dirfd(from), name, &st, 0) && S_ISREG(st.st_mode) &&
        fchmodat(f->made.fd, name, st.st_mode & 0777, 0))
        return dms_fail(DMS_ERR_IO, "%s/%s cannot keep its permissions: %s", f->target, name,
                        strerror(errno));
    return DMS_OK;
}

/* A link to the same file keeps all about it, also what a program has open. */
static dms_status bring(const dms_model_folder *f, int from, const char *name)
{
    if (!linkat(from, name, f->made.fd, name, 0))
        return DMS_OK;
    const int error = copy_file(f->made.fd, from, name);
    return error ? dms_fail(DMS_ERR_IO, "%s/%s cannot be kept: %s; move it elsewhere", f->target,
                            name, strerror(error))
                 : DMS_OK;
}

static dms_status bring_along(dms_model_folder *f, DIR *from, const json_t *index)
{
    for (struct dirent *e; (e = readdir(from));)
        if (!is_dots(e->d_name))
            DMS_TRY(is_own(e->d_name, index) ? succeed(f, from, e->d_name)
                                             : bring(f, dirfd(from), e->d_name));
    return DMS_OK;
}

static bool same_bytes(int a, int b)
{
    char one[4096], other[4096];
    for (;;) {
        const ssize_t n = read(a, one, sizeof(one)), m = read(b, other, sizeof(other));
        if (n != m || n < 0 || memcmp(one, other, (size_t)n) != 0)
            return false;
        if (!n)
            return true;
    }
}

/* Whether the file `name` of one folder has come along into the other: a link, or a copy. */
static bool has_come(int from, int to, const char *name)
{
    struct stat a, b;
    if (fstatat(from, name, &a, AT_SYMLINK_NOFOLLOW) || fstatat(to, name, &b, AT_SYMLINK_NOFOLLOW))
        return false;
    if (a.st_ino == b.st_ino && a.st_dev == b.st_dev)
        return true;
    if (!S_ISREG(a.st_mode) || !S_ISREG(b.st_mode) || a.st_size != b.st_size)
        return false;
    const int one = openat(from, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    const int other = openat(to, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    const bool same = one >= 0 && other >= 0 && same_bytes(one, other);
    if (one >= 0)
        close(one);
    if (other >= 0)
        close(other);
    return same;
}

/* Of the old folder, the model's own files and what has come along; nothing else. Its index goes
 * last: the next export may have to go on here. */
static dms_status remove_old(const char *old, const char *target, const json_t *index)
{
    const int now = open(target, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = now < 0 ? NULL : opendir(old);
    int error = dir ? 0 : errno;
    for (struct dirent *e; dir && (e = readdir(dir));)
        if (!is_dots(e->d_name) && strcmp(e->d_name, index_name) != 0 &&
            (is_own(e->d_name, index) || has_come(dirfd(dir), now, e->d_name)))
            error = unlinkat(dirfd(dir), e->d_name, 0) && errno != ENOENT ? errno : error;
    if (dir && !error && unlinkat(dirfd(dir), index_name, 0) && errno != ENOENT)
        error = errno;
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

/* Whether there is something under the name that a model could not just replace. */
static bool is_taken(const char *target)
{
    DIR *dir = opendir(target);
    if (!dir)
        return dms_path_exists(target) || errno != ENOENT;
    const bool empty = list(dir).empty;
    closedir(dir);
    return !empty;
}

/* Puts back what an interrupted export moved aside and did not replace. */
static dms_status recover(const char *target)
{
    if (is_taken(target))
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
    if (is_taken(target))
        DMS_TRY(dms_aside_find(&aside, target));
    json_t *index = NULL;
    const dms_status status = aside ? read_index(&index, aside) : DMS_OK;
    if (aside && !status)
        remove_old(aside, target, index); /* what cannot be removed is in nobody's way */
    json_decref(index);
    free(aside);
    return status;
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
static dms_status replace_in_two_steps(const char *made, const char *target, const json_t *index)
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
    DMS_TRY_OR(done, remove_old(aside, target, index));
done:
    free(aside);
    return status;
}

static dms_status replace(dms_model_folder *f, DIR *old)
{
    struct stat st;
    json_t *index;
    dms_status status = DMS_OK;
    DMS_TRY(read_index(&index, f->target));
    DMS_TRY_OR(done, bring_along(f, old, index));
    if (!fstat(dirfd(old), &st))
        fchmod(f->made.fd, st.st_mode & 07777);
    DMS_TRY_OR(done, dms_folder_sync(f->made.path));
    if (!renameat2(AT_FDCWD, f->made.path, AT_FDCWD, f->target, RENAME_EXCHANGE))
        DMS_TRY_OR(done, remove_old(f->made.path, f->target, index));
    else if (errno != EINVAL && errno != ENOSYS && errno != EOPNOTSUPP)
        DMS_TRY_OR(done, fail_to_rename(f->made.path, f->target, errno));
    else
        DMS_TRY_OR(done, replace_in_two_steps(f->made.path, f->target, index));
done:
    json_decref(index);
    return status;
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
    free(f->removed);
    f->target = f->removed = NULL;
}
