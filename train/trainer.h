/* A training run: opens everything a recipe names, steps, evaluates, saves, resumes. */
#ifndef DMS_TRAINER_H
#define DMS_TRAINER_H

#include "data/loader.h"
#include "train/objective.h"
#include "train/optimizer.h"
#include "train/recipe.h"

typedef struct dms_trainer dms_trainer;

/* What one optimiser step did. */
typedef struct {
    int64_t step; /* 0 for the first */
    dms_stage stage;
    dms_losses losses;
    double loss;      /* kl + lambda*compress */
    double grad_norm; /* before clipping */
    double seconds;
    int64_t tokens;
} dms_step_report;

/* Held-out quality, hard decisions without noise. */
typedef struct {
    double nll, nll_teacher, kl_forward, kl_reverse, agreement;
    double decision_cr, cache_cr, read_ratio;
    int64_t positions;
} dms_eval_report;

enum { DMS_MAX_TASK_SCORES = 6 };

/* What a task of recipe.eval measured on the student, under its own decisions over the freed cache;
 * ratios are to a dense cache. */
typedef struct {
    struct {
        const char *name; /* a constant */
        double value, error;
    } scores[DMS_MAX_TASK_SCORES]; /* the first is the task's */
    int n_scores;
    int64_t items; /* contexts or items */
    double read_ratio, peak_ratio, seconds;
} dms_task_report;

/* What a program binds to a run; every function may be NULL. */
typedef struct {
    void *context;
    void (*on_step)(void *context, const dms_trainer *t, const dms_step_report *report);
    void (*on_eval)(void *context, int64_t step, const dms_eval_report *report);
    void (*on_save)(void *context, int64_t step, const char *path);
    /* Scores the student on the held-out shard. */
    dms_status (*evaluate)(void *context, const dms_trainer *t, dms_eval_report *out);
    /* Runs recipe.eval.task[task]. */
    dms_status (*run_task)(void *context, const dms_trainer *t, int task, dms_task_report *out);
    void (*on_task)(void *context, int64_t step, const dms_eval_task *task,
                    const dms_task_report *report);
    bool (*interrupted)(void *context); /* asked after each step */
} dms_trainer_hooks;

/* What a run takes from its device, taken in one allocation where the device can do so. */
typedef struct {
    size_t bytes, workspace_bytes;
} dms_trainer_memory;

/* Opens device, models, data and run folder, and resumes from the folder's latest checkpoint if
 * there is one. memory: from a plan, or zeros; NULL is a dry run: names, shapes and sizes are
 * checked on a device that only counts (dms_device_dry), no weight is read, nothing is written.
 * Errors: whatever the recipe's files can cause, each with its remedy. The recipe is copied. */
dms_status dms_trainer_open(dms_trainer **out, const dms_recipe *recipe,
                            const dms_trainer_memory *memory);
void dms_trainer_close(dms_trainer *t);

/* In a dry run: one micro-batch of either stage and one update, for the device to count. */
dms_status dms_trainer_rehearse(dms_trainer *t);

/* Runs to the last step, saves there, evaluates. DMS_ERR_INTERRUPTED after a save when
 * hooks->interrupted said so. A non-finite loss or gradient stops the run before anything is
 * updated or overwritten (DMS_ERR_NUMBER). */
dms_status dms_trainer_run(dms_trainer *t, const dms_trainer_hooks *hooks);

/* Whether shards (already open) were made for this model: vocabulary, and the CRC-32 of the
 * tokenizer.json (0 in a shard: not known). DMS_ERR_ARG names `shard` and the remedy. */
dms_status dms_trainer_check_shard(const dms_trainer *t, const dms_loader *loader,
                                   const char *shard);

/* What is inside, borrowed. */
const dms_recipe *dms_trainer_recipe(const dms_trainer *t);
const dms_model *dms_trainer_student(const dms_trainer *t);
const dms_model *dms_trainer_teacher(const dms_trainer *t);
dms_device *dms_trainer_device(const dms_trainer *t);
int64_t dms_trainer_step(const dms_trainer *t); /* the next one to run */
/* Whether the checkpoint that the run goes on from was computed on another device or in another
 * arithmetic: from there to here, as "cuda in bf16", "cpu in f32". False where it does not say. */
bool dms_trainer_moved(const dms_trainer *t, const char **from, const char **to);
/* Whether that checkpoint's run read other shards (data.train): from which to which, for a message.
 * False where it does not say. */
bool dms_trainer_data_moved(const dms_trainer *t, const char **from, const char **to);
/* What the user should know of the training shards (dms_loader_notice), or NULL. */
const char *dms_trainer_notice(const dms_trainer *t);
size_t dms_trainer_optimizer_bytes(const dms_trainer *t);
size_t dms_trainer_activation_bytes(const dms_trainer *t);

/* The device that a recipe names; the caller closes it. */
dms_status dms_trainer_open_device(dms_device **out, const dms_recipe *recipe);

/* Sizes for --check, in bytes and elements. */
typedef struct {
    int64_t n_weights, n_trained, tokens_a_step;
    size_t weight_bytes, optimizer_bytes, activation_bytes, checkpoint_bytes;
    size_t evaluation_bytes;   /* of held-out scoring */
    size_t task_cache_bytes;   /* not in `memory`: the largest cache of a task of recipe.eval, and
                                  0 from dms_trainer_plan_of: the caller knows the tasks */
    dms_trainer_memory memory; /* all of the above but checkpoints, on the device */
    size_t free_bytes;         /* that the device has; 0: not known */
    double flops_a_step;       /* the cost model of performance.md; attention by causal keys */
    dms_dtype compute;
    int64_t width, ffn; /* D and F of the model */
} dms_trainer_plan;
/* Of a dry run that was rehearsed. evaluation_bytes: what the caller opened on its device. */
dms_trainer_plan dms_trainer_plan_of(const dms_trainer *t, size_t evaluation_bytes);
/* DMS_ERR_NOMEM, with what to lower, where the device has less than the plan takes. */
dms_status dms_trainer_plan_fits(const dms_trainer_plan *plan, const dms_recipe *recipe);
/* FLOP a second of products with the model's MLP matrices on the recipe's device, measured for a
 * moment. */
dms_status dms_trainer_gemm_rate(double *flops_a_second, const dms_trainer_plan *plan,
                                 const dms_recipe *recipe);

#endif
