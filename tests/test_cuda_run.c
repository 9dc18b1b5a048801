/* Training and decoding on the CUDA backend as a whole: beside the CPU, again, without waiting for
 * the device, and what is said when the device fails. Runs on the device under test (cuda_emu or
 * cuda); what only the emulation can count is skipped on a GPU. */
#include <dlfcn.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "checkpoints/source_reader.h"
#include "infer/session.h"
#include "kernels/cuda_emu/counts.h"
#include "tests/fixtures.h"
#include "tests/tiny_run.h"

static bool is_emulated(void)
{
    return rig_device() == DMS_CUDA_EMU;
}

/* A function of the emulation's module, which a device has loaded. */
static void find(void *function, const char *name)
{
    void *module = dlopen(DMS_BINARY_DIR "/libdms_cuda_emu.so", RTLD_NOW | RTLD_NOLOAD);
    void *at = module ? dlsym(module, name) : NULL;
    cr_assert(at, "%s", dlerror());
    memcpy(function, &at, sizeof(at));
}

static dms_cuda_emu_counts counts(void)
{
    void (*count)(dms_cuda_emu_counts *) = NULL;
    dms_cuda_emu_counts c;
    find(&count, "dms_cuda_emu_count");
    count(&c);
    return c;
}

static void set_schedule(const char *name)
{
    int (*schedule)(const char *) = NULL;
    find(&schedule, "dms_cuda_emu_schedule");
    cr_assert_eq(schedule(name), 0);
}

/* ---- training ---------------------------------------------------------------------------- */

static const tiny_options llama = {"llama", DMS_F32, true, DMS_TRAIN_ALL};

/* Losses of both devices within 1e-4: the learning rate is one at which a decision that flips by
 * rounding does not set two runs apart. */
Test(cuda_run, follows_the_losses_of_the_cpu_for_twenty_steps)
{
    tiny_run here = tiny_run_open(&llama), cpu = tiny_run_open_on(DMS_CPU, &llama);
    for (int step = 0; step < 20; step++) {
        dms_losses got = {0}, want = {0};
        const step_plan plan = {step % 4, step + 1, 0.5f, 1e-4f};
        tiny_run_step(&here, &plan, &got);
        tiny_run_step(&cpu, &plan, &want);
        cr_assert(fabs(got.kl - want.kl) <= 1e-4 * fabs(want.kl) + 1e-7,
                  "step %d: kl is %.9g, on the CPU %.9g", step, got.kl, want.kl);
        cr_assert(fabs(got.compress - want.compress) <= 1e-4 * fabs(want.compress) + 1e-7,
                  "step %d: compress is %.9g, on the CPU %.9g", step, got.compress, want.compress);
    }
    tiny_run_close(&here);
    tiny_run_close(&cpu);
}

/* All masters after a few steps; the caller frees them. */
static float *weights_after(const tiny_options *options, const char *schedule, int steps,
                            size_t *bytes)
{
    tiny_run r = tiny_run_open(options);
    if (is_emulated())
        set_schedule(schedule);
    for (int step = 0; step < steps; step++)
        tiny_run_step(&r, &(step_plan){step % 4, step + 1, 0.5f, 1e-3f}, &(dms_losses){0});
    float *host = rig_read(&r.optimizer.master);
    *bytes = dms_tensor_bytes(&r.optimizer.master);
    tiny_run_close(&r);
    return host;
}

/* On the emulation also in other orders of threads, blocks and streams. */
Test(cuda_run, repeats_to_the_bit)
{
    static const char *const schedules[] = {"fwd", "rev", "rand:3"};
    for (int bf16 = 0; bf16 < 2; bf16++) {
        tiny_options o = llama;
        size_t bytes = 0;
        o.type = bf16 ? DMS_BF16 : DMS_F32;
        float *first = weights_after(&o, schedules[0], 3, &bytes);
        for (size_t i = 0; i < COUNT(schedules); i++) {
            float *again = weights_after(&o, schedules[i], 3, &bytes);
            cr_assert(!memcmp(first, again, bytes), "%s in schedule %s", bf16 ? "bf16" : "f32",
                      schedules[i]);
            free(again);
        }
        free(first);
    }
}

/* ---- decoding ---------------------------------------------------------------------------- */

typedef struct {
    dms_device *device;
    dms_source *folder;
    dms_model *model;
    dms_session *session;
    float *logits;
} decoder;

