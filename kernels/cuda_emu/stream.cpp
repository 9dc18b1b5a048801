/* Streams and events: queues that wait to be drained. */
#include "kernels/cuda_emu/stream.h"

#include <algorithm>
#include <time.h>

#include "kernels/cuda_emu/report.h"
#include "kernels/cuda_emu/runtime.h"
#include "kernels/cuda_emu/schedule.h"

namespace emu
{

enum { QUEUED_MOST = 4096 }; /* more are run early, to bound the memory */

static CUstream_st legacy = {{}, nullptr, true};
static std::vector<CUstream_st *> streams = {&legacy}; /* the oldest first */
static std::vector<std::weak_ptr<event_state>> events;
static int64_t n_queued, n_asked;

CUstream_st *stream_find(cudaStream_t stream)
{
    if (!stream || stream == cudaStreamLegacy || stream == cudaStreamPerThread)
        return &legacy;
    return std::find(streams.begin(), streams.end(), stream) == streams.end() ? nullptr : stream;
}

bool stream_is_recording(cudaStream_t stream)
{
    const CUstream_st *s = stream_find(stream);
    return s && s->recorded;
}

/* Stream 0 and the blocking streams run their works in the order of the calls. */
static bool is_its_turn(const CUstream_st *s)
{
    const int64_t number = s->queue.front().number;
    if (s != &legacy)
        return !s->blocking || legacy.queue.empty() || legacy.queue.front().number > number;
    for (const CUstream_st *other : streams) {
        if (other->blocking && !other->queue.empty() && other->queue.front().number < number)
            return false;
    }
    return true;
}

static bool is_ready(const CUstream_st *s)
{
    if (s->queue.empty())
        return false;
    const item &next = s->queue.front();
    return (!next.is_wait || next.event->reached >= next.ticket) && is_its_turn(s);
}

static CUstream_st *pick()
{
    std::vector<CUstream_st *> ready;
    for (CUstream_st *s : streams) {
        if (is_ready(s))
            ready.push_back(s);
    }
    if (ready.empty())
        return nullptr;
    if (now.order == RANDOM)
        return ready[random_below(ready.size())];
    return now.order == REVERSE ? ready.back() : ready.front();
}

static double clock_ms()
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return static_cast<double>(t.tv_sec) * 1e3 + static_cast<double>(t.tv_nsec) * 1e-6;
}

/* Runs the next work; false when there is none. */
static bool step()
{
    CUstream_st *s = pick();
    if (!s)
        return false;
    const item next = std::move(s->queue.front());
    s->queue.pop_front();
    n_queued--;
    if (next.run) {
        next.run();
    } else if (!next.is_wait) {
        next.event->reached = std::max(next.event->reached, next.ticket);
        next.event->at_ms = clock_ms();
    }
    return true;
}

void drain(const CUstream_st *stream)
{
    if (stream) {
        while (!stream->queue.empty() && step())
            ;
    } else {
        while (step())
            ;
    }
}

static void push(CUstream_st *s, item work)
{
    work.number = n_asked++;
    s->queue.push_back(std::move(work));
    n_queued++;
    for (bool full = n_queued > QUEUED_MOST; full && n_queued > QUEUED_MOST / 2;)
        full = step();
}

void drop_queues()
{
    for (CUstream_st *s : streams)
        s->queue.clear();
    n_queued = 0;
    for (const std::weak_ptr<event_state> &e : events) {
        if (const std::shared_ptr<event_state> state = e.lock())
            state->reached = state->asked;
    }
}

void streams_reset()
{
    drop_queues();
    for (CUstream_st *s : streams)
        s->recorded = nullptr;
}

static member *member_of(recording *r, cudaStream_t stream)
{
    for (member &m : r->members) {
        if (m.stream == stream)
            return &m;
    }
    r->members.push_back({stream, 0, 0});
    return &r->members.back();
}

