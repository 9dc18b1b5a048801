/* The choice of a backend. */
#include "kernels/device.h"

#include <string.h>

dms_status dms_device_open(dms_device **out, dms_device_kind kind, int threads)
{
    enum { MAX_THREADS = 1024 };
    if (threads < 0 || threads > MAX_THREADS)
        return dms_fail(DMS_ERR_ARG, "threads is %d, expected 0 (one a core) to %d", threads,
                        MAX_THREADS);
    return kind == DMS_CPU ? dms_cpu_open(out, threads) : dms_cuda_open(out, kind);
}

dms_status dms_device_from_name(dms_device **out, const char *name, int threads)
{
    if (!strcmp(name, "cpu"))
        return dms_device_open(out, DMS_CPU, threads);
    if (!strcmp(name, "cuda"))
        return dms_device_open(out, DMS_CUDA, threads);
    if (!strcmp(name, "cuda_emu"))
        return dms_device_open(out, DMS_CUDA_EMU, threads);
    if (strcmp(name, "auto") != 0)
        return dms_fail(DMS_ERR_ARG, "device is \"%s\", expected auto, cpu or cuda", name);
    const dms_status status = dms_device_open(out, DMS_CUDA, threads);
    return status == DMS_ERR_NODEVICE ? dms_device_open(out, DMS_CPU, threads) : status;
}
