/* Device and pinned memory, copies and fills. */
#include <map>
#include <stdlib.h>
#include <string.h>
#include <vector>

#include "kernels/cuda_emu/report.h"
#include "kernels/cuda_emu/runtime.h"
#include "kernels/cuda_emu/stream.h"

namespace emu
{

enum : size_t { ALIGNMENT = 256, DEVICE_BYTES = static_cast<size_t>(4) << 30 };

struct region {
    size_t bytes;
    bool pinned; /* the host's; else the device's */
};

static std::map<uintptr_t, region> regions;

/* DMS_CUDA_EMU_BYTES, read at each call so that a test can change it. */
static size_t capacity()
{
    const char *text = getenv("DMS_CUDA_EMU_BYTES");
    return text ? strtoull(text, nullptr, 10) : static_cast<size_t>(DEVICE_BYTES);
}

static size_t free_bytes()
{
    const size_t all = capacity(), live = static_cast<size_t>(counts.live_bytes);
    return all > live ? all - live : 0;
}

/* The region that the address lies in, NULL if none. */
static const region *region_find(const void *pointer, size_t *left)
{
    const uintptr_t at = reinterpret_cast<uintptr_t>(pointer);
    auto next = regions.upper_bound(at);
    if (next == regions.begin())
        return nullptr;
    --next;
    if (at - next->first >= next->second.bytes)
        return nullptr;
    *left = next->second.bytes - (at - next->first);
    return &next->second;
}

static bool is_device(const void *pointer, size_t bytes)
{
    size_t left;
    const region *r = region_find(pointer, &left);
    return r && !r->pinned && left >= bytes;
}

static bool is_host(const void *pointer)
{
    size_t left;
    const region *r = region_find(pointer, &left);
    return !r || r->pinned;
}

static bool is_pinned(const void *pointer)
{
    size_t left;
    const region *r = region_find(pointer, &left);
    return r && r->pinned;
}

/* New memory reads as NaN. */
static cudaError_t allocate(void **out, size_t bytes, bool pinned)
{
    void *memory = nullptr;
    *out = nullptr;
    if (const cudaError_t error = forbid_recording())
        return error;
    if (!bytes)
        return cudaSuccess;
    if (!pinned && bytes > free_bytes())
        return cudaErrorMemoryAllocation;
    if (posix_memalign(&memory, ALIGNMENT, bytes))
        return cudaErrorMemoryAllocation;
    memset(memory, 0xff, bytes);
    regions[reinterpret_cast<uintptr_t>(memory)] = {bytes, pinned};
    *out = memory;
    if (pinned)
        return cudaSuccess;
    counts.allocations++;
    counts.live_bytes += static_cast<int64_t>(bytes);
    if (counts.live_bytes > counts.peak_bytes)
        counts.peak_bytes = counts.live_bytes;
    return cudaSuccess;
}

static cudaError_t release(void *pointer, bool pinned)
{
    const auto found = regions.find(reinterpret_cast<uintptr_t>(pointer));
    if (found == regions.end() || found->second.pinned != pinned)
        return cudaErrorInvalidValue;
    if (!pinned)
        counts.live_bytes -= static_cast<int64_t>(found->second.bytes);
    regions.erase(found);
    free(pointer);
    return cudaSuccess;
}

/* Works that are queued may use it: they run first. */
static cudaError_t release_after_work(void *pointer, bool pinned)
{
    if (const cudaError_t error = forbid_recording())
        return error;
    if (!pointer)
        return device_state();
    drain(nullptr);
    const cudaError_t error = release(pointer, pinned);
    return error ? error : device_state();
}

void memory_reset()
{
    for (const auto &r : regions)
        free(reinterpret_cast<void *>(r.first));
    regions.clear();
    counts.live_bytes = 0;
}

static cudaMemcpyKind kind_of(const void *to, const void *from)
{
    if (is_host(to))
        return is_host(from) ? cudaMemcpyHostToHost : cudaMemcpyDeviceToHost;
    return is_host(from) ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToDevice;
}

static bool fits(void *to, const void *from, size_t bytes, cudaMemcpyKind kind)
{
    const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    return (to_device ? is_device(to, bytes) : is_host(to)) &&
           (from_device ? is_device(from, bytes) : is_host(from));
}

/* Pageable memory of the host is read at once, as the runtime stages it; pinned memory, and all in
 * a recording, when the copy runs. */
static cudaError_t copy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                        cudaStream_t stream)
{
    if (kind == cudaMemcpyDefault)
        kind = kind_of(to, from);
    if (!bytes)
        return cudaSuccess;
    if (!fits(to, from, bytes, kind))
        return cudaErrorInvalidValue;
    if (kind == cudaMemcpyHostToDevice && !is_pinned(from) && !stream_is_recording(stream)) {
        const char *first = static_cast<const char *>(from);
        const std::shared_ptr<std::vector<char>> staged =
            std::make_shared<std::vector<char>>(first, first + bytes);
        return queue_task(stream, [=] { memcpy(to, staged->data(), bytes); });
    }
    return queue_task(stream, [=] {
        memmove(to, from, bytes);
        counts.host_reads += kind == cudaMemcpyDeviceToHost;
    });
}