cudaError_t queue_task(cudaStream_t stream, task run)
{
    CUstream_st *s = stream_find(stream);
    if (!s)
        return cudaErrorInvalidResourceHandle;
    if (!s->recorded) {
        push(s, {std::move(run), nullptr, 0, false, 0});
        return cudaSuccess;
    }
    if (s->recorded->invalid)
        return cudaErrorStreamCaptureInvalidated;
    s->recorded->tasks.push_back(std::move(run));
    member_of(s->recorded.get(), s)->works++;
    return cudaSuccess;
}

cudaError_t forbid_recording()
{
    cudaError_t error = cudaSuccess;
    for (CUstream_st *s : streams) {
        recording *r = s->recorded.get();
        const bool relaxed = r && (r->mode == cudaStreamCaptureModeRelaxed ||
                                   (r->mode == cudaStreamCaptureModeThreadLocal &&
                                    r->owner != std::this_thread::get_id()));
        if (!r || relaxed)
            continue;
        r->invalid = true;
        error = cudaErrorStreamCaptureUnsupported;
    }
    return error;
}

static cudaError_t record_event(event_state *e, CUstream_st *s)
{
    const member *m = member_of(s->recorded.get(), s);
    e->recorded = s->recorded;
    e->stream = s;
    e->works = m->works;
    return cudaSuccess;
}

/* The stream waits for an event of a recording: it becomes part of it. */
static cudaError_t join_recording(CUstream_st *s, const event_state *e)
{
    if (s->recorded && s->recorded != e->recorded)
        return cudaErrorStreamCaptureMerge;
    s->recorded = e->recorded;
    member *from = member_of(s->recorded.get(), e->stream);
    from->joined = std::max(from->joined, e->works);
    member_of(s->recorded.get(), s)->works++;
    return cudaSuccess;
}

static cudaError_t wait_event(CUstream_st *s, const std::shared_ptr<event_state> &e)
{
    const bool in_recording = e->recorded && e->stream->recorded == e->recorded;
    if (in_recording)
        return join_recording(s, e.get());
    if (e->recorded)
        return cudaErrorCapturedEvent;
    if (!e->asked)
        return cudaSuccess;
    if (s->recorded) {
        s->recorded->invalid = true;
        return cudaErrorStreamCaptureIsolation;
    }
    push(s, {nullptr, e, e->asked, true, 0});
    return cudaSuccess;
}

} // namespace emu

using namespace emu;

static cudaError_t create_stream(cudaStream_t *stream, bool blocking)
{
    *stream = new CUstream_st{{}, nullptr, blocking};
    streams.push_back(*stream);
    return cudaSuccess;
}

DMS_EMU_API cudaStreamCreate(cudaStream_t *stream)
{
    DMS_EMU_ENTER();
    return create_stream(stream, true);
}

DMS_EMU_API cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags)
{
    DMS_EMU_ENTER();
    return create_stream(stream, !(flags & cudaStreamNonBlocking));
}

DMS_EMU_API cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int)
{
    DMS_EMU_ENTER();
    return create_stream(stream, !(flags & cudaStreamNonBlocking));
}

DMS_EMU_API cudaStreamDestroy(cudaStream_t stream)
{
    const entry entered;
    CUstream_st *s = stream_find(stream);
    if (!s || s == &legacy)
        return failed(cudaErrorInvalidResourceHandle);
    drain(s);
    if (s->recorded)
        s->recorded->invalid = true;
    streams.erase(std::find(streams.begin(), streams.end(), s));
    delete s;
    return device_state();
}

/* Why `s`, found for a caller who waits, cannot be waited for. */
static cudaError_t forbid_waiting(const CUstream_st *s)
{
    return s ? forbid_recording() : cudaErrorInvalidResourceHandle;
}

