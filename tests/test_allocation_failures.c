/* Each allocation of opening, importing, exporting and training is made to fail in turn: every time
 * a status, nothing left in memory, files as they were. Allocations inside libraries are left
 * alone, but for jansson's: libhdf5 and oneDNN do not survive theirs, libgomp ends the program. */
#include <jansson.h>
#include <sys/stat.h>

#include "checkpoints/checkpoint.h"
#include "checkpoints/export.h"
#include "checkpoints/huggingface.h"
#include "data/shard.h"
#include "infer/model_file.h"
#include "tests/failing_allocations.h"
#include "tests/files.h"
#include "tests/fixtures.h"
#include "tests/fuzz/gguf_builder.h"
#include "train/trainer.h"

/* Something to try: `run` does all of its work and frees it; `prepare` puts files as they are to be
 * before it, `check` looks at them after a failure. Both may be NULL. */
typedef struct {
    const char *what;
    dms_status (*run)(void *context);
    void (*prepare)(void *context);
    void (*check)(void *context);
    void *context;
} attempt;

/* One try with allocation n failing; false when there were fewer. */
static bool fail_one(const attempt *a, long n)
{
    if (a->prepare)
        a->prepare(a->context);
    allocations_begin(n);
    const dms_status status = a->run(a->context);
    allocations_end();
    cr_assert_eq(allocation.live, 0, "%s: %ld blocks left after allocation %ld of %ld failed",
                 a->what, allocation.live, n, allocation.asked);
    if (allocation.asked < n) {
        cr_assert_eq(status, DMS_OK, "%s: %s", a->what, dms_error_text());
        return false;
    }
    cr_assert_neq(status, DMS_OK, "%s: allocation %ld failed, and nobody noticed", a->what, n);
    /* jansson does not always say why it could not. */
    cr_assert(status == DMS_ERR_NOMEM || allocation.jansson, "%s: allocation %ld failed: %s",
              a->what, n, dms_error_text());
    if (a->check)
        a->check(a->context);
    return true;
}

static void fail_each(const attempt *a)
{
    long n = 1;
    allocations_take_json();
    while (fail_one(a, n))
        n++;
    cr_assert_gt(n, 3, "%s allocates nothing", a->what);
    cr_log_info("%s: each of %ld allocations failed once", a->what, n - 1);
}

static void shell(const char *format, const char *a, const char *b)
{
    char command[4096];
    snprintf(command, sizeof(command), format, a, b);
    cr_assert_eq(system(command), 0, "%s", command);
}

/* Opening. */

typedef struct {
    const char *path;
    dms_device *device;
} opening;

static dms_status open_model(void *context)
{
    const opening *o = context;
    dms_model_file *file = NULL;
    const dms_model_file_options options = {
        .path = o->path, .device = o->device, .compute = DMS_COMPUTE_F32, .positions = 32};
    const dms_status status = dms_model_file_open(&file, &options);
    cr_assert(!status || !file, "a failed open left something");
    dms_model_file_close(file);
    return status;
}

static void fail_each_open(const char *path)
{
    opening o = {.path = path};
    must(dms_device_from_name(&o.device, "cpu", 1));
    fail_each(&(attempt){.what = path, .run = open_model, .context = &o});
    o.device->close(o.device);
}

Test(allocation_failures, of_opening_a_folder_leave_nothing)
{
    char path[1024];
    fail_each_open(fixture(path, "tiny/qwen3"));
    fail_each_open(fixture(path, "tiny/llama3")); /* shards and an index */
}

Test(allocation_failures, of_opening_a_gguf_file_leave_nothing)
{
    char path[1024];
    fail_each_open(fixture(path, "gguf/tiny-Q2_K.gguf"));
}

/* Exporting; the model comes from a file of another format: importing, too. */

typedef struct {
    char from[1024];
    const char *to, *old; /* what is written, and a copy of what was there before */
} exporting;

static dms_status export_folder(void *context)
{
    const exporting *x = context;
    dms_status status;
    dms_export *e = NULL;
    DMS_TRY_OR(done, dms_export_open(&e, x->from));
    DMS_TRY_OR(done, dms_export_list(e, DMS_EXPORT_BF16, false, true));
    dms_hf_model model = {.config = dms_source_config(e->source),
                          .chat_template = "{{ messages }}",
                          .tensors = dms_export_set(e),
                          .shard_bytes = 100000,
                          .force = true};
    model.tokenizer = dms_source_tokenizer(e->source, &model.tokenizer_length);
    DMS_TRY_OR(done, dms_hf_write(x->to, &model));
done:
    dms_export_close(e);
    return status;
}

static dms_status export_hdf5(void *context)
{
    const exporting *x = context;
    dms_status status;
    dms_export *e = NULL;
    DMS_TRY_OR(done, dms_export_open(&e, x->from));
    DMS_TRY_OR(done, dms_export_list(e, DMS_EXPORT_F32, false, false));
    const dms_export_hdf5 options = {
        .path = x->to, .config = dms_source_config(e->source), .compress = true, .force = true};
    DMS_TRY_OR(done, dms_export_write_hdf5(e, &options));
done:
    dms_export_close(e);
    return status;
}

/* The target is what it was, and nothing lies beside it. */
static void expect_old(void *context)
{
    const exporting *x = context;
    shell("diff -r '%s' '%s'", x->old, x->to);
    char *folder = dms_path_folder(x->to);
    cr_assert_eq(count_files(folder), 2, "a failed export left a file in %s", folder);
    free(folder);
}

