#include "autograd/ad.h"

static dms_status logit_forward(dms_node *n)
{
    return dms_eviction_logit(&n->out->value, &n->in[0]->value, &n->attr.logit);
}

static dms_status logit_backward(dms_node *n)
{
    return dms_eviction_logit_bwd(dms_wanted_grad(n, 0), &n->out->grad, &n->attr.logit);
}

static const dms_rule logit_rule = {"eviction_logit", logit_forward, logit_backward, false};

dms_var *dms_ad_eviction_logit(dms_tape *tape, dms_var *y, const dms_logit_spec *spec)
{
    dms_node *n = dms_tape_node(tape, &logit_rule, 1, (dms_var *[]){y});
    if (!n)
        return NULL;
    n->attr.logit = *spec;
    const int64_t *shape = y->value.shape;
    return dms_tape_run(
        tape, n,
        (dms_tensor){.dtype = DMS_F32, .rank = 3, .shape = {shape[0], shape[2], shape[1]}});
}

static dms_status put_forward(dms_node *n)
{
    return dms_put_channels(&n->out->value, &n->in[0]->value, &n->in[1]->value,
                            n->attr.channels.first, n->attr.channels.step);
}

static dms_status put_backward(dms_node *n)
{
    return dms_put_channels_bwd(dms_wanted_grad(n, 0), dms_wanted_grad(n, 1), &n->out->grad,
                                n->attr.channels.first, n->attr.channels.step);
}

static const dms_rule put_rule = {"put_channels", put_forward, put_backward, false};

dms_var *dms_ad_put_channels(dms_tape *tape, dms_var *x, dms_var *channels, int64_t first,
                             int64_t step)
{
    dms_node *n = dms_tape_node(tape, &put_rule, 2, (dms_var *[]){x, channels});
    if (!n)
        return NULL;
    n->attr.channels.first = first;
    n->attr.channels.step = step;
    return dms_tape_run(tape, n, x->value);
}

enum { DECISIONS, PRESSURE, INJECTED }; /* aux */

static dms_status soft_forward(dms_node *n)
{
    return dms_gate_soft(&n->out->value, &n->aux[DECISIONS], &n->in[0]->value, &n->attr.relaxed);
}

static dms_status soft_backward(dms_node *n)
{
    return dms_gate_soft_bwd(dms_wanted_grad(n, 0), &n->out->grad, &n->aux[PRESSURE],
                             &n->in[0]->value, &n->attr.relaxed);
}

static const dms_rule soft_rule = {"gate_soft", soft_forward, soft_backward, false};

dms_var *dms_ad_gate_soft(dms_tape *tape, dms_var *z, const dms_gate_spec *spec)
{
    dms_node *n = dms_tape_node(tape, &soft_rule, 1, (dms_var *[]){z});
    if (!n)
        return NULL;
    n->aux[DECISIONS] = *spec->d;
    n->aux[PRESSURE] = *spec->pressure;
    n->attr.relaxed = spec->relaxed;
    if (spec->relaxed.injected) {
        n->aux[INJECTED] = *spec->relaxed.injected;
        n->attr.relaxed.injected = &n->aux[INJECTED];
    }
    return dms_tape_run(tape, n, z->value);
}

static dms_status hard_forward(dms_node *n)
{
    return dms_gate_hard(&n->out->value, &n->aux[DECISIONS], &n->in[0]->value);
}

static const dms_rule hard_rule = {"gate_hard", hard_forward, NULL, false};

dms_var *dms_ad_gate_hard(dms_tape *tape, dms_var *z, const dms_tensor *d)
{
    dms_node *n = dms_tape_node(tape, &hard_rule, 1, (dms_var *[]){z});
    if (!n)
        return NULL;
    n->out->wants_grad = false;
    n->aux[DECISIONS] = *d;
    return dms_tape_run(tape, n, z->value);
}
