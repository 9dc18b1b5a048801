/* Fibers: a stack for each thread of a block, and the switch from one to another. */
#ifndef DMS_CUDA_EMU_FIBER_H
#define DMS_CUDA_EMU_FIBER_H

#include <stddef.h>

#include "kernels/cuda_emu/asan.h"

namespace emu
{

enum { MOST_FIBERS = 1024 };

/* stack: 0 to MOST_FIBERS - 1, or -1: the stack of whoever called the runtime. */
struct fiber {
    void *sp;
    void *fake_stack; /* AddressSanitizer's */
    int stack;
};

/* Maps the stacks; false when there is no memory. May be called again. */
bool fibers_open();
/* The first switch to f calls entry on the stack named; entry begins with fiber_begin and never
 * returns. */
void fiber_prepare(fiber *f, int stack, void (*entry)());
/* Where the stack of f begins, as a function that is called there finds it. */
void *fiber_top(const fiber *f);
/* Whether the address lies in the page below a stack. */
bool fiber_is_overflow(const void *address);

extern "C" __attribute__((visibility("hidden"))) void dms_emu_switch(void **save, void *to);

#ifdef DMS_EMU_ASAN
void fiber_begin();
void fiber_switch(fiber *from, fiber *to);
/* `from` is never resumed. */
void fiber_leave(fiber *from, fiber *to);
#else
inline void fiber_begin()
{
}
inline void fiber_switch(fiber *from, fiber *to)
{
    dms_emu_switch(&from->sp, to->sp);
}
inline void fiber_leave(fiber *from, fiber *to)
{
    dms_emu_switch(&from->sp, to->sp);
}
#endif

} // namespace emu
#endif
