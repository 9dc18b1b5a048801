/* dms-eval: what a cache policy costs in quality, on text, on benchmarks, on all at once. */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "checkpoints/files.h"
#include "data/program.h"
#include "eval/eval_masked.h"
#include "eval/pareto.h"
#include "eval/report_pareto.h"
#include "eval/run_map.h"
#include "eval/runner.h"
#include "tasks/convert.h"

static const char help[] =
    "usage: dms-eval MODEL TASK [PATH...] [options]\n"
    "       dms-eval pareto CONFIG.yaml     policies x budgets x tasks, and report.html\n"
    "       dms-eval report RUN             report.html of a training run\n"
    "       dms-eval convert BENCHMARK FILE -o OUT.jsonl [--shots FILE] [--n-shots N]\n"
    "\n"
    "Scores cache policies under one accounting. MODEL: any format. TASK:\n"
    "  ppl, kld TEXT|SHARD...   perplexity; KL(teacher||student) and top-1 agreement\n"
    "  niah_single_1 .. vt, cwe, fwe   made in the style of RULER, of --length tokens\n"
    "  items FILE.jsonl         choices, answers, code: see docs/eval.md\n"
    "\n"
    "      --policies LIST    dense, dms, window:N, streaming:N, streaming-abs:N, tova:N, h2o:N,\n"
    "                         snapkv:N, quest:N, random:RATIO[:WINDOW]; N: tokens, or 25% of the\n"
    "                         prompt (dms or dense, and window:64,window:128)\n"
    "      --teacher MODEL    the original (default: the one a checkpoint remembers)\n"
    "      --context N        text: tokens of a context (512)\n"
    "      --prompt N         text: N tokens of a context are a prompt, the rest is decoded and\n"
    "                         scored (half; without --prompt policies of the law alone, dms,\n"
    "                         dense, window, random, are scored in one masked pass)\n"
    "      --sequences N      text: contexts, 0: all there are (32)\n"
    "      --decode N         masked: also run the first context over the freed cache, N steps\n"
    "      --length N, --essay FILE   made tasks: tokens of prompt and answer; their haystack\n"
    "      --limit N          items, the most (made tasks: 500)\n"
    "      --samples N, --temperature T, --top-p P   answers an item (1, 0: greedy, 1)\n"
    "      --max-new N        tokens of an answer, of items that do not say (256)\n"
    "      --chat             prompts through the model's chat template\n"
    "      --log FILE         a JSON line an answer\n"
    "      --allow-code-execution     run what the model wrote (items of code)\n"
    "      --ctx N            tokens that items may take (the model's limit, at most 8192)\n"
    "      --batch N          sequences side by side (8; masked 2)\n"
    "      --dtype auto|f32|bf16, --dms-shift 0|1, --seed N (0), --json\n"
    "      --device auto|cpu|cuda, --threads N (0: one a core)\n"
    "Exit: 0 done, 1 failed, 2 wrong usage.\n"
    "example: dms-eval runs/quickstart/latest kld persuasion.txt --policies dms,tova:128\n";

enum { MAX_POLICIES = 64 };

typedef struct {
    dms_eval_arguments args;
    dms_device *device;
    dms_pair pair;
    dms_policy policies[MAX_POLICIES];
    int n_policies;
    int64_t ctx;
    FILE *log;
} app;

/* ---- arguments ------------------------------------------------------------------------------ */

enum {
    TEACHER = 256,
    POLICIES,
    PROMPT,
    CONTEXT,
    SEQUENCES,
    BATCH,
    DECODE,
    LENGTH,
    ESSAY,
    LIMIT,
    SAMPLES,
    TEMPERATURE,
    TOP_P,
    MAX_NEW,
    CHAT,
    LOG,
    CODE,
    CTX,
    SHIFT,
    DTYPE,
    DEVICE,
    THREADS,
    SEED,
    SHOTS,
    N_SHOTS
};

static const struct option options[] = {{"teacher", 1, NULL, TEACHER},
                                        {"policies", 1, NULL, POLICIES},
                                        {"prompt", 1, NULL, PROMPT},
                                        {"context", 1, NULL, CONTEXT},
                                        {"sequences", 1, NULL, SEQUENCES},
                                        {"batch", 1, NULL, BATCH},
                                        {"decode", 1, NULL, DECODE},
                                        {"length", 1, NULL, LENGTH},
                                        {"essay", 1, NULL, ESSAY},
                                        {"limit", 1, NULL, LIMIT},
                                        {"samples", 1, NULL, SAMPLES},
                                        {"temperature", 1, NULL, TEMPERATURE},
                                        {"top-p", 1, NULL, TOP_P},
                                        {"max-new", 1, NULL, MAX_NEW},
                                        {"chat", 0, NULL, CHAT},
                                        {"log", 1, NULL, LOG},
                                        {"allow-code-execution", 0, NULL, CODE},
                                        {"ctx", 1, NULL, CTX},
                                        {"dms-shift", 1, NULL, SHIFT},
                                        {"dtype", 1, NULL, DTYPE},
                                        {"device", 1, NULL, DEVICE},
                                        {"threads", 1, NULL, THREADS},
                                        {"seed", 1, NULL, SEED},
                                        {"shots", 1, NULL, SHOTS},
                                        {"n-shots", 1, NULL, N_SHOTS},
                                        {"output", 1, NULL, 'o'},
                                        {"json", 0, NULL, 'j'},
                                        {"help", 0, NULL, 'h'},
                                        {NULL, 0, NULL, 0}};

