/* dms-train: runs a recipe; resumes by itself; Ctrl-C saves. */
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "data/loader.h"
#include "data/program.h"
#include "eval/run_map.h"
#include "eval/score.h"
#include "eval/task_set.h"
#include "train/metrics.h"
#include "train/trainer.h"

enum { DONE = 0, FAILED = 1, USAGE = 2, INTERRUPTED = 130 };

static const char help[] =
    "Usage: dms-train CONFIG.yaml [section.key=value ...] [options]\n"
    "\n"
    "Retrofits a model with Dynamic Memory Sparsification as CONFIG.yaml says. Started again, the\n"
    "same command goes on from the run folder's latest checkpoint; Ctrl-C saves first.\n"
    "\n"
    "      --check        print sizes, memory and time, train nothing\n"
    "      --device D     auto, cpu or cuda (device.kind)\n"
    "      --threads N    0: one a core (device.threads)\n"
    "      --seed N       of data order and noise (run.seed)\n"
    "      --json         progress as JSON lines on standard output\n"
    "  -h, --help         this text\n"
    "\n"
    "Exit codes: 0 done, 1 failed, 2 wrong usage or config, 130 interrupted after saving.\n"
    "Example: dms-train configs/quickstart.yaml schedule.cr=8 run.folder=runs/cr8\n";

static volatile sig_atomic_t stop_asked;

static void on_signal(int number)
{
    (void)number;
    if (stop_asked) /* asked twice: nothing is saved, the last checkpoint has to do */
        _exit(FAILED);
    stop_asked = 1;
}

typedef struct {
    bool json, terminal;
    double seconds; /* spent in steps so far, for the estimate */
    int64_t steps;
    dms_loader *heldout;
    int64_t context_length; /* T */
    dms_scorer *scorer;
    dms_score_feed feed;
    dms_task_set *tasks; /* of recipe.eval; NULL: none */
} progress;

static void print_time(char *out, size_t size, double seconds)
{
    const long s = (long)(seconds + 0.5);
    if (s >= 3600)
        snprintf(out, size, "%ld:%02ld:%02ld", s / 3600, s / 60 % 60, s % 60);
    else
        snprintf(out, size, "%ld:%02ld", s / 60, s % 60);
}

static void on_step(void *context, const dms_trainer *t, const dms_step_report *r)
{
    progress *p = context;
    const dms_recipe *recipe = dms_trainer_recipe(t);
    char left[32];
    p->seconds += r->seconds;
    p->steps++;
    const int64_t rest = recipe->schedule.steps - r->step - 1;
    print_time(left, sizeof(left), (double)rest * p->seconds / (double)p->steps);
    if (p->json) {
        printf("{\"step\": %" PRId64 ", \"loss\": %.6g, \"kl\": %.6g, \"evicted\": %.4f, "
               "\"seconds\": %.3f}\n",
               r->step + 1, r->loss, r->losses.kl, r->losses.evicted, r->seconds);
        fflush(stdout);
        return;
    }
    printf("%sstep %" PRId64 "/%" PRId64 "  kl %.4f  %s %.2f  cr %.2f  lr %.1e  |g| %.3g  "
           "%.0f tok/s  %.1f GB  left %s%s",
           p->terminal ? "\r" : "", r->step + 1, recipe->schedule.steps, r->losses.kl,
           r->stage.fading ? "fade" : "target",
           r->stage.fading ? (double)r->stage.keep : r->stage.cr,
           1 / (1 - r->losses.evicted + 1e-12), recipe->optim.lr, r->grad_norm,
           (double)r->tokens / r->seconds,
           (double)(dms_trainer_activation_bytes(t) + dms_trainer_optimizer_bytes(t)) / 1e9, left,
           p->terminal ? "   " : "\n");
    fflush(stdout);
}

static void end_line(const progress *p)
{
    if (p->terminal && p->steps && !p->json)
        putchar('\n');
}

static void on_eval(void *context, int64_t step, const dms_eval_report *r)
{
    const progress *p = context;
    end_line(p);
    if (p->json)
        printf("{\"step\": %" PRId64 ", \"eval\": {\"nll\": %.6g, \"kl_forward\": %.6g, "
               "\"agreement\": %.4f, \"reads\": %.4f}}\n",
               step, r->nll, r->kl_forward, r->agreement, r->read_ratio);
    else
        printf("held-out after %" PRId64 " steps, %" PRId64
               " positions: nll %.4f (teacher %.4f)  KL(teacher||student) %.4f  top-1 %.3f  "
               "decision cr %.2f  cache cr %.2f  reads %.3f\n",
               step, r->positions, r->nll, r->nll_teacher, r->kl_forward, r->agreement,
               r->decision_cr, r->cache_cr, r->read_ratio);
    fflush(stdout);
}

