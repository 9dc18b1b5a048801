/* Policies that are decisions under the law of visibility: the model's own, none, all, random. */
#include "infer/policy_run.h"

static float decide(const dms_policy_run *run, int64_t sequence, int64_t head, int64_t t,
                    bool prefill)
{
    (void)prefill;
    return dms_policy_decision(&run->policy, run->seed, sequence, head, t);
}

/* The decisions come from the model, or there are none. */
const dms_policy_hooks dms_policy_law_hooks = {.evict = dms_policy_evict_expired};

const dms_policy_hooks dms_policy_decided_hooks = {.decide = decide,
                                                   .evict = dms_policy_evict_expired};
