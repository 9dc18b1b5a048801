/* Small models of GPT-2's and of DeepSeek-R1's distils' kind against tests/reference: dense, under
 * both gates, over the freed cache. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/layout.h"
#include "checkpoints/source_reader.h"
#include "data/tokenizer.h"
#include "infer/session.h"
#include "model/dms.h"
#include "tests/rig.h"

static const char *const folders[] = {"gpt2", "deepseek-qwen2", "deepseek-llama"};
static const char *const gates[] = {"neuron", "adapter"};

/* A folder's model, one of its reference files, a tape; B texts of T tokens. */
typedef struct {
    rig rig;
    dms_source *base, *file;
    dms_model *model;
    dms_tape *tape;
    int64_t B, T;
    dms_tensor ids, positions, decisions, z; /* [B, T], [L, B, G, T] */
} lab;

/* ---- opening ---------------------------------------------------------------------------- */

static dms_source *open_source(const char *folder, const char *file)
{
    char path[1024];
    dms_source *s = NULL;
    snprintf(path, sizeof(path), DMS_SOURCE_DIR "/tests/data/%s%s%s", folder, file[0] ? "/" : "",
             file);
    must(dms_source_open(&s, path));
    return s;
}

/* The gate's tensors lie in the reference file, which has no config of its own. */
static const char *gate_name(dms_layout_place *place, const lab *l, const char *name)
{
    return dms_layout_find(place, dms_source_config(l->base), name) ? place->name : name;
}

static bool find_in_both(const void *context, const char *name, int *rank, int64_t *shape)
{
    const lab *l = context;
    dms_layout_place place;
    const dms_reader base = dms_source_reader(l->base);
    const dms_tensor_info *own = dms_source_find(l->file, gate_name(&place, l, name));
    if (!own)
        return base.find(base.context, name, rank, shape);
    *rank = own->rank;
    memcpy(shape, own->shape, sizeof(own->shape));
    return true;
}

static dms_status read_from_both(const void *context, const char *name, void *dst, dms_dtype dtype)
{
    const lab *l = context;
    dms_layout_place place;
    const char *own = gate_name(&place, l, name);
    const dms_reader base = dms_source_reader(l->base);
    if (dms_source_find(l->file, own))
        return dms_source_read(l->file, own, dst, dtype);
    return base.read(base.context, name, dst, dtype);
}

static float setting(const lab *l, const char *name)
{
    const char *text = dms_source_text(l->file, name);
    cr_assert(text, "the reference has no %s", name);
    return strtof(text, NULL);
}

static void open_model(lab *l, const char *gate)
{
    dms_model_options o = {
        .device = l->rig.dev, .matrix_type = DMS_F32, .positions = l->T, .gate = {0}};
    const dms_reader reader = {l, find_in_both, read_from_both};
    must(dms_config_parse(&o.config, dms_source_config(l->base)));
    o.gate = dms_gate_defaults();
    if (gate[0]) {
        must(dms_gate_from_name(&o.gate.kind, gate));
        o.gate.window = (int64_t)setting(l, "window");
        o.gate.alpha_scale = setting(l, "alpha_scale");
        o.gate.alpha_offset = setting(l, "alpha_offset");
        o.gate.tau = setting(l, "tau");
    }
    must(dms_model_open(&l->model, &o));
    must(dms_model_check(l->model, &reader, false));
    must(dms_model_allocate(l->model));
    must(dms_model_read(l->model, &reader, &(dms_read_options){0}));
}

/* A tensor of the reference file; the caller frees it. */
static void *reference(const lab *l, const char *name, dms_dtype dtype)
{
    const dms_tensor_info *info = dms_source_find(l->file, name);
    cr_assert(info, "the reference has no %s", name);
    int64_t n = 1;
    for (int i = 0; i < info->rank; i++)
        n *= info->shape[i];
    void *host = malloc((size_t)n * sizeof(float));
    must(dms_source_read(l->file, name, host, dtype));
    return host;
}

