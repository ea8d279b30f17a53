// What a search keeps on the device between rounds.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <utility>
#include <vector>

#include "../searcher.hpp"
#include "launch.cuh"
#include "memory.cuh"
#include "query_update.cuh"
#include "runtime.cuh"

namespace cexnn::cuda {

// Of the squared norms of rows in host memory.
inline double largest_norm(MatrixView<const float> rows) {
  double largest = 0.0;
  for (std::int64_t r = 0; r < rows.rows; ++r) {
    double sum = 0.0;
    for (const float x : rows.row_view(r)) sum += double(x) * double(x);
    largest = std::max(largest, sum);
  }
  return largest;
}

// norms[r] = |row r|^2, by a warp.
__global__ void norms_kernel(MatrixView<const float> rows, double* norms) {
  const float* row = rows.data + std::int64_t{blockIdx.x} * rows.cols;
  const double sum = warp_dot_of(static_cast<int>(rows.cols), row, row);
  if (threadIdx.x == 0) norms[blockIdx.x] = sum;
}

// Each query's inverse Cholesky factor, in one allocation: 4 n^2 bytes for n scores. Where it has
// to grow, it gets room for half as many more, and 128 at least: an allocation may take as long as
// a scan.
class CudaSearchState final : public SearchState {
 public:
  explicit CudaSearchState(std::int64_t n_queries)
      : queries_(static_cast<std::size_t>(n_queries)) {}

  void keep(VectorView<const std::int32_t> kept) override {
    std::int64_t least = 0;
    for (const std::int32_t q : kept) {  // all of them first: a refusal changes nothing
      if (q < least || q >= n_queries())
        throw std::invalid_argument("queries: expected ascending row numbers of the state");
      least = q + std::int64_t{1};
    }
    for (std::int64_t n = 0; n < kept.size; ++n)
      queries_[static_cast<std::size_t>(n)] = queries_[static_cast<std::size_t>(kept[n])];
    queries_.resize(static_cast<std::size_t>(kept.size));
  }

  std::int64_t n_queries() const { return static_cast<std::int64_t>(queries_.size()); }
  int n_done(std::int64_t q) const { return queries_[static_cast<std::size_t>(q)].n_done; }

  // Of the priors of the queries from `first` on, which lie on the device. Their norms come to the
  // host in the first round only.
  double largest_prior_norm(MatrixView<const float> priors, std::int64_t first,
                            const Stream& stream) {
    Query* queries = queries_.data() + first;
    double largest = 0.0;
    if (std::any_of(queries, queries + priors.rows,
                    [](const Query& query) { return query.prior_norm < 0.0; })) {
      norms_.reserve(priors.rows);
      launch(norms_kernel, dim3(unsigned(priors.rows)), dim3(32), 0, stream, priors, norms_.data());
      std::vector<double> fetched(static_cast<std::size_t>(priors.rows));
      copy<double>(norms_.data(), fetched.data(), priors.rows, stream);
      stream.wait();
      for (std::int64_t q = 0; q < priors.rows; ++q)
        queries[q].prior_norm = fetched[static_cast<std::size_t>(q)];
    }
    for (std::int64_t q = 0; q < priors.rows; ++q)
      largest = std::max(largest, queries[q].prior_norm);
    return largest;
  }

  // Names the memory for the `n` and `noise` of the queries from `first` on, and the row from which
  // on it must be filled.
  void prepare(std::vector<KnownRows>& rows, std::int64_t first, const Stream& stream) {
    Query* queries = queries_.data() + first;
    bool fits = true;
    for (std::size_t q = 0; q < rows.size(); ++q)
      fits = fits && rows[q].n_panels() <= queries[q].n_panels;
    if (!fits) {
      grow(rows, first, stream);
      queries = queries_.data() + first;
    }
    for (std::size_t q = 0; q < rows.size(); ++q) {
      Query& mine = queries[q];
      if (mine.noise != rows[q].noise) mine.n_done = 0;  // the floor rose
      mine.noise = rows[q].noise;
      rows[q].inverse = memory_.data() + mine.begin;
      rows[q].first =
          mine.n_done == rows[q].n ? rows[q].n_panels() * kTile : mine.n_done / kTile * kTile;
      mine.n_done = 0;  // until it is known to have worked
    }
  }

  void done(const std::vector<KnownRows>& rows, std::int64_t first) {
    for (std::size_t q = 0; q < rows.size(); ++q)
      queries_[static_cast<std::size_t>(first) + q].n_done = rows[q].n;
  }

 private:
  static constexpr int kSpare = 4;  // panels

  struct Query {
    std::int64_t begin = 0;
    int n_panels = 0;  // that there is room for
    int n_done = 0;
    double noise = 0.0;
    double prior_norm = -1.0;  // squared; below 0: not known yet
  };

  void grow(const std::vector<KnownRows>& rows, std::int64_t first, const Stream& stream) {
    std::vector<Query> grown = queries_;
    for (std::size_t q = 0; q < rows.size(); ++q) {
      int& n_panels = grown[static_cast<std::size_t>(first) + q].n_panels;
      const int needed = rows[q].n_panels();
      if (needed > n_panels) n_panels = needed + std::max(kSpare, needed / 2);
    }
    std::int64_t size = 0;
    for (Query& query : grown) {
      query.begin = size;
      size += KnownRows::size(query.n_panels);
    }
    DeviceBuffer<double> memory(size);
    for (std::size_t q = 0; q < grown.size(); ++q)
      copy<double>(memory_.data() + queries_[q].begin, memory.data() + grown[q].begin,
                   KnownRows::size((queries_[q].n_done + kTile - 1) / kTile), stream);
    stream.wait();
    memory_ = std::move(memory);
    queries_ = std::move(grown);
  }

  std::vector<Query> queries_;
  DeviceBuffer<double> memory_;
  DeviceBuffer<double> norms_;
};

}  // namespace cexnn::cuda