static cudaError_t fill(void *at, int value, size_t bytes, cudaStream_t stream)
{
    if (!bytes)
        return cudaSuccess;
    if (!is_device(at, bytes))
        return cudaErrorInvalidValue;
    return queue_task(stream, [=] { memset(at, value, bytes); });
}

static cudaError_t kept(cudaError_t error)
{
    return error ? failed(error) : cudaSuccess;
}

} // namespace emu

using namespace emu;

DMS_EMU_API cudaMalloc(void **out, size_t bytes)
{
    DMS_EMU_ENTER();
    return kept(allocate(out, bytes, false));
}

DMS_EMU_API cudaMallocAsync(void **out, size_t bytes, cudaStream_t)
{
    DMS_EMU_ENTER();
    return kept(allocate(out, bytes, false));
}

DMS_EMU_API cudaMallocHost(void **out, size_t bytes)
{
    DMS_EMU_ENTER();
    return kept(allocate(out, bytes, true));
}

DMS_EMU_API cudaHostAlloc(void **out, size_t bytes, unsigned)
{
    DMS_EMU_ENTER();
    return kept(allocate(out, bytes, true));
}

DMS_EMU_API cudaFree(void *pointer)
{
    const entry entered;
    return kept(release_after_work(pointer, false));
}

DMS_EMU_API cudaFreeHost(void *pointer)
{
    const entry entered;
    return kept(release_after_work(pointer, true));
}

DMS_EMU_API cudaFreeAsync(void *pointer, cudaStream_t stream)
{
    DMS_EMU_ENTER();
    if (!is_device(pointer, 0))
        return failed(cudaErrorInvalidValue);
    if (stream_is_recording(stream))
        return failed(cudaErrorStreamCaptureUnsupported);
    return kept(queue_task(stream, [=] { release(pointer, false); }));
}

DMS_EMU_API cudaMemGetInfo(size_t *available, size_t *all)
{
    DMS_EMU_ENTER();
    *all = capacity();
    *available = free_bytes();
    return cudaSuccess;
}

DMS_EMU_API cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind,
                            cudaStream_t stream)
{
    DMS_EMU_ENTER();
    return kept(copy(to, from, bytes, kind, stream));
}

DMS_EMU_API cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind)
{
    DMS_EMU_ENTER();
    cudaError_t error = forbid_recording();
    if (!error)
        error = copy(to, from, bytes, kind, nullptr);
    if (error)
        return failed(error);
    counts.synchronisations++;
    drain(stream_find(nullptr));
    return device_state();
}

DMS_EMU_API cudaMemsetAsync(void *at, int value, size_t bytes, cudaStream_t stream)
{
    DMS_EMU_ENTER();
    return kept(fill(at, value, bytes, stream));
}

DMS_EMU_API cudaMemset(void *at, int value, size_t bytes)
{
    DMS_EMU_ENTER();
    const cudaError_t error = forbid_recording();
    return kept(error ? error : fill(at, value, bytes, nullptr));
}
