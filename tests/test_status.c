/* The error trail, the arena and the memory of the CPU device. */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernels/cpu/workspace.h"
#include "tests/rig.h"

/* ---- status ------------------------------------------------------------------------------ */

static dms_status inner(void)
{
    return dms_fail(DMS_ERR_SHAPE, "y is [%d], expected [%d]", 8, 9);
}

static dms_status outer(void)
{
    DMS_TRY(inner());
    return DMS_OK;
}

static dms_status owner(bool *cleaned)
{
    dms_status status = DMS_OK;
    DMS_TRY_OR(done, outer());
    status = DMS_ERR_ARG;
done:
    *cleaned = true;
    return status;
}

Test(status, trail_names_message_code_and_every_place)
{
    bool cleaned = false;
    cr_assert(owner(&cleaned) == DMS_ERR_SHAPE && cleaned);
    const char *text = dms_error_text();
    cr_assert(strstr(text, "y is [8], expected [9] [tensor shapes do not fit] <- "), "%s", text);
    int places = 0;
    for (const char *at = text; (at = strstr(at, "test_status.c:")); at++)
        places++;
    cr_assert(places == 3, "%s", text);
    cr_assert(!strcmp(dms_error_message(), "y is [8], expected [9]"), "%s", dms_error_message());
}

Test(status, remarks_are_for_people_too)
{
    inner();
    dms_trail_note("layer %d", 3);
    cr_assert(!strcmp(dms_error_message(), "y is [8], expected [9] (layer 3)"), "%s",
              dms_error_message());
    cr_assert(strstr(dms_error_text(), " <- layer 3"), "%s", dms_error_text());
}

Test(status, next_failure_replaces_the_last_and_may_quote_it)
{
    inner();
    cr_assert(dms_fail(DMS_ERR_IO, "cannot go on: %s", dms_error_message()) == DMS_ERR_IO);
    cr_assert(!strcmp(dms_error_message(), "cannot go on: y is [8], expected [9]"), "%s",
              dms_error_message());
    must(DMS_OK);
    dms_fail(DMS_ERR_IO, "short");
    cr_assert(!strcmp(dms_error_message(), "short"), "%s", dms_error_message());
}

Test(status, text_that_does_not_fit_is_cut)
{
    enum { LONG = 5000 };
    char *text = malloc(LONG + 1);
    memset(text, 'x', LONG);
    text[LONG] = 0;
    dms_fail(DMS_ERR_IO, "begin %s", text);
    for (int i = 0; i < 1000; i++) {
        dms_trail_add(text, i);
        dms_trail_note("%s", text);
    }
    cr_assert(!strncmp(dms_error_message(), "begin xxx", 9));
    cr_assert(strlen(dms_error_message()) < LONG && strlen(dms_error_text()) < LONG);
    dms_fail(DMS_ERR_IO, "short");
    cr_assert(!strcmp(dms_error_message(), "short"), "%s", dms_error_message());
    free(text);
}

static void *fail_elsewhere(void *unused)
{
    (void)unused;
    dms_fail(DMS_ERR_IO, "elsewhere");
    return NULL;
}

Test(status, threads_do_not_see_the_failures_of_others)
{
    pthread_t thread;
    inner();
    cr_assert(!pthread_create(&thread, NULL, fail_elsewhere, NULL));
    cr_assert(!pthread_join(thread, NULL));
    cr_assert(!strcmp(dms_error_message(), "y is [8], expected [9]"), "%s", dms_error_message());
}

/* ---- arena ------------------------------------------------------------------------------- */

/* A device in front of another that runs out of memory after some allocations. */
typedef struct {
    dms_device head;
    dms_device *real;
    int left, live; /* allocations that will succeed; those not yet released */
} short_device;

static dms_status short_alloc(dms_device *dev, void **out, size_t bytes)
{
    short_device *s = (short_device *)dev;
    if (s->left-- <= 0)
        return dms_fail(DMS_ERR_NOMEM, "nothing left");
    s->live++;
    return s->real->alloc(s->real, out, bytes);
}

static void short_release(dms_device *dev, void *ptr)
{
    short_device *s = (short_device *)dev;
    s->live -= ptr != NULL;
    s->real->release(s->real, ptr);
}

static short_device run_short(dms_device *real, int left)
{
    short_device s = {*real, real, left, 0};
    s.head.alloc = short_alloc;
    s.head.release = short_release;
    return s;
}

