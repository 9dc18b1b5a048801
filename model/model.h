/* A network's weights on a device: a table of named variables, and their places in the layers. */
#ifndef DMS_MODEL_H
#define DMS_MODEL_H

#include "autograd/tape.h"
#include "kernels/arena.h"
#include "kernels/reader.h"
#include "model/config.h"
#include "model/gate.h"

/* Weights of a layer: field, Hugging Face name below model.layers.I., role. A field whose config
 * flag is off has value.data NULL and is not in the table. Families that others store under other
 * names, fused or transposed, have these names and shapes here and in our checkpoints
 * (checkpoints/layout.h). */
#define DMS_LAYER_WEIGHT_LIST(X)                                         \
    X(input_norm, "input_layernorm.weight", DMS_ROLE_NORM)               \
    X(input_norm_bias, "input_layernorm.bias", DMS_ROLE_NORM)            \
    X(q, "self_attn.q_proj.weight", DMS_ROLE_ATTENTION)                  \
    X(q_bias, "self_attn.q_proj.bias", DMS_ROLE_ATTENTION)               \
    X(k, "self_attn.k_proj.weight", DMS_ROLE_ATTENTION)                  \
    X(k_bias, "self_attn.k_proj.bias", DMS_ROLE_ATTENTION)               \
    X(v, "self_attn.v_proj.weight", DMS_ROLE_ATTENTION)                  \
    X(v_bias, "self_attn.v_proj.bias", DMS_ROLE_ATTENTION)               \
    X(q_norm, "self_attn.q_norm.weight", DMS_ROLE_NORM)                  \
    X(k_norm, "self_attn.k_norm.weight", DMS_ROLE_NORM)                  \
    X(o, "self_attn.o_proj.weight", DMS_ROLE_ATTENTION)                  \
    X(o_bias, "self_attn.o_proj.bias", DMS_ROLE_ATTENTION)               \
    X(post_norm, "post_attention_layernorm.weight", DMS_ROLE_NORM)       \
    X(post_norm_bias, "post_attention_layernorm.bias", DMS_ROLE_NORM)    \
    X(gate, "mlp.gate_proj.weight", DMS_ROLE_MLP)                        \
    X(up, "mlp.up_proj.weight", DMS_ROLE_MLP)                            \
    X(up_bias, "mlp.up_proj.bias", DMS_ROLE_MLP)                         \
    X(down, "mlp.down_proj.weight", DMS_ROLE_MLP)                        \
    X(down_bias, "mlp.down_proj.bias", DMS_ROLE_MLP)                     \
    X(alpha_norm, "self_attn.dms_proj_alpha_norm.weight", DMS_ROLE_GATE) \
    X(alpha, "self_attn.dms_proj_alpha.weight", DMS_ROLE_GATE)           \
    X(alpha_bias, "self_attn.dms_proj_alpha.bias", DMS_ROLE_GATE)        \
    X(rows, "self_attn.dms_rows.weight", DMS_ROLE_GATE)                  \
    X(rows_bias, "self_attn.dms_rows.bias", DMS_ROLE_GATE)

typedef enum {
    DMS_ROLE_EMBEDDING, /* the embeddings and the output head */
    DMS_ROLE_NORM,
    DMS_ROLE_ATTENTION, /* q, k, v, o with their biases */
    DMS_ROLE_MLP,
    DMS_ROLE_GATE /* the adapter gate's own tensors; the borrowed q rows where they are apart */
} dms_weight_role;

typedef struct {
#define X(field, name, role) dms_var field;
    DMS_LAYER_WEIGHT_LIST(X)
#undef X
} dms_layer;

/* One row of the table. Matrices of linear layers and the embedding have the model's matrix type;
 * everything else, the gate included, is f32 always. */
typedef struct {
    char name[80]; /* Hugging Face name, as of a Llama */
    dms_var *var;  /* value has shape and type; data NULL until it is given memory */
    dms_weight_role role;
    int layer; /* -1 outside layers */
} dms_weight;

