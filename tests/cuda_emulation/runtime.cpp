#include <cuda_runtime.h>
#include <cxxabi.h>
#include <link.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cuda_emulation {

using Work = std::function<void()>;

struct Graph {
  std::vector<Work> work;
};

struct Stream {
  std::deque<Work> queue;
  std::unique_ptr<Graph> captured;  // being recorded
};

struct Event {
  Stream* stream = nullptr;  // on which it waits to happen
  std::chrono::steady_clock::time_point when;
};

namespace {

constexpr std::size_t kArenaBytes = std::size_t{1} << 38;  // of addresses
constexpr std::size_t kGuardBytes = 256;
constexpr std::uint32_t kGuard = 0xfffdc0de;  // NaN as a float and as two of double's words
constexpr std::size_t kDefaultMemory = std::size_t{8} << 30;
constexpr int kSharedBytesMax = 227 * 1024, kSharedBytesUnasked = 48 * 1024;

std::recursive_mutex device_mutex;  // over everything here
std::string last_message;

std::uint64_t number_from(const char* variable, std::uint64_t otherwise) {
  const char* text = std::getenv(variable);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

// -- device memory: one range of addresses, closed to the host but for copies and kernels ---------

struct Memory {
  char* arena = nullptr;
  std::size_t high_water = 0;
  std::size_t used = 0;
  std::size_t total = number_from("CUDA_EMULATION_MEMORY", kDefaultMemory);
  std::map<std::size_t, std::size_t> sizes;  // offset of each allocation's data: its bytes
  std::map<const char*, std::size_t> pinned;
  int n_open = 0;
  char pattern[2 * kGuardBytes + 4];  // of guards, from an offset that 4 divides

  Memory() {
    for (std::size_t i = 0; i < sizeof pattern; ++i) pattern[i] = guard_byte(i);
    void* mapped =
        mmap(nullptr, kArenaBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) std::abort();
    arena = static_cast<char*>(mapped);
  }

  static std::size_t room(std::size_t bytes) {  // data and the guard behind it
    return (bytes + 2 * kGuardBytes - 1) / kGuardBytes * kGuardBytes;
  }

  void protect(int how) const {
    if (high_water > 0 && mprotect(arena, high_water, how) != 0) std::abort();
  }

  void* allocate(std::size_t bytes) {
    if (used + bytes > total) return nullptr;
    std::size_t at = kGuardBytes;
    for (const auto& [offset, size] : sizes) {
      if (at + room(bytes) + kGuardBytes <= offset) break;
      at = offset + room(size) + kGuardBytes;
    }
    if (at + room(bytes) > kArenaBytes) return nullptr;
    constexpr std::size_t kPage = 4096;
    high_water = std::max(high_water, (at + room(bytes) + kPage - 1) / kPage * kPage);
    protect(PROT_READ | PROT_WRITE);
    std::memset(arena + at, 0xff, bytes);
    guard(at - kGuardBytes, kGuardBytes);
    guard(at + bytes, room(bytes) - bytes);
    if (n_open == 0) protect(PROT_NONE);
    sizes[at] = bytes;
    used += bytes;
    return arena + at;
  }

  void guard(std::size_t at, std::size_t n) const {
    for (std::size_t i = 0; i < n; ++i) arena[at + i] = guard_byte(at + i);
  }
  static char guard_byte(std::size_t at) { return static_cast<char>(kGuard >> 8 * (at % 4)); }

  // Throws if somebody wrote around an array; the memory must be open.
  void check_guards() const {
    for (const auto& [offset, size] : sizes) {
      const std::size_t end = offset + size;
      const bool whole = std::memcmp(arena + offset - kGuardBytes, pattern, kGuardBytes) == 0 &&
                         std::memcmp(arena + end, pattern + end % 4, room(size) - size) == 0;
      if (!whole) {
        guard(offset - kGuardBytes, kGuardBytes);  // reported once
        guard(offset + size, room(size) - size);
        throw std::runtime_error("a write outside an array of " + std::to_string(size) + " bytes");
      }
    }
  }

  // The allocation that holds the address, and what is left of it from there on; 0: none.
  std::size_t bytes_from(const void* data) const {
    const char* at = static_cast<const char*>(data);
    if (at < arena || at >= arena + kArenaBytes) return 0;
    const std::size_t offset = static_cast<std::size_t>(at - arena);
    auto next = sizes.upper_bound(offset);
    if (next == sizes.begin()) return 0;
    --next;
    return offset < next->first + next->second ? next->first + next->second - offset : 0;
  }
  bool in_arena(const void* data) const { return data >= arena && data < arena + kArenaBytes; }
  bool is_pinned(const void* data) const {
    auto next = pinned.upper_bound(static_cast<const char*>(data));
    if (next == pinned.begin()) return false;
    --next;
    return static_cast<const char*>(data) < next->first + next->second;
  }
};

Memory& memory() {
  static Memory* const whole = new Memory;  // outlives every static that frees from it
  return *whole;
}

// While one exists, device memory is open to this process.
struct Open {
  Open() {
    if (memory().n_open++ == 0) memory().protect(PROT_READ | PROT_WRITE);
  }
  Open(const Open&) = delete;
  ~Open() {
    if (--memory().n_open == 0) memory().protect(PROT_NONE);
  }
};

// -- kernels: the module's thread-local storage is their shared memory --------------------------

thread_local char anchor = 0;  // finds this module's thread-local storage, and has it allocated

struct Range {
  char* begin = nullptr;
  std::size_t size = 0;
};

// This thread's copy of the module's thread-local storage.
Range thread_storage() {
  Range found;
  const volatile char* touched = &anchor;
  const auto look = [](dl_phdr_info* info, std::size_t, void* out) {
    char* begin = static_cast<char*>(info->dlpi_tls_data);
    for (int i = 0; begin != nullptr && i < info->dlpi_phnum; ++i) {
      const std::size_t size = info->dlpi_phdr[i].p_memsz;
      if (info->dlpi_phdr[i].p_type == PT_TLS && &anchor >= begin && &anchor < begin + size)
        *static_cast<Range*>(out) = {begin, size};
    }
    return 0;
  };
  dl_iterate_phdr(look, &found);
  if (found.begin == nullptr || *touched != anchor) std::abort();
  return found;
}

// What this thread holds there is put back when the kernel is done.
class KeptStorage {
 public:
  KeptStorage() : range_(thread_storage()), kept_(range_.begin, range_.begin + range_.size) {}
  KeptStorage(const KeptStorage&) = delete;
  ~KeptStorage() { std::memcpy(range_.begin, kept_.data(), range_.size); }

  void poison() const { std::memset(range_.begin, 0xff, range_.size); }

 private:
  Range range_;
  std::vector<char> kept_;
};

std::vector<char> dynamic_shared;
char* dynamic_begin = nullptr;
std::map<const void*, int> shared_bytes_allowed;
std::uint64_t random_state = 0x9e3779b97f4a7c15 + number_from("CUDA_EMULATION_SEED", 0);

void poison_shared(const KeptStorage& storage, std::size_t bytes) {
  storage.poison();
  dynamic_shared.assign(bytes + 2 * kGuardBytes, static_cast<char>(0xff));
  const auto address = reinterpret_cast<std::uintptr_t>(dynamic_shared.data());
  dynamic_begin = dynamic_shared.data() + (128 - address % 128) % 128;
  for (std::size_t i = 0; i < 64; ++i) dynamic_begin[bytes + i] = Memory::guard_byte(i);
}

uint3 place(unsigned at, const dim3& shape) {
  return {at % shape.x, at / shape.x % shape.y, at / shape.x / shape.y};
}

void run_grid(const cudaLaunchConfig_t& config, const Work& thread) {
  const std::size_t n_blocks =
      std::size_t{1} * config.gridDim.x * config.gridDim.y * config.gridDim.z;
  const unsigned n_threads = config.blockDim.x * config.blockDim.y * config.blockDim.z;
  gridDim = config.gridDim;
  blockDim = config.blockDim;
  std::vector<unsigned> order(n_blocks);
  std::iota(order.begin(), order.end(), 0U);
  for (std::size_t i = n_blocks; i > 1; --i)
    std::swap(order[i - 1], order[draw(random_state, static_cast<unsigned>(i))]);
  const KeptStorage storage;
  for (const unsigned at : order) {
    poison_shared(storage, config.dynamicSmemBytes);
    blockIdx = place(at, config.gridDim);
    run_block(n_threads, random_state, [](unsigned t) { threadIdx = place(t, blockDim); }, thread);
    for (std::size_t i = 0; i < 64; ++i)
      if (dynamic_begin[config.dynamicSmemBytes + i] != Memory::guard_byte(i))
        throw std::runtime_error("a write behind the dynamic shared memory");
  }
}

std::string readable(const char* type) {
  int status = 0;
  char* text = abi::__cxa_demangle(type, nullptr, nullptr, &status);
  std::string name = status == 0 ? text : type;
  std::free(text);
  return name;
}

// -- streams ----------------------------------------------------------------------------------

int n_capturing = 0;

std::set<Stream*>& streams() {
  static auto* const all = new std::set<Stream*>;
  return *all;
}

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

// Does what the stream holds, until `enough`.
cudaError_t drain(Stream& stream, const std::function<bool()>& enough = [] { return false; }) {
  if (stream.captured) return cudaErrorStreamCaptureUnsupported;
  if (stream.queue.empty()) return cudaSuccess;
  const Open open;
  while (!stream.queue.empty() && !enough()) {
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

cudaError_t drain_all() {
  for (Stream* stream : streams()) {
    if (stream->captured) continue;
    if (const cudaError_t status = drain(*stream); status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

using Lock = std::lock_guard<std::recursive_mutex>;

}  // namespace

void* dynamic_shared_bytes() { return dynamic_begin; }

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, const char* name,
                   Work thread) {
  const Lock lock(device_mutex);
  const dim3 grid = config.gridDim, block = config.blockDim;
  const auto n_threads = std::uint64_t{1} * block.x * block.y * block.z;
  if (n_threads == 0 || n_threads > 1024 || block.z > 64 || grid.x == 0 || grid.y == 0 ||
      grid.z == 0 || grid.x > 0x7fffffffU || grid.y > 65535 || grid.z > 65535 ||
      config.numAttrs != 0)
    return cudaErrorInvalidConfiguration;
  const auto allowed = shared_bytes_allowed.find(kernel);
  const int most = allowed == shared_bytes_allowed.end() ? kSharedBytesUnasked : allowed->second;
  if (config.dynamicSmemBytes > static_cast<std::size_t>(most)) return cudaErrorInvalidValue;
  return put(config.stream, [config, name, thread = std::move(thread)] {
    try {
      run_grid(config, thread);
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
    case cudaErrorNotReady:
      return "device not ready";
    case cudaErrorLaunchFailure:
      return last_message.c_str();
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
  }
  return "unrecognized error code";
}

cudaError_t cudaGetLastError() { return cudaSuccess; }

cudaError_t cudaGetDeviceCount(int* n) {
  *n = 1;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidValue; }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr name, int) {
  switch (name) {
    case cudaDevAttrMultiProcessorCount:
      *value = 3;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = kSharedBytesMax;
      return cudaSuccess;
    case cudaDevAttrL2CacheSize:
      *value = 50 << 20;
      return cudaSuccess;
  }
  return cudaErrorInvalidValue;
}

cudaError_t cudaDeviceSynchronize() {
  const Lock lock(device_mutex);
  return drain_all();
}

cudaError_t cudaMalloc(void** data, std::size_t bytes) {
  const Lock lock(device_mutex);
  if (n_capturing > 0) return cudaErrorStreamCaptureUnsupported;
  *data = memory().allocate(bytes);
  return *data == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}

cudaError_t cudaFree(void* data) {
  const Lock lock(device_mutex);
  if (data == nullptr) return cudaSuccess;
  if (n_capturing > 0) return cudaErrorStreamCaptureUnsupported;
  const auto found =
      memory().sizes.find(static_cast<std::size_t>(static_cast<char*>(data) - memory().arena));
  if (!memory().in_arena(data) || found == memory().sizes.end()) {
    std::fputs("cuda emulation: cudaFree of what cudaMalloc did not return\n", stderr);
    std::abort();
  }
  const cudaError_t status = drain_all();  // what is under way may use it
  memory().used -= found->second;
  memory().sizes.erase(found);
  return status;
}

cudaError_t cudaMallocHost(void** data, std::size_t bytes) {
  const Lock lock(device_mutex);
  if (n_capturing > 0) return cudaErrorStreamCaptureUnsupported;
  *data = std::malloc(std::max<std::size_t>(bytes, 1));
  if (*data == nullptr) return cudaErrorMemoryAllocation;
  std::memset(*data, 0xff, bytes);
  memory().pinned[static_cast<const char*>(*data)] = bytes;
  return cudaSuccess;
}

cudaError_t cudaFreeHost(void* data) {
  const Lock lock(device_mutex);
  if (data == nullptr) return cudaSuccess;
  const cudaError_t status = drain_all();
  memory().pinned.erase(static_cast<const char*>(data));
  std::free(data);
  return status;
}

cudaError_t cudaMemGetInfo(std::size_t* available, std::size_t* total) {
  const Lock lock(device_mutex);
  *total = memory().total;
  *available = memory().total - memory().used;
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* data) {
  const Lock lock(device_mutex);
  *attributes = {};
  if (memory().bytes_from(data) > 0) {
    attributes->type = cudaMemoryTypeDevice;
    attributes->devicePointer = const_cast<void*>(data);
  } else if (memory().is_pinned(data)) {
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
  const bool pageable = !memory().in_arena(from) && !memory().is_pinned(from);
  if (!pageable || stream_of(stream).captured)
    return put(stream, [=] { std::memcpy(to, from, bytes); });
  const auto* begin = static_cast<const char*>(from);  // read before the call returns
  return put(stream, [to, held = std::vector<char>(begin, begin + bytes)] {
    std::memcpy(to, held.data(), held.size());
  });
}

// Waits only for what goes to the host, as little as CUDA promises.
cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  const Lock lock(device_mutex);
  const cudaError_t status = cudaMemcpyAsync(to, from, bytes, kind, nullptr);
  if (memory().in_arena(to)) return status;
  return status == cudaSuccess ? cudaStreamSynchronize(nullptr) : status;
}

cudaError_t cudaMemsetAsync(void* to, int byte, std::size_t bytes, cudaStream_t stream) {
  const Lock lock(device_mutex);
  if (memory().bytes_from(to) < bytes) return cudaErrorInvalidValue;
  return put(stream, [=] { std::memset(to, byte, bytes); });
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  const Lock lock(device_mutex);
  *stream = new Stream;
  streams().insert(*stream);
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const Lock lock(device_mutex);
  const cudaError_t status = drain(*stream);
  if (stream->captured) --n_capturing;
  streams().erase(stream);
  delete stream;
  return status;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const Lock lock(device_mutex);
  return drain(stream_of(stream));
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const Lock lock(device_mutex);
  return put(stream, [event] {
    if (event->stream == nullptr) return;
    if (drain(*event->stream, [event] { return event->stream == nullptr; }) != cudaSuccess)
      throw std::runtime_error(last_message);
  });
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new Event;
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  const Lock lock(device_mutex);
  cudaError_t status = cudaSuccess;
  if (event->stream != nullptr) status = drain(*event->stream);
  delete event;
  return status;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const Lock lock(device_mutex);
  event->stream = &stream_of(stream);
  return put(stream, [event] {
    event->stream = nullptr;
    event->when = std::chrono::steady_clock::now();
  });
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const Lock lock(device_mutex);
  if (event->stream == nullptr) return cudaSuccess;
  return drain(*event->stream, [event] { return event->stream == nullptr; });
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  const Lock lock(device_mutex);
  if (start->stream != nullptr || end->stream != nullptr) return cudaErrorNotReady;
  *milliseconds = std::chrono::duration<float, std::milli>(end->when - start->when).count();
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  const Lock lock(device_mutex);
  if (stream == nullptr || stream->captured) return cudaErrorStreamCaptureUnsupported;
  stream->captured = std::make_unique<Graph>();
  ++n_capturing;
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const Lock lock(device_mutex);
  if (!stream->captured) return cudaErrorInvalidValue;
  *graph = stream->captured.release();
  --n_capturing;
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
  const Lock lock(device_mutex);
  const cudaError_t status = drain_all();
  delete executable;
  return status;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  const Lock lock(device_mutex);
  for (const Work& work : executable->work) put(stream, work);
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int value) {
  const Lock lock(device_mutex);
  if (value > kSharedBytesMax) return cudaErrorInvalidValue;
  shared_bytes_allowed[kernel] = value;
  return cudaSuccess;
}
