/* The plan of a training run: what it says a run takes is what the run takes, and a run that does
 * not fit is refused with the plan in view. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "data/shard.h"
#include "kernels/cuda_emu/counts.h"
#include "tests/fixtures.h"
#include "tests/rig.h"
#include "train/trainer.h"

typedef struct {
    char path[32];
} folder;

static folder make_folder(void)
{
    folder f = {"/tmp/dms-plan-XXXXXX"};
    char path[1024];
    int32_t ids[1024];
    dms_shard_writer *w = NULL;
    cr_assert(mkdtemp(f.path));
    for (size_t i = 0; i < COUNT(ids); i++)
        ids[i] = (int32_t)(i * 7919 % 317) + 3;
    snprintf(path, sizeof(path), "%s/data.tok", f.path);
    must(dms_shard_writer_open(&w, path, 320, 0));
    must(dms_shard_writer_append(w, ids, COUNT(ids)));
    must(dms_shard_writer_commit(w));
    dms_shard_writer_close(w);
    return f;
}

static void remove_folder(const folder *f)
{
    char command[64];
    snprintf(command, sizeof(command), "rm -rf '%s'", f->path);
    cr_assert_eq(system(command), 0);
}

static void set(dms_recipe *r, const char *key, const char *value)
{
    char assignment[1200];
    snprintf(assignment, sizeof(assignment), "%s=%s", key, value);
    must(dms_recipe_set(r, assignment));
}

static dms_recipe recipe_in(const folder *f)
{
    char path[1024];
    dms_recipe r = dms_recipe_defaults();
    set(&r, "model.path", fixture(path, "tiny/llama"));
    snprintf(path, sizeof(path), "%s/data.tok", f->path);
    set(&r, "data.train", path);
    set(&r, "data.context", "32");
    set(&r, "dms.window", "6");
    set(&r, "run.batch", "2");
    set(&r, "schedule.steps", "3");
    set(&r, "schedule.fade_steps", "1");
    set(&r, "device.threads", "1");
    set(&r, "device.kind", rig_device_name());
    snprintf(path, sizeof(path), "%s/run", f->path);
    set(&r, "run.folder", path);
    return r;
}

static dms_trainer_plan plan_of(const dms_recipe *recipe)
{
    dms_trainer *t = NULL;
    must(dms_trainer_open(&t, recipe, NULL));
    must(dms_trainer_rehearse(t));
    const dms_trainer_plan plan = dms_trainer_plan_of(t, 0);
    dms_trainer_close(t);
    return plan;
}

/* Zeros where nothing counts: a device that is not emulated. */
static dms_cuda_emu_counts counts(void)
{
    dms_cuda_emu_counts c = {0};
    void (*count)(dms_cuda_emu_counts *) = NULL;
    void *module = dlopen(DMS_BINARY_DIR "/libdms_cuda_emu.so", RTLD_NOW | RTLD_NOLOAD);
    void *at = module && rig_device() == DMS_CUDA_EMU ? dlsym(module, "dms_cuda_emu_count") : NULL;
    memcpy(&count, &at, sizeof(at));
    if (count)
        count(&c);
    return c;
}

/* Bytes that the run took of its device, as the device itself says; trained for three steps. */
static void expect_as_planned(const dms_recipe *recipe)
{
    dms_trainer *t = NULL;
    const dms_trainer_plan plan = plan_of(recipe);
    const dms_cuda_emu_counts before = counts();
    must(dms_trainer_open(&t, recipe, &plan.memory));
    const uint64_t generation = dms_trainer_device(t)->generation;
    must(dms_trainer_run(t, &(dms_trainer_hooks){0}));
    const dms_cuda_emu_counts after = counts();
    cr_assert_eq(dms_trainer_device(t)->generation, generation, "the workspace grew");
    dms_trainer_close(t);
    if (rig_device() == DMS_CUDA_EMU) {
        const int64_t all = (int64_t)(plan.memory.bytes + plan.memory.workspace_bytes);
        cr_assert_eq(after.allocations - before.allocations, 1, "%lld allocations",
                     (long long)(after.allocations - before.allocations));
        cr_assert_eq(after.live_bytes - before.live_bytes, all, "%lld bytes, planned were %lld",
                     (long long)(after.live_bytes - before.live_bytes), (long long)all);
        cr_assert_eq(counts().live_bytes, 0);
    }
}

/* Values of the recipe's keys of these names. */
typedef struct {
    char gate[8], compute[8], replay[8];
} variant;

ParameterizedTestParameters(plan, says_what_a_run_takes)
{
    static variant variants[] = {
        {"neuron", "f32", "true"}, {"neuron", "bf16", "false"}, {"adapter", "bf16", "true"}};
    return cr_make_param_array(variant, variants, COUNT(variants));
}

ParameterizedTest(variant *v, plan, says_what_a_run_takes)
{
    const folder f = make_folder();
    dms_recipe r = recipe_in(&f);
    set(&r, "dms.gate", v->gate);
    set(&r, "schedule.fade_steps", strcmp(v->gate, "adapter") ? "1" : "0");
    set(&r, "run.compute", v->compute);
    set(&r, "run.replay", v->replay);
    expect_as_planned(&r);
    remove_folder(&f);
}

Test(plan, that_exceeds_the_free_memory_is_refused)
{
    const folder f = make_folder();
    const dms_recipe r = recipe_in(&f);
    dms_trainer_plan plan = plan_of(&r);
    const size_t all = plan.memory.bytes + plan.memory.workspace_bytes;
    plan.free_bytes = all + all / 49 + 1; /* 2 % are kept */
    must(dms_trainer_plan_fits(&plan, &r));
    plan.free_bytes = all;
    cr_assert_eq(dms_trainer_plan_fits(&plan, &r), DMS_ERR_NOMEM);
    cr_assert(strstr(dms_error_message(), "lower run.batch or data.context"), "%s",
              dms_error_message());
    plan.free_bytes = 0; /* nobody knows */
    must(dms_trainer_plan_fits(&plan, &r));
    remove_folder(&f);
}

/* dms-train --check on a device with 32 MiB, less than its matrix products' workspace. */
Test(plan, is_printed_before_it_is_refused)
{
    if (rig_device() != DMS_CUDA_EMU)
        cr_skip_test("only the emulation's memory can be set");
    const folder f = make_folder();
    const dms_recipe r = recipe_in(&f);
    char path[64], command[512], text[4096];
    snprintf(path, sizeof(path), "%s/run.yaml", f.path);
    FILE *out = fopen(path, "w");
    must(dms_recipe_write(&r, out));
    fclose(out);
    snprintf(command, sizeof(command), "DMS_CUDA_EMU_BYTES=33554432 %s/dms-train %s --check 2>&1",
             DMS_BINARY_DIR, path);
    FILE *in = popen(command, "r");
    text[fread(text, 1, sizeof(text) - 1, in)] = 0;
    const int state = pclose(in);
    cr_assert(WIFEXITED(state) && WEXITSTATUS(state) == 1, "%s", text);
    cr_assert(strstr(text, "GB in all, 0.03 GB free"), "%s", text);
    cr_assert(strstr(text, "the run needs 0.0"), "%s", text);
    remove_folder(&f);
}
