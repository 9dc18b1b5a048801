/* Faults, counters and the log of kernels. */
#include "kernels/cuda_emu/report.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/cuda_emu/kernel.h"
#include "kernels/cuda_emu/runtime.h"
#include "kernels/cuda_emu/schedule.h"

namespace emu
{

dms_cuda_emu_counts counts;

static char last_fault[1024];

__attribute__((format(printf, 2, 3))) static void add(size_t *at, const char *format, ...)
{
    va_list values;
    va_start(values, format);
    const int n = vsnprintf(last_fault + *at, sizeof(last_fault) - *at, format, values);
    va_end(values);
    *at += static_cast<size_t>(n);
    if (*at >= sizeof(last_fault))
        *at = sizeof(last_fault) - 1;
}

void fault(cudaError_t error, place at, const char *name, const char *detail, ...)
{
    char text[512];
    size_t end = 0;
    va_list values;
    va_start(values, detail);
    vsnprintf(text, sizeof(text), detail, values);
    va_end(values);
    const uint3 b = running.index, t = self->index;
    add(&end, "%s: kernel %s, block (%u, %u, %u), thread (%u, %u, %u)", name, kernel_running(), b.x,
        b.y, b.z, t.x, t.y, t.z);
    if (at.file)
        add(&end, ", %s:%d", at.file, at.line);
    add(&end, ": %s", text);
    fprintf(stderr, "cuda_emu: %s\n", last_fault);
    device_lost(error);
    block_abandon();
}

void log_kernel(const char *name)
{
    const char *path = getenv("DMS_CUDA_EMU_LOG");
    char line[512];
    if (!path)
        return;
    const int n = snprintf(line, sizeof(line), "%s\n", name);
    const int file = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
    const bool written = file >= 0 && write(file, line, static_cast<size_t>(n)) == n;
    if (!written)
        fprintf(stderr, "cuda_emu: %s cannot be written (DMS_CUDA_EMU_LOG)\n", path);
    if (file >= 0)
        close(file);
}

} // namespace emu

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED void dms_cuda_emu_count(dms_cuda_emu_counts *out)
{
    *out = emu::counts;
}

EXPORTED const char *dms_cuda_emu_fault(void)
{
    return emu::last_fault;
}

EXPORTED int dms_cuda_emu_schedule(const char *name)
{
    return emu::schedule_set(name) ? 0 : -1;
}
