/* dms-generate: completion and chat over the freed cache. */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "data/program.h"
#include "infer/chains.h"
#include "infer/chat.h"
#include "infer/ends.h"
#include "infer/generate_print.h"
#include "infer/model_file.h"

static const char help[] =
    "usage: dms-generate MODEL [-p TEXT | -f FILE | --chat] [options]\n"
    "\n"
    "Continues a text, or chats. MODEL: a Hugging Face folder, a GGUF file or a dms checkpoint.\n"
    "Without -p, -f and --chat the text is read from standard input.\n"
    "\n"
    "  -p, --prompt TEXT     the text to continue\n"
    "  -f, --file FILE       the same from a file\n"
    "      --chat            talk, in the model's own turn format; /kv /reset /exit\n"
    "      --system TEXT     chat: the system message instead of the model's own\n"
    "  -n, --tokens N        most tokens of an answer (256)\n"
    "      --samples N           completion: so many chains of one prompt, 1 to 1024 (1)\n"
    "      --ctx N           longest text in tokens, from 1 (the model's limit, at most 8192)\n"
    "      --chunk N         tokens of one pass of prefill, from 1 (256)\n"
    "      --temp X          temperature, 0: always the most probable token (0)\n"
    "      --top-k N, --top-p X, --min-p X    filters, in this order after the temperature\n"
    "      --seed N          repeats a run, 0 to 9e15 (0)\n"
    "      --dense           evict nothing\n"
    "      --dms-shift 0|1   which token a decision governs: its own (FastDMS), the one before\n"
    "      --kv f32|bf16     how the cache stores keys and values (f32)\n"
    "      --dtype auto|f32|bf16   weights (auto: bf16 where the hardware has it)\n"
    "      --device auto|cpu|cuda, --threads N (0: one a core, at most 1024)\n"
    "      --json            completion: one JSON object with text (or samples) and statistics\n"
    "\n"
    "Ctrl-C stops the answer. Exit: 0 done, 1 failed, 2 wrong usage.\n"
    "example: dms-generate SmolLM2-135M-Instruct.gguf -p \"Persuasion is\" -n 64 --temp 0.7\n";

typedef struct {
    const char *model, *prompt, *file, *system, *device;
    bool chat, dense, json;
    int64_t tokens, samples, context, chunk, threads; /* context, chunk: 0 where not said */
    int64_t shift;                                    /* -1 where not said */
    dms_compute compute;
    dms_dtype kv;
    dms_sampler_options sampling;
} arguments;

/* Everything a run needs, opened once. */
typedef struct {
    const arguments *args;
    dms_device *device;
    dms_model_file *file;
    dms_session *session;
    dms_sampler *sampler;
    dms_chat chat;
    float *logits; /* [samples, V] */
    int sequence;
    dms_tokens queue; /* decided, but not yet in the cache */
    dms_text text;    /* of the answer so far */
    dms_ends ends;
    int64_t prompt_tokens, new_tokens; /* of the last answer */
    double prefill_s, decode_s;
} app;

static volatile sig_atomic_t stopped;

static void on_interrupt(int signal)
{
    (void)signal;
    stopped = 1;
}

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- arguments ------------------------------------------------------------------------------ */

static dms_status parse_real(float *out, const char *name, const char *text)
{
    char *end = NULL;
    *out = strtof(text, &end);
    if (end == text || *end)
        return dms_fail(DMS_ERR_ARG, "--%s is \"%s\", expected a number", name, text);
    return DMS_OK;
}

enum {
    CHAT = 256,
    SYSTEM,
    SAMPLES,
    CTX,
    CHUNK,
    TEMP,
    TOP_K,
    TOP_P,
    MIN_P,
    SEED,
    DENSE,
    KV,
    DTYPE,
    SHIFT,
    DEVICE,
    THREADS,
    JSON
};

static const struct option options[] = {
    {"prompt", 1, NULL, 'p'},      {"file", 1, NULL, 'f'},
    {"tokens", 1, NULL, 'n'},      {"help", 0, NULL, 'h'},
    {"chat", 0, NULL, CHAT},       {"system", 1, NULL, SYSTEM},
    {"samples", 1, NULL, SAMPLES}, {"ctx", 1, NULL, CTX},
    {"chunk", 1, NULL, CHUNK},     {"temp", 1, NULL, TEMP},
    {"top-k", 1, NULL, TOP_K},     {"top-p", 1, NULL, TOP_P},
    {"min-p", 1, NULL, MIN_P},     {"seed", 1, NULL, SEED},
    {"dense", 0, NULL, DENSE},     {"kv", 1, NULL, KV},
    {"dms-shift", 1, NULL, SHIFT}, {"dtype", 1, NULL, DTYPE},
    {"device", 1, NULL, DEVICE},   {"threads", 1, NULL, THREADS},
    {"json", 0, NULL, JSON},       {NULL, 0, NULL, 0}};

