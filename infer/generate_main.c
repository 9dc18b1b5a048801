/* dms-generate: completion and chat over the freed cache. */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "data/program.h"
#include "infer/chat.h"
#include "infer/model_file.h"
#include "infer/sampler.h"
#include "infer/session.h"

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
    "      --json            completion: one JSON object with text and statistics\n"
    "\n"
    "Ctrl-C stops the answer. Exit: 0 done, 1 failed, 2 wrong usage.\n"
    "example: dms-generate SmolLM2-135M-Instruct.gguf -p \"Persuasion is\" -n 64 --temp 0.7\n";

typedef struct {
    const char *model, *prompt, *file, *system, *device;
    bool chat, dense, json;
    int64_t tokens, context, chunk, threads; /* context, chunk: 0 where not said */
    int64_t shift;                           /* -1 where not said */
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
    float *logits; /* [V] */
    int sequence;
    dms_tokens queue; /* decided, but not yet in the cache */
    dms_text text;    /* of the answer so far */
    int32_t eos[DMS_MAX_EOS];
    int n_eos;
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
    {"prompt", 1, NULL, 'p'},      {"file", 1, NULL, 'f'},    {"tokens", 1, NULL, 'n'},
    {"help", 0, NULL, 'h'},        {"chat", 0, NULL, CHAT},   {"system", 1, NULL, SYSTEM},
    {"ctx", 1, NULL, CTX},         {"chunk", 1, NULL, CHUNK}, {"temp", 1, NULL, TEMP},
    {"top-k", 1, NULL, TOP_K},     {"top-p", 1, NULL, TOP_P}, {"min-p", 1, NULL, MIN_P},
    {"seed", 1, NULL, SEED},       {"dense", 0, NULL, DENSE}, {"kv", 1, NULL, KV},
    {"dms-shift", 1, NULL, SHIFT}, {"dtype", 1, NULL, DTYPE}, {"device", 1, NULL, DEVICE},
    {"threads", 1, NULL, THREADS}, {"json", 0, NULL, JSON},   {NULL, 0, NULL, 0}};

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
    dms_sampler *probe = NULL; /* its options are usage too */
    DMS_TRY(dms_sampler_open(&probe, &a->sampling, 1));
    dms_sampler_close(probe);
    return DMS_OK;
}

/* ---- opening -------------------------------------------------------------------------------- */

static void add_eos(app *a, int32_t id)
{
    if (id >= 0 && a->n_eos < DMS_MAX_EOS)
        a->eos[a->n_eos++] = id;
}

/* What ends an answer, beside the config's tokens: those of generation_config.json. */
static void find_eos(app *a)
{
    json_t *keys = a->file->generation_config
                       ? json_loads(a->file->generation_config, JSON_ALLOW_NUL, NULL)
                       : NULL;
    const json_t *eos = json_object_get(keys, "eos_token_id");
    if (json_is_integer(eos))
        add_eos(a, (int32_t)json_integer_value(eos));
    for (size_t i = 0; i < json_array_size(eos); i++)
        if (json_is_integer(json_array_get(eos, i)))
            add_eos(a, (int32_t)json_integer_value(json_array_get(eos, i)));
    json_decref(keys);
    if (a->args->chat)
        add_eos(a, a->chat.end);
}

