// The CUDA runtime with owners: memory, streams, events, graphs and launches. Every failure is an
// exception that names the call.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <intrinsics.cuh>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "../views.hpp"

namespace cexnn::cuda {

// The device, or the host for pinned memory, had too little. Reaches Python as MemoryError.
class OutOfMemory final : public std::bad_alloc {
 public:
  OutOfMemory(const char* call, std::size_t bytes)
      : message_(std::make_shared<std::string>(std::string(call) + ": no room for " +
                                               std::to_string(bytes) + " bytes")) {}
  const char* what() const noexcept override { return message_->c_str(); }

 private:
  std::shared_ptr<const std::string> message_;  // copied without throwing
};

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

// -- memory -----------------------------------------------------------------------------------

struct DeviceMemory {
  static void* allocate(std::size_t bytes) {
    void* data = nullptr;
    const cudaError_t status = cudaMalloc(&data, bytes);
    if (status == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      throw OutOfMemory("cudaMalloc", bytes);
    }
    check(status, "cudaMalloc");
    return data;
  }
  static void release(void* data) noexcept {
    const BesideRecordings beside;
    cudaFree(data);
  }
};

// Host memory that the device copies from and to while the host goes on.
struct PinnedMemory {
  static void* allocate(std::size_t bytes) {
    void* data = nullptr;
    const cudaError_t status = cudaMallocHost(&data, bytes);
    if (status == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      throw OutOfMemory("cudaMallocHost", bytes);
    }
    check(status, "cudaMallocHost");
    return data;
  }
  static void release(void* data) noexcept {
    const BesideRecordings beside;
    cudaFreeHost(data);
  }
};

// Owns an uninitialised array. Freed when nothing under way can still use it: wait for the stream
// before the owner goes.
template <typename T, typename Memory>
class Buffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  Buffer() = default;
  explicit Buffer(std::int64_t size) { reserve(size); }
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~Buffer() {
    if (data_ != nullptr) Memory::release(data_);
  }

  // Room for at least `size`; what was in it is lost where it had less.
  void reserve(std::int64_t size) {
    if (size <= size_) return;
    if (data_ != nullptr) Memory::release(std::exchange(data_, nullptr));
    size_ = 0;
    data_ = static_cast<T*>(Memory::allocate(static_cast<std::size_t>(size) * sizeof(T)));
    size_ = size;
  }

  T* data() const { return data_; }
  std::int64_t size() const { return size_; }

 private:
  T* data_ = nullptr;
  std::int64_t size_ = 0;
};

template <typename T>
using DeviceBuffer = Buffer<T, DeviceMemory>;
template <typename T>
using PinnedBuffer = Buffer<T, PinnedMemory>;

// Whether kernels may follow the pointer: device or managed memory.
inline bool on_device(const void* data) {
  if (data == nullptr) return false;
  cudaPointerAttributes attributes{};
  check(cudaPointerGetAttributes(&attributes, data), "cudaPointerGetAttributes");
  return attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged;
}

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

class Event {
 public:
  Event() { check(cudaEventCreateWithFlags(&event_, cudaEventDefault), "cudaEventCreate"); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event() { cudaEventDestroy(event_); }

  void record(const Stream& stream) {
    check(cudaEventRecord(event_, stream.get()), "cudaEventRecord");
  }
  void wait() const { check(cudaEventSynchronize(event_), "cudaEventSynchronize"); }
  void wait_on(const Stream& stream) const {  // the stream waits, not the host
    check(cudaStreamWaitEvent(stream.get(), event_, 0), "cudaStreamWaitEvent");
  }
  double milliseconds_since(const Event& start) const {
    float elapsed = 0.0F;
    check(cudaEventElapsedTime(&elapsed, start.event_, event_), "cudaEventElapsedTime");
    return double(elapsed);
  }

 private:
  cudaEvent_t event_ = nullptr;
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

// -- copies and launches ----------------------------------------------------------------------

// n elements, either way between host and device. The host's side must stay as it is until the
// stream got there.
template <typename T>
void copy(const T* from, T* to, std::int64_t n, const Stream& stream) {
  if (n == 0) return;
  check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(n) * sizeof(T), cudaMemcpyDefault,
                        stream.get()),
        "cudaMemcpyAsync");
}

template <typename T>
void fill_zero(T* data, std::int64_t n, const Stream& stream) {
  if (n == 0) return;
  check(cudaMemsetAsync(data, 0, static_cast<std::size_t>(n) * sizeof(T), stream.get()),
        "cudaMemsetAsync");
}

// The array where kernels can read it: itself if it lies on the device, else its copy in `storage`.
template <typename T>
const T* to_device(const T* data, std::int64_t n, DeviceBuffer<T>& storage, const Stream& stream) {
  if (n == 0 || on_device(data)) return data;
  storage.reserve(n);
  copy(data, storage.data(), n, stream);
  return storage.data();
}

template <typename T>
VectorView<const T> to_device(VectorView<const T> view, DeviceBuffer<T>& storage,
                              const Stream& stream) {
  return {to_device(view.data, view.size, storage, stream), view.size};
}

