#include "model/transformer.h"

enum { NODES_PER_LAYER = 32, NODES_OUTSIDE = 16 };

/* A weight that the config may lack. */
static dms_var *optional(const dms_var *w)
{
    return w->value.rank ? (dms_var *)w : NULL;
}

static dms_var *linear(const dms_pass *p, dms_var *x, const dms_var *w, const dms_var *bias)
{
    return dms_ad_linear(p->tape, x, (dms_var *)w, bias ? optional(bias) : NULL);
}

static dms_var *norm(const dms_pass *p, dms_var *x, const dms_var *w)
{
    return dms_ad_rms_norm(p->tape, x, (dms_var *)w, p->model->config.norm_eps);
}

/* z of the adapter gate, from the residual stream x before the layer's input norm. */
static dms_var *adapter_logit(const dms_pass *p, dms_var *x, const dms_layer *l)
{
    const dms_gate *gate = &p->model->gate;
    const dms_logit_spec spec = {0, 1, gate->alpha_scale, gate->alpha_offset};
    dms_var *y = linear(p, norm(p, x, &l->alpha_norm), &l->alpha, &l->alpha_bias);
    return dms_ad_eviction_logit(p->tape, y, p->model->config.kv_heads, &spec);
}

/* z of the neuron gate: the last channel of each group's first query head, before RoPE. */
static dms_var *neuron_logit(const dms_pass *p, dms_var *q)
{
    const dms_config *c = &p->model->config;
    const dms_gate *gate = &p->model->gate;
    const dms_logit_spec spec = {c->head_dim - 1, (int64_t)(c->heads / c->kv_heads) * c->head_dim,
                                 gate->alpha_scale, gate->alpha_offset};
    return dms_ad_eviction_logit(p->tape, q, c->kv_heads, &spec);
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

static dms_var *rope(const dms_pass *p, dms_var *x, bool borrowed)
{
    const dms_config *c = &p->model->config;
    const dms_rope_spec spec = {.table = &p->model->rope_table,
                                .ids = p->positions,
                                .borrowed_every = borrowed ? c->heads / c->kv_heads : 0,
                                .keep = p->keep};
    return dms_ad_rope(p->tape, x, &spec);
}

static dms_var *attention(const dms_pass *p, dms_var *x, const dms_layer *l, int layer)
{
    const dms_gate_kind gate = p->gated ? p->model->gate.kind : DMS_GATE_NONE;
    dms_var *h = norm(p, x, &l->input_norm);
    dms_var *q = put_rows(p, linear(p, h, &l->q, &l->q_bias), h, l);
    dms_var *k = linear(p, h, &l->k, &l->k_bias);
    dms_var *v = linear(p, h, &l->v, &l->v_bias);
    dms_var *z = NULL;
    if (p->model->config.qk_norm) {
        q = norm(p, q, &l->q_norm);
        k = norm(p, k, &l->k_norm);
    }
    if (gate == DMS_GATE_NEURON)
        z = neuron_logit(p, q);
    if (gate == DMS_GATE_ADAPTER)
        z = adapter_logit(p, x, l);
    q = rope(p, q, gate == DMS_GATE_NEURON);
    k = rope(p, k, false);
    dms_var *o = p->attend(p, layer, (dms_var *[]){q, k, v}, z);
    return linear(p, o, &l->o, &l->o_bias);
}

static dms_var *mlp(const dms_pass *p, dms_var *x, const dms_layer *l)
{
    dms_var *h = norm(p, x, &l->post_norm);
    dms_var *gate = linear(p, h, &l->gate, NULL), *up = linear(p, h, &l->up, NULL);
    return linear(p, dms_ad_swiglu(p->tape, gate, up), &l->down, NULL);
}

dms_var *dms_transformer_forward(const dms_pass *pass)
{
    const dms_model *m = pass->model;
    dms_var *x = dms_ad_embedding(pass->tape, pass->ids, (dms_var *)&m->embedding);
    for (int i = 0; i < m->config.layers; i++) {
        const dms_layer *l = &m->layers[i];
        dms_tape_segment_begin(pass->tape, pass->replay);
        x = dms_ad_add(pass->tape, x, attention(pass, x, l, i));
        x = dms_ad_add(pass->tape, x, mlp(pass, x, l));
        x = dms_tape_segment_end(pass->tape, x);
    }
    return norm(pass, x, &m->final_norm);
}

int dms_transformer_nodes(const dms_model *model)
{
    return model->config.layers * NODES_PER_LAYER + NODES_OUTSIDE;
}
