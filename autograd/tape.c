#include "autograd/tape.h"

#include <stdlib.h>

struct dms_tape {
    dms_tape_options options;
    dms_status status; /* first failure; sticky until reset */
    dms_arena keep;    /* what lives for the whole step */
    dms_arena scratch; /* what one segment needs; rewound after each */
    bool in_segment, replay;
    int segment_first; /* of the open segment, forward or backward */
    int n_nodes;
    dms_node *nodes; /* in order of execution, so already sorted */
    dms_var *vars;   /* vars[2i] is the output of nodes[i], vars[2i + 1] its second one */
};

static dms_status open_arenas(dms_tape *t)
{
    const dms_tape_options *o = &t->options;
    if (o->measure) {
        t->keep = t->scratch = dms_arena_measure(o->device);
        return DMS_OK;
    }
    DMS_TRY(dms_arena_open(&t->keep, o->device, o->keep_bytes));
    return dms_arena_open(&t->scratch, o->device, o->scratch_bytes);
}

dms_status dms_tape_open(dms_tape **out, const dms_tape_options *options)
{
    dms_status status = DMS_OK;
    dms_tape *t = calloc(1, sizeof(*t));

    if (!t)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a tape");
    t->options = *options;
    t->nodes = calloc((size_t)options->max_nodes, sizeof(*t->nodes));
    t->vars = calloc(2 * (size_t)options->max_nodes, sizeof(*t->vars));
    if (!t->nodes || !t->vars) {
        status = dms_fail(DMS_ERR_NOMEM, "no memory for a tape of %d nodes", options->max_nodes);
        goto fail;
    }
    DMS_TRY_OR(fail, open_arenas(t));
    *out = t;
    return DMS_OK;
fail:
    dms_tape_close(t);
    return status;
}

void dms_tape_close(dms_tape *tape)
{
    if (!tape)
        return;
    dms_arena_close(&tape->keep);
    dms_arena_close(&tape->scratch);
    free(tape->nodes);
    free(tape->vars);
    free(tape);
}

void dms_tape_reset(dms_tape *tape)
{
    tape->status = DMS_OK;
    tape->n_nodes = 0;
    tape->in_segment = false;
    tape->keep.used = tape->scratch.used = 0;
}

dms_status dms_tape_status(const dms_tape *tape)
{
    return tape->status;
}

void dms_tape_check(dms_tape *tape, dms_status status)
{
    if (!tape->status)
        tape->status = status;
}

void dms_tape_peak(const dms_tape *tape, size_t *keep_bytes, size_t *scratch_bytes)
{
    *keep_bytes = tape->keep.peak;
    *scratch_bytes = tape->scratch.peak;
}

bool dms_tape_measures(const dms_tape *tape)
{
    return tape->options.measure;
}

dms_node *dms_tape_node(dms_tape *tape, const dms_rule *rule, int n_in, dms_var *const *in)
{
    if (tape->status)
        return NULL;
    if (tape->n_nodes == tape->options.max_nodes) {
        tape->status =
            dms_fail(DMS_ERR_NOMEM, "%s: tape holds %d nodes", rule->name, tape->n_nodes);
        return NULL;
    }
    dms_node *n = &tape->nodes[tape->n_nodes];
    *n = (dms_node){
        .rule = rule, .n_in = n_in, .out = &tape->vars[2 * tape->n_nodes], .segment_first = -1};
    *n->out = (dms_var){0};
    for (int i = 0; i < n_in; i++) {
        n->in[i] = in[i];
        if (in[i] && tape->options.recording)
            n->out->wants_grad |= in[i]->wants_grad;
    }
    return n;
}

/* Segments that leave no trace put everything into scratch memory. */
static bool forgets(const dms_tape *tape)
{
    return tape->in_segment && (tape->replay || !tape->options.recording);
}

static void place(dms_tape *tape, dms_tensor *t, dms_tensor like)
{
    if (tape->status)
        return;
    *t = like;
    t->frozen = false;
    tape->status = dms_arena_place(forgets(tape) ? &tape->scratch : &tape->keep, t);
}

void dms_tape_save(dms_tape *tape, dms_node *n, int slot, dms_tensor like)
{
    place(tape, &n->aux[slot], like);
}

dms_var *dms_tape_side(dms_tape *tape, dms_node *n, dms_tensor like)
{
    n->side = n->out + 1;
    *n->side = (dms_var){.wants_grad = n->out->wants_grad};
    place(tape, &n->side->value, like);
    return tape->status ? NULL : n->side;
}

static dms_status run_forward(dms_tape *tape, dms_node *n)
{
    return tape->options.measure || !n->rule->forward ? DMS_OK : n->rule->forward(n);
}

