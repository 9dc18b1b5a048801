/* The CPU device: memory, scratch, packed weights, and the choice of an instruction set. */
#include <dnnl.h>
#include <omp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "kernels/cpu/workspace.h"
#include "kernels/ops.h"

extern const dms_op_table dms_cpu_base_table, dms_cpu_v3_table, dms_cpu_v4_table;

typedef struct block {
    struct block *next;
    char *start;
    size_t bytes;
} block;

typedef struct packed {
    struct packed *next;
    const char *weight;
    int kind;
    void *data;
} packed;

/* `head` comes first, so that a dms_device * of kind DMS_CPU is one of these. */
typedef struct {
    dms_device head;
    block *blocks;   /* what alloc gave out */
    packed *weights; /* packed copies of frozen weights */
    char *scratch;
    size_t scratch_bytes; /* in all */
} cpu_device;

static const size_t line = 64; /* bytes of a cache line and of the widest vector */

static size_t round_up(size_t bytes)
{
    return (bytes + line - 1) / line * line;
}

/* Large blocks ask for huge pages: fewer faults at the first touch, fewer TLB misses after. */
static dms_status aligned(void **out, size_t bytes)
{
    const size_t huge = (size_t)2 << 20;
    const bool large = bytes >= 4 * huge;
    const size_t align = large ? huge : line;
    const size_t size = bytes ? (bytes + align - 1) / align * align : align;

    *out = size < bytes ? NULL : aligned_alloc(align, size);
    if (!*out)
        return dms_fail(DMS_ERR_NOMEM, "the cpu has no %zu bytes left", bytes);
    if (large)
        (void)madvise(*out, size, MADV_HUGEPAGE); /* advice: refused is as good as not given */
    return DMS_OK;
}

static dms_status cpu_alloc(dms_device *dev, void **out, size_t bytes)
{
    cpu_device *cpu = (cpu_device *)dev;
    block *b = malloc(sizeof(*b));
    if (!b)
        return dms_fail(DMS_ERR_NOMEM, "the cpu has no %zu bytes left", sizeof(*b));
    const dms_status status = aligned(out, bytes);
    if (status) {
        free(b);
        return status;
    }
    *b = (block){cpu->blocks, *out, bytes};
    cpu->blocks = b;
    return DMS_OK;
}

/* Forgets the packed copies of weights in [start, start + bytes). */
static void drop_packed(cpu_device *cpu, const char *start, size_t bytes)
{
    for (packed **at = &cpu->weights; *at;) {
        packed *p = *at;
        if ((uintptr_t)p->weight - (uintptr_t)start >= bytes) {
            at = &p->next;
            continue;
        }
        *at = p->next;
        free(p->data);
        free(p);
    }
}

static void cpu_release(dms_device *dev, void *ptr)
{
    cpu_device *cpu = (cpu_device *)dev;
    for (block **at = &cpu->blocks; *at; at = &(*at)->next) {
        block *b = *at;
        if (b->start != ptr)
            continue;
        drop_packed(cpu, b->start, b->bytes);
        *at = b->next;
        free(b->start);
        free(b);
        return;
    }
}

/* Forgets the packed copies of weights that a write to `dst` may change: all in its allocation. */
static void drop_written(cpu_device *cpu, const char *dst, size_t bytes)
{
    const block *b = cpu->weights ? cpu->blocks : NULL;
    while (b && (uintptr_t)dst - (uintptr_t)b->start >= b->bytes)
        b = b->next;
    if (b)
        drop_packed(cpu, b->start, b->bytes);
    else
        drop_packed(cpu, dst, bytes);
}

static dms_status cpu_upload(dms_device *dev, void *dst, const void *src, size_t bytes)
{
    drop_written((cpu_device *)dev, dst, bytes);
    memcpy(dst, src, bytes);
    return DMS_OK;
}

static dms_status cpu_download(dms_device *dev, void *dst, const void *src, size_t bytes)
{
    (void)dev;
    memcpy(dst, src, bytes);
    return DMS_OK;
}

