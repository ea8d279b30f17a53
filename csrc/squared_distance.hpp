// What regularisation weighs.
#pragma once

#include <cstdint>

#include "views.hpp"

namespace cexnn {

// Of factors in the host's memory from their prior, or from zero where that is null; accumulated in
// double precision.
inline double squared_distance(MatrixView<const float> factors, MatrixView<const float> prior) {
  double total = 0.0;
  for (std::int64_t i = 0; i < factors.rows * factors.cols; ++i) {
    const double gap = factors.data[i] - (prior.data == nullptr ? 0.0 : double(prior.data[i]));
    total += gap * gap;
  }
  return total;
}

}  // namespace cexnn
