/* Files and folders that are not finished yet: under names that nobody else's file can have. */
#ifndef DMS_TEMPORARY_H
#define DMS_TEMPORARY_H

#include <stdbool.h>

#include "kernels/status.h"

DMS_BEGIN_C

/* TARGET.dms-XXXXXXXX.tmp, X random hexadecimal digits. */
typedef struct {
    int fd;     /* open, and locked against removal by others; -1: none */
    char *path; /* the caller frees it */
} dms_temporary;

/* Creates an empty file (open for reading and writing) or folder beside TARGET, never over what is
 * there. First it removes those in the same folder that killed processes left: of such a name, and
 * locked by nobody. DMS_ERR_IO (no such folder, no permission), DMS_ERR_NOMEM. */
dms_status dms_temporary_create(dms_temporary *out, const char *target, bool folder);
/* Removes the file, or the folder with the files in it. Legal on {-1, NULL}. */
void dms_temporary_abort(dms_temporary *t);
/* Leaves it in place (renamed by then) and releases the lock. */
void dms_temporary_close(dms_temporary *t);

/* A free name TARGET.dms-XXXXXXXX.old, on the heap; NULL without memory. */
char *dms_aside_name(const char *target);
/* The path of such a name that exists, on the heap, or NULL. DMS_ERR_NOMEM. */
dms_status dms_aside_find(char **out, const char *target);

DMS_END_C
#endif
