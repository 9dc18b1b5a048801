/* What every op checks, whatever the device; the work itself is the device's. */
#include <inttypes.h>

#include "kernels/op_checks.h"

dms_status dms_axpy(dms_tensor *y, float scale, const dms_tensor *x)
{
    DMS_TRY(expect("y", y, x));
    return RUN(x, axpy, y, scale, x);
}

dms_status dms_cast(dms_tensor *y, const dms_tensor *x)
{
    dms_tensor want = *x;
    want.dtype = y->dtype;
    DMS_TRY(expect("y", y, &want));
    if (y->dtype == DMS_I32 || x->dtype == DMS_I32)
        return dms_fail(DMS_ERR_DTYPE, "cast is from %s to %s, expected f32 and bf16",
                        type_name(x->dtype), type_name(y->dtype));
    return RUN(x, cast, y, x);
}

dms_status dms_embedding(dms_tensor *y, const dms_tensor *ids, const dms_tensor *w)
{
    DMS_TRY(expect_weight("w", w, w->shape[0], dms_cols(w)));
    DMS_TRY(expect_count("ids", ids, DMS_I32, dms_rows(y)));
    DMS_TRY(expect_count("y", y, DMS_F32, dms_count(ids) * dms_cols(w)));
    return RUN(y, embedding, y, ids, w);
}

dms_status dms_embedding_bwd(dms_tensor *dw, const dms_tensor *dy, const dms_tensor *ids)
{
    DMS_TRY(expect_count("ids", ids, DMS_I32, dms_rows(dy)));
    DMS_TRY(expect_shape("dw", dw, dy->device, DMS_F32, 2, dw->shape[0], dms_cols(dy)));
    return RUN(dy, embedding_bwd, dw, dy, ids);
}

dms_status dms_swiglu(dms_tensor *y, const dms_tensor *gate, const dms_tensor *up)
{
    DMS_TRY(expect("up", up, gate));
    DMS_TRY(expect_activation("y", y, gate));
    return RUN(gate, swiglu, y, gate, up);
}

dms_status dms_swiglu_bwd(dms_tensor *dgate, dms_tensor *dup, const dms_tensor *dy,
                          const dms_tensor *gate, const dms_tensor *up)
{
    DMS_TRY(expect("up", up, gate));
    DMS_TRY(expect("dy", dy, gate));
    DMS_TRY(expect("dgate", dgate, gate));
    DMS_TRY(expect("dup", dup, gate));
    return RUN(gate, swiglu_bwd, dgate, dup, dy, gate, up);
}

dms_status dms_gelu(dms_tensor *y, const dms_tensor *x)
{
    DMS_TRY(expect_activation("y", y, x));
    return RUN(x, gelu, y, x);
}

dms_status dms_gelu_bwd(dms_tensor *dx, const dms_tensor *dy, const dms_tensor *x)
{
    DMS_TRY(expect("dy", dy, x));
    DMS_TRY(expect("dx", dx, x));
    return dx ? RUN(x, gelu_bwd, dx, dy, x) : DMS_OK;
}

static dms_status check_norm(const dms_tensor *x, const dms_tensor *w, const dms_tensor *rstd)
{
    const int64_t dim = dms_count(w);
    DMS_TRY(expect_shape("w", w, x->device, DMS_F32, 1, dim));
    if (dim < 1 || dms_cols(x) % dim)
        return dms_fail(DMS_ERR_SHAPE, "w has %" PRId64 " channels, expected a divisor of %" PRId64,
                        dim, dms_cols(x));
    return expect_shape("rstd", rstd, x->device, DMS_F32, 1, dms_count(x) / dim);
}

dms_status dms_rms_norm(dms_tensor *y, dms_tensor *rstd, const dms_tensor *x, const dms_tensor *w,
                        float eps)
{
    DMS_TRY(check_norm(x, w, rstd));
    DMS_TRY(expect_activation("y", y, x));
    return RUN(x, rms_norm, y, rstd, x, w, eps);
}

