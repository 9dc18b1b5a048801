/* Small models of GPT-2's and of DeepSeek-R1's distils' kind against tests/reference: dense, under
 * both gates, over the freed cache. */
#include "data/tokenizer.h"
#include "infer/session.h"
#include "tests/reference.h"

static const char *const folders[] = {"gpt2", "deepseek-qwen2", "deepseek-llama"};
static const char *const gates[] = {"neuron", "adapter"};

/* A folder's model, one of its reference files, a tape; B texts of T tokens. */
typedef struct {
    rig rig;
    reference ref;
    dms_model *model;
    dms_tape *tape;
    dms_tensor ids, positions, decisions, z; /* [B, T], [L, B, G, T] */
} lab;

/* ---- opening ---------------------------------------------------------------------------- */

static lab lab_open(const char *folder, const char *gate)
{
    lab l = {.rig = rig_open_threads(rig_device(), 1)}; /* too small to share */
    char base[1024], file[1024];
    snprintf(base, sizeof(base), DMS_SOURCE_DIR "/tests/data/%s", folder);
    snprintf(file, sizeof(file), DMS_SOURCE_DIR "/tests/data/%s/%s%s.safetensors", folder,
             gate[0] ? "dms_" : "dense", gate);
    l.ref = reference_open(base, file);
    l.model = reference_model(&l.ref, l.rig.dev, gate);
    l.ids = reference_upload(&l.ref, &l.rig, rig_shape_i32(l.ref.B, l.ref.T), "ids");
    l.positions = reference_positions(&l.ref, &l.rig);
    const dms_config *c = &l.model->config;
    l.decisions = rig_zero(&l.rig, rig_shape(c->layers, l.ref.B, c->kv_heads, l.ref.T));
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
    reference_close(&l->ref);
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

/* The caller frees the logits, [B, T, V]. */
static float *logits_of(lab *l, const dms_var *x)
{
    dms_tensor y = rig_empty(&l->rig, rig_shape(l->ref.B, l->ref.T, l->model->config.vocab, 0));
    must(dms_linear(&y, &x->value, &l->model->head->value, NULL, NULL));
    return rig_read(&y);
}

/* 3e-5: a few dozen f32 roundings of values up to 10. */
Test(families, give_the_hidden_states_and_logits_of_transformers)
{
    for (size_t f = 0; f < COUNT(folders); f++) {
        lab l = lab_open(folders[f], "");
        const int64_t V = l.model->config.vocab, last = 4;
        const dms_pass pass = pass_of(&l);
        dms_var *x = reference_forward(&pass);
        reference_expect_tensor(&l.ref, "hidden", &x->value, 3e-5);
        float *y = logits_of(&l, x), *end = malloc((size_t)(l.ref.B * last * V) * sizeof(float));
        for (int64_t b = 0; b < l.ref.B; b++)
            memcpy(end + b * last * V, y + ((b + 1) * l.ref.T - last) * V,
                   (size_t)(last * V) * sizeof(float));
        reference_expect(&l.ref, "last_logits", end, l.ref.B * last * V, 3e-5);
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
        const char *text = dms_source_text(l.ref.file, "text");
        const int64_t n = dms_source_find(l.ref.file, "text_ids")->shape[0];
        int32_t *want = reference_read(&l.ref, "text_ids");
        dms_tokenizer *t = NULL;
        dms_tokens got = {0};
        size_t length = 0;
        const char *json = dms_source_tokenizer(l.ref.base, &length);
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
    return reference_forward(&pass);
}

Test(families, gpt2_decides_as_the_reference_under_both_gates)
{
    for (size_t g = 0; g < COUNT(gates); g++) {
        lab l = lab_open("gpt2", gates[g]);
        dms_hard_context hard;
        dms_var *x = forward_hard(&l, &hard);
        reference_expect_tensor(&l.ref, "hard_z", &l.z,
                                1e-4); /* alpha_scale 4 times the states' 3e-5 */
        reference_expect_tensor(&l.ref, "hard_decision", &l.decisions, 0);
        reference_expect_tensor(&l.ref, "hard_hidden", &x->value, 3e-5);
        lab_close(&l);
    }
}

Test(families, gpt2_fades_its_channel_without_rope)
{
    lab l = lab_open("gpt2", "neuron");
    dms_pass pass = pass_of(&l);
    pass.gated = true;
    pass.keep = 0.4f;
    reference_expect_tensor(&l.ref, "fade_0.4_hidden", &reference_forward(&pass)->value, 3e-5);
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
    float *counted = reference_read(&l->ref, "counted"), n = 0;
    for (int64_t i = 0; i < l->ref.B * l->ref.T; i++)
        n += counted[i];
    for (int64_t i = 0; i < l->ref.B * l->ref.T; i++)
        counted[i] /= n;
    return counted;
}

/* The losses and gradients of one pass, each layer replayed in backward. */
static void train_once(lab *l, const dms_tensor *teacher, float losses[2])
{
    rig *r = &l->rig;
    float *noise = reference_read(&l->ref, "noise"), *counted = weights_of(l);
    const dms_tensor injected = rig_upload(r, l->decisions, noise);
    const dms_tensor weight = rig_upload(r, rig_shape(l->ref.B * l->ref.T, 0, 0, 0), counted);
    dms_tensor pressure = rig_zero(r, rig_shape(l->ref.B, 0, 0, 0)), frac = rig_zero(r, pressure);
    dms_tensor compress = rig_zero(r, pressure);
    dms_soft_context soft = {
        .injected = &injected, .decisions = &l->decisions, .pressure = &pressure};
    dms_pass pass = pass_of(l);
    pass.gated = pass.replay = true;
    pass.attend = dms_attend_soft;
    pass.context = &soft;
    dms_var *x = reference_forward(&pass);
    reference_expect_tensor(&l->ref, "hidden", &x->value, 3e-5);
    const dms_distill_spec spec = {teacher, &l->model->head->value, &weight, DMS_KL_REVERSE};
    dms_var *kl = dms_ad_distill(l->tape, x, l->model->head, &spec);
    must(dms_tape_status(l->tape));
    must(dms_compression(&(dms_compression_out){&compress, &frac, &pressure}, &l->decisions,
                         reference_setting(&l->ref, "target"), 1.0f / (float)l->ref.B));
    must(dms_tape_backward(l->tape, NULL, NULL));
    losses[0] = (float)sum_of(&kl->value, counted);
    losses[1] = (float)(sum_of(&compress, NULL) / (double)l->ref.B);
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
        if (!dms_layout_find(&place, dms_source_config(l->ref.base), w->name) ||
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
    const dms_tensor_info *base = dms_source_find(l->ref.base, theirs);
    const dms_tensor_info *of = base ? base : dms_source_find(l->ref.file, theirs);
    const int64_t rows = of->shape[0], cols = of->rank == 2 ? of->shape[1] : 1;
    float *got = gradient_of(l, theirs, rows * cols), *want = reference_read(&l->ref, info->name);
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
        dms_tensor teacher =
            rig_empty(&l.rig, rig_shape(l.ref.B, l.ref.T, l.model->config.width, 0));
        const dms_pass dense = pass_of(&l);
        must(dms_cast(&teacher, &reference_forward(&dense)->value));
        dms_tape_reset(l.tape);
        want_gradients(&l);
        train_once(&l, &teacher, losses);
        reference_expect(&l.ref, "kl", &losses[0], 1, 1e-6);
        reference_expect(&l.ref, "compress", &losses[1], 1, 1e-6);
        for (int64_t i = 0; i < dms_source_count(l.ref.file); i++)
            if (!strncmp(dms_source_info(l.ref.file, i)->name, "grad", 4)) {
                expect_gradient(&l, dms_source_info(l.ref.file, i));
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
                                                     .context = l->ref.T,
                                                     .max_sequences = 1,
                                                     .kv_dtype = DMS_F32,
                                                     .slab_bytes = 1}));
    must(dms_cache_admit(dms_session_cache(s), &sequence));
    must(dms_session_prefill(s, logits + (prompt - 1) * V, sequence, text, prompt, 2));
    for (int64_t at = prompt; at < l->ref.T; at++) {
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
    float *logits = malloc((size_t)(l->ref.T * V) * sizeof(float)), worst = 0;
    int32_t *text = reference_read(&l->ref, "ids");
    decode_greedily(l, text, logits);
    must(l->rig.dev->upload(l->rig.dev, l->ids.data, text, (size_t)l->ref.T * sizeof(int32_t)));
    dms_pass pass = pass_of(l);
    dms_var *x = l->model->gate.kind ? forward_hard(l, &hard) : reference_forward(&pass);
    float *want = logits_of(l, x);
    for (int64_t i = 2 * V; i < l->ref.T * V; i++)
        worst = fmaxf(worst, fabsf(logits[i] - want[i]));
    cr_expect(worst <= 1e-4f, "%s: logits are off by %g", l->model->config.family, (double)worst);
    for (int64_t t = 3; t < l->ref.T; t++)
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
