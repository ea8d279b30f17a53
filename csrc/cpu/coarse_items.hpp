// Items in four bits a factor, for a first pass that reads an eighth of what their floats are.
//
// A factor is rounded by subtractive dither: code = floor(v / step + u), u random, the same for all
// items, and subtracted again where the code is read. Whatever an item is, its factors' errors are
// then independent and uniform on a step (Schuchman 1964; Gray and Stockham 1993, "Dithered
// quantizers"), so that its product with a query that was not chosen for its u is off by a sum that
// is sub-Gaussian, with the variance step^2 |query|^2 / 12: beyond t standard deviations with a
// probability of at most exp(-t^2 / 2).
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>
#include <new>
#include <random>
#include <utility>
#include <vector>

#include "../views.hpp"
#include "aligned.hpp"
#include "kernels.hpp"
#include "parallel.hpp"

namespace cexnn::cpu {

// Items as Kernels::dots_i4 reads them.
class CoarseItems {
 public:
  CoarseItems(MatrixView<const float> items, int num_threads)
      : d_(items.cols), block_bytes_(padded(items.cols, 8) / 8 * block_items() * 4) {
    std::mt19937 random(kSeed);
    float* dither = dither_.data(d_);
    double* query_dither = query_dither_.data(d_);
    for (std::int64_t j = 0; j < d_; ++j) {
      dither[j] = static_cast<float>(random() >> 13) * 0x1p-19F;
      query_dither[j] = static_cast<double>(random()) * 0x1p-32;
    }
    const std::int64_t at_once = block_items(), n_blocks = (items.rows + at_once - 1) / at_once;
    const std::int64_t n_tasks = (n_blocks + kBlocksPerTask - 1) / kBlocksPerTask;
    blocks_.reset(large_pages(static_cast<std::size_t>(n_blocks * block_bytes_)));
    float* steps = steps_.data(n_blocks * at_once);
    std::vector<Sizes> sizes(static_cast<std::size_t>(n_tasks));
    parallel_for(n_tasks, num_threads, [&](std::int64_t task, int) {
      const std::int64_t begin = task * kBlocksPerTask * at_once;
      const std::int64_t end = std::min(items.rows, begin + kBlocksPerTask * at_once);
      Sizes& mine = sizes[static_cast<std::size_t>(task)];
      for (std::int64_t i = begin; i < end; i += at_once) {
        const std::int64_t n = std::min(at_once, end - i);
        mine.factor = std::max(mine.factor,
                               kernels().pack_i4(items.row(i), n, d_, dither, block(i), steps + i));
        for (std::int64_t t = i; t < i + n; ++t) {
          const float norm = std::sqrt(kernels().dot_f32(items.row(t), items.row(t), d_));
          mine.norm = std::max(mine.norm, norm / steps[t]);
        }
      }
    });
    for (const Sizes& mine : sizes) {
      largest_.factor = std::max(largest_.factor, mine.factor);
      largest_.norm = std::max(largest_.norm, mine.norm);
    }
  }

  // Of magnitudes that floats have room for in products and sums.
  bool is_usable() const { return largest_.factor <= 1e15F; }

  // i is the first of a block: a multiple of twice Kernels::lanes.
  const std::uint8_t* block(std::int64_t i) const {
    return blocks_.get() + i / block_items() * block_bytes_;
  }
  const float* steps(std::int64_t i) const { return steps_.data() + i; }
  VectorView<const float> dither() const { return {dither_.data(), d_}; }
  const double* query_dither() const { return query_dither_.data(); }
  // The largest norm of an item, in its steps.
  float norm() const { return largest_.norm; }

 private:
  static constexpr std::int64_t kBlocksPerTask = 128;
  static constexpr std::uint32_t kSeed = 20240229;  // any

  struct Sizes {
    float factor = 0.0F;
    float norm = 0.0F;
  };
  static constexpr std::align_val_t kLargePage{1 << 21};
  struct Deleted {
    void operator()(std::uint8_t* bytes) const { ::operator delete(bytes, kLargePage); }
  };

  // With small ones a pass takes a fifth longer: the processor looks up each page. Not zero: each
  // thread is to touch its own first.
  static std::uint8_t* large_pages(std::size_t n_bytes) {
    void* const bytes = ::operator new(n_bytes, kLargePage);
#if defined(__linux__)
    madvise(bytes, n_bytes, MADV_HUGEPAGE);  // a wish: without, all is the same but slower
#endif
    return static_cast<std::uint8_t*>(bytes);
  }

  static std::int64_t block_items() { return 2 * kernels().lanes; }
  std::uint8_t* block(std::int64_t i) {
    return const_cast<std::uint8_t*>(static_cast<const CoarseItems*>(this)->block(i));
  }