static void upload_text(lab *l)
{
    dms_tensor shape = rig_shape(l->B, l->T, 0, 0);
    int32_t *ids = reference(l, "ids", DMS_I32);
    shape.dtype = DMS_I32;
    l->ids = rig_upload(&l->rig, shape, ids);
    for (int64_t i = 0; i < l->B * l->T; i++)
        ids[i] = (int32_t)(i % l->T);
    l->positions = rig_upload(&l->rig, shape, ids);
    free(ids);
}

static lab lab_open(const char *folder, const char *gate)
{
    lab l = {.rig = rig_open_threads(rig_device(), 1)}; /* too small to share */
    char name[64];
    snprintf(name, sizeof(name), "%s%s.safetensors", gate[0] ? "dms_" : "dense", gate);
    l.base = open_source(folder, "");
    l.file = open_source(folder, name);
    l.B = dms_source_find(l.file, "ids")->shape[0];
    l.T = dms_source_find(l.file, "ids")->shape[1];
    open_model(&l, gate);
    upload_text(&l);
    const dms_config *c = &l.model->config;
    l.decisions = rig_zero(&l.rig, rig_shape(c->layers, l.B, c->kv_heads, l.T));
    l.z = rig_zero(&l.rig, l.decisions);
    must(dms_tape_open(&l.tape, &(dms_tape_options){.device = l.rig.dev,
                                                    .max_nodes = dms_transformer_nodes(l.model),
                                                    .keep_bytes = (size_t)16 << 20,
                                                    .scratch_bytes = (size_t)8 << 20,
                                                    .recording = true}));
    return l;
}

static void lab_close(lab *l)
{
    dms_tape_close(l->tape);
    dms_model_close(l->model);
    dms_source_close(l->base);
    dms_source_close(l->file);
    rig_close(&l->rig);
}

/* ---- running ---------------------------------------------------------------------------- */

static dms_pass pass_of(lab *l)
{
    return (dms_pass){.tape = l->tape,
                      .model = l->model,
                      .ids = &l->ids,
                      .positions = &l->positions,
                      .attend = dms_attend_dense};
}

static dms_var *forward(lab *l, const dms_pass *pass)
{
    dms_var *x = dms_transformer_forward(pass);
    must(dms_tape_status(l->tape));
    return x;
}

/* The caller frees the logits, [B, T, V]. */
static float *logits_of(lab *l, const dms_var *x)
{
    dms_tensor y = rig_empty(&l->rig, rig_shape(l->B, l->T, l->model->config.vocab, 0));
    must(dms_linear(&y, &x->value, &l->model->head->value, NULL, NULL));
    return rig_read(&y);
}

static void expect_near(const lab *l, const char *name, const float *got, int64_t n, double atol)
{
    float *want = reference(l, name, DMS_F32);
    double worst = 0;
    for (int64_t i = 0; i < n; i++) {
        const double error = fabs((double)got[i] - (double)want[i]);
        worst = error <= worst ? worst : error;
    }
    cr_expect(worst <= atol, "%s is off by %.3g, at most %.3g", name, worst, atol);
    free(want);
}

static void expect_tensor(const lab *l, const char *name, const dms_tensor *got, double atol)
{
    float *host = rig_read(got);
    expect_near(l, name, host, dms_count(got), atol);
    free(host);
}

/* 3e-5: a few dozen f32 roundings of values up to 10. */
Test(families, give_the_hidden_states_and_logits_of_transformers)
{
    for (size_t f = 0; f < COUNT(folders); f++) {
        lab l = lab_open(folders[f], "");
        const int64_t V = l.model->config.vocab, last = 4;
        const dms_pass pass = pass_of(&l);
        dms_var *x = forward(&l, &pass);
        expect_tensor(&l, "hidden", &x->value, 3e-5);
        float *y = logits_of(&l, x), *end = malloc((size_t)(l.B * last * V) * sizeof(float));
        for (int64_t b = 0; b < l.B; b++)
            memcpy(end + b * last * V, y + ((b + 1) * l.T - last) * V,
                   (size_t)(last * V) * sizeof(float));
        expect_near(&l, "last_logits", end, l.B * last * V, 3e-5);
        free(y);
        free(end);
        lab_close(&l);
    }
}

