/* The schedule: the order in which threads, blocks and streams run where CUDA leaves it open. */
#ifndef DMS_CUDA_EMU_SCHEDULE_H
#define DMS_CUDA_EMU_SCHEDULE_H

#include <stdint.h>

namespace emu
{

enum order { FORWARD, REVERSE, RANDOM };

struct schedule {
    emu::order order;
    uint64_t state; /* of the random numbers */
};
extern schedule now;

/* "fwd", "rev", "rand" or "rand:SEED"; false for another word. */
bool schedule_set(const char *name);
/* In [0, n). */
inline uint64_t random_below(uint64_t n)
{
    now.state ^= now.state << 13;
    now.state ^= now.state >> 7;
    now.state ^= now.state << 17;
    return n <= UINT32_MAX ? (now.state >> 32) * n >> 32 : now.state % n;
}

} // namespace emu
#endif
