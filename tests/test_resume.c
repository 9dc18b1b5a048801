/* Runs of dms-train that are killed, interrupted or starved of disk: nothing is lost. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "checkpoints/checkpoint.h"
#include "data/shard.h"
#include "tests/fixtures.h"
#include "tests/rig.h"

enum { STEPS = 12 };

/* A folder of its own, with a shard of random tokens; the caller removes it. */
static char *make_folder(void)
{
    static char folder[] = "/tmp/dms-resume-XXXXXX";
    char path[1024];
    int32_t ids[4096];
    uint32_t seed = 7;
    dms_shard_writer *w = NULL;
    cr_assert(mkdtemp(folder));
    for (size_t i = 0; i < COUNT(ids); i++) {
        seed = seed * 1664525u + 1013904223u;
        ids[i] = (int32_t)(seed >> 8) % 317 + 3;
    }
    snprintf(path, sizeof(path), "%s/data.tok", folder);
    must(dms_shard_writer_open(&w, path, 320, 0));
    must(dms_shard_writer_append(w, ids, COUNT(ids)));
    must(dms_shard_writer_commit(w));
    dms_shard_writer_close(w);
    return folder;
}

static void remove_folder(const char *folder)
{
    char command[1200];
    snprintf(command, sizeof(command), "rm -rf '%s'", folder);
    cr_assert_eq(system(command), 0);
}

static void write_config(const char *folder)
{
    char path[1024], model[1024];
    snprintf(path, sizeof(path), "%s/run.yaml", folder);
    FILE *out = fopen(path, "w");
    fprintf(out,
            "model: {path: %s}\ndata: {train: %s/data.tok, context: 32}\n"
            "dms: {gate: neuron, window: 6, alpha_scale: 4, alpha_offset: 1}\n"
            "schedule: {steps: %d, fade_steps: 3, cr: 4, ramp_steps: 6}\n"
            "optim: {train: all, lr: 1.0e-3}\n"
            "run: {batch: 2, accumulate: 2, save_every: 1, keep: 2}\n",
            fixture(model, "tiny/llama"), folder, STEPS);
    fclose(out);
}

/* Starts dms-train on folder/run.yaml with run folder folder/NAME; output goes to folder/NAME.log.
 * limit: RLIMIT_FSIZE in bytes, 0: none. */
typedef struct {
    const char *folder, *name, *compute;
    int threads;
    rlim_t limit;
} job;

static pid_t start(const job *j)
{
    char config[1024], run[1024], compute[64], threads[64], device[64], log[1024];
    snprintf(config, sizeof(config), "%s/run.yaml", j->folder);
    snprintf(run, sizeof(run), "run.folder=%s/%s", j->folder, j->name);
    snprintf(log, sizeof(log), "%s/%s.log", j->folder, j->name);
    snprintf(compute, sizeof(compute), "run.compute=%s", j->compute);
    snprintf(threads, sizeof(threads), "device.threads=%d", j->threads);
    snprintf(device, sizeof(device), "device.kind=%s", rig_device_name());
    const pid_t child = fork();
    if (child)
        return child;
    const int out = open(log, O_CREAT | O_WRONLY | O_APPEND, 0666);
    dup2(out, STDOUT_FILENO);
    dup2(out, STDERR_FILENO);
    if (j->limit)
        setrlimit(RLIMIT_FSIZE, &(struct rlimit){j->limit, j->limit});
    execl(DMS_BINARY_DIR "/dms-train", "dms-train", config, run, compute, threads, device,
          (char *)NULL);
    _exit(127);
}

static int wait_for(pid_t child)
{
    int state = 0;
    while (waitpid(child, &state, 0) < 0 && errno == EINTR)
        continue;
    return state;
}

static int finish(const job *j)
{
    const int state = wait_for(start(j));
    return WIFEXITED(state) ? WEXITSTATUS(state) : -WTERMSIG(state);
}

