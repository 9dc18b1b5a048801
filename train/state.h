/* The state of a run on disk: one checkpoint file a save, exact to the bit. */
#ifndef DMS_STATE_H
#define DMS_STATE_H

#include "checkpoints/source.h"
#include "train/optimizer.h"
#include "train/recipe.h"

enum { DMS_ARITHMETIC_SIZE = 48 };

/* What a checkpoint holds and what it is made from. All borrowed. */
typedef struct {
    const dms_recipe *recipe;
    const dms_source *teacher; /* config and tokenizer are taken from it */
    const char *teacher_hash;
    const dms_model *student;
    dms_optimizer *optimizer;
    double cr;    /* compression ratio reached by the schedule, for the config's dms_cr */
    bool dropped; /* the fade is over: before that, files declare no gate */
    char before[DMS_ARITHMETIC_SIZE]; /* out of load: the checkpoint's arithmetic; empty: unknown */
    char data_before[DMS_DATA_TEXT];  /* out of load: its data.train; empty: the same, or unknown */
} dms_state;

/* What decides over the last bits of a result beside the recipe, as "cuda in bf16, TF32". */
void dms_state_arithmetic(char out[DMS_ARITHMETIC_SIZE], const dms_model *student);

/* Writes FOLDER/checkpoints/step-NNNNNN.h5 after `step` steps: config with the dms_ keys,
 * tokenizer, chat template, resolved recipe, arithmetic, teacher's path and hash; /weights (all),
 * /masters, /adam_m, /adam_v (trained ones); numbers "step", "dropped", "shift". Temporary name,
 * fsync, rename; then `latest` points to it and older ones go, but for the last `keep` up to this
 * step and those that `is_kept` names; files of later steps (of a run that went on from an older
 * one) stay. `path` receives the file's name. On failure everything that was there is intact. */
typedef bool dms_kept_fn(const void *context, int64_t step);
dms_status dms_state_save(char path[DMS_PATH_SIZE], const dms_state *state, int64_t step,
                          dms_kept_fn *is_kept, const void *context);

/* Continues from FOLDER/latest: masters and moments are read, copies follow, *step is the next step
 * to run, state->dropped what it was, state->before and data_before set. *step = 0 and nothing
 * changes where there is no checkpoint. DMS_ERR_FORMAT when the file is corrupt, or was made with
 * another teacher, gate or set of trained weights. */
dms_status dms_state_load(int64_t *step, dms_state *state);

#endif