static decoder decoder_open(int sequences)
{
    decoder d = {.device = rig_open_device(rig_device(), 1)};
    char path[1024];
    must(dms_source_open(&d.folder, fixture(path, "tiny/llama")));
    dms_model_options o = {.device = d.device, .matrix_type = DMS_F32, .positions = 64};
    must(dms_config_parse(&o.config, dms_source_config(d.folder)));
    const dms_reader reader = dms_source_reader(d.folder);
    must(dms_model_open(&d.model, &o));
    must(dms_model_allocate(d.model));
    must(dms_model_read(d.model, &reader, &(dms_read_options){0}));
    must(dms_session_open(
        &d.session,
        &(dms_session_options){.model = d.model, .context = 64, .max_sequences = sequences}));
    d.logits = malloc((size_t)(sequences * o.config.vocab) * sizeof(float));
    return d;
}

static void decoder_close(decoder *d)
{
    free(d->logits);
    dms_session_close(d->session);
    dms_model_close(d->model);
    dms_source_close(d->folder);
    d->device->close(d->device);
}

/* A step reads the logits, at its end, and nothing else; when the pages known to be free may not
 * do, it first asks how many there are (two reads). Replayed steps launch one graph and no kernel.
 */
Test(cuda_run, decodes_without_reading_inside_a_step)
{
    if (!is_emulated())
        cr_skip_test("only the emulation counts what the host reads");
    decoder d = decoder_open(2);
    const int32_t units[2] = {0, 1};
    int sequence, asked = 0, replayed = 0;
    for (int i = 0; i < 2; i++) {
        must(dms_cache_admit(dms_session_cache(d.session), &sequence));
        must(dms_session_prefill(d.session, NULL, sequence, (int32_t[]){5, 6, 7}, 3, 0));
    }
    for (int step = 0; step < 48; step++) {
        const dms_cuda_emu_counts before = counts();
        must(dms_session_decode(d.session, d.logits, units, (int32_t[]){step + 1, step + 2}, 2));
        const dms_cuda_emu_counts after = counts();
        const int64_t reads = after.host_reads - before.host_reads;
        cr_assert(reads == 1 || reads == 3, "step %d reads %d times", step, (int)reads);
        asked += reads == 3;
        if (after.replays == before.replays)
            continue;
        replayed++;
        const int64_t launches = after.launches - before.launches; /* one to enter a new slab */
        cr_assert(launches <= after.allocations - before.allocations,
                  "step %d launches %d kernels beside its graph", step, (int)launches);
    }
    cr_assert(asked <= 12 && replayed >= 40, "%d steps asked, %d were replayed", asked, replayed);
    decoder_close(&d);
    cr_assert_eq(counts().live_bytes, 0, "%lld bytes are left", (long long)counts().live_bytes);
}

/* ---- failures ---------------------------------------------------------------------------- */

Test(cuda_run, too_little_memory_says_how_much_there_is)
{
    void *block = NULL;
    setenv("DMS_CUDA_EMU_BYTES", "67108864", 1);
    dms_device *dev = rig_open_device(rig_device(), 1);
    const size_t bytes = (size_t)1 << 50;
    rig_expect_failure(dev->alloc(dev, &block, bytes), DMS_ERR_NOMEM,
                       "1073741824.000 MiB were asked for");
    cr_assert(strstr(dms_error_message(), "MiB free of "), "%s", dms_error_message());
    must(dev->alloc(dev, &block, 1 << 20)); /* the device goes on */
    dev->release(dev, block);
    dev->close(dev);
}

/* A module of the emulation that was cut to `bytes`: what stands in a file system that was full. */
static void expect_cut_short(const char *path, int64_t bytes, const char *text)
{
    dms_device *dev = NULL;
    cr_assert_eq(truncate(path, bytes), 0);
    rig_expect_failure(dms_device_open(&dev, DMS_CUDA_EMU, 1), DMS_ERR_DEVICE, text);
    cr_assert(strstr(dms_error_message(), path), "%s", dms_error_message());
    cr_assert_null(dev);
}

Test(cuda_run, a_module_that_was_cut_short_is_no_device_and_no_crash)
{
    char folder[] = "/tmp/dms-test-XXXXXX", path[64], command[1024], said[64];
    struct stat whole;
    if (!is_emulated())
        cr_skip_test("the module of a GPU is opened by the same code");
    cr_assert_not_null(mkdtemp(folder));
    snprintf(path, sizeof(path), "%s/libdms_cuda_emu.so", folder);
    snprintf(command, sizeof(command), "cp %s/libdms_cuda_emu.so %s", DMS_BINARY_DIR, folder);
    cr_assert_eq(system(command), 0);
    cr_assert_eq(stat(path, &whole), 0);
    setenv("DMS_MODULES", folder, 1);
    const int64_t size = whole.st_size;
    const int64_t cut[] = {size - 1, size - 64, size / 2, size / 8, 8192, 4096, 700, 100, 64};
    for (size_t i = 0; i < COUNT(cut); i++) {
        snprintf(said, sizeof(said), "cut short: it has %lld bytes, its headers speak of ",
                 (long long)cut[i]);
        expect_cut_short(path, cut[i], said);
    }
    expect_cut_short(path, 63, "cannot be loaded");
    expect_cut_short(path, 0, "cannot be loaded");
    unlink(path);
    rmdir(folder);
}