/* Everything that a run ends with: all tensors of `latest`, to the bit. */
static void expect_same_end(const char *folder, const char *a, const char *b)
{
    char path[1024];
    dms_checkpoint *left = NULL, *right = NULL;
    snprintf(path, sizeof(path), "%s/%s/latest", folder, a);
    must(dms_checkpoint_open(&left, path));
    snprintf(path, sizeof(path), "%s/%s/latest", folder, b);
    must(dms_checkpoint_open(&right, path));
    cr_assert_eq(dms_checkpoint_count(left), dms_checkpoint_count(right));
    for (int64_t i = 0; i < dms_checkpoint_count(left); i++) {
        const dms_checkpoint_tensor *x = dms_checkpoint_info(left, i);
        const dms_checkpoint_tensor *y = dms_checkpoint_find(right, x->group, x->name);
        cr_assert(y, "%s lacks %s/%s", b, x->group, x->name);
        cr_assert(x->bytes == y->bytes && !memcmp(x->data, y->data, x->bytes), "%s/%s differs",
                  x->group, x->name);
    }
    dms_checkpoint_close(left);
    dms_checkpoint_close(right);
}

static void sleep_ms(long ms)
{
    nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000}, NULL);
}

static bool is_there(const char *folder, const char *name)
{
    char path[1024];
    struct stat info;
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    return !stat(path, &info);
}

/* SIGKILL after a growing delay, over and over, until a run comes through; every save is a step of
 * its own, so that many kills fall into a save. */
static void kill_until_done(const job *j)
{
    for (long delay = 5;; delay += delay / 4 + 1) {
        const pid_t child = start(j);
        sleep_ms(delay);
        kill(child, SIGKILL);
        const int state = wait_for(child);
        if (WIFEXITED(state)) {
            cr_assert_eq(WEXITSTATUS(state), 0);
            return;
        }
        cr_assert(delay < 60000, "the run never comes through");
    }
}

Test(resume, after_sigkill_at_any_moment_ends_with_the_same_bits)
{
    static const struct {
        const char *compute;
        int threads;
    } cases[] = {{"f32", 1}, {"f32", 2}, {"bf16", 1}, {"bf16", 2}};
    const char *folder = make_folder();
    write_config(folder);
    for (size_t i = 0; i < COUNT(cases); i++) {
        if (rig_device() != DMS_CPU && cases[i].threads != 1)
            continue; /* of the host, which only copies */
        job whole = {folder, "whole", cases[i].compute, 2, 0};
        job killed = {folder, "killed", cases[i].compute, cases[i].threads, 0};
        char command[1200];
        cr_assert_eq(finish(&whole), 0);
        kill_until_done(&killed);
        expect_same_end(folder, "whole", "killed");
        snprintf(command, sizeof(command), "rm -rf %s/whole %s/killed", folder, folder);
        cr_assert_eq(system(command), 0);
    }
    remove_folder(folder);
}

Test(resume, after_an_interrupt_that_saved)
{
    const char *folder = make_folder();
    write_config(folder);
    const job whole = {folder, "whole", "f32", 2, 0}, stopped = {folder, "stopped", "f32", 2, 0};
    cr_assert_eq(finish(&whole), 0);
    const pid_t child = start(&stopped);
    while (!is_there(folder, "stopped/latest"))
        sleep_ms(1);
    kill(child, SIGINT);
    const int state = wait_for(child);
    cr_assert(WIFEXITED(state));
    cr_assert(WEXITSTATUS(state) == 130 || WEXITSTATUS(state) == 0, "%d", WEXITSTATUS(state));
    cr_assert_eq(finish(&stopped), 0);
    expect_same_end(folder, "whole", "stopped");
    remove_folder(folder);
}

