// Queries as the kernels that score items want them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "../views.hpp"
#include "aligned.hpp"

namespace cexnn::cpu {

// Up to two vectors of queries, a query to a lane.
struct Panel {
  std::int64_t first;      // query of the block
  std::int64_t n_queries;  // the lanes beyond are zero
  std::int64_t n_vectors;
  const float* packed;
};

// Queries of a block, packed for Kernels::panel_dots.
class Panels {
 public:
  Panels(std::int64_t lanes, MatrixView<const float> queries, std::int64_t first,
         std::int64_t n_queries) {
    const std::int64_t d = queries.cols, n_vectors = (n_queries + lanes - 1) / lanes;
    packed_.assign(static_cast<std::size_t>(n_vectors * lanes * d), 0.0F);
    for (std::int64_t q = 0; q < n_queries; q += 2 * lanes) {
      const std::int64_t n = std::min(2 * lanes, n_queries - q), vectors = n > lanes ? 2 : 1;
      float* packed = packed_.data() + q * d;
      for (std::int64_t lane = 0; lane < n; ++lane)
        for (std::int64_t j = 0; j < d; ++j)
          packed[j * vectors * lanes + lane] = queries.row(first + q + lane)[j];
      panels_.push_back({q, n, vectors, packed});
    }
  }

  std::vector<Panel>::const_iterator begin() const { return panels_.begin(); }
  std::vector<Panel>::const_iterator end() const { return panels_.end(); }

 private:
  std::vector<float> packed_;
  std::vector<Panel> panels_;
};

// A query for Kernels::dots_i8: as many bits as the sums have room for, 16 up to 516 factors.
class WholeQuery {
 public:
  WholeQuery(const float* query, std::int64_t d) {
    std::int16_t* values = values_.data(d);
    const auto room =
        static_cast<float>(std::min(kMax16, kMax32 / (127 * std::max<std::int64_t>(1, d))));
    float largest = 0.0F;
    for (std::int64_t j = 0; j < d; ++j) largest = std::max(largest, std::abs(query[j]));
    scale_ = largest / room;
    if (!(scale_ > 0.0F) || !std::isfinite(scale_)) return;  // all zero: no candidate is sure
    for (std::int64_t j = 0; j < d; ++j)
      values[j] =
          static_cast<std::int16_t>(std::lround(std::clamp(query[j] / scale_, -room, room)));
  }

  const std::int16_t* values() const { return values_.data(); }
  float scale() const { return scale_; }

 private:
  static constexpr std::int64_t kMax16 = std::numeric_limits<std::int16_t>::max();
  static constexpr std::int64_t kMax32 = std::numeric_limits<std::int32_t>::max();
  AlignedArray<std::int16_t> values_;
  float scale_;
};

}  // namespace cexnn::cpu
