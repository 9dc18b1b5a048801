#include "train/trainer.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <zlib.h>

#include "checkpoints/source_reader.h"
#include "data/loader.h"
#include "train/folder.h"
#include "train/metrics.h"
#include "train/state.h"

struct dms_trainer {
    dms_recipe recipe;
    dms_device *device;
    dms_source *source; /* of the teacher */
    char teacher_hash[65];
    dms_model *teacher, *student;
    dms_optimizer optimizer;
    dms_objective *objective;
    dms_loader *loader;
    dms_metrics *metrics; /* NULL in a dry run */
    int32_t *ids, *next;  /* [accumulate*batch, T]: the tokens of a step */
    int64_t step;         /* the next one to run */
    int lock;             /* file descriptor that holds the run folder's lock; -1: none */
    char before[DMS_ARITHMETIC_SIZE], now[DMS_ARITHMETIC_SIZE]; /* of the checkpoint, and here */
    char data_before[DMS_DATA_TEXT], data_now[DMS_DATA_TEXT];   /* as state.h says; and here */
    bool dropped; /* the borrowed q rows were set to zero: the fade is over */
};

static int64_t sequences_a_step(const dms_recipe *r)
{
    return r->run.batch * r->run.accumulate;
}

static dms_schedule schedule_of(const dms_recipe *r)
{
    return (dms_schedule){.steps = r->schedule.steps,
                          .fade_steps = r->schedule.fade_steps,
                          .ramp_steps = r->schedule.ramp_steps,
                          .cr = r->schedule.cr};
}

/* `status`, with what to do about too little memory. */
static dms_status advised(dms_status status)
{
    if (status == DMS_ERR_NOMEM)
        dms_trail_note("lower run.batch or data.context, or set run.replay: true");
    return status;
}

dms_status dms_trainer_open_device(dms_device **out, const dms_recipe *recipe)
{
    static const char *const names[] = {[DMS_RUN_AUTO] = "auto",
                                        [DMS_RUN_CPU] = "cpu",
                                        [DMS_RUN_CUDA] = "cuda",
                                        [DMS_RUN_CUDA_EMU] = "cuda_emu"};
    return dms_device_from_name(out, names[recipe->device.kind], (int)recipe->device.threads);
}

static dms_status open_device(dms_trainer *t, const dms_trainer_memory *memory)
{
    DMS_TRY(dms_trainer_open_device(&t->device, &t->recipe));
    dms_device *dev = t->device;
    if (!memory)
        dms_device_dry(dev);
    else if (dev->reserve && memory->bytes)
        return advised(dev->reserve(dev, memory->bytes, memory->workspace_bytes));
    return DMS_OK;
}

static dms_dtype compute_type(const dms_trainer *t)
{
    const int asked = t->recipe.run.compute;
    const bool bf16 =
        asked == DMS_TRAIN_IN_BF16 || (asked == DMS_TRAIN_IN_AUTO && t->device->has_bf16);
    return bf16 ? DMS_BF16 : DMS_F32;
}

static dms_gate gate_of(const dms_recipe *r)
{
    return (dms_gate){.kind = (dms_gate_kind)r->dms.gate,
                      .window = r->dms.window,
                      .alpha_scale = (float)r->dms.alpha_scale,
                      .alpha_offset = (float)r->dms.alpha_offset,
                      .tau = (float)r->dms.tau};
}

static dms_status open_teacher(dms_trainer *t)
{
    dms_model_options options = {
        .device = t->device, .matrix_type = compute_type(t), .positions = t->recipe.data.context};
    DMS_TRY(dms_source_open(&t->source, t->recipe.model.path));
    DMS_TRY(dms_source_expect_model(t->source));
    if (!t->device->dry)
        DMS_TRY(dms_source_hash(t->source, t->teacher_hash));
    DMS_TRY(dms_config_parse(&options.config, dms_source_config(t->source)));
    DMS_TRY(dms_model_open(&t->teacher, &options));
    const dms_reader reader = dms_source_reader(t->source);
    DMS_TRY(dms_model_check(t->teacher, &reader, false));
    DMS_TRY(dms_model_allocate(t->teacher));
    return t->device->dry ? DMS_OK : dms_model_read(t->teacher, &reader, &(dms_read_options){0});
}

