// Queries that share a pass over the items.
#pragma once

#include <cstdint>
#include <vector>

#include "../searcher.hpp"

namespace cexnn::cpu {

// Borrows its arrays. `excluded`: for each of all queries the ids that it must not return, sorted.
struct QueryBlock {
  MatrixView<const float> queries;
  std::int64_t first;
  std::int64_t n_queries;
  const std::vector<std::vector<std::int32_t>>& excluded;
  Ranking ranking;

  VectorView<const float> query(std::int64_t q) const { return queries.row_view(first + q); }
  VectorView<const std::int32_t> mask(std::int64_t q) const {
    const std::vector<std::int32_t>& ids = excluded[static_cast<std::size_t>(first + q)];
    return {ids.data(), static_cast<std::int64_t>(ids.size())};
  }
  // The block's first answers, then its second ones if it wants both rankings.
  std::int64_t n_answers() const { return answers_of(ranking) * n_queries; }
};

}  // namespace cexnn::cpu