Test(resume, of_a_full_disk_keeps_the_last_checkpoint_and_says_so)
{
    const char *folder = make_folder();
    write_config(folder);
    const job whole = {folder, "whole", "f32", 2, 0};
    job small = {folder, "small", "f32", 2, 200000};
    char command[1200];
    cr_assert_eq(finish(&whole), 0);
    cr_assert_eq(finish(&small), 1, "a full disk is a failure");
    cr_assert(!is_there(folder, "small/latest"));
    snprintf(command, sizeof(command), "grep -q 'dms-train: .*step-000001' %s/small.log", folder);
    cr_assert_eq(system(command), 0, "the message names the file");
    snprintf(command, sizeof(command), "! ls %s/small/checkpoints | grep -q tmp", folder);
    cr_assert_eq(system(command), 0, "a temporary was left behind");
    small.limit = 0;
    cr_assert_eq(finish(&small), 0);
    expect_same_end(folder, "whole", "small");
    remove_folder(folder);
}

Test(resume, refuses_a_corrupt_checkpoint_and_another_teacher)
{
    const char *folder = make_folder();
    char command[2400], model[1024];
    write_config(folder);
    const job run = {folder, "run", "f32", 2, 0};
    cr_assert_eq(finish(&run), 0);
    snprintf(command, sizeof(command), "sed -i 's#tiny/llama#tiny/qwen2#' %s/run.yaml", folder);
    cr_assert_eq(system(command), 0);
    cr_assert_eq(finish(&run), 1);
    snprintf(command, sizeof(command), "grep -q 'trained from another model than %s' %s/run.log",
             fixture(model, "tiny/qwen2"), folder);
    cr_assert_eq(system(command), 0);
    write_config(folder);
    snprintf(command, sizeof(command),
             "printf XXXX | dd of=$(readlink -f %s/run/latest) bs=1 seek=300000 conv=notrunc "
             "2>/dev/null",
             folder);
    cr_assert_eq(system(command), 0);
    cr_assert_eq(finish(&run), 1);
    remove_folder(folder);
}

Test(resume, refuses_a_recipe_that_would_change_the_run)
{
    static const char *const changes[][2] = {{"window: 6", "window: 7"},
                                             {"batch: 2", "batch: 4"},
                                             {"context: 32", "context: 32, weights: [2]"}};
    static const char *const messages[] = {"dms.window is 7, but the run in .* began with 6",
                                           "run.batch is 4, but the run in .* began with 2",
                                           "data.weights are not those that the run"};
    const char *folder = make_folder();
    char command[2400];
    write_config(folder);
    const job run = {folder, "run", "f32", 2, 0};
    cr_assert_eq(finish(&run), 0);
    for (size_t i = 0; i < COUNT(changes); i++) {
        write_config(folder);
        snprintf(command, sizeof(command), "sed -i 's/%s/%s/' %s/run.yaml", changes[i][0],
                 changes[i][1], folder);
        cr_assert_eq(system(command), 0);
        cr_assert_eq(finish(&run), 2);
        snprintf(command, sizeof(command), "grep -q '%s' %s/run.log", messages[i], folder);
        cr_assert_eq(system(command), 0, "%s", messages[i]);
    }
    write_config(folder);
    cr_assert_eq(finish(&run), 0, "the recipe it began with goes on");
    remove_folder(folder);
}

static bool says(const char *folder, const char *text)
{
    char command[1200];
    snprintf(command, sizeof(command), "grep -q '%s' %s/run.log", text, folder);
    return system(command) == 0;
}

/* From the CPU to the device under test and on to its TF32. */
Test(resume, says_that_the_run_moved_to_another_device_or_arithmetic)
{
    const dms_device_kind kind = rig_device();
    const char *folder = make_folder(), *name = rig_device_name();
    char text[128];
    write_config(folder);
    const job run = {folder, "run", "f32", 2, 0};
    setenv("DMS_TEST_DEVICE", "cpu", 1);
    cr_assert_eq(finish(&run), 0);
    setenv("DMS_TF32", "1", 1); /* without effect on the CPU */
    cr_assert_eq(finish(&run), 0);
    cr_assert(!says(folder, "moved"), "the run stayed where it was");
    setenv("DMS_TEST_DEVICE", name, 1);
    snprintf(text, sizeof(text), "moved from cpu in f32 to %s in f32, TF32: ", name);
    cr_assert_eq(finish(&run), 0);
    cr_assert_eq(says(folder, text), kind != DMS_CPU);
    remove_folder(folder);
}

