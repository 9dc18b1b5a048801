#include "autograd/ad.h"

enum { WEIGHT }; /* aux */

static dms_status distill(dms_node *n)
{
    const dms_distill_out out = {.kl = &n->out->value,
                                 .dxs = dms_wanted_grad(n, 0),
                                 .dws = dms_wanted_grad(n, 1),
                                 .direction = n->attr.distill.direction};
    const dms_distill_in in = {.xs = &n->in[0]->value,
                               .ws = &n->in[1]->value,
                               .xt = n->attr.distill.teacher_x,
                               .wt = n->attr.distill.teacher_w,
                               .weight = &n->aux[WEIGHT]};
    return dms_distill(&out, &in);
}

/* Value and gradient come from one pass over the vocabulary, so a pass that will be walked
 * backwards leaves both to that walk. */
static dms_status forward(dms_node *n)
{
    return n->out->wants_grad ? DMS_OK : distill(n);
}

static const dms_rule distill_rule = {"distill", forward, distill, true};

dms_var *dms_ad_distill(dms_tape *tape, dms_var *x, dms_var *w, const dms_distill_spec *spec)
{
    dms_node *n = dms_tape_node(tape, &distill_rule, 2, (dms_var *[]){x, w});
    if (!n)
        return NULL;
    n->attr.distill.teacher_x = spec->teacher_x;
    n->attr.distill.teacher_w = spec->teacher_w;
    n->attr.distill.direction = spec->direction;
    n->aux[WEIGHT] = *spec->weight;
    return dms_tape_run(tape, n,
                        (dms_tensor){.dtype = DMS_F32, .rank = 1, .shape = {dms_rows(&x->value)}});
}
