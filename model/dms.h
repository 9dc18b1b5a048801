/* Masked attention steps for the forward pass: dense, relaxed (training) and hard (scoring). */
#ifndef DMS_DMS_H
#define DMS_DMS_H

#include "model/transformer.h"

/* Plain causal attention: the teacher, the dense model, the fade. No context. */
dms_var *dms_attend_dense(const dms_pass *pass, int layer, dms_var *const qkv[3], dms_var *z);

/* Context of dms_attend_soft. */
typedef struct {
    dms_noise_spec noise;        /* layer is filled in */
    const dms_tensor *injected;  /* noise given from outside, [L, B, G, T]; NULL: from `noise` */
    const dms_tensor *decisions; /* out: [L, B, G, T], 0 or 1 */
    const dms_tensor *pressure;  /* [B], filled between forward and backward (dms_compression) */
} dms_soft_context;
/* The training mask of method.md section 3, with the gate's window and tau. */
dms_var *dms_attend_soft(const dms_pass *pass, int layer, dms_var *const qkv[3], dms_var *z);

/* Context of dms_attend_hard. */
typedef struct {
    int64_t window;
    const dms_tensor *given;     /* logits to decide by, [L, B, G, T]; NULL: the model's own z */
    const dms_tensor *decisions; /* out: [L, B, G, T], 0 or 1 */
    const dms_tensor *logits;    /* out: the z that decided, [L, B, G, T]; may be NULL */
} dms_hard_context;
/* The law of visibility with decisions z > 0, no noise; no gradient through the decisions. A gate
 * with `own` has them one token late: decisions, logits and law are then those of the token before.
 */
dms_var *dms_attend_hard(const dms_pass *pass, int layer, dms_var *const qkv[3], dms_var *z);

/* Factor of the borrowed channel at a step of the fade: max(0, 1 - step/(0.8*fade_steps)). */
float dms_fade_keep(int64_t step, int64_t fade_steps);

/* Layer i of a tensor [L, B, G, T]: a view [B, G, T]. */
dms_tensor dms_layer_view(const dms_tensor *all, int layer);

#endif
