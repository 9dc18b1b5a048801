/* The table of a model's weights, how they are read, and the rotary table. */
#include <glob.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernels/bf16.h"
#include "model/model.h"
#include "tests/fixtures.h"
#include "tests/rig.h"

static const char *const families[] = {"llama", "llama3", "qwen2", "qwen3"};

static void expect_failure(dms_status got, dms_status want, const char *const parts[3])
{
    cr_assert(got == want, "%d: %s", (int)got, dms_error_text());
    for (int i = 0; i < 3; i++)
        cr_assert(!parts[i] || strstr(dms_error_message(), parts[i]), "no \"%s\" in: %s", parts[i],
                  dms_error_message());
}

static dms_config read_config(const char *family)
{
    char relative[64], path[1024];
    dms_config c;
    snprintf(relative, sizeof(relative), "tiny/%s/config.json", family);
    json_t *keys = json_load_file(fixture(path, relative), 0, NULL);
    must(dms_config_parse(&c, keys));
    json_decref(keys);
    return c;
}

static dms_model *open_model(dms_device *dev, const dms_config *c, dms_gate_kind gate,
                             dms_dtype type)
{
    dms_model *m = NULL;
    dms_model_options options = {.config = *c,
                                 .gate = dms_gate_defaults(),
                                 .device = dev,
                                 .matrix_type = type,
                                 .positions = c->max_positions};
    options.gate.kind = gate;
    must(dms_model_open(&m, &options));
    return m;
}

/* ---- the table --------------------------------------------------------------------------- */

/* Adds name: shape of all tensors of a safetensors file below "model." or "lm_head." to `shapes`.
 */
static void list_tensors(json_t *shapes, const char *path)
{
    uint64_t length = 0;
    const char *name;
    json_t *info;
    FILE *file = fopen(path, "rb");
    cr_assert(file && fread(&length, sizeof(length), 1, file) == 1, "%s", path);
    char *text = malloc(length);
    cr_assert(fread(text, 1, length, file) == length);
    json_t *header = json_loadb(text, length, 0, NULL);
    json_object_foreach(header, name, info)
    {
        if (!strncmp(name, "model.", 6) || !strncmp(name, "lm_head.", 8))
            json_object_set(shapes, name, json_object_get(info, "shape"));
    }
    json_decref(header);
    free(text);
    fclose(file);
}

static json_t *tensors_of(const char *family, dms_gate_kind gate)
{
    char relative[64], path[1024];
    glob_t files;
    json_t *shapes = json_object();
    snprintf(relative, sizeof(relative), "tiny/%s/model*.safetensors", family);
    cr_assert(!glob(fixture(path, relative), 0, NULL, &files), "%s", path);
    for (size_t i = 0; i < files.gl_pathc; i++)
        list_tensors(shapes, files.gl_pathv[i]);
    globfree(&files);
    snprintf(relative, sizeof(relative), "tiny/%s/dms_adapter.safetensors", family);
    if (gate == DMS_GATE_ADAPTER)
        list_tensors(shapes, fixture(path, relative));
    return shapes;
}

static int64_t expect_weight(const dms_weight *w, const json_t *shape, dms_dtype matrix_type)
{
    const dms_tensor *t = &w->var->value;
    cr_assert(shape, "the file has no %s", w->name);
    cr_assert(t->rank == (int)json_array_size(shape), "%s", w->name);
    for (int d = 0; d < t->rank; d++)
        cr_assert(t->shape[d] == json_integer_value(json_array_get(shape, (size_t)d)),
                  "dimension %d of %s is %lld", d, w->name, (long long)t->shape[d]);
    const bool matrix = t->rank == 2 && w->role != DMS_ROLE_GATE;
    cr_assert(t->dtype == (matrix ? matrix_type : DMS_F32), "type of %s", w->name);
    const char *at = strstr(w->name, "layers.");
    cr_assert(w->layer == (at ? atoi(at + 7) : -1), "layer of %s", w->name);
    return dms_count(t);
}

