// Memory of kernels' operands.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels.hpp"

namespace cexnn::cpu {

inline std::int64_t padded(std::int64_t n, std::int64_t to = kRowPadding) {
  return (n + to - 1) / to * to;
}

// Numbers that are aligned to the widest vector and zero at first. It keeps what it grew to.
template <typename T>
class AlignedArray {
 public:
  T* data(std::int64_t n) {  // what is new is zero
    lines_.resize(std::max(lines_.size(), static_cast<std::size_t>((n + kPerLine - 1) / kPerLine)));
    return lines_.data()->values;
  }
  const T* data() const { return lines_.data()->values; }

 private:
  static constexpr std::int64_t kPerLine = 64 / sizeof(T);
  struct alignas(64) Line {
    T values[kPerLine];
  };
  std::vector<Line> lines_ = std::vector<Line>(1);
};

using AlignedFloats = AlignedArray<float>;

}  // namespace cexnn::cpu