dms_var *dms_tape_run(dms_tape *tape, dms_node *n, dms_tensor like)
{
    place(tape, &n->out->value, like);
    if (!tape->status)
        tape->status = run_forward(tape, n);
    if (tape->status)
        return NULL;
    tape->n_nodes++;
    return n->out;
}

static const dms_rule input_rule = {.name = "input"};

dms_var *dms_tape_input(dms_tape *tape, dms_tensor like)
{
    dms_node *n = dms_tape_node(tape, &input_rule, 0, NULL);
    return n ? dms_tape_run(tape, n, like) : NULL;
}

dms_tensor *dms_wanted_grad(const dms_node *n, int i)
{
    return n->in[i] && n->in[i]->wants_grad ? &n->in[i]->grad : NULL;
}

const dms_tensor *dms_reached_grad(const dms_var *v)
{
    return v && v->grad.data ? &v->grad : NULL;
}

/* Gradients start at zero so that every rule may simply add. Those of variables inside the segment
 * being walked share scratch memory; a parameter brings its own. */
static dms_status touch_grad(dms_tape *tape, dms_var *v)
{
    if (!v || !v->wants_grad || v->grad.data)
        return DMS_OK;
    const bool inside = tape->in_segment && v >= tape->vars + 2 * tape->segment_first;
    v->grad = v->value;
    v->grad.dtype = DMS_F32;
    DMS_TRY(dms_arena_place(inside ? &tape->scratch : &tape->keep, &v->grad));
    if (tape->options.measure)
        return DMS_OK;
    return v->grad.device->zero(v->grad.device, v->grad.data, dms_tensor_bytes(&v->grad));
}

/* A step whose only purpose is to leave scratch memory. */
static dms_status keep_forward(dms_node *n)
{
    return dms_cast(&n->out->value, &n->in[0]->value);
}

static dms_status keep_backward(dms_node *n)
{
    return dms_axpy(dms_wanted_grad(n, 0), 1.0f, &n->out->grad);
}

static const dms_rule keep_rule = {"keep", keep_forward, keep_backward, false};

void dms_tape_segment_begin(dms_tape *tape, bool replay)
{
    tape->in_segment = true;
    tape->replay = replay;
    tape->segment_first = tape->n_nodes;
    tape->scratch.used = 0;
}

/* The result moves to memory that outlives the segment. */
static dms_var *keep(dms_tape *tape, dms_var *out)
{
    dms_node *n = dms_tape_node(tape, &keep_rule, 1, &out);
    if (!n)
        return NULL;
    tape->in_segment = false;
    n->scratch_used = tape->scratch.used;
    return dms_tape_run(tape, n, out->value);
}

dms_var *dms_tape_segment_end(dms_tape *tape, dms_var *out)
{
    const bool copies = forgets(tape);
    dms_var *kept = copies ? keep(tape, out) : out;

    tape->in_segment = false;
    if (tape->status)
        return NULL;
    dms_node *last = &tape->nodes[tape->n_nodes - 1];
    last->segment_first = tape->segment_first;
    last->replay = copies;
    tape->status = touch_grad(tape, kept);
    return kept;
}

/* Forward again, into the addresses of the first time, so that the saved tensors of the segment
 * that ends at `last` are valid once more. The last node itself only copies. */
static dms_status replay(dms_tape *tape, int first, int last)
{
    for (int i = first; i < last; i++) {
        DMS_TRY(run_forward(tape, &tape->nodes[i]));
        tape->nodes[i].out->grad.data = NULL;
        if (tape->nodes[i].side)
            tape->nodes[i].side->grad.data = NULL;
    }
    return DMS_OK;
}

static dms_status step_back(dms_tape *tape, dms_node *n)
{
    const bool reached = dms_reached_grad(n->out) || dms_reached_grad(n->side);
    if (!n->rule->backward || !(reached || (n->rule->is_loss && n->out->wants_grad)))
        return DMS_OK; /* no gradient flows through this step */
    for (int k = 0; k < n->n_in; k++)
        DMS_TRY(touch_grad(tape, n->in[k]));
    return tape->options.measure ? DMS_OK : n->rule->backward(n);
}

dms_status dms_tape_backward(dms_tape *tape, dms_var *root, const dms_tensor *seed)
{
    DMS_TRY(tape->status);
    if (root)
        root->grad = *seed;
    for (int i = tape->n_nodes - 1; i >= 0; i--) {
        dms_node *n = &tape->nodes[i];
        if (n->segment_first >= 0) {
            tape->in_segment = true;
            tape->segment_first = n->segment_first;
            tape->scratch.used = n->scratch_used;
            if (n->replay)
                DMS_TRY(replay(tape, n->segment_first, i));
        }
        DMS_TRY(step_back(tape, n));
        if (i == tape->segment_first)
            tape->in_segment = false;
    }
    return DMS_OK;
}
