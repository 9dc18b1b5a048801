/* The forward pass, written once: training, teacher, scoring, prefill and decode differ only in
 * their attention step. */
#ifndef DMS_TRANSFORMER_H
#define DMS_TRANSFORMER_H

#include "autograd/ad.h"
#include "model/model.h"

typedef struct dms_pass dms_pass;

/* The attention step of one layer, from the projections to the heads' outputs.
 * q: [B, T, H*E], k: [B, T, G*E] after RoPE   v: [B, T, G*E]   z: [B, G, T] eviction logits, NULL
 * where the gate is off   returns [B, T, H*E], NULL on a poisoned tape. */
typedef dms_var *dms_attend_fn(const dms_pass *pass, int layer, dms_var *const qkv[3], dms_var *z);

/* One run of the network. All pointers are borrowed and must outlive the tape's step. */
struct dms_pass {
    dms_tape *tape;
    const dms_model *model;
    const dms_tensor *ids;       /* [B, T], i32 */
    const dms_tensor *positions; /* [B, T], i32 */
    bool gated;                  /* compute z; the neuron gate takes its channel away */
    float keep;                  /* the borrowed channel's factor: 0, or above during the fade */
    bool replay;                 /* recompute each block in backward instead of keeping it */
    dms_attend_fn *attend;
    void *context; /* of attend */
};

/* Returns the hidden states after the final norm, [B, T, D]; NULL on a poisoned tape. */
dms_var *dms_transformer_forward(const dms_pass *pass);

/* Nodes that one pass puts on a tape, at most. */
int dms_transformer_nodes(const dms_model *model);

#endif
