/* What is wrong with a file of text beside what zlib tells: that it is none, or goes on as none. */
#ifndef DMS_PACKED_H
#define DMS_PACKED_H

#include <zlib.h>

#include "kernels/status.h"

DMS_BEGIN_C

/* `file` has just been opened, and stays at its beginning. DMS_ERR_FORMAT for text in UTF-16 or
 * UTF-32 with a byte order mark, archives and data by their first bytes (unpacked ones), with the
 * remedy. A file that is damaged passes: reading it fails. */
dms_status dms_packed_check_start(gzFile file, const char *path);
/* `file` has been read to its end. DMS_ERR_FORMAT where a gzip member is followed by what is none,
 * which zlib passes over; zeros may fill a block. A pipe cannot be looked at again. DMS_ERR_IO;
 * DMS_ERR_NOMEM. */
dms_status dms_packed_check_end(gzFile file, const char *path);

DMS_END_C
#endif