static dms_status open_student(dms_trainer *t)
{
    const dms_model_options options = {.config = t->teacher->config,
                                       .gate = gate_of(&t->recipe),
                                       .device = t->device,
                                       .matrix_type = t->teacher->matrix_type,
                                       .positions = t->recipe.data.context,
                                       .rows_apart = t->recipe.optim.train == DMS_TRAIN_GATE};
    const dms_reader reader = dms_source_reader(t->source);
    DMS_TRY(dms_model_open(&t->student, &options));
    DMS_TRY(dms_optimizer_open(&t->optimizer, t->student, (dms_train_set)t->recipe.optim.train));
    dms_model_share(t->student, t->teacher); /* what is frozen */
    DMS_TRY(dms_model_allocate(t->student));
    return t->device->dry ? DMS_OK : dms_optimizer_read(&t->optimizer, t->student, &reader);
}

dms_status dms_trainer_check_shard(const dms_trainer *t, const dms_loader *loader,
                                   const char *shard)
{
    if (dms_loader_vocab(loader) > t->teacher->config.vocab)
        return dms_fail(DMS_ERR_ARG,
                        "%s was tokenised for a vocabulary of %" PRId64 ", the model has %" PRId64
                        "; tokenise it again with this model",
                        shard, (int64_t)dms_loader_vocab(loader), t->teacher->config.vocab);
    size_t length = 0;
    const char *text = dms_source_tokenizer(t->source, &length);
    const uint32_t theirs = dms_loader_tokenizer_crc(loader);
    const uint32_t ours = text ? (uint32_t)crc32_z(0, (const unsigned char *)text, length) : 0;
    if (!theirs || !ours || theirs == ours)
        return DMS_OK;
    return dms_fail(DMS_ERR_ARG,
                    "%s was made with another tokenizer than that of %s; tokenise it again with "
                    "dms-tokenize %s",
                    shard, t->recipe.model.path, t->recipe.model.path);
}

static dms_status open_data(dms_trainer *t)
{
    const dms_recipe *r = &t->recipe;
    const char *paths[DMS_MAX_SHARDS];
    for (int i = 0; i < r->data.train.n; i++)
        paths[i] = r->data.train.path[i];
    const dms_loader_options options = {.shards = paths,
                                        .n_shards = r->data.train.n,
                                        .weights = r->data.weights.n ? r->data.weights.value : NULL,
                                        .context = r->data.context,
                                        .sequences = sequences_a_step(r),
                                        .seed = (uint64_t)r->run.seed,
                                        .shuffled = true,
                                        .verify = !t->device->dry};
    DMS_TRY(dms_loader_open(&t->loader, &options));
    DMS_TRY(dms_trainer_check_shard(t, t->loader, paths[0]));
    const size_t tokens = (size_t)(sequences_a_step(r) * r->data.context);
    t->ids = malloc(tokens * sizeof(*t->ids));
    t->next = malloc(tokens * sizeof(*t->next));
    if (!t->ids || !t->next)
        return dms_fail(DMS_ERR_NOMEM, "no memory for the %zu tokens of a step", tokens);
    return DMS_OK;
}

static dms_status open_objective(dms_trainer *t)
{
    const dms_recipe *r = &t->recipe;
    const dms_objective_options options = {.student = t->student,
                                           .teacher = t->teacher,
                                           .batch = r->run.batch,
                                           .context = r->data.context,
                                           .replay = r->run.replay,
                                           .direction = (dms_kl_direction)r->loss.direction,
                                           .lambda = (float)r->loss.lambda};
    return advised(dms_objective_open(&t->objective, &options));
}

static dms_status make_folder(const char *path)
{
    char part[DMS_PATH_SIZE];
    for (const char *at = path; *at; at++) {
        if (at[1] && at[1] != '/')
            continue;
        snprintf(part, sizeof(part), "%.*s", (int)(at - path + 1), path);
        if (mkdir(part, 0777) && errno != EEXIST)
            return dms_fail(DMS_ERR_IO, "folder %s cannot be made: %s", part, strerror(errno));
    }
    return DMS_OK;
}

/* The resolved recipe beside what it makes. */
static dms_status write_recipe(const dms_trainer *t)
{
    char path[DMS_PATH_SIZE + 32], temporary[DMS_PATH_SIZE + 40];
    snprintf(path, sizeof(path), "%s/config.yaml", t->recipe.run.folder);
    snprintf(temporary, sizeof(temporary), "%s.tmp", path);
    FILE *out = fopen(temporary, "w");
    const dms_status status = out ? dms_recipe_write(&t->recipe, out) : DMS_OK;
    if (!out || fclose(out) || (!status && rename(temporary, path))) {
        const int reason = errno;
        unlink(temporary);
        return dms_fail(DMS_ERR_IO, "%s cannot be written: %s", path, strerror(reason));
    }
    return status;
}

