#include "streams.hpp"

#include <cxxabi.h>

#include <cstdlib>
#include <stdexcept>

#include "grid.hpp"
#include "memory.hpp"

namespace cuda_emulation {

std::recursive_mutex device_mutex;
std::string last_message;
Counts counts;

std::set<Stream*>& streams() {
  static auto* const all = new std::set<Stream*>;
  return *all;
}

namespace {

constexpr int kSharedBytesMax = 227 * 1024, kSharedBytesUnasked = 48 * 1024;
constexpr int kSharedBytesStatic = 2048;  // taken for every kernel's

std::map<const void*, int> shared_bytes_allowed;

int allowed_to(const void* kernel) {
  const auto found = shared_bytes_allowed.find(kernel);
  return found == shared_bytes_allowed.end() ? kSharedBytesUnasked : found->second;
}

std::string readable(const char* type) {
  int status = 0;
  char* text = abi::__cxa_demangle(type, nullptr, nullptr, &status);
  std::string name = status == 0 ? text : type;
  std::free(text);
  return name;
}

// Does what the stream holds.
cudaError_t drain(Stream& stream) {
  if (const cudaError_t status = forbid_in_capture(stream); status != cudaSuccess) return status;
  if (stream.queue.empty()) return cudaSuccess;
  const Open open;
  while (!stream.queue.empty()) {
    const Work work = std::move(stream.queue.front());
    stream.queue.pop_front();
    try {
      work();
    } catch (const std::exception& error) {
      stream.queue.clear();
      last_message = error.what();
      return cudaErrorLaunchFailure;
    }
  }
  return cudaSuccess;
}

std::uint64_t n_waited = 0;  // threads of the grid under way, for the one before it

}  // namespace

void wait_for_grid_before() { ++n_waited; }

Stream& stream_of(cudaStream_t stream) {
  static Stream* const standard = [] {
    auto* made = new Stream;
    streams().insert(made);
    return made;
  }();
  return stream == nullptr ? *standard : *stream;
}

cudaError_t put(cudaStream_t stream, Work work) {
  Stream& on = stream_of(stream);
  if (on.captured) {
    on.captured->work.push_back(std::move(work));
  } else {
    on.queue.push_back(std::move(work));
  }
  return cudaSuccess;
}

cudaError_t drain_all() {
  for (Stream* stream : streams()) {
    if (stream->captured) continue;
    if (const cudaError_t status = drain(*stream); status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, const char* name,
                   Work thread) {
  const Lock lock(device_mutex);
  const dim3 grid = config.gridDim, block = config.blockDim;
  const auto n_threads = std::uint64_t{1} * block.x * block.y * block.z;
  if (n_threads == 0 || n_threads > 1024 || block.z > 64 || grid.x == 0 || grid.y == 0 ||
      grid.z == 0 || grid.x > 0x7fffffffU || grid.y > 65535 || grid.z > 65535)
    return cudaErrorInvalidConfiguration;
  bool early = false;
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config.attrs[i];
    if (attribute.id != cudaLaunchAttributeProgrammaticStreamSerialization || compiled_for() < 90)
      return cudaErrorInvalidConfiguration;
    early = attribute.val.programmaticStreamSerializationAllowed != 0;
  }
  if (current_device() != 0) return cudaErrorInvalidResourceHandle;
  if (config.dynamicSmemBytes > static_cast<std::size_t>(allowed_to(kernel)))
    return cudaErrorInvalidValue;
  if (!is_capturing(config.stream)) ++counts.launches;
  return put(config.stream, [config, name, early, n_threads, thread = std::move(thread)] {
    try {
      n_waited = 0;
      run_grid(config, thread);
      if (early && n_waited != n_threads * config.gridDim.x * config.gridDim.y * config.gridDim.z)
        throw std::runtime_error(
            "launched early, but not all threads wait once for the grid before");
      memory().check_guards();
    } catch (const std::exception& error) {
      const std::string at = "block (" + std::to_string(blockIdx.x) + ", " +
                             std::to_string(blockIdx.y) + ", " + std::to_string(blockIdx.z) + ")";
      throw std::runtime_error("kernel " + readable(name) + ", " + at + ": " + error.what());
    }
  });
}

}  // namespace cuda_emulation

using namespace cuda_emulation;  // NOLINT: the runtime's functions stand in no namespace

// For tests in Python: launches, copies, graphs and their nodes so far.
extern "C" __attribute__((visibility("default"))) void cuda_emulation_counts(long long (&out)[4]) {
  const Lock lock(device_mutex);
  out[0] = counts.launches;
  out[1] = counts.copies;
  out[2] = counts.graphs;
  out[3] = counts.nodes;
}

cudaError_t cudaDeviceSynchronize() {
  const Lock lock(device_mutex);
  if (const cudaError_t status = forbid_while_capturing(); status != cudaSuccess) return status;
  return drain_all();
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  const Lock lock(device_mutex);
  if (current_device() != 0) return cudaErrorInvalidResourceHandle;
  *stream = new Stream;
  streams().insert(*stream);
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const Lock lock(device_mutex);
  const cudaError_t status = drain(*stream);
  streams().erase(stream);
  delete stream;
  return status;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const Lock lock(device_mutex);
  return drain(stream_of(stream));
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel) {
  const Lock lock(device_mutex);
  *attributes = {kSharedBytesStatic, allowed_to(kernel), compiled_for()};
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int value) {
  const Lock lock(device_mutex);
  if (value > kSharedBytesMax - kSharedBytesStatic) return cudaErrorInvalidValue;
  shared_bytes_allowed[kernel] = value;
  return cudaSuccess;
}
