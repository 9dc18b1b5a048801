/* The one matrix product behind attention on the CPU: small f32 tiles, held in registers. */
#ifndef DMS_CPU_TILE_H
#define DMS_CPU_TILE_H

#include <stdbool.h>

#include "kernels/cpu/isa.h"

/* The widest vector of any instruction set, in floats: rows of packed tiles are padded to it. */
enum { DMS_TILE_LANES = 16 };

/* c[i,j] = (add ? c[i,j] : 0) + sum over l of a[i,l] * b[l,j], for i < m, j < n, l < k.
 * a[i,l] is a[i*a_row + l*a_col], so that a transpose costs nothing; rows of b and c are
 * contiguous. n is a multiple of DMS_TILE_LANES. Each sum runs in the order of l. */
typedef struct {
    float *c;
    const float *a, *b;
    int64_t c_row, a_row, a_col, b_row; /* strides in floats */
    int64_t m, n, k;
    bool add;
} dms_tile_product;

void DMS_CPU(tile_multiply)(const dms_tile_product *p);

/* A matrix inside a larger one: element (i, j) is at[i*row + j]. */
typedef struct {
    float *at;
    int64_t row;
} dms_tile_view;

/* out[j,i] = scale * in[i,j] for i < rows, j < cols; `in` is only read. */
void DMS_CPU(tile_transpose)(dms_tile_view out, const float *in, int64_t in_row, int64_t rows,
                             int64_t cols, float scale);

static inline int64_t dms_tile_padded(int64_t n)
{
    return (n + DMS_TILE_LANES - 1) / DMS_TILE_LANES * DMS_TILE_LANES;
}

#endif
