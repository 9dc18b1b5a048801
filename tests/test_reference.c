/* The whole network against the PyTorch reference: dense, both gates in training, hard decisions,
 * the fade, every loss and every gradient. */
#include "tests/fixtures.h"
#include "tests/reference.h"

/* A parameter is copied into another process, so it holds no pointers. */
typedef struct {
    char family[8], gate[8]; /* gate: neuron, adapter; empty: dense */
} tiny_case;

/* A family's model, one reference file, and a tape. */
typedef struct {
    rig rig;
    reference ref;
    dms_model *model;
    dms_tape *tape;
    int64_t V, D, G, L;
    dms_tensor ids, positions;
    dms_tensor noise, decisions, z; /* [L, B, G, T] */
    dms_tensor weight, pressure;    /* [B*T], [B] */
    dms_tensor teacher_x;           /* [B, T, D] */
    dms_tensor compress, frac;      /* [B] */
    float target;
} lab;

/* ---- opening -------------------------------------------------------------------------------- */

static void open_decisions(lab *l)
{
    float *counted = reference_read(&l->ref, "counted");
    float n = 0;
    for (int64_t i = 0; i < l->ref.B * l->ref.T; i++)
        n += counted[i];
    for (int64_t i = 0; i < l->ref.B * l->ref.T; i++)
        counted[i] /= n;
    l->weight = rig_upload(&l->rig, rig_shape(l->ref.B * l->ref.T, 0, 0, 0), counted);
    free(counted);
    const dms_tensor all = rig_shape(l->L, l->ref.B, l->G, l->ref.T);
    l->noise = reference_upload(&l->ref, &l->rig, all, "noise");
    l->decisions = rig_zero(&l->rig, all);
    l->z = rig_zero(&l->rig, all);
    l->teacher_x = rig_empty(&l->rig, rig_shape(l->ref.B, l->ref.T, l->D, 0));
    l->compress = rig_empty(&l->rig, rig_shape(l->ref.B, 0, 0, 0));
    l->frac = rig_empty(&l->rig, rig_shape(l->ref.B, 0, 0, 0));
    l->pressure = rig_zero(&l->rig, rig_shape(l->ref.B, 0, 0, 0));
    l->target = reference_setting(&l->ref, "target");
}

static void open_tape(lab *l)
{
    const dms_tape_options o = {.device = l->rig.dev,
                                .max_nodes = dms_transformer_nodes(l->model),
                                .keep_bytes = (size_t)32 << 20,
                                .scratch_bytes = (size_t)16 << 20,
                                .recording = true};
    must(dms_tape_open(&l->tape, &o));
}

static lab lab_open(const tiny_case *c)
{
    lab l = {.rig = rig_open_threads(rig_device(), 1)}; /* too small to share */
    char base[1024], file[1024], name[256];
    snprintf(name, sizeof(name), "tiny/%s", c->family);
    fixture(base, name);
    snprintf(name, sizeof(name),
             c->gate[0] ? "tiny/%s/dms_%s.safetensors" : "tiny/%s/%s.safetensors", c->family,
             c->gate[0] ? c->gate : "dense");
    l.ref = reference_open(base, fixture(file, name));
    l.model = reference_model(&l.ref, l.rig.dev, c->gate);
    l.V = l.model->config.vocab;
    l.D = l.model->config.width;
    l.G = l.model->config.kv_heads;
    l.L = l.model->config.layers;
    dms_tensor shape = rig_shape_i32(l.ref.B, l.ref.T);
    l.ids = reference_upload(&l.ref, &l.rig, shape, "ids");
    l.positions = reference_positions(&l.ref, &l.rig);
    open_tape(&l);
    if (c->gate[0])
        open_decisions(&l);
    return l;
}

static void lab_close(lab *l)
{
    dms_tape_close(l->tape);
    dms_model_close(l->model);
    reference_close(&l->ref);
    rig_close(&l->rig);
}

/* ---- running -------------------------------------------------------------------------------- */

static dms_pass pass_of(lab *l)
{
    return (dms_pass){.tape = l->tape,
                      .model = l->model,
                      .ids = &l->ids,
                      .positions = &l->positions,
                      .attend = dms_attend_dense};
}

/* The training mask, and a look at the z that enters it. */
typedef struct {
    dms_soft_context soft;
    const dms_tensor *z; /* out */
} watched;

