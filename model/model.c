#include "model/model.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PER_LAYER = 24, OUTSIDE = 5 };

static void add_weight(dms_model *m, const char *name, dms_var *var, dms_weight_role role)
{
    dms_weight *w = &m->weights[m->n_weights++];
    snprintf(w->name, sizeof(w->name), "%s", name);
    w->var = var;
    w->role = role;
    w->layer = -1;
}

static dms_tensor matrix(const dms_model *m, int64_t rows, int64_t cols)
{
    return (dms_tensor){
        .device = m->device, .dtype = m->matrix_type, .rank = 2, .shape = {rows, cols}};
}

static dms_tensor vector(const dms_model *m, int64_t n)
{
    return (dms_tensor){.device = m->device, .dtype = DMS_F32, .rank = 1, .shape = {n}};
}

static void shape_gate(const dms_model *m, dms_layer *l, bool rows_apart)
{
    const dms_config *c = &m->config;
    if (m->gate.kind == DMS_GATE_ADAPTER) {
        l->alpha_norm.value = vector(m, c->width);
        l->alpha.value = matrix(m, c->kv_heads, c->width);
        l->alpha.value.dtype = DMS_F32;
        if (c->attention_bias)
            l->alpha_bias.value = vector(m, c->kv_heads);
    }
    if (rows_apart && m->gate.kind == DMS_GATE_NEURON) {
        l->rows.value = matrix(m, c->kv_heads, c->width);
        l->rows.value.dtype = DMS_F32;
        if (c->qkv_bias)
            l->rows_bias.value = vector(m, c->kv_heads);
    }
}

static void shape_mlp(const dms_model *m, dms_layer *l)
{
    const dms_config *c = &m->config;
    l->up.value = matrix(m, c->ffn, c->width);
    l->down.value = matrix(m, c->width, c->ffn);
    if (c->ffn_kind == DMS_FFN_SWIGLU) {
        l->gate.value = l->up.value;
    } else {
        l->up_bias.value = vector(m, c->ffn);
        l->down_bias.value = vector(m, c->width);
    }
}

/* Shapes of the weights that a layer has; the others keep rank 0. */
static void shape_layer(const dms_model *m, dms_layer *l, bool rows_apart)
{
    const dms_config *c = &m->config;
    const int64_t q = (int64_t)c->heads * c->head_dim, kv = (int64_t)c->kv_heads * c->head_dim;
    l->input_norm.value = l->post_norm.value = vector(m, c->width);
    if (c->norm == DMS_NORM_LAYER)
        l->input_norm_bias.value = l->post_norm_bias.value = vector(m, c->width);
    l->q.value = matrix(m, q, c->width);
    l->k.value = l->v.value = matrix(m, kv, c->width);
    l->o.value = matrix(m, c->width, q);
    if (c->qkv_bias) {
        l->q_bias.value = vector(m, q);
        l->k_bias.value = l->v_bias.value = vector(m, kv);
    }
    if (c->o_bias)
        l->o_bias.value = vector(m, c->width);
    if (c->qk_norm)
        l->q_norm.value = l->k_norm.value = vector(m, c->head_dim);
    shape_mlp(m, l);
    shape_gate(m, l, rows_apart);
}

static void add_layer(dms_model *m, int layer, bool rows_apart)
{
    dms_layer *l = &m->layers[layer];
    shape_layer(m, l, rows_apart);
    char name[80];
#define X(field, hf_name, hf_role)                                       \
    if (l->field.value.rank) {                                           \
        snprintf(name, sizeof(name), "model.layers.%d." hf_name, layer); \
        add_weight(m, name, &l->field, hf_role);                         \
        m->weights[m->n_weights - 1].layer = layer;                      \
    }
    DMS_LAYER_WEIGHT_LIST(X)
#undef X
}

