// The best of a stream of scored items.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
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

// A candidate as a number, the larger the better it is; no score is NaN, and -0 becomes 0.
inline std::uint64_t key_of(const Candidate& candidate) {
  const float score = candidate.score + 0.0F;
  std::uint32_t bits;
  std::memcpy(&bits, &score, sizeof(bits));
  bits ^= bits >> 31 == 0 ? 0x80000000U : 0xFFFFFFFFU;
  return std::uint64_t{bits} << 32 | ~static_cast<std::uint32_t>(candidate.id);
}

inline Candidate candidate_of(std::uint64_t key) {
  auto bits = static_cast<std::uint32_t>(key >> 32);
  bits ^= bits >> 31 == 0 ? 0xFFFFFFFFU : 0x80000000U;
  Candidate candidate;
  std::memcpy(&candidate.score, &bits, sizeof(bits));
  candidate.id = static_cast<std::int32_t>(~static_cast<std::uint32_t>(key));
  return candidate;
}

// Moves the k largest of more numbers, all different, to the front. Four times as fast as
// std::nth_element, which mispredicts every other comparison and took a tenth of a batch's time:
// here each number is written to either end of `spare`, and one of the two is written over.
inline void move_largest_to_front(std::vector<std::uint64_t>& keys, std::size_t k,
                                  std::vector<std::uint64_t>& spare) {
  constexpr int kMaxRounds = 64;  // an order made to hurt takes more
  spare.resize(keys.size());
  std::uint64_t *const from = keys.data(), *const to = spare.data();
  std::size_t begin = 0, end = keys.size();
  for (int round = 0; round < kMaxRounds && end - begin > 2; ++round) {
    const std::uint64_t a = from[begin], b = from[begin + (end - begin) / 2], c = from[end - 1];
    const std::uint64_t median = std::max(std::min(a, b), std::min(std::max(a, b), c));
    std::size_t front = begin, back = end;
    for (std::size_t i = begin; i < end; ++i) {
      const bool large = from[i] >= median;
      to[front] = to[back - 1] = from[i];
      front += large;
      back -= !large;
    }
    std::copy(to + begin, to + end, from + begin);
    if (front == k) return;
    (front < k ? begin : end) = front;
  }
  std::nth_element(from + begin, from + k, from + end, std::greater<std::uint64_t>());
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
    if (candidate.id >= next_excluded_) {
      while (n_passed_ < excluded.size && excluded[n_passed_] < candidate.id) ++n_passed_;
      next_excluded_ = n_passed_ < excluded.size ? excluded[n_passed_]
                                                 : std::numeric_limits<std::int32_t>::max();
      if (next_excluded_ == candidate.id) return;
    }
    keep(key_of(candidate));
  }

  // A score that is not above it is not kept.
  float bar() const { return bar_; }

  void merge(const TopK& other) {
    for (const std::uint64_t key : other.keys_) keep(key);
  }

  // The best, in order; fewer than k if fewer were offered.
  std::vector<Candidate> finish() {
    if (keys_.size() > k_) cut();
    std::sort(keys_.begin(), keys_.end(), std::greater<std::uint64_t>());
    std::vector<Candidate> best(keys_.size());
    std::transform(keys_.begin(), keys_.end(), best.begin(), candidate_of);
    return best;
  }

 private:
  void keep(std::uint64_t key) {
    keys_.push_back(key);
    if (keys_.size() < capacity_) return;
    cut();
    bar_ = candidate_of(*std::min_element(keys_.begin(), keys_.end())).score;
  }

  void cut() {
    move_largest_to_front(keys_, k_, spare_);
    keys_.resize(k_);
  }

  std::size_t k_ = 0;
  std::size_t capacity_ = 0;
  float bar_ = -std::numeric_limits<float>::infinity();
  std::vector<std::uint64_t> keys_;
  std::vector<std::uint64_t> spare_;
  std::int64_t n_passed_ = 0;  // of the excluded ids: below the last one offered
  std::int32_t next_excluded_ = 0;
};

}  // namespace cexnn::cpu
