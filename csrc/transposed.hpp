// A sparse matrix by columns.
#pragma once

#include <cstdint>
#include <vector>

#include "views.hpp"

namespace cexnn {

// The transpose of a matrix in the host's memory; each of its rows in the order of columns. Column
// ids must be in range.
class Transposed {
 public:
  explicit Transposed(const CsrView& matrix)
      : rows_(matrix.cols),
        cols_(matrix.rows),
        indptr_(static_cast<std::size_t>(matrix.cols + 1)),
        indices_(static_cast<std::size_t>(matrix.indptr[matrix.rows])),
        values_(indices_.size()) {
    for (std::int64_t e = 0; e < matrix.indptr[matrix.rows]; ++e) ++indptr_[matrix.indices[e] + 1];
    for (std::int64_t c = 0; c < matrix.cols; ++c) indptr_[c + 1] += indptr_[c];
    std::vector<std::int64_t> next(indptr_.begin(), indptr_.end() - 1);
    for (std::int64_t r = 0; r < matrix.rows; ++r) {
      for (std::int64_t e = matrix.indptr[r]; e < matrix.indptr[r + 1]; ++e) {
        const std::int64_t to = next[matrix.indices[e]]++;
        indices_[to] = static_cast<std::int32_t>(r);
        values_[to] = matrix.values[e];
      }
    }
  }

  // Keeps the rows' starts alone: the view's indices and values are gone.
  void forget_entries() {
    indices_ = {};
    values_ = {};
  }

  CsrView view() const { return {rows_, cols_, indptr_.data(), indices_.data(), values_.data()}; }

 private:
  std::int64_t rows_;
  std::int64_t cols_;
  std::vector<std::int64_t> indptr_;
  std::vector<std::int32_t> indices_;
  std::vector<float> values_;
};

}  // namespace cexnn
