/* dms-eval: what an eviction policy costs in quality, on text. */
#include <getopt.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "data/program.h"
#include "infer/model_file.h"
#include "infer/score.h"
#include "infer/session.h"
#include "infer/stream.h"

static const char help[] =
    "usage: dms-eval MODEL ppl|kld TEXT|SHARD... [options]\n"
    "\n"
    "Scores text under several eviction policies beside the dense teacher. MODEL: a Hugging Face\n"
    "folder, a GGUF file or a dms checkpoint. TEXT: plain or gzip text or a folder of it, "
    "tokenised\n"
    "without a begin-of-text token; SHARD: a file of dms-tokenize. The tokens are cut into\n"
    "contexts in order. ppl prints perplexities, kld the distribution of KL(teacher||student).\n"
    "\n"
    "      --teacher MODEL    the original model (default: the path a checkpoint remembers)\n"
    "      --policies LIST    of dms, dense, window:N, random:RATIO[:WINDOW]\n"
    "                         (dms,random:4,window:64,window:128, and of a model without gate\n"
    "                         dense,window:64,window:128; all but dms evict the teacher)\n"
    "      --context N        tokens of a context (512)\n"
    "      --sequences N      contexts, 0: all there are (32)\n"
    "      --batch N          contexts of one pass (2)\n"
    "      --decode N         also run the first context through the freed cache: prefill, then\n"
    "                         N steps, from 2 (the first is not timed); the table then shows the\n"
    "                         cache's peak bytes and the speed of dense and dms\n"
    "      --dms-shift 0|1    which token a decision governs: its own (FastDMS), the one before\n"
    "      --dtype auto|f32|bf16   weights (auto: bf16 where the hardware has it)\n"
    "      --device auto|cpu|cuda, --threads N (0: one a core, at most 1024)\n"
    "      --seed N           of random policies, 0 to 9e15 (0)\n"
    "      --json             one JSON object a line\n"
    "\n"
    "decision CR: 1/(1 - fraction evicted); cache CR: tokens/live slots at a context's end; "
    "reads:\n"
    "keys read by all queries, as a fraction of dense. Exit: 0 done, 1 failed, 2 wrong usage.\n"
    "example: dms-eval runs/quickstart/latest kld persuasion.txt --decode 64\n";

enum { MAX_POLICIES = 32 };

typedef struct {
    const char *model, *teacher, *policy_list, *device;
    dms_compute compute;
    char *const *paths;
    int n_paths;
    bool kld, json;
    int64_t context, sequences, batch, decode, threads, seed;
    int64_t shift; /* -1 where not said */
} arguments;

/* A run over the freed cache. */
typedef struct {
    bool known;
    double prefill_tok_s, decode_tok_s;
    dms_cache_stats stats;
} decode_report;

/* Everything a run needs, opened once. */
typedef struct {
    const arguments *args;
    dms_device *device;
    dms_model_file *student, *other; /* `other`: the teacher, where it is not the student */
    const dms_model *teacher;
    dms_policy policies[MAX_POLICIES];
    int n_policies;
    dms_tokens stream;
    int64_t sequences;
    double predicted_bytes, predicted_words; /* of the text whose nll is summed */
    dms_scorer *scorer;
    decode_report dense, retrofitted; /* with --decode */
} app;

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- arguments ------------------------------------------------------------------------------ */

enum {
    TEACHER = 256,
    POLICIES,
    CONTEXT,
    SEQUENCES,
    BATCH,
    DECODE,
    SHIFT,
    DTYPE,
    DEVICE,
    THREADS,
    SEED
};

static const struct option options[] = {
    {"teacher", 1, NULL, TEACHER}, {"policies", 1, NULL, POLICIES},
    {"context", 1, NULL, CONTEXT}, {"sequences", 1, NULL, SEQUENCES},
    {"batch", 1, NULL, BATCH},     {"decode", 1, NULL, DECODE},
    {"dms-shift", 1, NULL, SHIFT}, {"dtype", 1, NULL, DTYPE},
    {"device", 1, NULL, DEVICE},   {"threads", 1, NULL, THREADS},
    {"seed", 1, NULL, SEED},       {"json", 0, NULL, 'j'},
    {"help", 0, NULL, 'h'},        {NULL, 0, NULL, 0}};