static dms_stage stage_at(const dms_trainer *t, int64_t step)
{
    const dms_schedule schedule = schedule_of(&t->recipe);
    return dms_schedule_at(&schedule, step);
}

static dms_state state_of(dms_trainer *t)
{
    return (dms_state){.recipe = &t->recipe,
                       .teacher = t->source,
                       .teacher_hash = t->teacher_hash,
                       .student = t->student,
                       .optimizer = &t->optimizer,
                       .dropped = t->dropped,
                       .cr = t->step ? stage_at(t, t->step - 1).cr : 1};
}

/* One run a folder: the lock ends with the process, however that ends. A dry run makes no file. */
static dms_status lock_folder(dms_trainer *t)
{
    char path[DMS_PATH_SIZE + 32];
    const bool dry = t->device->dry;
    snprintf(path, sizeof(path), "%s/lock", t->recipe.run.folder);
    t->lock = open(path, (dry ? 0 : O_CREAT) | O_RDWR | O_CLOEXEC, 0666);
    if (t->lock < 0 && dry)
        return DMS_OK;
    if (t->lock < 0)
        return dms_fail(DMS_ERR_IO, "%s cannot be written: %s", path, strerror(errno));
    if (flock(t->lock, LOCK_EX | LOCK_NB))
        return dms_fail(DMS_ERR_IO,
                        "another dms-train works in %s; wait for it, or give another "
                        "run.folder",
                        t->recipe.run.folder);
    return DMS_OK;
}

/* What a recipe may not ask of a run that has got this far. */
static dms_status check_progress(const dms_trainer *t)
{
    const dms_recipe *r = &t->recipe;
    if (t->step > r->schedule.steps)
        return dms_fail(DMS_ERR_ARG,
                        "schedule.steps is %" PRId64 ", but %s has a checkpoint of step %" PRId64
                        "; give more steps or another run.folder",
                        r->schedule.steps, r->run.folder, t->step);
    if (t->dropped && t->step < r->schedule.fade_steps)
        return dms_fail(DMS_ERR_ARG,
                        "schedule.fade_steps is %" PRId64 ", but the fade in %s was over at step "
                        "%" PRId64 "; give the recipe it began with or another run.folder",
                        r->schedule.fade_steps, r->run.folder, t->step);
    return DMS_OK;
}

static dms_status open_folder(dms_trainer *t)
{
    char checkpoints[DMS_PATH_SIZE + 32];
    snprintf(checkpoints, sizeof(checkpoints), "%s/checkpoints", t->recipe.run.folder);
    DMS_TRY(make_folder(checkpoints));
    DMS_TRY(lock_folder(t));
    DMS_TRY(dms_folder_check(&t->recipe));
    dms_state state = state_of(t);
    DMS_TRY(dms_state_load(&t->step, &state));
    t->dropped = state.dropped;
    memcpy(t->before, state.before, sizeof(t->before));
    dms_state_arithmetic(t->now, t->student);
    memcpy(t->data_before, state.data_before, sizeof(t->data_before));
    dms_recipe_data_text(t->data_now, &t->recipe);
    DMS_TRY(check_progress(t));
    DMS_TRY(write_recipe(t));
    return dms_metrics_open(&t->metrics, t->recipe.run.folder, t->step);
}

static dms_status open_parts(dms_trainer *t, const dms_trainer_memory *memory)
{
    DMS_TRY(dms_recipe_check(&t->recipe));
    DMS_TRY(open_device(t, memory));
    DMS_TRY(open_teacher(t));
    DMS_TRY(open_student(t));
    DMS_TRY(open_data(t));
    DMS_TRY(open_objective(t));
    if (memory)
        return open_folder(t);
    DMS_TRY(lock_folder(t));
    return dms_folder_check(&t->recipe);
}

dms_status dms_trainer_open(dms_trainer **out, const dms_recipe *recipe,
                            const dms_trainer_memory *memory)
{
    dms_trainer *t = calloc(1, sizeof(*t));
    if (!t)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a trainer");
    t->recipe = *recipe;
    t->lock = -1;
    const dms_status status = open_parts(t, memory);

    if (status) {
        dms_trainer_close(t);
        return status;
    }
    *out = t;
    return DMS_OK;
}

void dms_trainer_close(dms_trainer *t)
{
    if (!t)
        return;
    dms_metrics_close(t->metrics);
    dms_objective_close(t->objective);
    dms_loader_close(t->loader);
    dms_model_close(t->student);
    dms_optimizer_close(&t->optimizer);
    dms_model_close(t->teacher);
    dms_source_close(t->source);
    if (t->device)
        t->device->close(t->device);
    if (t->lock >= 0)
        close(t->lock);
    free(t->ids);
    free(t->next);
    free(t);
}