static void fill_table(dms_model *m, bool rows_apart)
{
    const dms_config *c = &m->config;
    m->embedding.value = m->own_head.value = matrix(m, c->vocab, c->width);
    m->final_norm.value = m->final_norm_bias.value = vector(m, c->width);
    m->positions.value = matrix(m, c->max_positions, c->width);
    m->head = c->tied ? &m->embedding : &m->own_head;
    add_weight(m, "model.embed_tokens.weight", &m->embedding, DMS_ROLE_EMBEDDING);
    if (c->positions == DMS_POSITIONS_LEARNED)
        add_weight(m, "model.embed_positions.weight", &m->positions, DMS_ROLE_EMBEDDING);
    for (int i = 0; i < c->layers; i++)
        add_layer(m, i, rows_apart);
    add_weight(m, "model.norm.weight", &m->final_norm, DMS_ROLE_NORM);
    if (c->norm == DMS_NORM_LAYER)
        add_weight(m, "model.norm.bias", &m->final_norm_bias, DMS_ROLE_NORM);
    if (!c->tied)
        add_weight(m, "lm_head.weight", &m->own_head, DMS_ROLE_EMBEDDING);
}

dms_status dms_model_open(dms_model **out, const dms_model_options *options)
{
    const dms_config *c = &options->config;
    if (options->positions < 1 || options->positions > c->max_positions)
        return dms_fail(DMS_ERR_ARG, "%" PRId64 " positions are asked for, the model has %" PRId64,
                        options->positions, c->max_positions);
    dms_model *m = calloc(1, sizeof(*m));
    if (!m)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a model's table");
    m->config = *c;
    m->gate = options->gate;
    m->device = options->device;
    m->matrix_type = options->matrix_type;
    m->layers = calloc((size_t)c->layers, sizeof(*m->layers));
    m->weights = calloc((size_t)c->layers * PER_LAYER + OUTSIDE, sizeof(*m->weights));
    if (!m->layers || !m->weights) {
        dms_model_close(m);
        return dms_fail(DMS_ERR_NOMEM, "no memory for a model of %d layers", c->layers);
    }
    m->rope_table = (dms_tensor){.device = m->device,
                                 .dtype = DMS_F32,
                                 .rank = 2,
                                 .shape = {options->positions, c->head_dim}};
    fill_table(m, options->rows_apart);
    *out = m;
    return DMS_OK;
}

void dms_model_close(dms_model *model)
{
    if (!model)
        return;
    dms_arena_close(&model->memory);
    free(model->layers);
    free(model->weights);
    free(model);
}

/* Frequency of rotary pair j (Su et al. 2021), in f32 as transformers computes it, with Llama 3's
 * scaling: long wavelengths are stretched by `factor`, short ones kept, in between blended. */
static float frequency(const dms_config *c, int j)
{
    if (c->positions != DMS_POSITIONS_ROPE)
        return 0;
    const float base = 1.0f / powf((float)c->rope_theta, (float)(2 * j) / (float)c->head_dim);
    const dms_rope_scaling *s = &c->rope_scaling;
    if (s->factor == 0)
        return base;
    const double pi = 3.14159265358979323846, wavelength = 2 * pi / (double)base;
    const double turns = (double)s->original_positions / wavelength;
    if (turns < s->low_freq_factor)
        return (float)((double)base / s->factor);
    if (turns > s->high_freq_factor)
        return base;
    const double smooth = (turns - s->low_freq_factor) / (s->high_freq_factor - s->low_freq_factor);
    return (float)((1 - smooth) * (double)base / s->factor + smooth * (double)base);
}

static dms_status upload_rope_table(dms_model *m)
{
    const int64_t positions = m->rope_table.shape[0];
    const int half = m->config.head_dim / 2;
    float *host = malloc(dms_tensor_bytes(&m->rope_table));
    if (!host)
        return dms_fail(DMS_ERR_NOMEM, "no memory for %" PRId64 " rotary positions", positions);
    for (int j = 0; j < half; j++) {
        const float f = frequency(&m->config, j);
        for (int64_t p = 0; p < positions; p++) {
            const double angle = (double)((float)p * f);
            host[p * 2 * half + j] = (float)cos(angle);
            host[p * 2 * half + half + j] = (float)sin(angle);
        }
    }
    const dms_status status =
        m->device->upload(m->device, m->rope_table.data, host, dms_tensor_bytes(&m->rope_table));
    free(host);
    return status;
}

