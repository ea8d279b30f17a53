// Items on the device, as the kernels read them: rows of whole chunks of 16 bytes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../searcher.hpp"
#include "launch.cuh"
#include "memory.cuh"
#include "rank.cuh"
#include "rows.cuh"
#include "runtime.cuh"
#include "topk.cuh"

namespace cexnn::cuda {

constexpr int kStoreThreads = 256;

// out[i][j] = from[i][j] for j < d, zero up to the stride; 2 n d numbers moved.
template <typename T>
__global__ void pad_rows_kernel(const T* from, std::int64_t n, std::int64_t d, std::int64_t stride,
                                T* out) {
  const std::int64_t e = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const std::int64_t i = e / stride, j = e % stride;
  if (i < n) out[e] = j < d ? from[i * d + j] : T{0};
}

// sizes[i] = the largest of |row i|, read once; or sizes as they are, where items.data is null. The
// largest of all goes to *largest, which is zero before.
__global__ void sizes_kernel(Rows<float> items, std::int64_t n, float* sizes, float* largest) {
  const std::int64_t i = (std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (i >= n) return;
  float size = 0.0F;
  if (items.data == nullptr) {
    size = sizes[i];
  } else {
    for (std::int64_t j = lane; j < items.stride; j += 32)
      size = fmaxf(size, fabsf(items.data[i * items.stride + j]));
    for (int offset = 16; offset > 0; offset /= 2)
      size = fmaxf(size, __shfl_xor_sync(0xFFFFFFFFU, size, offset));
  }
  if (lane != 0) return;
  if (items.data != nullptr) sizes[i] = size;
  if (size > 0.0F && size > *largest)
    atomicMax(reinterpret_cast<int*>(largest), __float_as_int(size));  // positive: ordered alike
}

// The offsets of items where they do not count: minus infinity where that is it, else 0.
__global__ void ignored_offsets_kernel(const float* offsets, std::int64_t n, float* out) {
  const std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < n) out[i] = offsets[i] == kMinusInfinity ? kMinusInfinity : 0.0F;
}

// Rows padded to whole chunks. Those on the device that are so already are borrowed.
template <typename T>
class ItemRows {
 public:
  ItemRows() = default;

  ItemRows(MatrixView<const T> items, const Stream& stream) {
    const std::int64_t d = items.cols, chunks = (d + kChunk<T> - 1) / kChunk<T>;
    rows_ = {items.data, items.rows, chunks * kChunk<T>, static_cast<int>(chunks)};
    const bool aligned = reinterpret_cast<std::uintptr_t>(items.data) % 16 == 0;
    if (items.rows == 0 || (on_device(items.data) && rows_.stride == d && aligned)) return;
    storage_.reserve(items.rows * rows_.stride);
    rows_.data = storage_.data();
    if (rows_.stride == d) {
      copy(items.data, storage_.data(), items.rows * d, stream);
    } else {
      pad(items, stream);
    }
    stream.wait();
  }

  const Rows<T>& rows() const { return rows_; }

 private:
  void pad(MatrixView<const T> items, const Stream& stream) {
    constexpr std::int64_t kAtOnce = std::int64_t{1} << 24;  // numbers
    const std::int64_t step =
        std::max<std::int64_t>(1, kAtOnce / std::max<std::int64_t>(1, items.cols));
    DeviceBuffer<T> part;
    for (std::int64_t i = 0; i < items.rows; i += step) {
      const std::int64_t n = std::min(step, items.rows - i);
      const T* from = to_device(items.row(i), n * items.cols, part, stream);
      launch(pad_rows_kernel<T>, blocks_for(n * rows_.stride, kStoreThreads), dim3(kStoreThreads),
             0, stream, from, n, items.cols, rows_.stride, storage_.data() + i * rows_.stride);
    }
    stream.wait();
  }

  DeviceBuffer<T> storage_;
  Rows<T> rows_;
};

// The items' offsets, and what stands in their place where they do not count.
class ItemOffsets {
 public:
  ItemOffsets(VectorView<const float> offsets, const Stream& stream) {
    if (offsets.empty()) return;
    counted_ = to_device(offsets.data, offsets.size, storage_, stream);
    ignored_.reserve(offsets.size);
    launch(ignored_offsets_kernel, blocks_for(offsets.size, kStoreThreads), dim3(kStoreThreads), 0,
           stream, counted_, offsets.size, ignored_.data());
    stream.wait();
  }

  const float* counted() const { return counted_; }  // null where there are none

  Offsets of(Ranking ranking) const {
    if (counted_ == nullptr) return {};
    const float* first = counts_offsets(ranking, 0) ? counted_ : ignored_.data();
    return {first, ranking == Ranking::both ? counted_ : first};
  }

 private:
  DeviceBuffer<float> storage_, ignored_;
  const float* counted_ = nullptr;
};

}  // namespace cexnn::cuda
