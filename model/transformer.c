#include "model/transformer.h"

enum { NODES_PER_LAYER = 32, NODES_OUTSIDE = 16 };

/* A weight that the config may lack. */
static dms_var *optional(const dms_var *w)
{
    return w->value.rank ? (dms_var *)w : NULL;
}

static dms_var *linear(const dms_pass *p, dms_var *x, const dms_var *w, const dms_var *bias)
{
    return dms_ad_linear(p->tape, x, (dms_var *)w, bias ? optional(bias) : NULL, NULL);
}

/* The same on top of the residual stream. */
static dms_var *linear_onto(const dms_pass *p, dms_var *stream, dms_var *x, const dms_var *w,
                            const dms_var *bias)
{
    return dms_ad_linear(p->tape, x, (dms_var *)w, bias ? optional(bias) : NULL, stream);
}

/* y has the type of the weights that multiply it: products would round it anyway. */
static dms_var *norm(const dms_pass *p, dms_var *x, const dms_var *const w_bias[2], dms_dtype dtype)
{
    const dms_config *c = &p->model->config;
    dms_var *w = (dms_var *)w_bias[0];
    if (c->norm == DMS_NORM_LAYER)
        return dms_ad_layer_norm(p->tape, x, w, (dms_var *)w_bias[1], c->norm_eps, dtype);
    return dms_ad_rms_norm(p->tape, x, w, c->norm_eps, dtype);
}

/* z of the adapter gate, from the residual stream x before the layer's input norm. */
static dms_var *adapter_logit(const dms_pass *p, dms_var *x, const dms_layer *l)
{
    const dms_gate *gate = &p->model->gate;
    const dms_logit_spec spec = {gate->alpha_scale, gate->alpha_offset};
    dms_var *h =
        dms_ad_rms_norm(p->tape, x, (dms_var *)&l->alpha_norm, p->model->config.norm_eps, DMS_F32);
    dms_var *y = linear(p, h, &l->alpha, &l->alpha_bias);
    return dms_ad_eviction_logit(p->tape, y, &spec);
}

/* q with the borrowed rows' outputs in their place, where those rows are apart. */
static dms_var *put_rows(const dms_pass *p, dms_var *q, dms_var *h, const dms_layer *l)
{
    const dms_config *c = &p->model->config;
    if (!l->rows.value.rank)
        return q;
    return dms_ad_put_channels(p->tape, q, linear(p, h, &l->rows, &l->rows_bias), c->head_dim - 1,
                               (int64_t)(c->heads / c->kv_heads) * c->head_dim);
}

/* Heads of queries or keys, ready for attention. Where z is not NULL the last channel of each
 * group's first head is the neuron gate's: *z becomes its logits. */
static dms_var *rope(const dms_pass *p, dms_var *x, const dms_var *w, dms_var **z)
{
    const dms_config *c = &p->model->config;
    const dms_gate *gate = &p->model->gate;
    if (c->positions != DMS_POSITIONS_ROPE && !z && !w->value.rank)
        return x;
    const dms_rope_spec spec = {.table = &p->model->rope_table,
                                .ids = p->positions,
                                .borrowed_every = z ? c->heads / c->kv_heads : 0,
                                .keep = p->keep,
                                .eps = c->norm_eps,
                                .logit = {gate->alpha_scale, gate->alpha_offset}};
    return dms_ad_rope(p->tape, x, optional(w), &spec, z);
}

/* x + attention(norm(x)) */
static dms_var *attention(const dms_pass *p, dms_var *x, const dms_layer *l, int layer)
{
    const dms_gate_kind gate = p->gated ? p->model->gate.kind : DMS_GATE_NONE;
    const dms_dtype type = l->rows.value.rank ? l->rows.value.dtype : l->q.value.dtype;
    dms_var *h = norm(p, x, (const dms_var *[]){&l->input_norm, &l->input_norm_bias}, type);
    dms_var *q = put_rows(p, linear(p, h, &l->q, &l->q_bias), h, l);
    dms_var *k = linear(p, h, &l->k, &l->k_bias);
    dms_var *v = linear(p, h, &l->v, &l->v_bias);
    dms_var *z = gate == DMS_GATE_ADAPTER ? adapter_logit(p, x, l) : NULL;
    q = rope(p, q, &l->q_norm, gate == DMS_GATE_NEURON ? &z : NULL);
    k = rope(p, k, &l->k_norm, NULL);
    dms_var *o = p->attend(p, layer, (dms_var *[]){q, k, v}, z);
    return linear_onto(p, x, o, &l->o, &l->o_bias);
}

/* What `down` multiplies, from h = norm(x). */
static dms_var *hidden(const dms_pass *p, dms_var *h, const dms_layer *l)
{
    const dms_dtype type = l->down.value.dtype;
    if (p->model->config.ffn_kind == DMS_FFN_GELU)
        return dms_ad_gelu(p->tape, linear(p, h, &l->up, &l->up_bias), type);
    dms_var *gate = linear(p, h, &l->gate, NULL), *up = linear(p, h, &l->up, NULL);
    return dms_ad_swiglu(p->tape, gate, up, type);
}

/* x + mlp(norm(x)) */
static dms_var *mlp(const dms_pass *p, dms_var *x, const dms_layer *l)
{
    const dms_var *const weights[] = {&l->post_norm, &l->post_norm_bias};
    dms_var *h = norm(p, x, weights, l->up.value.dtype);
    return linear_onto(p, x, hidden(p, h, l), &l->down, &l->down_bias);
}

static dms_var *embed(const dms_pass *p)
{
    const dms_model *m = p->model;
    dms_var *x = dms_ad_embedding(p->tape, p->ids, (dms_var *)&m->embedding, NULL);
    if (m->config.positions != DMS_POSITIONS_LEARNED)
        return x;
    return dms_ad_embedding(p->tape, p->positions, (dms_var *)&m->positions, x);
}

dms_var *dms_transformer_forward(const dms_pass *pass)
{
    const dms_model *m = pass->model;
    dms_var *x = embed(pass);
    for (int i = 0; i < m->config.layers; i++) {
        const dms_layer *l = &m->layers[i];
        dms_tape_segment_begin(pass->tape, pass->replay);
        x = attention(pass, x, l, i);
        x = mlp(pass, x, l);
        x = dms_tape_segment_end(pass->tape, x);
    }
    return norm(pass, x, (const dms_var *[]){&m->final_norm, &m->final_norm_bias}, DMS_F32);
}

int dms_transformer_nodes(const dms_model *model)
{
    return model->config.layers * NODES_PER_LAYER + NODES_OUTSIDE;
}