/* Pieces of words, digits, line ends, and every special token of the file. */
Test(families, tokenizers_give_the_ids_of_tokenizers)
{
    for (size_t f = 0; f < COUNT(folders); f++) {
        lab l = lab_open(folders[f], "");
        const char *text = dms_source_text(l.file, "text");
        const int64_t n = dms_source_find(l.file, "text_ids")->shape[0];
        int32_t *want = reference(&l, "text_ids", DMS_I32);
        dms_tokenizer *t = NULL;
        dms_tokens got = {0};
        size_t length = 0;
        const char *json = dms_source_tokenizer(l.base, &length);
        must(dms_tokenizer_open(&t, json, length, folders[f]));
        must(dms_tokenizer_encode(t, &got, text, strlen(text), true));
        cr_assert_eq(got.n, n, "%s: %d tokens, expected %d", folders[f], (int)got.n, (int)n);
        cr_assert_arr_eq(got.ids, want, (size_t)n * sizeof(int32_t), "%s", folders[f]);
        dms_tokens_free(&got);
        dms_tokenizer_close(t);
        free(want);
        lab_close(&l);
    }
}

/* ---- decisions without noise ------------------------------------------------------------ */

static dms_var *forward_hard(lab *l, dms_hard_context *hard)
{
    *hard = (dms_hard_context){
        .window = l->model->gate.window, .decisions = &l->decisions, .logits = &l->z};
    dms_pass pass = pass_of(l);
    pass.gated = true;
    pass.attend = dms_attend_hard;
    pass.context = hard;
    return forward(l, &pass);
}

Test(families, gpt2_decides_as_the_reference_under_both_gates)
{
    for (size_t g = 0; g < COUNT(gates); g++) {
        lab l = lab_open("gpt2", gates[g]);
        dms_hard_context hard;
        dms_var *x = forward_hard(&l, &hard);
        expect_tensor(&l, "hard_z", &l.z, 1e-4); /* alpha_scale 4 times the states' 3e-5 */
        expect_tensor(&l, "hard_decision", &l.decisions, 0);
        expect_tensor(&l, "hard_hidden", &x->value, 3e-5);
        lab_close(&l);
    }
}

Test(families, gpt2_fades_its_channel_without_rope)
{
    lab l = lab_open("gpt2", "neuron");
    dms_pass pass = pass_of(&l);
    pass.gated = true;
    pass.keep = 0.4f;
    expect_tensor(&l, "fade_0.4_hidden", &forward(&l, &pass)->value, 3e-5);
    lab_close(&l);
}

/* ---- training --------------------------------------------------------------------------- */

/* Every weight wants a gradient, which starts at zero. */
static void want_gradients(lab *l)
{
    for (int i = 0; i < l->model->n_weights; i++) {
        dms_var *v = l->model->weights[i].var;
        v->value.frozen = false;
        v->wants_grad = true;
        v->grad = rig_zero(&l->rig, v->value);
    }
}

static double sum_of(const dms_tensor *t, const float *weight)
{
    float *host = rig_read(t);
    double sum = 0;
    for (int64_t i = 0; i < dms_count(t); i++)
        sum += (double)host[i] * (weight ? (double)weight[i] : 1.0);
    free(host);
    return sum;
}

/* Weights of rows that count, 1/n each. */
static float *weights_of(const lab *l)
{
    float *counted = reference(l, "counted", DMS_F32), n = 0;
    for (int64_t i = 0; i < l->B * l->T; i++)
        n += counted[i];
    for (int64_t i = 0; i < l->B * l->T; i++)
        counted[i] /= n;
    return counted;
}

