/* Matrix products by oneDNN, one thread a tile: results do not depend on the number of threads. */
#ifndef DMS_CPU_GEMM_H
#define DMS_CPU_GEMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/status.h"

/* c[m,n] (+)= sum over k of a[m,k] b[k,n]. a and b are both bf16 or both f32, c and the sums are
 * f32. ld*: elements from one stored row to the next. */
typedef struct {
    int64_t m, n, k;
    int64_t lda, ldb, ldc;
    bool a_transposed; /* a is stored [k, m] */
    bool b_transposed; /* b is stored [n, k] */
    bool bf16;
    bool add; /* to what c holds */
} dms_gemm_shape;

typedef struct dms_gemm dms_gemm;

/* The kernel of one shape, made on its first use and kept until the program ends. Call it outside
 * parallel regions. DMS_ERR_DEVICE when oneDNN has no kernel for the shape, DMS_ERR_NOMEM. */
dms_status dms_gemm_get(dms_gemm **out, const dms_gemm_shape *shape);
/* What a run needs beside its operands. */
size_t dms_gemm_scratch_bytes(const dms_gemm *gemm);
/* Runs on the calling thread alone when called inside a parallel region; callable by many threads
 * at once. scratch: 64-byte aligned, the caller's alone. False when oneDNN fails. */
bool dms_gemm_run(dms_gemm *gemm, float *c, const void *a, const void *b, void *scratch);

/* A product cut into tiles of tile_m x tile_n, the last ones smaller. */
typedef struct {
    dms_gemm_shape whole;
    int64_t tile_m, tile_n;
    dms_gemm *kernel[2][2]; /* [last row of tiles][last column of tiles] */
    size_t scratch_bytes;   /* a thread */
} dms_gemm_tiles;

dms_status dms_gemm_tiles_get(dms_gemm_tiles *out, const dms_gemm_shape *whole, int64_t tile_m,
                              int64_t tile_n);
typedef struct {
    float *c;
    const void *a, *b;
    const float *bias;     /* [n], added to each row of c, or NULL */
    const float *residual; /* in c's layout, added after the bias, not c itself; or NULL */
} dms_gemm_operands;

/* Spreads the tiles over the threads. Thread i has scratch + i*stride. DMS_ERR_DEVICE when oneDNN
 * fails. */
dms_status dms_gemm_tiles_run(const dms_gemm_tiles *tiles, const dms_gemm_operands *operands,
                              char *scratch, size_t stride);

#endif