static dms_status take(arguments *a, int option, char *const *argv)
{
    const int64_t most = 1000000;
    switch (option) {
    case TEACHER:
        a->teacher = optarg;
        return DMS_OK;
    case POLICIES:
        a->policy_list = optarg;
        return DMS_OK;
    case SHIFT:
        return dms_program_number(&a->shift, "--dms-shift", 0, 1);
    case DTYPE:
        return dms_compute_from_name(&a->compute, optarg);
    case DEVICE:
        a->device = optarg;
        return DMS_OK;
    case 'j':
        a->json = true;
        return DMS_OK;
    case CONTEXT:
        return dms_program_number(&a->context, "--context", 2, most);
    case SEQUENCES:
        return dms_program_number(&a->sequences, "--sequences", 0, most);
    case BATCH:
        return dms_program_number(&a->batch, "--batch", 1, most);
    case DECODE:
        return dms_program_number(&a->decode, "--decode", 2, most);
    case THREADS:
        return dms_program_number(&a->threads, "--threads", 0, 1024);
    case SEED:
        return dms_program_number(&a->seed, "--seed", 0, DMS_MAX_SEED);
    default:
        return dms_program_bad_option(argv);
    }
}

static dms_status parse(arguments *a, int argc, char **argv)
{
    int option;
    *a = (arguments){.device = "auto", .context = 512, .sequences = 32, .batch = 2, .shift = -1};
    opterr = 0;
    while ((option = getopt_long(argc, argv, "h", options, NULL)) != -1) {
        if (option == 'h') {
            fputs(help, stdout);
            exit(dms_program_end("dms-eval", DMS_OK));
        }
        DMS_TRY(take(a, option, argv));
    }
    if (argc - optind < 3)
        return dms_fail(DMS_ERR_ARG, "expected MODEL, ppl or kld, and a text; see --help");
    const char *task = argv[optind + 1];
    if (strcmp(task, "ppl") != 0 && strcmp(task, "kld") != 0)
        return dms_fail(DMS_ERR_ARG, "the task is \"%s\", expected ppl or kld", task);
    a->model = argv[optind];
    a->kld = task[0] == 'k';
    a->paths = argv + optind + 2;
    a->n_paths = argc - optind - 2;
    return DMS_OK;
}

/* Splits the list at its commas. */
static dms_status parse_policies(app *a, const char *list)
{
    while (list && *list) {
        char name[64];
        const size_t n = strcspn(list, ",");
        if (n >= sizeof(name))
            return dms_fail(DMS_ERR_ARG, "policy \"%.40s...\" is too long", list);
        memcpy(name, list, n);
        name[n] = 0;
        if (a->n_policies == MAX_POLICIES)
            return dms_fail(DMS_ERR_ARG, "more than %d policies", MAX_POLICIES);
        DMS_TRY(dms_policy_parse(&a->policies[a->n_policies++], name));
        list += n + (list[n] == ',');
    }
    return DMS_OK;
}

/* ---- opening -------------------------------------------------------------------------------- */

static dms_status open_model(app *a, dms_model_file **out, const char *path, bool original)
{
    dms_model_file_options o = {.path = path,
                                .device = a->device,
                                .compute = a->args->compute,
                                .positions = a->args->context + a->args->decode,
                                .without_gate = original,
                                .shift_given = !original && a->args->shift >= 0,
                                .shift = a->args->shift,
                                .without_tokenizer = original};
    const dms_status status = dms_model_file_open(out, &o);
    if (status == DMS_ERR_ARG)
        dms_trail_note("--context and --decode are %" PRId64 " tokens in all", o.positions);
    return status;
}

static dms_status open_models(app *a)
{
    DMS_TRY(open_model(a, &a->student, a->args->model, false));
    const bool gated = a->student->model->gate.kind != DMS_GATE_NONE;
    const char *teacher = a->args->teacher ? a->args->teacher : a->student->teacher_path;
    if (gated && !teacher)
        return dms_fail(DMS_ERR_ARG,
                        "%s is retrofitted and does not say where its teacher is; name the "
                        "original model with --teacher MODEL",
                        a->args->model);
    if (teacher && (gated || a->args->teacher)) {
        const dms_status status = open_model(a, &a->other, teacher, true);
        if (status && !a->args->teacher)
            dms_trail_note("the teacher's path is from %s; --teacher MODEL names another",
                           a->args->model);
        DMS_TRY(status);
    }
    a->teacher = a->other ? a->other->model : a->student->model;
    if (!a->n_policies)
        DMS_TRY(parse_policies(a, gated ? "dms,random:4,window:64,window:128"
                                        : "dense,window:64,window:128"));
    return DMS_OK;
}

