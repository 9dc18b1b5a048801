#include "autograd/ad.h"

static dms_status rms_forward(dms_node *n)
{
    return dms_rms_norm(&n->out->value, &n->aux[0], &n->in[0]->value, &n->in[1]->value, n->attr.f);
}

static dms_status rms_backward(dms_node *n)
{
    return dms_rms_norm_bwd(dms_wanted_grad(n, 0), dms_wanted_grad(n, 1), &n->out->grad,
                            &n->in[0]->value, &n->in[1]->value, &n->aux[0]);
}

static const dms_rule rms_norm_rule = {"rms_norm", rms_forward, rms_backward, false};

dms_var *dms_ad_rms_norm(dms_tape *tape, dms_var *x, dms_var *w, float eps, dms_dtype dtype)
{
    dms_node *n = dms_tape_node(tape, &rms_norm_rule, 2, (dms_var *[]){x, w});
    if (!n)
        return NULL;
    n->attr.f = eps;
    const int64_t rows = dms_count(&x->value) / dms_count(&w->value);
    dms_tape_save(tape, n, 0, (dms_tensor){.dtype = DMS_F32, .rank = 1, .shape = {rows}});
    dms_tensor like = x->value;
    like.dtype = dtype;
    return dms_tape_run(tape, n, like);
}

static dms_status layer_forward(dms_node *n)
{
    return dms_layer_norm(&n->out->value, &n->aux[0], &n->in[0]->value, &n->in[1]->value,
                          &n->in[2]->value, n->attr.f);
}

static dms_status layer_backward(dms_node *n)
{
    const dms_layer_norm_grads grads = {dms_wanted_grad(n, 0), dms_wanted_grad(n, 1),
                                        dms_wanted_grad(n, 2)};
    return dms_layer_norm_bwd(&grads, &n->out->grad, &n->in[0]->value, &n->in[1]->value,
                              &n->aux[0]);
}

static const dms_rule layer_norm_rule = {"layer_norm", layer_forward, layer_backward, false};

dms_var *dms_ad_layer_norm(dms_tape *tape, dms_var *x, dms_var *w, dms_var *bias, float eps,
                           dms_dtype dtype)
{
    dms_node *n = dms_tape_node(tape, &layer_norm_rule, 3, (dms_var *[]){x, w, bias});
    if (!n)
        return NULL;
    n->attr.f = eps;
    dms_tensor like = x->value;
    like.dtype = dtype;
    dms_tape_save(tape, n, 0,
                  (dms_tensor){.dtype = DMS_F32, .rank = 2, .shape = {2, dms_rows(&x->value)}});
    return dms_tape_run(tape, n, like);
}