/* What Linux says that programs can take without swapping. */
static size_t cpu_free_bytes(dms_device *dev)
{
    char text[128];
    unsigned long long kib = 0;
    FILE *file = fopen("/proc/meminfo", "r");
    (void)dev;
    while (file && fgets(text, sizeof(text), file) &&
           sscanf(text, "MemAvailable: %llu kB", &kib) != 1)
        continue;
    if (file)
        fclose(file);
    return (size_t)kib << 10;
}

static dms_status cpu_zero(dms_device *dev, void *dst, size_t bytes)
{
    const size_t chunk = (size_t)1 << 20;
    drop_written((cpu_device *)dev, dst, bytes);
#pragma omp parallel for schedule(static) if (bytes > chunk)
    for (size_t at = 0; at < bytes; at += chunk)
        memset((char *)dst + at, 0, bytes - at < chunk ? bytes - at : chunk);
    return DMS_OK;
}

static void cpu_close(dms_device *dev)
{
    cpu_device *cpu = (cpu_device *)dev;
    if (!cpu)
        return;
    while (cpu->blocks)
        cpu_release(dev, cpu->blocks->start);
    drop_packed(cpu, NULL, SIZE_MAX); /* of weights in memory that was not ours */
    free(cpu->scratch);
    free(cpu);
}

dms_status dms_cpu_workspace_get(dms_cpu_workspace *out, dms_device *dev, size_t bytes_per_thread)
{
    cpu_device *cpu = (cpu_device *)dev;
    const size_t stride = round_up(bytes_per_thread);
    const size_t bytes = stride * (size_t)omp_get_max_threads();
    if (bytes > cpu->scratch_bytes) {
        void *grown = NULL;
        DMS_TRY(aligned(&grown, bytes));
        free(cpu->scratch);
        cpu->scratch = grown;
        cpu->scratch_bytes = bytes;
    }
    *out = (dms_cpu_workspace){cpu->scratch, stride};
    return DMS_OK;
}

dms_status dms_cpu_packed_get(void **out, bool *fresh, dms_device *dev, const void *weight,
                              int kind, size_t bytes)
{
    cpu_device *cpu = (cpu_device *)dev;
    for (packed *p = cpu->weights; p; p = p->next)
        if (p->weight == weight && p->kind == kind) {
            *fresh = false;
            *out = p->data;
            return DMS_OK;
        }
    packed *p = malloc(sizeof(*p));
    if (!p)
        return dms_fail(DMS_ERR_NOMEM, "the cpu has no %zu bytes left", sizeof(*p));
    void *data = NULL;
    const dms_status status = aligned(&data, bytes);
    if (status) {
        free(p);
        return status;
    }
    *p = (packed){cpu->weights, weight, kind, data};
    cpu->weights = p;
    *fresh = true;
    *out = data;
    return DMS_OK;
}

static const dms_op_table *best_table(void)
{
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        return &dms_cpu_v4_table;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("bmi2"))
        return &dms_cpu_v3_table;
    return &dms_cpu_base_table;
}

dms_status dms_cpu_open(dms_device **out, int threads)
{
    cpu_device *cpu = calloc(1, sizeof(*cpu));
    if (!cpu)
        return dms_fail(DMS_ERR_NOMEM, "the cpu has no %zu bytes left", sizeof(*cpu));
    if (threads <= 0)
        threads = omp_get_num_procs();
    omp_set_num_threads(threads);
    cpu->head = (dms_device){.kind = DMS_CPU,
                             .name = "cpu",
                             .ops = best_table(),
                             .threads = threads,
                             .alloc = cpu_alloc,
                             .release = cpu_release,
                             .upload = cpu_upload,
                             .download = cpu_download,
                             .zero = cpu_zero,
                             .close = cpu_close,
                             .free_bytes = cpu_free_bytes};
    const dnnl_cpu_isa_t isa = dnnl_get_effective_cpu_isa();
    cpu->head.has_bf16 = (isa & dnnl_cpu_isa_avx512_core_bf16) == dnnl_cpu_isa_avx512_core_bf16;
    *out = &cpu->head;
    return DMS_OK;
}
