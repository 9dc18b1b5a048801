/* Text cut into contexts of one length, in order: what perplexity and divergence are scored on. */
#ifndef DMS_CONTEXTS_H
#define DMS_CONTEXTS_H

#include "eval/score.h"
#include "infer/stream.h"

typedef struct {
    const char *const *paths; /* [n_paths], as dms_stream_options */
    int n_paths;
    dms_tokenizer *tokenizer;
    const dms_config *config;   /* its end-of-text is put between documents */
    int64_t context, sequences; /* T; the most contexts, 0: all there are */
    int64_t beyond; /* tokens that are read after the last context, where there are any */
} dms_contexts_options;

typedef struct {
    dms_tokens stream;
    int64_t context, sequences; /* T; contexts there are, at most those asked for */
    bool foreign;               /* a shard was made with another tokenizer file */
} dms_contexts;

/* The caller ends it with dms_contexts_close. Errors: those of dms_stream_read; DMS_ERR_ARG for a
 * text shorter than one context. */
dms_status dms_contexts_open(dms_contexts *out, const dms_contexts_options *options);
void dms_contexts_close(dms_contexts *c);

/* For scorers: all contexts. Borrows c; progress may be NULL. */
dms_score_feed dms_contexts_feed(dms_contexts *c);

/* Size of the text that is predicted from position `from` of each context on: bytes, and words as
 * runs of bytes above space. What follows an end-of-text is not in it. DMS_ERR_NOMEM, and what the
 * tokenizer refuses. */
dms_status dms_contexts_measure(double *bytes, double *words, const dms_contexts *c,
                                dms_tokenizer *tokenizer, const dms_config *config, int64_t from);

#endif
