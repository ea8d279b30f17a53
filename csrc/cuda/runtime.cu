#include <algorithm>

#include "../device.hpp"
#include "memory.cuh"
#include "runtime.cuh"

namespace cexnn::cuda {
namespace {

constexpr int kLeastCapability = 75;  // the kernels are compiled for none below (CMakeLists.txt)

int attribute(cudaDeviceAttr name) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, name, 0), "cudaDeviceGetAttribute");
  return value;
}

__global__ void compiled_kernel() {}

// The compute capability whose instructions the kernels have: of an older device where the driver
// translates them because the build has none for this one.
int compiled_for() {
  cudaFuncAttributes attributes{};
  check(cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(compiled_kernel)),
        "cudaFuncGetAttributes");
  return attributes.ptxVersion;
}

DeviceProperties read_properties() {
  DeviceProperties properties;
  properties.multiprocessors = attribute(cudaDevAttrMultiProcessorCount);
  properties.compute_capability = 10 * attribute(cudaDevAttrComputeCapabilityMajor) +
                                  attribute(cudaDevAttrComputeCapabilityMinor);
  properties.instructions = std::min(properties.compute_capability, compiled_for());
  properties.shared_bytes_a_block = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  properties.l2_bytes = attribute(cudaDevAttrL2CacheSize);
  return properties;
}

}  // namespace

bool available() noexcept {
  int n = 0, major = 0, minor = 0;
  const bool found =
      cudaGetDeviceCount(&n) == cudaSuccess && n > 0 &&
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0) == cudaSuccess &&
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0) == cudaSuccess;
  if (!found) cudaGetLastError();
  return found && 10 * major + minor >= kLeastCapability;
}

std::shared_ptr<void> allocate(std::int64_t bytes) {
  if (!available()) throw std::runtime_error("device 'cuda': no CUDA device");
  const OnFirstDevice device;
  void* data = DeviceMemory::allocate(static_cast<std::size_t>(bytes > 0 ? bytes : 1));
  return {data, &DeviceMemory::release};
}

std::int64_t free_memory() {
  if (!available()) throw std::runtime_error("device 'cuda': no CUDA device");
  const OnFirstDevice device;
  std::size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return static_cast<std::int64_t>(free);
}

void wait_for_default_stream() {
  const OnFirstDevice device;
  check(cudaStreamSynchronize(nullptr), "cudaStreamSynchronize");
}

void copy_bytes(const void* from, void* to, std::int64_t bytes) {
  if (bytes == 0) return;
  const OnFirstDevice device;
  check(cudaMemcpy(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDefault), "cudaMemcpy");
  wait_for_default_stream();  // cudaMemcpy may return once a host's array is read
}

const DeviceProperties& device_properties() {
  static const DeviceProperties properties = read_properties();
  return properties;
}

}  // namespace cexnn::cuda