  std::int64_t d_;
  std::int64_t block_bytes_;
  AlignedArray<float> dither_;
  AlignedArray<double> query_dither_;
  std::unique_ptr<std::uint8_t, Deleted> blocks_;
  AlignedFloats steps_;
  Sizes largest_;
};

// A query for Kernels::dots_i4, in eight bits, and what makes its scores upper bounds. Its factors
// are rounded down or up by chance, t apart, so that their errors have the mean zero: with what
// rounding the items leaves, a score is off by a sum over the factors with a variance of at most
//
//   step^2 (|query|^2 / 12 + t^2 |w|^2 / 4),  w the item as its codes give it, in steps.
//
// The bound lies kDeviations of its root above the score: an item is beyond it with a probability
// of at most exp(-7^2 / 2), 2.3e-11. What floats round is added.
class CoarseQuery {
 public:
  CoarseQuery(VectorView<const float> query, const CoarseItems& items) {
    constexpr double kDeviations = 7.0, kLevels = 126.5;
    const std::int64_t d = query.size;
    double largest = 0.0, squares = 0.0;
    for (const double q : query) {
      largest = std::max(largest, std::abs(q));
      squares += q * q;
    }
    std::int8_t* values = values_.data(padded(d, 8));
    is_bounded_ = squares == 0.0 || (squares > 1e-30 && squares < 1e30);
    if (!is_bounded_ || squares == 0.0) return;
    const double scale = largest / kLevels;
    double sum = 0.0;
    for (std::int64_t j = 0; j < d; ++j) {
      const double value = std::floor(query[j] / scale + items.query_dither()[j]);
      values[j] = static_cast<std::int8_t>(value);
      sum += value * (7.0 + items.dither()[j]);
    }
    const double root = std::sqrt(static_cast<double>(d)), norm = std::sqrt(squares);
    const double of_item = items.norm() + root;  // a step is more than what rounding leaves
    const double of_query = scale * of_item;
    const double by_floats = (norm + scale * root) * (0x1p-16 * root + 0x1p-23 * (d + 8) * of_item);
    scale_ = static_cast<float>(scale);
    shift_ =
        static_cast<float>(kDeviations * std::sqrt(squares / 12.0 + of_query * of_query / 4.0) +
                           by_floats - scale * sum);
  }

  // Whether scores are bounds at all: not of numbers that are not finite, nor of such that sums of
  // products with items come near to what floats cannot tell from zero or infinity.
  bool is_bounded() const { return is_bounded_; }
  const std::int8_t* values() const { return values_.data(); }
  float scale() const { return scale_; }
  float shift() const { return shift_; }

 private:
  AlignedArray<std::int8_t> values_;
  float scale_ = 0.0F;
  float shift_ = 0.0F;
  bool is_bounded_;
};

// Coarse items, made by the first pass after kPassesBefore, during which others go on without, and
// given up where too often they leave too many items to look at.
class CoarseItemsInUse {
 public:
  explicit CoarseItemsInUse(MatrixView<const float> items) : items_(items) {}

  // Null if they are not worth having, or not yet.
  std::shared_ptr<const CoarseItems> get(int num_threads) const {
    constexpr std::int64_t kLeastFactors = 1 << 22;
    constexpr int kPassesBefore = 16;
    constexpr std::int64_t kMostFactors = 1 << 16;  // of an item
    if (kernels().dots_i4 == nullptr || items_.cols > kMostFactors) return nullptr;
    if (items_.rows * items_.cols < kLeastFactors) return nullptr;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (n_passes_ < kPassesBefore) ++n_passes_;
      if (n_passes_ < kPassesBefore || is_begun_) return coarse_;
      is_begun_ = true;
    }
    try {
      auto made = std::make_shared<const CoarseItems>(items_, num_threads);
      const std::lock_guard<std::mutex> lock(mutex_);
      if (made->is_usable()) coarse_ = std::move(made);
      return coarse_;
    } catch (const std::bad_alloc&) {
      return nullptr;  // searches go on without
    }
  }

  // Whether a pass over them was enough.
  void report(bool was_enough) const {
    constexpr int kForFailure = 4, kMost = 64;  // some sixteen in a row, or a quarter of many
    const std::lock_guard<std::mutex> lock(mutex_);
    failures_ = was_enough ? std::max(0, failures_ - 1) : failures_ + kForFailure;
    if (failures_ >= kMost) coarse_.reset();
  }

 private:
  MatrixView<const float> items_;
  mutable std::mutex mutex_;
  mutable int n_passes_ = 0;
  mutable int failures_ = 0;
  mutable bool is_begun_ = false;
  mutable std::shared_ptr<const CoarseItems> coarse_;
};

}  // namespace cexnn::cpu
