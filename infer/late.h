/* Decisions handed on one token late: how a model of the other convention runs under the law. */
#ifndef DMS_LATE_H
#define DMS_LATE_H

#include "kernels/ops.h"

/* The law lets the decision made at token t govern token t - 1; a gate with `own` (FastDMS) lets it
 * govern t itself. Both ask for it only once its token has left the window, at t + 1 or later. So
 * what the law's cache is given at token t is the decision of token t - 1, and everything behind it
 * stays as it is. This remembers the last decision of each (layer, sequence, KV head). */
typedef struct dms_late dms_late;

typedef struct {
    dms_device *device;
    int layers, sequences, groups; /* L, S, G */
    int64_t rows;                  /* the most tokens of one pass */
} dms_late_options;

/* The caller ends it with dms_late_close. */
dms_status dms_late_open(dms_late **out, const dms_late_options *options);
void dms_late_close(dms_late *late);

/* Sequence `to` was forked from `from`: their last tokens are the same. */
dms_status dms_late_fork(const dms_late *late, int from, int to);

/* out becomes a view [n, G, T], valid until the next call: above 0 where the token before decided
 * to evict. z: [n, G, T] of the layer rows->layer. sequences: the same as rows->sequences, host;
 * read only where T > 1, so that steps of one token can be recorded. */
dms_status dms_late_hand_on(dms_tensor *out, const dms_late *late, const dms_paged_rows *rows,
                            const int32_t *sequences, const dms_tensor *z);

#endif
