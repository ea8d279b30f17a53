#include "../known_scores.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <tuple>
#include <unordered_set>
#include <utility>
#include <vector>

namespace cexnn::cpu {
namespace {

void check_row(std::int64_t row, std::int64_t n_rows) {
  if (row < 0 || row >= n_rows) throw std::invalid_argument("rows: expected numbers of queries");
}

void check(const KnownScores& known) {
  const std::int64_t n = known.counts.size, budget = known.ids.cols;
  if (known.ids.rows != n || known.scores.rows != n || known.scores.cols != budget)
    throw std::invalid_argument("known: expected ids, scores and counts of as many queries");
  for (const std::int64_t count : known.counts)
    if (count < 0 || count > budget)
      throw std::invalid_argument("counts: expected no more than there are places");
}

using Scored = std::pair<std::int32_t, float>;  // id, score

// Makes `row` what is known of query q.
void take(const KnownScores& known, std::int64_t q, std::vector<Scored>& row) {
  row.clear();
  for (std::int64_t j = 0; j < known.counts[q]; ++j)
    row.emplace_back(known.ids.row(q)[j], known.scores.row(q)[j]);
}

}  // namespace

void first_distinct(MatrixView<const std::int32_t> ids, MatrixView<std::int32_t> out) {
  std::unordered_set<std::int32_t> taken;
  for (std::int64_t r = 0; r < ids.rows; ++r) {
    const VectorView<std::int32_t> found = out.row_view(r);
    std::int64_t n = 0;
    taken.clear();
    for (const std::int32_t id : ids.row_view(r))
      if (n < found.size && id >= 0 && taken.insert(id).second) found[n++] = id;
    std::fill(found.begin() + n, found.end(), -1);
  }
}

std::int64_t count_ids(MatrixView<const std::int32_t> ids) {
  const std::int32_t* end = ids.data + ids.rows * ids.cols;
  return std::count_if(ids.data, end, [](std::int32_t id) { return id >= 0; });
}

void list_pairs(MatrixView<const std::int32_t> ids, VectorView<const std::int64_t> numbers,
                VectorView<std::int32_t> rows_out, VectorView<std::int32_t> items_out) {
  std::int64_t n = 0;
  for (std::int64_t r = 0; r < ids.rows; ++r) {
    for (const std::int32_t id : ids.row_view(r)) {
      if (id < 0) continue;
      rows_out[n] = static_cast<std::int32_t>(numbers[r]);
      items_out[n++] = id;
    }
  }
}

void append(const KnownScores& known, VectorView<const std::int32_t> rows,
            VectorView<const std::int32_t> items, VectorView<const float> scores,
            MatrixView<std::int32_t> ids_out, MatrixView<float> scores_out,
            VectorView<std::int64_t> counts_out) {
  check(known);
  std::copy(known.counts.begin(), known.counts.end(), counts_out.begin());
  for (std::int64_t p = 0; p < rows.size; ++p) {
    check_row(rows[p], ids_out.rows);
    const std::int64_t place = counts_out[rows[p]]++;
    if (place >= ids_out.cols)
      throw std::invalid_argument("rows: expected no more scores than there is room for");
    ids_out.row(rows[p])[place] = items[p];
    scores_out.row(rows[p])[place] = scores[p];
  }
}

void start_rows(const KnownScores& known, VectorView<const std::int64_t> rows,
                VectorView<std::int64_t> indptr_out) {
  check(known);
  indptr_out[0] = 0;
  for (std::int64_t r = 0; r < rows.size; ++r) {
    check_row(rows[r], known.counts.size);
    indptr_out[r + 1] = indptr_out[r] + known.counts[rows[r]];
  }
}

void start_rows(const KnownScores& known, VectorView<std::int64_t> indptr_out) {
  check(known);
  indptr_out[0] = 0;
  std::partial_sum(known.counts.begin(), known.counts.end(), indptr_out.begin() + 1);
}

void list_rows(const KnownScores& known, VectorView<const std::int64_t> rows,
               VectorView<std::int32_t> ids_out, VectorView<float> scores_out) {
  std::int32_t* ids = ids_out.begin();
  float* scores = scores_out.begin();
  for (const std::int64_t q : rows) {
    ids = std::copy_n(known.ids.row(q), known.counts[q], ids);
    scores = std::copy_n(known.scores.row(q), known.counts[q], scores);
  }
}

void list_by_id(const KnownScores& known, VectorView<std::int32_t> ids_out,
                VectorView<float> scores_out) {
  std::vector<Scored> row;
  std::int64_t n = 0;
  for (std::int64_t q = 0; q < known.counts.size; ++q) {
    take(known, q, row);
    std::sort(row.begin(), row.end());
    for (const auto& [id, score] : row) {
      ids_out[n] = id;
      scores_out[n++] = score;
    }
  }
}

void best(const KnownScores& known, MatrixView<std::int32_t> ids_out,
          MatrixView<float> scores_out) {
  const auto better = [](const Scored& a, const Scored& b) {
    return a.second != b.second ? a.second > b.second : a.first < b.first;
  };
  check(known);
  std::vector<Scored> row;
  for (std::int64_t q = 0; q < known.counts.size; ++q) {
    take(known, q, row);
    const std::int64_t n = std::min(known.counts[q], ids_out.cols);
    std::partial_sort(row.begin(), row.begin() + n, row.end(), better);
    for (std::int64_t j = 0; j < n; ++j)
      std::tie(ids_out.row(q)[j], scores_out.row(q)[j]) = row[static_cast<std::size_t>(j)];
    std::fill(ids_out.row(q) + n, ids_out.row(q) + ids_out.cols, -1);
    std::fill(scores_out.row(q) + n, scores_out.row(q) + scores_out.cols,
              std::numeric_limits<float>::quiet_NaN());
  }
}

bool all_within(VectorView<const float> values, float most) {
  bool within = true;
  for (const float x : values) within &= std::abs(x) <= most;
  return within;
}

}  // namespace cexnn::cpu
