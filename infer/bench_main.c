/* dms-bench: how fast a model runs and trains here, beside what the machine can do. */
#include <getopt.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/source_reader.h"
#include "data/program.h"
#include "infer/bench_open.h"
#include "infer/bench_print.h"
#include "infer/bench_sweep.h"
#include "infer/bench_tokenize.h"
#include "infer/model_file.h"
#include "train/objective.h"
#include "train/optimizer.h"

static const char help[] =
    "usage: dms-bench MODEL [gemm|prefill|decode|train|all|sweep|open|tokenize] [options]\n"
    "\n"
    "Mean and standard deviation over repetitions; all with the same number of threads.\n"
    "\n"
    "  gemm     matrix products of three shapes, and memory: reading it, or on a GPU a copy of\n"
    "           1 GiB within it, bytes read and written together\n"
    "  prefill  the forward pass over a text, dense and (retrofitted models) masked\n"
    "  decode   token by token over the freed cache, 1, 4 and 16 sequences; share: weights read\n"
    "           a token against the measured bandwidth\n"
    "  train    one optimiser step: teacher, student with the soft mask, backward, AdamW;\n"
    "           attention projections trained, neuron gate. FLOP a token: teacher 2N, student 2N,\n"
    "           activation gradients 2N, weight gradients 2 a trained weight (N: all matrices\n"
    "           with the output head); attention by causal keys, 4E a pair and head forward\n"
    "           (twice), 10E backward; recomputation is not counted. share: of the best product\n"
    "  sweep    decode over --batches times --prompts; share: bytes of weights and live KV that\n"
    "           a step reads against the measured bandwidth. A point that does not fit into\n"
    "           memory is said so; prompts are cut to the model's positions. Not part of all\n"
    "  open     the file alone, in memory already: milliseconds to tensors that can be used, and\n"
    "           on one thread its matrices as bf16, beside writing memory. Not part of all\n"
    "  tokenize 4 MB of --prose PATH and of --code PATH (files or folders of them), on one\n"
    "           thread; cold: by a tokenizer just opened; warm: the same text again. Not part of\n"
    "           all\n"
    "\n"
    "      --repetitions N   (3)\n"
    "      --batch N, --context N   of a training step (2, 512)\n"
    "      --prompt N, --steps N    of decoding (128, 32)\n"
    "      --batches LIST, --prompts LIST   of the sweep (GPU: 1,8,32,128 and 512,2048,8192;\n"
    "                        CPU: 1,4 and 128,512)\n"
    "      --no-replay       keep activations in training instead of computing them again\n"
    "      --dtype auto|f32|bf16    weights (auto: bf16 where the hardware has it)\n"
    "      --device auto|cpu|cuda, --threads N (0: one a core, at most 1024)\n"
    "      --dms-shift 0|1   which token a decision governs: its own (FastDMS), the one before\n"
    "      --seed N          of the text, 0 to 9e15 (0)\n"
    "      --json            one JSON object a line\n"
    "\n"
    "Exit: 0 done, 1 failed, 2 wrong usage.\n"
    "example: dms-bench SmolLM2-135M-Instruct.gguf train --threads 1 --repetitions 5\n";

typedef struct {
    const char *model, *what, *device, *prose, *code;
    dms_compute compute;
    bool keep, json;
    int64_t repetitions, batch, context, prompt, steps, threads, seed;
    int64_t shift;                   /* -1 where not said */
    dms_bench_list batches, prompts; /* n is 0: those of the device */
} arguments;

typedef struct {
    const arguments *args;
    dms_device *device;
    dms_model_file *file;
    double gemm;      /* best FLOP a second in the type of the model's matrices */
    double bandwidth; /* best bytes a second */
} app;

/* ---- arguments ------------------------------------------------------------------------------ */

enum { REPETITIONS = 256, BATCH, BATCHES, CONTEXT, PROMPT, PROMPTS, STEPS, KEEP };
enum { DTYPE = KEEP + 1, DEVICE, THREADS, SEED, SHIFT, PROSE, CODE };