DMS_EMU_API cudaStreamSynchronize(cudaStream_t stream)
{
    DMS_EMU_ENTER();
    const CUstream_st *s = stream_find(stream);
    if (const cudaError_t error = forbid_waiting(s))
        return failed(error);
    counts.synchronisations++;
    drain(s);
    return device_state();
}

DMS_EMU_API cudaStreamQuery(cudaStream_t stream)
{
    DMS_EMU_ENTER();
    const CUstream_st *s = stream_find(stream);
    if (const cudaError_t error = forbid_waiting(s))
        return failed(error);
    step(); /* so that a loop of queries ends */
    if (device_state())
        return device_state();
    return s->queue.empty() ? cudaSuccess : cudaErrorNotReady;
}

DMS_EMU_API cudaDeviceSynchronize(void)
{
    DMS_EMU_ENTER();
    if (const cudaError_t error = forbid_recording())
        return failed(error);
    counts.synchronisations++;
    drain(nullptr);
    return device_state();
}

DMS_EMU_API cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t run, void *data)
{
    DMS_EMU_ENTER();
    const cudaError_t error = queue_task(stream, [=] { run(data); });
    return error ? failed(error) : cudaSuccess;
}

DMS_EMU_API cudaEventCreateWithFlags(cudaEvent_t *event, unsigned)
{
    DMS_EMU_ENTER();
    *event = new CUevent_st{std::make_shared<event_state>()};
    events.erase(std::remove_if(events.begin(), events.end(),
                                [](const std::weak_ptr<event_state> &e) { return e.expired(); }),
                 events.end());
    events.push_back((*event)->state);
    return cudaSuccess;
}

DMS_EMU_API cudaEventCreate(cudaEvent_t *event)
{
    return cudaEventCreateWithFlags(event, cudaEventDefault);
}

DMS_EMU_API cudaEventDestroy(cudaEvent_t event)
{
    const entry entered;
    delete event; /* records and waits in the queues keep the state */
    return device_state();
}

DMS_EMU_API cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    DMS_EMU_ENTER();
    CUstream_st *s = stream_find(stream);
    event_state *e = event->state.get();
    if (!s)
        return failed(cudaErrorInvalidResourceHandle);
    if (s->recorded)
        return record_event(e, s);
    e->recorded = nullptr;
    e->asked++;
    push(s, {nullptr, event->state, e->asked, false, 0});
    return cudaSuccess;
}

DMS_EMU_API cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned)
{
    DMS_EMU_ENTER();
    CUstream_st *s = stream_find(stream);
    const cudaError_t error = s ? wait_event(s, event->state) : cudaErrorInvalidResourceHandle;
    return error ? failed(error) : cudaSuccess;
}

static cudaError_t check_event(const event_state *e)
{
    const cudaError_t error = forbid_recording();
    return error ? error : e->recorded ? cudaErrorCapturedEvent : cudaSuccess;
}

DMS_EMU_API cudaEventSynchronize(cudaEvent_t event)
{
    DMS_EMU_ENTER();
    const event_state *e = event->state.get();
    if (const cudaError_t error = check_event(e))
        return failed(error);
    counts.synchronisations++;
    while (e->reached < e->asked && step())
        ;
    return device_state();
}

DMS_EMU_API cudaEventQuery(cudaEvent_t event)
{
    DMS_EMU_ENTER();
    const event_state *e = event->state.get();
    if (const cudaError_t error = check_event(e))
        return failed(error);
    step();
    if (device_state())
        return device_state();
    return e->reached < e->asked ? cudaErrorNotReady : cudaSuccess;
}

DMS_EMU_API cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to)
{
    DMS_EMU_ENTER();
    if (!from->state->asked || !to->state->asked)
        return failed(cudaErrorInvalidResourceHandle);
    if (from->state->reached < from->state->asked || to->state->reached < to->state->asked)
        return failed(cudaErrorNotReady);
    *ms = static_cast<float>(to->state->at_ms - from->state->at_ms);
    return cudaSuccess;
}