/* Text that the nll is about: bytes, and words as runs of bytes above space. */
static dms_status measure_text(app *a)
{
    const int64_t n = a->sequences * a->args->context;
    dms_tokens predicted = {0};
    dms_text text = {0};
    dms_status status = DMS_OK;
    DMS_TRY_OR(done, dms_tokens_reserve(&predicted, n));
    for (int64_t i = 0; i < n && i + 1 < a->stream.n; i++)
        if (!dms_config_is_eos(&a->teacher->config, a->stream.ids[i]))
            predicted.ids[predicted.n++] = a->stream.ids[i + 1];
    DMS_TRY_OR(done, dms_tokenizer_decode(a->student->tokenizer, &text, predicted.ids, predicted.n,
                                          false));
    a->predicted_bytes = (double)text.n;
    for (size_t i = 0; i < text.n; i++) {
        const unsigned char c = (unsigned char)text.bytes[i];
        a->predicted_words += c > ' ' && (!i || (unsigned char)text.bytes[i - 1] <= ' ');
    }
done:
    dms_tokens_free(&predicted);
    dms_text_free(&text);
    return status;
}

static dms_status read_text(app *a)
{
    const arguments *args = a->args;
    const dms_config *c = &a->student->model->config;
    bool foreign = false;
    const int64_t limit = args->sequences ? args->sequences * args->context + args->decode + 1 : 0;
    const dms_stream_options o = {
        .paths = (const char *const *)args->paths,
        .n_paths = args->n_paths,
        .tokenizer = a->student->tokenizer,
        .end_of_text = c->n_eos ? c->eos[0] : dms_tokenizer_end_of_text(a->student->tokenizer),
        .limit = limit};
    DMS_TRY(dms_stream_read(&a->stream, &foreign, &o));
    if (foreign)
        fprintf(stderr, "dms-eval: a shard was made with another tokenizer file than the "
                        "model's; the figures only mean something if its ids are the same\n");
    const int64_t contexts = a->stream.n / args->context;
    if (!contexts)
        return dms_fail(DMS_ERR_ARG,
                        "the text has %" PRId64 " tokens, one context takes %" PRId64
                        "; lower --context or give more text",
                        a->stream.n, args->context);
    a->sequences = args->sequences && args->sequences < contexts ? args->sequences : contexts;
    if (a->sequences < args->sequences)
        fprintf(stderr, "dms-eval: the text has %" PRId64 " contexts, %" PRId64 " were asked for\n",
                a->sequences, args->sequences);
    return measure_text(a);
}

static dms_status app_open(app *a)
{
    DMS_TRY(dms_device_from_name(&a->device, a->args->device, (int)a->args->threads));
    DMS_TRY(open_models(a));
    DMS_TRY(read_text(a));
    return dms_scorer_open(
        &a->scorer,
        &(dms_score_options){.student = a->student->model,
                             .teacher = a->teacher,
                             .batch = a->args->batch < a->sequences ? a->args->batch : a->sequences,
                             .context = a->args->context,
                             .sequences = a->sequences,
                             .policies = a->policies,
                             .n_policies = a->n_policies,
                             .seed = (uint64_t)a->args->seed});
}

static void app_close(app *a)
{
    dms_scorer_close(a->scorer);
    dms_tokens_free(&a->stream);
    dms_model_file_close(a->student);
    dms_model_file_close(a->other);
    if (a->device)
        a->device->close(a->device);
}

/* ---- scoring -------------------------------------------------------------------------------- */

static dms_status feed_read(void *context, int64_t first, int64_t n, int32_t *ids, int32_t *next)
{
    const app *a = context;
    const int64_t T = a->args->context;
    for (int64_t i = 0; i < n * T; i++) {
        const int64_t at = first * T + i;
        ids[i] = a->stream.ids[at];
        next[i] = at + 1 < a->stream.n ? a->stream.ids[at + 1] : -1;
    }
    return DMS_OK;
}

static void feed_progress(void *context, int64_t done, int64_t total)
{
    const app *a = context;
    if (isatty(STDERR_FILENO))
        fprintf(stderr, "\r%" PRId64 "/%" PRId64 " contexts%s", done, total,
                done == total ? "\r\x1b[K" : "");
    else if (done == total || done * 4 / total != (done - a->args->batch) * 4 / total)
        fprintf(stderr, "dms-eval: %" PRId64 "/%" PRId64 " contexts\n", done, total);
}

