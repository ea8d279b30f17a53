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

// Floats that are aligned to the widest vector and zero at first. It keeps what it grew to.
class AlignedFloats {
 public:
  float* data(std::int64_t n) {  // what is new is zero
    lines_.resize(std::max(lines_.size(), static_cast<std::size_t>((n + 15) / 16)));
    return lines_.data()->floats;
  }

 private:
  struct alignas(64) Line {
    float floats[16];
  };
  std::vector<Line> lines_ = std::vector<Line>(1);
};

}  // namespace cexnn::cpu
