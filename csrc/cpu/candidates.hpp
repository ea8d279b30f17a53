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
      if (c + kAhead < n) prefetch(items_.row_view(candidates[c + kAhead].id));
      const float rough = candidate.score;
      kernels().dots(items_.row(candidate.id), 1, query, items_.cols, &candidate.score);
      candidate.score += offset_of(candidate.id, counted);
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

  // The k best of candidates whose scores are upper bounds, best first; whether they are the k best
  // of all. Those whose bounds are below the k-th best so far need no look, nor does what was left
  // out, whose bounds are at most the last one.
  bool rank_bounded(const float* query, std::int64_t k, std::int64_t n_kept, bool counted,
                    std::vector<Candidate>& candidates) const {
    if (!is_finite({query, items_.cols})) return false;
    const std::size_t n = candidates.size(), wanted = static_cast<std::size_t>(k);
    std::vector<Candidate> best;  // a heap, the worst in front
    bool sure = static_cast<std::int64_t>(n) < n_kept;
    for (std::size_t c = 0; c < n; ++c) {
      if (c + kAhead < n) prefetch(items_.row_view(candidates[c + kAhead].id));
      const float bound = candidates[c].score;
      if (best.size() == wanted && best.front().score > bound) {
        sure = true;
        break;
      }
      Candidate candidate = candidates[c];
      kernels().dots(items_.row(candidate.id), 1, query, items_.cols, &candidate.score);
      candidate.score += offset_of(candidate.id, counted);
      if (!(candidate.score <= bound)) return false;
      if (best.size() == wanted && !better(candidate, best.front())) continue;
      best.push_back(candidate);
      std::push_heap(best.begin(), best.end(), better);
      if (best.size() <= wanted) continue;
      std::pop_heap(best.begin(), best.end(), better);
      best.pop_back();
    }
    std::sort_heap(best.begin(), best.end(), better);
    candidates = std::move(best);
    return sure;
  }

 private:
  static constexpr std::size_t kAhead = 8;  // rows asked for before they are needed

  static bool is_finite(VectorView<const float> numbers) {
    return std::all_of(numbers.begin(), numbers.end(), [](float x) { return std::isfinite(x); });
  }

  static void prefetch(VectorView<const float> row) {
    constexpr std::int64_t kFloatsPerLine = 16;
    for (std::int64_t j = 0; j < row.size; j += kFloatsPerLine) __builtin_prefetch(row.data + j);
  }

  MatrixView<const float> items_;
  VectorView<const float> offsets_;
  CompactItems compact_;
  float largest_scale_ = 0.0F;
};

}  // namespace cexnn::cpu
