/* A tape of differentiable steps, run as they are written down.
 *
 * Building functions return the new variable and report no error of their own: the first failure
 * poisons the tape, every later step on a poisoned tape is a no-op that returns NULL, and
 * dms_tape_status() or dms_tape_backward() says what went wrong. Model code therefore reads as a
 * chain of expressions. */
#ifndef DMS_TAPE_H
#define DMS_TAPE_H

#include "kernels/arena.h"
#include "kernels/ops.h"

enum { DMS_MAX_INPUTS = 4, DMS_MAX_AUX = 3 };

typedef struct dms_tape dms_tape;
typedef struct dms_node dms_node;

/* A tensor that can carry a gradient. Parameters are owned by the model, outlive the tape and bring
 * memory for their gradient; everything else lives until dms_tape_reset(). */
typedef struct {
    dms_tensor value;
    dms_tensor grad; /* same shape, f32; grad.data is NULL until reached */
    bool wants_grad;
} dms_var;

/* How to run one kind of step, and how to run it backwards. backward() adds to the gradients that
 * dms_wanted_grad() hands out and touches nothing else; NULL where there is nothing to pass on. It
 * runs once the gradient of an output was reached: of a step with two outputs that may be either
 * one, so such a rule asks dms_reached_grad(). */
typedef struct {
    const char *name;
    dms_status (*forward)(dms_node *n);
    dms_status (*backward)(dms_node *n);
    bool is_loss; /* backward starts here: it runs without a gradient of its output */
} dms_rule;

struct dms_node {
    const dms_rule *rule;
    dms_var *in[DMS_MAX_INPUTS]; /* NULL for an optional input that is absent */
    int n_in;
    dms_var *out;
    dms_var *side;               /* a second output, NULL where there is none */
    dms_tensor aux[DMS_MAX_AUX]; /* saved for backward, or borrowed inputs without gradient */
    union {
        float f;
        dms_rope_spec rope;
        dms_logit_spec logit;
        dms_relaxed_gate relaxed;
        struct {
            int64_t first, step;
        } channels;
        struct {
            int64_t window;
            int head_dim;
            bool bf16;
        } attention;
        struct {
            const dms_tensor *teacher_x, *teacher_w;
            dms_kl_direction direction;
        } distill;
    } attr;
    int segment_first;   /* on a segment's last node: index of its first; -1 elsewhere */
    bool replay;         /* that segment's forward pass runs again */
    size_t scratch_used; /* by that segment's forward pass */
};

typedef struct {
    dms_device *device;
    int max_nodes;        /* bounds one step; nothing grows afterwards */
    size_t keep_bytes;    /* for what lives for the whole step */
    size_t scratch_bytes; /* for one segment */
    bool recording;       /* false: no gradients will be asked for, segments leave no trace */
    bool measure;         /* run nothing, only find out keep_bytes and scratch_bytes */
} dms_tape_options;

dms_status dms_tape_open(dms_tape **out, const dms_tape_options *options);
void dms_tape_close(dms_tape *tape);
/* Forgets the steps and their memory; the tape can be used again. */
void dms_tape_reset(dms_tape *tape);
/* The first failure since the last reset. */
dms_status dms_tape_status(const dms_tape *tape);
/* Poisons the tape with a failure that happened beside it; DMS_OK is without effect. */
void dms_tape_check(dms_tape *tape, dms_status status);
/* The most bytes in use so far, forward and backward, since the tape was opened. */
void dms_tape_peak(const dms_tape *tape, size_t *keep_bytes, size_t *scratch_bytes);
/* True when the tape only measures: values must not be read. */
bool dms_tape_measures(const dms_tape *tape);

/* A segment is one transformer block. With `replay` only its output is kept and backward runs its
 * forward rules again, into the same addresses; without, its activations are kept and only the
 * gradients inside it are shared scratch memory. Segments do not nest. */
void dms_tape_segment_begin(dms_tape *tape, bool replay);
/* Returns the segment's result, which outlives it; `out` must not be used after this. */
dms_var *dms_tape_segment_end(dms_tape *tape, dms_var *out);

/* Walks the tape in reverse, from every loss on it, and from `root` with gradient `seed` unless
 * root is NULL. Gradients of parameters are added to. */
dms_status dms_tape_backward(dms_tape *tape, dms_var *root, const dms_tensor *seed);

/* A variable without gradient and without a rule, with memory of this step: for inputs. Its bytes
 * are undefined. */
dms_var *dms_tape_input(dms_tape *tape, dms_tensor like);

/* ---- for the op files of this folder ---- */

/* Appends a node; NULL when the tape is or becomes poisoned. */
dms_node *dms_tape_node(dms_tape *tape, const dms_rule *rule, int n_in, dms_var *const *in);
/* Gives aux[slot] memory of the shape and type of `like`. */
void dms_tape_save(dms_tape *tape, dms_node *n, int slot, dms_tensor like);
/* Gives the node a second output with memory of the shape of `like`, and returns it: it wants a
 * gradient where the first does. Call it before dms_tape_run; NULL when the tape is poisoned. */
dms_var *dms_tape_side(dms_tape *tape, dms_node *n, dms_tensor like);
/* Gives the output memory of the shape of `like`, runs the rule, returns the output. */
dms_var *dms_tape_run(dms_tape *tape, dms_node *n, dms_tensor like);
/* Gradient of input i to add to, or NULL where nobody wants it. */
dms_tensor *dms_wanted_grad(const dms_node *n, int i);
/* Gradient of an output, or NULL where nothing of what follows reached it (v may be NULL). */
const dms_tensor *dms_reached_grad(const dms_var *v);

#endif
