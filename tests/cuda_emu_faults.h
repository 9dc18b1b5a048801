/* Small kernels for the tests of the emulation: faults planted one at a time, and single
 * instructions whose results a test can check. */
#ifndef DMS_TEST_CUDA_EMU_FAULTS_H
#define DMS_TEST_CUDA_EMU_FAULTS_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { FAULT_N = 64 };

/* Each run leaves i + 1 in out[i], unless its fault is planted. */
typedef struct {
    const char *name;
    const char *caught_as; /* what tells: see verdict() in test_cuda_emu.c */
    cudaError_t (*run)(bool planted, float *out);
    enum {
        EVERYWHERE,
        NOT_UNDER_ASAN, /* a fill that AddressSanitizer's build does without */
        ASAN_ENDS_IT,   /* there the process ends with a report of the line */
        ONLY_ASAN,      /* only there, likewise */
    } where;
} planted_fault;

extern const planted_fault planted_faults[];
extern const size_t n_planted_faults;
extern const bool faults_have_asan;

/* x[i] += value for i < FAULT_N. */
void queue_add(float *x, float value, cudaStream_t stream);
/* x[i] = value * x[i], likewise: does not commute with queue_add. */
void queue_scale(float *x, float value, cudaStream_t stream);
/* A kernel that calls dms_trap. */
void queue_trap(cudaStream_t stream);
/* One warp: a [32, 4], b [32, 2], d [32, 4] are the fragments of its lanes. */
void queue_mma(float *d, const uint32_t *a, const uint32_t *b, cudaStream_t stream);
/* One warp: tiles [4, 8, 8] to r [32, 4]. */
void queue_ldmatrix(uint32_t *r, const uint16_t *tiles, bool transposed, cudaStream_t stream);
/* Two groups of one copy of x[4 * group..] each, then a third of zeros, committed each; seen
 * [4, 3]: the first float of each after the waits for all but 3, 2, 1 and 0. */
void queue_groups(float *seen, const float *x, cudaStream_t stream);
/* One warp of `lanes` lanes: votes, shuffles and reductions, out [8, 32]. */
void queue_warp(int *out, int lanes, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
#endif
