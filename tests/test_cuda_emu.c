#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernels/bf16.h"
#include "kernels/cuda_emu/counts.h"
#include "tests/cuda_emu_faults.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

#define cuda(call)                                                                   \
    do {                                                                             \
        const cudaError_t error_ = (call);                                           \
        cr_assert(error_ == cudaSuccess, "%s: %s", #call, cudaGetErrorName(error_)); \
    } while (0)

static const char *const schedules[] = {"fwd", "rev", "rand:1", "rand:2"};

static void run_in(const char *schedule, const planted_fault *fault, bool planted, float *out,
                   cudaError_t *error)
{
    cr_assert(dms_cuda_emu_schedule(schedule) == 0);
    memset(out, 0, FAULT_N * sizeof(float));
    *error = fault->run(planted, out);
    (void)cudaDeviceReset(); /* the device is lost after a fault */
}

/* "clean", or by what the fault shows itself in these schedules. */
static const char *verdict(const planted_fault *fault, bool planted)
{
    static char name[64];
    float out[COUNT(schedules)][FAULT_N];
    for (size_t i = 0; i < COUNT(schedules); i++) {
        cudaError_t error;
        run_in(schedules[i], fault, planted, out[i], &error);
        if (error == cudaErrorInvalidValue)
            return "cudaErrorInvalidValue";
        if (error) {
            snprintf(name, sizeof(name), "%s", dms_cuda_emu_fault());
            name[strcspn(name, ":")] = '\0';
            return name;
        }
    }
    for (size_t i = 1; i < COUNT(schedules); i++) {
        if (memcmp(out[i], out[0], sizeof(out[0])) != 0)
            return "schedules differ";
    }
    for (int i = 0; i < FAULT_N; i++) {
        if (isnan(out[0][i]))
            return "NaN";
    }
    for (int i = 0; i < FAULT_N; i++) {
        if (out[0][i] != (float)(i + 1))
            return "wrong";
    }
    return "clean";
}

/* AddressSanitizer ends the process with a report, which names the kernel and its line. */
static void expect_report(const planted_fault *fault)
{
    static char report[1 << 16];
    size_t n = 0;
    int ends[2], status;
    cr_assert(pipe(ends) == 0);
    const pid_t child = fork();
    if (!child) {
        float out[FAULT_N];
        dup2(ends[1], STDERR_FILENO);
        (void)fault->run(true, out);
        _exit(0);
    }
    close(ends[1]);
    for (ssize_t got;
         n + 1 < sizeof(report) && (got = read(ends[0], report + n, sizeof(report) - 1 - n)) > 0;)
        n += (size_t)got;
    report[n] = '\0';
    close(ends[0]);
    cr_assert(waitpid(child, &status, 0) == child);
    cr_expect(!WIFEXITED(status) || WEXITSTATUS(status) != 0, "%s: the process went on",
              fault->name);
    const char *name = fault->where == ONLY_ASAN ? fault->caught_as : "ERROR: AddressSanitizer";
    /* UndefinedBehaviorSanitizer, where it can tell the size, is first. */
    cr_expect(strstr(report, name) || strstr(report, "runtime error: "), "%s: expected %s: %s",
              fault->name, name, report);
    cr_expect(strstr(report, "cuda_emu_faults.cu:"), "%s: no line of the kernel in %s", fault->name,
              report);
}

ParameterizedTestParameters(cuda_emu, each_planted_fault_is_caught_by_name)
{
    static size_t rows[32];
    cr_assert(n_planted_faults <= COUNT(rows));
    for (size_t i = 0; i < n_planted_faults; i++)
        rows[i] = i;
    return cr_make_param_array(size_t, rows, n_planted_faults);
}

ParameterizedTest(size_t *row, cuda_emu, each_planted_fault_is_caught_by_name)
{
    const planted_fault *fault = &planted_faults[*row];
    const char *clean = verdict(fault, false);
    cr_assert_str_eq(clean, "clean", "%s: without the fault: %s", fault->name, clean);
    if (faults_have_asan && fault->where == NOT_UNDER_ASAN)
        cr_skip_test("%s: static shared memory is not filled under AddressSanitizer", fault->name);
    if (!faults_have_asan && fault->where == ONLY_ASAN)
        cr_skip_test("%s: found by the build with AddressSanitizer", fault->name);
    if (faults_have_asan && fault->where != EVERYWHERE) {
        expect_report(fault);
        return;
    }
    const char *caught = verdict(fault, true);
    cr_expect_str_eq(caught, fault->caught_as, "%s: caught as \"%s\", expected \"%s\"", fault->name,
                     caught, fault->caught_as);
}

Test(cuda_emu, a_fault_is_one_line_with_kernel_block_thread_and_place)
{
    queue_trap(NULL);
    cr_expect_eq(cudaDeviceSynchronize(), cudaErrorLaunchFailure);
    const char *line = dms_cuda_emu_fault();
    cr_expect(strstr(line, "trap: kernel trap_kernel, block (0, 0, 0), thread (7, 0, 0), "), "%s",
              line);
    cr_expect(strstr(line, "tests/cuda_emu_faults.cu:"), "%s", line);
}

Test(cuda_emu, a_lost_device_fails_every_call_until_its_reset)
{
    void *memory = NULL;
    queue_trap(NULL);
    cr_expect_eq(cudaGetLastError(), cudaSuccess, "the kernel has not run yet");
    cr_expect_eq(cudaDeviceSynchronize(), cudaErrorLaunchFailure);
    cr_expect_eq(cudaMalloc(&memory, 4), cudaErrorLaunchFailure);
    cr_expect_eq(cudaGetLastError(), cudaErrorLaunchFailure);
    cr_expect_eq(cudaGetLastError(), cudaErrorLaunchFailure);
    cuda(cudaDeviceReset());
    cuda(cudaMalloc(&memory, 4));
    cuda(cudaFree(memory));
}

typedef struct {
    cudaStream_t a, b;
    float *x; /* FAULT_N of the device, all zero */
} work;

static work work_open(void)
{
    work w = {0};
    cuda(cudaStreamCreateWithFlags(&w.a, cudaStreamNonBlocking));
    cuda(cudaStreamCreateWithFlags(&w.b, cudaStreamNonBlocking));
    cuda(cudaMalloc((void **)&w.x, FAULT_N * sizeof(float)));
    cuda(cudaMemset(w.x, 0, FAULT_N * sizeof(float)));
    cuda(cudaDeviceSynchronize());
    return w;
}

static void work_close(work *w)
{
    cuda(cudaFree(w->x));
    cuda(cudaStreamDestroy(w->a));
    cuda(cudaStreamDestroy(w->b));
}

static float first(const work *w)
{
    float value;
    cuda(cudaMemcpy(&value, w->x, sizeof(value), cudaMemcpyDeviceToHost));
    return value;
}

/* (0 + 3) * 5 or 0 * 5 + 3, as the streams take turns. */
static float unordered(const char *schedule)
{
    work w = work_open();
    cr_assert(dms_cuda_emu_schedule(schedule) == 0);
    queue_add(w.x, 3, w.a);
    queue_scale(w.x, 5, w.b);
    cuda(cudaDeviceSynchronize());
    const float value = first(&w);
    work_close(&w);
    return value;
}

Test(cuda_emu, streams_take_turns_as_the_schedule_says)
{
    bool seen[2] = {false, false};
    cr_expect_eq(unordered("fwd"), 15);
    cr_expect_eq(unordered("rev"), 3);
    for (int seed = 0; seed < 16; seed++) {
        char name[24];
        snprintf(name, sizeof(name), "rand:%d", seed);
        seen[unordered(name) == 15] = true;
    }
    cr_expect(seen[0] && seen[1], "sixteen seeds, one order");
}

Test(cuda_emu, an_event_orders_streams_in_every_schedule)
{
    for (size_t i = 0; i < COUNT(schedules); i++) {
        work w = work_open();
        cudaEvent_t event;
        cr_assert(dms_cuda_emu_schedule(schedules[i]) == 0);
        cuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
        cuda(cudaStreamWaitEvent(w.a, event, 0)); /* never recorded: no effect */
        queue_scale(w.x, 5, w.b);
        queue_add(w.x, 3, w.b);
        cuda(cudaEventRecord(event, w.b));
        cuda(cudaStreamWaitEvent(w.a, event, 0));
        queue_scale(w.x, 5, w.a);
        cr_expect_eq(cudaEventQuery(event), cudaErrorNotReady);
        (void)cudaGetLastError();
        cuda(cudaStreamSynchronize(w.a));
        cr_expect_eq(cudaEventQuery(event), cudaSuccess);
        cr_expect_eq(first(&w), 15, "%s", schedules[i]);
        cuda(cudaEventDestroy(event));
        work_close(&w);
    }
}

Test(cuda_emu, stream_0_waits_for_blocking_streams)
{
    for (size_t i = 0; i < COUNT(schedules); i++) {
        work w = work_open();
        cudaStream_t blocking;
        cr_assert(dms_cuda_emu_schedule(schedules[i]) == 0);
        cuda(cudaStreamCreate(&blocking));
        queue_add(w.x, 3, blocking);
        queue_scale(w.x, 5, NULL);
        queue_add(w.x, 1, blocking);
        cuda(cudaStreamSynchronize(blocking));
        cr_expect_eq(first(&w), 16, "%s", schedules[i]);
        cuda(cudaStreamDestroy(blocking));
        work_close(&w);
    }
}

Test(cuda_emu, pageable_memory_is_read_by_the_call)
{
    work w = work_open();
    float value = 7;
    cuda(cudaMemcpyAsync(w.x, &value, sizeof(value), cudaMemcpyHostToDevice, w.a));
    value = 8;
    cuda(cudaStreamSynchronize(w.a));
    cr_expect_eq(first(&w), 7);
    work_close(&w);
}

Test(cuda_emu, a_copy_beyond_an_allocation_is_refused)
{
    work w = work_open();
    float host[FAULT_N + 1] = {0};
    cr_expect_eq(cudaMemcpy(w.x, host, sizeof(host), cudaMemcpyHostToDevice),
                 cudaErrorInvalidValue);
    cr_expect_eq(cudaMemcpy(host, host, 4, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
    cr_expect_eq(cudaGetLastError(), cudaErrorInvalidValue);
    cr_expect_eq(cudaGetLastError(), cudaSuccess);
    work_close(&w);
}

static cudaGraphExec_t record_steps(const work *w)
{
    cudaGraph_t graph;
    cudaGraphExec_t ready;
    cuda(cudaStreamBeginCapture(w->a, cudaStreamCaptureModeThreadLocal));
    queue_add(w->x, 1, w->a);
    queue_scale(w->x, 2, w->a);
    cuda(cudaStreamEndCapture(w->a, &graph));
    cuda(cudaGraphInstantiate(&ready, graph, 0));
    cuda(cudaGraphDestroy(graph));
    return ready;
}

Test(cuda_emu, a_graph_replays_what_was_recorded_and_recording_runs_nothing)
{
    work w = work_open();
    dms_cuda_emu_counts before, after;
    dms_cuda_emu_count(&before);
    cudaGraphExec_t graph = record_steps(&w);
    cuda(cudaStreamSynchronize(w.a));
    cr_expect_eq(first(&w), 0);
    for (int i = 0; i < 3; i++)
        cuda(cudaGraphLaunch(graph, w.a));
    cuda(cudaStreamSynchronize(w.a));
    cr_expect_eq(first(&w), 14); /* ((0+1)*2+1)*2+1)*2 */
    dms_cuda_emu_count(&after);
    cr_expect_eq(after.replays - before.replays, 3);
    cr_expect_eq(after.launches - before.launches, 0);
    cuda(cudaGraphExecDestroy(graph));
    work_close(&w);
}

Test(cuda_emu, a_recording_takes_in_the_streams_that_wait_for_it)
{
    work w = work_open();
    cudaEvent_t forked, joined;
    cudaGraph_t graph;
    cudaGraphExec_t ready;
    cuda(cudaEventCreate(&forked));
    cuda(cudaEventCreate(&joined));
    for (int join = 0; join < 2; join++) {
        cuda(cudaStreamBeginCapture(w.a, cudaStreamCaptureModeThreadLocal));
        queue_add(w.x, 3, w.a);
        cuda(cudaEventRecord(forked, w.a));
        cuda(cudaStreamWaitEvent(w.b, forked, 0));
        queue_scale(w.x, 5, w.b);
        cuda(cudaEventRecord(joined, w.b));
        if (join)
            cuda(cudaStreamWaitEvent(w.a, joined, 0));
        cr_expect_eq(cudaStreamEndCapture(w.a, &graph),
                     join ? cudaSuccess : cudaErrorStreamCaptureUnjoined);
    }
    cuda(cudaGraphInstantiate(&ready, graph, 0));
    cuda(cudaGraphLaunch(ready, w.a));
    cuda(cudaStreamSynchronize(w.a));
    cr_expect_eq(first(&w), 15);
    cuda(cudaGraphExecDestroy(ready));
    cuda(cudaGraphDestroy(graph));
    cuda(cudaEventDestroy(forked));
    cuda(cudaEventDestroy(joined));
    work_close(&w);
}

static cudaError_t try_malloc(const work *w)
{
    void *memory;
    (void)w;
    return cudaMalloc(&memory, 4);
}

static cudaError_t try_free(const work *w)
{
    return cudaFree(w->x);
}

static cudaError_t try_stream(const work *w)
{
    return cudaStreamSynchronize(w->a);
}

static cudaError_t try_device(const work *w)
{
    (void)w;
    return cudaDeviceSynchronize();
}

static cudaError_t try_copy(const work *w)
{
    float value;
    return cudaMemcpy(&value, w->x, 4, cudaMemcpyDeviceToHost);
}

static cudaError_t try_event(const work *w)
{
    cudaEvent_t event;
    cuda(cudaEventCreate(&event));
    cuda(cudaEventRecord(event, w->b));
    const cudaError_t error = cudaEventSynchronize(event);
    cuda(cudaEventDestroy(event));
    return error;
}

static cudaError_t try_isolation(const work *w)
{
    cudaEvent_t event;
    cuda(cudaEventCreate(&event));
    cuda(cudaEventRecord(event, w->b)); /* outside the recording */
    const cudaError_t error = cudaStreamWaitEvent(w->a, event, 0);
    cuda(cudaEventDestroy(event));
    return error;
}

Test(cuda_emu, a_recording_refuses_what_would_wait_or_allocate)
{
    static const struct {
        const char *name;
        cudaError_t (*call)(const work *w);
        cudaError_t error;
    } rows[] = {
        {"malloc", try_malloc, cudaErrorStreamCaptureUnsupported},
        {"free", try_free, cudaErrorStreamCaptureUnsupported},
        {"stream", try_stream, cudaErrorStreamCaptureUnsupported},
        {"device", try_device, cudaErrorStreamCaptureUnsupported},
        {"copy", try_copy, cudaErrorStreamCaptureUnsupported},
        {"event", try_event, cudaErrorStreamCaptureUnsupported},
        {"isolation", try_isolation, cudaErrorStreamCaptureIsolation},
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        work w = work_open();
        cudaGraph_t graph;
        cuda(cudaStreamBeginCapture(w.a, cudaStreamCaptureModeThreadLocal));
        cr_expect_eq(rows[i].call(&w), rows[i].error, "%s", rows[i].name);
        cr_expect_eq(cudaStreamEndCapture(w.a, &graph), cudaErrorStreamCaptureInvalidated, "%s",
                     rows[i].name);
        cr_expect_null(graph);
        work_close(&w);
    }
}

Test(cuda_emu, counts_what_the_host_does)
{
    dms_cuda_emu_counts before, after;
    work w = work_open();
    dms_cuda_emu_count(&before);
    queue_add(w.x, 1, w.a);
    queue_add(w.x, 1, w.a);
    cuda(cudaStreamSynchronize(w.a));
    (void)first(&w);
    dms_cuda_emu_count(&after);
    cr_expect_eq(after.launches - before.launches, 2);
    cr_expect_eq(after.host_reads - before.host_reads, 1);
    cr_expect_eq(after.synchronisations - before.synchronisations, 2);
    cr_expect_eq(after.allocations - before.allocations, 0);
    work_close(&w);
    dms_cuda_emu_count(&after);
    cr_expect_eq(before.live_bytes - after.live_bytes, (int64_t)(FAULT_N * sizeof(float)));
    cr_expect_geq(after.peak_bytes, before.live_bytes);
}

Test(cuda_emu, device_memory_ends_where_the_environment_says)
{
    void *some, *more;
    size_t available, all;
    setenv("DMS_CUDA_EMU_BYTES", "4096", 1);
    cuda(cudaMalloc(&some, 4000));
    cr_expect_eq(cudaMalloc(&more, 97), cudaErrorMemoryAllocation);
    cr_expect_null(more);
    cr_expect_eq(cudaGetLastError(), cudaErrorMemoryAllocation);
    cuda(cudaMemGetInfo(&available, &all));
    cr_expect_eq(available, 96);
    cr_expect_eq(all, 4096);
    cuda(cudaFree(some));
}

Test(cuda_emu, logs_each_kernel_once)
{
    char path[] = "/tmp/dms_cuda_emu_XXXXXX", text[256];
    work w = work_open();
    const int file = mkstemp(path);
    cr_assert(file >= 0);
    setenv("DMS_CUDA_EMU_LOG", path, 1);
    queue_add(w.x, 1, w.a);
    queue_add(w.x, 1, w.a);
    queue_scale(w.x, 1, w.a);
    cuda(cudaStreamSynchronize(w.a));
    const ssize_t n = read(file, text, sizeof(text) - 1);
    text[n < 0 ? 0 : n] = '\0';
    cr_expect_str_eq(text, "add_kernel\nscale_kernel\n");
    close(file);
    unlink(path);
    work_close(&w);
}

static void *upload(const void *host, size_t bytes)
{
    void *device;
    cuda(cudaMalloc(&device, bytes));
    cuda(cudaMemcpy(device, host, bytes, cudaMemcpyHostToDevice));
    return device;
}

static void download(void *host, void *device, size_t bytes)
{
    cuda(cudaMemcpy(host, device, bytes, cudaMemcpyDeviceToHost));
    cuda(cudaFree(device));
}

static uint32_t pair_of(float low, float high)
{
    return dms_bf16_from_f32(low) | (uint32_t)dms_bf16_from_f32(high) << 16;
}

/* PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type": groupID = lane >> 2, in
 * the group = lane % 4; row and column of each element i of a lane as given there. */
static int a_row(int lane, int i)
{
    const int group = lane >> 2;
    return (i >= 0 && i < 2) || (i >= 4 && i < 6) ? group : group + 8;
}

static int a_column(int lane, int i)
{
    const int in_group = lane % 4;
    return i < 4 ? in_group * 2 + (i & 1) : in_group * 2 + (i & 1) + 8;
}

static int b_row(int lane, int i)
{
    const int in_group = lane % 4;
    return i < 2 ? in_group * 2 + (i & 1) : in_group * 2 + (i & 1) + 8;
}

static int c_row(int lane, int i)
{
    const int group = lane >> 2;
    return i < 2 ? group : group + 8;
}

Test(cuda_emu, mma_multiplies_by_the_layout_of_the_instruction_set)
{
    float a[16][16], b[16][8], c[32][4];
    uint32_t fa[32][4], fb[32][2];
    for (int i = 0; i < 16 * 16; i++)
        a[i / 16][i % 16] = (float)(i * 7 % 31 - 15); /* exact in bf16, as are the sums in f32 */
    for (int i = 0; i < 16 * 8; i++)
        b[i / 8][i % 8] = (float)(i * 11 % 29 - 14);
    for (int lane = 0; lane < 32; lane++) {
        for (int i = 0; i < 8; i += 2)
            fa[lane][i / 2] = pair_of(a[a_row(lane, i)][a_column(lane, i)],
                                      a[a_row(lane, i + 1)][a_column(lane, i + 1)]);
        for (int i = 0; i < 4; i += 2)
            fb[lane][i / 2] =
                pair_of(b[b_row(lane, i)][lane >> 2], b[b_row(lane, i + 1)][lane >> 2]);
        for (int i = 0; i < 4; i++)
            c[lane][i] = (float)(lane * 4 + i);
    }
    float *dc = upload(c, sizeof(c));
    uint32_t *da = upload(fa, sizeof(fa)), *db = upload(fb, sizeof(fb));
    queue_mma(dc, da, db, NULL);
    download(c, dc, sizeof(c));
    for (int lane = 0; lane < 32; lane++) {
        for (int i = 0; i < 4; i++) {
            const int row = c_row(lane, i), column = lane % 4 * 2 + (i & 1);
            float want = (float)(lane * 4 + i);
            for (int k = 0; k < 16; k++)
                want += a[row][k] * b[k][column];
            cr_expect_eq(c[lane][i], want, "lane %d, c%d", lane, i);
        }
    }
    cuda(cudaFree(da));
    cuda(cudaFree(db));
}

/* PTX ISA, "ldmatrix": thread i holds, of each matrix, the elements 2 * (i % 4) and the next of row
 * i / 4; of the transposed matrix with .trans. */
Test(cuda_emu, ldmatrix_hands_out_the_fragments_of_the_instruction_set)
{
    uint16_t tiles[4][8][8];
    uint32_t r[32][4];
    for (int i = 0; i < 256; i++)
        tiles[i / 64][i / 8 % 8][i % 8] = (uint16_t)(i * 3 + 1);
    for (int transposed = 0; transposed < 2; transposed++) {
        uint16_t *d = upload(tiles, sizeof(tiles));
        uint32_t *dr = upload(r, sizeof(r));
        queue_ldmatrix(dr, d, transposed, NULL);
        download(r, dr, sizeof(r));
        for (int lane = 0; lane < 32; lane++) {
            for (int j = 0; j < 4; j++) {
                const int row = lane / 4, at = 2 * (lane % 4);
                const uint32_t low = transposed ? tiles[j][at][row] : tiles[j][row][at];
                const uint32_t high = transposed ? tiles[j][at + 1][row] : tiles[j][row][at + 1];
                cr_expect_eq(r[lane][j], low | high << 16, "lane %d, r%d", lane, j);
            }
        }
        cuda(cudaFree(d));
    }
}

Test(cuda_emu, a_wait_completes_all_but_the_newest_groups)
{
    float x[12], seen[4][3] = {{0}};
    for (int i = 0; i < 12; i++)
        x[i] = (float)(i + 1);
    float *dx = upload(x, sizeof(x)), *dseen = upload(seen, sizeof(seen));
    queue_groups(dseen, dx, NULL);
    download(seen, dseen, sizeof(seen));
    for (int done = 0; done < 4; done++) {
        for (int group = 0; group < 3; group++) {
            const float want = group == 2 ? 0 : x[4 * group];
            cr_expect(group < done ? seen[done][group] == want : isnan(seen[done][group]),
                      "%d groups done, group %d is %g", done, group, (double)seen[done][group]);
        }
    }
    cuda(cudaFree(dx));
}

Test(cuda_emu, votes_shuffles_and_reductions_follow_their_definitions)
{
    int out[8][32] = {{0}};
    int *device = upload(out, sizeof(out));
    queue_warp(device, 32, NULL);
    download(out, device, sizeof(out));
    for (int lane = 0; lane < 32; lane++) {
        cr_expect_eq(out[0][lane], 0x49249249);
        cr_expect_eq(out[1][lane], 3);
        cr_expect_eq(out[2][lane], lane < 3 ? lane : lane - 3);
        cr_expect_eq(out[3][lane], lane % 8 < 6 ? lane + 2 : lane);
        cr_expect_eq(out[4][lane], 496);
        cr_expect_eq(out[5][lane], 31);
        cr_expect_eq(out[6][lane], lane % 2 ? 33 : 0);
        cr_expect_eq(out[7][lane], (int)(0x11111111u << lane % 4));
    }
}
