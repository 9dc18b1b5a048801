#include "model/dms.h"

dms_tensor dms_layer_view(const dms_tensor *all, int layer)
{
    dms_tensor t = *all;
    t.rank = 3;
    for (int i = 0; i < 3; i++)
        t.shape[i] = all->shape[i + 1];
    t.data = (char *)all->data + (size_t)layer * dms_tensor_bytes(&t);
    return t;
}

static dms_var *attend(const dms_pass *pass, dms_var *const qkv[3], dms_var *bias, int64_t window)
{
    return dms_ad_attention(pass->tape,
                            &(dms_ad_attention_in){.q = qkv[0],
                                                   .k = qkv[1],
                                                   .v = qkv[2],
                                                   .bias = bias,
                                                   .window = window,
                                                   .head_dim = pass->model->config.head_dim,
                                                   .bf16 = pass->model->matrix_type == DMS_BF16});
}

dms_var *dms_attend_dense(const dms_pass *pass, int layer, dms_var *const qkv[3], dms_var *z)
{
    (void)layer;
    (void)z;
    return attend(pass, qkv, NULL, 0);
}

/* A variable that shows one layer of logits given from outside. */
static dms_var *given_logits(const dms_pass *pass, const dms_tensor *all, int layer)
{
    const dms_tensor view = dms_layer_view(all, layer);
    dms_var *v = dms_tape_input(pass->tape, view);
    if (v)
        v->value = view;
    return v;
}

dms_var *dms_attend_soft(const dms_pass *pass, int layer, dms_var *const qkv[3], dms_var *z)
{
    const dms_soft_context *c = pass->context;
    const dms_gate *gate = &pass->model->gate;
    if (!z)
        return NULL;
    dms_tensor injected = {0};
    dms_relaxed_gate relaxed = {.tau = gate->tau, .noise = c->noise};
    relaxed.noise.layer = layer;
    if (c->injected) {
        injected = dms_layer_view(c->injected, layer);
        relaxed.injected = &injected;
    }
    const dms_tensor decisions = dms_layer_view(c->decisions, layer);
    const dms_gate_spec spec = {&decisions, c->pressure, relaxed};
    return attend(pass, qkv, dms_ad_gate_soft(pass->tape, z, &spec), gate->window);
}

/* Where a decision governs its own token, the law is given each one token late; the first of each
 * row governs nothing, so it may be the last of the row before. */
static dms_var *one_token_late(const dms_pass *pass, const dms_var *z)
{
    dms_var *late = dms_tape_input(pass->tape, z->value);
    if (!late || dms_tape_measures(pass->tape))
        return late;
    dms_tensor to = {.device = z->value.device, .dtype = DMS_F32, .rank = 1, .shape = {1}};
    dms_tensor from = to;
    to.data = late->value.data;
    from.data = z->value.data;
    dms_tape_check(pass->tape, dms_cast(&to, &from));
    to.data = (float *)to.data + 1;
    to.shape[0] = from.shape[0] = dms_count(&z->value) - 1;
    if (to.shape[0])
        dms_tape_check(pass->tape, dms_cast(&to, &from));
    return late;
}

dms_var *dms_attend_hard(const dms_pass *pass, int layer, dms_var *const qkv[3], dms_var *z)
{
    const dms_hard_context *c = pass->context;
    if (c->given)
        z = given_logits(pass, c->given, layer);
    else if (z && pass->model->gate.own)
        z = one_token_late(pass, z);
    if (!z)
        return NULL;
    const dms_tensor decisions = dms_layer_view(c->decisions, layer);
    if (c->logits && !dms_tape_measures(pass->tape)) {
        dms_tensor out = dms_layer_view(c->logits, layer);
        dms_tape_check(pass->tape, dms_cast(&out, &z->value));
    }
    return attend(pass, qkv, dms_ad_gate_hard(pass->tape, z, &decisions), c->window);
}

float dms_fade_keep(int64_t step, int64_t fade_steps)
{
    const float keep = 1.0f - (float)step / (0.8f * (float)fade_steps);
    return fade_steps > 0 && keep > 0 ? keep : 0.0f;
}
