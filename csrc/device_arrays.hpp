// Arrays that lie on the CUDA device, made into what the core takes. On the host NumPy does.
#pragma once

#include <cstdint>

#include "views.hpp"

namespace cexnn::cuda {

constexpr int kMostDimensions = 8;

// An array whose elements lie `strides` elements apart, each of `element_bytes` 1, 2, 4 or 8.
struct StridedArray {
  const void* data = nullptr;
  int element_bytes = 0;
  int n_dimensions = 0;  // kMostDimensions at most
  std::int64_t shape[kMostDimensions] = {};
  std::int64_t strides[kMostDimensions] = {};
};

// All pointers are the device's but where said otherwise; done when they return.

// The elements one after another, the last dimension's first.
void copy_strided(const StridedArray& from, void* out);

// n floats of 16 or 64 bits as 32: rounded to nearest; too large ones become infinite.
void to_floats(const void* from, int bits, std::int64_t n, float* out);

// The rows of these numbers, each of `row_bytes`, of the `n` from `from` on. `rows` lie wherever
// they lie. Throws std::invalid_argument for a number out of range.
void take_rows(const void* from, std::int64_t n, std::int64_t row_bytes,
               VectorView<const std::int32_t> rows, void* out);

// Whether all are numbers of `most` at most in size.
bool all_within(VectorView<const float> values, float most);

}  // namespace cexnn::cuda
