/* Choosing the next token from logits: temperature, top-k, top-p, min-p, repeatable by seed. */
#ifndef DMS_SAMPLER_H
#define DMS_SAMPLER_H

#include <stdint.h>

#include "kernels/status.h"

typedef struct dms_sampler dms_sampler;

/* Filters apply in this order (that of Hugging Face's generate): logits are divided by the
 * temperature; the top_k most probable tokens stay; of these, renormalised, the fewest whose
 * probabilities reach top_p; of these, those with at least min_p times the largest probability. The
 * most probable token always stays. Equal logits: the lower token id comes first. */
typedef struct {
    float temperature; /* 0: always the most probable token, the rest is ignored */
    int64_t top_k;     /* 0: all */
    float top_p;       /* in (0, 1]; 1: all */
    float min_p;       /* in [0, 1); 0: all */
    uint64_t seed;
} dms_sampler_options;

/* Temperature 0, no filters, seed 0. */
dms_sampler_options dms_sampler_defaults(void);

/* The caller ends it with dms_sampler_close. DMS_ERR_ARG names an option out of range. */
dms_status dms_sampler_open(dms_sampler **out, const dms_sampler_options *options, int64_t vocab);
void dms_sampler_close(dms_sampler *sampler);

/* The token after `position` tokens of text `stream`: the draw depends on seed, stream and position
 * alone (Philox), so neighbours in a batch do not matter. logits: [V]; a NaN counts as -infinity.
 * DMS_ERR_ARG where no logit is finite. */
dms_status dms_sampler_pick(dms_sampler *sampler, int32_t *token, const float *logits,
                            uint32_t stream, int64_t position);

#endif