Test(model, table_holds_what_the_files_of_each_family_hold)
{
    rig r = rig_open(rig_device());
    for (size_t f = 0; f < COUNT(families); f++)
        for (int gate = DMS_GATE_NONE; gate <= DMS_GATE_ADAPTER; gate++) {
            const dms_config c = read_config(families[f]);
            dms_model *m = open_model(r.dev, &c, (dms_gate_kind)gate, DMS_BF16);
            json_t *shapes = tensors_of(families[f], (dms_gate_kind)gate);
            int64_t elements = 0;
            for (int i = 0; i < m->n_weights; i++)
                elements += expect_weight(&m->weights[i],
                                          json_object_get(shapes, m->weights[i].name), DMS_BF16);
            cr_assert(m->n_weights == (int)json_object_size(shapes), "%s: %d of %zu", families[f],
                      m->n_weights, json_object_size(shapes));
            cr_assert(dms_model_count(m, ~0u) == elements);
            cr_assert(dms_model_count(m, 1u << DMS_ROLE_EMBEDDING) ==
                      c.vocab * c.width * (c.tied ? 1 : 2));
            cr_assert(dms_model_count(m, 1u << DMS_ROLE_GATE) ==
                      (gate == DMS_GATE_ADAPTER ? c.layers * c.width * (c.kv_heads + 1) : 0));
            cr_assert(m->head == (c.tied ? &m->embedding : &m->own_head));
            json_decref(shapes);
            dms_model_close(m);
        }
    dms_model_close(NULL);
    rig_close(&r);
}

static const char *role_part(dms_weight_role role)
{
    static const char *const parts[] = {[DMS_ROLE_NORM] = "norm.weight",
                                        [DMS_ROLE_ATTENTION] = "self_attn.",
                                        [DMS_ROLE_MLP] = "mlp.",
                                        [DMS_ROLE_GATE] = "dms_proj_alpha"};
    return role == DMS_ROLE_EMBEDDING ? "" : parts[role];
}

/* attention_bias gives every projection a bias, the adapter's too. */
Test(model, roles_and_biases_follow_the_config)
{
    rig r = rig_open(rig_device());
    dms_config c = read_config("qwen3");
    c.qkv_bias = c.o_bias = c.attention_bias = true;
    dms_model *m = open_model(r.dev, &c, DMS_GATE_ADAPTER, DMS_F32);
    int biases = 0;
    for (int i = 0; i < m->n_weights; i++) {
        const dms_weight *w = &m->weights[i];
        cr_assert(strstr(w->name, role_part(w->role)), "%s has role %d", w->name, (int)w->role);
        cr_assert((w->role == DMS_ROLE_EMBEDDING) ==
                  (w->var == &m->embedding || w->var == m->head));
        biases += strstr(w->name, ".bias") != NULL;
    }
    cr_assert(biases == 5 * c.layers);
    cr_assert(!strcmp(m->weights[0].name, "model.embed_tokens.weight"));
    cr_assert(!strcmp(m->weights[m->n_weights - 2].name, "model.norm.weight"));
    cr_assert(!strcmp(m->weights[m->n_weights - 1].name, "lm_head.weight"));
    dms_model_close(m);
    rig_close(&r);
}

Test(model, borrowed_rows_can_be_tensors_of_their_own)
{
    rig r = rig_open(rig_device());
    for (size_t f = 0; f < COUNT(families); f++)
        for (int gate = DMS_GATE_NONE; gate <= DMS_GATE_ADAPTER; gate++) {
            const dms_config c = read_config(families[f]);
            dms_model *m = NULL;
            dms_model_options options = {.config = c,
                                         .gate = {.kind = (dms_gate_kind)gate},
                                         .device = r.dev,
                                         .matrix_type = DMS_BF16,
                                         .positions = 1,
                                         .rows_apart = true};
            must(dms_model_open(&m, &options));
            const dms_tensor *rows = &m->layers[1].rows.value,
                             *bias = &m->layers[1].rows_bias.value;
            const bool apart = gate == DMS_GATE_NEURON, biased = apart && c.qkv_bias;
            cr_assert(rows->rank == (apart ? 2 : 0) && bias->rank == (biased ? 1 : 0));
            cr_assert(!apart || (rows->shape[0] == c.kv_heads && rows->shape[1] == c.width));
            cr_assert(!apart || rows->dtype == DMS_F32);
            cr_assert(!biased || bias->shape[0] == c.kv_heads);
            cr_assert(!apart || dms_model_count(m, 1u << DMS_ROLE_GATE) ==
                                    c.layers * c.kv_heads * (c.width + (biased ? 1 : 0)));
            dms_model_close(m);
        }
    rig_close(&r);
}

