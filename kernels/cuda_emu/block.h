/* The block that runs: its threads, who of them can go on, its barrier and its shared memory. */
#ifndef DMS_CUDA_EMU_BLOCK_H
#define DMS_CUDA_EMU_BLOCK_H

#include <stdint.h>
#include <vector>
#include <vector_types.h>

#include "kernels/cuda_emu/fiber.h"

namespace emu
{

enum { MOST_THREADS = MOST_FIBERS, LANES = 32, MOST_WARPS = MOST_THREADS / LANES };
enum { OPEN_COLLECTIVES = 8, SLOT_BYTES = 64 };

/* A line of a kernel's source. */
struct place {
    const char *file;
    int line;
};

/* cp.async: under way until the group was waited for. */
struct async_copy {
    void *shared;
    const void *global; /* NULL: zeros */
    int64_t group;
};

struct thread {
    uint3 index;
    int id, lane, warp;
    bool started, exited;
    fiber run;
    place waits_at;
    std::vector<async_copy> *copies; /* oldest first */
    int64_t groups;                  /* committed so far */
};

/* One instruction that the lanes of a warp execute together: each leaves its operand in its slot,
 * the last to arrive finishes it for all, each takes its result away. */
struct collective {
    const char *name;
    void (*finish)(collective *); /* may be NULL */
    place at;
    uint32_t mask, arrived, left;
    alignas(16) unsigned char slots[LANES * SLOT_BYTES]; /* an array of the operand's type */
};

struct warp {
    uint32_t exited, used, done; /* used, done: a bit a collective */
    collective open[OPEN_COLLECTIVES];
};

struct block {
    dim3 grid, size;
    uint3 index;
    int n_threads, n_words, alive;
    uint64_t ready[MOST_THREADS / 64]; /* threads that can go on */
    uint64_t at_barrier[MOST_THREADS / 64];
    int n_at_barrier;
    place barrier;
    int votes, verdict; /* of the barrier that gathers, of the last one */
    unsigned char *shared;
    thread threads[MOST_THREADS];
    warp warps[MOST_WARPS];
};

} // namespace emu

namespace emu
{

extern block running;
extern thread *self; /* NULL outside kernels */

/* Runs one block; false when it ended by a fault. `body` is called once a thread. */
struct kernel_call {
    void (*body)(const void *arguments);
    const void *arguments;
};
bool block_run(const kernel_call &call, uint3 index);
/* Shape of the blocks that block_run runs, until the next call. */
void block_shape(dim3 grid, dim3 size);

/* Lets others run until this thread is ready again. */
void thread_wait(place at);
/* __syncthreads: yields how many threads voted. */
int barrier(bool vote, place at);
/* From a fault: the threads of this block never go on. */
[[noreturn]] void block_abandon();

inline void set_ready(int warp, uint32_t lanes)
{
    running.ready[warp / 2] |= static_cast<uint64_t>(lanes) << (warp % 2 * LANES);
}

inline void clear_ready(int id)
{
    running.ready[id / 64] &= ~(UINT64_C(1) << (id % 64));
}

/* Of warp.cpp: an exited lane is no longer waited for. */
void warp_exited(thread *t);
/* Of async_copy.cpp. */
void async_copies_reset(thread *t);

} // namespace emu
#endif
