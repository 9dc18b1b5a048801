/* H2O (Zhang et al. 2023, arXiv 2306.14048): the last tokens, and of the others those that received
 * most attention from all queries so far. The R query heads of a group are added up. */
#include "infer/policy_run.h"

static dms_status weigh(dms_policy_run *run, const dms_policy_step *step)
{
    (void)run;
    const dms_paged_weights w = {.add = true};
    return dms_paged_weigh(step->cache, step->rows, step->q, &w);
}

static dms_status evict(dms_policy_run *run, const dms_policy_step *step)
{
    if (step->rows->prefill && !dms_policy_ends(step))
        return DMS_OK;
    return dms_policy_keep(run, step, 0, true);
}

const dms_policy_hooks dms_policy_h2o_hooks = {
    .weigh = weigh, .evict = evict, .scored = true, .ranked = true};
