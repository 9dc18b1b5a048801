/* StreamingLLM (Xiao et al. 2023, arXiv 2309.17453): the first `sink` tokens and the last ones.
 *
 * Chunks see all that is cached and their own past, then the cache is cut. In decode the token that
 * leaves gives its slot to the new one, under the law of visibility with a window of what is
 * recent: no step ever holds more than the budget. Re-rotation makes the sinks seem to lie just
 * before the oldest of the recent tokens; among these, distances are true anyway. */
#include "infer/policy_run.h"

static float decide(const dms_policy_run *run, int64_t sequence, int64_t head, int64_t t,
                    bool prefill)
{
    (void)sequence;
    (void)head;
    return !prefill && t - 1 >= run->policy.sink ? 1.0f : -1.0f;
}

static dms_status enter(dms_policy_run *run, const dms_policy_step *step)
{
    if (!run->kept.rank)
        return DMS_OK;
    return dms_paged_turn(step->cache, step->rows, &run->kept, step->k, &run->model->rope_table);
}

/* At the prompt's end all but the sinks are marked: those in the window then leave one by one. */
static dms_status evict(dms_policy_run *run, const dms_policy_step *step)
{
    if (!step->rows->prefill)
        return DMS_OK;
    const dms_paged_kept kept = {run->policy.sink, dms_policy_ends(step) ? &run->best : &run->last,
                                 NULL};
    DMS_TRY(dms_paged_mark(step->cache, step->rows, &kept));
    return dms_paged_compact(step->cache, step->rows);
}

const dms_policy_hooks dms_policy_streaming_hooks = {
    .decide = decide, .enter = enter, .evict = evict, .ranked = true};
