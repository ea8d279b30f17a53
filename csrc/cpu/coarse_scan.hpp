// Passes over coarse items: the few whose upper bounds reach the best are scored as they are.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "../searcher.hpp"
#include "candidates.hpp"
#include "coarse_items.hpp"
#include "kernels.hpp"
#include "parallel.hpp"
#include "query_block.hpp"
#include "topk.hpp"

namespace cexnn::cpu {

// The k best of candidates whose scores are upper bounds. They wait in a buffer; when it is full,
// those of the highest bounds are scored, and whoever's bound is below the k-th best score is
// dropped. Where more than `most` have to wait, it gives up.
class BoundedTopK {
 public:
  BoundedTopK(const Candidates& candidates, const float* query, bool counted, std::int64_t k,
              std::int64_t most)
      : candidates_(&candidates),
        query_(query),
        counted_(counted),
        k_(static_cast<std::size_t>(k)),
        most_(static_cast<std::size_t>(most)),
        capacity_(std::max(kLeastCapacity, kWaitingPerWanted * k_)) {}

  // A bound that is not above it need not be offered.
  float bar() const { return bar_; }
  bool gave_up() const { return gave_up_; }
  void give_up() { gave_up_ = true; }

  // Ids must ascend from call to call. `excluded`, the same in every call, is sorted.
  void offer(Candidate bound, VectorView<const std::int32_t> excluded) {
    if (!(bound.score > bar_)) return;
    while (n_passed_ < excluded.size && excluded[n_passed_] < bound.id) ++n_passed_;
    if (n_passed_ < excluded.size && excluded[n_passed_] == bound.id) return;
    waiting_.push_back(key_of(bound));
    if (waiting_.size() >= capacity_) tighten();
  }

  void merge(const BoundedTopK& other) {
    gave_up_ |= other.gave_up_;
    waiting_.insert(waiting_.end(), other.waiting_.begin(), other.waiting_.end());
    for (const std::uint64_t key : other.best_) keep(key);
  }

  // The best, in order; fewer than k if fewer were offered.
  std::vector<Candidate> finish() {
    drop_below_bar();
    std::sort(waiting_.begin(), waiting_.end(), std::greater<std::uint64_t>());
    score_first(waiting_.size());
    std::sort(best_.begin(), best_.end(), std::greater<std::uint64_t>());
    std::vector<Candidate> best(best_.size());
    std::transform(best_.begin(), best_.end(), best.begin(), candidate_of);
    return best;
  }

 private:
  static constexpr std::size_t kLeastCapacity = 256, kWaitingPerWanted = 16;
  static constexpr std::size_t kAhead = 8;  // rows asked for before they are needed

  void tighten() {
    move_largest_to_front(waiting_, k_, spare_);
    score_first(k_);
    waiting_.erase(waiting_.begin(), waiting_.begin() + static_cast<std::ptrdiff_t>(k_));
    drop_below_bar();
    capacity_ = std::max(capacity_, 2 * waiting_.size());
    if (waiting_.size() > most_) gave_up_ = true;
  }

  void drop_below_bar() {
    const float bar = bar_;
    waiting_.erase(
        std::remove_if(waiting_.begin(), waiting_.end(),
                       [bar](std::uint64_t key) { return !(candidate_of(key).score > bar); }),
        waiting_.end());
  }

  void score_first(std::size_t n) {
    for (std::size_t c = 0; c < n; ++c) {
      if (c + kAhead < n) candidates_->prefetch(candidate_of(waiting_[c + kAhead]).id);
      const Candidate bound = candidate_of(waiting_[c]);
      if (!(bound.score > bar_)) continue;
      const float score = candidates_->score(query_, bound.id, counted_);
      if (score > -kInfinity) keep(key_of({score, bound.id}));
    }
  }

  void keep(std::uint64_t key) {
    if (best_.size() == k_ && key < best_.front()) return;
    best_.push_back(key);
    std::push_heap(best_.begin(), best_.end(), std::greater<std::uint64_t>());
    if (best_.size() > k_) {
      std::pop_heap(best_.begin(), best_.end(), std::greater<std::uint64_t>());
      best_.pop_back();
    }
    // An equal score may come with a smaller id: its bound is to be above the bar.
    if (best_.size() == k_) bar_ = std::nextafter(candidate_of(best_.front()).score, -kInfinity);
  }

  const Candidates* candidates_;
  const float* query_;
  bool counted_;
  std::size_t k_;
  std::size_t most_;
  std::size_t capacity_;
  float bar_ = -kInfinity;
  bool gave_up_ = false;
  std::vector<std::uint64_t> waiting_;  // bounds
  std::vector<std::uint64_t> best_;     // scores: a heap, the worst in front
  std::vector<std::uint64_t> spare_;
  std::int64_t n_passed_ = 0;  // of the excluded ids: below the last one offered
};

// Borrows its arrays, may be used from several threads.
class CoarseScan {
 public:
  // The most queries that take their passes one by one faster than all at once.
  static constexpr std::int64_t kMostQueries = 8;