static dms_status parse_kv(dms_dtype *out, const char *text)
{
    if (strcmp(text, "f32") != 0 && strcmp(text, "bf16") != 0)
        return dms_fail(DMS_ERR_ARG, "--kv is \"%s\", expected f32 or bf16", text);
    *out = text[0] == 'b' ? DMS_BF16 : DMS_F32;
    return DMS_OK;
}

static dms_status take_number(arguments *a, int option, char *const *argv)
{
    int64_t n = 0;
    switch (option) {
    case 'n':
        return dms_program_number(&a->tokens, "--tokens", 0, INT32_MAX);
    case SAMPLES:
        return dms_program_number(&a->samples, "--samples", 1, 1024);
    case CTX:
        return dms_program_number(&a->context, "--ctx", 1, INT32_MAX);
    case CHUNK:
        return dms_program_number(&a->chunk, "--chunk", 1, INT32_MAX);
    case TEMP:
        return parse_real(&a->sampling.temperature, "temp", optarg);
    case TOP_K:
        return dms_program_number(&a->sampling.top_k, "--top-k", 0, INT32_MAX);
    case TOP_P:
        return parse_real(&a->sampling.top_p, "top-p", optarg);
    case MIN_P:
        return parse_real(&a->sampling.min_p, "min-p", optarg);
    case SEED:
        DMS_TRY(dms_program_number(&n, "--seed", 0, DMS_MAX_SEED));
        a->sampling.seed = (uint64_t)n;
        return DMS_OK;
    case THREADS:
        return dms_program_number(&a->threads, "--threads", 0, 1024);
    default:
        return dms_program_bad_option(argv);
    }
}

static dms_status take(arguments *a, int option, char *const *argv)
{
    switch (option) {
    case 'p':
        a->prompt = optarg;
        return DMS_OK;
    case 'f':
        a->file = optarg;
        return DMS_OK;
    case CHAT:
        a->chat = true;
        return DMS_OK;
    case SYSTEM:
        a->system = optarg;
        return DMS_OK;
    case DENSE:
        a->dense = true;
        return DMS_OK;
    case JSON:
        a->json = true;
        return DMS_OK;
    case KV:
        return parse_kv(&a->kv, optarg);
    case SHIFT:
        return dms_program_number(&a->shift, "--dms-shift", 0, 1);
    case DTYPE:
        return dms_compute_from_name(&a->compute, optarg);
    case DEVICE:
        a->device = optarg;
        return DMS_OK;
    default:
        return take_number(a, option, argv);
    }
}

static dms_status parse(arguments *a, int argc, char **argv)
{
    int option;
    *a = (arguments){.device = "auto",
                     .compute = DMS_COMPUTE_AUTO,
                     .shift = -1,
                     .tokens = 256,
                     .samples = 1,
                     .sampling = dms_sampler_defaults()};
    opterr = 0;
    while ((option = getopt_long(argc, argv, "p:f:n:h", options, NULL)) != -1) {
        if (option == 'h') {
            fputs(help, stdout);
            exit(dms_program_end("dms-generate", DMS_OK));
        }
        DMS_TRY(take(a, option, argv));
    }
    if (argc - optind != 1)
        return dms_fail(DMS_ERR_ARG, "%d models are named, expected one; see --help",
                        argc - optind);
    a->model = argv[optind];
    if (!!a->prompt + !!a->file + a->chat > 1)
        return dms_fail(DMS_ERR_ARG, "-p, -f and --chat exclude each other");
    if (a->chat && a->json)
        return dms_fail(DMS_ERR_ARG, "--json is for completions, not for --chat");
    if (a->chat && a->samples > 1)
        return dms_fail(DMS_ERR_ARG, "--samples is for completions, not for --chat");
    dms_sampler *probe = NULL; /* its options are usage too */
    DMS_TRY(dms_sampler_open(&probe, &a->sampling, 1));
    dms_sampler_close(probe);
    return DMS_OK;
}

