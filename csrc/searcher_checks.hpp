// What a searcher asks of its items, and says where one is wrong, on every device.
#pragma once

#include <limits>
#include <stdexcept>

#include "searcher.hpp"

namespace cexnn {

// The shapes alone: the arrays may lie on another device.
inline void check_items(MatrixView<const float> items, VectorView<const float> offsets,
                        const CompactItems& compact) {
  if (items.rows > std::numeric_limits<std::int32_t>::max())
    throw std::invalid_argument("item_factors: expected fewer than 2^31 items, whose ids int32 is");
  if (!offsets.empty() && offsets.size != items.rows)
    throw std::invalid_argument("item_offsets: expected one for each item");
  if (compact.empty()) return;
  const bool halves = compact.halves.data != nullptr;
  const std::int64_t rows = halves ? compact.halves.rows : compact.bytes.rows;
  const std::int64_t cols = halves ? compact.halves.cols : compact.bytes.cols;
  if (compact.scales.size != items.rows || rows != items.rows || cols != items.cols)
    throw std::invalid_argument("compact: expected the shape of item_factors and a scale a row");
  if (!halves && 127 * cols > std::numeric_limits<std::int32_t>::max())
    throw std::invalid_argument("compact: expected fewer factors than overflow a sum of bytes");
}

}  // namespace cexnn
