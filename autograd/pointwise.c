#include "autograd/ad.h"

static dms_status embedding_forward(dms_node *n)
{
    DMS_TRY(dms_embedding(&n->out->value, &n->aux[0], &n->in[0]->value));
    return n->in[1] ? dms_axpy(&n->out->value, 1.0f, &n->in[1]->value) : DMS_OK;
}

static dms_status embedding_backward(dms_node *n)
{
    dms_tensor *dw = dms_wanted_grad(n, 0), *to_residual = dms_wanted_grad(n, 1);
    if (dw)
        DMS_TRY(dms_embedding_bwd(dw, &n->out->grad, &n->aux[0]));
    return to_residual ? dms_axpy(to_residual, 1.0f, &n->out->grad) : DMS_OK;
}

static const dms_rule embedding_rule = {"embedding", embedding_forward, embedding_backward, false};

dms_var *dms_ad_embedding(dms_tape *tape, const dms_tensor *ids, dms_var *w, dms_var *residual)
{
    dms_node *n = dms_tape_node(tape, &embedding_rule, 2, (dms_var *[]){w, residual});
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

dms_var *dms_ad_swiglu(dms_tape *tape, dms_var *gate, dms_var *up, dms_dtype dtype)
{
    dms_node *n = dms_tape_node(tape, &swiglu_rule, 2, (dms_var *[]){gate, up});
    if (!n)
        return NULL;
    dms_tensor like = gate->value;
    like.dtype = dtype;
    return dms_tape_run(tape, n, like);
}

static dms_status gelu_forward(dms_node *n)
{
    return dms_gelu(&n->out->value, &n->in[0]->value);
}

static dms_status gelu_backward(dms_node *n)
{
    return dms_gelu_bwd(dms_wanted_grad(n, 0), &n->out->grad, &n->in[0]->value);
}

static const dms_rule gelu_rule = {"gelu", gelu_forward, gelu_backward, false};

dms_var *dms_ad_gelu(dms_tape *tape, dms_var *x, dms_dtype dtype)
{
    dms_node *n = dms_tape_node(tape, &gelu_rule, 1, (dms_var *[]){x});
    if (!n)
        return NULL;
    dms_tensor like = x->value;
    like.dtype = dtype;
    return dms_tape_run(tape, n, like);
}