/* ---- opening -------------------------------------------------------------------------------- */

static bool ends(const app *a, int32_t id)
{
    return dms_ends_have(&a->ends, &a->file->model->config, id);
}

static dms_status app_open(app *a)
{
    const arguments *args = a->args;
    DMS_TRY(dms_device_from_name(&a->device, args->device, (int)args->threads));
    const dms_status status =
        dms_model_file_open(&a->file, &(dms_model_file_options){.path = args->model,
                                                                .device = a->device,
                                                                .compute = args->compute,
                                                                .shift_given = args->shift >= 0,
                                                                .shift = args->shift,
                                                                .positions = args->context});
    if (status == DMS_ERR_ARG && args->context)
        dms_trail_note("--ctx is %" PRId64, args->context);
    DMS_TRY(status);
    if (args->chat)
        DMS_TRY(dms_chat_recognise(&a->chat, a->file->tokenizer, a->file->chat_template));
    dms_ends_add_generation(&a->ends, a->file->generation_config);
    if (args->chat)
        dms_ends_add(&a->ends, a->chat.end);
    const dms_model *m = a->file->model;
    DMS_TRY(dms_session_open(
        &a->session, &(dms_session_options){.model = m,
                                            .context = m->rope_table.shape[0],
                                            .chunk = args->chunk,
                                            .max_sequences = (int)args->samples,
                                            .kv_dtype = args->kv,
                                            .policy = args->dense ? &dms_policy_dense : NULL}));
    DMS_TRY(dms_sampler_open(&a->sampler, &args->sampling, m->config.vocab));
    a->logits = malloc((size_t)(args->samples * m->config.vocab) * sizeof(float));
    if (!a->logits)
        return dms_fail(DMS_ERR_NOMEM, "no memory for logits");
    return dms_cache_admit(dms_session_cache(a->session), &a->sequence);
}

static void app_close(app *a)
{
    free(a->logits);
    dms_tokens_free(&a->queue);
    dms_text_free(&a->text);
    dms_sampler_close(a->sampler);
    dms_session_close(a->session);
    dms_model_file_close(a->file);
    if (a->device)
        a->device->close(a->device);
}

/* ---- generation ----------------------------------------------------------------------------- */

static int64_t seen(const app *a)
{
    return dms_cache_tokens(dms_session_cache(a->session), a->sequence);
}

/* Runs the queue through the cache, chunk by chunk, until it is empty or Ctrl-C. */
static dms_status prefill(app *a)
{
    const double start = now_s();
    const int64_t n = a->queue.n, step = a->args->chunk ? a->args->chunk : 256;
    const int64_t size = a->file->model->rope_table.shape[0], room = size - seen(a);
    int64_t at = 0;
    if (n > room)
        return dms_fail(DMS_ERR_ARG,
                        "the text has %" PRId64 " tokens, the context of %" PRId64
                        " has room for %" PRId64 " (%s); use %s",
                        n, size, room, dms_model_file_limit(a->file),
                        a->args->chat ? "/reset" : "a shorter text");
    while (at < n && !stopped) {
        const int64_t count = n - at < step ? n - at : step;
        DMS_TRY(dms_session_prefill(a->session, at + count == n ? a->logits : NULL, a->sequence,
                                    a->queue.ids + at, count, 0));
        at += count;
    }
    memmove(a->queue.ids, a->queue.ids + at, (size_t)(n - at) * sizeof(int32_t));
    a->queue.n = n - at;
    a->prompt_tokens = at;
    a->prefill_s = now_s() - start;
    return DMS_OK;
}

/* Shows what is complete of the text and keeps it. */
static void show(app *a, size_t from)
{
    if (!a->args->json && a->text.n > from) {
        fwrite(a->text.bytes + from, 1, a->text.n - from, stdout);
        fflush(stdout);
    }
}

