/* TOVA (Oren et al. 2024, arXiv 2401.06104): of all tokens, the newest among them, those stay that
 * the last query attends to most, on the mean over the layer's query heads. No sink, no window. */
#include "infer/policy_run.h"

/* Where the newest token was marked, the next one takes its slot. A chunk of a later prompt does
 * not: the slot goes before attention, or a single token at that prompt's end would read it. */
static dms_status enter(dms_policy_run *run, const dms_policy_step *step)
{
    const int64_t tokens = dms_cols(step->rows->positions);
    (void)run;
    if (tokens == 1 || !step->begin || step->last - tokens + 1 != step->begin)
        return DMS_OK;
    return dms_paged_compact(step->cache, step->rows);
}

static dms_status weigh(dms_policy_run *run, const dms_policy_step *step)
{
    (void)run;
    const bool prefill = step->rows->prefill;
    const dms_paged_weights w = {.from = prefill ? step->end - 1 : 0, .across = true};
    if (prefill && !dms_policy_ends(step))
        return DMS_OK;
    return dms_paged_weigh(step->cache, step->rows, step->q, &w);
}

static dms_status evict(dms_policy_run *run, const dms_policy_step *step)
{
    if (step->rows->prefill && !dms_policy_ends(step))
        return DMS_OK;
    return dms_policy_keep(run, step, 0, true);
}

const dms_policy_hooks dms_policy_tova_hooks = {
    .enter = enter, .weigh = weigh, .evict = evict, .scored = true, .ranked = true};
