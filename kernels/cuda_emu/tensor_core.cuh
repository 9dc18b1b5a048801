/* mma.sync and ldmatrix, computed once a warp by the last lane that arrives. */
#ifndef DMS_CUDA_EMU_TENSOR_CORE_CUH
#define DMS_CUDA_EMU_TENSOR_CORE_CUH

#include "kernels/cuda_emu/warp.cuh"

namespace emu
{

struct mma_operands {
    uint32_t a[4], b[2];
    float d[4];
};
void finish_mma_bf16(collective *c);

/* A row's address goes in, a fragment of each tile comes out. */
union tile_rows {
    const void *row;
    uint32_t fragment[4];
};
void finish_ldmatrix(collective *c);
void finish_ldmatrix_trans(collective *c);

inline void ldmatrix(uint32_t r[4], const void *row, const char *name, void (*finish)(collective *),
                     place at)
{
    collective *c = collective_enter(0xffffffffu, name, finish, at);
    tile_rows mine;
    mine.row = row;
    slot_put(c, self->lane, mine);
    collective_arrive(c);
    slot_get(c, self->lane, &mine);
    memcpy(r, mine.fragment, sizeof(mine.fragment));
    collective_leave(c);
}

} // namespace emu

inline void dms_mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2], DMS_EMU_AT_)
{
    emu::collective *c =
        emu::collective_enter(0xffffffffu, "mma.sync", emu::finish_mma_bf16, {file, line});
    emu::mma_operands mine = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}, {d[0], d[1], d[2], d[3]}};
    emu::slot_put(c, emu::self->lane, mine);
    emu::collective_arrive(c);
    emu::slot_get(c, emu::self->lane, &mine);
    memcpy(d, mine.d, sizeof(mine.d));
    emu::collective_leave(c);
}

inline void dms_ldmatrix_x4(uint32_t r[4], const void *row, DMS_EMU_AT_)
{
    emu::ldmatrix(r, row, "ldmatrix", emu::finish_ldmatrix, {file, line});
}

inline void dms_ldmatrix_x4_trans(uint32_t r[4], const void *row, DMS_EMU_AT_)
{
    emu::ldmatrix(r, row, "ldmatrix.trans", emu::finish_ldmatrix_trans, {file, line});
}

#endif