static const struct option options[] = {{"repetitions", 1, NULL, REPETITIONS},
                                        {"batch", 1, NULL, BATCH},
                                        {"batches", 1, NULL, BATCHES},
                                        {"context", 1, NULL, CONTEXT},
                                        {"prompt", 1, NULL, PROMPT},
                                        {"prompts", 1, NULL, PROMPTS},
                                        {"steps", 1, NULL, STEPS},
                                        {"no-replay", 0, NULL, KEEP},
                                        {"dtype", 1, NULL, DTYPE},
                                        {"device", 1, NULL, DEVICE},
                                        {"threads", 1, NULL, THREADS},
                                        {"seed", 1, NULL, SEED},
                                        {"dms-shift", 1, NULL, SHIFT},
                                        {"prose", 1, NULL, PROSE},
                                        {"code", 1, NULL, CODE},
                                        {"json", 0, NULL, 'j'},
                                        {"help", 0, NULL, 'h'},
                                        {NULL, 0, NULL, 0}};

static dms_status take(arguments *a, int option, char *const *argv)
{
    switch (option) {
    case REPETITIONS:
        return dms_program_number(&a->repetitions, "--repetitions", 1, DMS_MAX_REPETITIONS);
    case BATCH:
        return dms_program_number(&a->batch, "--batch", 1, 4096);
    case CONTEXT:
        return dms_program_number(&a->context, "--context", 2, 1 << 20);
    case PROMPT:
        return dms_program_number(&a->prompt, "--prompt", 1, 1 << 20);
    case BATCHES:
        return dms_bench_list_read(&a->batches, "--batches", optarg, DMS_MAX_BENCH_BATCH);
    case PROMPTS:
        return dms_bench_list_read(&a->prompts, "--prompts", optarg, 1 << 20);
    case STEPS:
        return dms_program_number(&a->steps, "--steps", 2, 1 << 20);
    case THREADS:
        return dms_program_number(&a->threads, "--threads", 0, 1024);
    case SEED:
        return dms_program_number(&a->seed, "--seed", 0, DMS_MAX_SEED);
    case SHIFT:
        return dms_program_number(&a->shift, "--dms-shift", 0, 1);
    case KEEP:
        a->keep = true;
        return DMS_OK;
    case DTYPE:
        return dms_compute_from_name(&a->compute, optarg);
    case DEVICE:
        a->device = optarg;
        return DMS_OK;
    case PROSE:
        a->prose = optarg;
        return DMS_OK;
    case CODE:
        a->code = optarg;
        return DMS_OK;
    case 'j':
        a->json = true;
        return DMS_OK;
    default:
        return dms_program_bad_option(argv);
    }
}

static dms_status parse(arguments *a, int argc, char **argv)
{
    static const char *const benches[] = {"gemm", "prefill", "decode", "train",
                                          "all",  "sweep",   "open",   "tokenize"};
    int option;
    bool known = false;
    *a = (arguments){.what = "all",
                     .device = "auto",
                     .repetitions = 3,
                     .batch = 2,
                     .context = 512,
                     .prompt = 128,
                     .steps = 32,
                     .shift = -1};
    opterr = 0;
    while ((option = getopt_long(argc, argv, "h", options, NULL)) != -1) {
        if (option == 'h') {
            fputs(help, stdout);
            exit(dms_program_end("dms-bench", DMS_OK));
        }
        DMS_TRY(take(a, option, argv));
    }
    if (argc - optind < 1 || argc - optind > 2)
        return dms_fail(DMS_ERR_ARG, "expected MODEL and at most one benchmark; see --help");
    a->model = argv[optind];
    if (argc - optind == 2)
        a->what = argv[optind + 1];
    if (!strcmp(a->what, "tokenize") && !a->prose && !a->code)
        return dms_fail(DMS_ERR_ARG, "tokenize has no text, expected --prose PATH or --code PATH");
    for (size_t i = 0; i < sizeof(benches) / sizeof(benches[0]); i++)
        known |= !strcmp(a->what, benches[i]);
    return known ? DMS_OK
                 : dms_fail(DMS_ERR_ARG,
                            "the benchmark is \"%s\", expected gemm, prefill, decode, train, all, "
                            "sweep, open or tokenize",
                            a->what);
}

static bool wants(const app *a, const char *bench)
{
    return !strcmp(a->args->what, bench) || !strcmp(a->args->what, "all");
}

static dms_status print(const app *a, const dms_bench_result *r, const dms_sample *s)
{
    return dms_bench_print(r, s, a->args->json);
}

/* ---- the machine ---------------------------------------------------------------------------- */