Test(arena, places_tensors_side_by_side_and_rewinds)
{
    rig r = rig_open(DMS_CPU);
    dms_arena arena;
    must(dms_arena_open(&arena, r.dev, 4096));
    dms_tensor a = rig_shape(3, 5, 0, 0), b = rig_shape(64, 0, 0, 0), c = rig_shape(65, 0, 0, 0);
    must(dms_arena_place(&arena, &a));
    const size_t mark = arena.used;
    must(dms_arena_place(&arena, &b));
    must(dms_arena_place(&arena, &c));
    cr_assert(a.device == r.dev && (char *)a.data == arena.base);
    cr_assert((char *)b.data == arena.base + 256 && (char *)c.data == arena.base + 512);
    cr_assert(arena.used == 1024 && arena.peak == 1024, "%zu", arena.used);
    arena.used = mark;
    must(dms_arena_place(&arena, &c));
    cr_assert((char *)c.data == arena.base + 256);
    cr_assert(arena.used == 768 && arena.peak == 1024);
    dms_arena_close(&arena);
    dms_arena_close(&arena);
    rig_close(&r);
}

Test(arena, says_how_much_is_missing_when_it_is_full)
{
    rig r = rig_open(DMS_CPU);
    dms_arena arena;
    must(dms_arena_open(&arena, r.dev, 1024));
    dms_tensor fits = rig_shape(256, 0, 0, 0), too_much = rig_shape(65, 0, 0, 0);
    must(dms_arena_place(&arena, &fits));
    cr_assert(dms_arena_place(&arena, &too_much) == DMS_ERR_NOMEM && !too_much.data);
    cr_assert(strstr(dms_error_text(), "arena of 1024 bytes is full, 512 more needed"), "%s",
              dms_error_text());
    cr_assert(arena.used == 1024 && arena.peak == 1024);
    dms_arena_close(&arena);
    rig_close(&r);
}

Test(arena, measures_what_a_real_one_needs)
{
    rig r = rig_open(DMS_CPU);
    dms_arena measure = dms_arena_measure(r.dev), real;
    must(dms_arena_open(&real, r.dev, 1 << 20));
    const void *last = NULL;
    for (int64_t n = 1; n < 400; n += 37) {
        dms_tensor a = rig_shape(n, 3, 0, 0), b = a;
        must(dms_arena_place(&measure, &a));
        must(dms_arena_place(&real, &b));
        cr_assert(a.data && a.data != last && measure.peak == real.peak);
        last = a.data;
    }
    dms_arena_close(&measure);
    dms_arena_close(&real);
    rig_close(&r);
}

Test(arena, out_of_memory_is_a_status)
{
    rig r = rig_open(DMS_CPU);
    short_device s = run_short(r.dev, 0);
    dms_arena arena = {.size = 7};
    cr_assert(dms_arena_open(&arena, &s.head, 1024) == DMS_ERR_NOMEM && arena.size == 7);
    rig_close(&r);
}

Test(tape, out_of_memory_is_a_status_that_leaves_nothing_behind)
{
    rig r = rig_open(DMS_CPU);
    for (int left = 0; left < 2; left++) {
        short_device s = run_short(r.dev, left);
        dms_tape *tape = NULL;
        const dms_tape_options options = {
            .device = &s.head, .max_nodes = 4, .keep_bytes = 256, .scratch_bytes = 256};
        cr_assert(dms_tape_open(&tape, &options) == DMS_ERR_NOMEM && !tape && !s.live);
    }
    dms_tape_close(NULL);
    rig_close(&r);
}

/* ---- device ------------------------------------------------------------------------------ */

Test(device, memory_is_aligned_and_keeps_what_is_uploaded)
{
    static const size_t sizes[] = {0, 1, 63, 64, 65, 4096, (2 << 20) + 5}; /* zero: 1 MiB a piece */
    rig r = rig_open(DMS_CPU);
    for (size_t s = 0; s < COUNT(sizes); s++) {
        char *host = malloc(sizes[s] + 1), *back = malloc(sizes[s] + 1);
        void *there = NULL;
        for (size_t i = 0; i < sizes[s]; i++)
            host[i] = (char)(i * 31 + s);
        must(r.dev->alloc(r.dev, &there, sizes[s]));
        cr_assert(there && (uintptr_t)there % 64 == 0);
        must(r.dev->upload(r.dev, there, host, sizes[s]));
        must(r.dev->download(r.dev, back, there, sizes[s]));
        cr_assert(!memcmp(host, back, sizes[s]));
        must(r.dev->zero(r.dev, there, sizes[s]));
        must(r.dev->download(r.dev, back, there, sizes[s]));
        for (size_t i = 0; i < sizes[s]; i++)
            cr_assert(!back[i]);
        if (s % 2) /* the others end with the device */
            r.dev->release(r.dev, there);
        free(host);
        free(back);
    }
    r.dev->release(r.dev, NULL);
    r.dev->close(NULL);
    rig_close(&r);
}

