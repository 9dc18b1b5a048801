#include "autograd/ad.h"

static dms_status add_forward(dms_node *n)
{
    return dms_add(&n->out->value, &n->in[0]->value, &n->in[1]->value);
}

static dms_status add_backward(dms_node *n)
{
    for (int i = 0; i < 2; i++)
        if (dms_wanted_grad(n, i))
            DMS_TRY(dms_axpy(dms_wanted_grad(n, i), 1.0f, &n->out->grad));
    return DMS_OK;
}

static const dms_rule add_rule = {"add", add_forward, add_backward, false};

dms_var *dms_ad_add(dms_tape *tape, dms_var *a, dms_var *b)
{
    dms_node *n = dms_tape_node(tape, &add_rule, 2, (dms_var *[]){a, b});
    return n ? dms_tape_run(tape, n, a->value) : NULL;
}

static dms_status embedding_forward(dms_node *n)
{
    return dms_embedding(&n->out->value, &n->aux[0], &n->in[0]->value);
}

static dms_status embedding_backward(dms_node *n)
{
    return dms_embedding_bwd(dms_wanted_grad(n, 0), &n->out->grad, &n->aux[0]);
}

static const dms_rule embedding_rule = {"embedding", embedding_forward, embedding_backward, false};

dms_var *dms_ad_embedding(dms_tape *tape, const dms_tensor *ids, dms_var *w)
{
    dms_node *n = dms_tape_node(tape, &embedding_rule, 1, (dms_var *[]){w});
    if (!n)
        return NULL;
    n->aux[0] = *ids;
    return dms_tape_run(tape, n,
                        (dms_tensor){.dtype = DMS_F32,
                                     .rank = 3,
                                     .shape = {ids->shape[0], ids->shape[1], dms_cols(&w->value)}});
}

static dms_status swiglu_forward(dms_node *n)
{
    return dms_swiglu(&n->out->value, &n->in[0]->value, &n->in[1]->value);
}

static dms_status swiglu_backward(dms_node *n)
{
    return dms_swiglu_bwd(dms_wanted_grad(n, 0), dms_wanted_grad(n, 1), &n->out->grad,
                          &n->in[0]->value, &n->in[1]->value);
}

static const dms_rule swiglu_rule = {"swiglu", swiglu_forward, swiglu_backward, false};

dms_var *dms_ad_swiglu(dms_tape *tape, dms_var *gate, dms_var *up)
{
    dms_node *n = dms_tape_node(tape, &swiglu_rule, 2, (dms_var *[]){gate, up});
    return n ? dms_tape_run(tape, n, gate->value) : NULL;
}

static dms_status rope_forward(dms_node *n)
{
    return dms_rope(&n->out->value, &n->in[0]->value, &n->attr.rope);
}

static dms_status rope_backward(dms_node *n)
{
    return dms_rope_bwd(dms_wanted_grad(n, 0), &n->out->grad, &n->attr.rope);
}

static const dms_rule rope_rule = {"rope", rope_forward, rope_backward, false};

dms_var *dms_ad_rope(dms_tape *tape, dms_var *x, const dms_rope_spec *spec)
{
    dms_node *n = dms_tape_node(tape, &rope_rule, 1, (dms_var *[]){x});
    if (!n)
        return NULL;
    n->attr.rope = *spec;
    return dms_tape_run(tape, n, x->value);
}
