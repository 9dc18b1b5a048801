/* JSON Lines: a file of one JSON object a line, each a document or a conversation. */
#ifndef DMS_JSONL_H
#define DMS_JSONL_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <zlib.h>

#include "data/message.h"
#include "kernels/status.h"

DMS_BEGIN_C

typedef struct dms_jsonl dms_jsonl;

/* By its name: *.jsonl, *.ndjson, or one of them with .gz behind it; in capitals too. */
bool dms_jsonl_recognise(const char *path);

/* Reads from `file`, which is borrowed; `path` names it in messages and is borrowed too.
 * Errors: DMS_ERR_NOMEM. */
dms_status dms_jsonl_open(dms_jsonl **out, gzFile file, const char *path);
/* NULL is legal. The file stays open. */
void dms_jsonl_close(dms_jsonl *j);

/* Moves to the next line that is not empty: {"text": TEXT}, or {"messages": [{"role": "system",
 * "user" or "assistant", "content": TEXT, "reasoning_content": TEXT or absent}, ...]}; other keys
 * are passed over, but for tool_calls. *found = false after the last line. Errors: DMS_ERR_FORMAT
 * with file, line, what was found and expected, also for a line past 8 MiB or a damaged gzip file;
 * DMS_ERR_IO; DMS_ERR_NOMEM. */
dms_status dms_jsonl_next(dms_jsonl *j, bool *found);
/* The same for lines that hold any object, which belongs to j until the next call; *object = NULL
 * after the last line. */
dms_status dms_jsonl_next_object(dms_jsonl *j, const json_t **object);
/* Takes lines of up to so many MiB, 1 to 1024, instead of 8. */
void dms_jsonl_limit(dms_jsonl *j, int mebibytes);
/* Of the line in hand: its number, from 1. */
long long dms_jsonl_line(const dms_jsonl *j);
/* Its text, or NULL for a conversation; it may hold 0. */
const char *dms_jsonl_text(const dms_jsonl *j, size_t *n);
/* Its messages, or NULL for a text. */
const dms_message *dms_jsonl_messages(const dms_jsonl *j, size_t *n);

/* What zlib says went wrong with reading `path`. */
dms_status dms_gzip_failed(gzFile file, const char *path);

DMS_END_C
#endif
