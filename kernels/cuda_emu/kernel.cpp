/* Launches: checked when asked for, run when their stream comes to them. */
#include "kernels/cuda_emu/kernel.h"

#include <map>
#include <numeric>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda_emu/crash.h"
#include "kernels/cuda_emu/report.h"
#include "kernels/cuda_emu/runtime.h"
#include "kernels/cuda_emu/schedule.h"
#include "kernels/cuda_emu/stream.h"

namespace emu
{

schedule now;

static std::map<const void *, kernel_record> kernels;
static const kernel_record *running_kernel;

bool schedule_set(const char *name)
{
    const uint64_t golden = UINT64_C(0x9e3779b97f4a7c15);
    uint64_t seed = 0;
    emu::order order = FORWARD;
    if (!strncmp(name, "rand", 4) && (name[4] == ':' || !name[4])) {
        order = RANDOM;
        seed = name[4] ? strtoull(name + 5, nullptr, 10) : 0;
    } else if (!strcmp(name, "rev")) {
        order = REVERSE;
    } else if (strcmp(name, "fwd") != 0) {
        return false;
    }
    now = {order, (seed + 1) * golden};
    return true;
}

/* "(ns::name<float, 64>)" to "name". */
static std::string identifier(const std::string &text)
{
    const size_t from = text.find_first_not_of("( &");
    const size_t to = text.find_first_of("<( )", from);
    std::string name = text.substr(from, to == std::string::npos ? to : to - from);
    const size_t scope = name.rfind(':');
    return scope == std::string::npos ? name : name.substr(scope + 1);
}

kernel_record *kernel_find(const void *address, const char *text)
{
    const auto found = kernels.find(address);
    if (found != kernels.end())
        return &found->second;
    const std::string symbol = symbol_name(address);
    const kernel_record made = {identifier(symbol.empty() ? text : symbol),
                                SHARED_DEFAULT - SHARED_STATIC, SIZE_MAX, 0, false};
    return &kernels.emplace(address, made).first->second;
}

const char *kernel_running()
{
    return running_kernel ? running_kernel->name.c_str() : "";
}

/* The k-th block of `total` in this schedule; in a random one, a step that shares no factor with
 * the total visits each once. */
struct block_order {
    uint64_t total, first, step;
};

static block_order order_blocks(uint64_t total)
{
    block_order order = {total, 0, 1};
    if (now.order == REVERSE) {
        order.first = order.step = total - 1;
    } else if (now.order == RANDOM) {
        order.first = random_below(total);
        do
            order.step = random_below(total) + 1;
        while (std::gcd(order.step, total) != 1);
    }
    return order;
}

static void run_blocks(kernel_record *kernel, const launch_request &request)
{
    const kernel_call call = {request.body, request.arguments.get()};
    const dim3 grid = request.grid;
    const block_order order = order_blocks(static_cast<uint64_t>(grid.x) * grid.y * grid.z);
    uint64_t at = order.first;
    for (uint64_t k = 0; k < order.total; k++) {
        const uint3 index = {static_cast<unsigned>(at % grid.x),
                             static_cast<unsigned>(at / grid.x % grid.y),
                             static_cast<unsigned>(at / grid.x / grid.y)};
        static_shared_fill(kernel);
        running.shared = shared_open(request.shared);
        if (!block_run(call, index))
            break;
        if ((k == 0 && !kernel->touched_to) || k + 1 == order.total)
            static_shared_learn(kernel);
        at = (at + order.step) % order.total;
    }
    static_shared_fill(kernel);
}

static void run_grid(kernel_record *kernel, const launch_request &request)
{
    if (!kernel->logged)
        log_kernel(kernel->name.c_str());
    kernel->logged = true;
    running_kernel = kernel;
    block_shape(request.grid, request.size);
    run_blocks(kernel, request);
    running_kernel = nullptr;
}

/* Compute capability 9.0: CUDA programming guide, "Technical Specifications per Compute
 * Capability". */
static cudaError_t check_shape(const launch_request &request, const kernel_record *kernel)
{
    const dim3 grid = request.grid, size = request.size;
    if (!grid.x || !grid.y || !grid.z || !size.x || !size.y || !size.z)
        return cudaErrorInvalidConfiguration;
    if (grid.x > INT32_MAX || grid.y > 65535 || grid.z > 65535)
        return cudaErrorInvalidConfiguration;
    if (size.x > MOST_THREADS || size.y > MOST_THREADS || size.z > 64 ||
        static_cast<uint64_t>(size.x) * size.y * size.z > MOST_THREADS)
        return cudaErrorInvalidConfiguration;
    return request.shared > kernel->shared_allowed ? cudaErrorInvalidValue : cudaSuccess;
}

void launch_queue(const launch_request &request, cudaStream_t stream)
{
    const entry entered;
    kernel_record *kernel = kernel_find(request.address, request.text);
    cudaError_t error = device_state();
    if (!error)
        error = check_shape(request, kernel);
    if (!error && !fibers_open())
        error = cudaErrorMemoryAllocation;
    crash_open();
    if (!error)
        error = queue_task(stream, [=] { run_grid(kernel, request); });
    if (error)
        failed(error);
    else if (!stream_is_recording(stream))
        counts.launches++;
}

} // namespace emu

using namespace emu;

DMS_EMU_API cudaFuncSetAttribute(const void *kernel, enum cudaFuncAttribute attribute, int value)
{
    DMS_EMU_ENTER();
    if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout)
        return cudaSuccess;
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
        static_cast<size_t>(value) > SHARED_MOST - SHARED_STATIC)
        return failed(cudaErrorInvalidValue);
    kernel_find(kernel, "")->shared_allowed =
        std::max(static_cast<size_t>(value), SHARED_DEFAULT - SHARED_STATIC);
    return cudaSuccess;
}

DMS_EMU_API cudaFuncGetAttributes(struct cudaFuncAttributes *out, const void *kernel)
{
    DMS_EMU_ENTER();
    *out = {};
    out->maxThreadsPerBlock = MOST_THREADS;
    out->maxDynamicSharedSizeBytes = static_cast<int>(kernel_find(kernel, "")->shared_allowed);
    return cudaSuccess;
}