typedef struct {
    dms_config config;
    dms_gate gate; /* kind NONE: the original model */
    dms_device *device;
    dms_dtype matrix_type;
    int n_weights;
    dms_weight *weights; /* in the order of a Hugging Face file: embedding, layers, norm, head */
    dms_var embedding;   /* [V, D] */
    dms_var positions;   /* [P, D], P the config's positions, where they are learned */
    dms_var final_norm;  /* [D] */
    dms_var final_norm_bias; /* [D], of a LayerNorm */
    dms_var own_head;        /* [V, D] where the head is not tied */
    dms_var *head;           /* &embedding or &own_head */
    dms_layer *layers;
    dms_tensor rope_table; /* [positions, E]: cos of E/2 angles, then sin; without RoPE all angles
                              are 0, which changes no bit */
    dms_arena memory;      /* of what dms_model_allocate gave memory, and of the rope table */
} dms_model;

typedef struct {
    dms_config config;
    dms_gate gate;
    dms_device *device;
    dms_dtype matrix_type; /* DMS_F32 or DMS_BF16 */
    int64_t positions;     /* longest text, in tokens, that will be run */
    bool rows_apart; /* neuron gate: the borrowed rows of q_proj are tensors of their own, f32,
                        [G, D] and bias [G], so that they can be trained alone; q_proj keeps
                        the original's. For training: files never hold them apart */
} dms_model_options;

/* Makes the table, without memory for weights: the caller places some of them in memory of its own
 * (var->value.data), then dms_model_allocate gives memory to the rest. The caller ends it with
 * dms_model_close. DMS_ERR_ARG where `positions` exceeds the model's. */
dms_status dms_model_open(dms_model **out, const dms_model_options *options);
void dms_model_close(dms_model *model);

/* Whether the file has every weight of the table in the right shape (but gate tensors, if
 * `gate_may_start`), and no bias of a projection beside them: to be asked before memory of the size
 * that a config claims is. DMS_ERR_FORMAT names the tensor, what was found and what was expected.
 */
dms_status dms_model_check(const dms_model *model, const dms_reader *reader, bool gate_may_start);
/* The same for one weight that the file has. */
dms_status dms_weight_check_shape(const dms_weight *w, int rank, const int64_t *shape);

/* Weights of `model` that have no memory yet become views of those of the same name in `other`,
 * which must outlive it. */
void dms_model_share(dms_model *model, const dms_model *other);

/* Gives memory to every weight that has none, and to the rope table; such weights are marked
 * frozen. */
dms_status dms_model_allocate(dms_model *model);

/* Reads every weight for which `wanted` is true (NULL: all). Gate tensors that the file lacks start
 * at their initial values (alpha 0, norm 1) if `gate_may_start`, else they are refused by name, as
 * are all others that are missing or of another shape (DMS_ERR_FORMAT). */
typedef struct {
    bool (*wanted)(const dms_weight *w, const void *context);
    const void *context;
    bool gate_may_start;
} dms_read_options;
dms_status dms_model_read(dms_model *model, const dms_reader *reader,
                          const dms_read_options *options);

/* What a gate tensor is before training: the adapter's norm 1, all else 0. host: its elements. */
void dms_gate_start(float *host, const dms_weight *w);

/* Sets the rows of q_proj (and its bias) that the neuron gate borrows to zero: the end of the
 * fade (method.md section 3). q: H*E*D elements, bias: H*E elements; either may be NULL. */
dms_status dms_model_zero_borrowed(const dms_model *model, dms_tensor *q, dms_tensor *bias);

/* Copies between q_proj (H*E rows of row_bytes each, host memory) and the borrowed rows (G of
 * them): row (g*R)*E + E-1 is borrowed row g. */
void dms_model_get_borrowed(void *rows, const void *q, const dms_config *c, size_t row_bytes);
void dms_model_put_borrowed(void *q, const void *rows, const dms_config *c, size_t row_bytes);

/* Number of weights' elements, all or of the roles in `mask` (bit 1 << role). */
int64_t dms_model_count(const dms_model *model, unsigned mask);

#endif
