/* Register tiles of ROWS x VECTORS vectors: each step of the sum loads VECTORS vectors of b and
 * ROWS numbers of a for ROWS*VECTORS fused multiply-adds, which keeps the multipliers busy. */
#include "kernels/cpu/tile.h"

#if defined(__AVX512F__)
enum { WIDTH = 16, ROWS = 6, VECTORS = 4 }; /* 24 of 32 registers are sums */
#elif defined(__AVX2__)
enum { WIDTH = 8, ROWS = 6, VECTORS = 2 }; /* 12 of 16 */
#else
enum { WIDTH = 4, ROWS = 4, VECTORS = 2 }; /* 8 of 16; there is no fused operation */
#endif

typedef float vec __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))

/* Rows i.. and columns j.. of the product; `rows` and `vectors` are constants where it is used. */
INLINE void tile(const dms_tile_product *p, int64_t i, int64_t j, const int rows, const int vectors)
{
    const float *a = p->a + i * p->a_row, *b = p->b + j;
    float *c = p->c + i * p->c_row + j;
    const int64_t a_row = p->a_row, a_col = p->a_col, b_row = p->b_row, c_row = p->c_row;
    vec sum[ROWS][VECTORS];

#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++)
            sum[r][v] = p->add ? *(const vec *)(c + r * c_row + v * WIDTH) : (vec){0};
    for (int64_t l = 0; l < p->k; l++, a += a_col, b += b_row) {
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++)
                sum[r][v] += a[r * a_row] * *(const vec *)(b + v * WIDTH);
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++)
            *(vec *)(c + r * c_row + v * WIDTH) = sum[r][v];
}

/* All rows of `vectors` vectors of columns. */
INLINE void panel(const dms_tile_product *p, int64_t j, const int vectors)
{
    int64_t i = 0;
    for (; i + ROWS <= p->m; i += ROWS)
        tile(p, i, j, ROWS, vectors);
    switch (p->m - i) {
#if defined(__AVX2__)
    case 5:
        tile(p, i, j, 5, vectors);
        break;
    case 4:
        tile(p, i, j, 4, vectors);
        break;
#endif
    case 3:
        tile(p, i, j, 3, vectors);
        break;
    case 2:
        tile(p, i, j, 2, vectors);
        break;
    case 1:
        tile(p, i, j, 1, vectors);
        break;
    default:
        break;
    }
}

void DMS_CPU(tile_multiply)(const dms_tile_product *p)
{
    int64_t j = 0;
    for (; j + VECTORS * WIDTH <= p->n; j += VECTORS * WIDTH)
        panel(p, j, VECTORS);
    switch ((p->n - j) / WIDTH) {
#if defined(__AVX512F__)
    case 3:
        panel(p, j, 3);
        break;
    case 2:
        panel(p, j, 2);
        break;
#endif
    case 1:
        panel(p, j, 1);
        break;
    default:
        break;
    }
}

typedef float quad __attribute__((vector_size(16), aligned(4), may_alias));

/* Four rows of four. */
INLINE void transpose_quad(dms_tile_view out, const float *in, int64_t in_row, float scale)
{
    const quad a = scale * *(const quad *)in, b = scale * *(const quad *)(in + in_row);
    const quad c = scale * *(const quad *)(in + 2 * in_row);
    const quad d = scale * *(const quad *)(in + 3 * in_row);
    const quad ab = __builtin_shufflevector(a, b, 0, 4, 1, 5);
    const quad cd = __builtin_shufflevector(c, d, 0, 4, 1, 5);
    const quad ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    const quad cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
    *(quad *)out.at = __builtin_shufflevector(ab, cd, 0, 1, 4, 5);
    *(quad *)(out.at + out.row) = __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
    *(quad *)(out.at + 2 * out.row) = __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5);
    *(quad *)(out.at + 3 * out.row) = __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7);
}

void DMS_CPU(tile_transpose)(dms_tile_view out, const float *in, int64_t in_row, int64_t rows,
                             int64_t cols, float scale)
{
    for (int64_t i = 0; i < rows; i += 4)
        for (int64_t j = 0; j < cols; j += 4) {
            const dms_tile_view at = {out.at + j * out.row + i, out.row};
            const float *from = in + i * in_row + j;
            if (i + 4 <= rows && j + 4 <= cols) {
                transpose_quad(at, from, in_row, scale);
                continue;
            }
            for (int64_t y = 0; y < 4 && i + y < rows; y++)
                for (int64_t x = 0; x < 4 && j + x < cols; x++)
                    at.at[x * at.row + y] = scale * from[y * in_row + x];
        }
}
