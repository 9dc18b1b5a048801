/* Fibers: the switch in assembler, and what AddressSanitizer must hear of it. */
#include "kernels/cuda_emu/fiber.h"

#include <stdint.h>
#include <sys/mman.h>

#if !defined(__x86_64__)
#error "the switch of kernels/cuda_emu/fiber.cpp is written for x86-64 only"
#endif

/* Saves what the System V ABI lets a function expect to keep, and goes on where `to` stopped. */
asm(R"(
.text
.globl dms_emu_switch
.hidden dms_emu_switch
.type dms_emu_switch, @function
dms_emu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size dms_emu_switch, .-dms_emu_switch
)");

namespace emu
{

enum : size_t {
    GUARD = 4096,
#ifdef DMS_EMU_ASAN
    STACK = 256 << 10, /* redzones take room */
#else
    STACK = 64 << 10,
#endif
    SAVED_REGISTERS = 6,
    /* Stack tops a power of two apart would all fall in one set of the cache. */
    STAGGER = 320,
    STAGGERS = 64
};

static char *stacks;

bool fibers_open()
{
    if (stacks)
        return true;
    void *all = mmap(nullptr, STACK * MOST_FIBERS, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (all == MAP_FAILED)
        return false;
    stacks = static_cast<char *>(all);
    for (size_t i = 0; i < MOST_FIBERS; i++)
        mprotect(stacks + i * STACK, GUARD, PROT_NONE);
    return true;
}

bool fiber_is_overflow(const void *address)
{
    const uintptr_t at = reinterpret_cast<uintptr_t>(address);
    const uintptr_t first = reinterpret_cast<uintptr_t>(stacks);
    return stacks && at >= first && at < first + STACK * MOST_FIBERS &&
           (at - first) % STACK < GUARD;
}

/* 8 bytes off the alignment, as the return address leaves it. */
void *fiber_top(const fiber *f)
{
    const size_t stack = static_cast<size_t>(f->stack);
    return stacks + (stack + 1) * STACK - stack % STAGGERS * STAGGER - 24;
}

void fiber_prepare(fiber *f, int stack, void (*entry)())
{
    f->stack = stack;
    void **sp = static_cast<void **>(fiber_top(f));
    __asan_unpoison_memory_region(stacks + static_cast<size_t>(stack) * STACK + GUARD,
                                  STACK - GUARD);
    *sp = nullptr;
    *--sp = reinterpret_cast<void *>(entry);
    for (size_t i = 0; i < SAVED_REGISTERS; i++)
        *--sp = nullptr;
    f->sp = sp;
}

#ifdef DMS_EMU_ASAN

static const void *host_bottom;
static size_t host_bytes;
static fiber *came_from;

static void announce(void **fake_stack, fiber *from, fiber *to)
{
    came_from = from;
    if (to->stack < 0)
        __sanitizer_start_switch_fiber(fake_stack, host_bottom, host_bytes);
    else
        __sanitizer_start_switch_fiber(
            fake_stack, stacks + static_cast<size_t>(to->stack) * STACK + GUARD, STACK - GUARD);
}

static void arrived(void *fake_stack)
{
    const void *bottom;
    size_t bytes;
    __sanitizer_finish_switch_fiber(fake_stack, &bottom, &bytes);
    if (came_from->stack < 0) {
        host_bottom = bottom;
        host_bytes = bytes;
    }
}

void fiber_begin()
{
    arrived(nullptr);
}

void fiber_switch(fiber *from, fiber *to)
{
    announce(&from->fake_stack, from, to);
    dms_emu_switch(&from->sp, to->sp);
    arrived(from->fake_stack);
}

void fiber_leave(fiber *from, fiber *to)
{
    announce(nullptr, from, to);
    dms_emu_switch(&from->sp, to->sp);
}

#endif

} // namespace emu
