/* The page of a comparison of policies: quality against reads and against peak, a table a task. */
#ifndef DMS_REPORT_PARETO_H
#define DMS_REPORT_PARETO_H

#include "kernels/status.h"

/* Reads the lines of `results` (eval/result.h) and writes `out`, one HTML file. Lines of one task,
 * with the same settings and seed, share two figures and a table. Figures show the first metric
 * with its standard error against total_read_ratio and against peak_ratio: a curve for all policies
 * whose names agree up to the first ':', so one through all models of "dms", each in order of its
 * x; dense is a dotted line. A value that is null or missing has no point, and a dash in the table.
 * Of lines that agree in policy and model too, the last counts. config: the resolved
 * configuration, may be NULL; command: what made the results, may be NULL.
 * DMS_ERR_IO; DMS_ERR_FORMAT where the file has no result; DMS_ERR_NOMEM. */
dms_status dms_report_pareto(const char *results, const char *config, const char *command,
                             const char *out);

#endif
