/* Several texts that go on from one prompt, side by side. */
#ifndef DMS_CHAINS_H
#define DMS_CHAINS_H

#include <signal.h>

#include "data/tokenizer.h"
#include "infer/sampler.h"
#include "infer/session.h"

typedef struct {
    dms_text text;       /* owned */
    int64_t tokens;      /* drawn, with the one that ended it */
    bool ended;          /* by such a token, not by `most`, the context or an interrupt */
    int sequence;        /* of the cache; it stays there */
    int32_t last;        /* the token drawn last */
    dms_decoder decoder; /* of the text */
    bool open;           /* goes on */
} dms_chain;

typedef struct {
    dms_session *session; /* with room for n - 1 more sequences; borrowed, as all that follows */
    dms_sampler *sampler; /* chain i draws as stream i */
    const dms_tokenizer *tokenizer;
    int sequence;  /* holds the prompt; becomes the first chain's */
    float *logits; /* [n, V], host, overwritten; the first row is that after the prompt */
    int64_t vocab;
    int64_t most; /* tokens of a chain */
    bool (*ends)(const void *context, int32_t id);
    const void *context;
    const volatile sig_atomic_t *stopped; /* other than 0: no further token */
} dms_chains_options;

/* Runs n >= 1 chains to their ends; chains: [n], zero, which dms_chains_free frees. Errors: those
 * of the session, the sampler and the tokenizer; DMS_ERR_NOMEM. */
dms_status dms_chains_run(dms_chain *chains, int n, const dms_chains_options *options);
void dms_chains_free(dms_chain *chains, int n);

#endif
