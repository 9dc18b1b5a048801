#include "infer/bench_open.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/source.h"
#include "infer/bench_print.h"

/* Keeps the compiler from leaving out what is read. */
static volatile unsigned sink;

/* Finds and touches every tensor. */
static unsigned touch_all(const dms_source *s)
{
    unsigned sum = 0;
    for (int64_t i = 0; i < dms_source_count(s); i++) {
        size_t bytes;
        const dms_tensor_info *t = dms_source_find(s, dms_source_info(s, i)->name);
        const uint8_t *data = dms_source_stored(s, t->name, &bytes);
        if (data && bytes)
            sum += data[0] + data[bytes - 1];
    }
    return sum;
}

static dms_status open_once(double *seconds, const char *path)
{
    dms_source *s;
    const double start = dms_bench_now();
    DMS_TRY(dms_source_open(&s, path));
    sink = touch_all(s);
    *seconds = dms_bench_now() - start;
    dms_source_close(s);
    return DMS_OK;
}

dms_status dms_bench_open(dms_sample *seconds, const char *path, int repetitions)
{
    *seconds = (dms_sample){0};
    for (int i = -1; i < repetitions; i++) {
        double once;
        DMS_TRY(open_once(&once, path));
        if (i >= 0)
            dms_sample_add(seconds, once);
    }
    return DMS_OK;
}

/* ---- matrices ------------------------------------------------------------------------------- */

static bool is_matrix(const dms_tensor_info *t)
{
    return t->rank == 2 && t->type != DMS_FILE_OTHER && t->type != DMS_FILE_I32 &&
           t->type != DMS_FILE_I64;
}

static size_t bf16_bytes(const dms_tensor_info *t)
{
    return (size_t)(t->shape[0] * t->shape[1]) * 2;
}

/* What there is to read; *largest and *total in bytes of bf16. */
static dms_bench_reading survey(const dms_source *s, size_t *largest, size_t *total)
{
    dms_bench_reading r = {{0}, 0, 0};
    *largest = *total = 0;
    for (int64_t i = 0; i < dms_source_count(s); i++) {
        const dms_tensor_info *t = dms_source_info(s, i);
        const char *name = dms_file_type_name(t->type);
        if (!is_matrix(t))
            continue;
        const size_t bytes = bf16_bytes(t), used = strlen(r.types);
        r.matrices++;
        r.numbers += (int64_t)(bytes / 2);
        *total += bytes;
        *largest = bytes > *largest ? bytes : *largest;
        if (!strstr(r.types, name) && used + strlen(name) + 2 < sizeof(r.types))
            snprintf(r.types + used, sizeof(r.types) - used, "%s%s", used ? "," : "", name);
    }
    return r;
}

static dms_status read_once(const dms_source *s, char *buffer, size_t room)
{
    size_t at = 0;
    for (int64_t i = 0; i < dms_source_count(s); i++) {
        const dms_tensor_info *t = dms_source_info(s, i);
        if (!is_matrix(t))
            continue;
        at = at + bf16_bytes(t) > room ? 0 : at;
        DMS_TRY(dms_source_read(s, t->name, buffer + at, DMS_BF16));
        at += (bf16_bytes(t) + 63) / 64 * 64;
    }
    return DMS_OK;
}

static dms_status read_all(dms_sample *read, dms_sample *write, const dms_source *s, char *buffer,
                           size_t room, int repetitions)
{
    double total = 0;
    for (int64_t i = 0; i < dms_source_count(s); i++)
        total += is_matrix(dms_source_info(s, i)) ? (double)bf16_bytes(dms_source_info(s, i)) : 0;
    for (int i = -1; i < repetitions; i++) {
        double start = dms_bench_now();
        memset(buffer, i & 255, room);
        const double filled = dms_bench_now() - start;
        start = dms_bench_now();
        DMS_TRY(read_once(s, buffer, room));
        const double seconds = dms_bench_now() - start;
        if (i < 0)
            continue; /* pages of the buffer and of the file come in */
        dms_sample_add(write, (double)room / filled);
        dms_sample_add(read, total / seconds);
    }
    return DMS_OK;
}

dms_status dms_bench_read(dms_sample *read, dms_sample *write, dms_bench_reading *what,
                          const char *path, int repetitions)
{
    enum { MOST = 1 << 30 };
    dms_source *s;
    dms_status status;
    char *buffer = NULL;
    size_t largest, total;
    *read = *write = (dms_sample){0};
    DMS_TRY(dms_source_open(&s, path));
    *what = survey(s, &largest, &total);
    const size_t padded = total + 64 * (size_t)what->matrices;
    const size_t room = padded < MOST ? padded : largest > MOST ? largest : MOST;
    if (!what->matrices)
        DMS_TRY_OR(done, dms_fail(DMS_ERR_ARG, "%s has no matrix of numbers to read", path));
    buffer = aligned_alloc(64, (room + 63) / 64 * 64);
    if (!buffer)
        DMS_TRY_OR(done, dms_fail(DMS_ERR_NOMEM, "no memory for %zu bytes of bf16", room));
    DMS_TRY_OR(done, read_all(read, write, s, buffer, room, repetitions));
done:
    free(buffer);
    dms_source_close(s);
    return status;
}

/* ---- output --------------------------------------------------------------------------------- */

dms_status dms_bench_opening(const char *path, int repetitions, bool json)
{
    dms_sample seconds, read, write;
    dms_bench_reading what;
    dms_bench_result open = {
        .bench = "open", .unit = "ms", .scale = 1e-3, .share = -1, .least = true};
    dms_bench_result rate = {.bench = "open", .unit = "GB/s", .scale = 1e9, .share = -1};
    DMS_TRY(dms_bench_open(&seconds, path, repetitions));
    DMS_TRY(dms_bench_read(&read, &write, &what, path, repetitions));
    snprintf(open.what, sizeof(open.what), "to usable tensors");
    snprintf(open.note, sizeof(open.note), "%" PRId64 " matrices, %.1f M numbers in them",
             what.matrices, (double)what.numbers / 1e6);
    DMS_TRY(dms_bench_print(&open, &seconds, json));
    snprintf(rate.what, sizeof(rate.what), "memory write, 1 thread");
    DMS_TRY(dms_bench_print(&rate, &write, json));
    rate.share = dms_sample_mean(&read) / dms_sample_mean(&write);
    snprintf(rate.what, sizeof(rate.what), "%.40s to bf16, 1 thread", what.types);
    snprintf(rate.note, sizeof(rate.note), "of writing memory; bytes of bf16");
    return dms_bench_print(&rate, &read, json);
}
