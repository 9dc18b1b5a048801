/* Running a model over the freed cache: prefill in chunks, decode in batches of sequences. */
#ifndef DMS_SESSION_H
#define DMS_SESSION_H

#include "infer/cache.h"
#include "infer/late.h"
#include "model/transformer.h"

typedef struct dms_session dms_session;

typedef struct {
    const dms_model *model; /* borrowed */
    int64_t context;        /* the longest text of a sequence, in tokens */
    int64_t chunk;          /* the most tokens of one pass of prefill; 0: 256 */
    int max_sequences;
    dms_dtype kv_dtype; /* f32 or bf16 */
    bool dense;         /* evict nothing; a model without gate is always run so */
    int page_slots;     /* as in dms_cache_options; 0: its default */
    size_t slab_bytes;
} dms_session_options;

/* The caller ends it with dms_session_close. DMS_ERR_ARG where the context exceeds the positions
 * that the model was opened for. */
dms_status dms_session_open(dms_session **out, const dms_session_options *options);
void dms_session_close(dms_session *session);

/* Sequences are admitted to and released from the session's cache. */
dms_cache *dms_session_cache(dms_session *session);

/* Runs n >= 1 more tokens of a sequence, `chunk` at a time (0: the session's chunk, which is also
 * the most). logits: [V], host memory, of the last token; NULL: not wanted. The result does not
 * depend on the chunks beyond rounding. DMS_ERR_ARG, with nothing changed, where a token is not in
 * the vocabulary or the context would be exceeded; after any other failure the sequence can only be
 * released. */
dms_status dms_session_prefill(dms_session *session, float *logits, int sequence,
                               const int32_t *tokens, int64_t n, int64_t chunk);

/* Runs one more token of each of n different sequences, of any lengths. logits: [n, V], host
 * memory. Errors as above. Allocates only pages. */
dms_status dms_session_decode(dms_session *session, float *logits, const int32_t *sequences,
                              const int32_t *tokens, int n);

/* Context of dms_attend_cached. */
typedef struct {
    dms_cache *cache;
    const int32_t *sequences;   /* [B], host */
    const dms_paged_rows *rows; /* the same on the device, with positions; layer is ignored */
    bool dense;                 /* z is ignored */
    const dms_late *late;       /* where a decision governs its own token; else NULL */
} dms_cached_context;
/* The attention step over the cache: enters k and v, attends, and after chunks of several tokens
 * drops what has expired. On a tape that does not record. */
dms_var *dms_attend_cached(const dms_pass *pass, int layer, dms_var *const qkv[3], dms_var *z);

#endif