static dms_status place_missing(dms_model *m, dms_arena *arena)
{
    for (int i = 0; i < m->n_weights; i++) {
        dms_tensor *t = &m->weights[i].var->value;
        if (t->data)
            continue;
        DMS_TRY(dms_arena_place(arena, t));
        t->frozen = arena->base != NULL;
        if (!arena->base)
            t->data = NULL;
    }
    return dms_arena_place(arena, &m->rope_table);
}

dms_status dms_model_allocate(dms_model *model)
{
    dms_arena measure = dms_arena_measure(model->device);
    DMS_TRY(place_missing(model, &measure));
    DMS_TRY(dms_arena_open(&model->memory, model->device, measure.peak));
    DMS_TRY(place_missing(model, &model->memory));
    return upload_rope_table(model);
}

static void describe(char out[96], int rank, const int64_t *shape)
{
    int n = snprintf(out, 96, "[");
    for (int i = 0; i < rank; i++)
        n += snprintf(out + n, (size_t)(96 - n), i ? ", %" PRId64 : "%" PRId64, shape[i]);
    snprintf(out + n, (size_t)(96 - n), "]");
}

dms_status dms_weight_check_shape(const dms_weight *w, int rank, const int64_t *shape)
{
    const dms_tensor *t = &w->var->value;
    char found[96], expected[96];
    bool same = rank == t->rank;
    for (int i = 0; same && i < rank; i++)
        same = shape[i] == t->shape[i];
    if (same)
        return DMS_OK;
    describe(found, rank, shape);
    describe(expected, t->rank, t->shape);
    return dms_fail(DMS_ERR_FORMAT,
                    "tensor %s has shape %s in the file, expected %s from the config", w->name,
                    found, expected);
}

void dms_gate_start(float *host, const dms_weight *w)
{
    const int64_t n = dms_count(&w->var->value);
    const float start = strstr(w->name, "dms_proj_alpha_norm") ? 1.0f : 0.0f;
    for (int64_t i = 0; i < n; i++)
        host[i] = start;
}

static dms_status refuse_missing(const dms_weight *w)
{
    return dms_fail(DMS_ERR_FORMAT, "the file has no tensor %s, which its config asks for",
                    w->name);
}

/* A bias of the file that the network has no place for would be left out in silence. */
static dms_status refuse_other_biases(const dms_model *model, const dms_reader *reader)
{
    for (int i = 0; i < model->config.layers; i++) {
        const dms_layer *l = &model->layers[i];
        char name[80];
        int rank;
        int64_t shape[DMS_MAX_RANK];
#define X(field, hf_name, role)                                                                   \
    snprintf(name, sizeof(name), "model.layers.%d." hf_name, i);                                  \
    if (!l->field.value.rank && strstr(hf_name, "_proj.bias") &&                                  \
        reader->find(reader->context, name, &rank, shape))                                        \
        return dms_fail(DMS_ERR_FORMAT,                                                           \
                        "the file has tensor %s, expected no such bias as family %s has none "    \
                        "where attention_bias is %s; give the config that the weights belong to", \
                        name, model->config.family,                                               \
                        model->config.attention_bias ? "true" : "false");
        DMS_LAYER_WEIGHT_LIST(X)
#undef X
    }
    return DMS_OK;
}

dms_status dms_model_check(const dms_model *model, const dms_reader *reader, bool gate_may_start)
{
    for (int i = 0; i < model->n_weights; i++) {
        const dms_weight *w = &model->weights[i];
        int rank = 0;
        int64_t shape[DMS_MAX_RANK] = {0};
        if (reader->find(reader->context, w->name, &rank, shape))
            DMS_TRY(dms_weight_check_shape(w, rank, shape));
        else if (w->role != DMS_ROLE_GATE || !gate_may_start)
            return refuse_missing(w);
    }
    return refuse_other_biases(model, reader);
}

