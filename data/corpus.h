/* The documents of a path: plain or gzip text or JSON Lines, one file or a folder of files, read in
 * pieces. */
#ifndef DMS_CORPUS_H
#define DMS_CORPUS_H

#include <stddef.h>

#include "data/message.h"
#include "kernels/status.h"

DMS_BEGIN_C

typedef struct dms_corpus dms_corpus;

/* A file is one document, or, of JSON Lines (data/jsonl.h), one document a line. A folder is the
 * regular files in it (not in folders below it, not those whose name begins with a dot), in byte
 * order of their names. Errors: DMS_ERR_IO (missing, unreadable), DMS_ERR_ARG (a folder without
 * files), DMS_ERR_NOMEM. */
dms_status dms_corpus_open(dms_corpus **out, const char *path);
/* NULL is legal. */
void dms_corpus_close(dms_corpus *c);

/* Moves to the next document; *name is its path ("PATH, line N" for a line), owned by the corpus
 * until the next call, or NULL after the last. Errors: DMS_ERR_IO, DMS_ERR_ARG (a token shard),
 * DMS_ERR_FORMAT (no text, by its first bytes; junk behind the gzip file before, which was read to
 * its end), those of dms_jsonl_next. */
dms_status dms_corpus_next(dms_corpus *c, const char **name);
/* The messages of a document that is a conversation, until the next call; NULL for a text. */
const dms_message *dms_corpus_messages(const dms_corpus *c, size_t *n);
/* Reads the next *n <= capacity bytes of the document's text; 0 at its end. A file that begins with
 * the magic of gzip is unpacked, so nothing but `capacity` bounds the memory a document takes.
 * Errors: DMS_ERR_IO, DMS_ERR_FORMAT (a gzip file that is truncated or corrupt). */
dms_status dms_corpus_read(dms_corpus *c, char *out, size_t capacity, size_t *n);

DMS_END_C
#endif