/* In memory where that is possible: every try syncs its files. */
static scratch quick_scratch(void)
{
    scratch s = {"/dev/shm/dms-test-XXXXXX"};
    return mkdtemp(s.folder) ? s : scratch_open();
}

static void fail_each_export(const char *from, dms_status (*run)(void *), const char *what)
{
    scratch s = quick_scratch();
    exporting x = {.to = scratch_path(&s, "model"), .old = scratch_path(&s, "old")};
    snprintf(x.from, sizeof(x.from), "%s", from);
    must(run(&x));
    shell("cp -r '%s' '%s'", x.to, x.old);
    fail_each(&(attempt){.what = what, .run = run, .check = expect_old, .context = &x});
    scratch_close(&s);
}

Test(allocation_failures, of_exporting_a_folder_leave_the_old_one)
{
    char path[1024];
    static gguf_builder b;
    scratch s = quick_scratch();
    gguf_build(&b, "llama", "llama-bpe");
    write_bytes(scratch_path(&s, "small"), b.bytes, b.n);
    fail_each_export(scratch_path(&s, "small"), export_folder, "GGUF to folder");
    fail_each_export(fixture(path, "tiny/llama3"), export_folder, "folder to folder");
    scratch_close(&s);
}

Test(allocation_failures, of_exporting_a_checkpoint_leave_the_old_one)
{
    char path[1024];
    fail_each_export(fixture(path, "tiny/llama"), export_hdf5, "folder to checkpoint");
}

Test(allocation_failures, of_opening_a_checkpoint_leave_nothing)
{
    scratch s = quick_scratch();
    exporting x = {.to = scratch_path(&s, "model")};
    fixture(x.from, "tiny/llama");
    must(export_hdf5(&x));
    fail_each_open(x.to);
    scratch_close(&s);
}

/* Training: a run that goes on from step 1, makes a step, and saves. */

typedef struct {
    dms_recipe recipe;
    const char *run, *saved; /* the run's folder, and a copy of it after the first step */
} training;

static void make_shard(const char *path)
{
    int32_t ids[1024];
    uint32_t seed = 7;
    dms_shard_writer *w = NULL;
    for (size_t i = 0; i < COUNT(ids); i++)
        ids[i] = (int32_t)(roll(&seed) % 317) + 3;
    must(dms_shard_writer_open(&w, path, 320, 0));
    must(dms_shard_writer_append(w, ids, COUNT(ids)));
    must(dms_shard_writer_commit(w));
    dms_shard_writer_close(w);
}

static void make_recipe(dms_recipe *recipe, const char *run, const char *shard)
{
    char text[4096], model[1024];
    snprintf(text, sizeof(text),
             "model: {path: %s}\ndata: {train: %s, context: 32}\n"
             "dms: {gate: neuron, window: 6, alpha_scale: 4, alpha_offset: 1}\n"
             "schedule: {steps: 1, fade_steps: 0, cr: 4, ramp_steps: 2}\n"
             "optim: {train: gate, lr: 1.0e-3}\n"
             "run: {folder: %s, batch: 1, compute: f32, save_every: 1, keep: 2}\n"
             "device: {kind: cpu, threads: 1}\n",
             fixture(model, "tiny/llama"), shard, run);
    *recipe = dms_recipe_defaults();
    must(dms_recipe_parse(recipe, text, strlen(text), "recipe"));
}

static dms_status train(void *context)
{
    const training *t = context;
    dms_trainer *trainer = NULL;
    DMS_TRY(dms_trainer_open(&trainer, &t->recipe, &(dms_trainer_memory){0}));
    const dms_status status = dms_trainer_run(trainer, &(dms_trainer_hooks){0});
    dms_trainer_close(trainer);
    return status;
}

static void restore_run(void *context)
{
    const training *t = context;
    shell("rm -rf '%2$s' && cp -a '%1$s' '%2$s'", t->saved, t->run);
}

/* The older checkpoint is what it was; the latest one is whole, whichever it is. */
static void expect_checkpoints(void *context)
{
    const training *t = context;
    char path[1024];
    int64_t step = 0;
    dms_checkpoint *c;
    snprintf(path, sizeof(path), "%s/latest", t->run);
    must(dms_checkpoint_open(&c, path));
    must(dms_checkpoint_verify(c));
    cr_assert(dms_checkpoint_int(c, "step", &step) && (step == 1 || step == 2));
    dms_checkpoint_close(c);
    shell("cmp '%s/checkpoints/step-000001.h5' '%s/checkpoints/step-000001.h5'", t->saved, t->run);
    snprintf(path, sizeof(path), "%s/checkpoints", t->run);
    cr_assert_eq(count_files(path), (int)step, "something lies beside the checkpoints");
}

static void fail_each_training(const char *set)
{
    scratch s = quick_scratch();
    training t = {.run = scratch_path(&s, "run"), .saved = scratch_path(&s, "saved")};
    const char *shard = scratch_path(&s, "data.tok");
    make_shard(shard);
    make_recipe(&t.recipe, t.run, shard);
    must(dms_recipe_set(&t.recipe, set));
    must(train(&t));
    shell("cp -a '%s' '%s'", t.run, t.saved);
    t.recipe.schedule.steps = 2;
    fail_each(&(attempt){"a training step", train, restore_run, expect_checkpoints, &t});
    scratch_close(&s);
}

Test(allocation_failures, of_a_training_step_leave_the_checkpoint)
{
    fail_each_training("optim.train=all");
    fail_each_training("optim.train=gate");
}
