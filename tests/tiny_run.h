/* The fixture's training run on a tiny family: neuron gate, all weights trained, the noise and the
 * token ids of steps_neuron.safetensors. */
#ifndef DMS_TEST_TINY_RUN_H
#define DMS_TEST_TINY_RUN_H

#include "checkpoints/source.h"
#include "tests/rig.h"
#include "train/objective.h"
#include "train/optimizer.h"

typedef struct {
    dms_device *device;
    dms_source *model, *steps;
    dms_model *teacher, *student;
    dms_optimizer optimizer;
    dms_objective *objective;
    int64_t batch, context;
} tiny_run;

typedef struct {
    int batch;      /* which of the fixture's steps gives ids and noise: 0..3 */
    int64_t update; /* 1 for the first */
    float target, lr;
} step_plan;

typedef struct {
    const char *family; /* llama or qwen2 */
    dms_dtype type;
    bool replay;
    dms_train_set set;
} tiny_options;

/* Fails the test where anything fails. */
tiny_run tiny_run_open(const tiny_options *options);
tiny_run tiny_run_open_on(dms_device_kind kind, const tiny_options *options);
void tiny_run_close(tiny_run *r);
/* A number of the fixture's metadata. */
float tiny_run_setting(const tiny_run *r, const char *name);
/* One optimiser step of two micro-batches; adds to *losses, returns the gradient norm. */
float tiny_run_step(tiny_run *r, const step_plan *plan, dms_losses *losses);

#endif