dms_status dms_rms_norm_bwd(dms_tensor *dx, dms_tensor *dw, const dms_tensor *dy,
                            const dms_tensor *x, const dms_tensor *w, const dms_tensor *rstd)
{
    DMS_TRY(check_norm(x, w, rstd));
    DMS_TRY(expect("dy", dy, x));
    DMS_TRY(expect("dx", dx, x));
    DMS_TRY(expect("dw", dw, w));
    return RUN(x, rms_norm_bwd, dx, dw, dy, x, w, rstd);
}

static dms_status check_layer_norm(const dms_tensor *x, const dms_tensor *w,
                                   const dms_tensor *stats)
{
    DMS_TRY(expect_shape("w", w, x->device, DMS_F32, 1, dms_cols(x)));
    return expect_shape("stats", stats, x->device, DMS_F32, 2, (int64_t)2, dms_rows(x));
}

dms_status dms_layer_norm(dms_tensor *y, dms_tensor *stats, const dms_tensor *x,
                          const dms_tensor *w, const dms_tensor *bias, float eps)
{
    DMS_TRY(check_layer_norm(x, w, stats));
    DMS_TRY(expect("bias", bias, w));
    DMS_TRY(expect_activation("y", y, x));
    return RUN(x, layer_norm, y, stats, x, w, bias, eps);
}

dms_status dms_layer_norm_bwd(const dms_layer_norm_grads *grads, const dms_tensor *dy,
                              const dms_tensor *x, const dms_tensor *w, const dms_tensor *stats)
{
    DMS_TRY(check_layer_norm(x, w, stats));
    DMS_TRY(expect("dy", dy, x));
    DMS_TRY(expect("dx", grads->dx, x));
    DMS_TRY(expect("dw", grads->dw, w));
    DMS_TRY(expect("dbias", grads->dbias, w));
    return RUN(x, layer_norm_bwd, grads, dy, x, w, stats);
}

static dms_status check_rope(const dms_tensor *x, const dms_rope_spec *spec)
{
    const int64_t width = dms_cols(spec->table);
    DMS_TRY(expect_shape("rope table", spec->table, x->device, DMS_F32, 2, dms_rows(spec->table),
                         width));
    if (width % 2 || dms_cols(x) % width)
        return dms_fail(DMS_ERR_SHAPE, "x has %" PRId64 " channels, expected heads of %" PRId64,
                        dms_cols(x), width);
    if (spec->borrowed_every)
        DMS_TRY(expect_rank3("x", x));
    DMS_TRY(expect_shape("norm", spec->norm, x->device, DMS_F32, 1, width));
    return expect_count("positions", spec->ids, DMS_I32, dms_rows(x));
}

/* Logits of the gate's neurons, and what the norm left, beside heads of the shape of x. */
static dms_status check_heads_out(const dms_tensor *z, const dms_tensor *rstd, const dms_tensor *x,
                                  const dms_rope_spec *spec)
{
    const int64_t heads = dms_cols(x) / dms_cols(spec->table), every = spec->borrowed_every;
    DMS_TRY(expect_shape("rstd", rstd, x->device, DMS_F32, 1, dms_rows(x) * heads));
    if (!z)
        return DMS_OK;
    if (every < 1)
        return dms_fail(DMS_ERR_ARG, "logits are asked for, but no channel is borrowed");
    return expect_shape("z", z, x->device, DMS_F32, 3, x->shape[0], (heads + every - 1) / every,
                        x->shape[1]);
}

dms_status dms_rope(const dms_rope_out *out, const dms_tensor *x, const dms_rope_spec *spec)
{
    DMS_TRY(check_rope(x, spec));
    DMS_TRY(expect("y", out->y, x));
    DMS_TRY(check_heads_out(out->z, out->rstd, x, spec));
    return RUN(x, rope, out, x, spec);
}

dms_status dms_rope_bwd(const dms_rope_grads *grads, const dms_rope_spec *spec)
{
    const dms_tensor *like = grads->x ? grads->x : grads->dx;
    if (!grads->dx && !grads->dw)
        return DMS_OK;
    if ((spec->norm || grads->dw) && !(spec->norm && grads->x && grads->rstd))
        return dms_fail(DMS_ERR_ARG, "the gradient of a norm wants norm, x and rstd, one is NULL");
    DMS_TRY(check_rope(like, spec));
    DMS_TRY(expect("dx", grads->dx, like));
    DMS_TRY(expect("dy", grads->dy, like));
    DMS_TRY(check_heads_out(grads->dz, grads->rstd, like, spec));
    DMS_TRY(expect_shape("dw", grads->dw, like->device, DMS_F32, 1, dms_cols(spec->table)));
    return RUN(like, rope_bwd, grads, spec);
}