/* One answer from the queue on. The last token stays in the queue, unless it ended the answer. */
static dms_status answer(app *a, bool *ended)
{
    dms_decoder decoder = {
        .tokenizer = a->file->tokenizer, .skip_specials = true, .within = !a->args->chat};
    const int64_t limit = a->file->model->rope_table.shape[0];
    a->new_tokens = 0;
    a->decode_s = 0;
    *ended = false;
    DMS_TRY(prefill(a));
    const double start = now_s();
    while (!stopped && a->new_tokens < a->args->tokens) {
        int32_t token;
        const size_t from = a->text.n;
        if (a->new_tokens)
            DMS_TRY(dms_session_decode(a->session, a->logits, &(int32_t){a->sequence}, a->queue.ids,
                                       1));
        a->queue.n = 0;
        DMS_TRY(dms_sampler_pick(a->sampler, &token, a->logits, 0, seen(a)));
        a->new_tokens++;
        if (ends(a, token)) {
            *ended = true;
            break;
        }
        DMS_TRY(dms_tokens_reserve(&a->queue, 1));
        a->queue.ids[a->queue.n++] = token;
        DMS_TRY(dms_decoder_put(&decoder, &a->text, token));
        show(a, from);
        if (seen(a) == limit)
            break;
    }
    a->decode_s = now_s() - start;
    const size_t from = a->text.n;
    DMS_TRY(dms_decoder_end(&decoder, &a->text));
    show(a, from);
    return DMS_OK;
}

static dms_status read_all(dms_text *out, const char *path)
{
    dms_status status = DMS_OK;
    FILE *f = path ? fopen(path, "rb") : stdin;
    if (!f)
        return dms_fail(DMS_ERR_IO, "%s: %s", path, strerror(errno));
    for (char part[4096]; !status;) {
        const size_t n = fread(part, 1, sizeof(part), f);
        if (!n)
            break;
        status = dms_text_append(out, part, n);
    }
    if (!status && ferror(f))
        status = dms_fail(DMS_ERR_IO, "%s could not be read: %s", path ? path : "standard input",
                          strerror(errno));
    if (path)
        fclose(f);
    return status;
}

/* The prompt's tokens, with <|begin_of_text|> first where the family wants one. */
static dms_status queue_prompt(app *a)
{
    dms_text text = {0};
    dms_status status = DMS_OK;
    const int32_t begin = dms_tokenizer_begin_of_text(a->file->tokenizer);
    if (a->args->prompt)
        DMS_TRY_OR(done, dms_text_append(&text, a->args->prompt, strlen(a->args->prompt)));
    else
        DMS_TRY_OR(done, read_all(&text, a->args->file));
    DMS_TRY_OR(done, dms_tokens_reserve(&a->queue, 1));
    if (begin >= 0)
        a->queue.ids[a->queue.n++] = begin;
    if (text.n)
        DMS_TRY_OR(done,
                   dms_tokenizer_encode(a->file->tokenizer, &a->queue, text.bytes, text.n, true));
    if (!a->queue.n)
        status = dms_fail(DMS_ERR_ARG, "the text is empty, expected at least one token");
done:
    dms_text_free(&text);
    return status;
}

static dms_generate_figures figures_of(const app *a)
{
    return (dms_generate_figures){.cache = dms_session_cache(a->session),
                                  .prompt_tokens = a->prompt_tokens,
                                  .new_tokens = a->new_tokens,
                                  .prefill_s = a->prefill_s,
                                  .decode_s = a->decode_s};
}

static dms_status print_texts(const app *a, const dms_chain *texts, int n)
{
    const dms_generate_figures f = figures_of(a);
    if (a->args->json)
        return dms_generate_print_json(&f, texts, n);
    if (n > 1)
        dms_generate_print_chains(texts, n);
    else
        putchar('\n'); /* the text itself was shown as it came */
    fflush(stdout);    /* before the figures on the other stream */
    return dms_generate_print(&f);
}

static dms_status complete(app *a)
{
    bool ended;
    DMS_TRY(queue_prompt(a));
    DMS_TRY(answer(a, &ended));
    if (!ended && seen(a) == a->file->model->rope_table.shape[0])
        fprintf(stderr, "dms-generate: the context is full; %s\n", dms_model_file_limit(a->file));
    return print_texts(a, &(dms_chain){.text = a->text, .tokens = a->new_tokens}, 1);
}

static bool ends_chain(const void *context, int32_t id)
{
    return ends(context, id);
}

