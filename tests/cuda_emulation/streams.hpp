// What is put on streams, until somebody waits.
#pragma once

#include <cuda_runtime.h>

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

namespace cuda_emulation {

using Work = std::function<void()>;

struct Graph {
  std::vector<Work> work;
};

struct Stream {
  std::deque<Work> queue;
  std::unique_ptr<Graph> captured;  // being recorded
  std::thread::id recorder;         // by this thread
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  bool invalid = false;  // something was tried meanwhile that may not be
};

// What the host has asked for, each a call that costs it time. What is recorded is not counted, nor
// what a graph does: that is among its nodes.
struct Counts {
  long long launches = 0, copies = 0, graphs = 0, nodes = 0;
};

using Lock = std::lock_guard<std::recursive_mutex>;
extern std::recursive_mutex device_mutex;  // over all of the device
extern std::string last_message;           // of the work that failed
extern Counts counts;

std::set<Stream*>& streams();
Stream& stream_of(cudaStream_t stream);
bool is_capturing(cudaStream_t stream);
cudaError_t put(cudaStream_t stream, Work work);
cudaError_t drain_all();  // all streams, to their ends

// The error of a call that the calling thread may not make while it records a graph, or another
// does in the global mode, in which this one is, too; and of a call that cannot be recorded. The
// graph is lost.
cudaError_t forbid_while_capturing();
cudaError_t forbid_in_capture(Stream& stream);

}  // namespace cuda_emulation
