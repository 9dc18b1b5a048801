#include "infer/bench_rate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "kernels/arena.h"
#include "kernels/ops.h"
#include "kernels/rng.h"

void dms_sample_add(dms_sample *s, double value)
{
    if (s->n < DMS_MAX_REPETITIONS)
        s->values[s->n++] = value;
}

double dms_sample_mean(const dms_sample *s)
{
    double sum = 0;
    for (int i = 0; i < s->n; i++)
        sum += s->values[i];
    return s->n ? sum / s->n : 0;
}

double dms_sample_deviation(const dms_sample *s)
{
    const double mean = dms_sample_mean(s);
    double sum = 0;
    for (int i = 0; i < s->n; i++)
        sum += (s->values[i] - mean) * (s->values[i] - mean);
    return s->n > 1 ? sqrt(sum / (s->n - 1)) : 0;
}

double dms_sample_best(const dms_sample *s)
{
    double best = 0;
    for (int i = 0; i < s->n; i++)
        best = s->values[i] > best ? s->values[i] : best;
    return best;
}

double dms_sample_least(const dms_sample *s)
{
    double least = s->n ? s->values[0] : 0;
    for (int i = 1; i < s->n; i++)
        least = s->values[i] < least ? s->values[i] : least;
    return least;
}

double dms_bench_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

dms_status dms_bench_wait(const dms_tensor *t)
{
    float first;
    return t->device->download(t->device, &first, t->data, dms_dtype_bytes(t->dtype));
}

/* Noise in [-1, 1): a product of zeros can be faster. */
static dms_status fill(dms_tensor *t, dms_arena *arena)
{
    const int64_t n = dms_count(t);
    dms_tensor f32 = *t;
    dms_status status = DMS_OK;
    f32.dtype = DMS_F32;
    const size_t mark = arena->used;
    DMS_TRY(dms_arena_place(arena, &f32));
    float *host = malloc((size_t)n * sizeof(float));
    if (!host)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a matrix of %lld numbers", (long long)n);
    for (int64_t i = 0; i < n; i++)
        host[i] = 2 * dms_uniform(dms_philox(1, (uint32_t)i, (uint32_t)(i >> 32), 0, 0)) - 1;
    DMS_TRY_OR(done, t->device->upload(t->device, f32.data, host, (size_t)n * sizeof(float)));
    DMS_TRY_OR(done, dms_cast(t, &f32));
done:
    free(host);
    arena->used = mark;
    return status;
}

/* Seconds of `n` products. */
static dms_status time_products(double *seconds, dms_tensor *const yxw[3], int n)
{
    const double start = dms_bench_now();
    for (int i = 0; i < n; i++)
        DMS_TRY(dms_linear(yxw[0], yxw[1], yxw[2], NULL, NULL));
    DMS_TRY(dms_bench_wait(yxw[0]));
    *seconds = dms_bench_now() - start;
    return DMS_OK;
}

static dms_status run_products(dms_sample *rate, dms_arena *arena, const dms_bench_product *p,
                               int repetitions)
{
    dms_tensor y = {.dtype = DMS_F32, .rank = 2, .shape = {p->rows, p->out}};
    dms_tensor x = {.dtype = DMS_F32, .rank = 2, .shape = {p->rows, p->in}};
    dms_tensor w = {.dtype = p->dtype, .rank = 2, .shape = {p->out, p->in}};
    dms_tensor *const yxw[] = {&y, &x, &w};
    for (int i = 0; i < 3; i++)
        DMS_TRY(dms_arena_place(arena, yxw[i]));
    DMS_TRY(fill(&x, arena));
    DMS_TRY(fill(&w, arena));
    w.frozen = true;
    const double flop = 2.0 * (double)p->rows * (double)p->out * (double)p->in;
    double seconds;
    int n = 1;
    DMS_TRY(time_products(&seconds, yxw, 1)); /* packs w */
    for (seconds = 0; seconds < 0.05 && n < 1 << 20; n *= 2)
        DMS_TRY(time_products(&seconds, yxw, n));
    for (int i = 0; i < repetitions; i++) {
        DMS_TRY(time_products(&seconds, yxw, n));
        dms_sample_add(rate, flop * n / seconds);
    }
    return DMS_OK;
}