/* The losses and gradients of one pass, each layer replayed in backward. */
static void train_once(lab *l, const dms_tensor *teacher, float losses[2])
{
    rig *r = &l->rig;
    float *noise = reference(l, "noise", DMS_F32), *counted = weights_of(l);
    const dms_tensor injected = rig_upload(r, l->decisions, noise);
    const dms_tensor weight = rig_upload(r, rig_shape(l->B * l->T, 0, 0, 0), counted);
    dms_tensor pressure = rig_zero(r, rig_shape(l->B, 0, 0, 0)), frac = rig_zero(r, pressure);
    dms_tensor compress = rig_zero(r, pressure);
    dms_soft_context soft = {
        .injected = &injected, .decisions = &l->decisions, .pressure = &pressure};
    dms_pass pass = pass_of(l);
    pass.gated = pass.replay = true;
    pass.attend = dms_attend_soft;
    pass.context = &soft;
    dms_var *x = forward(l, &pass);
    expect_tensor(l, "hidden", &x->value, 3e-5);
    const dms_distill_spec spec = {teacher, &l->model->head->value, &weight, DMS_KL_REVERSE};
    dms_var *kl = dms_ad_distill(l->tape, x, l->model->head, &spec);
    must(dms_tape_status(l->tape));
    must(dms_compression(&(dms_compression_out){&compress, &frac, &pressure}, &l->decisions,
                         setting(l, "target"), 1.0f / (float)l->B));
    must(dms_tape_backward(l->tape, NULL, NULL));
    losses[0] = (float)sum_of(&kl->value, counted);
    losses[1] = (float)(sum_of(&compress, NULL) / (double)l->B);
    free(noise);
    free(counted);
}

/* The gradient of a tensor of the folder, put together from those of ours; the caller frees it. */
static float *gradient_of(const lab *l, const char *theirs, int64_t n)
{
    float *whole = calloc((size_t)n, sizeof(float));
    int parts = 0;
    for (int i = 0; i < l->model->n_weights; i++) {
        dms_layout_place place;
        const dms_weight *w = &l->model->weights[i];
        const dms_tensor *t = &w->var->grad;
        if (!dms_layout_find(&place, dms_source_config(l->base), w->name) ||
            strcmp(place.name, theirs) != 0)
            continue;
        float *own = rig_read(t);
        dms_layout_put(whole, own, &place,
                       &(dms_layout_size){{t->shape[0], t->rank == 2 ? t->shape[1] : 1}, 4});
        free(own);
        parts++;
    }
    cr_assert(parts == 1 || parts == 3, "%s has %d parts", theirs, parts);
    return whole;
}

/* What the reference keeps of a matrix [rows, cols]: its products with two fixed vectors. */
static void project(double *out, const float *g, int64_t rows, int64_t cols, bool onto_rows)
{
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++)
            out[onto_rows ? r : c] +=
                (double)g[r * cols + c] * cos((double)(onto_rows ? c : r) * 0.7 + 0.3);
}

/* NAME is grad.X of a vector, or grad_rows.X or grad_cols.X of a matrix. */
static void expect_gradient(const lab *l, const dms_tensor_info *info)
{
    const char *theirs = strchr(info->name, '.') + 1;
    const dms_tensor_info *base = dms_source_find(l->base, theirs);
    const dms_tensor_info *of = base ? base : dms_source_find(l->file, theirs);
    const int64_t rows = of->shape[0], cols = of->rank == 2 ? of->shape[1] : 1;
    float *got = gradient_of(l, theirs, rows * cols), *want = reference(l, info->name, DMS_F32);
    double *found = calloc((size_t)(rows > cols ? rows : cols), sizeof(double));
    double largest = 0, worst = 0;
    if (of->rank == 2)
        project(found, got, rows, cols, !strncmp(info->name, "grad_rows", 9));
    for (int64_t i = 0; i < info->shape[0]; i++) {
        const double error = fabs((of->rank == 2 ? found[i] : (double)got[i]) - (double)want[i]);
        largest = fmax(largest, fabs((double)want[i]));
        worst = error <= worst ? worst : error;
    }
    cr_expect(worst <= 1e-4 * largest, "%s is off by %.3g of its largest value %.3g, at most 1e-4",
              info->name, worst / largest, largest);
    free(got);
    free(want);
    free(found);
}

