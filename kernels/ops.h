/* Every op of the project, declared once.
 *
 * An op is a function type. DMS_OP_LIST turns each type into one field of the dispatch table and
 * one public function dms_NAME, which checks its arguments and calls the device's version. A
 * backend that forgets an op, or drifts from its signature, does not build.
 *
 * Common to all: outputs come first; an op returns when its work is queued on the device (the CPU
 * is done by then); activations are f32, and bf16 where only products with bf16 weights read them
 * (gradients stay f32); weights of linear layers and embeddings f32 or bf16, all other weights f32;
 * sums in f32 or better; results do not depend on the number of threads; no op
 * allocates. A `_bwd` op ADDS to the gradients it is given; a gradient that nobody wants is NULL.
 * Errors: DMS_ERR_SHAPE and DMS_ERR_DTYPE name the argument, what it is and what was expected. Ids
 * and positions out of range are DMS_ERR_ARG on the CPU; a GPU, whose memory the host does not
 * read, gives rows of NaN and no gradient, so whoever uploads ids checks them. A failed kernel
 * shows as DMS_ERR_DEVICE of a later call that waits. CUDA takes heads of up to 256 channels in
 * attention, and keeps a workspace that grows while shapes are new.
 *
 * Letters: B batch, T tokens, N = B*T rows, D model width, H query heads, G key/value heads,
 * R = H/G, E head width, F feed-forward width, V vocabulary, L layers, W window. */
#ifndef DMS_OPS_H
#define DMS_OPS_H

#include <stdbool.h>

#include "kernels/paged.h"
#include "kernels/paged_rank.h"
#include "kernels/tensor.h"

DMS_BEGIN_C

/* ---- pointwise ------------------------------------------------------------------------------ */

/* y += scale * x, element by element; y and x of one shape. */
typedef dms_status dms_axpy_fn(dms_tensor *y, float scale, const dms_tensor *x);

/* y = x in y's type (f32 or bf16, round to nearest even); y and x of one shape. */
typedef dms_status dms_cast_fn(dms_tensor *y, const dms_tensor *x);

/* y[b,t,:] = w[ids[b,t],:].   y: [B, T, D]   ids: [B, T], i32, each in [0, V)   w: [V, D]. */
typedef dms_status dms_embedding_fn(dms_tensor *y, const dms_tensor *ids, const dms_tensor *w);

/* dw[ids[b,t],:] += dy[b,t,:], in the order of the tokens.   dw: [V, D], f32. */
typedef dms_status dms_embedding_bwd_fn(dms_tensor *dw, const dms_tensor *dy,
                                        const dms_tensor *ids);

/* y = gate * sigmoid(gate) * up, element by element; all of one shape; y: f32 or bf16, rounded to
 * nearest even. */
typedef dms_status dms_swiglu_fn(dms_tensor *y, const dms_tensor *gate, const dms_tensor *up);
typedef dms_status dms_swiglu_bwd_fn(dms_tensor *dgate, dms_tensor *dup, const dms_tensor *dy,
                                     const dms_tensor *gate, const dms_tensor *up);

/* The tanh form of GELU (Hendrycks & Gimpel 2016; gelu_new of transformers), element by element:
 * y = x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3))); y: f32 or bf16, rounded to nearest even.
 */
typedef dms_status dms_gelu_fn(dms_tensor *y, const dms_tensor *x);
typedef dms_status dms_gelu_bwd_fn(dms_tensor *dx, const dms_tensor *dy, const dms_tensor *x);

/* ---- norm ----------------------------------------------------------------------------------- */

/* RMSNorm of each group of D consecutive channels: y[r,:] = x[r,:] * w * rstd[r],
 * rstd[r] = 1/sqrt(mean(x[r,:]^2) + eps).   w: [D]   x, y: [.., C], C a multiple of D, seen as
 * [rows, D]; y: f32 or bf16, rounded to nearest even   rstd: [rows], kept for the backward pass. */
typedef dms_status dms_rms_norm_fn(dms_tensor *y, dms_tensor *rstd, const dms_tensor *x,
                                   const dms_tensor *w, float eps);
typedef dms_status dms_rms_norm_bwd_fn(dms_tensor *dx, dms_tensor *dw, const dms_tensor *dy,
                                       const dms_tensor *x, const dms_tensor *w,
                                       const dms_tensor *rstd);

/* LayerNorm of each row of D channels (Ba et al. 2016): y[r,:] = (x[r,:] - mean[r]) * rstd[r] * w +
 * bias, rstd[r] = 1/sqrt(mean((x[r,:] - mean[r])^2) + eps).   w, bias: [D]   x, y: [.., D]; y: f32
 * or bf16, rounded to nearest even   stats: [2, rows], mean and rstd, kept for the backward pass.
 */
