/* Policies times budgets times tasks, from one YAML file: a line of results each, taken up where an
 * earlier run stopped. */
#ifndef DMS_PARETO_H
#define DMS_PARETO_H

#include "eval/runner.h"

enum { DMS_PARETO_MOST = 256 }; /* policies, and models and tasks */

/* Strings point into the tree. */
typedef struct {
    json_t *tree; /* owned */
    const char *output, *teacher, *device;
    dms_compute compute;
    int64_t threads, shift;
    const char *models[DMS_PARETO_MOST];
    int n_models;
    dms_policy policies[DMS_PARETO_MOST];
    int n_policies;
    dms_task_spec tasks[DMS_PARETO_MOST];
    const json_t *task_trees[DMS_PARETO_MOST]; /* as the file has them: what makes tasks the same */
    const char *task_names[DMS_PARETO_MOST];   /* key "name", else "task" */
    const char **paths;                        /* owned: of all tasks */
    int n_tasks;
} dms_pareto;

/* Keys of the file: models (or model), teacher, policies, tasks, output, device, dtype, threads,
 * seed, dms_shift. A policy is a name ("tova:256") or {name: [budget, ...]}; a task a mapping whose
 * keys are those of dms_task_spec, with `text` for paths of text, `file` for items. The caller ends
 * it with dms_pareto_close. DMS_ERR_ARG names the key and what was expected, or the keys there are.
 */
dms_status dms_pareto_read(dms_pareto *out, const char *path);
void dms_pareto_close(dms_pareto *p);

/* Runs what `output`/results.jsonl does not have yet and appends it there, line by line: policy
 * "dms" on each model, the others on the first model's original. say: one line of progress a
 * result, may be NULL. DMS_ERR_IO, and errors of models, tasks and policies. */
dms_status dms_pareto_run(const dms_pareto *p, dms_device *device,
                          void (*say)(void *context, const char *line), void *context);

#endif