static dms_var *attend_watched(const dms_pass *pass, int layer, dms_var *const qkv[3], dms_var *z)
{
    const watched *w = pass->context;
    dms_pass inner = *pass;
    inner.context = (void *)&w->soft;
    if (!z)
        return NULL;
    dms_tensor out = dms_layer_view(w->z, layer);
    dms_tape_check(pass->tape, dms_cast(&out, &z->value));
    return dms_attend_soft(&inner, layer, qkv, z);
}

static watched training(lab *l)
{
    return (watched){{.injected = &l->noise, .decisions = &l->decisions, .pressure = &l->pressure},
                     &l->z};
}

/* Logits of hidden states, from the model's head; the caller frees them. */
static float *logits_of(lab *l, const dms_tensor *x)
{
    const size_t mark = l->rig.arena.used;
    dms_tensor y = rig_empty(&l->rig, rig_shape(l->ref.B, l->ref.T, l->V, 0));
    must(dms_linear(&y, x, &l->model->head->value, NULL, NULL));
    float *host = rig_read(&y);
    l->rig.arena.used = mark;
    return host;
}

/* log softmax of each row, in place. */
static void to_logprobs(float *y, int64_t rows, int64_t cols)
{
    for (int64_t r = 0; r < rows; r++, y += cols) {
        double sum = 0, top = -INFINITY;
        for (int64_t i = 0; i < cols; i++)
            top = fmax(top, (double)y[i]);
        for (int64_t i = 0; i < cols; i++)
            sum += exp((double)y[i] - top);
        for (int64_t i = 0; i < cols; i++)
            y[i] = (float)((double)y[i] - top - log(sum));
    }
}

static void expect_logprobs(lab *l, const char *name, const dms_tensor *x)
{
    float *y = logits_of(l, x);
    to_logprobs(y, l->ref.B * l->ref.T, l->V);
    reference_expect(&l->ref, name, y, l->ref.B * l->ref.T * l->V, 3e-5);
    free(y);
}

/* Decisions are equal but where the logit is as near to 0 as rounding can carry it. */
static void expect_decisions(const lab *l, const char *name, const char *z_name, bool noisy)
{
    float *want = reference_read(&l->ref, name), *z = reference_read(&l->ref, z_name);
    float *noise = reference_read(&l->ref, "noise"), *got = rig_read(&l->decisions);
    for (int64_t i = 0; i < dms_count(&l->decisions); i++) {
        const float logit = z[i] + (noisy ? noise[i] : 0);
        cr_expect(got[i] == want[i] || fabsf(logit) < 1e-4f, "%s[%lld] is %g where the logit is %g",
                  name, (long long)i, (double)got[i], (double)logit);
    }
    free(want);
    free(z);
    free(noise);
    free(got);
}

/* ---- parameters ----------------------------------------------------------------------------- */

static struct criterion_test_params cases(bool dense)
{
    static tiny_case all[] = {{"llama", ""},        {"llama3", ""},        {"qwen2", ""},
                              {"qwen3", ""},        {"llama", "neuron"},   {"llama", "adapter"},
                              {"llama3", "neuron"}, {"llama3", "adapter"}, {"qwen2", "neuron"},
                              {"qwen2", "adapter"}, {"qwen3", "neuron"},   {"qwen3", "adapter"}};
    return dense ? cr_make_param_array(tiny_case, all, 4)
                 : cr_make_param_array(tiny_case, all + 4, 8);
}

/* ---- the dense model ------------------------------------------------------------------------ */

ParameterizedTestParameters(reference, dense_logits_are_the_reference)
{
    return cases(true);
}

/* 3e-5: a few dozen f32 roundings of values up to 10. */
ParameterizedTest(tiny_case *c, reference, dense_logits_are_the_reference)
{
    lab l = lab_open(c);
    char last[32];
    const dms_pass pass = pass_of(&l);
    dms_var *x = reference_forward(&pass);
    snprintf(last, sizeof(last), "hidden.%lld", (long long)l.L);
    reference_expect_tensor(&l.ref, last, &x->value, 3e-5);
    float *y = logits_of(&l, &x->value);
    reference_expect(&l.ref, "logits", y, l.ref.B * l.ref.T * l.V, 3e-5);
    free(y);
    dms_tensor embedded = rig_empty(&l.rig, rig_shape(l.ref.B, l.ref.T, l.D, 0));
    must(dms_embedding(&embedded, &l.ids, &l.model->embedding.value));
    reference_expect_tensor(&l.ref, "hidden.0", &embedded, 0);
    lab_close(&l);
}

/* ---- decisions without noise ---------------------------------------------------------------- */

ParameterizedTestParameters(reference, hard_decisions_give_the_reference)
{
    return cases(false);
}

