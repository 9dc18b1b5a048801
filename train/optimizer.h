/* Which weights are trained, their f32 masters and moments in flat buffers, and the update. */
#ifndef DMS_OPTIMIZER_H
#define DMS_OPTIMIZER_H

#include "model/model.h"
#include "train/recipe.h"

/* Trained matrices come first, so that their bf16 copies are one flat buffer too; vectors and gate
 * tensors follow. Each tensor starts at a multiple of 64 elements; the gaps stay 0. */
typedef struct {
    dms_device *device;
    dms_arena memory;
    int64_t n_matrix;              /* elements of the first part, gaps included */
    dms_tensor master, m, v, grad; /* flat, f32 */
    dms_tensor copy;               /* flat, bf16, of the first part; rank 0 in f32 */
    dms_tensor norm;               /* [1]: global gradient norm of the last step */
    int n_trained;
    struct dms_trained {
        const dms_weight *weight; /* in the student's table */
        int64_t offset, count;    /* elements */
    } * trained;
} dms_optimizer;

/* Places the student's trained weights: values (bf16 copies or the masters themselves) and
 * gradients, marked wanted. The other weights stay without memory.  The caller ends it with close
 * (legal on a zeroed struct), after the student. */
dms_status dms_optimizer_open(dms_optimizer *out, dms_model *student, dms_train_set set);
void dms_optimizer_close(dms_optimizer *o);

/* Masters from a file, for every trained weight (gate tensors that it lacks start as
 * dms_gate_start says); moments 0; copies follow. */
dms_status dms_optimizer_read(dms_optimizer *o, const dms_model *student, const dms_reader *reader);
/* Whether a trained weight is the borrowed rows of q_proj, or of its bias, kept apart. */
bool dms_optimizer_holds_rows(const struct dms_trained *t, const dms_model *student);
/* Makes the bf16 copies of the masters again. */
dms_status dms_optimizer_refresh(dms_optimizer *o);
/* Gradients to 0: the start of a step. */
dms_status dms_optimizer_zero(dms_optimizer *o);
/* Global norm of the gradients before clipping, read back to the host: DMS_OK with a non-finite
 * value when the gradients are. */
dms_status dms_optimizer_norm(float *norm, dms_optimizer *o);
/* AdamW with the norm that dms_optimizer_norm left. */
dms_status dms_optimizer_step(dms_optimizer *o, const dms_adamw_spec *spec);
/* Zeroes the borrowed q rows (masters and copies; their moments too, so that they stay zero until
 * a gradient says otherwise): the end of the fade. */
dms_status dms_optimizer_drop_borrowed(dms_optimizer *o, const dms_model *student);

#endif