/* x and w of a linear layer. */
static dms_status check_operands(const dms_tensor *x, const dms_tensor *w)
{
    DMS_TRY(expect_weight("w", w, w->shape[0], dms_cols(x)));
    if (x->dtype == DMS_F32 || (x->dtype == DMS_BF16 && w->dtype == DMS_BF16))
        return DMS_OK;
    return dms_fail(DMS_ERR_DTYPE, "x is %s, expected f32%s where w is %s", type_name(x->dtype),
                    w->dtype == DMS_BF16 ? " or bf16" : "", type_name(w->dtype));
}

dms_status dms_linear(dms_tensor *y, const dms_tensor *x, const dms_tensor *w,
                      const dms_tensor *bias, const dms_tensor *residual)
{
    const int64_t outputs = w->shape[0];
    const dms_tensor like_y = with_cols(x, outputs);
    DMS_TRY(check_operands(x, w));
    DMS_TRY(expect_shape("bias", bias, x->device, DMS_F32, 1, outputs));
    DMS_TRY(expect("residual", residual, &like_y));
    DMS_TRY(expect("y", y, &like_y));
    return RUN(x, linear, y, x, w, bias, residual);
}

dms_status dms_linear_bwd(const dms_linear_grads *grads, const dms_tensor *dy, const dms_tensor *x,
                          const dms_tensor *w)
{
    const int64_t outputs = w->shape[0], inputs = dms_cols(x);
    const dms_tensor like_y = with_cols(x, outputs), like_dx = with_cols(x, inputs);
    DMS_TRY(check_operands(x, w));
    DMS_TRY(expect("dy", dy, &like_y));
    DMS_TRY(expect("dx", grads->dx, &like_dx));
    DMS_TRY(expect_shape("dw", grads->dw, x->device, DMS_F32, 2, outputs, inputs));
    DMS_TRY(expect_shape("dbias", grads->dbias, x->device, DMS_F32, 1, outputs));
    return RUN(x, linear_bwd, grads, dy, x, w);
}

static dms_status check_logit(const dms_tensor *z, const dms_tensor *y)
{
    DMS_TRY(expect_rank3("y", y));
    return expect_shape("z", z, y->device, DMS_F32, 3, y->shape[0], dms_cols(y), y->shape[1]);
}

dms_status dms_eviction_logit(dms_tensor *z, const dms_tensor *y, const dms_logit_spec *spec)
{
    DMS_TRY(check_logit(z, y));
    return RUN(y, eviction_logit, z, y, spec);
}

dms_status dms_eviction_logit_bwd(dms_tensor *dy, const dms_tensor *dz, const dms_logit_spec *spec)
{
    DMS_TRY(check_logit(dz, dy));
    return RUN(dz, eviction_logit_bwd, dy, dz, spec);
}

/* channels: as many rows as y; all of them lie within y's columns. */
static dms_status check_channels(const dms_tensor *channels, const dms_tensor *y, int64_t first,
                                 int64_t step)
{
    const int64_t n = dms_cols(channels);
    DMS_TRY(expect_count("channels", channels, DMS_F32, dms_rows(y) * n));
    if (first < 0 || step < 1 || first + (n - 1) * step >= dms_cols(y))
        return dms_fail(DMS_ERR_SHAPE, "channels end at %" PRId64 ", y has %" PRId64,
                        first + (n - 1) * step, dms_cols(y));
    return DMS_OK;
}

dms_status dms_put_channels(dms_tensor *y, const dms_tensor *x, const dms_tensor *channels,
                            int64_t first, int64_t step)
{
    DMS_TRY(expect("y", y, x));
    DMS_TRY(check_channels(channels, y, first, step));
    return RUN(x, put_channels, y, x, channels, first, step);
}