ParameterizedTest(tiny_case *c, reference, hard_decisions_give_the_reference)
{
    lab l = lab_open(c);
    dms_hard_context hard = {
        .window = l.model->gate.window, .decisions = &l.decisions, .logits = &l.z};
    dms_pass pass = pass_of(&l);
    pass.gated = true;
    pass.attend = dms_attend_hard;
    pass.context = &hard;
    dms_var *x = reference_forward(&pass);
    reference_expect_tensor(&l.ref, "hard_z", &l.z,
                            1e-4); /* alpha_scale 4 times the states' 3e-5 */
    expect_decisions(&l, "hard_decision", "hard_z", false);
    expect_logprobs(&l, "hard_logprobs", &x->value);
    lab_close(&l);
}

ParameterizedTestParameters(reference, fade_multiplies_the_channel_before_and_after_rope)
{
    return cases(false);
}

ParameterizedTest(tiny_case *c, reference, fade_multiplies_the_channel_before_and_after_rope)
{
    lab l = lab_open(c);
    dms_pass pass = pass_of(&l);
    pass.gated = true;
    pass.keep = 0.4f;
    if (dms_source_find(l.ref.file, "fade_0.4_hidden")) { /* the neuron gate only */
        dms_var *x = reference_forward(&pass);
        reference_expect_tensor(&l.ref, "fade_0.4_hidden", &x->value, 3e-5);
    }
    lab_close(&l);
}

/* ---- training ------------------------------------------------------------------------------- */