typedef dms_status dms_layer_norm_fn(dms_tensor *y, dms_tensor *stats, const dms_tensor *x,
                                     const dms_tensor *w, const dms_tensor *bias, float eps);
typedef struct {
    dms_tensor *dx, *dw, *dbias;
} dms_layer_norm_grads;
typedef dms_status dms_layer_norm_bwd_fn(const dms_layer_norm_grads *grads, const dms_tensor *dy,
                                         const dms_tensor *x, const dms_tensor *w,
                                         const dms_tensor *stats);

/* ---- rope ----------------------------------------------------------------------------------- */

/* How an eviction logit is made of a channel: z = scale*channel - offset. */
typedef struct {
    float scale, offset; /* alpha_scale, alpha_offset */
} dms_logit_spec;

/* What happens to the heads of one tensor, queries or keys, between projection and attention. */
typedef struct {
    const dms_tensor *table; /* [P, E]: cos of the E/2 angles of a position, then their sin */
    const dms_tensor *ids;   /* [B, T], i32: positions, each in [0, P) */
    int borrowed_every;      /* 0, or R: the last channel of heads 0, R, 2R... is a gate's neuron */
    float keep;              /* that channel is multiplied by keep before RoPE and again after */
    const dms_tensor *norm;  /* [E], or NULL: the weight of an RMSNorm of each head */
    float eps;               /* of that norm */
    dms_logit_spec logit;    /* of the gate's neurons, where z is wanted */
} dms_rope_spec;

/* rstd: [rows*heads], of the norm, for the backward pass; NULL where nobody wants it or there is no
 * norm   z: [B, G, T], G = heads/R rounded up, logits of the gate's neurons, or NULL. */
typedef struct {
    dms_tensor *y, *rstd, *z;
} dms_rope_out;

/* In this order, head by head: n = rms_norm(x) where there is a norm, else x; z[b,g,t] of the last
 * channel of head g*R of n; the fade by keep and rotate-half RoPE (Su et al. 2021, Hugging Face
 * layout): channel j < E/2 pairs with j + E/2.   x, y: [B, T, heads*E]; y may be x. */
typedef dms_status dms_rope_fn(const dms_rope_out *out, const dms_tensor *x,
                               const dms_rope_spec *spec);

/* dy, dz: NULL counts as zero   x, rstd: of the forward pass, may be NULL without norm
 * dx [B, T, heads*E] and dw [E], of the norm's weight: each may be NULL. */
typedef struct {
    const dms_tensor *dy, *dz, *x, *rstd;
    dms_tensor *dx, *dw;
} dms_rope_grads;
typedef dms_status dms_rope_bwd_fn(const dms_rope_grads *grads, const dms_rope_spec *spec);

/* ---- linear --------------------------------------------------------------------------------- */

/* y[n,m] = sum over k of x[n,k] * w[m,k], + bias[m] + residual[n,m].
 * x: [.., K] f32, or bf16 where w is   w: [M, K] f32 or bf16   bias: [M] f32 or NULL
 * residual: as y, and may be y, or NULL   y: [.., M] f32.
 * The type of w decides the arithmetic: with bf16, x is rounded to bf16 and sums are f32 (with
 * f32, a GPU uses TF32 where DMS_TF32=1 is in the environment). A weight marked `frozen` may be
 * kept packed by the device for as long as its memory is neither released nor uploaded to.
 *
 * The residual stream is added here, not by the norm that reads it: a product that writes y reads
 * the residual on the way, and with the norm behind it 4 elements a channel of the stream are moved
 * (residual, y; y, norm's y). A fused add and norm moves 5 (the product's y first). */
typedef dms_status dms_linear_fn(dms_tensor *y, const dms_tensor *x, const dms_tensor *w,
                                 const dms_tensor *bias, const dms_tensor *residual);
/* dx[n,k] += dy[n,m] w[m,k];  dw[m,k] += dy[n,m] x[n,k];  dbias[m] += dy[n,m].   all: f32. */
typedef struct {
    dms_tensor *dx, *dw, *dbias;
} dms_linear_grads;
typedef dms_status dms_linear_bwd_fn(const dms_linear_grads *grads, const dms_tensor *dy,
                                     const dms_tensor *x, const dms_tensor *w);

/* ---- gate ----------------------------------------------------------------------------------- */

/* The adapter gate's logit: z[b,g,t] = scale * y[b,t,g] - offset.   y: [B, T, G]   z: [B, G, T]. */
typedef dms_status dms_eviction_logit_fn(dms_tensor *z, const dms_tensor *y,
                                         const dms_logit_spec *spec);
