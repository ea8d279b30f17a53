#include <stdexcept>

#include "../device_arrays.hpp"
#include "ids.cuh"
#include "launch.cuh"
#include "memory.cuh"
#include "runtime.cuh"

namespace cexnn::cuda {
namespace {

constexpr int kThreads = 256;

struct Space {
  Stream stream;
  DeviceBuffer<int> flag{1};
  DeviceBuffer<std::int32_t> rows;
};

Space& space() {
  thread_local Space mine;
  return mine;
}

__device__ std::int64_t thread_number() {
  return std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    copy_strided_kernel(StridedArray from, std::int64_t n, T* out) {
  const std::int64_t e = thread_number();
  if (e >= n) return;
  std::int64_t left = e, at = 0;
  for (int i = from.n_dimensions - 1; i >= 0; --i) {
    at += left % from.shape[i] * from.strides[i];
    left /= from.shape[i];
  }
  out[e] = static_cast<const T*>(from.data)[at];
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    take_rows_kernel(const T* from, std::int64_t size, const std::int32_t* rows, std::int64_t n,
                     T* out) {
  const std::int64_t e = thread_number();
  if (e < n) out[e] = from[rows[e / size] * size + e % size];
}

__device__ float widen(std::uint16_t half) { return half_to_float(half); }
__device__ float widen(double value) { return static_cast<float>(value); }

template <typename T>
__global__ void __launch_bounds__(kThreads)
    to_floats_kernel(const T* from, std::int64_t n, float* out) {
  const std::int64_t e = thread_number();
  if (e < n) out[e] = widen(from[e]);
}

__global__ void __launch_bounds__(kThreads)
    within_kernel(VectorView<const float> values, float most, int* flag) {
  const std::int64_t e = thread_number();
  if (e < values.size && !(fabsf(values.data[e]) <= most)) *flag = 1;
}

// Calls work(T) with a type of as many bytes.
template <typename Work>
void with_type_of(std::int64_t bytes, const Work& work) {
  switch (bytes) {
    case 1:
      return work(std::uint8_t{});
    case 2:
      return work(std::uint16_t{});
    case 4:
      return work(std::uint32_t{});
    case 8:
      return work(std::uint64_t{});
    default:
      throw std::invalid_argument("expected elements of 1, 2, 4 or 8 bytes");
  }
}

}  // namespace

void copy_strided(const StridedArray& from, void* out) {
  std::int64_t n = 1;
  for (int i = 0; i < from.n_dimensions; ++i) n *= from.shape[i];
  const OnFirstDevice device;
  const Stream& stream = space().stream;
  with_type_of(from.element_bytes, [&](auto element) {
    using T = decltype(element);
    launch(copy_strided_kernel<T>, blocks_for(n, kThreads), dim3(kThreads), 0, stream, from, n,
           static_cast<T*>(out));
  });
  stream.wait();
}

void to_floats(const void* from, int bits, std::int64_t n, float* out) {
  const OnFirstDevice device;
  const Stream& stream = space().stream;
  const dim3 grid = blocks_for(n, kThreads), block(kThreads);
  if (bits == 16) {
    launch(to_floats_kernel<std::uint16_t>, grid, block, 0, stream,
           static_cast<const std::uint16_t*>(from), n, out);
  } else if (bits == 64) {
    launch(to_floats_kernel<double>, grid, block, 0, stream, static_cast<const double*>(from), n,
           out);
  } else {
    throw std::invalid_argument("expected floats of 16 or 64 bits");
  }
  stream.wait();
}

void take_rows(const void* from, std::int64_t n, std::int64_t row_bytes,
               VectorView<const std::int32_t> rows, void* out) {
  const OnFirstDevice device;
  Space& mine = space();
  const std::int32_t* there = to_device(rows, mine.rows, mine.stream).data;
  if (!all_within(there, rows.size, 0, n, mine.flag, mine.stream))
    throw std::invalid_argument("rows: expected numbers from 0 to " + std::to_string(n - 1));
  std::int64_t unit = 8;
  while (row_bytes % unit != 0 || reinterpret_cast<std::uintptr_t>(from) % unit != 0) unit /= 2;
  with_type_of(unit, [&](auto element) {
    using T = decltype(element);
    const std::int64_t size = row_bytes / unit, total = rows.size * size;
    launch(take_rows_kernel<T>, blocks_for(total, kThreads), dim3(kThreads), 0, mine.stream,
           static_cast<const T*>(from), size, there, total, static_cast<T*>(out));
  });
  mine.stream.wait();
}

bool all_within(VectorView<const float> values, float most) {
  const OnFirstDevice device;
  Space& mine = space();
  fill_zero(mine.flag.data(), 1, mine.stream);
  launch(within_kernel, blocks_for(values.size, kThreads), dim3(kThreads), 0, mine.stream, values,
         most, mine.flag.data());
  return fetch(mine.flag.data(), mine.stream) == 0;
}

}  // namespace cexnn::cuda
