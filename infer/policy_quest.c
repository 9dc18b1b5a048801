/* Quest (Tang et al. 2024, arXiv 2406.10774): all is kept; a step reads the pages whose keys can
 * give the greatest product with its query, and the newest one. The first layers read all. */
#include "infer/policy_run.h"

enum { DENSE_LAYERS = 2, PAGE = 16 };

static dms_status enter(dms_policy_run *run, const dms_policy_step *step)
{
    (void)run;
    return step->rows->layer < DENSE_LAYERS ? DMS_OK : dms_paged_bound(step->cache, step->rows);
}

static dms_status choose(dms_policy_run *run, const dms_policy_step *step, const dms_paged **read)
{
    if (step->rows->prefill || step->rows->layer < DENSE_LAYERS)
        return DMS_OK;
    run->chosen = *step->cache;
    run->chosen.unit_list = run->list.data;
    run->chosen.live = run->live.data;
    *read = &run->chosen;
    return dms_paged_choose(&run->chosen, step->cache, step->rows, step->q,
                            (int)(run->policy.size / PAGE));
}

const dms_policy_hooks dms_policy_quest_hooks = {.enter = enter, .select = choose, .bounded = true};