/* The runtime keeps a failure until somebody asks for it, and launches ask. */
Test(cuda_run, a_failed_call_is_not_the_next_ops_failure)
{
    rig r = rig_open(rig_device());
    float here[2] = {1, 2};
    const dms_tensor x = rig_upload(&r, rig_shape(2, 0, 0, 0), here);
    dms_tensor y = rig_zero(&r, x);
    cr_assert(r.dev->upload(r.dev, NULL, here, sizeof(here)) == DMS_ERR_DEVICE);
    must(dms_axpy(&y, 1, &x));
    r.dev->release(r.dev, (char *)x.data + 4); /* no allocation begins here */
    must(dms_axpy(&y, 1, &x));
    rig_expect("y", &y, (float[]){2, 4}, 0, 0);
    rig_close(&r);
}

/* More of them, and larger ones, than there are places for uploads under way. */
Test(cuda_run, uploads_keep_their_place_among_ops)
{
    enum { STEPS = 11, N = 1000, LARGE = (5 << 18) + 3 };
    rig r = rig_open(rig_device());
    float here[N], want[N] = {0}, *large = malloc(LARGE * sizeof(float));
    const dms_tensor x = rig_noise(&r, rig_shape(N, 0, 0, 0));
    dms_tensor sum = rig_zero(&r, x);
    for (int step = 1; step <= STEPS; step++) {
        for (int i = 0; i < N; i++) {
            here[i] = (float)(step * i);
            want[i] += here[i];
        }
        must(r.dev->upload(r.dev, x.data, here, sizeof(here)));
        memset(here, 0xff, sizeof(here));
        must(dms_axpy(&sum, 1, &x));
    }
    rig_expect("sum", &sum, want, 0, 0);
    for (int i = 0; i < LARGE; i++)
        large[i] = (float)i;
    const dms_tensor all = rig_upload(&r, rig_shape(LARGE, 0, 0, 0), large);
    rig_expect("all", &all, large, 0, 0);
    free(large);
    rig_close(&r);
}

/* An append without a page: the kernel ends itself, and with DMS_SYNC=1 the op is named. */
Test(cuda_run, a_kernel_that_fails_is_named_with_its_op_and_shape)
{
    if (!is_emulated())
        cr_skip_test("a GPU is of no use to the other tests after a kernel failed");
    setenv("DMS_SYNC", "1", 1);
    rig r = rig_open(rig_device());
    cr_assert(!r.dev->record, "a replayed step would hide its ops");
    dms_cache *cache = NULL;
    int sequence = -1;
    must(dms_cache_open(&cache, &(dms_cache_options){.device = r.dev,
                                                     .layers = 1,
                                                     .groups = 2,
                                                     .head_dim = 8,
                                                     .context = 32,
                                                     .max_sequences = 1}));
    must(dms_cache_admit(cache, &sequence));
    dms_tensor like = {.dtype = DMS_I32, .rank = 1, .shape = {1}};
    const dms_tensor sequences = rig_upload(&r, like, (int32_t[]){sequence});
    like.rank = 2;
    like.shape[1] = 1;
    const dms_tensor positions = rig_upload(&r, like, (int32_t[]){0});
    const dms_tensor k = rig_noise(&r, rig_shape(1, 1, 16, 0));
    const dms_paged_rows rows = {&sequences, &positions, 0, false};
    rig_expect_failure(dms_paged_append(dms_cache_paged(cache), &rows, &k, &k, NULL),
                       DMS_ERR_DEVICE, "paged_append of [1, 1, 16] f32 on cuda_emu");
    dms_cache_close(cache);
    rig_close(&r);
}

Test(cuda_run, a_head_too_wide_is_a_shape_error)
{
    rig r = rig_open(rig_device());
    const int64_t E = 264;
    const dms_tensor q = rig_noise(&r, rig_shape(1, 3, E, 0));
    dms_tensor o = rig_empty(&r, q), lse = rig_empty(&r, rig_shape(1, 1, 3, 0));
    const dms_attention_in in = {&q, &q, &q, NULL, 0, (int)E, false};
    rig_expect_failure(dms_attention(&o, &lse, &in), DMS_ERR_SHAPE, "264");
    cr_assert(strstr(dms_error_message(), "attention of [1, 3, 264]"), "%s", dms_error_message());
    rig_close(&r);
}
