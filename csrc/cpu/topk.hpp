// The best of a stream of scored items.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "../views.hpp"

namespace cexnn::cpu {

struct Candidate {
  float score;
  std::int32_t id;
};

// Larger first; among equals the smaller id.
inline bool better(const Candidate& a, const Candidate& b) {
  return a.score > b.score || (a.score == b.score && a.id < b.id);
}

// Keeps the k best candidates offered. Items that beat the k-th best so far go to a buffer of 2k or
// more; when it is full, it is cut to the k best and the bar rises. Whoever offers compares with
// the bar first, so that the mask is looked up only for the few that pass it.
class TopK {
 public:
  TopK() = default;
  explicit TopK(std::int64_t k)
      : k_(static_cast<std::size_t>(k)), capacity_(std::max<std::size_t>(2 * k_, k_ + 64)) {}

  // Minus infinity is never kept. Ids must ascend from call to call. `excluded`, the same in every
  // call, is sorted.
  void offer(Candidate candidate, VectorView<const std::int32_t> excluded) {
    if (!(candidate.score > bar_)) return;  // an equal score comes with a larger id
    while (n_passed_ < excluded.size && excluded[n_passed_] < candidate.id) ++n_passed_;
    if (n_passed_ < excluded.size && excluded[n_passed_] == candidate.id) return;
    buffer_.push_back(candidate);
    if (buffer_.size() == capacity_) cut();
  }

  // A score that is not above it is not kept.
  float bar() const { return bar_; }

  void merge(const TopK& other) {
    for (const Candidate& candidate : other.buffer_) {
      buffer_.push_back(candidate);
      if (buffer_.size() == capacity_) cut();
    }
  }

  // The best, in order; fewer than k if fewer were offered.
  const std::vector<Candidate>& finish() {
    std::sort(buffer_.begin(), buffer_.end(), better);
    if (buffer_.size() > k_) buffer_.resize(k_);
    return buffer_;
  }

 private:
  void cut() {
    const auto kth = buffer_.begin() + static_cast<std::ptrdiff_t>(k_) - 1;
    std::nth_element(buffer_.begin(), kth, buffer_.end(), better);
    buffer_.resize(k_);
    bar_ = buffer_.back().score;
  }

  std::size_t k_ = 0;
  std::size_t capacity_ = 0;
  float bar_ = -std::numeric_limits<float>::infinity();
  std::vector<Candidate> buffer_;
  std::int64_t n_passed_ = 0;  // of the excluded ids: below the last one offered
};

}  // namespace cexnn::cpu
