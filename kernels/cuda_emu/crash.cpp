/* The signal handler that turns a kernel's crash into a fault. */
#include "kernels/cuda_emu/crash.h"

#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <ucontext.h>

#include "kernels/cuda_emu/kernel.h"
#include "kernels/cuda_emu/report.h"

namespace emu
{

#ifdef DMS_EMU_ASAN

void crash_open()
{
}

#else

static struct sigaction before[NSIG];
static const char *name, *detail;
static cudaError_t error;

/* Where a kernel that crashed goes on, on its own stack. */
[[noreturn]] static void crashed()
{
    fault(error, {nullptr, 0}, name, "%s", detail);
}

static void classify(const siginfo_t *info)
{
    error = cudaErrorIllegalAddress;
    name = "illegal address";
    detail = "the address is not mapped";
    if (fiber_is_overflow(info->si_addr)) {
        name = "stack overflow";
        detail = "the thread's arrays and calls need more than its stack";
    } else if (shared_is_overrun(info->si_addr)) {
        name = "shared memory overrun";
        detail = "past the dynamic shared memory of the launch";
    } else if (info->si_signo == SIGBUS || info->si_code == SI_KERNEL) {
        error = cudaErrorMisalignedAddress;
        name = "misaligned access";
        detail = "a vector's address is not a multiple of its size";
    }
}

static void handle(int signal, siginfo_t *info, void *context)
{
    if (!self) {
        sigaction(signal, &before[signal], nullptr); /* not a kernel's: happens again */
        return;
    }
    classify(info);
    greg_t *registers = static_cast<ucontext_t *>(context)->uc_mcontext.gregs;
    registers[REG_RIP] = reinterpret_cast<greg_t>(crashed);
    registers[REG_RSP] = reinterpret_cast<greg_t>(fiber_top(&self->run));
}

void crash_open()
{
    static bool opened;
    stack_t stack = {};
    struct sigaction action = {};
    if (opened)
        return;
    opened = true;
    sigaltstack(nullptr, &stack);
    if (stack.ss_flags & SS_DISABLE) {
        static unsigned char room[1 << 16];
        stack = {};
        stack.ss_sp = room;
        stack.ss_size = sizeof(room);
        sigaltstack(&stack, nullptr);
    }
    action.sa_sigaction = handle;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, &before[SIGSEGV]);
    sigaction(SIGBUS, &action, &before[SIGBUS]);
}

#endif

} // namespace emu
