/* A stream of token ids made of text files and token shards. */
#ifndef DMS_STREAM_H
#define DMS_STREAM_H

#include "data/tokenizer.h"

typedef struct {
    const char *const
        *paths; /* [n_paths]: token shards, text (plain, gzip, JSON Lines) or folders */
    int n_paths;
    dms_tokenizer *tokenizer; /* for text, and to recognise foreign shards; NULL: shards only */
    int32_t end_of_text;      /* put after each document of text; -1: nothing */
    int64_t limit;            /* ids wanted at most; 0: all */
} dms_stream_options;

/* Appends the ids of all paths in their order, as dms-tokenize makes them: special tokens in the
 * text recognised, nothing put before a document. *foreign (may be NULL): a shard was made with
 * another tokenizer file. Errors: those of the readers; DMS_ERR_ARG for text without a tokenizer.
 */
dms_status dms_stream_read(dms_tokens *out, bool *foreign, const dms_stream_options *options);

#endif
