#include "autograd/ad.h"

enum { RSTD }; /* aux */

static dms_status forward(dms_node *n)
{
    const dms_rope_out out = {.y = &n->out->value,
                              .rstd = n->in[1] ? &n->aux[RSTD] : NULL,
                              .z = n->side ? &n->side->value : NULL};
    return dms_rope(&out, &n->in[0]->value, &n->attr.rope);
}

static dms_status backward(dms_node *n)
{
    const dms_rope_grads grads = {.dy = dms_reached_grad(n->out),
                                  .dz = dms_reached_grad(n->side),
                                  .x = &n->in[0]->value,
                                  .rstd = n->in[1] ? &n->aux[RSTD] : NULL,
                                  .dx = dms_wanted_grad(n, 0),
                                  .dw = dms_wanted_grad(n, 1)};
    return dms_rope_bwd(&grads, &n->attr.rope);
}

static const dms_rule rope_rule = {"rope", forward, backward, false};

static dms_tensor shape_of_logits(const dms_tensor *x, const dms_rope_spec *spec)
{
    const int64_t heads = dms_cols(x) / dms_cols(spec->table);
    const int64_t every = spec->borrowed_every ? spec->borrowed_every : 1; /* the op refuses 0 */
    return (dms_tensor){.dtype = DMS_F32,
                        .rank = 3,
                        .shape = {x->shape[0], (heads + every - 1) / every, x->shape[1]}};
}

dms_var *dms_ad_rope(dms_tape *tape, dms_var *x, dms_var *w, const dms_rope_spec *spec, dms_var **z)
{
    dms_node *n = dms_tape_node(tape, &rope_rule, 2, (dms_var *[]){x, w});
    if (z)
        *z = NULL;
    if (!n)
        return NULL;
    n->attr.rope = *spec;
    n->attr.rope.norm = w ? &w->value : NULL;
    if (w) {
        const int64_t heads = dms_count(&x->value) / dms_cols(spec->table);
        dms_tape_save(tape, n, RSTD, (dms_tensor){.dtype = DMS_F32, .rank = 1, .shape = {heads}});
    }
    if (z)
        *z = dms_tape_side(tape, n, shape_of_logits(&x->value, spec));
    return dms_tape_run(tape, n, x->value);
}
