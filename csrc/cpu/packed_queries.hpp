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

// Up to two vectors of queries, a query to a lane; the lanes beyond are zero.
struct Panel {
  std::int64_t first;  // query of the block
  std::int64_t n_queries;
  std::int64_t n_vectors;
  const float* floats;        // for Kernels::panel_dots,
  const std::int32_t* pairs;  // or for panel_dots_i16,
  const float* scales;        // of these
};

// Queries of a block, packed as floats or, for items in bytes, as whole numbers in pairs.
class Panels {
 public:
  Panels(std::int64_t lanes, MatrixView<const float> queries, std::int64_t first,
         std::int64_t n_queries, bool whole) {
    const std::int64_t d = queries.cols, n_padded = (n_queries + lanes - 1) / lanes * lanes;
    const std::int64_t n_pairs = (d + 1) / 2;
    n_lanes_ = n_padded;
    floats_.resize(static_cast<std::size_t>(whole ? 0 : n_padded * d));
    pairs_.resize(static_cast<std::size_t>(whole ? n_padded * n_pairs : 0));
    scales_.resize(static_cast<std::size_t>(whole ? n_padded : 0));
    for (std::int64_t q = 0; q < n_queries; q += 2 * lanes) {
      const std::int64_t n = std::min(2 * lanes, n_queries - q);
      const std::int64_t width = n > lanes ? 2 * lanes : lanes;
      float* floats = whole ? nullptr : floats_.data() + q * d;
      std::int32_t* pairs = whole ? pairs_.data() + q * n_pairs : nullptr;
      float* scales = whole ? scales_.data() + q : nullptr;
      for (std::int64_t lane = 0; lane < n; ++lane) {
        const float* query = queries.row(first + q + lane);
        if (whole) {
          scales[lane] = pack(WholeQuery(query, d), d, pairs + lane, width);
        } else {
          for (std::int64_t j = 0; j < d; ++j) floats[j * width + lane] = query[j];
        }
      }
      panels_.push_back({q, n, width / lanes, floats, pairs, scales});
    }
  }

  std::int64_t size() const { return static_cast<std::int64_t>(panels_.size()); }
  std::int64_t n_lanes() const { return n_lanes_; }  // of all panels
  std::vector<Panel>::const_iterator begin() const { return panels_.begin(); }
  std::vector<Panel>::const_iterator end() const { return panels_.end(); }

 private:
  // The query's numbers, the even ones in the lower halves. Returns its scale.
  static float pack(const WholeQuery& query, std::int64_t d, std::int32_t* out,
                    std::int64_t stride) {
    for (std::int64_t j = 0; j < d; j += 2) {
      const std::int16_t high = j + 1 < d ? query.values()[j + 1] : std::int16_t{0};
      const auto low = static_cast<std::uint16_t>(query.values()[j]);
      out[j / 2 * stride] =
          static_cast<std::int32_t>(low | static_cast<std::uint32_t>(std::uint16_t(high)) << 16);
    }
    return query.scale();
  }

  std::int64_t n_lanes_;
  std::vector<float> floats_;
  std::vector<std::int32_t> pairs_;
  std::vector<float> scales_;
  std::vector<Panel> panels_;
};

}  // namespace cexnn::cpu