/* The teacher's states, in memory of their own. */
static void run_teacher(lab *l)
{
    dms_tape_reset(l->tape);
    const dms_pass pass = pass_of(l);
    must(dms_cast(&l->teacher_x, &reference_forward(&pass)->value));
    dms_tape_reset(l->tape);
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

/* One training pass up to, and with `backward` including, the gradients. Hands out the hidden
 * states; kl and compress may be NULL. */
static dms_var *train_once(lab *l, bool replay, double *kl, double *compress)
{
    watched w = training(l);
    dms_tape_reset(l->tape);
    dms_pass pass = pass_of(l);
    pass.gated = true;
    pass.replay = replay;
    pass.attend = attend_watched;
    pass.context = &w;
    dms_var *x = reference_forward(&pass);
    const dms_distill_spec spec = {&l->teacher_x, &l->model->head->value, &l->weight,
                                   DMS_KL_REVERSE};
    dms_var *loss = dms_ad_distill(l->tape, x, l->model->head, &spec);
    must(dms_tape_status(l->tape));
    must(dms_compression(&(dms_compression_out){&l->compress, &l->frac, &l->pressure},
                         &l->decisions, l->target, 1.0f / (float)l->ref.B));
    must(dms_tape_backward(l->tape, NULL, NULL));
    float *weight = rig_read(&l->weight);
    if (kl)
        *kl = sum_of(&loss->value, weight);
    if (compress)
        *compress = sum_of(&l->compress, NULL) / (double)l->ref.B;
    free(weight);
    return x;
}

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

static void clear_gradients(lab *l)
{
    for (int i = 0; i < l->model->n_weights; i++) {
        dms_tensor *g = &l->model->weights[i].var->grad;
        must(g->device->zero(g->device, g->data, dms_tensor_bytes(g)));
    }
}

static void expect_gradient(const lab *l, const dms_weight *w)
{
    char name[128];
    snprintf(name, sizeof(name), "grad.%s", w->name);
    float *want = reference_read(&l->ref, name), *got = rig_read(&w->var->grad);
    double largest = 0, worst = 0;
    for (int64_t i = 0; i < dms_count(&w->var->grad); i++) {
        largest = fmax(largest, fabs((double)want[i]));
        const double error = fabs((double)got[i] - (double)want[i]);
        worst = error <= worst ? worst : error;
    }
    cr_expect(worst <= 1e-4 * largest, "%s is off by %.3g of its largest value %.3g, at most 1e-4",
              name, worst / largest, largest);
    free(want);
    free(got);
}

ParameterizedTestParameters(reference, training_gives_losses_and_every_gradient)
{
    return cases(false);
}

ParameterizedTest(tiny_case *c, reference, training_gives_losses_and_every_gradient)
{
    lab l = lab_open(c);
    double kl, compress;
    want_gradients(&l);
    run_teacher(&l);
    expect_logprobs(&l, "teacher_logprobs", &l.teacher_x);
    dms_var *x = train_once(&l, false, &kl, &compress);
    reference_expect_tensor(&l.ref, "hidden", &x->value, 3e-5);
    expect_logprobs(&l, "logprobs", &x->value);
    reference_expect_tensor(&l.ref, "z", &l.z, 1e-4);
    expect_decisions(&l, "decision", "z", true);
    const float losses[] = {(float)kl, (float)compress, (float)(kl + compress)};
    reference_expect(&l.ref, "kl", &losses[0], 1, 1e-6);
    reference_expect(&l.ref, "compress", &losses[1], 1, 1e-6);
    reference_expect(&l.ref, "loss", &losses[2], 1, 2e-6); /* the sum of both */
    for (int i = 0; i < l.model->n_weights; i++)
        expect_gradient(&l, &l.model->weights[i]);
    lab_close(&l);
}

ParameterizedTestParameters(reference, replayed_segments_give_the_same_bits)
{
    return cases(false);
}

ParameterizedTest(tiny_case *c, reference, replayed_segments_give_the_same_bits)
{
    lab l = lab_open(c);
    want_gradients(&l);
    run_teacher(&l);
    train_once(&l, false, NULL, NULL);
    float *kept[128];
    cr_assert(l.model->n_weights <= (int)COUNT(kept));
    for (int i = 0; i < l.model->n_weights; i++)
        kept[i] = rig_read(&l.model->weights[i].var->grad);
    clear_gradients(&l);
    train_once(&l, true, NULL, NULL);
    for (int i = 0; i < l.model->n_weights; i++) {
        const dms_weight *w = &l.model->weights[i];
        float *again = rig_read(&w->var->grad);
        cr_expect(!memcmp(again, kept[i], dms_tensor_bytes(&w->var->grad)),
                  "the gradient of %s differs when its segment is replayed", w->name);
        free(again);
        free(kept[i]);
    }
    lab_close(&l);
}

/* ---- finite differences --------------------------------------------------------------------- */

/* The distillation loss alone: the compression loss sees hard decisions, whose gradient is
 * straight-through and no slope. */
static double distillation_at(lab *l, dms_var *v, int64_t i, float value)
{
    double kl;
    must(l->rig.dev->upload(l->rig.dev, (float *)v->value.data + i, &value, sizeof(value)));
    train_once(l, false, &kl, NULL);
    return kl;
}

/* Where the gradient of a tensor is largest. */
static int64_t steepest(const dms_var *v, float *slope)
{
    float *g = rig_read(&v->grad);
    int64_t best = 0;
    for (int64_t i = 0; i < dms_count(&v->grad); i++)
        best = fabsf(g[i]) > fabsf(g[best]) ? i : best;
    *slope = g[best];
    free(g);
    return best;
}

ParameterizedTestParameters(reference, gradients_are_slopes_of_the_whole_model)
{
    return cases(false);
}

/* Fourth-order differences with a step that moves the loss by about 1e-3: rounding of an f32 pass
 * (1e-7) is then 1e-4 of it. 1e-2 leaves room for the curvature of decisions at tau 0.1. The pair
 * of embedding and tied head is left out of the teacher's side: its head moves with it. */
ParameterizedTest(tiny_case *c, reference, gradients_are_slopes_of_the_whole_model)
{
    lab l = lab_open(c);
    want_gradients(&l);
    run_teacher(&l);
    l.target = 0;
    train_once(&l, false, NULL, NULL);
    int64_t at[128];
    float slope[128];
    for (int i = 0; i < l.model->n_weights; i++)
        at[i] = steepest(l.model->weights[i].var, &slope[i]);
    for (int i = 0; i < l.model->n_weights; i++) {
        const dms_weight *w = &l.model->weights[i];
        if (w->role == DMS_ROLE_EMBEDDING || (rig_device() == DMS_CUDA_EMU && i % 8))
            continue; /* the emulation takes its time; a GPU and the CPU test every weight */
        float here;
        must(l.rig.dev->download(l.rig.dev, &here, (float *)w->var->value.data + at[i], 4));
        const float h = fminf(1e-3f / fabsf(slope[i]), 4e-3f);
        const double near = distillation_at(&l, w->var, at[i], here + h) -
                            distillation_at(&l, w->var, at[i], here - h);
        const double far = distillation_at(&l, w->var, at[i], here + 2 * h) -
                           distillation_at(&l, w->var, at[i], here - 2 * h);
        distillation_at(&l, w->var, at[i], here);
        const double found = (8 * near - far) / (12 * (double)h);
        cr_expect(fabs(found - (double)slope[i]) <= 1e-2 * fabs((double)slope[i]),
                  "%s[%lld] has gradient %.6g, the loss has slope %.6g", w->name, (long long)at[i],
                  (double)slope[i], found);
    }
    lab_close(&l);
}