static dms_status bench_products(app *a, dms_dtype dtype)
{
    const dms_config *c = &a->file->model->config;
    const struct {
        const char *name;
        int64_t rows, out, in;
    } shapes[] = {{"up", 1024, c->ffn, c->width},
                  {"down", 1024, c->width, c->ffn},
                  {"square", 2048, 2048, 2048}};
    for (int i = 0; i < 3; i++) {
        const dms_bench_product p = {a->device, dtype, shapes[i].rows, shapes[i].out, shapes[i].in};
        dms_sample rate;
        dms_bench_result r = {.bench = "gemm", .unit = "GFLOP/s", .scale = 1e9, .share = -1};
        DMS_TRY(dms_bench_gemm(&rate, &p, (int)a->args->repetitions));
        snprintf(r.what, sizeof(r.what), "%s %s %" PRId64 "x%" PRId64 "x%" PRId64,
                 dtype == DMS_BF16 ? "bf16" : "f32", shapes[i].name, p.rows, p.out, p.in);
        DMS_TRY(print(a, &r, &rate));
        if (dtype == a->file->model->matrix_type)
            a->gemm = fmax(a->gemm, dms_sample_best(&rate));
    }
    return DMS_OK;
}

static dms_status bench_gemm(app *a)
{
    const bool all = wants(a, "gemm");
    const dms_dtype own = a->file->model->matrix_type;
    if (own == DMS_BF16 || (all && a->device->has_bf16))
        DMS_TRY(bench_products(a, DMS_BF16));
    if (own == DMS_F32 || all)
        DMS_TRY(bench_products(a, DMS_F32));
    return DMS_OK;
}

static dms_status bench_memory(app *a)
{
    enum { READ = 512 << 20, COPY = 1 << 30, EMULATED = 16 << 20 };
    const dms_device_kind kind = a->device->kind;
    const int bytes = kind == DMS_CPU ? READ : kind == DMS_CUDA ? COPY : EMULATED;
    dms_sample rate;
    dms_bench_result r = {.bench = "memory", .unit = "GB/s", .scale = 1e9, .share = -1};
    if (kind == DMS_CPU)
        DMS_TRY(dms_bench_bandwidth(&rate, a->device->threads, (size_t)bytes, 8));
    else
        DMS_TRY(dms_bench_copy(&rate, a->device, (size_t)bytes, 8));
    snprintf(r.what, sizeof(r.what), "%s %d MiB", kind == DMS_CPU ? "read" : "copy", bytes >> 20);
    if (kind != DMS_CPU)
        snprintf(r.note, sizeof(r.note), "bytes read and written");
    a->bandwidth = dms_sample_best(&rate);
    return print(a, &r, &rate);
}

/* ---- the model ------------------------------------------------------------------------------ */

/* FLOP of attention, 1 pass forward over one text: 4*E a causal pair and head. */
static double attention_flop(const dms_config *c, int64_t context)
{
    const double pairs = (double)context * (double)(context + 1) / 2;
    return 4.0 * c->head_dim * c->heads * c->layers * pairs;
}

static dms_status bench_prefill(app *a)
{
    const dms_model *m = a->file->model;
    const int64_t longest = m->rope_table.shape[0], sizes[] = {512, 2048};
    const double head = (double)m->config.vocab * (double)m->config.width;
    const double n = (double)dms_bench_matrix_count(m, ~0u) - head;
    for (int i = 0; i < 2; i++) {
        const int64_t T = sizes[i] < longest ? sizes[i] : longest;
        const double flop = 2 * n * (double)T + attention_flop(&m->config, T);
        for (int gated = 0; gated <= (m->gate.kind != DMS_GATE_NONE); gated++) {
            dms_sample rate;
            dms_bench_result r = {.bench = "prefill", .unit = "tok/s", .scale = 1};
            DMS_TRY(dms_bench_prefill(&rate, m, T, gated, (int)a->args->repetitions));
            r.share = flop / (double)T * dms_sample_mean(&rate) / a->gemm;
            snprintf(r.what, sizeof(r.what), "%s T=%" PRId64, gated ? "masked" : "dense", T);
            snprintf(r.note, sizeof(r.note), "of the best product; without the output head");
            DMS_TRY(print(a, &r, &rate));
        }
        if (T == longest)
            break;
    }
    return DMS_OK;
}

