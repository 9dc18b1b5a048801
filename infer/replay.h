/* Decode steps recorded once for each number of sequences and replayed, where the device has
 * graphs: one launch a step instead of some twenty a layer. */
#ifndef DMS_REPLAY_H
#define DMS_REPLAY_H

#include "kernels/ops.h"

typedef struct dms_replay dms_replay;

/* For steps of 1 to max_sequences sequences. The caller ends it with close, where NULL is legal,
 * before it closes the device. DMS_ERR_NOMEM.
 */
dms_status dms_replay_open(dms_replay **out, dms_device *device, int max_sequences);
void dms_replay_close(dms_replay *replay);

/* Does what step(context) does: queues one step over n sequences that works on fixed addresses and
 * on `cache`, all that changes between steps lying in device memory. The first time it is run, the
 * second time recorded, then replayed, until memory it works on has moved. `context` is used in
 * this call alone. Errors: those of step; DMS_ERR_ARG where n is out of range; DMS_ERR_DEVICE. */
dms_status dms_replay_run(dms_replay *replay, int n, const dms_paged *cache,
                          dms_status (*step)(void *context), void *context);

#endif