template <typename T>
MatrixView<const T> to_device(MatrixView<const T> view, DeviceBuffer<T>& storage,
                              const Stream& stream) {
  return {to_device(view.data, view.rows * view.cols, storage, stream), view.rows, view.cols};
}

// The array where the host can read it: itself, or its copy in `storage`.
template <typename T>
const T* on_host(const T* data, std::int64_t n, std::vector<T>& storage, const Stream& stream) {
  if (n == 0 || !on_device(data)) return data;
  storage.resize(static_cast<std::size_t>(n));
  copy(data, storage.data(), n, stream);
  stream.wait();
  return storage.data();
}

// Where kernels write what belongs in `out`: there if it lies on the device, else in `storage`,
// which deliver() then copies to it.
template <typename T>
T* output_on_device(T* out, std::int64_t n, DeviceBuffer<T>& storage) {
  if (n == 0 || on_device(out)) return out;
  storage.reserve(n);
  return storage.data();
}

template <typename T>
void deliver(const T* from, T* out, std::int64_t n, const Stream& stream) {
  if (from != out) copy(from, out, n, stream);
}

// Small arrays of the host, gathered in pinned memory, that reach the device in one copy.
class Gathered {
 public:
  // Forgets what was added; room for so many bytes, 16 more for each array.
  void start(std::int64_t bytes) {
    pinned_.reserve(bytes);
    device_.reserve(bytes);
    used_ = 0;
  }
  // Where the array will lie once sent: itself if it is on the device already. With `room` for more
  // than there is, what is added next does not move when there is more.
  template <typename T>
  const T* add(const T* data, std::int64_t n, std::int64_t room) {
    if (on_device(data)) return data;
    unsigned char* at = device_.data() + used_;
    if (n > 0) std::memcpy(pinned_.data() + used_, data, static_cast<std::size_t>(n) * sizeof(T));
    used_ += (room * static_cast<std::int64_t>(sizeof(T)) + 15) / 16 * 16;
    return reinterpret_cast<const T*>(at);
  }
  template <typename T>
  const T* add(const T* data, std::int64_t n) {
    return add(data, n, n);
  }
  // Other numbers in the place of an array that was added, before it is sent (again).
  template <typename T>
  void replace(const T* added, const T* data, std::int64_t n) {
    const auto at = reinterpret_cast<const unsigned char*>(added) - device_.data();
    std::memcpy(pinned_.data() + at, data, static_cast<std::size_t>(n) * sizeof(T));
  }
  void send(const Stream& stream) const {
    copy(static_cast<const unsigned char*>(pinned_.data()), device_.data(), used_, stream);
  }
  std::int64_t used() const { return used_; }
  const void* pinned() const { return pinned_.data(); }
  const void* device() const { return device_.data(); }

 private:
  PinnedBuffer<unsigned char> pinned_;
  DeviceBuffer<unsigned char> device_;
  std::int64_t used_ = 0;
};

// One element of an array that lies wherever it lies, now: waits for the stream.
template <typename T>
T fetch(const T* from, const Stream& stream) {
  T value{};
  copy(from, &value, 1, stream);
  stream.wait();
  return value;
}

// Allows the kernel all the dynamic shared memory that its static arrays leave: never less than a
// launch of the same kernel by another thread needs at the same time.
inline void allow_shared_memory(const void* kernel) {
  cudaFuncAttributes attributes{};
  check(cudaFuncGetAttributes(&attributes, kernel), "cudaFuncGetAttributes");
  const std::int64_t most = device_properties().shared_bytes_a_block -
                            static_cast<std::int64_t>(attributes.sharedSizeBytes);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(most)),
        "cudaFuncSetAttribute");
}

inline dim3 blocks_for(std::int64_t n_threads, int threads) {
  return dim3(static_cast<unsigned>((n_threads + threads - 1) / threads));
}

// Puts a kernel on the stream, with these attributes; an empty grid is no work. More than 48 KiB of
// shared memory is allowed for as needed.
template <typename... Parameters, typename... Arguments>
void launch_as(cudaLaunchAttribute* attributes, unsigned n_attributes,
               void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes,
               const Stream& stream, Arguments&&... arguments) {
  constexpr std::size_t kAllowed = 40 * 1024;  // the kernel's static arrays count among the 48
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (shared_bytes > kAllowed) allow_shared_memory(reinterpret_cast<const void*>(kernel));
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream.get();
  config.attrs = attributes;
  config.numAttrs = n_attributes;
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...),
        "cudaLaunchKernelEx");
}

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes,
            const Stream& stream, Arguments&&... arguments) {
  launch_as(nullptr, 0, kernel, grid, block, shared_bytes, stream,
            std::forward<Arguments>(arguments)...);
}

// The same for a kernel that calls wait_for_grid_before: where the device can, it starts while the
// one before it on the stream ends, or from where that one calls let_next_grid_start.
template <typename... Parameters, typename... Arguments>
void launch_early(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes,
                  const Stream& stream, Arguments&&... arguments) {
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  launch_as(&early, device_properties().instructions >= 90 ? 1 : 0, kernel, grid, block,
            shared_bytes, stream, std::forward<Arguments>(arguments)...);
}

}  // namespace cexnn::cuda
