// Items in four bits a factor, for a first pass that reads half of what their bytes are.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#include "../views.hpp"
#include "aligned.hpp"
#include "kernels.hpp"
#include "parallel.hpp"

namespace cexnn::cpu {

// A byte b is kept as round(b / kCoarseStep) + kCoarseZero, 0 to 14.
constexpr int kCoarseStep = 17;
constexpr int kCoarseZero = 7;

// Rows as Kernels::dots_i4 reads them. Uneven items do not lose by rounding as if by chance, be it
// that they have a few large factors beside many that become zero, which is all that they may be
// searched for, or that they have few: their scores are to be taken from the items themselves.
class CoarseItems {
 public:
  CoarseItems(MatrixView<const std::int8_t> bytes, int num_threads)
      : row_bytes_(padded((bytes.cols + 1) / 2, vector_bytes())) {
    constexpr std::int64_t kItemsPerTask = 4096;
    const std::int64_t n_tasks = (bytes.rows + kItemsPerTask - 1) / kItemsPerTask;
    std::vector<float> largest(static_cast<std::size_t>(n_tasks));
    std::vector<std::vector<std::int32_t>> uneven(static_cast<std::size_t>(n_tasks));
    std::uint8_t* rows = rows_.data(bytes.rows * row_bytes_);
    parallel_for(n_tasks, num_threads, [&](std::int64_t task, int) {
      const std::int64_t end = std::min(bytes.rows, (task + 1) * kItemsPerTask);
      float most = 0.0F;
      for (std::int64_t i = task * kItemsPerTask; i < end; ++i) {
        const Left left = pack(bytes.row_view(i), rows + i * row_bytes_);
        if (left.is_uneven()) {
          uneven[static_cast<std::size_t>(task)].push_back(static_cast<std::int32_t>(i));
        } else {
          most = std::max(most, left.variance());
        }
      }
      largest[static_cast<std::size_t>(task)] = most;
    });
    variance_ = *std::max_element(largest.begin(), largest.end());
    for (const std::vector<std::int32_t>& ids : uneven)
      uneven_.insert(uneven_.end(), ids.begin(), ids.end());
  }

  // Ids of the uneven items among n from i on, ascending.
  VectorView<const std::int32_t> uneven(std::int64_t i, std::int64_t n) const {
    const auto begin = std::lower_bound(uneven_.begin(), uneven_.end(), i);
    const auto end = std::lower_bound(begin, uneven_.end(), i + n);
    return {uneven_.data() + (begin - uneven_.begin()), end - begin};
  }

  // The largest mean square, of any other item, of what rounding leaves of factors: about 24.
  float variance() const { return variance_; }
  const std::uint8_t* row(std::int64_t i) const { return rows_.data() + i * row_bytes_; }
  std::int64_t row_bytes() const { return row_bytes_; }

  // Bytes of a vector; 2 vectors' worth of factors share one, the first in the lower halves.
  static std::int64_t vector_bytes() {
    return kernels().lanes * static_cast<std::int64_t>(sizeof(float));
  }

 private:
  // Sums of the squares of what rounding leaves: of all factors, and of those that become zero; and
  // how many factors were not zero before.
  struct Left {
    std::int64_t squares = 0;
    std::int64_t by_zeros = 0;
    std::int64_t n_factors = 0;

    float variance() const {
      return static_cast<float>(squares) / static_cast<float>(std::max<std::int64_t>(1, n_factors));
    }
    bool is_uneven() const {
      constexpr float kMostVariance = 40.0F;
      return 5 * by_zeros > 3 * squares || variance() > kMostVariance;
    }
  };

  static Left pack(VectorView<const std::int8_t> bytes, std::uint8_t* out) {
    const std::int64_t n = vector_bytes();
    std::uint8_t codes[2 * kMaxLanes * sizeof(float)];
    Left left;
    for (std::int64_t j = 0; j < bytes.size; j += 2 * n, out += n) {
      const std::int64_t n_codes = std::min(2 * n, bytes.size - j);
      const Left mine = round(bytes.data + j, n_codes, codes);
      left.squares += mine.squares;
      left.by_zeros += mine.by_zeros;
      left.n_factors += mine.n_factors;
      std::fill(codes + n_codes, codes + 2 * n, std::uint8_t{0});
      for (std::int64_t t = 0; t < n; ++t)
        out[t] = static_cast<std::uint8_t>(codes[t] | codes[n + t] << 4);
    }
    return left;
  }