static dms_status decode_one(app *a, int batch, bool dense)
{
    const dms_model *m = a->file->model;
    const dms_bench_decode_options o = {.model = m,
                                        .batch = batch,
                                        .prompt = a->args->prompt,
                                        .steps = a->args->steps,
                                        .dense = dense};
    const double bytes = (double)dms_bench_weight_bytes(m);
    dms_sample rate;
    dms_cache_stats stats;
    dms_bench_result r = {.bench = "decode", .unit = "tok/s", .scale = 1, .share = -1};
    DMS_TRY(dms_bench_decode(&rate, &stats, &o, (int)a->args->repetitions));
    if (batch == 1 && a->bandwidth > 0)
        r.share = bytes * dms_sample_mean(&rate) / a->bandwidth;
    snprintf(r.what, sizeof(r.what), "%s B=%d", dense ? "dense" : "freed", batch);
    snprintf(r.note, sizeof(r.note), "%s%.1f MB of weights a step, KV peak %.1f MB, cache CR %.2f",
             r.share >= 0 ? "of bandwidth; " : "", bytes / 1e6, (double)stats.peak_bytes / 1e6,
             dms_cache_ratio(&stats));
    return print(a, &r, &rate);
}

static dms_status bench_decode(app *a)
{
    static const int batches[] = {1, 4, 16};
    for (int i = 0; i < 3; i++) {
        DMS_TRY(decode_one(a, batches[i], true));
        if (a->file->model->gate.kind != DMS_GATE_NONE)
            DMS_TRY(decode_one(a, batches[i], false));
    }
    return DMS_OK;
}

/* ---- sweep ---------------------------------------------------------------------------------- */

/* prompt is cut to what the model's positions leave. */
static dms_status sweep_one(app *a, int batch, int64_t prompt, bool dense)
{
    const dms_model *m = a->file->model;
    const int repetitions = (int)a->args->repetitions;
    dms_bench_decode_options o = {
        .model = m, .batch = batch, .steps = a->args->steps, .dense = dense, .once = true};
    const int64_t left = m->rope_table.shape[0] - dms_bench_decode_tokens(&o, repetitions);
    dms_bench_point p;
    dms_bench_result r = {.bench = "sweep", .unit = "tok/s", .scale = 1, .share = -1, .point = &p};
    o.prompt = prompt < left ? prompt : left;
    DMS_TRY(dms_bench_sweep_point(&p, &o, repetitions));
    snprintf(r.what, sizeof(r.what), "%s B=%d prompt=%" PRId64, dense ? "dense" : "freed", batch,
             o.prompt);
    if (!p.fits) {
        snprintf(r.note, sizeof(r.note), "does not fit into memory");
    } else {
        r.share = (p.weights + p.kv) / batch * dms_sample_mean(&p.rate) / a->bandwidth;
        snprintf(r.note, sizeof(r.note), "of bandwidth; a step reads %.1f MB of KV, CR %.2f",
                 p.kv / 1e6, dms_cache_ratio(&p.stats));
    }
    return print(a, &r, &p.rate);
}

static dms_status bench_sweep(app *a)
{
    static const dms_bench_list batches[] = {{2, {1, 4}}, {4, {1, 8, 32, 128}}};
    static const dms_bench_list prompts[] = {{2, {128, 512}}, {3, {512, 2048, 8192}}};
    const bool gpu = a->device->kind == DMS_CUDA;
    const arguments *o = a->args;
    const dms_bench_list *b = o->batches.n ? &o->batches : &batches[gpu];
    const dms_bench_list *p = o->prompts.n ? &o->prompts : &prompts[gpu];
    for (int i = 0; i < b->n * p->n; i++) {
        const int batch = (int)b->values[i / p->n];
        const int64_t prompt = p->values[i % p->n];
        DMS_TRY(sweep_one(a, batch, prompt, true));
        if (a->file->model->gate.kind != DMS_GATE_NONE)
            DMS_TRY(sweep_one(a, batch, prompt, false));
    }
    return DMS_OK;
}

/* ---- training ------------------------------------------------------------------------------- */

typedef struct {
    dms_source *source;
    dms_model *student;
    dms_optimizer optimizer;
    dms_objective *objective;
    int32_t *ids; /* [B, T] */
} training;