typedef dms_status dms_eviction_logit_bwd_fn(dms_tensor *dy, const dms_tensor *dz,
                                             const dms_logit_spec *spec);

/* y = x, but channel first + step*g of every row is channels[.., g]: a gate's rows of q that are
 * trained apart from the rest.   x, y: [.., C]   channels: [.., G]. */
typedef dms_status dms_put_channels_fn(dms_tensor *y, const dms_tensor *x,
                                       const dms_tensor *channels, int64_t first, int64_t step);
/* dx += dy outside those channels, dchannels += dy at them; dx may be NULL. */
typedef dms_status dms_put_channels_bwd_fn(dms_tensor *dx, dms_tensor *dchannels,
                                           const dms_tensor *dy, int64_t first, int64_t step);

/* What training noise depends on, and nothing else (method.md section 3). */
typedef struct {
    uint64_t seed;
    int64_t step;     /* optimiser step */
    int64_t sequence; /* of the first row of the batch, within the step over all micro-batches */
    int layer;
} dms_noise_spec;

/* The relaxed gate of one layer. Its noise n is no tensor: each use draws it anew, n[b,g,t]
 * logistic from Philox with key seed and counter (step, sequence + b, layer*G + g, t). */
typedef struct {
    float tau;
    const dms_tensor *injected; /* n given from outside, [B, G, T]; NULL: drawn from `noise` */
    dms_noise_spec noise;
} dms_relaxed_gate;

/* The relaxed decision: u = (z + n)/tau, d[b,g,t] = 1 if u > 0 else 0, and the bias that a key
 * takes once it is outside the window, bias[b,g,k] = log(1 - sigmoid(u[b,g,k+1])), 0 for the last
 * key.   all: [B, G, T]. */
typedef dms_status dms_gate_soft_fn(dms_tensor *bias, dms_tensor *d, const dms_tensor *z,
                                    const dms_relaxed_gate *gate);
/* dz[b,g,t] += (-p * dbias[b,g,t-1] (t > 0) + pressure[b] * p(1-p)) / tau, p = sigmoid(u[b,g,t]):
 * the straight-through gradient. pressure: [B], the loss's derivative by each decision of a
 * sequence. */
typedef dms_status dms_gate_soft_bwd_fn(dms_tensor *dz, const dms_tensor *dbias,
                                        const dms_tensor *pressure, const dms_tensor *z,
                                        const dms_relaxed_gate *gate);

/* The decision without noise: d[b,g,t] = 1 if z > 0 else 0; bias[b,g,k] = -infinity if d[b,g,k+1]
 * else 0. */
typedef dms_status dms_gate_hard_fn(dms_tensor *bias, dms_tensor *d, const dms_tensor *z);

/* ---- attention ------------------------------------------------------------------------------ */

/* Causal attention under the law of visibility. Score of query t and key k of head h, g = h/R:
 * q.k/sqrt(E) for 0 <= t-k <= window, + bias[b,g,k] for t-k > window, no weight for k > t. */
typedef struct {
    const dms_tensor *q;    /* [B, T, H*E], after RoPE */
    const dms_tensor *k;    /* [B, T, G*E], after RoPE */
    const dms_tensor *v;    /* [B, T, G*E] */
    const dms_tensor *bias; /* [B, G, T], finite or -infinity; NULL: plain causal attention */
    int64_t window;         /* >= 0; may exceed T */
    int head_dim;           /* E */
    bool bf16; /* a device may round operands of products, and o, to bf16; sums are f32 */
} dms_attention_in;

/* o: [B, T, H*E]   lse: [B, H, T], log of the sum of exponentials, for the backward pass. */
typedef dms_status dms_attention_fn(dms_tensor *o, dms_tensor *lse, const dms_attention_in *in);

/* What the forward pass left, and the gradients to add to. */
typedef struct {
    const dms_tensor *o, *lse, *dout;
    dms_tensor *dq, *dk, *dv, *dbias; /* shapes of q, k, v, bias; each may be NULL */
} dms_attention_grads;
typedef dms_status dms_attention_bwd_fn(const dms_attention_grads *grads,
                                        const dms_attention_in *in);

/* ---- loss ----------------------------------------------------------------------------------- */

/* Student and teacher in front of their heads. Both pairs of logits exist only in chunks of
 * tokens. Rows with weight 0 are skipped. */
typedef struct {
    const dms_tensor *xs, *ws; /* student: hidden [N.., D] after the final norm, head [V, D] */
    const dms_tensor *xt, *wt; /* teacher */
    const dms_tensor *weight;  /* [N], >= 0 */
} dms_distill_in;

typedef enum { DMS_KL_REVERSE, DMS_KL_FORWARD } dms_kl_direction;