/* ---- the freed cache ------------------------------------------------------------------------ */

/* The first context as a prompt, then the text's own tokens one by one. The first step is not
 * timed: it may still pack weights. */
static dms_status run_session(app *a, dms_session *session, float *logits, decode_report *out)
{
    const int64_t T = a->args->context, n = a->args->decode;
    int sequence;
    DMS_TRY(dms_cache_admit(dms_session_cache(session), &sequence));
    const double start = now_s();
    DMS_TRY(dms_session_prefill(session, logits, sequence, a->stream.ids, T, 0));
    double begin = now_s();
    out->prefill_tok_s = (double)T / (begin - start);
    for (int64_t i = 0; i < n; i++) {
        const int32_t id = sequence, *token = &a->stream.ids[(T + i) % a->stream.n];
        DMS_TRY(dms_session_decode(session, logits, &id, token, 1));
        begin = i ? begin : now_s();
    }
    out->decode_tok_s = (double)(n - 1) / (now_s() - begin);
    out->known = true;
    return dms_cache_measure(&out->stats, dms_session_cache(session));
}

static dms_status decode_one(app *a, decode_report *out, const dms_model *model, bool dense)
{
    dms_session *session = NULL;
    dms_status status = DMS_OK;
    float *logits = malloc((size_t)model->config.vocab * sizeof(float));
    if (!logits)
        return dms_fail(DMS_ERR_NOMEM, "no memory for logits");
    const dms_session_options o = {.model = model,
                                   .context = a->args->context + a->args->decode,
                                   .max_sequences = 1,
                                   .kv_dtype = model->matrix_type,
                                   .dense = dense};
    DMS_TRY_OR(done, dms_session_open(&session, &o));
    DMS_TRY_OR(done, run_session(a, session, logits, out));
done:
    dms_session_close(session);
    free(logits);
    return status;
}

static dms_status decode(app *a)
{
    DMS_TRY(decode_one(a, &a->dense, a->teacher, true));
    if (a->student->model->gate.kind == DMS_GATE_NONE)
        return DMS_OK;
    return decode_one(a, &a->retrofitted, a->student->model, false);
}

/* The run over the freed cache that belongs to a policy, NULL where there is none. */
static const decode_report *decode_of(const app *a, const dms_policy *p)
{
    const decode_report *r = p->kind == DMS_POLICY_DMS     ? &a->retrofitted
                             : p->kind == DMS_POLICY_DENSE ? &a->dense
                                                           : NULL;
    return r && r->known ? r : NULL;
}

/* What has no value (the decision CR of a policy that evicts always) is null. */
static json_t *real(double x)
{
    return isfinite(x) ? json_real(x) : json_null();
}

static dms_status print_json(const app *a, const dms_policy *p, const dms_score_report *r)
{
    const double total = r->nll * (double)r->predicted;
    const struct {
        const char *name;
        double value;
    } values[] = {{"window", (double)r->window},
                  {"context", (double)a->args->context},
                  {"sequences", (double)r->sequences},
                  {"counted", (double)r->counted},
                  {"predicted", (double)r->predicted},
                  {"nll", r->nll},
                  {"nll_teacher", r->nll_teacher},
                  {"perplexity", exp(r->nll)},
                  {"word_perplexity", exp(total / a->predicted_words)},
                  {"byte_perplexity", exp(total / a->predicted_bytes)},
                  {"kl_teacher_student", r->kl_forward},
                  {"kl_median", r->kl_median},
                  {"kl_p90", r->kl_p90},
                  {"kl_p99", r->kl_p99},
                  {"kl_p999", r->kl_p999},
                  {"kl_max", r->kl_max},
                  {"kl_student_teacher", r->kl_reverse},
                  {"top1", r->agreement},
                  {"decision_cr", r->decision_cr},
                  {"cache_cr", r->cache_cr},
                  {"read_ratio", r->read_ratio}};
    json_t *line = json_pack("{ss}", "policy", p->name);
    const decode_report *run = decode_of(a, p);
    if (line && run) {
        json_object_set_new(line, "kv_peak_bytes", json_integer((json_int_t)run->stats.peak_bytes));
        json_object_set_new(line, "decoded_cache_cr", real(dms_cache_ratio(&run->stats)));
        json_object_set_new(line, "prefill_tok_s", real(run->prefill_tok_s));
        json_object_set_new(line, "decode_tok_s", real(run->decode_tok_s));
    }
    for (size_t i = 0; line && i < sizeof(values) / sizeof(values[0]); i++) {
        const double x = values[i].value;
        json_object_set_new(line, values[i].name, i < 5 ? json_integer((json_int_t)x) : real(x));
    }
    if (!line)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a JSON object");
    const int failed = json_dumpf(line, stdout, JSON_COMPACT | JSON_REAL_PRECISION(9));
    json_decref(line);
    if (failed)
        return dms_fail(DMS_ERR_IO, "a JSON object could not be written to standard output");
    putchar('\n');
    return DMS_OK;
}

