// Recording what is put on a stream, and putting it there again.
#include <cuda_runtime.h>

#include <utility>

#include "memory.hpp"
#include "streams.hpp"

namespace cuda_emulation {
namespace {

thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

}  // namespace

bool is_capturing(cudaStream_t stream) { return stream_of(stream).captured != nullptr; }

cudaError_t forbid_while_capturing() {
  cudaError_t status = cudaSuccess;
  for (Stream* stream : streams()) {
    const bool ours = stream->recorder == std::this_thread::get_id();
    const bool global =
        stream->mode == cudaStreamCaptureModeGlobal && thread_mode == cudaStreamCaptureModeGlobal;
    if (stream->captured && (ours || global)) status = forbid_in_capture(*stream);
  }
  return status;
}

cudaError_t forbid_in_capture(Stream& stream) {
  if (!stream.captured) return cudaSuccess;
  stream.invalid = true;
  return cudaErrorStreamCaptureUnsupported;
}

}  // namespace cuda_emulation

using namespace cuda_emulation;  // NOLINT: the runtime's functions stand in no namespace

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  const Lock lock(device_mutex);
  const bool allowed = number_from("CUDA_EMULATION_CAPTURE", 1) != 0;
  if (!allowed || stream == nullptr || stream->captured) return cudaErrorStreamCaptureUnsupported;
  stream->captured = std::make_unique<Graph>();
  stream->recorder = std::this_thread::get_id();
  stream->mode = mode;
  stream->invalid = false;
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const Lock lock(device_mutex);
  *graph = nullptr;
  if (stream == nullptr || !stream->captured) return cudaErrorInvalidValue;
  if (stream->recorder != std::this_thread::get_id()) return cudaErrorStreamCaptureWrongThread;
  const std::unique_ptr<Graph> captured = std::move(stream->captured);
  if (stream->invalid) return cudaErrorStreamCaptureInvalidated;
  *graph = new Graph(*captured);
  return cudaSuccess;
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, thread_mode);
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                 unsigned long long) {
  *executable = new Graph(*graph);
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  const Lock lock(device_mutex);  // what was launched goes on: streams hold their own work
  delete executable;
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  const Lock lock(device_mutex);
  if (const cudaError_t status = forbid_in_capture(stream_of(stream)); status != cudaSuccess)
    return status;
  ++counts.graphs;
  counts.nodes += static_cast<long long>(executable->work.size());
  for (const Work& work : executable->work) put(stream, work);
  return cudaSuccess;
}
