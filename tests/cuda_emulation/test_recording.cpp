// Graphs: what may not be done while one is recorded, and when memory is read.
#include <thread>

#include "../../csrc/device.hpp"
#include "test_emulation.hpp"

// What must not be done while a graph is recorded, by the thread that does, ends the recording.
void test_recording() {
  const Stream stream, other;
  const DeviceBuffer<float> values = uploaded<float>(std::vector<float>(32, 1.0F), stream);
  std::vector<float> host(32, 5.0F);
  const auto recorded = [&](auto&& work) {
    Graph graph;
    const std::string message = message_of([&] {
      graph.record(stream, [&] {
        launch(add_kernel, 1, 32, 0, stream, values.data(), 1.0F);
        work();
      });
    });
    expect(graph.recorded() == message.empty(), "a graph, or a reason why there is none");
    expect(message_of([&] { stream.wait(); }).empty(), "the stream goes on without");
    return message;
  };
  expect(recorded([] {}).empty(), "a recording");
  expect(contains(recorded([&] { stream.wait(); }), "capturing"), "no waiting");
  expect(contains(recorded([&] { cudaStreamSynchronize(stream.get()); }), "during capture"),
         "an error that is overlooked");
  expect(contains(recorded([&] { cudaMemcpy(values.data(), host.data(), 4, cudaMemcpyDefault); }),
                  "during capture"),
         "no copy that waits");
  expect(recorded([&] { std::thread([] { const DeviceBuffer<float> more(1); }).join(); }).empty(),
         "other threads may allocate");

  Graph graph;
  const DeviceBuffer<float> out(32);
  graph.record(stream, [&] {
    copy(static_cast<const float*>(host.data()), values.data(), 32, stream);
    launch(add_kernel, 1, 32, 0, stream, values.data(), 1.0F);
  });
  host.assign(32, 7.0F);
  graph.replay(stream);
  expect(downloaded(values, stream)[0] == 8.0F, "memory is read when a graph is replayed");
}

void test_recordings_of_others() {
  const Stream stream;
  cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeGlobal);
  const auto allocated = [] { const DeviceBuffer<float> more(1); };
  const auto end = [&] {
    cudaGraph_t graph = nullptr;
    const cudaError_t status = cudaStreamEndCapture(stream.get(), &graph);
    cudaGraphDestroy(graph);
    return status;
  };
  std::thread([&] {
    expect(message_of([] { cexnn::cuda::allocate(4); }).empty(), "allocating beside a recording");
    {
      const OnFirstDevice device;
      expect(message_of(allocated).empty(), "so does whoever is on the first device");
    }
    expect(end() == cudaErrorStreamCaptureWrongThread, "another thread does not end it");
  }).join();
  expect(end() == cudaSuccess, "it was not spoilt");
  cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeGlobal);
  std::thread([&] {
    expect(contains(message_of(allocated), "capturing"), "another thread's recording forbids");
  }).join();
  expect(end() == cudaErrorStreamCaptureInvalidated, "what was tried spoils it");
  expect(message_of(allocated).empty() && cexnn::cuda::free_memory() > 0, "until it has ended");
}
