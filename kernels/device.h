/* A device: memory, transfers and one table of ops. */
#ifndef DMS_DEVICE_H
#define DMS_DEVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/status.h"

DMS_BEGIN_C

typedef struct dms_device dms_device;
typedef struct dms_op_table dms_op_table;
typedef struct dms_graph dms_graph;

/* DMS_CUDA_EMU runs the CUDA backend, kernels and all, on the CPU: slow, for tests. */
typedef enum { DMS_CPU, DMS_CUDA, DMS_CUDA_EMU } dms_device_kind;

/* Bytes: pieces of device memory start and end at multiples of this. cuBLASLt asks for 16; 256
 * keeps rows aligned to sectors. */
enum { DMS_PIECE = 256 };

/* Public head of every device; a backend's own state follows it. alloc gives 64-byte aligned
 * memory that the caller ends with release (NULL is legal, and so is memory that queued work
 * uses); its content is undefined. upload returns when `src` may change, download when `dst` is
 * filled, zero when it is queued; all keep the order of the ops around them. */
struct dms_device {
    dms_device_kind kind;
    const char *name; /* "cpu", "cuda" or "cuda_emu" */
    const dms_op_table *ops;
    bool has_bf16; /* bf16 weights are multiplied in bf16 hardware, not emulated */
    int threads;   /* host threads that ops use */
    dms_status (*alloc)(dms_device *dev, void **out, size_t bytes);
    void (*release)(dms_device *dev, void *ptr);
    dms_status (*upload)(dms_device *dev, void *dst, const void *src, size_t bytes);
    dms_status (*download)(dms_device *dev, void *dst, const void *src, size_t bytes);
    dms_status (*zero)(dms_device *dev, void *dst, size_t bytes);
    void (*close)(dms_device *dev);
    /* NULL, or waits for the op just queued, so that its failure is reported with its name: CUDA
     * with DMS_SYNC=1 in the environment. */
    dms_status (*after_op)(dms_device *dev);
    /* Graphs, NULL where the device has none: what is queued between record and recorded is noted,
     * not run; replay queues it again, on the same addresses and with the same arguments.
     * recorded(NULL) drops what was noted; after a failure nothing is recorded. Between the two
     * only ops may be called: alloc, upload, download and replay fail. */
    dms_status (*record)(dms_device *dev);
    dms_status (*recorded)(dms_device *dev, dms_graph **out);
    dms_status (*replay)(dms_device *dev, dms_graph *graph);
    void (*forget)(dms_device *dev, dms_graph *graph); /* graph may be NULL */
    uint64_t generation; /* grows when scratch memory moved: older graphs must not be replayed */
    /* NULL, or, at most once, takes `bytes` of memory in one allocation, from which alloc serves
     * as long as they last (they come back with close), and `workspace_bytes` for the ops. */
    dms_status (*reserve)(dms_device *dev, size_t bytes, size_t workspace_bytes);
    /* Memory that nobody has taken yet; 0 where that cannot be known. */
    size_t (*free_bytes)(dms_device *dev);
    /* Of a dry run (dms_device_dry). */
    bool dry;
    size_t dry_bytes;       /* what alloc was asked for in all, in whole pieces */
    size_t workspace_bytes; /* the most that one op needs beside its tensors */
};

/* Makes a device that was just opened one that does nothing and counts: alloc hands out addresses
 * that nobody may follow, uploads are dropped, downloads give zeros, ops check their arguments and
 * note their workspace (0 on the CPU). The same code that works on a device then finds out what it
 * takes. */
void dms_device_dry(dms_device *dev);

/* The caller owns *out and ends it with (*out)->close(*out). threads: 0 for one a core, at most
 * 1024 (DMS_ERR_ARG). Returns DMS_ERR_NODEVICE, not a crash, where the machine lacks the device. */
dms_status dms_device_open(dms_device **out, dms_device_kind kind, int threads);
/* The device a user named: "cpu", "cuda", "cuda_emu", or "auto", which is cuda where there is
 * one. */
dms_status dms_device_from_name(dms_device **out, const char *name, int threads);

dms_status dms_cpu_open(dms_device **out, int threads);
/* Opens the backend's module. kind: DMS_CUDA or DMS_CUDA_EMU. */
dms_status dms_cuda_open(dms_device **out, dms_device_kind kind);

DMS_END_C
#endif
