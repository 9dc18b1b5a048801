/* Every differentiable builder, declared once: dms_ad_OP builds dms_OP and its gradient.
 *
 * Shapes and formulas are those of kernels/ops.h. Each returns the new variable, or NULL on a
 * poisoned tape. Tensors passed by address (not as dms_var) carry no gradient and must outlive the
 * step. */
#ifndef DMS_AD_H
#define DMS_AD_H

#include "autograd/tape.h"

/* pointwise.c */
/* ids: [B, T]   w: [V, D]   residual: [B, T, D], is added, may be NULL   returns [B, T, D] */
dms_var *dms_ad_embedding(dms_tape *tape, const dms_tensor *ids, dms_var *w, dms_var *residual);
/* These return f32 or bf16, as `dtype` says. */
dms_var *dms_ad_swiglu(dms_tape *tape, dms_var *gate, dms_var *up, dms_dtype dtype);
dms_var *dms_ad_gelu(dms_tape *tape, dms_var *x, dms_dtype dtype);

/* norm.c; returns f32 or bf16, as `dtype` says */
dms_var *dms_ad_rms_norm(dms_tape *tape, dms_var *x, dms_var *w, float eps, dms_dtype dtype);
dms_var *dms_ad_layer_norm(dms_tape *tape, dms_var *x, dms_var *w, dms_var *bias, float eps,
                           dms_dtype dtype);

/* rope.c: x: [B, T, heads*E]   w: [E], the weight of a norm of each head, or NULL (spec->norm is
 * not read)   *z: [B, G, T], logits of the gate's neurons, where z is not NULL: then
 * spec->borrowed_every is above 0
 * The tensors that `spec` points to must outlive the step; the struct is copied. */
dms_var *dms_ad_rope(dms_tape *tape, dms_var *x, dms_var *w, const dms_rope_spec *spec,
                     dms_var **z);

/* linear.c; bias and residual may be NULL */
dms_var *dms_ad_linear(dms_tape *tape, dms_var *x, dms_var *w, dms_var *bias, dms_var *residual);

/* gate.c */
/* y: [B, T, G]   returns z: [B, G, T] */
dms_var *dms_ad_eviction_logit(dms_tape *tape, dms_var *y, const dms_logit_spec *spec);
/* x: [B, T, C]   channels: [B, T, G], which must want a gradient if x does   returns [B, T, C] */
dms_var *dms_ad_put_channels(dms_tape *tape, dms_var *x, dms_var *channels, int64_t first,
                             int64_t step);
/* Returns the bias of late keys [B, G, T]; writes the decisions into d [B, G, T]; backward reads
 * pressure [B], which the caller fills between forward and backward (dms_compression). */
typedef struct {
    const dms_tensor *d, *pressure;
    dms_relaxed_gate relaxed;
} dms_gate_spec;
dms_var *dms_ad_gate_soft(dms_tape *tape, dms_var *z, const dms_gate_spec *spec);
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
