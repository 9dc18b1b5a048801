/* The copies of a thread that are under way. */
#include "kernels/cuda_emu/async_copy.cuh"

#include <string.h>

#include "kernels/cuda_emu/report.h"

namespace emu
{

enum { COPY_BYTES = 16 };

void async_copies_reset(thread *t)
{
    t->groups = 0;
    if (t->copies)
        t->copies->clear();
}

void async_copy_start(void *shared, const void *global, bool use, place at)
{
    const uintptr_t both =
        reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(global);
    if (both % COPY_BYTES)
        fault(cudaErrorMisalignedAddress, at, "misaligned access",
              "cp.async from %p to %p, expected multiples of %d", global, shared, COPY_BYTES);
#ifdef DMS_EMU_ASAN
    /* Out of bounds is reported here, where the kernel's line is on the stack. */
    if (use)
        memcpy(shared, global, COPY_BYTES);
#endif
    memset(shared, 0xff, COPY_BYTES);
    if (!self->copies)
        self->copies = new std::vector<async_copy>;
    self->copies->push_back({shared, use ? global : nullptr, self->groups});
}

void async_copy_wait(int under_way)
{
    std::vector<async_copy> *copies = self->copies;
    size_t done = 0;
    for (; copies && done < copies->size(); done++) {
        const async_copy &copy = (*copies)[done];
        if (copy.group >= self->groups - under_way)
            break;
        if (copy.global)
            memcpy(copy.shared, copy.global, COPY_BYTES);
        else
            memset(copy.shared, 0, COPY_BYTES);
    }
    if (done)
        copies->erase(copies->begin(), copies->begin() + static_cast<ptrdiff_t>(done));
}

} // namespace emu