  explicit CoarseScan(MatrixView<const float> items) : n_items_(items.rows), in_use_(items) {}

  // For each of the block's answers the k best, in order, or what gave up; nothing at all without
  // coarse items.
  std::vector<BoundedTopK> run(const QueryBlock& block, const Candidates& candidates,
                               std::int64_t k, int num_threads) const {
    constexpr std::int64_t kItemsPerWanted = 200, kItemsPerWaiting = 24;
    std::int64_t n_wanted = 0;
    for (std::int64_t q = 0; q < block.n_queries; ++q)
      n_wanted = std::max(n_wanted, k + block.mask(q).size);
    if (block.n_queries > kMostQueries || n_wanted > n_items_ / kItemsPerWanted) return {};
    const std::shared_ptr<const CoarseItems> items = in_use_.get(num_threads);
    if (items == nullptr) return {};

    std::vector<CoarseQuery> queries;
    std::vector<BoundedTopK> none;
    for (std::int64_t q = 0; q < block.n_queries; ++q) queries.emplace_back(block.query(q), *items);
    for (std::int64_t e = 0; e < block.n_answers(); ++e) {
      const std::int64_t q = e % block.n_queries;
      none.emplace_back(candidates, block.query(q).data,
                        counts_offsets(block.ranking, e / block.n_queries), k,
                        n_items_ / kItemsPerWaiting);
      if (!queries[static_cast<std::size_t>(q)].is_bounded()) none.back().give_up();
    }
    const std::int64_t n_tasks = (n_items_ + kItemsPerTask - 1) / kItemsPerTask;
    const std::int64_t n_bytes = n_items_ * items->dither().size / 2 * block.n_queries;
    const auto n_threads = static_cast<std::size_t>(
        std::max<std::int64_t>(1, std::min<std::int64_t>(num_threads, n_bytes / kBytesPerThread)));
    std::vector<std::vector<BoundedTopK>> best(n_threads, none);
    parallel_for(n_tasks, static_cast<int>(n_threads), [&](std::int64_t task, int thread) {
      const std::int64_t end = std::min(n_items_, (task + 1) * kItemsPerTask);
      for (std::int64_t i = task * kItemsPerTask; i < end; i += kItemsPerTile)
        scan(block, *items, queries, candidates, i, std::min(kItemsPerTile, end - i),
             best[static_cast<std::size_t>(thread)]);
    });
    for (std::size_t e = 0; e < none.size(); ++e) {
      for (std::size_t thread = 1; thread < n_threads; ++thread) best[0][e].merge(best[thread][e]);
      // By a query of zeros all items tie, however well they are known.
      const bool tells = queries[e % queries.size()].scale() > 0.0F;
      if (tells && !none[e].gave_up()) in_use_.report(!best[0][e].gave_up());
    }
    return std::move(best[0]);
  }

 private:
  // What a thread reads in a tenth of a millisecond: with less, starting it takes as long.
  static constexpr std::int64_t kBytesPerThread = 1 << 23;
  static constexpr std::int64_t kItemsPerTile = 128;
  static constexpr std::int64_t kItemsPerTask = 16 * kItemsPerTile;

  static void scan(const QueryBlock& block, const CoarseItems& items,
                   const std::vector<CoarseQuery>& queries, const Candidates& candidates,
                   std::int64_t i, std::int64_t n, std::vector<BoundedTopK>& best) {
    alignas(64) float scores[kItemsPerTile];
    std::int32_t positions[kItemsPerTile];
    for (std::int64_t q = 0; q < block.n_queries; ++q) {
      const CoarseQuery& query = queries[static_cast<std::size_t>(q)];
      bool is_scored = false;
      for (std::int64_t a = 0; a < answers_of(block.ranking); ++a) {
        BoundedTopK& mine = best[static_cast<std::size_t>(a * block.n_queries + q)];
        if (mine.gave_up()) continue;
        if (!is_scored)
          kernels().dots_i4(items.block(i), items.steps(i), n, query.values(), query.scale(),
                            query.shift(), items.dither().size, scores);
        is_scored = true;
        const bool counted = counts_offsets(block.ranking, a);
        const std::int64_t n_above = kernels().above_bar(
            scores, candidates.offsets_from(i, counted), n, mine.bar(), positions);
        for (std::int64_t at = 0; at < n_above; ++at) {
          const std::int64_t p = positions[at];
          mine.offer(
              {scores[p] + candidates.offset_of(i + p, counted), static_cast<std::int32_t>(i + p)},
              block.mask(q));
        }
      }
    }
  }

  std::int64_t n_items_;
  CoarseItemsInUse in_use_;
};

}  // namespace cexnn::cpu