/* kl[n] = KL(student||teacher) (reverse) or KL(teacher||student) (forward) of row n in nats, 0
 * where weight is 0, and on the way the gradient of sum(weight*kl): dxs [N.., D] and dws [V, D]
 * (f32) are added to; either or both may be NULL.   kl: [N]. */
typedef struct {
    dms_tensor *kl, *dxs, *dws;
    dms_kl_direction direction;
} dms_distill_out;
typedef dms_status dms_distill_fn(const dms_distill_out *out, const dms_distill_in *in);

/* Scores of each row for evaluation, f32 [N] each, every one may be NULL:
 * nll = -log p(next) (0 where next[n] < 0, NaN where it is no token; next: [N] i32, may be NULL
 * when nll is), for the student and the teacher; kl_forward = KL(teacher||student); kl_reverse =
 * KL(student||teacher); agree = 1 where both put the same token first. */
typedef struct {
    dms_tensor *nll, *nll_teacher, *kl_forward, *kl_reverse, *agree;
    const dms_tensor *next;
} dms_score_out;
/* in->xt and in->wt may be NULL when only nll is asked for. */
typedef dms_status dms_score_fn(const dms_score_out *out, const dms_distill_in *in);

/* One-sided compression loss of each sequence: frac[b] = mean of d[:,b,:,:],
 * loss[b] = max(0, target - frac[b]), pressure[b] = -weight/(L*G*T) where frac < target, else 0:
 * the derivative of weight*loss[b] by each of its decisions.
 * d: [L, B, G, T]   loss, frac, pressure: [B]. */
typedef struct {
    dms_tensor *loss, *frac, *pressure;
} dms_compression_out;
typedef dms_status dms_compression_fn(const dms_compression_out *out, const dms_tensor *d,
                                      float target, float weight);

/* ---- adamw ---------------------------------------------------------------------------------- */

/* norm[0] = sqrt(sum of g^2); non-finite where any g is.   norm: [1]   g: any shape, f32. */
typedef dms_status dms_l2_norm_fn(dms_tensor *norm, const dms_tensor *g);

typedef struct {
    float lr, beta1, beta2, eps, weight_decay;
    float clip;   /* 0: none; else gradients are scaled by min(1, clip/(norm + 1e-6)) */
    int64_t step; /* 1 for the first update */
} dms_adamw_spec;

/* Decoupled weight decay, bias-corrected, eps outside the square root (Loshchilov & Hutter 2019,
 * as torch.optim.AdamW): over flat buffers of one length.
 * w: masters, f32   copy: the same in bf16 or NULL   m, v: moments   g: gradient   norm: [1]. */
typedef struct {
    dms_tensor *w, *copy, *m, *v;
} dms_adamw_state;
typedef dms_status dms_adamw_fn(const dms_adamw_state *state, const dms_tensor *g,
                                const dms_tensor *norm, const dms_adamw_spec *spec);

/* The paged_ ops are declared in kernels/paged.h, with the structure they work on, and, from
 * paged_weigh on, in kernels/paged_rank.h. */
#define DMS_OP_LIST(X)    \
    X(axpy)               \
    X(cast)               \
    X(embedding)          \
    X(embedding_bwd)      \
    X(swiglu)             \
    X(swiglu_bwd)         \
    X(gelu)               \
    X(gelu_bwd)           \
    X(rope)               \
    X(rope_bwd)           \
    X(rms_norm)           \
    X(rms_norm_bwd)       \
    X(layer_norm)         \
    X(layer_norm_bwd)     \
    X(linear)             \
    X(linear_bwd)         \
    X(eviction_logit)     \
    X(eviction_logit_bwd) \
    X(put_channels)       \
    X(put_channels_bwd)   \
    X(gate_soft)          \
    X(gate_soft_bwd)      \
    X(gate_hard)          \
    X(attention)          \
    X(attention_bwd)      \
    X(distill)            \
    X(score)              \
    X(compression)        \
    X(l2_norm)            \
    X(adamw)              \
    X(paged_append)       \
    X(paged_attention)    \
    X(paged_compact)      \
    X(paged_drop)         \
    X(paged_lend)         \
    X(paged_copy)         \
    X(paged_grow)         \
    X(paged_pack)         \
    X(paged_weigh)        \
    X(paged_pool)         \
    X(paged_mark)         \
    X(paged_bound)        \
    X(paged_choose)       \
    X(paged_turn)

#define X(name) dms_##name##_fn dms_##name;
DMS_OP_LIST(X)
#undef X

struct dms_op_table {
#define X(name) dms_##name##_fn *name;
    DMS_OP_LIST(X)
#undef X
};

DMS_END_C
#endif
