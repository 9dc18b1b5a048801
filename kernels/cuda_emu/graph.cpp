/* Graphs: works recorded from streams, replayed in the order of their calls. */
#include "kernels/cuda_emu/report.h"
#include "kernels/cuda_emu/runtime.h"
#include "kernels/cuda_emu/stream.h"

using namespace emu;

DMS_EMU_API cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode)
{
    DMS_EMU_ENTER();
    CUstream_st *s = stream_find(stream);
    if (!s)
        return failed(cudaErrorInvalidResourceHandle);
    if (s == stream_find(nullptr))
        return failed(cudaErrorStreamCaptureUnsupported);
    if (s->recorded)
        return failed(cudaErrorIllegalState);
    s->recorded = std::make_shared<recording>();
    s->recorded->members.push_back({s, 0, 0});
    s->recorded->mode = mode;
    s->recorded->owner = std::this_thread::get_id();
    return cudaSuccess;
}

/* Why the recording cannot become a graph. */
static cudaError_t check_end(const recording &r)
{
    if (r.invalid)
        return cudaErrorStreamCaptureInvalidated;
    for (size_t i = 1; i < r.members.size(); i++) {
        if (r.members[i].joined < r.members[i].works)
            return cudaErrorStreamCaptureUnjoined;
    }
    return cudaSuccess;
}

DMS_EMU_API cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    DMS_EMU_ENTER();
    const CUstream_st *s = stream_find(stream);
    *graph = nullptr;
    if (!s || !s->recorded)
        return failed(cudaErrorIllegalState);
    const std::shared_ptr<recording> r = s->recorded;
    if (r->members[0].stream != s)
        return failed(cudaErrorStreamCaptureUnmatched);
    if (r->mode != cudaStreamCaptureModeRelaxed && r->owner != std::this_thread::get_id())
        return failed(cudaErrorStreamCaptureWrongThread);
    for (const member &m : r->members) {
        if (CUstream_st *of = stream_find(m.stream))
            of->recorded = nullptr;
    }
    if (const cudaError_t error = check_end(*r))
        return failed(error);
    *graph = new CUgraph_st{std::move(r->tasks)};
    return cudaSuccess;
}

DMS_EMU_API cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status)
{
    DMS_EMU_ENTER();
    const CUstream_st *s = stream_find(stream);
    if (!s)
        return failed(cudaErrorInvalidResourceHandle);
    *status = !s->recorded           ? cudaStreamCaptureStatusNone
              : s->recorded->invalid ? cudaStreamCaptureStatusInvalidated
                                     : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}

DMS_EMU_API cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t graph, unsigned long long)
{
    DMS_EMU_ENTER();
    if (!graph)
        return failed(cudaErrorInvalidValue);
    *out = new CUgraphExec_st{graph->tasks};
    return cudaSuccess;
}

DMS_EMU_API cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream)
{
    DMS_EMU_ENTER();
    if (!graph)
        return failed(cudaErrorInvalidValue);
    for (const task &run : graph->tasks) {
        if (const cudaError_t error = queue_task(stream, run))
            return failed(error);
    }
    counts.replays++;
    return cudaSuccess;
}

DMS_EMU_API cudaGraphDestroy(cudaGraph_t graph)
{
    const entry entered;
    delete graph;
    return device_state();
}

DMS_EMU_API cudaGraphExecDestroy(cudaGraphExec_t graph)
{
    const entry entered;
    delete graph; /* works in the queues are copies */
    return device_state();
}
