/* DMS_LAUNCH and DMS_ALLOW_SHARED: a kernel and its arguments, kept until the stream runs them. */
#ifndef DMS_CUDA_EMU_LAUNCH_CUH
#define DMS_CUDA_EMU_LAUNCH_CUH

#include <tuple>

#include "kernels/cuda/device.h"
#include "kernels/cuda_emu/kernel.h"

namespace emu
{

template <class T> struct same {
    typedef T type;
};

template <class... P> struct arguments {
    void (*kernel)(P...);
    std::tuple<P...> values;

    static void call(const void *of)
    {
        const arguments *me = static_cast<const arguments *>(of);
        std::apply(me->kernel, me->values);
    }
};

struct shape {
    dim3 grid, size;
    size_t shared;
    cudaStream_t stream;
};

/* The values are converted to the kernel's parameters, as in a call. */
template <class... P>
void launch(const char *text, const shape &of, void (*kernel)(P...),
            typename same<P>::type... values)
{
    launch_request request = {reinterpret_cast<const void *>(kernel),
                              text,
                              of.grid,
                              of.size,
                              of.shared,
                              arguments<P...>::call,
                              nullptr};
    request.arguments =
        std::make_shared<arguments<P...>>(arguments<P...>{kernel, std::tuple<P...>(values...)});
    launch_queue(request, of.stream);
}

} // namespace emu

#define DMS_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                            \
    do {                                                                                      \
        const cudaStream_t stream_ = (stream);                                                \
        if (stream_ != DMS_CUDA_NOWHERE)                                                      \
            emu::launch(#kernel,                                                              \
                        emu::shape{dim3(grid), dim3(block), (size_t)(shared_bytes), stream_}, \
                        kernel, __VA_ARGS__);                                                 \
    } while (0)

#define DMS_ALLOW_SHARED(kernel, bytes)                          \
    cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel), \
                         cudaFuncAttributeMaxDynamicSharedMemorySize, (int)(bytes))

#endif
