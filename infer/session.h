/* Running a model over the freed cache: prefill in chunks, decode in batches of sequences. */
#ifndef DMS_SESSION_H
#define DMS_SESSION_H

#include "infer/late.h"
#include "infer/policy_run.h"
#include "model/transformer.h"

typedef struct dms_session dms_session;

typedef struct {
    const dms_model *model; /* borrowed */
    int64_t context;        /* the longest text of a sequence, in tokens */
    int64_t chunk;          /* the most tokens of one pass of prefill; 0: 256 */
    int max_sequences;
    dms_dtype kv_dtype;       /* f32 or bf16 */
    const dms_policy *policy; /* copied; NULL: the model's own, dense for a model without gate */
    uint64_t seed;            /* of a random policy */
    int page_slots;           /* as in dms_cache_options; 0: its default */
    size_t slab_bytes;
} dms_session_options;

/* The caller ends it with dms_session_close. DMS_ERR_ARG where the context exceeds the positions
 * that the model was opened for. */
dms_status dms_session_open(dms_session **out, const dms_session_options *options);
void dms_session_close(dms_session *session);

/* The longest text of a sequence, in tokens. */
int64_t dms_session_context(const dms_session *session);

/* Sequences are admitted to and released from the session's cache. */
dms_cache *dms_session_cache(dms_session *session);

/* Runs n >= 1 more tokens of a sequence, `chunk` at a time (0: the session's chunk, which is also
 * the most). logits: [V], host memory, of the last token; NULL: not wanted. The result does not
 * depend on the chunks beyond rounding (of StreamingLLM it does: a chunk sees all that is cached).
 * DMS_ERR_ARG, with nothing changed, where a token is not in the vocabulary or the context would be
 * exceeded; after any other failure the sequence can only be released. */
dms_status dms_session_prefill(dms_session *session, float *logits, int sequence,
                               const int32_t *tokens, int64_t n, int64_t chunk);

/* A new sequence of the cache that goes on where `from` is, to the bit as if it had been fed the
 * same; only the decisions to come of a random policy are its own. It shares pages where the policy
 * leaves them as they are (dms_cache_fork). Errors: those of dms_cache_fork; then there is no new
 * sequence. */
dms_status dms_session_fork(dms_session *session, int from, int *sequence);

/* Runs one more token of each of n different sequences, of any lengths. logits: [n, V], host
 * memory. Errors as above. Allocates only pages. */
dms_status dms_session_decode(dms_session *session, float *logits, const int32_t *sequences,
                              const int32_t *tokens, int n);

/* As decode, but hands out the states that the head would read: hidden becomes [n, D], f32, on the
 * device, valid until the session's next pass. For scoring, which does all heads at once. */
dms_status dms_session_step(dms_session *session, dms_tensor *hidden, const int32_t *sequences,
                            const int32_t *tokens, int n);

/* Device memory beside weights and cache that the policy holds. */
size_t dms_session_policy_bytes(const dms_session *session);

/* Context of dms_attend_cached. */
typedef struct {
    dms_cache *cache;
    const int32_t *sequences;   /* [B], host */
    const dms_paged_rows *rows; /* the same on the device, with positions; layer is ignored */
    dms_policy_run *policy;
    int64_t begin, end, last; /* of a prompt: see dms_policy_step */
    const dms_late *late;     /* where a decision governs its own token; else NULL */
} dms_cached_context;
/* The attention step over the cache, hook by hook: enters k and v, attends, drops what the policy
 * does not keep. On a tape that does not record. */
dms_var *dms_attend_cached(const dms_pass *pass, int layer, dms_var *const qkv[3], dms_var *z);

#endif
