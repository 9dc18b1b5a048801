#include "autograd/ad.h"

enum { Q, K, V, BIAS, LSE = 0 /* aux */ };

static dms_attention_in inputs(const dms_node *n)
{
    return (dms_attention_in){.q = &n->in[Q]->value,
                              .k = &n->in[K]->value,
                              .v = &n->in[V]->value,
                              .bias = n->in[BIAS] ? &n->in[BIAS]->value : NULL,
                              .window = n->attr.attention.window,
                              .head_dim = n->attr.attention.head_dim,
                              .bf16 = n->attr.attention.bf16};
}

static dms_status forward(dms_node *n)
{
    const dms_attention_in in = inputs(n);
    return dms_attention(&n->out->value, &n->aux[LSE], &in);
}

static dms_status backward(dms_node *n)
{
    const dms_attention_in in = inputs(n);
    const dms_attention_grads grads = {.o = &n->out->value,
                                       .lse = &n->aux[LSE],
                                       .dout = &n->out->grad,
                                       .dq = dms_wanted_grad(n, Q),
                                       .dk = dms_wanted_grad(n, K),
                                       .dv = dms_wanted_grad(n, V),
                                       .dbias = dms_wanted_grad(n, BIAS)};
    return dms_attention_bwd(&grads, &in);
}

static const dms_rule attention_rule = {"attention", forward, backward, false};

dms_var *dms_ad_attention(dms_tape *tape, const dms_ad_attention_in *in)
{
    dms_node *n =
        dms_tape_node(tape, &attention_rule, 4, (dms_var *[]){in->q, in->k, in->v, in->bias});
    if (!n)
        return NULL;
    n->attr.attention.window = in->window;
    n->attr.attention.head_dim = in->head_dim;
    n->attr.attention.bf16 = in->bf16;
    const dms_tensor *q = &in->q->value;
    const int64_t heads = dms_cols(q) / in->head_dim;
    dms_tape_save(
        tape, n, LSE,
        (dms_tensor){.dtype = DMS_F32, .rank = 3, .shape = {q->shape[0], heads, q->shape[1]}});
    return dms_tape_run(tape, n, *q);
}
