/* SnapKV (Li et al. 2024, arXiv 2404.14469): the prompt is cut once, to its last `observed` tokens
 * and those of the others to which these queries attended most, pooled with their neighbours. What
 * follows is kept. A group's heads are added up, which ranks as their mean does. */
#include "infer/policy_run.h"

enum { POOL = 5 };

static dms_status weigh(dms_policy_run *run, const dms_policy_step *step)
{
    const dms_paged_weights w = {.from = step->end - run->policy.observed, .add = true};
    if (!step->rows->prefill || step->begin || step->last < w.from)
        return DMS_OK;
    return dms_paged_weigh(step->cache, step->rows, step->q, &w);
}

static dms_status evict(dms_policy_run *run, const dms_policy_step *step)
{
    if (!dms_policy_ends(step) || step->begin)
        return DMS_OK;
    DMS_TRY(dms_paged_pool(step->cache, step->rows, POOL, run->policy.observed));
    return dms_policy_keep(run, step, 0, true);
}

const dms_policy_hooks dms_policy_snapkv_hooks = {
    .weigh = weigh, .evict = evict, .scored = true, .ranked = true};
