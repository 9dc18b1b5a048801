#include "autograd/ad.h"

static dms_status forward(dms_node *n)
{
    return dms_rms_norm(&n->out->value, &n->aux[0], &n->in[0]->value, &n->in[1]->value, n->attr.f);
}

static dms_status backward(dms_node *n)
{
    return dms_rms_norm_bwd(dms_wanted_grad(n, 0), dms_wanted_grad(n, 1), &n->out->grad,
                            &n->in[0]->value, &n->in[1]->value, &n->aux[0]);
}

static const dms_rule rms_norm_rule = {"rms_norm", forward, backward, false};

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
