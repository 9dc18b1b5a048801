/* Scores text under policies of the law in masked passes, and prints the table; with --decode also
 * runs the first context over the freed cache. */
#ifndef DMS_EVAL_MASKED_H
#define DMS_EVAL_MASKED_H

#include "eval/eval_arguments.h"
#include "eval/pair.h"

/* To standard output. Errors: those of reading, scoring and printing. */
dms_status dms_eval_masked(const dms_eval_arguments *args, const dms_pair *pair,
                           const dms_policy *policies, int n_policies);

#endif
