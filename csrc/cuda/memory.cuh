// Memory of the device and pinned memory of the host with owners, and copies between them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "../views.hpp"
#include "runtime.cuh"

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

// -- copies -----------------------------------------------------------------------------------

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

}  // namespace cexnn::cuda