dms_status dms_put_channels_bwd(dms_tensor *dx, dms_tensor *dchannels, const dms_tensor *dy,
                                int64_t first, int64_t step)
{
    DMS_TRY(expect("dx", dx, dy));
    DMS_TRY(check_channels(dchannels, dy, first, step));
    return RUN(dy, put_channels_bwd, dx, dchannels, dy, first, step);
}

dms_status dms_gate_soft(dms_tensor *bias, dms_tensor *d, const dms_tensor *z,
                         const dms_relaxed_gate *gate)
{
    DMS_TRY(expect_rank3("z", z));
    DMS_TRY(expect("the injected noise", gate->injected, z));
    DMS_TRY(expect("bias", bias, z));
    DMS_TRY(expect("d", d, z));
    return dms_count(z) ? RUN(z, gate_soft, bias, d, z, gate) : DMS_OK;
}

dms_status dms_gate_soft_bwd(dms_tensor *dz, const dms_tensor *dbias, const dms_tensor *pressure,
                             const dms_tensor *z, const dms_relaxed_gate *gate)
{
    DMS_TRY(expect_rank3("z", z));
    DMS_TRY(expect("the injected noise", gate->injected, z));
    DMS_TRY(expect("dbias", dbias, z));
    DMS_TRY(expect("dz", dz, z));
    DMS_TRY(expect_shape("pressure", pressure, z->device, DMS_F32, 1, z->shape[0]));
    if (!dz || !dbias || !pressure)
        return dms_fail(DMS_ERR_ARG, "gate_soft_bwd wants dz, dbias and pressure, one is NULL");
    return RUN(z, gate_soft_bwd, dz, dbias, pressure, z, gate);
}

dms_status dms_gate_hard(dms_tensor *bias, dms_tensor *d, const dms_tensor *z)
{
    DMS_TRY(expect_rank3("z", z));
    DMS_TRY(expect("bias", bias, z));
    DMS_TRY(expect("d", d, z));
    return dms_count(z) ? RUN(z, gate_hard, bias, d, z) : DMS_OK;
}

static dms_status check_attention(const dms_attention_in *in)
{
    const dms_tensor *q = in->q, *k = in->k;
    const int64_t width = in->head_dim;
    DMS_TRY(expect_rank3("q", q));
    DMS_TRY(expect_rank3("k", k));
    DMS_TRY(expect_shape("k", k, q->device, DMS_F32, 3, q->shape[0], q->shape[1], dms_cols(k)));
    DMS_TRY(expect("v", in->v, k));
    if (width <= 0 || dms_cols(k) % width || dms_cols(q) % dms_cols(k))
        return dms_fail(DMS_ERR_SHAPE,
                        "q and k have %" PRId64 " and %" PRId64
                        " channels, expected groups of heads of %" PRId64,
                        dms_cols(q), dms_cols(k), width);
    if (in->window < 0)
        return dms_fail(DMS_ERR_ARG, "window is %" PRId64 ", expected 0 or more", in->window);
    return expect_shape("bias", in->bias, q->device, DMS_F32, 3, q->shape[0], dms_cols(k) / width,
                        q->shape[1]);
}

dms_status dms_attention(dms_tensor *o, dms_tensor *lse, const dms_attention_in *in)
{
    const dms_tensor *q = in->q;
    DMS_TRY(check_attention(in));
    DMS_TRY(expect("o", o, q));
    DMS_TRY(expect_shape("lse", lse, q->device, DMS_F32, 3, q->shape[0], dms_cols(q) / in->head_dim,
                         q->shape[1]));
    return RUN(q, attention, o, lse, in);
}

dms_status dms_attention_bwd(const dms_attention_grads *grads, const dms_attention_in *in)
{
    const dms_tensor *q = in->q;
    DMS_TRY(check_attention(in));
    DMS_TRY(expect("o", grads->o, q));
    DMS_TRY(expect("dout", grads->dout, q));
    DMS_TRY(expect_shape("lse", grads->lse, q->device, DMS_F32, 3, q->shape[0],
                         dms_cols(q) / in->head_dim, q->shape[1]));
    DMS_TRY(expect("dq", grads->dq, q));
    DMS_TRY(expect("dk", grads->dk, in->k));
    DMS_TRY(expect("dv", grads->dv, in->k));
    if (grads->dbias && !in->bias)
        return dms_fail(DMS_ERR_ARG, "dbias is asked for, but there is no bias");
    if (grads->dbias)
        DMS_TRY(expect("dbias", grads->dbias, in->bias));
    return RUN(q, attention_bwd, grads, in);
}

