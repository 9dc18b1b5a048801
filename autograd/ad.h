/* Every differentiable builder, declared once: dms_ad_OP builds dms_OP and its gradient.
 *
 * Shapes and formulas are those of kernels/ops.h. Each returns the new variable, or NULL on a
 * poisoned tape. Tensors passed by address (not as dms_var) carry no gradient and must outlive the
 * step. */
#ifndef DMS_AD_H
#define DMS_AD_H

#include "autograd/tape.h"

/* pointwise.c */
dms_var *dms_ad_add(dms_tape *tape, dms_var *a, dms_var *b);
/* ids: [B, T]   w: [V, D]   returns [B, T, D] */
dms_var *dms_ad_embedding(dms_tape *tape, const dms_tensor *ids, dms_var *w);
dms_var *dms_ad_swiglu(dms_tape *tape, dms_var *gate, dms_var *up);
/* The tensors that `spec` points to must outlive the step; the struct is copied. */
dms_var *dms_ad_rope(dms_tape *tape, dms_var *x, const dms_rope_spec *spec);

/* norm.c */
dms_var *dms_ad_rms_norm(dms_tape *tape, dms_var *x, dms_var *w, float eps);

/* linear.c; bias may be NULL */
dms_var *dms_ad_linear(dms_tape *tape, dms_var *x, dms_var *w, dms_var *bias);

/* gate.c */
/* y: [B, T, C]   returns z: [B, heads, T] */
dms_var *dms_ad_eviction_logit(dms_tape *tape, dms_var *y, int heads, const dms_logit_spec *spec);
/* x: [B, T, C]   channels: [B, T, G], which must want a gradient if x does   returns [B, T, C] */
dms_var *dms_ad_put_channels(dms_tape *tape, dms_var *x, dms_var *channels, int64_t first,
                             int64_t step);
/* Noise of the shape of z; no gradient. */
dms_var *dms_ad_gate_noise(dms_tape *tape, const dms_var *z, const dms_noise_spec *spec);
/* Returns the bias of late keys [B, G, T]; writes the decisions into d [B, G, T]; backward reads
 * pressure [B], which the caller fills between forward and backward (dms_compression). */
typedef struct {
    const dms_tensor *d, *pressure;
    float tau;
} dms_gate_spec;
dms_var *dms_ad_gate_soft(dms_tape *tape, dms_var *z, dms_var *noise, const dms_gate_spec *spec);
/* The same without noise and without gradient. */
dms_var *dms_ad_gate_hard(dms_tape *tape, dms_var *z, const dms_tensor *d);

/* attention.c; bias may be NULL */
typedef struct {
    dms_var *q, *k, *v, *bias;
    int64_t window;
    int head_dim;
    bool bf16; /* as in dms_attention_in */
} dms_ad_attention_in;
dms_var *dms_ad_attention(dms_tape *tape, const dms_ad_attention_in *in);

/* loss.c: the distillation loss, a root of backward: sum of weight[n]*kl[n].
 * Its output, kl [N], is filled by backward when a gradient is wanted (loss and gradient come from
 * one pass over the vocabulary), at once otherwise. */
typedef struct {
    const dms_tensor *teacher_x, *teacher_w, *weight;
    dms_kl_direction direction;
} dms_distill_spec;
dms_var *dms_ad_distill(dms_tape *tape, dms_var *x, dms_var *w, const dms_distill_spec *spec);

#endif
