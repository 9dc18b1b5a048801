/* cp.async: copies to shared memory that happen when their group is waited for, and not before. */
#ifndef DMS_CUDA_EMU_ASYNC_COPY_CUH
#define DMS_CUDA_EMU_ASYNC_COPY_CUH

#include "kernels/cuda_emu/block.h"

namespace emu
{

/* Until the wait the destination holds NaN. */
void async_copy_start(void *shared, const void *global, bool use, place at);
/* Carries out all but the newest `under_way` committed groups. */
void async_copy_wait(int under_way);

} // namespace emu

inline void dms_cp_async_16(void *shared, const void *global, bool use,
                            const char *file = __builtin_FILE(), int line = __builtin_LINE())
{
    emu::async_copy_start(shared, global, use, {file, line});
}

inline void dms_cp_async_commit()
{
    emu::self->groups++;
}

template <int N> inline void dms_cp_async_wait()
{
    emu::async_copy_wait(N);
}

#endif