Test(resume, says_that_the_run_goes_on_with_other_shards)
{
    char command[1200];
    const char *folder = make_folder();
    write_config(folder);
    const job run = {folder, "run", "f32", 2, 0};
    cr_assert_eq(finish(&run), 0);
    cr_assert_eq(finish(&run), 0);
    cr_assert(!says(folder, "moved"), "the shards are the same");
    snprintf(command, sizeof(command),
             "cd %s && cp data.tok other.tok && sed -i s/data.tok/other.tok/ run.yaml", folder);
    cr_assert_eq(system(command), 0);
    cr_assert_eq(finish(&run), 0);
    cr_assert(says(folder, "moved from data.train .*/data.tok to .*/other.tok: "));
    remove_folder(folder);
}

static int in_shell(const char *folder, const char *command)
{
    char line[2400];
    snprintf(line, sizeof(line), "cd %s && { %s ; }", folder, command);
    const int state = system(line);
    return WIFEXITED(state) ? WEXITSTATUS(state) : -1;
}

/* What a run would write over stays what it was, to the byte; nothing is added. */
Test(resume, a_new_run_never_replaces_what_no_run_of_its_recipe_wrote)
{
    static const char *const there[][2] = {
        {"cp run.yaml run/config.yaml", "holds config.yaml, which is not what"},
        {"echo '{\"step\": 0}' >run/metrics.jsonl", "holds metrics.jsonl, which no run wrote"},
        {"mkdir run/checkpoints; echo x >run/checkpoints/step-000001.h5",
         "holds checkpoints/step-000001.h5, which no run wrote"}};
    const char *folder = make_folder();
    write_config(folder);
    const job run = {folder, "run", "f32", 1, 0};
    for (size_t i = 0; i < COUNT(there); i++) {
        cr_assert_eq(in_shell(folder, "rm -rf run run.log kept; mkdir run"), 0);
        cr_assert_eq(in_shell(folder, there[i][0]), 0);
        cr_assert_eq(in_shell(folder, "cp -r run kept"), 0);
        cr_expect_eq(finish(&run), 2, "%s", there[i][0]);
        cr_expect(says(folder, there[i][1]), "%s", there[i][1]);
        cr_expect(says(folder, "give another run.folder"));
        cr_expect_eq(in_shell(folder, "diff -r run kept"), 0);
    }
    remove_folder(folder);
}

/* As after a kill between the first checkpoint and the link to it. */
Test(resume, a_run_without_latest_goes_on_with_its_own_recipe_only)
{
    const char *folder = make_folder();
    write_config(folder);
    const job whole = {folder, "whole", "f32", 1, 0}, run = {folder, "run", "f32", 1, 0};
    const job other = {folder, "run", "f32", 2, 0};
    cr_assert_eq(finish(&whole), 0);
    cr_assert_eq(finish(&run), 0);
    cr_assert_eq(in_shell(folder, "rm run/latest"), 0);
    cr_assert_eq(finish(&run), 2);
    cr_expect(says(folder, "checkpoints (checkpoints/step-.*) and no link latest to go on from"));
    cr_assert_eq(in_shell(folder, "cd run/checkpoints; ls | tail -n +2 | xargs rm"), 0);
    cr_assert_eq(finish(&other), 2);
    cr_expect(says(folder, "holds config.yaml, which is not what a run of this recipe wrote"));
    cr_assert_eq(finish(&run), 0);
    expect_same_end(folder, "whole", "run");
    remove_folder(folder);
}
