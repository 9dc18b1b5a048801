/* Files as a whole: read-only mappings, and writing that shows only complete files. */
#ifndef DMS_FILES_H
#define DMS_FILES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "checkpoints/temporary.h"
#include "kernels/status.h"

DMS_BEGIN_C

/* A whole file, mapped read-only. */
typedef struct {
    const uint8_t *bytes; /* NULL for an empty file */
    size_t size;
} dms_mapping;

/* DMS_ERR_IO where `path` is missing, unreadable or no regular file; where an interrupted export
 * has moved it aside, the message says where it is. */
dms_status dms_mapping_open(dms_mapping *out, const char *path);
void dms_mapping_close(dms_mapping *m);

/* "folder/name" on the heap; the caller frees it; NULL without memory. */
char *dms_path_join(const char *folder, const char *name);
/* Folder a path lies in ("." for a bare name), on the heap. */
char *dms_path_folder(const char *path);
bool dms_path_exists(const char *path);
/* DMS_ERR_IO where `path` is the link of a training run to its newest checkpoint: the run goes on
 * from it. */
dms_status dms_path_refuse_latest(const char *path);
/* Whether a file may be written there: what exists must be a regular file, or a link to one, and
 * may only be replaced with `force`. DMS_ERR_IO says what is in the way. */
dms_status dms_path_check_target(const char *path, bool force);
/* Gives an open file the permissions of the one that it is to replace; nothing where there is none.
 */
void dms_path_keep_mode(int fd, const char *path);
/* The whole file with a 0 behind it, on the heap; `length` may be NULL. A missing file gives DMS_OK
 * and NULL. */
dms_status dms_text_read(char **out, size_t *length, const char *path);
/* Waits until no other process holds this lock of the folder that `path` lies in; it ends with
 * close(*fd), or the process. *fd is -1 where the folder cannot be locked: nothing is promised
 * then.
 */
dms_status dms_folder_lock(int *fd, const char *path);
/* Makes a folder's entries durable. */
dms_status dms_folder_sync(const char *folder);

/* A file that appears under its name only when complete: a temporary until then. */
typedef struct {
    char *path;
    dms_temporary temporary; /* fd -1 when closed */
} dms_outfile;

/* No file yet: what abort may be called on. */
#define DMS_OUTFILE_NONE ((dms_outfile){.temporary = {.fd = -1}})

dms_status dms_outfile_open(dms_outfile *out, const char *path);
/* DMS_ERR_IO names the file and the reason ("No space left on device"). */
dms_status dms_outfile_write(dms_outfile *f, const void *bytes, size_t n);
/* fsync, rename, close, fsync of the folder. On failure the temporary is removed; in both cases
 * `f` is closed. */
dms_status dms_outfile_commit(dms_outfile *f);
/* Removes the temporary. Legal after commit, and on DMS_OUTFILE_NONE. */
void dms_outfile_abort(dms_outfile *f);
/* All of it at once. */
dms_status dms_file_write(const char *path, const void *bytes, size_t n);

DMS_END_C
#endif
