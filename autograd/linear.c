#include "autograd/ad.h"

static const dms_tensor *optional(const dms_var *v)
{
    return v ? &v->value : NULL;
}

static dms_status forward(dms_node *n)
{
    return dms_linear(&n->out->value, &n->in[0]->value, &n->in[1]->value, optional(n->in[2]),
                      optional(n->in[3]));
}

static dms_status backward(dms_node *n)
{
    const dms_linear_grads grads = {dms_wanted_grad(n, 0), dms_wanted_grad(n, 1),
                                    dms_wanted_grad(n, 2)};
    DMS_TRY(dms_linear_bwd(&grads, &n->out->grad, &n->in[0]->value, &n->in[1]->value));
    dms_tensor *to_residual = dms_wanted_grad(n, 3);
    return to_residual ? dms_axpy(to_residual, 1.0f, &n->out->grad) : DMS_OK;
}

static const dms_rule linear_rule = {"linear", forward, backward, false};

dms_var *dms_ad_linear(dms_tape *tape, dms_var *x, dms_var *w, dms_var *bias, dms_var *residual)
{
    dms_node *n = dms_tape_node(tape, &linear_rule, 4, (dms_var *[]){x, w, bias, residual});
    if (!n)
        return NULL;
    dms_tensor like = x->value;
    like.dtype = DMS_F32;
    like.shape[like.rank - 1] = w->value.shape[0];
    return dms_tape_run(tape, n, like);
}