Test(model, more_positions_than_it_has_are_refused)
{
    rig r = rig_open(rig_device());
    const dms_config c = read_config("llama");
    dms_model *m = NULL;
    dms_model_options options = {
        .config = c, .device = r.dev, .matrix_type = DMS_F32, .positions = c.max_positions + 1};
    char found[32], most[32];
    snprintf(found, sizeof(found), "%lld", (long long)c.max_positions + 1);
    snprintf(most, sizeof(most), "%lld", (long long)c.max_positions);
    expect_failure(dms_model_open(&m, &options), DMS_ERR_ARG,
                   (const char *const[3]){"positions", found, most});
    options.positions = 0;
    expect_failure(dms_model_open(&m, &options), DMS_ERR_ARG,
                   (const char *const[3]){"positions", "0", most});
    cr_assert(!m);
    rig_close(&r);
}

/* ---- reading ----------------------------------------------------------------------------- */

/* A file made of a model's own table: element i of tensor n is n + i/1024; with one fault. */
typedef struct {
    const dms_model *model;
    const char *missing, *reshaped, *unreadable; /* part of a name, or NULL */
    int rank;                                    /* of the reshaped tensor */
    int64_t shape[DMS_MAX_RANK];
} made_up;

static const dms_weight *look_up(const made_up *f, const char *name, int *index)
{
    for (*index = 0; *index < f->model->n_weights; ++*index)
        if (!strcmp(f->model->weights[*index].name, name))
            return &f->model->weights[*index];
    return NULL;
}

static bool find(const void *context, const char *name, int *rank, int64_t shape[DMS_MAX_RANK])
{
    const made_up *f = context;
    int index;
    const dms_weight *w = look_up(f, name, &index);
    if (!w || (f->missing && strstr(name, f->missing)))
        return false;
    const bool other = f->reshaped && strstr(name, f->reshaped);
    *rank = other ? f->rank : w->var->value.rank;
    memcpy(shape, other ? f->shape : w->var->value.shape, sizeof(f->shape));
    return true;
}

static float element(int index, int64_t i)
{
    return (float)index + (float)(i % 512) / 1024.0f;
}

static dms_status read_tensor(const void *context, const char *name, void *dst, dms_dtype dtype)
{
    const made_up *f = context;
    int index;
    const dms_weight *w = look_up(f, name, &index);
    if (f->unreadable && strstr(name, f->unreadable))
        return dms_fail(DMS_ERR_IO, "%s lies beyond the end", name);
    for (int64_t i = 0; i < dms_count(&w->var->value); i++) {
        if (dtype == DMS_BF16)
            ((uint16_t *)dst)[i] = dms_bf16_from_f32(element(index, i));
        else
            ((float *)dst)[i] = element(index, i);
    }
    return DMS_OK;
}

static dms_reader reader_of(const made_up *f)
{
    return (dms_reader){f, find, read_tensor};
}

static void expect_content(const dms_model *m, int index)
{
    float *host = rig_read(&m->weights[index].var->value);
    const dms_tensor *t = &m->weights[index].var->value;
    for (int64_t i = 0; i < dms_count(t); i++) {
        const float want = element(index, i);
        cr_assert(host[i] ==
                      (t->dtype == DMS_BF16 ? dms_bf16_to_f32(dms_bf16_from_f32(want)) : want),
                  "%s[%lld]", m->weights[index].name, (long long)i);
    }
    free(host);
}

Test(model, every_weight_is_read_in_its_type)
{
    rig r = rig_open(rig_device());
    for (size_t f = 0; f < COUNT(families); f++)
        for (int type = DMS_F32; type <= DMS_BF16; type++) {
            const dms_config c = read_config(families[f]);
            dms_model *m = open_model(r.dev, &c, DMS_GATE_ADAPTER, (dms_dtype)type);
            const made_up file = {.model = m};
            const dms_reader reader = reader_of(&file);
            must(dms_model_allocate(m));
            must(dms_model_read(m, &reader, &(dms_read_options){0}));
            for (int i = 0; i < m->n_weights; i++) {
                cr_assert(m->weights[i].var->value.frozen);
                expect_content(m, i);
            }
            dms_model_close(m);
        }
    rig_close(&r);
}

static bool is_attention(const dms_weight *w, const void *context)
{
    (void)context;
    return w->role == DMS_ROLE_ATTENTION;
}

