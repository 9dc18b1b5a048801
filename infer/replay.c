#include "infer/replay.h"

#include <stdlib.h>

/* What a recorded step was given: it is stale when any of this has changed. */
typedef struct {
    dms_graph *graph;
    uint64_t generation;
    const void *free_pages; /* how many there are, kernels read on the device */
    bool ran;               /* once: everything it needs is allocated */
} recorded;

struct dms_replay {
    dms_device *device;
    int max_sequences;
    recorded *steps; /* [max_sequences] */
};

dms_status dms_replay_open(dms_replay **out, dms_device *device, int max_sequences)
{
    dms_replay *r = calloc(1, sizeof(*r));
    recorded *steps = calloc((size_t)max_sequences, sizeof(*steps));
    if (!r || !steps) {
        free(r);
        free(steps);
        return dms_fail(DMS_ERR_NOMEM, "no memory for steps of %d sequences", max_sequences);
    }
    *r = (dms_replay){device, max_sequences, steps};
    *out = r;
    return DMS_OK;
}

void dms_replay_close(dms_replay *replay)
{
    if (!replay)
        return;
    for (int i = 0; replay->device->forget && i < replay->max_sequences; i++)
        replay->device->forget(replay->device, replay->steps[i].graph);
    free(replay->steps);
    free(replay);
}

static bool is_current(const recorded *r, const dms_device *dev, const dms_paged *cache)
{
    return r->graph && r->generation == dev->generation && r->free_pages == cache->free_pages;
}

static dms_status record(recorded *r, dms_device *dev, const dms_paged *cache,
                         dms_status (*step)(void *context), void *context)
{
    dev->forget(dev, r->graph);
    r->graph = NULL;
    DMS_TRY(dev->record(dev));
    const dms_status status = step(context);
    if (status) {
        dev->recorded(dev, NULL); /* the step's own failure is the one to report */
        return status;
    }
    DMS_TRY(dev->recorded(dev, &r->graph));
    r->generation = dev->generation;
    r->free_pages = cache->free_pages;
    return DMS_OK;
}

dms_status dms_replay_run(dms_replay *replay, int n, const dms_paged *cache,
                          dms_status (*step)(void *context), void *context)
{
    dms_device *dev = replay->device;
    if (n < 1 || n > replay->max_sequences)
        return dms_fail(DMS_ERR_ARG, "a step of %d sequences, expected 1 to %d", n,
                        replay->max_sequences);
    recorded *r = &replay->steps[n - 1];
    if (!dev->record || !r->ran || (!r->graph && r->generation != dev->generation)) {
        DMS_TRY(step(context));
        r->ran = true;
        r->generation = dev->generation;
        return DMS_OK;
    }
    if (!is_current(r, dev, cache))
        DMS_TRY(record(r, dev, cache, step, context));
    return dev->replay(dev, r->graph);
}