static void on_save(void *context, int64_t step, const char *path)
{
    const progress *p = context;
    if (p->json)
        return;
    if (!p->terminal)
        printf("saved %s after %" PRId64 " steps\n", path, step);
}

static dms_status read_heldout(void *context, int64_t first, int64_t n, int32_t *ids, int32_t *next)
{
    const progress *p = context;
    const int64_t length = p->context_length;
    for (int64_t i = 0; i < n; i++) /* the shard was opened as steps of one sequence */
        DMS_TRY(dms_loader_read(p->heldout, first + i, 0, 1, ids + i * length, next + i * length));
    return DMS_OK;
}

/* The held-out shard's first contexts, and a scorer of the student's own decisions. */
static dms_status open_evaluation(progress *p, const dms_trainer *t)
{
    const dms_recipe *r = dms_trainer_recipe(t);
    const char *shard = r->data.heldout;
    dms_policy policy;
    DMS_TRY(dms_policy_parse(&policy, "dms"));
    DMS_TRY(
        dms_loader_open(&p->heldout, &(dms_loader_options){.shards = &shard,
                                                           .n_shards = 1,
                                                           .context = r->data.context,
                                                           .sequences = 1,
                                                           .verify = !dms_trainer_device(t)->dry}));
    DMS_TRY(dms_trainer_check_shard(t, p->heldout, shard));
    p->context_length = r->data.context;
    const int64_t there = dms_loader_contexts(p->heldout);
    p->feed = (dms_score_feed){.read = read_heldout,
                               .context = p,
                               .sequences =
                                   there < r->run.eval_sequences ? there : r->run.eval_sequences};
    return dms_scorer_open(&p->scorer, &(dms_score_options){.student = dms_trainer_student(t),
                                                            .teacher = dms_trainer_teacher(t),
                                                            .batch = r->run.batch,
                                                            .context = r->data.context,
                                                            .sequences = p->feed.sequences,
                                                            .policies = &policy,
                                                            .n_policies = 1});
}

static dms_status evaluate(void *context, const dms_trainer *t, dms_eval_report *out)
{
    progress *p = context;
    (void)t;
    DMS_TRY(dms_scorer_sweep(p->scorer, &p->feed));
    const dms_score_report r = dms_scorer_report(p->scorer, 0);
    *out = (dms_eval_report){.nll = r.scores.nll,
                             .nll_teacher = r.scores.nll_teacher,
                             .kl_forward = r.scores.kl_forward,
                             .kl_reverse = r.scores.kl_reverse,
                             .agreement = r.scores.agreement,
                             .decision_cr = r.decision_cr,
                             .cache_cr = r.cache_cr,
                             .read_ratio = r.read_ratio,
                             .positions = r.scores.counted};
    return DMS_OK;
}

static void on_task(void *context, int64_t step, const dms_eval_task *task,
                    const dms_task_report *r)
{
    const progress *p = context;
    end_line(p);
    if (p->json) {
        (void)dms_task_report_print(stdout, step, task->name, r); /* it is in metrics.jsonl */
    } else {
        printf("%s after %" PRId64 " steps, %" PRId64 " items:", task->name, step, r->items);
        for (int i = 0; i < r->n_scores; i++) {
            printf(" %s %.4f", r->scores[i].name, r->scores[i].value);
            if (r->scores[i].error > 0)
                printf(" +- %.4f", r->scores[i].error);
        }
        printf("  reads %.3f  peak %.3f  %.1f s\n", r->read_ratio, r->peak_ratio, r->seconds);
    }
    fflush(stdout);
}

static dms_task_models models_of(const dms_trainer *t)
{
    return (dms_task_models){dms_trainer_student(t), dms_trainer_teacher(t)};
}

