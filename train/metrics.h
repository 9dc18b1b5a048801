/* The log of a run: metrics.jsonl, one JSON object a line. */
#ifndef DMS_METRICS_H
#define DMS_METRICS_H

#include "train/trainer.h"

typedef struct dms_metrics dms_metrics;

/* Opens FOLDER/metrics.jsonl to append; lines of steps from `step` on (written before the run was
 * cut off, about to be run again) are dropped first, as are lines that are cut off. DMS_ERR_IO. */
dms_status dms_metrics_open(dms_metrics **out, const char *folder, int64_t step);
void dms_metrics_close(dms_metrics *m);
/* Whether the log, when it was opened, had an evaluation of `step`. */
bool dms_metrics_evaluated(const dms_metrics *m, int64_t step);
/* Whether it had a line of that task after that step, which is the last of which it has any. */
bool dms_metrics_has_task(const dms_metrics *m, int64_t step, const char *name);
/* One line each, flushed: a killed run loses none that was written. DMS_ERR_IO: disk full. */
dms_status dms_metrics_step(dms_metrics *m, const dms_step_report *report, double lr);
dms_status dms_metrics_eval(dms_metrics *m, int64_t step, const dms_eval_report *report);
dms_status dms_metrics_task(dms_metrics *m, int64_t step, const char *name,
                            const dms_task_report *report);
/* The same line to any stream: {"step", "task": name, "metrics": {name: {"value", "error"}},
 * "items", "read_ratio", "peak_ratio", "seconds"}; what is not finite is null. DMS_ERR_NOMEM; the
 * stream keeps errors of writing. */
dms_status dms_task_report_print(FILE *out, int64_t step, const char *name,
                                 const dms_task_report *report);

#endif