static dms_status open_student(app *a, training *t)
{
    const dms_model *teacher = a->file->model;
    dms_model_options o = {.config = teacher->config,
                           .gate = teacher->gate,
                           .device = a->device,
                           .matrix_type = teacher->matrix_type,
                           .positions = a->args->context};
    if (o.gate.kind == DMS_GATE_NONE) {
        o.gate.kind = DMS_GATE_NEURON;
        o.gate.window = 16;
    }
    DMS_TRY(dms_source_open(&t->source, a->args->model));
    const dms_reader reader = dms_source_reader(t->source);
    DMS_TRY(dms_model_open(&t->student, &o));
    DMS_TRY(dms_optimizer_open(&t->optimizer, t->student, DMS_TRAIN_ATTENTION));
    dms_model_share(t->student, teacher); /* what is frozen */
    DMS_TRY(dms_model_allocate(t->student));
    return dms_optimizer_read(&t->optimizer, t->student, &reader);
}

static dms_status open_training(app *a, training *t)
{
    const int64_t n = a->args->batch * a->args->context;
    DMS_TRY(open_student(a, t));
    t->ids = malloc((size_t)n * sizeof(int32_t));
    if (!t->ids)
        return dms_fail(DMS_ERR_NOMEM, "no memory for %" PRId64 " tokens", n);
    dms_bench_ids(t->ids, n, a->file->model->config.vocab, (uint64_t)a->args->seed);
    return dms_objective_open(&t->objective, &(dms_objective_options){.student = t->student,
                                                                      .teacher = a->file->model,
                                                                      .batch = a->args->batch,
                                                                      .context = a->args->context,
                                                                      .replay = !a->args->keep,
                                                                      .lambda = 1});
}

static void close_training(training *t)
{
    dms_objective_close(t->objective);
    dms_model_close(t->student);
    dms_optimizer_close(&t->optimizer);
    dms_source_close(t->source);
    free(t->ids);
}

/* One whole optimiser step; its seconds. */
static dms_status train_step(app *a, training *t, int64_t step, double *seconds)
{
    const int64_t n = a->args->batch * a->args->context;
    const dms_micro_batch batch = {.ids = t->ids,
                                   .n_counted = dms_objective_counted(t->objective, t->ids, n),
                                   .n_sequences = a->args->batch,
                                   .stage = {.cr = 4, .target = 0.75f},
                                   .noise = {.seed = (uint64_t)a->args->seed, .step = step}};
    const dms_adamw_spec spec = {
        .lr = 1e-5f, .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f, .clip = 1, .step = step + 1};
    dms_losses losses = {0};
    float norm;
    const double start = dms_bench_now();
    DMS_TRY(dms_optimizer_zero(&t->optimizer));
    DMS_TRY(dms_objective_run(t->objective, &batch, &losses));
    DMS_TRY(dms_optimizer_norm(&norm, &t->optimizer));
    DMS_TRY(dms_optimizer_step(&t->optimizer, &spec));
    DMS_TRY(dms_bench_wait(&t->optimizer.master));
    *seconds = dms_bench_now() - start;
    return DMS_OK;
}

/* FLOP of a step as --help states it. */
static double step_flop(const app *a, const training *t)
{
    const arguments *args = a->args;
    const double tokens = (double)(args->batch * args->context);
    const unsigned trained = 1u << DMS_ROLE_ATTENTION | 1u << DMS_ROLE_GATE;
    const double weights = 6.0 * (double)dms_bench_matrix_count(t->student, ~0u) +
                           2.0 * (double)dms_bench_matrix_count(t->student, trained);
    const double forward = attention_flop(&a->file->model->config, args->context);
    return tokens * weights + (double)args->batch * (2 * forward + 2.5 * forward);
}

static dms_status bench_train(app *a)
{
    training t = {0};
    dms_status status = DMS_OK;
    dms_sample rate = {0};
    const double tokens = (double)(a->args->batch * a->args->context);
    dms_bench_result r = {.bench = "train", .unit = "tok/s", .scale = 1};
    DMS_TRY_OR(done, open_training(a, &t));
    for (int64_t i = -1; i < a->args->repetitions; i++) { /* the first packs and warms */
        double seconds;
        DMS_TRY_OR(done, train_step(a, &t, i + 1, &seconds));
        if (i >= 0)
            dms_sample_add(&rate, tokens / seconds);
    }
    const double flops = step_flop(a, &t) / tokens * dms_sample_mean(&rate);
    r.share = flops / a->gemm;
    snprintf(r.what, sizeof(r.what), "attention B=%" PRId64 " T=%" PRId64 "%s", a->args->batch,
             a->args->context, a->args->keep ? " no replay" : "");
    snprintf(r.note, sizeof(r.note), "of the best product; %.1f GFLOP/s, %.2f GFLOP a token",
             flops / 1e9, step_flop(a, &t) / tokens / 1e9);
    DMS_TRY_OR(done, print(a, &r, &rate));
done:
    close_training(&t);
    return status;
}

