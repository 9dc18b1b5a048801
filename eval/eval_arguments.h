/* What the command line of dms-eval says. */
#ifndef DMS_EVAL_ARGUMENTS_H
#define DMS_EVAL_ARGUMENTS_H

#include "eval/runner.h"

typedef struct {
    const char *model, *teacher, *policy_list, *device, *log;
    const char *output, *shots; /* of convert */
    dms_compute compute;
    dms_task_spec spec;
    int64_t decode, threads, shift, n_shots; /* shift: -1 where not said */
    bool json;
} dms_eval_arguments;

#endif