/* Chains of one prompt, shown when all are done. */
static dms_status complete_chains(app *a)
{
    const int n = (int)a->args->samples;
    dms_status status = DMS_OK;
    dms_chain *chains = calloc((size_t)n, sizeof(*chains));
    if (!chains)
        return dms_fail(DMS_ERR_NOMEM, "no memory for %d chains", n);
    DMS_TRY_OR(done, queue_prompt(a));
    DMS_TRY_OR(done, prefill(a));
    const double start = now_s();
    DMS_TRY_OR(done, dms_chains_run(chains, n,
                                    &(dms_chains_options){.session = a->session,
                                                          .sampler = a->sampler,
                                                          .tokenizer = a->file->tokenizer,
                                                          .sequence = a->sequence,
                                                          .logits = a->logits,
                                                          .vocab = a->file->model->config.vocab,
                                                          .most = a->args->tokens,
                                                          .ends = ends_chain,
                                                          .context = a,
                                                          .stopped = &stopped}));
    a->decode_s = now_s() - start;
    for (int i = 0; i < n; i++)
        a->new_tokens += chains[i].tokens;
    DMS_TRY_OR(done, print_texts(a, chains, n));
done:
    dms_chains_free(chains, n);
    free(chains);
    return status;
}

/* ---- chat ----------------------------------------------------------------------------------- */

static dms_status chat_reset(app *a)
{
    a->queue.n = 0;
    DMS_TRY(dms_cache_release(dms_session_cache(a->session), a->sequence));
    DMS_TRY(dms_cache_admit(dms_session_cache(a->session), &a->sequence));
    return dms_chat_begin(&a->chat, &a->queue, a->args->system);
}

/* Takes back what a turn put into the queue when it does not fit. */
static dms_status chat_turn(app *a, const char *line)
{
    bool ended;
    const int64_t before = a->queue.n;
    a->text.n = 0;
    stopped = 0;
    dms_cache_stats stats;
    DMS_TRY(dms_cache_measure(&stats, dms_session_cache(a->session)));
    DMS_TRY(dms_chat_ask(&a->chat, &a->queue, line));
    const dms_status status = answer(a, &ended);
    if (status == DMS_ERR_ARG && seen(a) + a->queue.n > a->file->model->rope_table.shape[0]) {
        dms_program_complain("dms-generate");
        a->queue.n = before;
        return DMS_OK;
    }
    DMS_TRY(status);
    putchar('\n');
    fflush(stdout); /* before the figures on the other stream */
    DMS_TRY(dms_generate_print_turn(dms_session_cache(a->session), &stats));
    /* Where it was stopped before the answer began, what is left of the turn waits in the queue. */
    return dms_chat_end_answer(&a->chat, &a->queue);
}

/* True when the line was a command. */
static bool chat_command(app *a, const char *line, bool *leave, dms_status *status)
{
    if (!strcmp(line, "/exit"))
        *leave = true;
    else if (!strcmp(line, "/kv"))
        *status = dms_generate_print_cache(dms_session_cache(a->session), a->sequence);
    else if (!strcmp(line, "/reset"))
        *status = chat_reset(a);
    else if (line[0] == '/')
        fprintf(stderr, "%s is no command; there are /kv, /reset and /exit\n", line);
    return line[0] == '/';
}

static dms_status chat(app *a)
{
    char *line = NULL;
    size_t capacity = 0;
    bool leave = false;
    dms_status status = dms_chat_begin(&a->chat, &a->queue, a->args->system);
    while (!status && !leave) {
        if (isatty(STDIN_FILENO))
            printf("> ");
        fflush(stdout);
        errno = 0;
        ssize_t n = getline(&line, &capacity, stdin);
        if (n < 0 && errno == EINTR) { /* Ctrl-C at the prompt */
            clearerr(stdin);
            putchar('\n');
            continue;
        }
        if (n < 0)
            break;
        while (n > 0 && (line[n - 1] == '\n' || line[n - 1] == '\r'))
            line[--n] = 0;
        if (n && !chat_command(a, line, &leave, &status))
            status = chat_turn(a, line);
    }
    free(line);
    return status;
}

int main(int argc, char **argv)
{
    static const char program[] = "dms-generate";
    arguments args;
    app a = {.args = &args};
    const struct sigaction action = {.sa_handler = on_interrupt}; /* getline is to be interrupted */
    if (parse(&args, argc, argv))
        return dms_program_refuse(program);
    sigaction(SIGINT, &action, NULL);
    dms_status status = app_open(&a);
    const bool usage = status == DMS_ERR_ARG; /* a value that this machine or model cannot take */
    if (!status)
        status = args.chat ? chat(&a) : args.samples > 1 ? complete_chains(&a) : complete(&a);
    app_close(&a);
    return usage ? dms_program_refuse(program) : dms_program_end(program, status);
}