/* The caller's own memory stays his and is not frozen. */
Test(model, only_wanted_weights_are_read_and_own_memory_is_kept)
{
    rig r = rig_open(rig_device());
    const dms_config c = read_config("qwen2");
    dms_model *m = open_model(r.dev, &c, DMS_GATE_NONE, DMS_F32);
    dms_tensor *q = &m->layers[1].q.value, *down = &m->layers[0].down.value;
    *q = rig_zero(&r, *q);
    *down = rig_zero(&r, *down);
    const void *memory = q->data;
    const made_up file = {.model = m, .missing = "mlp."};
    const dms_reader reader = reader_of(&file);
    must(dms_model_allocate(m));
    must(dms_model_read(m, &reader, &(dms_read_options){.wanted = is_attention}));
    cr_assert(q->data == memory && !q->frozen && !down->frozen && m->layers[0].q.value.frozen);
    for (int i = 0; i < m->n_weights; i++)
        if (m->weights[i].role == DMS_ROLE_ATTENTION)
            expect_content(m, i);
    float *host = rig_read(down);
    for (int64_t i = 0; i < dms_count(down); i++)
        cr_assert(host[i] == 0);
    free(host);
    dms_model_close(m);
    rig_close(&r);
}

Test(model, tensors_that_are_missing_or_do_not_fit_are_refused_by_name)
{
    static const char up[] = "model.layers.1.mlp.up_proj.weight", norm[] = "model.norm.weight";
    const struct {
        made_up file;
        dms_status status;
        const char *parts[3];
    } cases[] = {
        {{.missing = up}, DMS_ERR_FORMAT, {up, "no tensor"}},
        {{.reshaped = up, .rank = 2, .shape = {72, 112}},
         DMS_ERR_FORMAT,
         {up, "[72, 112] in the file", "expected [112, 72]"}},
        {{.reshaped = up, .rank = 1, .shape = {8064}},
         DMS_ERR_FORMAT,
         {up, "[8064] in the file", "expected [112, 72]"}},
        {{.reshaped = up, .rank = 3, .shape = {112, 72, 1}},
         DMS_ERR_FORMAT,
         {up, "[112, 72, 1] in the file", "expected [112, 72]"}},
        {{.reshaped = norm, .rank = 0}, DMS_ERR_FORMAT, {norm, "[] in the file", "expected [72]"}},
        {{.unreadable = up}, DMS_ERR_IO, {up, "beyond the end"}},
    };
    rig r = rig_open(rig_device());
    dms_config c = read_config("llama");
    c.width = 72;
    c.ffn = 112;
    dms_model *m = open_model(r.dev, &c, DMS_GATE_NONE, DMS_F32);
    must(dms_model_allocate(m));
    for (size_t i = 0; i < COUNT(cases); i++) {
        made_up file = cases[i].file;
        file.model = m;
        const dms_reader reader = reader_of(&file);
        expect_failure(dms_model_read(m, &reader, &(dms_read_options){.gate_may_start = true}),
                       cases[i].status, cases[i].parts);
    }
    dms_model_close(m);
    rig_close(&r);
}

Test(model, gate_tensors_start_where_the_file_has_none_if_they_may)
{
    rig r = rig_open(rig_device());
    dms_config c = read_config("qwen3");
    c.o_bias = c.qkv_bias = c.attention_bias = true;
    dms_model *m = open_model(r.dev, &c, DMS_GATE_ADAPTER, DMS_BF16);
    const made_up file = {.model = m, .missing = "dms_proj"};
    const dms_reader reader = reader_of(&file);
    must(dms_model_allocate(m));
    expect_failure(dms_model_read(m, &reader, &(dms_read_options){0}), DMS_ERR_FORMAT,
                   (const char *const[3]){"model.layers.0.self_attn.dms_proj_alpha", "no tensor"});
    must(dms_model_read(m, &reader, &(dms_read_options){.gate_may_start = true}));
    for (int l = 0; l < c.layers; l++) {
        const dms_tensor *gate[] = {&m->layers[l].alpha_norm.value, &m->layers[l].alpha.value,
                                    &m->layers[l].alpha_bias.value};
        for (int k = 0; k < 3; k++) {
            float *host = rig_read(gate[k]);
            for (int64_t i = 0; i < dms_count(gate[k]); i++)
                cr_assert(host[i] == (k == 0 ? 1.0f : 0.0f));
            free(host);
        }
    }
    dms_model_close(m);
    rig_close(&r);
}

/* ---- the end of the fade ----------------------------------------------------------------- */

