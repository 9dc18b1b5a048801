/* What a test may ask of the emulated device: counters, the last fault, the schedule. Exported by
 * the module, found with dlsym; plain C. */
#ifndef DMS_CUDA_EMU_COUNTS_H
#define DMS_CUDA_EMU_COUNTS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Since the module was loaded, except the live bytes. */
typedef struct {
    int64_t host_reads;       /* device-to-host copies that ran, replayed ones included */
    int64_t synchronisations; /* of a stream, an event or the device; blocking copies too */
    int64_t allocations;      /* cudaMalloc and cudaMallocAsync that succeeded */
    int64_t launches;         /* kernel launches asked for by the host; recorded ones are not */
    int64_t replays;          /* cudaGraphLaunch */
    int64_t live_bytes;       /* of device memory, now */
    int64_t peak_bytes;       /* the most of it */
} dms_cuda_emu_counts;

void dms_cuda_emu_count(dms_cuda_emu_counts *out);

/* The last fault of a kernel, as it was printed: "NAME: kernel K, block (..), thread (..),
 * FILE:LINE:
 * ..."; "" when there was none. Valid until the next one. */
const char *dms_cuda_emu_fault(void);

/* "fwd", "rev" or "rand:SEED", from now on, in place of CUDA_EMU_SCHED. 0, or -1 for another word.
 */
int dms_cuda_emu_schedule(const char *name);

#ifdef __cplusplus
}
#endif
#endif
