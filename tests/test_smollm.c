/* A real model, SmolLM2-135M-Instruct, against the PyTorch reference: dense, and both gates with
 * decisions without noise. Skipped where the model file is not there (DMS_MODEL, or the project's
 * cache folder). */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/fixtures.h"
#include "tests/reference.h"

typedef struct {
    dms_device *dev;
    reference ref;
    dms_model *model;
    dms_tape *tape;
    dms_arena arena;
    int64_t L, G;
    dms_tensor ids, positions, next; /* [B, T], [B*T] */
    dms_tensor teacher_x;            /* [B, T, D] */
    dms_tensor given, decisions, z;  /* [L, B, G, T] */
    dms_tensor nll, kl, weight;      /* [B*T] */
} lab;

static const char *model_path(void)
{
    const char *path = getenv("DMS_MODEL");
    if (!path)
        path = DMS_SOURCE_DIR "/cache/SmolLM2-135M-Instruct.Q4_1.gguf";
    if (access(path, R_OK) != 0)
        cr_skip_test("%s is not there; scripts/quickstart.sh fetches it, or set DMS_MODEL", path);
    return path;
}

static void place_tensors(lab *l, dms_arena *arena)
{
    const int64_t rows = l->ref.B * l->ref.T;
    l->ids = l->positions =
        (dms_tensor){.dtype = DMS_I32, .rank = 2, .shape = {l->ref.B, l->ref.T}};
    l->next = (dms_tensor){.dtype = DMS_I32, .rank = 1, .shape = {rows}};
    l->teacher_x = (dms_tensor){.rank = 3, .shape = {l->ref.B, l->ref.T, l->model->config.width}};
    l->given = l->decisions = l->z =
        (dms_tensor){.rank = 4, .shape = {l->L, l->ref.B, l->G, l->ref.T}};
    l->nll = l->kl = l->weight = (dms_tensor){.rank = 1, .shape = {rows}};
    dms_tensor *const all[] = {&l->ids,       &l->positions, &l->next, &l->teacher_x, &l->given,
                               &l->decisions, &l->z,         &l->nll,  &l->kl,        &l->weight};
    for (size_t i = 0; i < COUNT(all); i++)
        must(dms_arena_place(arena, all[i]));
}

static void upload_text(lab *l)
{
    const int64_t rows = l->ref.B * l->ref.T;
    int32_t *ids = reference_read(&l->ref, "ids"), *other = malloc((size_t)rows * 4);
    float *ones = malloc((size_t)rows * sizeof(float));
    must(l->dev->upload(l->dev, l->ids.data, ids, (size_t)rows * 4));
    for (int64_t i = 0; i < rows; i++)
        other[i] = (int32_t)(i % l->ref.T);
    must(l->dev->upload(l->dev, l->positions.data, other, (size_t)rows * 4));
    for (int64_t i = 0; i < rows; i++) {
        other[i] = (i + 1) % l->ref.T ? ids[i + 1] : -1;
        ones[i] = 1;
    }
    must(l->dev->upload(l->dev, l->next.data, other, (size_t)rows * 4));
    must(l->dev->upload(l->dev, l->weight.data, ones, (size_t)rows * 4));
    free(ids);
    free(other);
    free(ones);
}

static lab lab_open(void)
{
    lab l = {0};
    char path[1024];
    l.ref = reference_open(model_path(), fixture(path, "smollm2-135m/reference.safetensors"));
    must(dms_device_open(&l.dev, DMS_CPU, 2));
    l.model = reference_model(&l.ref, l.dev, "adapter"); /* a pass says how it is gated */
    l.L = l.model->config.layers;
    l.G = l.model->config.kv_heads;
    dms_arena measure = dms_arena_measure(l.dev);
    place_tensors(&l, &measure);
    must(dms_arena_open(&l.arena, l.dev, measure.peak));
    place_tensors(&l, &l.arena);
    upload_text(&l);
    must(dms_tape_open(&l.tape, &(dms_tape_options){.device = l.dev,
                                                    .max_nodes = dms_transformer_nodes(l.model),
                                                    .keep_bytes = (size_t)128 << 20,
                                                    .scratch_bytes = (size_t)64 << 20}));
    return l;
}

static void lab_close(lab *l)
{
    dms_tape_close(l->tape);
    dms_arena_close(&l->arena);
    dms_model_close(l->model);
    reference_close(&l->ref);
    l->dev->close(l->dev);
}

/* Hard decisions, given or the model's own, and a look at the model's own z. */
typedef struct {
    dms_hard_context hard;
    const dms_tensor *z; /* out */
} watched;

static dms_var *attend_watched(const dms_pass *pass, int layer, dms_var *const qkv[3], dms_var *z)
{
    const watched *w = pass->context;
    dms_pass inner = *pass;
    inner.context = (void *)&w->hard;
    if (!z)
        return NULL;
    dms_tensor out = dms_layer_view(w->z, layer);
    dms_tape_check(pass->tape, dms_cast(&out, &z->value));
    return dms_attend_hard(&inner, layer, qkv, z);
}

/* Hidden states; gate NONE: the dense model. */
static dms_var *run(lab *l, dms_gate_kind gate, const dms_tensor *given)
{
    watched w = {{.window = l->model->gate.window, .given = given, .decisions = &l->decisions},
                 &l->z};
    const dms_pass pass = {.tape = l->tape,
                           .model = l->model,
                           .ids = &l->ids,
                           .positions = &l->positions,
                           .gated = gate != DMS_GATE_NONE,
                           .attend = gate ? attend_watched : dms_attend_dense,
                           .context = &w};
    l->model->gate.kind = gate; /* both gates are the same law behind another z */
    dms_tape_reset(l->tape);
    dms_var *x = dms_transformer_forward(&pass);
    must(dms_tape_status(l->tape));
    return x;
}

