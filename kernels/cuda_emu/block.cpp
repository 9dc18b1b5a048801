/* The scheduler of a block: which thread goes on when one waits or ends. */
#include "kernels/cuda_emu/block.h"

#include <stdio.h>
#include <string.h>

#include "kernels/cuda_emu/report.h"
#include "kernels/cuda_emu/schedule.h"

namespace emu
{

block running;
thread *self;

static kernel_call kernel;
static fiber host = {nullptr, nullptr, -1};
static int free_stacks[MOST_FIBERS], n_free_stacks, n_stacks;
static bool abandoned;

static void give_stack(thread *t);

/* The first or last set bit of a non-zero word. */
static int pick_bit(uint64_t word)
{
    return now.order == REVERSE ? 63 - __builtin_clzll(word) : __builtin_ctzll(word);
}

static int pick_random()
{
    const int n = running.n_words, start = static_cast<int>(random_below(running.n_threads));
    uint64_t word = running.ready[start / 64] & (~UINT64_C(0) << (start % 64));
    for (int i = 0; i <= n; i++) {
        const int at = (start / 64 + i) % n;
        if (i)
            word = running.ready[at];
        if (word)
            return at * 64 + __builtin_ctzll(word);
    }
    return -1;
}

/* The thread that goes on: of this warp if one can. -1: none can. */
static int pick()
{
    const int n = running.n_words;
    if (now.order == RANDOM)
        return pick_random();
    if (self) {
        const int shift = self->warp % 2 * LANES;
        const uint32_t lanes = static_cast<uint32_t>(running.ready[self->warp / 2] >> shift);
        if (lanes)
            return self->warp * LANES + pick_bit(lanes);
    }
    for (int i = 0; i < n; i++) {
        const int at = now.order == REVERSE ? n - 1 - i : i;
        if (running.ready[at])
            return at * 64 + pick_bit(running.ready[at]);
    }
    return -1;
}

static void release_barrier()
{
    for (int i = 0; i < running.n_words; i++) {
        running.ready[i] |= running.at_barrier[i];
        running.at_barrier[i] = 0;
    }
    running.n_at_barrier = 0;
    running.verdict = running.votes;
    running.votes = 0;
}

/* Nobody can go on: lanes wait for lanes of their warp that wait elsewhere. */
[[noreturn]] static void deadlock()
{
    for (int i = 0; i < running.n_threads; i++) {
        thread &t = running.threads[i];
        const warp &w = running.warps[t.warp];
        for (uint32_t open = w.used & ~w.done; open && !t.exited; open &= open - 1) {
            const collective &c = w.open[__builtin_ctz(open)];
            if (!(c.arrived >> t.lane & 1))
                continue;
            const uint32_t missing = c.mask & ~c.arrived & ~w.exited;
            const thread &other = running.threads[t.warp * LANES + __builtin_ctz(missing)];
            self = &t;
            fault(cudaErrorLaunchFailure, c.at, "warp divergence",
                  "%s waits for lanes 0x%08x, lane %d waits at %s:%d", c.name, missing, other.lane,
                  other.waits_at.file, other.waits_at.line);
        }
    }
    fault(cudaErrorLaunchFailure, running.barrier, "barrier divergence",
          "%d of %d threads arrived, none can go on", running.n_at_barrier, running.alive);
}

static bool same_line(place a, place b)
{
    return a.line == b.line && (a.file == b.file || !strcmp(a.file, b.file));
}

int barrier(bool vote, place at)
{
    if (running.n_at_barrier == 0)
        running.barrier = at;
    else if (!same_line(running.barrier, at))
        fault(cudaErrorLaunchFailure, at, "barrier divergence", "other threads wait at %s:%d",
              running.barrier.file, running.barrier.line);
    running.votes += vote;
    if (++running.n_at_barrier == running.alive) {
        release_barrier();
        return running.verdict;
    }
    clear_ready(self->id);
    running.at_barrier[self->id / 64] |= UINT64_C(1) << (self->id % 64);
    thread_wait(at);
    return running.verdict;
}

void thread_wait(place at)
{
    thread *me = self;
    me->waits_at = at;
    const int next = pick();
    if (next < 0)
        deadlock();
    thread *other = &running.threads[next];
    if (!other->started)
        give_stack(other);
    self = other;
    fiber_switch(&me->run, &other->run);
}

static void exit_thread(thread *t)
{
    t->exited = true;
    clear_ready(t->id);
    running.alive--;
    warp_exited(t);
    if (running.alive && running.n_at_barrier == running.alive)
        release_barrier();
}

/* What every fiber does: a thread, and the next one on the same stack while none waits, so that
 * kernels without barriers never switch. */
static void run_threads()
{
    fiber_begin();
    for (;;) {
        thread *me = self;
        me->started = true;
        kernel.body(kernel.arguments);
        me = self;
        exit_thread(me);
        const int next = pick();
        if (next < 0 && running.alive)
            deadlock();
        thread *other = next < 0 ? nullptr : &running.threads[next];
        if (other && !other->started) {
            other->run.stack = me->run.stack;
            self = other;
            continue;
        }
        free_stacks[n_free_stacks++] = me->run.stack;
        self = other;
        fiber_leave(&me->run, other ? &other->run : &host);
    }
}

static void give_stack(thread *t)
{
    fiber_prepare(&t->run, n_free_stacks ? free_stacks[--n_free_stacks] : n_stacks++, run_threads);
}

void block_abandon()
{
    thread *me = self;
    abandoned = true;
    self = nullptr;
    fiber_leave(&me->run, &host);
    __builtin_unreachable();
}

void block_shape(dim3 grid, dim3 size)
{
    running.grid = grid;
    running.size = size;
    running.n_threads = static_cast<int>(size.x * size.y * size.z);
    running.n_words = (running.n_threads + 63) / 64;
    for (int i = 0; i < running.n_threads; i++) {
        const unsigned at = static_cast<unsigned>(i);
        thread &t = running.threads[i];
        t.id = i;
        t.lane = i % LANES;
        t.warp = i / LANES;
        t.index = uint3{at % size.x, at / size.x % size.y, at / (size.x * size.y)};
    }
}

static void reset()
{
    const int n = running.n_threads;
    running.alive = n;
    running.n_at_barrier = running.votes = running.verdict = 0;
    n_free_stacks = n_stacks = 0;
    abandoned = false;
    for (int i = 0; i < running.n_words; i++) {
        const int left = n - i * 64;
        running.at_barrier[i] = 0;
        running.ready[i] = left >= 64 ? ~UINT64_C(0) : (UINT64_C(1) << left) - 1;
    }
    for (int i = 0; i < (n + LANES - 1) / LANES; i++) {
        warp &w = running.warps[i];
        w.exited = (i + 1) * LANES > n ? ~UINT32_C(0) << (n % LANES) : 0;
        w.used = w.done = 0;
    }
    for (int i = 0; i < n; i++) {
        thread &t = running.threads[i];
        t.started = t.exited = false;
        if (t.groups || t.copies)
            async_copies_reset(&t);
    }
}

bool block_run(const kernel_call &call, uint3 index)
{
    kernel = call;
    running.index = index;
    reset();
    self = nullptr;
    thread *first = &running.threads[pick()];
    give_stack(first);
    self = first;
    fiber_switch(&host, &first->run);
    self = nullptr;
    return !abandoned;
}

} // namespace emu
