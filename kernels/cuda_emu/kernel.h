/* Kernels as the runtime knows them: name, shared memory, what a launch of one is. */
#ifndef DMS_CUDA_EMU_KERNEL_H
#define DMS_CUDA_EMU_KERNEL_H

#include <cuda_runtime_api.h>
#include <memory>
#include <stddef.h>
#include <string>

#include "kernels/cuda_emu/block.h"

namespace emu
{

/* Limits of static and dynamic shared memory together. How much static memory a kernel has is not
 * known before it ran: each counts as having SHARED_STATIC. */
enum : size_t { SHARED_DEFAULT = 48 << 10, SHARED_MOST = 227 << 10, SHARED_STATIC = 1 << 10 };

struct kernel_record {
    std::string name;                /* the identifier, without template arguments */
    size_t shared_allowed;           /* dynamic shared memory, bytes */
    size_t touched_from, touched_to; /* of the static shared memory, as far as was seen */
    bool logged;
};

/* `text` is the name where the module has no symbols. */
kernel_record *kernel_find(const void *address, const char *text);
/* Of the kernel that runs; "" outside. */
const char *kernel_running();

struct launch_request {
    const void *address;
    const char *text;
    dim3 grid, size;
    size_t shared;
    void (*body)(const void *arguments);
    std::shared_ptr<const void> arguments;
};
/* Checks the shape and queues the kernel; a failure is the runtime's last error. */
void launch_queue(const launch_request &request, cudaStream_t stream);

/* Of shared.cpp. The block's dynamic shared memory, filled with NaN, ends where its guard begins.
 * NULL: no memory. */
unsigned char *shared_open(size_t bytes);
bool shared_is_overrun(const void *address);
/* Static shared memory: filled with NaN as far as this kernel is known to touch it. */
void static_shared_fill(const kernel_record *kernel);
/* After a block: learns what the kernel touched. */
void static_shared_learn(kernel_record *kernel);

/* Of symbols.cpp: the name of the function there, "" if unknown. */
std::string symbol_name(const void *address);

} // namespace emu
#endif