static void score(lab *l, const dms_tensor *x, bool against_teacher)
{
    const dms_tensor *head = &l->model->head->value;
    const dms_score_out out = {
        .nll = &l->nll, .kl_forward = against_teacher ? &l->kl : NULL, .next = &l->next};
    must(dms_score(&out, &(dms_distill_in){x, head, against_teacher ? &l->teacher_x : NULL,
                                           against_teacher ? head : NULL, &l->weight}));
}

/* 2e-3: 30 layers of f32 roundings in another order. `cols` of each T count. */
static void expect_rows(const lab *l, const char *name, const dms_tensor *got, int64_t cols)
{
    float *want = reference_read(&l->ref, name), *host = rig_read(got);
    double worst = 0;
    for (int64_t b = 0; b < l->ref.B; b++)
        for (int64_t t = 0; t < cols; t++) {
            const double error = fabs((double)host[b * l->ref.T + t] - (double)want[b * cols + t]);
            worst = error <= worst ? worst : error;
        }
    cr_expect(worst <= 2e-3, "%s is off by %.3g, at most 2e-3", name, worst);
    cr_log_info("%s: worst %.3g", name, worst);
    free(want);
    free(host);
}

static void expect_logprobs(lab *l, const dms_tensor *x)
{
    const int64_t V = l->model->config.vocab, D = l->model->config.width;
    const int64_t n = dms_source_find(l->ref.file, "positions")->shape[0];
    float *want = reference_read(&l->ref, "logprobs"), *logits = malloc((size_t)V * sizeof(float));
    int32_t *at = reference_read(&l->ref, "positions");
    dms_arena arena = {0};
    dms_tensor y = {.rank = 2, .shape = {1, V}};
    must(dms_arena_open(&arena, l->dev, dms_tensor_bytes(&y)));
    must(dms_arena_place(&arena, &y));
    for (int64_t i = 0; i < n; i++) {
        dms_tensor row = *x;
        double sum = 0, worst = 0;
        row.rank = 2;
        row.shape[0] = 1;
        row.shape[1] = D;
        row.data = (float *)x->data + (int64_t)at[i] * D;
        must(dms_linear(&y, &row, &l->model->head->value, NULL, NULL));
        must(l->dev->download(l->dev, logits, y.data, dms_tensor_bytes(&y)));
        for (int64_t v = 0; v < V; v++)
            sum += exp((double)logits[v]);
        for (int64_t v = 0; v < V; v++) {
            const double error = fabs((double)logits[v] - log(sum) - (double)want[i * V + v]);
            worst = error <= worst ? worst : error;
        }
        cr_expect(worst <= 2e-3, "log-probabilities of position %d are off by %.3g, at most 2e-3",
                  at[i], worst);
    }
    dms_arena_close(&arena);
    free(want);
    free(logits);
    free(at);
}

/* Decisions by `z` are the reference's wherever its |z| > 0.01: nearer to 0 rounding may flip
 * them. */
static void expect_evictions(const lab *l, const char *gate, const dms_tensor *z)
{
    char name[64];
    snprintf(name, sizeof(name), "%s.evict", gate);
    float *evict = reference_read(&l->ref, name), *got = rig_read(z);
    snprintf(name, sizeof(name), "%s.z", gate);
    float *want = reference_read(&l->ref, name);
    int64_t wrong = 0, near = 0;
    double worst = 0;
    for (int64_t i = 0; i < dms_count(z); i++) {
        wrong += fabsf(want[i]) > 0.01f && (got[i] > 0) != (evict[i] > 0);
        near += fabsf(want[i]) <= 0.01f;
        worst = fmax(worst, fabs((double)got[i] - (double)want[i]));
    }
    cr_expect(wrong == 0, "%s: %lld decisions differ where |z| > 0.01; z is off by up to %.3g",
              gate, (long long)wrong, worst);
    cr_log_info("%s: z off by up to %.3g; |z| <= 0.01 in %lld cases", gate, worst, (long long)near);
    free(evict);
    free(want);
    free(got);
}

static void give_decisions(lab *l, const char *gate)
{
    char name[64];
    snprintf(name, sizeof(name), "%s.evict", gate);
    float *evict = reference_read(&l->ref, name);
    for (int64_t i = 0; i < dms_count(&l->given); i++)
        evict[i] = evict[i] > 0 ? 1.0f : -1.0f;
    must(l->dev->upload(l->dev, l->given.data, evict, dms_tensor_bytes(&l->given)));
    free(evict);
}

static void check_gate(lab *l, dms_gate_kind kind)
{
    char name[64];
    const char *gate = dms_gate_name(kind);
    give_decisions(l, gate);
    dms_var *x = run(l, kind, &l->given);
    score(l, &x->value, true);
    snprintf(name, sizeof(name), "%s.nll", gate);
    expect_rows(l, name, &l->nll, l->ref.T - 1);
    snprintf(name, sizeof(name), "%s.kl_teacher_student", gate);
    expect_rows(l, name, &l->kl, l->ref.T);
    expect_evictions(l, gate, &l->z);
    run(l, kind, NULL); /* the same by its own decisions */
    expect_evictions(l, gate, &l->z);
}

Test(smollm, is_the_reference_dense_and_with_both_gates)
{
    lab l = lab_open();
    dms_var *x = run(&l, DMS_GATE_NONE, NULL);
    must(dms_cast(&l.teacher_x, &x->value));
    score(&l, &x->value, false);
    expect_rows(&l, "nll", &l.nll, l.ref.T - 1);
    expect_logprobs(&l, &x->value);
    check_gate(&l, DMS_GATE_ADAPTER);
    check_gate(&l, DMS_GATE_NEURON);
    lab_close(&l);
}