static void expect_zero_rows(const dms_model *m, const dms_tensor *t, bool zeroed)
{
    const int64_t cols = t->rank == 2 ? dms_cols(t) : 1, width = m->config.head_dim;
    const int64_t every = width * (m->config.heads / m->config.kv_heads);
    float *host = rig_read(t);
    for (int64_t i = 0; i < dms_count(t); i++) {
        const bool borrowed = i / cols % every == width - 1;
        cr_assert((host[i] == 0) == (zeroed && borrowed), "row %lld is %g", (long long)(i / cols),
                  (double)host[i]);
    }
    free(host);
}

Test(model, zeroing_takes_the_borrowed_rows_and_no_other)
{
    rig r = rig_open(rig_device());
    for (size_t f = 0; f < COUNT(families); f++)
        for (int mask = 0; mask < 8; mask++) {
            const dms_config c = read_config(families[f]);
            dms_model *m = open_model(r.dev, &c, DMS_GATE_NEURON, DMS_F32);
            dms_tensor shape = rig_shape((int64_t)c.heads * c.head_dim, c.width, 0, 0);
            shape.dtype = mask & 4 ? DMS_BF16 : DMS_F32;
            const size_t mark = r.arena.used;
            dms_tensor q = rig_noise(&r, shape);
            dms_tensor bias = rig_noise(&r, rig_shape(shape.shape[0], 0, 0, 0));
            must(dms_model_zero_borrowed(m, mask & 1 ? &q : NULL, mask & 2 ? &bias : NULL));
            expect_zero_rows(m, &q, mask & 1);
            expect_zero_rows(m, &bias, mask & 2);
            r.arena.used = mark;
            dms_model_close(m);
        }
    rig_close(&r);
}

/* Row r of a made-up q_proj holds r. */
Test(model, borrowed_rows_are_taken_out_and_put_back)
{
    enum { COLS = 3 };
    for (size_t f = 0; f < COUNT(families); f++) {
        const dms_config c = read_config(families[f]);
        const int64_t n = (int64_t)c.heads * c.head_dim, every = n / c.kv_heads;
        float *q = malloc((size_t)n * COLS * sizeof(float)), rows[64 * COLS];
        for (int64_t i = 0; i < n * COLS; i++)
            q[i] = (float)(i / COLS);
        dms_model_get_borrowed(rows, q, &c, COLS * sizeof(float));
        for (int64_t i = 0; i < c.kv_heads * COLS; i++) {
            cr_assert(rows[i] == (float)(i / COLS * every + c.head_dim - 1));
            rows[i] = -1;
        }
        dms_model_put_borrowed(q, rows, &c, COLS * sizeof(float));
        for (int64_t i = 0; i < n * COLS; i++)
            cr_assert(q[i] == (i / COLS % every == c.head_dim - 1 ? -1 : (float)(i / COLS)));
        free(q);
    }
}

/* ---- the rotary table -------------------------------------------------------------------- */

/* transformers' modeling_rope_utils in double: wavelengths up to original/high are kept, those from
 * original/low on are stretched, those between are blended. */
static double frequency(const dms_config *c, int j)
{
    const dms_rope_scaling *s = &c->rope_scaling;
    const double base = pow(c->rope_theta, -2.0 * j / c->head_dim);
    const double wavelength = 2 * acos(-1) / base, original = (double)s->original_positions;
    if (s->factor == 0 || wavelength < original / s->high_freq_factor)
        return base;
    if (wavelength > original / s->low_freq_factor)
        return base / s->factor;
    const double smooth =
        (original / wavelength - s->low_freq_factor) / (s->high_freq_factor - s->low_freq_factor);
    return (1 - smooth) * base / s->factor + smooth * base;
}

/* Angles are f32, as in transformers: up to 256 radians, so wrong by up to 256 * 2^-22 = 6e-5. */
Test(model, rotary_table_follows_its_definition)
{
    rig r = rig_open(rig_device());
    for (size_t f = 0; f < COUNT(families); f++) {
        const dms_config c = read_config(families[f]);
        dms_model *m = open_model(r.dev, &c, DMS_GATE_NONE, DMS_F32);
        const int half = c.head_dim / 2;
        must(dms_model_allocate(m));
        float *want = malloc(dms_tensor_bytes(&m->rope_table));
        for (int64_t p = 0; p < c.max_positions; p++)
            for (int j = 0; j < half; j++) {
                want[p * c.head_dim + j] = (float)cos((double)p * frequency(&c, j));
                want[p * c.head_dim + half + j] = (float)sin((double)p * frequency(&c, j));
            }
        rig_expect("table", &m->rope_table, want, 0, 1e-4f);
        free(want);
        dms_model_close(m);
    }
    rig_close(&r);
}
