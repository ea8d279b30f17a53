// A tile of items for panels of queries.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../searcher.hpp"
#include "kernels.hpp"
#include "packed_queries.hpp"

namespace cexnn::cpu {

// A tile of items waits in the second cache for panel after panel of queries, which waits in the
// first for a few items at a time.
constexpr std::int64_t kFloatsPerTile = 32768;
constexpr std::int64_t kItemsAtOnce = 48;

// A tile of items as they lie in memory or, of compact ones, brought into the form that panels
// take: one for each thread. A panel alone needs no more than it takes at once.
class PanelTile {
 public:
  PanelTile(MatrixView<const float> items, const CompactItems& from, std::int64_t n_panels)
      : items_(items), from_(from), alone_(n_panels == 1), size_(size(items, from, n_panels)) {
    const auto room = static_cast<std::size_t>(size_ * items.cols);
    if (from.halves.data != nullptr) floats_.resize(room);
    if (from.bytes.data != nullptr) pairs_.resize(room);
  }

  // Items of a tile, for any of 0 panels or more.
  static std::int64_t size(MatrixView<const float> items, const CompactItems& from,
                           std::int64_t n_panels) {
    if (n_panels == 1) return kItemsAtOnce;
    const std::int64_t d = std::max<std::int64_t>(1, items.cols);
    const std::int64_t n_numbers = from.bytes.data == nullptr ? d : pairs_of(d);
    return std::max<std::int64_t>(1, kFloatsPerTile / (n_numbers * kItemsAtOnce)) * kItemsAtOnce;
  }

  // Takes the items from begin to end, at most as many as its size.
  void load(std::int64_t begin, std::int64_t end) {
    begin_ = begin;
    const std::int64_t n = end - begin, d = items_.cols;
    if (from_.halves.data != nullptr)
      kernels().widen_f16(from_.halves.row(begin), &from_.scales[begin], n, d, floats_.data());
    if (from_.bytes.data != nullptr) kernels().pair_i8(from_.bytes.row(begin), n, d, pairs_.data());
  }

  // Kernels::panel_dots of n of its items, from i on.
  void dots(const Panel& panel, std::int64_t i, std::int64_t n, float* out) const {
    const std::int64_t d = items_.cols, n_pairs = pairs_of(d), at = i - begin_;
    if (from_.bytes.data != nullptr) {
      const std::int32_t* pairs = pairs_.data() + at * n_pairs;
      const Ahead ahead = alone_ ? Ahead{from_.bytes.data + (i + n) * d, d}
                                 : Ahead{pairs + n * n_pairs, 4 * n_pairs};
      kernels().panel_dots_i16(pairs, &from_.scales[i], n, panel.pairs, panel.scales,
                               panel.n_vectors, n_pairs, ahead, out);
      return;
    }
    const float* floats = from_.empty() ? items_.row(i) : floats_.data() + at * d;
    const Ahead ahead = alone_ && !from_.empty() ? Ahead{from_.halves.data + (i + n) * d, 2 * d}
                                                 : Ahead{floats + n * d, 4 * d};
    kernels().panel_dots(floats, n, panel.floats, panel.n_vectors, d, ahead, out);
  }

 private:
  static std::int64_t pairs_of(std::int64_t d) { return (d + 1) / 2; }

  MatrixView<const float> items_;
  CompactItems from_;
  bool alone_;
  std::int64_t size_;
  std::int64_t begin_ = 0;
  std::vector<float> floats_;
  std::vector<std::int32_t> pairs_;
};

}  // namespace cexnn::cpu
