/* Tasks that go with a training run: read from the texts of a recipe, checked before it begins, run
 * on weights that somebody else holds and goes on to change. */
#ifndef DMS_TASK_SET_H
#define DMS_TASK_SET_H

#include "checkpoints/source.h"
#include "eval/runner.h"

typedef struct {
    const char *name; /* for messages */
    const char *text; /* a YAML mapping: see eval/task_spec.h */
    const char *also; /* the key that was taken out of it before, or NULL */
} dms_task_text;

typedef struct {
    const dms_task_text *tasks; /* [n] */
    int n;
    const char *model;   /* path: tokenizer and chat template are read from it */
    const char *heldout; /* what tasks of text score that name none; NULL: none */
    /* Of tasks that do not say: contexts and their length, also RULER's; the latter is the most
     * that a task may take, since the models are open for no more. */
    int64_t sequences, context;
    uint64_t seed;
} dms_task_set_options;

typedef struct dms_task_set dms_task_set;

/* Everything is copied. DMS_ERR_ARG names the task, the key and what was expected; errors of
 * opening the model's tokenizer. */
dms_status dms_task_set_open(dms_task_set **out, const dms_task_set_options *options);
/* NULL is legal. */
void dms_task_set_close(dms_task_set *set);

/* Two models of one tokenizer, borrowed. */
typedef struct {
    const dms_model *student, *teacher;
} dms_task_models;

/* Reads what the tasks read, and runs nothing (dms_runner_check). */
dms_status dms_task_set_check(dms_task_set *set, const dms_task_models *models);
/* Bytes of the largest cache that task i can fill: batch x context, nothing evicted. */
double dms_task_set_cache_bytes(const dms_task_set *set, int i, const dms_model *model);
/* Task i under the student's own decisions: metrics, items and cost of *out are filled in; its
 * texts are not. Takes memory beside the models, and gives it back. Errors: those of dms_runner. */
dms_status dms_task_set_run(dms_result *out, dms_task_set *set, int i,
                            const dms_task_models *models);

#endif