dms_status dms_bench_gemm(dms_sample *rate, const dms_bench_product *p, int repetitions)
{
    const double matrix = (double)p->out * (double)p->in, input = (double)p->rows * (double)p->in;
    const double numbers = 2 * matrix + (double)p->rows * (double)p->out + 2 * input;
    dms_arena arena = {0};
    DMS_TRY(dms_arena_open(&arena, p->device, (size_t)numbers * sizeof(float) + 4096));
    *rate = (dms_sample){0};
    const dms_status status = run_products(rate, &arena, p, repetitions);
    dms_arena_close(&arena);
    return status;
}

/* Integers, so that the compiler may add them in any order; eight sums hide the latency. Measured
 * on Zen 4: wider vectors read no faster, large pages read 12 % faster. */
static uint64_t sum_block(const uint64_t *x, size_t n)
{
    uint64_t sums[8] = {0}, all = 0;
    for (size_t i = 0; i + 8 <= n; i += 8)
        for (size_t k = 0; k < 8; k++)
            sums[k] += x[i + k];
    for (size_t k = 0; k < 8; k++)
        all += sums[k];
    return all;
}

static uint64_t sum_all(const uint64_t *x, size_t n, int threads)
{
    const size_t share = n / (size_t)threads;
    uint64_t all = 0;
#pragma omp parallel for num_threads(threads) reduction(+ : all) schedule(static)
    for (int i = 0; i < threads; i++)
        all += sum_block(x + (size_t)i * share, share);
    return all;
}

dms_status dms_bench_bandwidth(dms_sample *rate, int threads, size_t bytes, int repetitions)
{
    const size_t n = bytes / sizeof(uint64_t) / (size_t)threads * (size_t)threads;
    const size_t page = (size_t)2 << 20; /* large pages where the system gives them */
    uint64_t *x = aligned_alloc(page, (n * sizeof(*x) + page - 1) / page * page);
    if (!x)
        return dms_fail(DMS_ERR_NOMEM, "no memory for a buffer of %zu bytes", bytes);
    madvise(x, n * sizeof(*x), MADV_HUGEPAGE);
    memset(x, 1, n * sizeof(*x));
    volatile uint64_t sum = sum_all(x, n, threads);
    *rate = (dms_sample){0};
    for (int i = 0; i < repetitions; i++) {
        const double start = dms_bench_now();
        sum = sum + sum_all(x, n, threads);
        dms_sample_add(rate, (double)(n * sizeof(*x)) / (dms_bench_now() - start));
    }
    free(x);
    return DMS_OK;
}

/* Seconds of `n` copies. */
static dms_status time_copies(double *seconds, dms_tensor *to, const dms_tensor *from, int n)
{
    const double start = dms_bench_now();
    for (int i = 0; i < n; i++)
        DMS_TRY(dms_cast(to, from));
    DMS_TRY(dms_bench_wait(to));
    *seconds = dms_bench_now() - start;
    return DMS_OK;
}

static dms_status run_copies(dms_sample *rate, dms_arena *arena, int64_t n, int repetitions)
{
    enum { COPIES = 8 }; /* of one measurement, so that waiting for the last does not count */
    dms_tensor from = {.dtype = DMS_F32, .rank = 1, .shape = {n}}, to = from;
    double seconds;
    DMS_TRY(dms_arena_place(arena, &from));
    DMS_TRY(dms_arena_place(arena, &to));
    DMS_TRY(from.device->zero(from.device, from.data, dms_tensor_bytes(&from)));
    DMS_TRY(time_copies(&seconds, &to, &from, 1));
    for (int i = 0; i < repetitions; i++) {
        DMS_TRY(time_copies(&seconds, &to, &from, COPIES));
        dms_sample_add(rate, 2.0 * COPIES * (double)dms_tensor_bytes(&from) / seconds);
    }
    return DMS_OK;
}

dms_status dms_bench_copy(dms_sample *rate, dms_device *device, size_t bytes, int repetitions)
{
    const int64_t n = (int64_t)(bytes / sizeof(float));
    dms_arena arena = {0};
    *rate = (dms_sample){0};
    DMS_TRY(dms_arena_open(&arena, device, 2 * bytes + 4096));
    const dms_status status = run_copies(rate, &arena, n, repetitions);
    dms_arena_close(&arena);
    return status;
}