/* ---- all of it ------------------------------------------------------------------------------ */

static dms_status app_open(app *a)
{
    dms_model_file_options o = {.path = a->args->model,
                                .compute = a->args->compute,
                                .without_tokenizer = true,
                                .shift_given = a->args->shift >= 0,
                                .shift = a->args->shift};
    DMS_TRY(dms_device_from_name(&a->device, a->args->device, (int)a->args->threads));
    o.device = a->device;
    DMS_TRY(dms_model_file_open(&a->file, &o));
    const dms_model *m = a->file->model;
    if (!a->args->json)
        printf("%s: %.1f M weights in matrices, %s; %s, %d threads; mean +- deviation of %" PRId64
               " repetitions\n",
               a->args->model, (double)dms_bench_matrix_count(m, ~0u) / 1e6,
               m->matrix_type == DMS_BF16 ? "bf16" : "f32", a->device->name, a->device->threads,
               a->args->repetitions);
    return DMS_OK;
}

/* What the options ask for against what the model has. */
static dms_status check_lengths(const app *a)
{
    const arguments *o = a->args;
    const dms_model *m = a->file->model;
    const int64_t positions = m->rope_table.shape[0];
    if (wants(a, "train") && o->context > m->config.max_positions)
        return dms_fail(DMS_ERR_ARG,
                        "--context is %" PRId64 ", expected at most the model's %" PRId64
                        " positions",
                        o->context, m->config.max_positions);
    const dms_bench_decode_options decode = {.model = m, .prompt = o->prompt, .steps = o->steps};
    const int64_t tokens = dms_bench_decode_tokens(&decode, 1);
    if (wants(a, "decode") && tokens > positions)
        return dms_fail(DMS_ERR_ARG,
                        "--prompt and --steps are %" PRId64 " tokens in all, expected at most "
                        "%" PRId64,
                        tokens, positions);
    const int64_t swept = dms_bench_decode_steps(&decode, (int)o->repetitions);
    if (!strcmp(o->what, "sweep") && swept >= positions)
        return dms_fail(DMS_ERR_ARG,
                        "--repetitions times --steps are %" PRId64 " tokens, expected fewer than "
                        "the model's %" PRId64 " positions",
                        swept, positions);
    return DMS_OK;
}

static dms_status run(app *a)
{
    const bool sweep = !strcmp(a->args->what, "sweep");
    if (strcmp(a->args->what, "decode") != 0 && !sweep)
        DMS_TRY(bench_gemm(a));
    if (wants(a, "gemm") || wants(a, "decode") || sweep)
        DMS_TRY(bench_memory(a));
    if (wants(a, "prefill"))
        DMS_TRY(bench_prefill(a));
    if (wants(a, "decode"))
        DMS_TRY(bench_decode(a));
    if (wants(a, "train"))
        DMS_TRY(bench_train(a));
    if (sweep)
        DMS_TRY(bench_sweep(a));
    return DMS_OK;
}

/* The benchmarks that need no device. */
static dms_status run_file(const arguments *o)
{
    const dms_bench_tokenizing_options texts = {.model = o->model,
                                                .prose = o->prose,
                                                .code = o->code,
                                                .repetitions = (int)o->repetitions,
                                                .json = o->json};
    return strcmp(o->what, "open") ? dms_bench_tokenizing(&texts)
                                   : dms_bench_opening(o->model, (int)o->repetitions, o->json);
}

int main(int argc, char **argv)
{
    static const char program[] = "dms-bench";
    arguments args;
    app a = {.args = &args};
    dms_status status = parse(&args, argc, argv);
    const bool opens = !strcmp(args.what, "open") || !strcmp(args.what, "tokenize");
    if (!status && !opens)
        status = app_open(&a);
    if (!status && !opens)
        status = check_lengths(&a);
    const bool usage = status == DMS_ERR_ARG; /* also values that this model cannot take */
    if (!status)
        status = opens ? run_file(&args) : run(&a);
    if (status == DMS_ERR_NOMEM && !opens)
        dms_trail_note("lower --batch, --context, --prompt or the batches and prompts of a sweep");
    dms_model_file_close(a.file);
    if (a.device)
        a.device->close(a.device);
    return usage ? dms_program_refuse(program) : dms_program_end(program, status);
}
