/* The log of a training run, metrics.jsonl, read back: steps and evaluations. */
#ifndef DMS_RUN_LOG_H
#define DMS_RUN_LOG_H

#include <jansson.h>
#include <stdint.h>

#include "kernels/status.h"

/* index, key: the numbers of a step's line that reports use, in the order in which they show. */
#define DMS_RUN_FIELDS(X)     \
    X(LOSS, "loss")           \
    X(KL, "kl")               \
    X(COMPRESS, "compress")   \
    X(TARGET, "target")       \
    X(EVICTED, "evicted")     \
    X(TARGET_CR, "target_cr") \
    X(CR, "cr")               \
    X(KEEP, "keep")           \
    X(LR, "lr")               \
    X(GRAD_NORM, "grad_norm") \
    X(TOKENS, "tokens")       \
    X(SECONDS, "seconds")

enum {
#define X(name, key) DMS_RUN_##name,
    DMS_RUN_FIELDS(X)
#undef X
        DMS_RUN_N_FIELDS
};

typedef struct {
    int64_t step;
    double values[DMS_RUN_N_FIELDS]; /* NaN: null or absent */
} dms_run_step;

typedef struct {
    int64_t step;
    json_t *values; /* the object behind "eval", or the whole line of a task; owned by the log */
} dms_run_eval;

typedef struct {
    dms_run_step *steps; /* ascending, each once */
    int64_t n_steps;
    dms_run_eval *evals; /* ascending by step, each once */
    int64_t n_evals;
    dms_run_eval *tasks; /* ascending by step, each of its tasks once */
    int64_t n_tasks;
    int64_t skipped; /* lines that are no JSON object with a step, the last one apart */
} dms_run_log;

/* The keys, DMS_RUN_N_FIELDS of them. */
extern const char *const dms_run_field_names[];

/* A last line that is cut off is what a killed run leaves, and passed over. A step that comes again
 * replaces that step and all behind it: the run went back to a checkpoint; an evaluation or a task
 * that comes again at its step replaces the one before. The caller ends it with dms_run_log_close.
 * DMS_ERR_IO; DMS_ERR_FORMAT: none of these in it; DMS_ERR_NOMEM. */
dms_status dms_run_log_read(dms_run_log *out, const char *path);
void dms_run_log_close(dms_run_log *log);

#endif
