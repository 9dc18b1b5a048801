/* The loss of a micro-batch and its gradients: teacher, student, distillation, compression. */
#ifndef DMS_OBJECTIVE_H
#define DMS_OBJECTIVE_H

#include "model/dms.h"
#include "train/schedule.h"

typedef struct dms_objective dms_objective;

typedef struct {
    const dms_model *student; /* trained weights have gradients and want them */
    const dms_model *teacher; /* the original; may share the student's frozen weights */
    int64_t batch, context;   /* B, T of every micro-batch */
    bool replay;
    dms_kl_direction direction;
    float lambda;
} dms_objective_options;

/* One micro-batch. The means run over the whole optimiser step, so the caller brings their
 * denominators. */
typedef struct {
    const int32_t *ids;  /* host, [B, T] */
    int64_t n_counted;   /* counted tokens of the whole step */
    int64_t n_sequences; /* sequences of the whole step */
    dms_stage stage;
    dms_noise_spec noise;       /* seed, step, index of the first sequence */
    const dms_tensor *injected; /* noise given from outside, [L, B, G, T]; NULL: Philox */
} dms_micro_batch;

/* Shares of this micro-batch in the step's means. */
typedef struct {
    double kl;       /* nats a counted token */
    double compress; /* before lambda */
    double evicted;  /* fraction of decisions that evict, noise included */
} dms_losses;

/* Makes tapes of exactly the size that a step needs. The models are borrowed. DMS_ERR_NOMEM names
 * what to lower. */
dms_status dms_objective_open(dms_objective **out, const dms_objective_options *options);
void dms_objective_close(dms_objective *o);
/* Bytes of activations and gradients that a step uses. */
size_t dms_objective_bytes(const dms_objective *o);
/* Tokens of ids that count: inputs that are not end-of-text (method.md section 3). */
int64_t dms_objective_counted(const dms_objective *o, const int32_t *ids, int64_t n);
/* Forward and backward: adds to the student's gradients and to *losses. Allocates nothing. */
dms_status dms_objective_run(dms_objective *o, const dms_micro_batch *batch, dms_losses *losses);

#endif
