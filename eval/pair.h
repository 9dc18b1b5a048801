/* The two models of a comparison: the one that is measured, and the original beside it. */
#ifndef DMS_PAIR_H
#define DMS_PAIR_H

#include "infer/model_file.h"

typedef struct {
    const char *model;   /* any format; retrofitted or not */
    const char *teacher; /* the original; NULL: the path that a retrofitted model remembers */
    dms_device *device;
    dms_compute compute;
    int64_t positions; /* longest text, in tokens */
    int64_t shift;     /* which token a decision governs (dms_gate_settle); -1: as the model says */
} dms_pair_options;

typedef struct {
    dms_model_file *student;
    dms_model_file *other;    /* the original where it is another file, else NULL */
    const dms_model *teacher; /* of `other`, or the student's where that has no gate */
} dms_pair;

/* The caller ends it with dms_pair_close. DMS_ERR_ARG where a retrofitted model does not say where
 * its original is and nobody else does; errors of dms_model_file_open. */
dms_status dms_pair_open(dms_pair *out, const dms_pair_options *options);
void dms_pair_close(dms_pair *pair);

static inline bool dms_pair_is_gated(const dms_pair *pair)
{
    return pair->student->model->gate.kind != DMS_GATE_NONE;
}

#endif