static dms_status open_tasks(progress *p, const dms_trainer *t)
{
    const dms_recipe *r = dms_trainer_recipe(t);
    dms_task_text texts[DMS_MAX_EVAL];
    for (int i = 0; i < r->eval.n; i++)
        texts[i] = (dms_task_text){r->eval.task[i].name, r->eval.task[i].spec, "every"};
    if (!r->eval.n)
        return DMS_OK;
    return dms_task_set_open(
        &p->tasks, &(dms_task_set_options){.tasks = texts,
                                           .n = r->eval.n,
                                           .model = r->model.path,
                                           .heldout = r->data.heldout[0] ? r->data.heldout : NULL,
                                           .sequences = r->run.eval_sequences,
                                           .context = r->data.context,
                                           .seed = (uint64_t)r->run.seed});
}

static dms_status run_task(void *context, const dms_trainer *t, int task, dms_task_report *out)
{
    progress *p = context;
    const dms_task_models models = models_of(t);
    dms_result r;
    DMS_TRY(dms_task_set_run(&r, p->tasks, task, &models));
    *out = (dms_task_report){.n_scores = r.n_metrics,
                             .items = r.items,
                             .read_ratio = dms_cost_total_read_ratio(&r.cost),
                             .peak_ratio = dms_cost_peak_ratio(&r.cost),
                             .seconds = r.cost.prefill_s + r.cost.decode_s};
    for (int i = 0; i < r.n_metrics; i++) {
        out->scores[i].name = r.metrics[i].name;
        out->scores[i].value = r.metrics[i].value;
        out->scores[i].error = r.metrics[i].error;
    }
    return DMS_OK;
}

/* Before anything is trained: what the tasks will read is there and fits. */
static dms_status check_tasks(progress *p, const dms_trainer *t, size_t *cache_bytes)
{
    const dms_task_models models = models_of(t);
    *cache_bytes = 0;
    DMS_TRY(open_tasks(p, t));
    for (int i = 0; i < dms_trainer_recipe(t)->eval.n; i++) {
        const size_t bytes = (size_t)dms_task_set_cache_bytes(p->tasks, i, models.student);
        *cache_bytes = bytes > *cache_bytes ? bytes : *cache_bytes;
    }
    return p->tasks ? dms_task_set_check(p->tasks, &models) : DMS_OK;
}

static bool interrupted(void *context)
{
    (void)context;
    return stop_asked != 0;
}

/* One batch of evaluation, for a device that counts. */
static dms_status rehearse_evaluation(const progress *p, const dms_trainer *t)
{
    const int64_t n = p->feed.sequences < dms_trainer_recipe(t)->run.batch
                          ? p->feed.sequences
                          : dms_trainer_recipe(t)->run.batch;
    int32_t *tokens = calloc((size_t)(n * p->context_length), sizeof(*tokens));
    if (!tokens)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a batch of text");
    const dms_status status = dms_scorer_add(p->scorer, tokens, tokens, n);
    free(tokens);
    return status;
}

static void close_evaluation(progress *p)
{
    dms_scorer_close(p->scorer);
    dms_loader_close(p->heldout);
    dms_task_set_close(p->tasks);
    p->scorer = NULL;
    p->heldout = NULL;
    p->tasks = NULL;
}

/* What a run will take, from a dry run of it. */
static dms_status make_plan(dms_trainer_plan *out, const dms_recipe *recipe)
{
    dms_status status = DMS_OK;
    dms_trainer *t = NULL;
    progress p = {0};
    size_t task_bytes;
    DMS_TRY(dms_trainer_open(&t, recipe, NULL));
    const size_t before = dms_trainer_device(t)->dry_bytes;
    DMS_TRY_OR(done, dms_trainer_rehearse(t));
    if (recipe->data.heldout[0]) {
        DMS_TRY_OR(done, open_evaluation(&p, t));
        DMS_TRY_OR(done, rehearse_evaluation(&p, t));
    }
    *out = dms_trainer_plan_of(t, dms_trainer_device(t)->dry_bytes - before);
    DMS_TRY_OR(done, check_tasks(&p, t, &task_bytes));
    out->task_cache_bytes = task_bytes;
done:
    close_evaluation(&p);
    dms_trainer_close(t);
    return status;
}

static void print_tasks(const dms_trainer_plan *p, const dms_recipe *r)
{
    for (int i = 0; i < r->eval.n; i++) {
        const dms_eval_task *task = &r->eval.task[i];
        printf("%s%s ", i ? ", " : "evaluation   ", task->name);
        if (task->every)
            printf("every %" PRId64 " steps", task->every);
        else
            printf("at the end");
    }
    if (r->eval.n)
        printf("; not counted: their caches (%.2f GB at most) and buffers, while they run\n",
               (double)p->task_cache_bytes / 1e9);
}