static void print_head(const app *a, const dms_score_report *r)
{
    const dms_model *m = a->student->model;
    printf("%" PRId64 " contexts of %" PRId64 " tokens, %" PRId64
           " counted, no begin-of-text; %s, weights %s; teacher nll %.4f\n",
           r->sequences, a->args->context, r->counted, a->device->name,
           m->matrix_type == DMS_BF16 ? "bf16" : "f32", r->nll_teacher);
    if (a->args->decode)
        printf("KV peak: bytes allocated for a prompt of one context and %" PRId64
               " decode steps, keys and values in %s\n",
               a->args->decode, m->matrix_type == DMS_BF16 ? "bf16" : "f32");
    printf("%-14s %6s %8s %8s %7s %11s %8s %6s  ", "policy", "window", "nll", "KL(t||s)", "top-1",
           "decision CR", "cache CR", "reads");
    if (a->args->decode)
        printf("%11s %12s\n", "KV peak", "decode tok/s");
    else if (a->args->kld)
        printf("%8s %8s %8s %8s %8s %8s\n", "median", "p90", "p99", "p99.9", "max", "KL(s||t)");
    else
        printf("%9s %9s %9s\n", "ppl", "ppl/word", "ppl/byte");
}

static void print_row(const app *a, const dms_policy *p, const dms_score_report *r)
{
    const double total = r->nll * (double)r->predicted;
    char window[24] = "-";
    if (r->window >= 0)
        snprintf(window, sizeof(window), "%" PRId64, r->window);
    printf("%-14s %6s %8.4f %8.4f %7.4f %11.2f %8.2f %6.3f  ", p->name, window, r->nll,
           r->kl_forward, r->agreement, r->decision_cr, r->cache_cr, r->read_ratio);
    const decode_report *run = decode_of(a, p);
    if (run)
        printf("%11zu %12.1f\n", run->stats.peak_bytes, run->decode_tok_s);
    else if (a->args->decode)
        printf("%11s %12s\n", "-", "-");
    else if (a->args->kld)
        printf("%8.4f %8.4f %8.4f %8.4f %8.4f %8.4f\n", r->kl_median, r->kl_p90, r->kl_p99,
               r->kl_p999, r->kl_max, r->kl_reverse);
    else
        printf("%9.3f %9.4g %9.4f\n", exp(r->nll), exp(total / a->predicted_words),
               exp(total / a->predicted_bytes));
}

static dms_status score(app *a)
{
    const dms_score_feed feed = {feed_read, feed_progress, a, a->sequences};
    DMS_TRY(dms_scorer_sweep(a->scorer, &feed));
    for (int i = 0; i < a->n_policies; i++) {
        const dms_score_report r = dms_scorer_report(a->scorer, i);
        if (a->args->json) {
            DMS_TRY(print_json(a, &a->policies[i], &r));
            continue;
        }
        if (!i)
            print_head(a, &r);
        print_row(a, &a->policies[i], &r);
    }
    return DMS_OK;
}

int main(int argc, char **argv)
{
    static const char program[] = "dms-eval";
    arguments args;
    app a = {.args = &args};
    dms_status status = parse(&args, argc, argv);
    if (!status)
        status = parse_policies(&a, args.policy_list);
    if (!status)
        status = app_open(&a);
    const bool usage = status == DMS_ERR_ARG; /* also values that this model or text cannot take */
    if (!status && args.decode)
        status = decode(&a);
    if (!status)
        status = score(&a);
    app_close(&a);
    return usage ? dms_program_refuse(program) : dms_program_end(program, status);
}
