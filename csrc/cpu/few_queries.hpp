// A few queries against items, one query at a time, in the form in which the items are read.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../searcher.hpp"
#include "aligned.hpp"
#include "kernels.hpp"
#include "packed_queries.hpp"

namespace cexnn::cpu {

// Borrows everything. Of compact items unless they are empty.
class FewQueries {
 public:
  FewQueries(MatrixView<const float> queries, MatrixView<const float> items,
             const CompactItems& compact)
      : queries_(queries), items_(items), compact_(compact) {
    float* plain = plain_.data(queries.rows * stride());
    for (std::int64_t q = 0; q < queries.rows; ++q) {
      std::copy_n(queries.row(q), queries.cols, plain + q * stride());
      if (compact.bytes.data != nullptr) whole_queries_.emplace_back(queries.row(q), queries.cols);
    }
  }

  std::int64_t size() const { return queries_.rows; }

  // Of query q with n items from i on, without their offsets.
  void score(std::int64_t q, std::int64_t i, std::int64_t n, float* scores) const {
    const Kernels& k = kernels();
    const float* query = plain_.data() + q * stride();
    if (compact_.bytes.data != nullptr) {
      const WholeQuery& codes = whole_queries_[static_cast<std::size_t>(q)];
      k.dots_i8(compact_.bytes.row(i), &compact_.scales[i], n, codes.values(), codes.scale(),
                items_.cols, scores);
    } else if (compact_.halves.data != nullptr) {
      k.dots_f16(compact_.halves.row(i), &compact_.scales[i], n, query, items_.cols, scores);
    } else {
      k.dots(items_.row(i), n, query, items_.cols, scores);
    }
  }

 private:
  std::int64_t stride() const { return padded(queries_.cols); }

  MatrixView<const float> queries_;
  MatrixView<const float> items_;
  CompactItems compact_;
  AlignedFloats plain_;  // loads across lines take twice as long
  std::vector<WholeQuery> whole_queries_;
};

}  // namespace cexnn::cpu
