/* Records of a benchmark's published file: lines of JSON Lines, or rows of CSV as objects of text.
 */
#ifndef DMS_RECORDS_H
#define DMS_RECORDS_H

#include <jansson.h>

#include "kernels/status.h"

typedef struct dms_records dms_records;

/* By the name: *.csv, *.jsonl, *.ndjson, each with .gz or without. A CSV file (RFC 4180, UTF-8) has
 * the names of its columns in the first row; `columns`, NULL-terminated, are those of files without
 * such a row, NULL where there are none. Errors: DMS_ERR_ARG for other names, and for Parquet by
 * its magic, with what to do; DMS_ERR_IO; DMS_ERR_NOMEM. */
dms_status dms_records_open(dms_records **out, const char *path, const char *const *columns);
/* *record belongs to r until the next call; NULL after the last. Errors: DMS_ERR_FORMAT with file
 * and line (a row with too few or many fields, an open quote, more than 8 MiB; what JSON Lines may
 * have wrong), DMS_ERR_IO, DMS_ERR_NOMEM. */
dms_status dms_records_next(dms_records *r, const json_t **record);
/* "PATH, line N" of the record in hand. */
const char *dms_records_where(const dms_records *r);
/* NULL is legal. */
void dms_records_close(dms_records *r);

#endif