Test(families, gpt2_trains_with_the_losses_and_every_gradient_of_the_reference)
{
    for (size_t g = 0; g < COUNT(gates); g++) {
        lab l = lab_open("gpt2", gates[g]);
        float losses[2];
        int compared = 0;
        dms_tensor teacher = rig_empty(&l.rig, rig_shape(l.B, l.T, l.model->config.width, 0));
        const dms_pass dense = pass_of(&l);
        must(dms_cast(&teacher, &forward(&l, &dense)->value));
        dms_tape_reset(l.tape);
        want_gradients(&l);
        train_once(&l, &teacher, losses);
        expect_near(&l, "kl", &losses[0], 1, 1e-6);
        expect_near(&l, "compress", &losses[1], 1, 1e-6);
        for (int64_t i = 0; i < dms_source_count(l.file); i++)
            if (!strncmp(dms_source_info(l.file, i)->name, "grad", 4)) {
                expect_gradient(&l, dms_source_info(l.file, i));
                compared++;
            }
        cr_expect_eq(compared, g ? 44 : 38, "%d gradients", compared);
        lab_close(&l);
    }
}

/* ---- the freed cache -------------------------------------------------------------------- */

static int32_t best_of(const float *logits, int64_t n)
{
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++)
        best = logits[i] > logits[best] ? i : best;
    return (int32_t)best;
}

/* Continues the first three tokens greedily over the freed cache, up to T tokens; text: [T], each
 * step's logits: [T, V]. */
static void decode_greedily(const lab *l, int32_t *text, float *logits)
{
    dms_session *s = NULL;
    int sequence = 0;
    const int64_t V = l->model->config.vocab, prompt = 3;
    must(dms_session_open(&s, &(dms_session_options){.model = l->model,
                                                     .context = l->T,
                                                     .max_sequences = 1,
                                                     .kv_dtype = DMS_F32,
                                                     .slab_bytes = 1}));
    must(dms_cache_admit(dms_session_cache(s), &sequence));
    must(dms_session_prefill(s, logits + (prompt - 1) * V, sequence, text, prompt, 2));
    for (int64_t at = prompt; at < l->T; at++) {
        text[at] = best_of(logits + (at - 1) * V, V);
        must(dms_session_decode(s, logits + at * V, &(int32_t){sequence}, text + at, 1));
    }
    dms_session_close(s);
}

/* The masked pass over what was generated gives the same logits, so the same words. */
static void expect_masked_scoring_agrees(lab *l)
{
    dms_hard_context hard;
    const int64_t V = l->model->config.vocab;
    float *logits = malloc((size_t)(l->T * V) * sizeof(float)), worst = 0;
    int32_t *text = reference(l, "ids", DMS_I32);
    decode_greedily(l, text, logits);
    must(l->rig.dev->upload(l->rig.dev, l->ids.data, text, (size_t)l->T * sizeof(int32_t)));
    dms_pass pass = pass_of(l);
    dms_var *x = l->model->gate.kind ? forward_hard(l, &hard) : forward(l, &pass);
    float *want = logits_of(l, x);
    for (int64_t i = 2 * V; i < l->T * V; i++)
        worst = fmaxf(worst, fabsf(logits[i] - want[i]));
    cr_expect(worst <= 1e-4f, "%s: logits are off by %g", l->model->config.family, (double)worst);
    for (int64_t t = 3; t < l->T; t++)
        cr_expect_eq(text[t], best_of(want + (t - 1) * V, V), "token %d differs", (int)t);
    free(logits);
    free(want);
    free(text);
}

Test(families, greedy_decoding_over_the_freed_cache_is_masked_scoring)
{
    for (size_t f = 0; f < COUNT(folders); f++) {
        lab l = lab_open(folders[f], "");
        expect_masked_scoring_agrees(&l);
        lab_close(&l);
    }
    for (size_t g = 0; g < COUNT(gates); g++) {
        lab l = lab_open("gpt2", gates[g]);
        expect_masked_scoring_agrees(&l);
        lab_close(&l);
    }
}