static dms_status print_plan(const dms_trainer_plan *p, const dms_recipe *r)
{
    double rate;
    char time[32];
    printf("model        %.1f M weights, %.1f M trained (%s gate), computed in %s\n",
           (double)p->n_weights / 1e6, (double)p->n_trained / 1e6,
           dms_gate_name((dms_gate_kind)r->dms.gate), p->compute == DMS_BF16 ? "bf16" : "f32");
    printf("a step       %" PRId64 " tokens, %.2f TFLOP\n", p->tokens_a_step,
           p->flops_a_step / 1e12);
    printf("memory       weights %.2f GB, optimizer %.2f GB, activations and gradients %.2f GB, "
           "evaluation %.2f GB, ",
           (double)p->weight_bytes / 1e9, (double)p->optimizer_bytes / 1e9,
           (double)p->activation_bytes / 1e9, (double)p->evaluation_bytes / 1e9);
    if (p->memory.workspace_bytes)
        printf("workspace %.2f GB\n", (double)p->memory.workspace_bytes / 1e9);
    else
        printf("the ops' own workspace not counted\n");
    printf("             %.2f GB in all, %.2f GB free\n",
           (double)(p->memory.bytes + p->memory.workspace_bytes) / 1e9,
           (double)p->free_bytes / 1e9);
    print_tasks(p, r);
    printf("disk         %.2f GB a checkpoint\n", (double)p->checkpoint_bytes / 1e9);
    fflush(stdout);
    DMS_TRY(dms_trainer_plan_fits(p, r));
    DMS_TRY(dms_trainer_gemm_rate(&rate, p, r));
    print_time(time, sizeof(time), p->flops_a_step / rate / 0.5 * (double)r->schedule.steps);
    printf("time         about %s for %" PRId64 " steps (GEMM rate here %.0f GFLOP/s, half of it "
           "reached)\n",
           time, r->schedule.steps, rate / 1e9);
    return DMS_OK;
}

static int report_failure(dms_status status)
{
    fprintf(stderr, "dms-train: %s\n", dms_error_message());
    if (getenv("DMS_TRACE"))
        fprintf(stderr, "dms-train: %s\n", dms_error_text());
    if (status == DMS_ERR_INTERRUPTED)
        return INTERRUPTED;
    return status == DMS_ERR_ARG ? USAGE : FAILED;
}

/* The exit code. `besides` says what a full standard output has not spoiled. */
static int finish(dms_status status, const char *besides)
{
    if (!status && (fflush(stdout) || ferror(stdout)))
        status = dms_fail(DMS_ERR_IO, "writing to standard output failed%s", besides);
    return status ? report_failure(status) : DONE;
}

static int check(const dms_recipe *recipe)
{
    dms_trainer_plan plan;
    dms_status status = make_plan(&plan, recipe);
    if (!status)
        status = print_plan(&plan, recipe);
    return finish(status, "");
}

static void print_start(const dms_trainer *t)
{
    if (dms_trainer_student(t)->matrix_type == DMS_F32)
        printf("computing in f32%s\n",
               dms_trainer_recipe(t)->run.compute == DMS_TRAIN_IN_AUTO
                   ? ": this processor has no bf16 arithmetic, a step takes about twice as long"
                   : "");
    if (dms_trainer_step(t))
        printf("resuming after step %" PRId64 "\n", dms_trainer_step(t));
}

static void print_notices(const dms_trainer *t, const progress *p)
{
    const char *of_training = dms_trainer_notice(t);
    const char *of_heldout = p->heldout ? dms_loader_notice(p->heldout) : NULL;
    if (of_training)
        fprintf(stderr, "dms-train: %s\n", of_training);
    if (of_heldout)
        fprintf(stderr, "dms-train: %s\n", of_heldout);
}

