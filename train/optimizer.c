#include "train/optimizer.h"

#include <stdlib.h>
#include <string.h>

static const int64_t gap = 64; /* elements: 128 bytes of bf16 */

static bool is_trained(const dms_weight *w, dms_train_set set)
{
    switch (set) {
    case DMS_TRAIN_ALL:
        return true;
    case DMS_TRAIN_ATTENTION:
        return w->role == DMS_ROLE_ATTENTION || w->role == DMS_ROLE_GATE;
    case DMS_TRAIN_GATE:
        return w->role == DMS_ROLE_GATE;
    }
    return false;
}

static bool is_matrix(const dms_weight *w)
{
    return w->var->value.rank == 2 && w->role != DMS_ROLE_GATE;
}

/* Lists the trained weights, matrices first, and returns the length of the flat buffers. */
static int64_t lay_out(dms_optimizer *o, const dms_model *student, dms_train_set set)
{
    int64_t at = 0;
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < student->n_weights; i++) {
            const dms_weight *w = &student->weights[i];
            if (!is_trained(w, set) || is_matrix(w) != !pass)
                continue;
            const int64_t count = dms_count(&w->var->value);
            o->trained[o->n_trained++] = (struct dms_trained){w, at, count};
            at += (count + gap - 1) / gap * gap;
        }
        if (!pass)
            o->n_matrix = at;
    }
    return at;
}

static dms_tensor flat(dms_device *dev, dms_dtype dtype, int64_t n)
{
    return (dms_tensor){.device = dev, .dtype = dtype, .rank = 1, .shape = {n}};
}

static dms_status place_all(dms_optimizer *o, dms_arena *arena)
{
    dms_tensor *const tensors[] = {&o->master, &o->m, &o->v, &o->grad, &o->norm};
    for (size_t i = 0; i < sizeof(tensors) / sizeof(tensors[0]); i++)
        DMS_TRY(dms_arena_place(arena, tensors[i]));
    return o->copy.rank ? dms_arena_place(arena, &o->copy) : DMS_OK;
}

/* `count` elements of a flat buffer from `offset`. */
static dms_tensor part(const dms_tensor *buffer, int64_t offset, int64_t count)
{
    dms_tensor t = *buffer;
    t.data = (char *)buffer->data + (size_t)offset * dms_dtype_bytes(buffer->dtype);
    t.shape[0] = count;
    return t;
}

static void bind(dms_optimizer *o, const struct dms_trained *t)
{
    dms_var *var = t->weight->var;
    const bool copied = o->copy.rank && is_matrix(t->weight);
    var->value.data = part(copied ? &o->copy : &o->master, t->offset, t->count).data;
    var->grad = var->value;
    var->grad.dtype = DMS_F32;
    var->grad.data = part(&o->grad, t->offset, t->count).data;
    var->wants_grad = true;
}

static dms_status open_memory(dms_optimizer *o, int64_t n)
{
    dms_arena measure = dms_arena_measure(o->device);
    o->master = o->m = o->v = o->grad = flat(o->device, DMS_F32, n);
    o->norm = flat(o->device, DMS_F32, 1);
    DMS_TRY(place_all(o, &measure));
    DMS_TRY(dms_arena_open(&o->memory, o->device, measure.peak));
    DMS_TRY(place_all(o, &o->memory));
    return o->device->zero(o->device, o->memory.base, o->memory.used);
}

dms_status dms_optimizer_open(dms_optimizer *out, dms_model *student, dms_train_set set)
{
    dms_status status = DMS_OK;
    dms_optimizer o = {.device = student->device};
    o.trained = calloc((size_t)student->n_weights, sizeof(*o.trained));
    if (!o.trained)
        return dms_fail(DMS_ERR_NOMEM, "no memory for the optimizer's table");
    const int64_t n = lay_out(&o, student, set);
    if (student->matrix_type == DMS_BF16 && o.n_matrix)
        o.copy = flat(o.device, DMS_BF16, o.n_matrix);
    DMS_TRY_OR(fail, open_memory(&o, n));
    for (int i = 0; i < o.n_trained; i++)
        bind(&o, &o.trained[i]);
    *out = o;
    return DMS_OK;
fail:
    dms_optimizer_close(&o);
    return status;
}

void dms_optimizer_close(dms_optimizer *o)
{
    dms_arena_close(&o->memory);
    free(o->trained);
    *o = (dms_optimizer){0};
}

/* Rows that are apart start as what they are in q_proj (or its bias). */
static dms_status read_rows(float *rows, const dms_weight *w, const dms_model *student,
                            const dms_reader *reader)
{
    const dms_layer *l = &student->layers[w->layer];
    const dms_var *q = w->var == &l->rows ? &l->q : &l->q_bias;
    const dms_weight *source = student->weights;
    while (source->var != q)
        source++;
    float *whole = malloc((size_t)dms_count(&q->value) * sizeof(float));
    if (!whole)
        return dms_fail(DMS_ERR_NOMEM, "no memory to read %s", source->name);
    const dms_status status = reader->read(reader->context, source->name, whole, DMS_F32);
    const size_t row_bytes = (size_t)(q->value.rank == 2 ? dms_cols(&q->value) : 1) * sizeof(float);
    if (!status)
        dms_model_get_borrowed(rows, whole, &student->config, row_bytes);
    free(whole);
    return status;
}

