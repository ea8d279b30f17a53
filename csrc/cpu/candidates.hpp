// Candidates of an estimate, ranked by the item factors themselves.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "../searcher.hpp"
#include "kernels.hpp"
#include "topk.hpp"

namespace cexnn::cpu {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Borrows its arrays.
class Candidates {
 public:
  Candidates(MatrixView<const float> items, VectorView<const float> offsets,
             const CompactItems& compact)
      : items_(items), offsets_(offsets), compact_(compact) {
    for (const float scale : compact.scales) largest_scale_ = std::max(largest_scale_, scale);
  }

  const float* offsets_from(std::int64_t item, bool counted) const {
    return offsets_.empty() || !counted ? nullptr : offsets_.data + item;
  }

  // Minus infinity, if that is it, counts in any ranking.
  float offset_of(std::int64_t item, bool counted) const {
    const float offset = offsets_.empty() ? 0.0F : offsets_[item];
    return counted || offset == -kInfinity ? offset : 0.0F;
  }

  // As a query alone scores it.
  float score(const float* query, std::int64_t item, bool counted) const {
    float score;
    kernels().dots(items_.row(item), 1, query, items_.cols, &score);
    return score + offset_of(item, counted);
  }

  // Asks for an item's factors, which are to be scored soon.
  void prefetch(std::int64_t item) const {
    constexpr std::int64_t kFloatsPerLine = 16;
    const float* row = items_.row(item);
    for (std::int64_t j = 0; j < items_.cols; j += kFloatsPerLine) __builtin_prefetch(row + j);
  }

  // Scores the candidates as a query alone would, and ranks them by that. Whether the k best are
  // among them: what was left out has a score that is at most the least of theirs, and an error
  // that is taken to be at most twice the largest of theirs.
  bool rank_alone(const float* query, std::int64_t k, std::int64_t n_kept, bool counted,
                  std::vector<Candidate>& candidates) const {
    const std::size_t n = candidates.size();
    const float bar = n == 0 ? 0.0F : candidates.back().score;
    float error = 0.0F, scale = 0.0F;
    for (std::size_t c = 0; c < n; ++c) {
      Candidate& candidate = candidates[c];
      if (c + kAhead < n) prefetch(candidates[c + kAhead].id);
      const float rough = candidate.score;
      candidate.score = score(query, candidate.id, counted);
      const float off = std::abs(candidate.score - rough);
      error = std::isnan(off) ? kInfinity : std::max(error, off);
      if (std::isnan(candidate.score)) candidate.score = -kInfinity;
      if (!compact_.empty()) scale = std::max(scale, compact_.scales[candidate.id]);
    }
    if (scale > 0.0F)
      error *= largest_scale_ / scale;  // an item is rounded as its factors are large
    std::sort(candidates.begin(), candidates.end(), better);
    while (!candidates.empty() && candidates.back().score == -kInfinity) candidates.pop_back();
    if (!compact_.empty() && !is_finite({query, items_.cols})) return false;
    return static_cast<std::int64_t>(n) < n_kept ||
           (static_cast<std::int64_t>(candidates.size()) >= k &&
            candidates[static_cast<std::size_t>(k) - 1].score >= bar + 2.0F * error);
  }

 private:
  static constexpr std::size_t kAhead = 8;  // rows asked for before they are needed

  static bool is_finite(VectorView<const float> numbers) {
    return std::all_of(numbers.begin(), numbers.end(), [](float x) { return std::isfinite(x); });
  }

  MatrixView<const float> items_;
  VectorView<const float> offsets_;
  CompactItems compact_;
  float largest_scale_ = 0.0F;
};

}  // namespace cexnn::cpu