/* All micro-batches of a step: losses and gradients. */
static dms_status accumulate(dms_trainer *t, dms_step_report *report)
{
    const dms_recipe *r = &t->recipe;
    const int64_t sequences = sequences_a_step(r), tokens = sequences * r->data.context;
    DMS_TRY(dms_loader_read(t->loader, t->step, 0, sequences, t->ids, t->next));
    dms_micro_batch batch = {.n_counted = dms_objective_counted(t->objective, t->ids, tokens),
                             .n_sequences = sequences,
                             .stage = report->stage,
                             .noise = {.seed = (uint64_t)r->run.seed, .step = t->step}};
    DMS_TRY(dms_optimizer_zero(&t->optimizer));
    for (int64_t i = 0; i < r->run.accumulate; i++) {
        batch.ids = t->ids + i * r->run.batch * r->data.context;
        batch.noise.sequence = i * r->run.batch;
        DMS_TRY(dms_objective_run(t->objective, &batch, &report->losses));
    }
    report->tokens = tokens;
    report->loss = report->losses.kl + r->loss.lambda * report->losses.compress;
    return DMS_OK;
}

static dms_status check_finite(const dms_trainer *t, const dms_step_report *r)
{
    if (isfinite(r->loss) && isfinite(r->grad_norm))
        return DMS_OK;
    return dms_fail(DMS_ERR_NUMBER,
                    "step %" PRId64
                    ": loss is %g and gradient norm is %g, expected finite numbers; "
                    "nothing was updated, the last checkpoint is intact: lower optim.lr or "
                    "optim.clip and start again from it",
                    t->step, r->loss, r->grad_norm);
}

static double seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static dms_status update(dms_trainer *t)
{
    const dms_recipe *r = &t->recipe;
    const dms_adamw_spec spec = {.lr = (float)r->optim.lr,
                                 .beta1 = (float)r->optim.beta1,
                                 .beta2 = (float)r->optim.beta2,
                                 .eps = (float)r->optim.eps,
                                 .weight_decay = (float)r->optim.weight_decay,
                                 .clip = (float)r->optim.clip,
                                 .step = t->step + 1};
    return dms_optimizer_step(&t->optimizer, &spec);
}

dms_status dms_trainer_rehearse(dms_trainer *t)
{
    dms_losses losses = {0};
    float norm = 0;
    memset(t->ids, 0, (size_t)(t->recipe.run.batch * t->recipe.data.context) * sizeof(*t->ids));
    dms_micro_batch batch = {.ids = t->ids, .n_counted = 1, .n_sequences = 1};
    DMS_TRY(dms_objective_run(t->objective, &batch, &losses));
    batch.stage.fading = true;
    DMS_TRY(dms_objective_run(t->objective, &batch, &losses));
    DMS_TRY(dms_optimizer_norm(&norm, &t->optimizer));
    return update(t);
}

static dms_status run_step(dms_trainer *t, dms_step_report *report)
{
    const dms_recipe *r = &t->recipe;
    const double start = seconds_now();
    float norm = 0;
    *report = (dms_step_report){.step = t->step, .stage = stage_at(t, t->step)};
    if (!t->dropped && !report->stage.fading) {
        if (r->dms.gate == DMS_GATE_NEURON)
            DMS_TRY(dms_optimizer_drop_borrowed(&t->optimizer, t->student));
        t->dropped = true;
    }
    DMS_TRY(accumulate(t, report));
    DMS_TRY(dms_optimizer_norm(&norm, &t->optimizer));
    report->grad_norm = (double)norm;
    DMS_TRY(check_finite(t, report));
    DMS_TRY(update(t));
    t->step++;
    report->seconds = seconds_now() - start;
    return DMS_OK;
}

/* Whether the schedule passed a whole ratio with the last of `steps` steps: such checkpoints are
 * kept. */
static bool passed_whole_ratio(const void *context, int64_t steps)
{
    const dms_trainer *t = context;
    if (steps < 2)
        return false;
    const double now = stage_at(t, steps - 1).cr, before = stage_at(t, steps - 2).cr;
    return floor(now + 1e-9) > floor(before + 1e-9);
}

static dms_status save(dms_trainer *t, const dms_trainer_hooks *hooks)
{
    char path[DMS_PATH_SIZE];
    const dms_state state = state_of(t);
    DMS_TRY(dms_state_save(path, &state, t->step, passed_whole_ratio, t));
    if (hooks->on_save)
        hooks->on_save(hooks->context, t->step, path);
    return DMS_OK;
}