/* Options that are a whole number; false where it is none of them. */
static bool number_of(app *a, int option, int64_t **out, int64_t *low, int64_t *high)
{
    dms_task_spec *spec = &a->args.spec;
    const struct {
        int option;
        int64_t *out, low, high;
    } all[] = {{PROMPT, &spec->prompt, 1, 1000000},
               {CONTEXT, &spec->context, 2, 1000000},
               {SEQUENCES, &spec->sequences, 0, 1000000},
               {BATCH, &spec->batch, 1, 1000000},
               {DECODE, &a->args.decode, 2, 1000000},
               {LENGTH, &spec->length, 1, 10000000},
               {LIMIT, &spec->limit, 0, 1000000000},
               {SAMPLES, &spec->samples, 1, 1000000},
               {MAX_NEW, &spec->max_new, 1, 1000000},
               {CTX, &a->ctx, 2, 10000000},
               {SHIFT, &a->args.shift, 0, 1},
               {THREADS, &a->args.threads, 0, 1024},
               {N_SHOTS, &a->args.n_shots, 0, 1000}};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        if (all[i].option == option) {
            *out = all[i].out;
            *low = all[i].low;
            *high = all[i].high;
            return true;
        }
    return false;
}

static const char *option_name(int option)
{
    static char name[32];
    const struct option *o = options;
    while (o->val != option)
        o++;
    snprintf(name, sizeof(name), "--%s", o->name);
    return name;
}

static dms_status take_real(double *out, int option, double high)
{
    char *end;
    *out = strtod(optarg, &end);
    if (end == optarg || *end || !(*out >= 0) || *out > high)
        return dms_fail(DMS_ERR_ARG, "%s is \"%s\", expected a number from 0 to %g",
                        option_name(option), optarg, high);
    return DMS_OK;
}

static dms_status take(app *a, int option, char *const *argv)
{
    dms_eval_arguments *args = &a->args;
    int64_t *out, low, high, seed;
    if (number_of(a, option, &out, &low, &high))
        return dms_program_number(out, option_name(option), low, high);
    const struct {
        int option;
        const char **out;
    } texts[] = {{TEACHER, &args->teacher}, {POLICIES, &args->policy_list},
                 {DEVICE, &args->device},   {ESSAY, &args->spec.essay},
                 {LOG, &args->log},         {SHOTS, &args->shots},
                 {'o', &args->output}};
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
        if (texts[i].option == option) {
            *texts[i].out = optarg;
            return DMS_OK;
        }
    switch (option) {
    case SEED:
        DMS_TRY(dms_program_number(&seed, "--seed", 0, DMS_MAX_SEED));
        args->spec.seed = (uint64_t)seed;
        return DMS_OK;
    case DTYPE:
        return dms_compute_from_name(&args->compute, optarg);
    case TEMPERATURE:
        return take_real(&args->spec.temperature, option, 1000);
    case TOP_P:
        return take_real(&args->spec.top_p, option, 1);
    case CHAT:
    case CODE:
    case 'j':
        *(option == CHAT   ? &args->spec.chat
          : option == CODE ? &args->spec.run_code
                           : &args->json) = true;
        return DMS_OK;
    default:
        return dms_program_bad_option(argv);
    }
}