static bool ends(const app *a, int32_t id)
{
    bool found = dms_config_is_eos(&a->file->model->config, id);
    for (int i = 0; i < a->n_eos; i++)
        found |= a->eos[i] == id;
    return found;
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
    find_eos(a);
    const dms_model *m = a->file->model;
    DMS_TRY(dms_session_open(&a->session, &(dms_session_options){.model = m,
                                                                 .context = m->rope_table.shape[0],
                                                                 .chunk = args->chunk,
                                                                 .max_sequences = 1,
                                                                 .kv_dtype = args->kv,
                                                                 .dense = args->dense}));
    DMS_TRY(dms_sampler_open(&a->sampler, &args->sampling, m->config.vocab));
    a->logits = malloc((size_t)m->config.vocab * sizeof(float));
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

static double rate(int64_t n, double seconds)
{
    return seconds > 0 ? (double)n / seconds : 0;
}

static dms_status print_statistics(const app *a)
{
    dms_cache_stats s;
    DMS_TRY(dms_cache_measure(&s, dms_session_cache(a->session)));
    fprintf(stderr,
            "%" PRId64 " tokens in at %.1f/s, %" PRId64 " out at %.1f/s; %" PRId64 " of %" PRId64
            " slots live, cache CR %.2f; kv %.2f MB at its peak, dense %.2f MB\n",
            a->prompt_tokens, rate(a->prompt_tokens, a->prefill_s), a->new_tokens,
            rate(a->new_tokens, a->decode_s), s.live_slots, s.dense_slots, dms_cache_ratio(&s),
            (double)(s.peak_bytes + s.index_bytes) / 1e6,
            (double)s.dense_slots * (double)s.bytes_a_slot / 1e6);
    return DMS_OK;
}

static dms_status print_json(const app *a)
{
    dms_cache_stats s;
    DMS_TRY(dms_cache_measure(&s, dms_session_cache(a->session)));
    json_t *out = json_pack(
        "{s:s%, s:I, s:I, s:f, s:f, s:I, s:I, s:f, s:I, s:I, s:I, s:I, s:I}", "text",
        a->text.bytes ? a->text.bytes : "", a->text.n, "prompt_tokens",
        (json_int_t)a->prompt_tokens, "new_tokens", (json_int_t)a->new_tokens,
        "prefill_tokens_per_s", rate(a->prompt_tokens, a->prefill_s), "decode_tokens_per_s",
        rate(a->new_tokens, a->decode_s), "live_slots", (json_int_t)s.live_slots, "dense_slots",
        (json_int_t)s.dense_slots, "cache_cr", dms_cache_ratio(&s), "kv_peak_bytes",
        (json_int_t)s.peak_bytes, "kv_index_bytes", (json_int_t)s.index_bytes, "dense_bytes",
        (json_int_t)((size_t)s.dense_slots * s.bytes_a_slot), "kv_reads", (json_int_t)s.kv_reads,
        "dense_reads", (json_int_t)s.dense_reads);
    if (!out)
        return dms_fail(DMS_ERR_NOMEM, "no memory for the JSON object");
    const int failed = json_dumpf(out, stdout, JSON_INDENT(2));
    json_decref(out);
    if (failed)
        return dms_fail(DMS_ERR_IO, "the JSON object could not be written to standard output");
    putchar('\n');
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

static dms_status complete(app *a)
{
    bool ended;
    DMS_TRY(queue_prompt(a));
    DMS_TRY(answer(a, &ended));
    if (!ended && seen(a) == a->file->model->rope_table.shape[0])
        fprintf(stderr, "dms-generate: the context is full; %s\n", dms_model_file_limit(a->file));
    if (a->args->json)
        return print_json(a);
    putchar('\n');
    fflush(stdout); /* before the statistics on the other stream */
    return print_statistics(a);
}

/* ---- chat ----------------------------------------------------------------------------------- */

static dms_status print_cache(const app *a)
{
    dms_cache_stats s;
    const int layers = a->file->model->config.layers;
    dms_cache_layer *each = calloc((size_t)layers, sizeof(*each));
    if (!each)
        return dms_fail(DMS_ERR_NOMEM, "no memory for %d layers", layers);
    dms_status status = DMS_OK;
    DMS_TRY_OR(done, dms_cache_measure(&s, dms_session_cache(a->session)));
    DMS_TRY_OR(done, dms_cache_measure_layers(each, dms_session_cache(a->session), a->sequence));
    printf("layer   min    mean   max   live slots of a head, of %" PRId64 " tokens\n", s.tokens);
    for (int i = 0; i < layers; i++)
        printf("%5d %5d %7.1f %5d\n", i, (int)each[i].min, each[i].mean, (int)each[i].max);
    printf("%" PRId64 " of %" PRId64 " slots live, cache CR %.2f; %.2f MB in %" PRId64
           " pages, %.2f MB allocated (%.2f MB at the peak), index %.2f MB, dense %.2f MB\n",
           s.live_slots, s.dense_slots, dms_cache_ratio(&s), (double)s.used_bytes / 1e6, s.pages,
           (double)s.allocated_bytes / 1e6, (double)s.peak_bytes / 1e6, (double)s.index_bytes / 1e6,
           (double)s.dense_slots * (double)s.bytes_a_slot / 1e6);
done:
    free(each);
    return status;
}

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
    DMS_TRY(dms_chat_ask(&a->chat, &a->queue, line));
    const dms_status status = answer(a, &ended);
    if (status == DMS_ERR_ARG && seen(a) + a->queue.n > a->file->model->rope_table.shape[0]) {
        dms_program_complain("dms-generate");
        a->queue.n = before;
        return DMS_OK;
    }
    DMS_TRY(status);
    putchar('\n');
    /* Where it was stopped before the answer began, what is left of the turn waits in the queue. */
    return dms_chat_end_answer(&a->chat, &a->queue);
}

/* True when the line was a command. */
static bool chat_command(app *a, const char *line, bool *leave, dms_status *status)
{
    if (!strcmp(line, "/exit"))
        *leave = true;
    else if (!strcmp(line, "/kv"))
        *status = print_cache(a);
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
        status = args.chat ? chat(&a) : complete(&a);
    app_close(&a);
    return usage ? dms_program_refuse(program) : dms_program_end(program, status);
}