#ifndef __SANITIZE_ADDRESS__ /* it ends the program instead */
Test(device, out_of_memory_is_a_status)
{
    rig r = rig_open(DMS_CPU);
    void *there = NULL;
    cr_assert(r.dev->alloc(r.dev, &there, SIZE_MAX / 2) == DMS_ERR_NOMEM && !there);
    cr_assert(strstr(dms_error_text(), "the cpu has no 9223372036854775807 bytes left"), "%s",
              dms_error_text());
    rig_close(&r);
}
#endif

Test(device, says_what_it_is)
{
    dms_device *dev = NULL;
    must(dms_device_open(&dev, DMS_CPU, 0));
    cr_assert(dev->kind == DMS_CPU && !strcmp(dev->name, "cpu") && dev->threads >= 1);
    dev->close(dev);
    must(dms_device_open(&dev, DMS_CPU, 3));
    cr_assert(dev->threads == 3);
    dev->close(dev);
}

Test(device, absent_hardware_is_a_status)
{
    dms_device *dev = NULL;
    const dms_status status = dms_device_open(&dev, DMS_CUDA, 0);
    if (!status) {
        dev->close(dev);
        cr_skip_test("this machine has a CUDA device");
    }
    cr_assert(status == DMS_ERR_NODEVICE && !dev);
    cr_assert(strstr(dms_error_message(), "CUDA"), "%s", dms_error_message());
}

Test(device, scratch_gives_each_thread_a_piece_and_grows)
{
    rig r = rig_open_threads(DMS_CPU, 3);
    for (size_t bytes = 1; bytes < 1 << 20; bytes = bytes * 7 + 1) {
        dms_cpu_workspace work;
        must(dms_cpu_workspace_get(&work, r.dev, bytes));
        cr_assert(work.stride >= bytes && work.stride % 64 == 0);
        cr_assert((uintptr_t)work.base % 64 == 0);
        for (size_t i = 0; i < 3; i++)
            memset(work.base + i * work.stride, 1, bytes);
    }
    rig_close(&r);
}

static bool packs_anew(rig *r, const char *weight, int kind)
{
    void *copy = NULL;
    bool fresh = false;
    must(dms_cpu_packed_get(&copy, &fresh, r->dev, weight, kind, 128));
    cr_assert(copy && (uintptr_t)copy % 64 == 0);
    if (fresh)
        memset(copy, kind, 128);
    cr_assert(((char *)copy)[127] == (char)kind);
    return fresh;
}

/* A write anywhere in an allocation may change any weight that reaches there, so all its copies go;
 * those of another allocation stay. */
Test(device, packed_weights_live_until_their_memory_is_written_or_released)
{
    rig r = rig_open(DMS_CPU);
    void *block = NULL, *other = NULL;
    must(r.dev->alloc(r.dev, &block, 512));
    must(r.dev->alloc(r.dev, &other, 512));
    const char *weight = block, *apart = other;
    cr_assert(packs_anew(&r, weight, 1) && packs_anew(&r, weight, 2) && packs_anew(&r, apart, 1));
    cr_assert(!packs_anew(&r, weight, 1) && !packs_anew(&r, weight, 2));
    must(r.dev->upload(r.dev, (char *)block + 100, "w", 1)); /* into the middle of the weight */
    cr_assert(packs_anew(&r, weight, 1) && packs_anew(&r, weight, 2) && !packs_anew(&r, apart, 1));
    must(r.dev->zero(r.dev, block, 512));
    cr_assert(packs_anew(&r, weight, 1) && !packs_anew(&r, apart, 1));
    r.dev->release(r.dev, block); /* the sanitizer build sees a copy that outlives it as a leak */
    r.dev->release(r.dev, other);
    rig_close(&r);
}