static dms_status parse(app *a, int argc, char **argv)
{
    int option;
    a->args = (dms_eval_arguments){.device = "auto", .shift = -1, .spec = dms_task_spec_defaults()};
    a->args.spec.batch = 0;
    opterr = 0;
    while ((option = getopt_long(argc, argv, "o:h", options, NULL)) != -1) {
        if (option == 'h') {
            fputs(help, stdout);
            exit(dms_program_end("dms-eval", DMS_OK));
        }
        DMS_TRY(take(a, option, argv));
    }
    if (argc - optind < 2)
        return dms_fail(DMS_ERR_ARG, "expected MODEL TASK, pareto CONFIG, report RUN or convert "
                                     "BENCHMARK FILE; see --help");
    a->args.model = argv[optind];
    a->args.spec.task = argv[optind + 1];
    a->args.spec.paths = (const char *const *)argv + optind + 2;
    a->args.spec.n_paths = argc - optind - 2;
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

/* ---- tasks ---------------------------------------------------------------------------------- */

static dms_status open_pair(app *a)
{
    dms_pair_options o = {.model = a->args.model,
                          .teacher = a->args.teacher,
                          .device = a->device,
                          .compute = a->args.compute,
                          .shift = a->args.shift};
    DMS_TRY(dms_task_positions(&o.positions, &a->args.spec));
    o.positions = o.positions ? o.positions + a->args.decode : a->ctx;
    const dms_status status = dms_pair_open(&a->pair, &o);
    if (status == DMS_ERR_ARG && o.positions)
        dms_trail_note("--context and --decode, or --length, are %" PRId64 " tokens in all",
                       o.positions);
    DMS_TRY(status);
    if (a->n_policies)
        return DMS_OK;
    const bool text = dms_task_is_text(&a->args.spec), gated = dms_pair_is_gated(&a->pair);
    return parse_policies(a, !text   ? gated ? "dense,dms" : "dense"
                             : gated ? "dms,random:4,window:64,window:128"
                                     : "dense,window:64,window:128");
}

/* Text under policies of the law alone, and nobody asked for a prompt. */
static bool is_masked(const app *a)
{
    bool law = dms_task_is_text(&a->args.spec) && !a->args.spec.prompt;
    for (int i = 0; i < a->n_policies; i++)
        law = law && dms_policy_is_law(&a->policies[i]);
    return law;
}

static void show_progress(void *context, int64_t done, int64_t total)
{
    const char *policy = context;
    if (isatty(STDERR_FILENO) && (done == total || done % 16 == 0))
        fprintf(stderr, "\r%s: %" PRId64 "/%" PRId64 "%s", policy, done, total,
                done == total ? "\r\x1b[K" : "");
}

static void print_head(const app *a, const dms_result *r)
{
    printf("%s of %s, %" PRId64 " %s, %" PRId64 " cut; %s; %s, %s\n", r->task, a->args.model,
           r->items, dms_task_is_text(&a->args.spec) ? "contexts" : "items", r->truncated, r->style,
           a->device->name, a->pair.teacher->matrix_type == DMS_BF16 ? "bf16" : "f32");
    printf("%-18s", "policy");
    for (int i = 0; i < r->n_metrics; i++)
        printf(" %9s%s", r->metrics[i].name, i < 3 ? "     +-" : "");
    printf(" %7s %7s %9s %9s %10s %7s\n", "reads", "bounds", "peak tok", "peak MB", "prefill tk",
           "tok/s");
}

static void print_row(const dms_result *r)
{
    const dms_run_cost *c = &r->cost;
    printf("%-18s", r->policy);
    for (int i = 0; i < r->n_metrics; i++) {
        printf(" %9.4f", r->metrics[i].value);
        if (i < 3)
            printf(" %6.4f", r->metrics[i].error);
    }
    printf(" %7.4f %7.4f %9.1f %9.3f %10.1f %7.1f\n", dms_cost_read_ratio(c),
           dms_cost_total_read_ratio(c) - dms_cost_read_ratio(c), c->kv_peak_tokens,
           c->kv_peak_bytes / 1e6, c->kv_prefill_peak_tokens,
           c->decode_s > 0 ? (double)c->decoded / c->decode_s : 0);
    fflush(stdout);
}

static dms_status print_result(const app *a, dms_result *r, bool first)
{
    json_t *line = NULL;
    r->model = a->args.model;
    r->device = a->device->name;
    r->dtype = a->pair.teacher->matrix_type == DMS_BF16 ? "bf16" : "f32";
    if (!a->args.json) {
        if (first)
            print_head(a, r);
        print_row(r);
        return DMS_OK;
    }
    DMS_TRY(dms_result_to_json(&line, r));
    const dms_status status = dms_result_print(stdout, line);
    json_decref(line);
    return status;
}

static dms_status run_policies(app *a)
{
    dms_runner *runner = NULL;
    dms_status status = DMS_OK;
    if (a->args.decode)
        return dms_fail(DMS_ERR_ARG, "--decode is for policies that are scored in one pass; these "
                                     "are decoded, and their table says what it cost");
    DMS_TRY(dms_runner_open(&runner, &a->args.spec, &a->pair));
    for (int i = 0; i < a->n_policies && !status; i++) {
        dms_result r;
        const dms_runner_watch watch = {show_progress, a->policies[i].name, a->log};
        status = dms_runner_run(&r, runner, &a->policies[i], &watch);
        if (!status)
            status = print_result(a, &r, i == 0);
    }
    dms_runner_close(runner);
    return status;
}

static dms_status run_task(app *a)
{
    dms_eval_arguments *args = &a->args;
    DMS_TRY(parse_policies(a, args->policy_list));
    DMS_TRY(dms_device_from_name(&a->device, args->device, (int)args->threads));
    DMS_TRY(open_pair(a));
    const bool masked = is_masked(a);
    if (!args->spec.batch)
        args->spec.batch = masked ? 2 : 8;
    if (args->log && !(a->log = fopen(args->log, "wb")))
        return dms_fail(DMS_ERR_IO, "%s cannot be written: %s", args->log, strerror(errno));
    const dms_status status =
        masked ? dms_eval_masked(args, &a->pair, a->policies, a->n_policies) : run_policies(a);
    if (a->log && fclose(a->log) && !status)
        return dms_fail(DMS_ERR_IO, "%s could not be written", args->log);
    return status;
}

/* ---- pareto and convert --------------------------------------------------------------------- */

static void say(void *context, const char *line)
{
    (void)context;
    puts(line);
    fflush(stdout);
}

/* OUTPUT/report.html, from all lines that results.jsonl has. */
static dms_status report_pareto(const char *output, const char *config)
{
    char results[4096], out[4096], command[4096], *text = NULL;
    DMS_TRY(dms_text_read(&text, NULL, config));
    snprintf(results, sizeof(results), "%s/results.jsonl", output);
    snprintf(out, sizeof(out), "%s/report.html", output);
    snprintf(command, sizeof(command), "dms-eval pareto %s", config);
    const dms_status status = dms_report_pareto(results, text, command, out);
    free(text);
    if (!status)
        printf("%s\n", out);
    return status;
}

static dms_status run_report(const app *a)
{
    const char *run = a->args.spec.task;
    char notice[DMS_NOTICE_SIZE];
    if (a->args.spec.n_paths)
        return dms_fail(DMS_ERR_ARG, "report takes one RUN");
    DMS_TRY(dms_run_map_report(notice, run, NULL));
    if (*notice)
        fprintf(stderr, "dms-eval: the report is without maps: %s\n", notice);
    printf("%s/report.html\n", run);
    return DMS_OK;
}

static dms_status run_pareto(app *a)
{
    dms_pareto pareto = {0};
    if (a->args.spec.n_paths)
        return dms_fail(DMS_ERR_ARG, "pareto takes one CONFIG");
    DMS_TRY(dms_pareto_read(&pareto, a->args.spec.task));
    dms_status status = dms_device_from_name(&a->device, pareto.device, (int)pareto.threads);
    if (!status)
        status = dms_pareto_run(&pareto, a->device, say, NULL);
    if (!status)
        status = report_pareto(pareto.output, a->args.spec.task);
    dms_pareto_close(&pareto);
    return status;
}

static dms_status run_convert(app *a)
{
    const dms_eval_arguments *args = &a->args;
    int64_t n;
    if (args->spec.n_paths != 1 || !args->output)
        return dms_fail(DMS_ERR_ARG, "expected convert BENCHMARK FILE -o OUT.jsonl");
    FILE *out = fopen(args->output, "wbx");
    if (!out)
        return dms_fail(DMS_ERR_IO, "%s cannot be written: %s", args->output, strerror(errno));
    dms_status status = dms_convert(&n, out,
                                    &(dms_convert_options){.benchmark = args->spec.task,
                                                           .input = args->spec.paths[0],
                                                           .shots = args->shots,
                                                           .n_shots = (int)args->n_shots,
                                                           .seed = args->spec.seed});
    if (fclose(out) && !status)
        status = dms_fail(DMS_ERR_IO, "%s could not be written", args->output);
    if (status)
        unlink(args->output); /* nothing half-written is left */
    else
        printf("%" PRId64 " items of %s in %s\n", n, args->spec.task, args->output);
    return status;
}

int main(int argc, char **argv)
{
    static const char program[] = "dms-eval";
    app *a = calloc(1, sizeof(*a));
    dms_status status = a ? parse(a, argc, argv) : dms_fail(DMS_ERR_NOMEM, "no memory");
    if (!status && !strcmp(a->args.model, "pareto"))
        status = run_pareto(a);
    else if (!status && !strcmp(a->args.model, "report"))
        status = run_report(a);
    else if (!status && !strcmp(a->args.model, "convert"))
        status = run_convert(a);
    else if (!status)
        status = run_task(a);
    if (a) {
        dms_pair_close(&a->pair);
        if (a->device)
            a->device->close(a->device);
    }
    free(a);
    return status == DMS_ERR_ARG ? dms_program_refuse(program) : dms_program_end(program, status);
}