static dms_status check_heads(const dms_distill_in *in)
{
    const dms_tensor *xs = in->xs, *ws = in->ws;
    DMS_TRY(expect_weight("ws", ws, ws->shape[0], dms_cols(xs)));
    if (in->xt) {
        DMS_TRY(expect("xt", in->xt, xs));
        DMS_TRY(expect_weight("wt", in->wt, ws->shape[0], dms_cols(xs)));
    }
    return expect_count("weight", in->weight, DMS_F32, dms_rows(xs));
}

dms_status dms_distill(const dms_distill_out *out, const dms_distill_in *in)
{
    const dms_tensor *ws = in->ws;
    DMS_TRY(check_heads(in));
    if (!in->xt)
        return dms_fail(DMS_ERR_ARG, "distillation wants a teacher, xt is NULL");
    DMS_TRY(expect_count("kl", out->kl, DMS_F32, dms_rows(in->xs)));
    DMS_TRY(expect("dxs", out->dxs, in->xs));
    DMS_TRY(expect_shape("dws", out->dws, ws->device, DMS_F32, 2, ws->shape[0], ws->shape[1]));
    return RUN(in->xs, distill, out, in);
}

dms_status dms_score(const dms_score_out *out, const dms_distill_in *in)
{
    const int64_t rows = dms_rows(in->xs);
    DMS_TRY(check_heads(in));
    if (!in->xt && (out->nll_teacher || out->kl_forward || out->kl_reverse || out->agree))
        return dms_fail(DMS_ERR_ARG, "a comparison wants a teacher, xt is NULL");
    if (!out->next && (out->nll || out->nll_teacher))
        return dms_fail(DMS_ERR_ARG, "nll wants the next tokens, next is NULL");
    DMS_TRY(expect_count("next", out->next, DMS_I32, rows));
    DMS_TRY(expect_count("nll", out->nll, DMS_F32, rows));
    DMS_TRY(expect_count("nll_teacher", out->nll_teacher, DMS_F32, rows));
    DMS_TRY(expect_count("kl_forward", out->kl_forward, DMS_F32, rows));
    DMS_TRY(expect_count("kl_reverse", out->kl_reverse, DMS_F32, rows));
    DMS_TRY(expect_count("agree", out->agree, DMS_F32, rows));
    return RUN(in->xs, score, out, in);
}

dms_status dms_compression(const dms_compression_out *out, const dms_tensor *d, float target,
                           float weight)
{
    if (d->rank != 4)
        return dms_fail(DMS_ERR_SHAPE, "d has %d dimensions, expected [L, B, G, T]", d->rank);
    DMS_TRY(expect_shape("loss", out->loss, d->device, DMS_F32, 1, d->shape[1]));
    DMS_TRY(expect_shape("frac", out->frac, d->device, DMS_F32, 1, d->shape[1]));
    DMS_TRY(expect_shape("pressure", out->pressure, d->device, DMS_F32, 1, d->shape[1]));
    return RUN(d, compression, out, d, target, weight);
}

dms_status dms_l2_norm(dms_tensor *norm, const dms_tensor *g)
{
    DMS_TRY(expect_count("norm", norm, DMS_F32, 1));
    return RUN(g, l2_norm, norm, g);
}

dms_status dms_adamw(const dms_adamw_state *state, const dms_tensor *g, const dms_tensor *norm,
                     const dms_adamw_spec *spec)
{
    const int64_t n = dms_count(g);
    DMS_TRY(expect_count("w", state->w, DMS_F32, n));
    DMS_TRY(expect_count("copy", state->copy, DMS_BF16, n));
    DMS_TRY(expect_count("m", state->m, DMS_F32, n));
    DMS_TRY(expect_count("v", state->v, DMS_F32, n));
    DMS_TRY(expect_count("norm", norm, DMS_F32, 1));
    return RUN(g, adamw, state, g, norm, spec);
}
