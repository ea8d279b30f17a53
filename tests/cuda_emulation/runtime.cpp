#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <vector>

#include "memory.hpp"
#include "streams.hpp"

namespace {

std::map<const char*, std::size_t> pinned;  // each array's bytes

bool is_pinned(const void* data) {
  auto next = pinned.upper_bound(static_cast<const char*>(data));
  if (next == pinned.begin()) return false;
  --next;
  return static_cast<const char*>(data) < next->first + next->second;
}

// Adds a line to the file that CUDA_EMULATION_COPIES names.
void note(const char* what, std::size_t bytes) {
  const char* path = std::getenv("CUDA_EMULATION_COPIES");
  if (path == nullptr) return;
  if (std::FILE* file = std::fopen(path, "a"); file != nullptr) {
    std::fprintf(file, "%s %zu\n", what, bytes);
    std::fclose(file);
  }
}

// A copy that crosses the bus: its way.
void note_copy(const void* to, const void* from, std::size_t bytes) {
  const bool up = cuda_emulation::memory().in_arena(to);
  if (up != cuda_emulation::memory().in_arena(from)) note(up ? "up" : "down", bytes);
}

}  // namespace

int cuda_emulation::compiled_for() {
  static const auto capability = static_cast<int>(
      number_from("CUDA_EMULATION_CODE", number_from("CUDA_EMULATION_CAPABILITY", 90)));
  return capability;
}

using namespace cuda_emulation;  // NOLINT: the runtime's functions stand in no namespace

const char* cudaGetErrorString(cudaError_t status) {
  switch (status) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidResourceHandle:
      return "invalid resource handle";
    case cudaErrorLaunchFailure:
      return last_message.c_str();
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated:
      return "operation failed due to a previous error during capture";
    case cudaErrorStreamCaptureWrongThread:
      return "attempt to terminate a thread-local capture sequence from another thread";
  }
  return "unrecognized error code";
}

cudaError_t cudaGetLastError() { return cudaSuccess; }

cudaError_t cudaGetDeviceCount(int* n) {
  *n = 2;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = current_device();
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  if (device != 0 && device != 1) return cudaErrorInvalidValue;
  current_device() = device;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr name, int) {
  switch (name) {
    case cudaDevAttrMultiProcessorCount:
      *value = 3;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = static_cast<int>(number_from("CUDA_EMULATION_CAPABILITY", 90)) / 10;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = static_cast<int>(number_from("CUDA_EMULATION_CAPABILITY", 90)) % 10;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = 227 * 1024;
      return cudaSuccess;
    case cudaDevAttrL2CacheSize:
      *value = 50 << 20;
      return cudaSuccess;
  }
  return cudaErrorInvalidValue;
}

cudaError_t cudaMalloc(void** data, std::size_t bytes) {
  const Lock lock(device_mutex);
  if (current_device() != 0) return cudaErrorInvalidResourceHandle;
  if (const cudaError_t status = forbid_while_capturing(); status != cudaSuccess) return status;
  note("new", bytes);
  *data = memory().allocate(bytes);
  return *data == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}

cudaError_t cudaFree(void* data) {
  const Lock lock(device_mutex);
  if (data == nullptr) return cudaSuccess;
  if (const cudaError_t status = forbid_while_capturing(); status != cudaSuccess) return status;
  const cudaError_t status = drain_all();  // what is under way may use it
  if (!memory().release(data)) {
    std::fputs("cuda emulation: cudaFree of what cudaMalloc did not return\n", stderr);
    std::abort();
  }
  return status;
}

cudaError_t cudaMallocHost(void** data, std::size_t bytes) {
  const Lock lock(device_mutex);
  if (const cudaError_t status = forbid_while_capturing(); status != cudaSuccess) return status;
  *data = std::malloc(std::max<std::size_t>(bytes, 1));
  if (*data == nullptr) return cudaErrorMemoryAllocation;
  std::memset(*data, 0xff, bytes);
  pinned[static_cast<const char*>(*data)] = bytes;
  return cudaSuccess;
}

cudaError_t cudaFreeHost(void* data) {
  const Lock lock(device_mutex);
  if (data == nullptr) return cudaSuccess;
  if (const cudaError_t status = forbid_while_capturing(); status != cudaSuccess) return status;
  const cudaError_t status = drain_all();
  pinned.erase(static_cast<const char*>(data));
  std::free(data);
  return status;
}

cudaError_t cudaMemGetInfo(std::size_t* available, std::size_t* total) {
  const Lock lock(device_mutex);
  *total = memory().total();
  *available = memory().left();
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* data) {
  const Lock lock(device_mutex);
  *attributes = {};
  if (memory().bytes_from(data) > 0) {
    attributes->type = cudaMemoryTypeDevice;
    attributes->devicePointer = const_cast<void*>(data);
  } else if (is_pinned(data)) {
    attributes->type = cudaMemoryTypeHost;
    attributes->hostPointer = const_cast<void*>(data);
  }
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  const Lock lock(device_mutex);
  for (const void* end : {static_cast<const void*>(to), from})
    if (memory().in_arena(end) && memory().bytes_from(end) < bytes) return cudaErrorInvalidValue;
  if (!is_capturing(stream)) ++counts.copies;
  const bool pageable = !memory().in_arena(from) && !is_pinned(from);
  if (!pageable || is_capturing(stream)) {
    return put(stream, [=] {
      note_copy(to, from, bytes);
      std::memcpy(to, from, bytes);
    });
  }
  const auto* begin = static_cast<const char*>(from);  // read before the call returns
  return put(stream, [to, from, held = std::vector<char>(begin, begin + bytes)] {
    note_copy(to, from, held.size());
    std::memcpy(to, held.data(), held.size());
  });
}

// Waits only for what goes to the host, as little as CUDA promises.
cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  const Lock lock(device_mutex);
  if (const cudaError_t status = forbid_while_capturing(); status != cudaSuccess) return status;
  const cudaError_t status = cudaMemcpyAsync(to, from, bytes, kind, nullptr);
  if (memory().in_arena(to)) return status;
  return status == cudaSuccess ? cudaStreamSynchronize(nullptr) : status;
}

cudaError_t cudaMemsetAsync(void* to, int byte, std::size_t bytes, cudaStream_t stream) {
  const Lock lock(device_mutex);
  if (memory().bytes_from(to) < bytes) return cudaErrorInvalidValue;
  if (!is_capturing(stream)) ++counts.copies;
  return put(stream, [=] { std::memset(to, byte, bytes); });
}