static dms_status evaluate(dms_trainer *t, const dms_trainer_hooks *hooks)
{
    dms_eval_report report = {0};
    if (!hooks->evaluate || !t->recipe.data.heldout[0])
        return DMS_OK;
    DMS_TRY(hooks->evaluate(hooks->context, t, &report));
    DMS_TRY(dms_metrics_eval(t->metrics, t->step - 1, &report));
    if (hooks->on_eval)
        hooks->on_eval(hooks->context, t->step, &report);
    return DMS_OK;
}

static dms_status run_task(dms_trainer *t, const dms_trainer_hooks *hooks, int i)
{
    const dms_eval_task *task = &t->recipe.eval.task[i];
    dms_task_report report = {0};
    DMS_TRY(hooks->run_task(hooks->context, t, i, &report));
    DMS_TRY(dms_metrics_task(t->metrics, t->step - 1, task->name, &report));
    if (hooks->on_task)
        hooks->on_task(hooks->context, t->step, task, &report);
    return DMS_OK;
}

/* Tasks that are due after t->step steps; at the last step all that the log has not. */
static dms_status run_tasks(dms_trainer *t, const dms_trainer_hooks *hooks)
{
    const bool last = t->step == t->recipe.schedule.steps;
    for (int i = 0; hooks->run_task && i < t->recipe.eval.n; i++) {
        const dms_eval_task *task = &t->recipe.eval.task[i];
        const bool due = task->every && t->step % task->every == 0 && t->dropped;
        if ((last && !dms_metrics_has_task(t->metrics, t->step - 1, task->name)) || (!last && due))
            DMS_TRY(run_task(t, hooks, i));
    }
    return DMS_OK;
}

/* What follows a step: log, checkpoint, evaluation. */
static dms_status after_step(dms_trainer *t, const dms_trainer_hooks *hooks,
                             const dms_step_report *report, bool stop)
{
    const dms_recipe *r = &t->recipe;
    const bool last = t->step == r->schedule.steps;
    DMS_TRY(dms_metrics_step(t->metrics, report, r->optim.lr));
    if (hooks->on_step)
        hooks->on_step(hooks->context, t, report);
    if (last || stop || t->step % r->run.save_every == 0 || passed_whole_ratio(t, t->step))
        DMS_TRY(save(t, hooks));
    if (last || (r->run.eval_every && t->step % r->run.eval_every == 0 && t->dropped))
        DMS_TRY(evaluate(t, hooks));
    return run_tasks(t, hooks);
}

dms_status dms_trainer_run(dms_trainer *t, const dms_trainer_hooks *hooks)
{
    if (t->step == t->recipe.schedule.steps) { /* cut off between the last save and evaluation? */
        if (!dms_metrics_evaluated(t->metrics, t->step - 1))
            DMS_TRY(evaluate(t, hooks));
        DMS_TRY(run_tasks(t, hooks));
    }
    while (t->step < t->recipe.schedule.steps) {
        dms_step_report report;
        DMS_TRY(advised(run_step(t, &report)));
        const bool stop = hooks->interrupted && hooks->interrupted(hooks->context);
        DMS_TRY(after_step(t, hooks, &report, stop));
        if (stop)
            return dms_fail(DMS_ERR_INTERRUPTED,
                            "interrupted after step %" PRId64 "; saved: the same command goes on",
                            t->step);
    }
    return DMS_OK;
}

const dms_recipe *dms_trainer_recipe(const dms_trainer *t)
{
    return &t->recipe;
}

const dms_model *dms_trainer_student(const dms_trainer *t)
{
    return t->student;
}

const dms_model *dms_trainer_teacher(const dms_trainer *t)
{
    return t->teacher;
}

dms_device *dms_trainer_device(const dms_trainer *t)
{
    return t->device;
}

int64_t dms_trainer_step(const dms_trainer *t)
{
    return t->step;
}

bool dms_trainer_moved(const dms_trainer *t, const char **from, const char **to)
{
    *from = t->before;
    *to = t->now;
    return t->before[0] && strcmp(t->before, t->now) != 0;
}

bool dms_trainer_data_moved(const dms_trainer *t, const char **from, const char **to)
{
    *from = t->data_before;
    *to = t->data_now;
    return t->data_before[0];
}

const char *dms_trainer_notice(const dms_trainer *t)
{
    return dms_loader_notice(t->loader);
}

size_t dms_trainer_optimizer_bytes(const dms_trainer *t)
{
    return t->optimizer.memory.size;
}

size_t dms_trainer_activation_bytes(const dms_trainer *t)
{
    return dms_objective_bytes(t->objective);
}
