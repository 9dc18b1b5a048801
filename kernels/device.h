/* A device: memory, transfers and one table of ops. */
#ifndef DMS_DEVICE_H
#define DMS_DEVICE_H

#include <stdbool.h>
#include <stddef.h>

#include "kernels/status.h"

DMS_BEGIN_C

typedef struct dms_device dms_device;
typedef struct dms_op_table dms_op_table;

typedef enum { DMS_CPU, DMS_CUDA } dms_device_kind;

/* Public head of every device; a backend's own state follows it. alloc gives 64-byte aligned
 * memory that the caller ends with release (NULL is legal); its content is undefined. upload and
 * download wait until the copy is done. */
struct dms_device {
    dms_device_kind kind;
    const char *name; /* "cpu" or "cuda" */
    const dms_op_table *ops;
    bool has_bf16; /* bf16 weights are multiplied in bf16 hardware, not emulated */
    int threads;   /* host threads that ops use */
    dms_status (*alloc)(dms_device *dev, void **out, size_t bytes);
    void (*release)(dms_device *dev, void *ptr);
    dms_status (*upload)(dms_device *dev, void *dst, const void *src, size_t bytes);
    dms_status (*download)(dms_device *dev, void *dst, const void *src, size_t bytes);
    dms_status (*zero)(dms_device *dev, void *dst, size_t bytes);
    void (*close)(dms_device *dev);
};

/* The caller owns *out and ends it with (*out)->close(*out). threads: 0 for one a core, at most
 * 1024 (DMS_ERR_ARG). Returns DMS_ERR_NODEVICE, not a crash, where the machine lacks the device. */
dms_status dms_device_open(dms_device **out, dms_device_kind kind, int threads);
/* The device a user named: "cpu", "cuda", or "auto", which is cuda where there is one. */
dms_status dms_device_from_name(dms_device **out, const char *name, int threads);

dms_status dms_cpu_open(dms_device **out, int threads);
dms_status dms_cuda_open(dms_device **out, int threads);

DMS_END_C
#endif
