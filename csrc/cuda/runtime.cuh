// The CUDA runtime with owners: devices, streams, events and graphs. Every failure is an exception
// that names the call.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

namespace cexnn::cuda {

// Throws std::runtime_error "<call>: <what CUDA says>" unless the call succeeded.
inline void check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // forgotten, unless the device is lost: the next call starts clean
  throw std::runtime_error(std::string(call) + ": " + cudaGetErrorString(status));
}

// While one exists, the calling thread may allocate, free and wait though another thread records
// a graph, and does not spoil it: by CUDA's default, in which ONNX Runtime and torch record, no
// thread may.
class BesideRecordings {
 public:
  BesideRecordings() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  BesideRecordings(const BesideRecordings&) = delete;
  BesideRecordings& operator=(const BesideRecordings&) = delete;
  ~BesideRecordings() { cudaThreadExchangeStreamCaptureMode(&mode_); }

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeThreadLocal;  // then the thread's own
};

// While one exists, the calling thread's device is CUDA's first (CUDA_VISIBLE_DEVICES says which
// one that is), where all memory, streams and kernels here are; another library may have chosen
// another. Beside recordings, too.
class OnFirstDevice {
 public:
  OnFirstDevice() {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    if (before_ != 0) check(cudaSetDevice(0), "cudaSetDevice");
  }
  OnFirstDevice(const OnFirstDevice&) = delete;
  OnFirstDevice& operator=(const OnFirstDevice&) = delete;
  ~OnFirstDevice() {
    if (before_ != 0) cudaSetDevice(before_);
  }

 private:
  BesideRecordings beside_;
  int before_ = 0;
};

// What the kernels' shapes depend on.
struct DeviceProperties {
  int multiprocessors = 0;
  int compute_capability = 0;  // 90 for 9.0
  int instructions = 0;  // of which such device kernels have, of no later one than they run on
  std::int64_t shared_bytes_a_block = 0;  // at most, static and dynamic
  std::int64_t l2_bytes = 0;
};

const DeviceProperties& device_properties();  // read once

// -- streams, events, graphs ------------------------------------------------------------------

class Stream {
 public:
  Stream() {
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() { cudaStreamDestroy(stream_); }

  cudaStream_t get() const { return stream_; }
  // Until all that was put on it is done; throws what went wrong on the way.
  void wait() const { check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }

 private:
  cudaStream_t stream_ = nullptr;
};

// Launches and copies recorded once and put on a stream again at the price of one. Their pointers
// and sizes are fixed when recorded.
class Graph {
 public:
  Graph() = default;
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  ~Graph() { reset(); }

  bool recorded() const { return executable_ != nullptr; }
  void reset() {
    if (executable_ != nullptr) cudaGraphExecDestroy(std::exchange(executable_, nullptr));
  }

  // Records what `work` puts on the stream, without running it. `work` must not wait or allocate.
  template <typename Work>
  void record(const Stream& stream, const Work& work) {
    reset();
    check(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal),
          "cudaStreamBeginCapture");
    cudaGraph_t graph = nullptr;
    try {
      work();
    } catch (...) {
      cudaStreamEndCapture(stream.get(), &graph);
      if (graph != nullptr) cudaGraphDestroy(graph);
      throw;
    }
    check(cudaStreamEndCapture(stream.get(), &graph), "cudaStreamEndCapture");
    const cudaError_t status = cudaGraphInstantiate(&executable_, graph, 0);
    cudaGraphDestroy(graph);
    check(status, "cudaGraphInstantiate");
  }

  void replay(const Stream& stream) const {
    check(cudaGraphLaunch(executable_, stream.get()), "cudaGraphLaunch");
  }

 private:
  cudaGraphExec_t executable_ = nullptr;
};

}  // namespace cexnn::cuda
