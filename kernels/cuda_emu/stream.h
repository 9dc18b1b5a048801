/* Streams: queues of work, run in the schedule's order when somebody waits; events between them;
 * the recording of a stream's work in a graph. */
#ifndef DMS_CUDA_EMU_STREAM_H
#define DMS_CUDA_EMU_STREAM_H

#include <cuda_runtime_api.h>
#include <deque>
#include <functional>
#include <memory>
#include <stdint.h>
#include <thread>
#include <vector>

namespace emu
{

typedef std::function<void()> task;

struct recording;

/* Recorded `asked` times, of which `reached` have come to pass. */
struct event_state {
    int64_t asked, reached;
    double at_ms;
    /* The last record was in a recording: by which stream, after how many of its works. */
    std::shared_ptr<recording> recorded;
    cudaStream_t stream;
    int64_t works;
};

/* A work, or (task empty) the record of an event, or a wait for its record number `ticket`. */
struct item {
    task run;
    std::shared_ptr<event_state> event;
    int64_t ticket;
    bool is_wait;
    int64_t number; /* in the order of the calls */
};

struct member {
    cudaStream_t stream;
    int64_t works, joined; /* recorded; of those, how many somebody waits for */
};

/* A graph in the making: works in the order of the calls, which is one that the events allow. */
struct recording {
    std::vector<task> tasks;
    std::vector<member> members; /* the first began it */
    enum cudaStreamCaptureMode mode;
    std::thread::id owner;
    bool invalid;
};

/* Queues the work, or records it. */
cudaError_t queue_task(cudaStream_t stream, task run);
bool stream_is_recording(cudaStream_t stream);
/* The stream of a handle (0 is one), NULL if there is none. */
CUstream_st *stream_find(cudaStream_t stream);
/* Runs what is queued, in the schedule's order, until the stream is empty; NULL: all are. */
void drain(const CUstream_st *stream);
/* What was queued never runs; events count as reached. */
void drop_queues();
/* For calls that a recording forbids: invalidates it. cudaSuccess: none is under way. */
cudaError_t forbid_recording();
/* cudaDeviceReset. */
void streams_reset();

} // namespace emu

struct CUstream_st {
    std::deque<emu::item> queue;
    std::shared_ptr<emu::recording> recorded; /* NULL: works are queued */
    bool blocking;                            /* takes turns with stream 0 */
};

struct CUevent_st {
    std::shared_ptr<emu::event_state> state;
};

struct CUgraph_st {
    std::vector<emu::task> tasks;
};

struct CUgraphExec_st {
    std::vector<emu::task> tasks;
};

#endif