static dms_status read_master(float *host, const struct dms_trained *t, const dms_model *student,
                              const dms_reader *reader)
{
    int rank;
    int64_t shape[DMS_MAX_RANK];
    float *dst = host + t->offset;
    if (dms_optimizer_holds_rows(t, student))
        return read_rows(dst, t->weight, student, reader);
    if (reader->find(reader->context, t->weight->name, &rank, shape)) {
        DMS_TRY(dms_weight_check_shape(t->weight, rank, shape));
        return reader->read(reader->context, t->weight->name, dst, DMS_F32);
    }
    dms_gate_start(dst, t->weight);
    return DMS_OK;
}

dms_status dms_optimizer_read(dms_optimizer *o, const dms_model *student, const dms_reader *reader)
{
    dms_status status = DMS_OK;
    float *host = malloc(dms_tensor_bytes(&o->master));
    if (!host)
        return dms_fail(DMS_ERR_NOMEM, "no memory to read the masters");
    memset(host, 0, dms_tensor_bytes(&o->master));
    for (int i = 0; i < o->n_trained; i++)
        DMS_TRY_OR(done, read_master(host, &o->trained[i], student, reader));
    DMS_TRY_OR(done,
               o->device->upload(o->device, o->master.data, host, dms_tensor_bytes(&o->master)));
    status = dms_optimizer_refresh(o);
done:
    free(host);
    return status;
}

dms_status dms_optimizer_refresh(dms_optimizer *o)
{
    if (!o->copy.rank)
        return DMS_OK;
    const dms_tensor masters = part(&o->master, 0, o->n_matrix);
    return dms_cast(&o->copy, &masters);
}

dms_status dms_optimizer_zero(dms_optimizer *o)
{
    return o->device->zero(o->device, o->grad.data, dms_tensor_bytes(&o->grad));
}

dms_status dms_optimizer_norm(float *norm, dms_optimizer *o)
{
    DMS_TRY(dms_l2_norm(&o->norm, &o->grad));
    return o->device->download(o->device, norm, o->norm.data, sizeof(*norm));
}

/* The update of elements offset..offset+count, with their bf16 copies if they have any. */
static dms_status step_part(dms_optimizer *o, int64_t offset, int64_t count, bool copied,
                            const dms_adamw_spec *spec)
{
    if (!count)
        return DMS_OK;
    dms_tensor w = part(&o->master, offset, count), m = part(&o->m, offset, count);
    dms_tensor v = part(&o->v, offset, count), grad = part(&o->grad, offset, count);
    const dms_adamw_state state = {&w, copied ? &o->copy : NULL, &m, &v};
    return dms_adamw(&state, &grad, &o->norm, spec);
}

dms_status dms_optimizer_step(dms_optimizer *o, const dms_adamw_spec *spec)
{
    const int64_t n = dms_count(&o->master);
    DMS_TRY(step_part(o, 0, o->n_matrix, o->copy.rank > 0, spec));
    return step_part(o, o->n_matrix, n - o->n_matrix, false, spec);
}

bool dms_optimizer_holds_rows(const struct dms_trained *t, const dms_model *student)
{
    const dms_layer *l = t->weight->layer < 0 ? NULL : &student->layers[t->weight->layer];
    return l && (t->weight->var == &l->rows || t->weight->var == &l->rows_bias);
}

/* One flat buffer's part of a trained weight, where that is q_proj, its bias, or rows apart. */
static dms_status drop_from(const dms_tensor *buffer, const struct dms_trained *t,
                            const dms_model *student)
{
    const dms_layer *l = t->weight->layer < 0 ? NULL : &student->layers[t->weight->layer];
    dms_tensor values = part(buffer, t->offset, t->count);
    if (dms_optimizer_holds_rows(t, student))
        return values.device->zero(values.device, values.data, dms_tensor_bytes(&values));
    if (l && t->weight->var == &l->q)
        return dms_model_zero_borrowed(student, &values, NULL);
    if (l && t->weight->var == &l->q_bias)
        return dms_model_zero_borrowed(student, NULL, &values);
    return DMS_OK;
}

dms_status dms_optimizer_drop_borrowed(dms_optimizer *o, const dms_model *student)
{
    const dms_tensor *const buffers[] = {&o->master, &o->m, &o->v};
    for (int b = 0; b < 3; b++)
        for (int i = 0; i < o->n_trained; i++)
            DMS_TRY(drop_from(buffers[b], &o->trained[i], student));
    return dms_optimizer_refresh(o);
}
