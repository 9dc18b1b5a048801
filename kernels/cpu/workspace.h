/* Scratch memory of the CPU device, kept between calls so that a step allocates nothing. */
#ifndef DMS_CPU_WORKSPACE_H
#define DMS_CPU_WORKSPACE_H

#include "kernels/device.h"

/* One piece a thread: thread i of a parallel region owns base + i*stride, `stride` bytes, 64-byte
 * aligned. Valid until the next call; contents are undefined. Call it outside parallel regions
 * and once an op: the memory is reused by the next op. It grows, and never shrinks before the
 * device closes. DMS_ERR_NOMEM when it cannot grow. */
typedef struct {
    char *base;
    size_t stride;
} dms_cpu_workspace;

dms_status dms_cpu_workspace_get(dms_cpu_workspace *out, dms_device *dev, size_t bytes_per_thread);

/* Packed copies of frozen weights, keyed by the address and the way they are packed. `bytes` of
 * memory, `*fresh` true when the caller must fill it. Dropped when the weight's memory is released
 * or uploaded to. DMS_ERR_NOMEM when there is no memory. */
dms_status dms_cpu_packed_get(void **out, bool *fresh, dms_device *dev, const void *weight,
                              int kind, size_t bytes);

#endif