  // In sixteen bits, so that compilers widen the loop: 241 / 4096 is a 17th to what is below 255.
  static Left round(const std::int8_t* bytes, std::int64_t n, std::uint8_t* codes) {
    static_assert(kCoarseStep == 17 && kCoarseZero == 7);
    std::int32_t squares = 0, by_zeros = 0, n_factors = 0;
    for (std::int64_t t = 0; t < n; ++t) {
      const auto above = static_cast<std::uint16_t>(bytes[t] + 127);
      const auto code = static_cast<std::uint16_t>(static_cast<std::uint16_t>(above * 241U) >> 12);
      const auto left = static_cast<std::int16_t>(above - kCoarseStep * code - kCoarseStep / 2);
      codes[t] = static_cast<std::uint8_t>(code);
      squares += left * left;
      by_zeros += code == kCoarseZero ? left * left : 0;
      n_factors += bytes[t] != 0;
    }
    return {squares, by_zeros, n_factors};
  }

  std::int64_t row_bytes_;
  AlignedArray<std::uint8_t> rows_;
  std::vector<std::int32_t> uneven_;
  float variance_ = 0.0F;
};

// Coarse items of bytes, made once: their making takes as long as some thirty passes over the
// bytes, half of it for fresh memory, so the first kPassesBefore passes go without. They take half
// of the bytes' memory.
class CoarseItemsInUse {
 public:
  explicit CoarseItemsInUse(MatrixView<const std::int8_t> bytes) : bytes_(bytes) {}

  // Null if they are not worth having, or not yet.
  const CoarseItems* get(int num_threads) const {
    constexpr std::int64_t kLeastBytes = 1 << 22;
    constexpr int kPassesBefore = 16;
    constexpr std::int64_t kItemsPerUneven = 64;  // with more, a pass over bytes is as fast
    if (bytes_.data == nullptr || kernels().dots_i4 == nullptr) return nullptr;
    if (bytes_.rows * bytes_.cols < kLeastBytes) return nullptr;
    if (n_passes_ < kPassesBefore && n_passes_++ < kPassesBefore) return nullptr;
    std::call_once(made_, [&] {
      try {
        auto items = std::make_unique<CoarseItems>(bytes_, num_threads);
        if (items->uneven(0, bytes_.rows).size <= bytes_.rows / kItemsPerUneven)
          items_ = std::move(items);
      } catch (const std::bad_alloc&) {
        items_ = nullptr;  // searches go on without
      }
    });
    return items_.get();
  }

 private:
  MatrixView<const std::int8_t> bytes_;
  mutable std::atomic<int> n_passes_{0};
  mutable std::once_flag made_;
  mutable std::unique_ptr<CoarseItems> items_;
};

// A query for Kernels::dots_i4: in eight bits, and what makes its scores upper bounds. The error of
// a score is scales[i] times a sum over the factors of what rounding has left of item and query, as
// if by chance. The bound lies kDeviations of that sum's standard deviations, at the item that lost
// most, above the score: of usual items one in a million is beyond it.
class CoarseQuery {
 public:
  CoarseQuery(const float* query, std::int64_t d, const CoarseItems& items) {
    constexpr float kDeviations = 4.5F, kOfBytes = 1.0F / 12.0F;
    constexpr float kLargestItem = kCoarseStep * kCoarseZero;
    float largest = 0.0F, squares = 0.0F;
    for (std::int64_t j = 0; j < d; ++j) {
      largest = std::max(largest, std::abs(query[j]));
      squares += query[j] * query[j];
    }
    std::int8_t* values = values_.data(2 * items.row_bytes());
    const float scale = largest / 127.0F;
    if (!(scale > 0.0F)) return;  // all zero: every score is a tie
    if (!(squares > 1e-30F && squares < 1e30F)) {
      // What follows would come to zero or infinity: bounds that make no answer sure.
      shift_ = std::numeric_limits<float>::max();
      return;
    }
    std::int32_t sum = 0;
    for (std::int64_t j = 0; j < d; ++j) {
      const long value = std::lround(query[j] / scale);
      values[j] = static_cast<std::int8_t>(value);
      sum += static_cast<std::int32_t>(value);
    }
    scale_ = scale * kCoarseStep;
    const float of_query =
        static_cast<float>(d) * kLargestItem * kLargestItem * scale * scale / 12.0F;
    shift_ = kDeviations * std::sqrt((items.variance() + kOfBytes) * squares + of_query) -
             scale_ * static_cast<float>(kCoarseZero * sum);
  }

  const std::int8_t* values() const { return values_.data(); }
  float scale() const { return scale_; }
  float shift() const { return shift_; }

 private:
  AlignedArray<std::int8_t> values_;
  float scale_ = 0.0F;
  float shift_ = 0.0F;
};

}  // namespace cexnn::cpu
