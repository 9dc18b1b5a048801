/* Tiles of bf16 in shared memory as operands of the tensor cores: loads, fragments, conversions.
 *
 * A tile is ROWS rows of WIDTH elements, DMS_TILE_STRIDE(WIDTH) elements apart: the 16 bytes of
 * padding put the 8 rows that one 8x8 matrix of ldmatrix reads on 32 different banks (row r starts
 * at bank 4r for widths 64 and 128, at 20r mod 32 for 96). A fragment function is called by all 32
 * lanes of a warp with the same arguments.
 *
 * Fragments of m16n8k16 (PTX ISA), g = lane / 4, c = 2 * (lane % 4):
 *   accumulator d [16, 8]  : d[0], d[1] are row g, columns c, c+1; d[2], d[3] are row g+8
 *   A [16 m, 16 k]         : a[0] rows 0-7, k 0-7; a[1] rows 8-15, k 0-7; a[2], a[3] the same, k
 * 8-15 B [16 k, 8 n]          : b[0] k 0-7, b[1] k 8-15. */
#ifndef DMS_CUDA_MMA_TILE_CUH
#define DMS_CUDA_MMA_TILE_CUH

#include <string.h>

#include "kernels/cuda/kernel.cuh"

/* Elements from one row of a tile in shared memory to the next; widths are multiples of 16. */
#define DMS_TILE_STRIDE(width) ((width) + 8)
#define DMS_TILE_BYTES(rows, width) ((rows)*DMS_TILE_STRIDE(width) * (int)sizeof(dms_bf16))

/* Begins the copy of rows [0, count) of `from` (`row` elements apart, 16-byte aligned) into a tile;
 * rows [count, ROWS) become zero. Called by all THREADS threads of the block; count >= 0 and `from`
 * must be a valid address even if it is 0. The caller commits, waits and synchronises. */
template <int WIDTH, int ROWS, int THREADS>
static __device__ __forceinline__ void dms_tile_load(dms_bf16 *tile, const dms_bf16 *from,
                                                     int64_t row, int count)
{
    const int chunks = WIDTH / 8; /* of 16 bytes, a row */
#pragma unroll 1                  /* addresses worked out in advance cost too many registers */
    for (int i = (int)threadIdx.x; i < ROWS * chunks; i += THREADS) {
        const int r = i / chunks, at = i % chunks * 8;
        const bool use = r < count;
        dms_cp_async_16(tile + r * DMS_TILE_STRIDE(WIDTH) + at, from + (use ? r * row + at : 0),
                        use);
    }
}

/* A [16, 16] from a tile that is stored [m, k]: rows from m, columns from k. */
template <int WIDTH>
static __device__ __forceinline__ void dms_tile_a(uint32_t a[4], const dms_bf16 *tile, int m, int k)
{
    const int lane = (int)threadIdx.x % DMS_WARP;
    dms_ldmatrix_x4(a, tile + (m + lane % 16) * DMS_TILE_STRIDE(WIDTH) + k + lane / 16 * 8);
}

/* A [16, 16] from a tile that is stored [k, m] (the operand is the tile's transpose): rows of the
 * tile from k, columns from m. */
template <int WIDTH>
static __device__ __forceinline__ void dms_tile_a_trans(uint32_t a[4], const dms_bf16 *tile, int m,
                                                        int k)
{
    const int lane = (int)threadIdx.x % DMS_WARP;
    const int r = k + lane % 8 + lane / 16 * 8, c = m + lane / 8 % 2 * 8;
    dms_ldmatrix_x4_trans(a, tile + r * DMS_TILE_STRIDE(WIDTH) + c);
}

/* Two B [16, 8] from a tile that is stored [n, k] (S = Q K^T: the tile is K): b[0..1] is the
 * operand of columns n..n+7, b[2..3] that of n+8..n+15. */
template <int WIDTH>
static __device__ __forceinline__ void dms_tile_b(uint32_t b[4], const dms_bf16 *tile, int n, int k)
{
    const int lane = (int)threadIdx.x % DMS_WARP;
    const int r = n + lane % 8 + lane / 16 * 8, c = k + lane / 8 % 2 * 8;
    dms_ldmatrix_x4(b, tile + r * DMS_TILE_STRIDE(WIDTH) + c);
}

/* Two B [16, 8] from a tile that is stored [k, n] (O = P V: the tile is V): b[0..1] is the operand
 * of columns n..n+7, b[2..3] that of n+8..n+15. */
template <int WIDTH>
static __device__ __forceinline__ void dms_tile_b_trans(uint32_t b[4], const dms_bf16 *tile, int n,
                                                        int k)
{
    const int lane = (int)threadIdx.x % DMS_WARP;
    dms_ldmatrix_x4_trans(b, tile + (k + lane % 16) * DMS_TILE_STRIDE(WIDTH) + n + lane / 16 * 8);
}

/* Two f32 rounded to nearest even, `low` in the low half: the order of neighbours in memory. */
static __device__ __forceinline__ uint32_t dms_pack_bf16(float low, float high)
{
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    uint32_t bits;
    memcpy(&bits, &pair, sizeof(bits));
    return bits;
}

/* Accumulators [16, 16] (left: columns 0-7, right: 8-15) as the A operand of the next product. */
static __device__ __forceinline__ void dms_tile_a_from(uint32_t a[4], const float left[4],
                                                       const float right[4])
{
    a[0] = dms_pack_bf16(left[0], left[1]);
    a[1] = dms_pack_bf16(left[2], left[3]);
    a[2] = dms_pack_bf16(right[0], right[1]);
    a[3] = dms_pack_bf16(right[2], right[3]);
}

/* Accumulator [16, 8] rounded into a tile at row m, column n: by this warp alone, so a reader of
 * the same warp needs __syncwarp() in between, of another warp __syncthreads(). */
template <int WIDTH>
static __device__ __forceinline__ void dms_tile_put(dms_bf16 *tile, int m, int n, const float d[4])
{
    const int lane = (int)threadIdx.x % DMS_WARP;
    dms_bf16 *at = tile + (m + lane / 4) * DMS_TILE_STRIDE(WIDTH) + n + lane % 4 * 2;
    *(uint32_t *)(void *)at = dms_pack_bf16(d[0], d[1]);
    *(uint32_t *)(void *)(at + 8 * DMS_TILE_STRIDE(WIDTH)) = dms_pack_bf16(d[2], d[3]);
}

#endif
