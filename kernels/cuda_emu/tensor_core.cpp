/* The tensor-core instructions by their fragment layouts. */
#include "kernels/cuda_emu/tensor_core.cuh"

#include "kernels/cuda_emu/report.h"

namespace emu
{

enum { M = 16, N = 8, K = 16, TILES = 4, ROWS = 8 };

/* The f32 with the bits of a pair's lower or upper bf16. */
static float low(uint32_t pair)
{
    const uint32_t bits = pair << 16;
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

static float high(uint32_t pair)
{
    const uint32_t bits = pair & 0xffff0000u;
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

static void check_all_lanes(const collective *c)
{
    if (c->arrived != 0xffffffffu)
        inactive_lane(c, __builtin_ctz(~c->arrived));
}

typedef float four __attribute__((vector_size(16), may_alias));
typedef mma_operands __attribute__((may_alias)) lane_operands;

struct mma_matrices {
    alignas(16) float a[M][K], b[K][N], d[M][N];
};

/* A lane holds rows g and g + 8 of a and d and column g of b; of those the elements t and t + 1
 * and, along K, those 8 further: g = lane / 4, t = lane % 4 * 2. */
static void gather(mma_matrices *m, const lane_operands *lanes)
{
    for (int lane = 0; lane < LANES; lane++) {
        const lane_operands &of = lanes[lane];
        const int g = lane / 4, t = lane % 4 * 2;
        for (int i = 0; i < 4; i++) {
            float *a = &m->a[g + i % 2 * 8][t + i / 2 * 8];
            a[0] = low(of.a[i]);
            a[1] = high(of.a[i]);
            m->d[g + i / 2 * 8][t + i % 2] = of.d[i];
        }
        for (int i = 0; i < 2; i++) {
            m->b[t + i * 8][g] = low(of.b[i]);
            m->b[t + i * 8 + 1][g] = high(of.b[i]);
        }
    }
}

/* d += a . b, summed in f32 along k upwards. */
static void multiply(mma_matrices *m)
{
    for (int row = 0; row < M; row++) {
        four *d = reinterpret_cast<four *>(m->d[row]);
        four left = d[0], right = d[1];
        for (int k = 0; k < K; k++) {
            const four *b = reinterpret_cast<const four *>(m->b[k]);
            const float a = m->a[row][k];
            left += a * b[0];
            right += a * b[1];
        }
        d[0] = left;
        d[1] = right;
    }
}

void finish_mma_bf16(collective *c)
{
    mma_matrices m;
    lane_operands *lanes = reinterpret_cast<lane_operands *>(c->slots);
    check_all_lanes(c);
    gather(&m, lanes);
    multiply(&m);
    for (int lane = 0; lane < LANES; lane++) {
        for (int i = 0; i < 4; i++)
            lanes[lane].d[i] = m.d[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
    }
}

typedef uint16_t tile[ROWS][8];

static void read_tiles(const collective *c, tile tiles[TILES])
{
    check_all_lanes(c);
    for (int lane = 0; lane < LANES; lane++) {
        tile_rows of;
        slot_get(c, lane, &of);
        if (reinterpret_cast<uintptr_t>(of.row) % 16)
            fault(cudaErrorMisalignedAddress, c->at, "misaligned access",
                  "%s: row %d of tile %d is at %p, expected a multiple of 16", c->name, lane % ROWS,
                  lane / ROWS, of.row);
        memcpy(tiles[lane / ROWS][lane % ROWS], of.row, 16);
    }
}

void finish_ldmatrix(collective *c)
{
    tile tiles[TILES];
    read_tiles(c, tiles);
    for (int lane = 0; lane < LANES; lane++) {
        tile_rows of;
        for (int i = 0; i < TILES; i++)
            memcpy(&of.fragment[i], &tiles[i][lane / 4][lane % 4 * 2], 4);
        slot_put(c, lane, of);
    }
}

void finish_ldmatrix_trans(collective *c)
{
    tile tiles[TILES];
    read_tiles(c, tiles);
    for (int lane = 0; lane < LANES; lane++) {
        tile_rows of;
        for (int i = 0; i < TILES; i++) {
            const int row = lane % 4 * 2, column = lane / 4;
            of.fragment[i] =
                tiles[i][row][column] | static_cast<uint32_t>(tiles[i][row + 1][column]) << 16;
        }
        slot_put(c, lane, of);
    }
}

} // namespace emu