static dms_status train(dms_trainer *t, progress *p)
{
    const char *from, *to;
    const dms_trainer_hooks hooks = {.context = p,
                                     .on_step = on_step,
                                     .on_eval = on_eval,
                                     .on_save = on_save,
                                     .evaluate = evaluate,
                                     .run_task = run_task,
                                     .on_task = on_task,
                                     .interrupted = interrupted};
    if (dms_trainer_recipe(t)->data.heldout[0])
        DMS_TRY(open_evaluation(p, t));
    DMS_TRY(open_tasks(p, t));
    if (!p->json)
        print_start(t);
    print_notices(t, p);
    if (dms_trainer_moved(t, &from, &to))
        fprintf(stderr,
                "dms-train: the run moved from %s to %s: what follows differs by rounding\n", from,
                to);
    if (dms_trainer_data_moved(t, &from, &to))
        fprintf(stderr,
                "dms-train: the run moved from data.train %s to %s: what follows is trained on "
                "other text\n",
                from, to);
    signal(SIGINT, on_signal);
    signal(SIGTERM, on_signal);
    signal(SIGHUP, on_signal);
    signal(SIGPIPE, SIG_IGN); /* a reader that leaves must not cost the run */
    const dms_status status = dms_trainer_run(t, &hooks);
    end_line(p);
    return status;
}

/* RUN/report.html. A run whose report fails is done all the same. */
static void write_report(const dms_recipe *recipe, bool json)
{
    char notice[DMS_NOTICE_SIZE]; /* the page says it too */
    if (dms_run_map_report(notice, recipe->run.folder, NULL))
        fprintf(stderr, "dms-train: the run is done, its report failed: %s\n", dms_error_message());
    else if (!json)
        printf("%s/report.html\n", recipe->run.folder);
}

static int run(const dms_recipe *recipe, bool json)
{
    dms_status status = DMS_OK;
    dms_trainer *t = NULL;
    dms_trainer_plan plan;
    progress p = {.json = json, .terminal = isatty(STDOUT_FILENO)};
    DMS_TRY_OR(done, make_plan(&plan, recipe));
    DMS_TRY_OR(done, dms_trainer_plan_fits(&plan, recipe));
    DMS_TRY_OR(done, dms_trainer_open(&t, recipe, &plan.memory));
    DMS_TRY_OR(done, train(t, &p));
done:
    close_evaluation(&p);
    dms_trainer_close(t);
    if (!status)
        write_report(recipe, json);
    return finish(status, "; the run itself is done");
}

/* An option that stands for a key of the recipe. */
static dms_status set_key(dms_recipe *recipe, const char *key, const char *value)
{
    char assignment[128];
    snprintf(assignment, sizeof(assignment), "%s=%s", key, value);
    return dms_recipe_set(recipe, assignment);
}

/* The file first, then the overrides, whatever their order on the command line. */
static dms_status read_recipe(dms_recipe *recipe, int argc, char **argv, char *const keys[3])
{
    static const char *const names[] = {"device.kind", "device.threads", "run.seed"};
    *recipe = dms_recipe_defaults();
    DMS_TRY(dms_recipe_read(recipe, argv[0]));
    for (int i = 1; i < argc; i++)
        DMS_TRY(dms_recipe_set(recipe, argv[i]));
    for (int i = 0; i < 3; i++)
        if (keys[i])
            DMS_TRY(set_key(recipe, names[i], keys[i]));
    return DMS_OK;
}

int main(int argc, char **argv)
{
    enum { DEVICE = 1000, THREADS, SEED, CHECK, JSON };
    static const struct option options[] = {{"device", required_argument, NULL, DEVICE},
                                            {"threads", required_argument, NULL, THREADS},
                                            {"seed", required_argument, NULL, SEED},
                                            {"check", no_argument, NULL, CHECK},
                                            {"json", no_argument, NULL, JSON},
                                            {"help", no_argument, NULL, 'h'},
                                            {NULL, 0, NULL, 0}};
    dms_recipe recipe;
    bool checks = false, json = false;
    char *keys[3] = {NULL};
    int option;
    dms_program_begin();
    while ((option = getopt_long(argc, argv, "h", options, NULL)) != -1) {
        if (option == 'h') {
            fputs(help, stdout);
            return DONE;
        }
        if (option == CHECK)
            checks = true;
        else if (option == JSON)
            json = true;
        else if (option >= DEVICE && option <= SEED)
            keys[option - DEVICE] = optarg;
        else
            return USAGE;
    }
    if (optind == argc) {
        fputs(help, stderr);
        return USAGE;
    }
    if (read_recipe(&recipe, argc - optind, argv + optind, keys)) {
        fprintf(stderr, "dms-train: %s\n", dms_error_message());
        return USAGE;
    }
    return checks ? check(&recipe) : run(&recipe, json);
}