void dms_model_share(dms_model *model, const dms_model *other)
{
    for (int i = 0; i < model->n_weights; i++) {
        dms_weight *w = &model->weights[i];
        for (int j = 0; j < other->n_weights && !w->var->value.data; j++)
            if (!strcmp(w->name, other->weights[j].name))
                w->var->value = other->weights[j].var->value;
    }
}

static dms_status read_one(const dms_weight *w, const dms_reader *reader, bool gate_may_start,
                           void *host)
{
    int rank = 0;
    int64_t shape[DMS_MAX_RANK] = {0};
    dms_tensor *t = &w->var->value;
    if (reader->find(reader->context, w->name, &rank, shape)) {
        DMS_TRY(dms_weight_check_shape(w, rank, shape));
        DMS_TRY(reader->read(reader->context, w->name, host, t->dtype));
    } else if (w->role == DMS_ROLE_GATE && gate_may_start) {
        dms_gate_start(host, w);
    } else {
        return refuse_missing(w);
    }
    return t->device->upload(t->device, t->data, host, dms_tensor_bytes(t));
}

dms_status dms_model_read(dms_model *model, const dms_reader *reader,
                          const dms_read_options *options)
{
    size_t largest = 0;
    dms_status status = DMS_OK;
    for (int i = 0; i < model->n_weights; i++) {
        const size_t bytes = dms_tensor_bytes(&model->weights[i].var->value);
        largest = bytes > largest ? bytes : largest;
    }
    void *host = malloc(largest);
    if (!host)
        return dms_fail(DMS_ERR_NOMEM, "no memory to read a tensor of %zu bytes", largest);
    for (int i = 0; i < model->n_weights; i++) {
        const dms_weight *w = &model->weights[i];
        if (!options->wanted || options->wanted(w, options->context))
            DMS_TRY_OR(done, read_one(w, reader, options->gate_may_start, host));
    }
done:
    free(host);
    return status;
}

/* Row of q_proj that KV head g borrows. */
static size_t borrowed_row(const dms_config *c, int g)
{
    return (size_t)g * (size_t)(c->heads / c->kv_heads) * (size_t)c->head_dim +
           (size_t)c->head_dim - 1;
}

dms_status dms_model_zero_borrowed(const dms_model *model, dms_tensor *q, dms_tensor *bias)
{
    const dms_config *c = &model->config;
    dms_device *dev = model->device;
    for (int g = 0; g < c->kv_heads; g++) {
        const size_t row = borrowed_row(c, g);
        const size_t bytes = q ? (size_t)c->width * dms_dtype_bytes(q->dtype) : 0;
        if (q)
            DMS_TRY(dev->zero(dev, (char *)q->data + row * bytes, bytes));
        if (bias)
            DMS_TRY(dev->zero(dev, (float *)bias->data + row, sizeof(float)));
    }
    return DMS_OK;
}

void dms_model_get_borrowed(void *rows, const void *q, const dms_config *c, size_t row_bytes)
{
    for (int g = 0; g < c->kv_heads; g++)
        memcpy((char *)rows + (size_t)g * row_bytes,
               (const char *)q + borrowed_row(c, g) * row_bytes, row_bytes);
}

void dms_model_put_borrowed(void *q, const void *rows, const dms_config *c, size_t row_bytes)
{
    for (int g = 0; g < c->kv_heads; g++)
        memcpy((char *)q + borrowed_row(c, g) * row_bytes,
               (const char *)rows + (size_t)g * row_bytes, row_bytes);
}

int64_t dms_model_count(const dms_model *model, unsigned mask)
{
    int64_t n = 0;
    for (int i = 0; i < model->n_weights; i++)
        if (mask & (1u << model->weights[i].role))
            n += dms_count(&model->weights[i].var->value);
    return n;
}
