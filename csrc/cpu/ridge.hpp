// The one regularised least-squares row that both sides of the method solve.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "../als.hpp"
#include "../als_checks.hpp"
#include "../views.hpp"
#include "aligned.hpp"
#include "cholesky.hpp"
#include "conjugate_gradients.hpp"
#include "kernels.hpp"

namespace cexnn::cpu {

// Solves rows of one problem in single precision, keeping its memory. n scores of d factors cost
//   dual    n^2 d + n^3 / 3 flops: products of whole rows,
//   primal  n d^2 + d^3 / 3 flops: products of columns, kChunk rows at a time,
// on n d floats gathered, and 4 n d flops for what the prior leaves of the scores and for the step.
// Rows with few scores are solved together, one to a lane: n^3 / 3 flops take the time of as many
// where a row alone would wait for one square root after the other. What each gets does not depend
// on the others.
class RidgeSolver {
 public:
  // Rows with at most that many scores, fewer than factors, are solved together: at 64 that takes a
  // fifth less than one by one. Twice that many no longer fit into the second cache.
  static constexpr std::int64_t kFewScores = 64;

  RidgeSolver(const Kernels& kernels, const RidgeProblem& problem)
      : k_(kernels),
        problem_(problem),
        d_(problem.factors.cols),
        width_(padded(d_)),
        stride_(width_ / kRowPadding % 2 == 0 ? width_ + kRowPadding : width_),
        aligned_(reinterpret_cast<std::uintptr_t>(problem.factors.data) % 64 == 0),
        gradients_(kernels, problem),
        zeros_(static_cast<std::size_t>(width_), 0.0F),
        in_order_(kChunk) {
    std::iota(in_order_.begin(), in_order_.end(), 0);
  }

  // Solves `rows` into their rows of out; adds to `failed` those whose factorisation breaks down
  // or whose solution overflows. Cheapest where rows that follow one another have as many scores.
  void solve(VectorView<const std::int64_t> rows, MatrixView<float> out,
             std::vector<std::int64_t>& failed) {
    for (std::int64_t begin = 0; begin < rows.size;) {
      std::int64_t end = begin;
      while (end < rows.size && end - begin < k_.lanes && is_small(rows[end])) ++end;
      if (end > begin) {
        solve_together(rows, begin, end, out, failed);
      } else {
        const std::int64_t r = rows[end++];
        if (!solve_alone(r, out.row(r))) failed.push_back(r);
      }
      begin = end;
    }
  }

 private:
  // Scores gathered at a time in the primal form: they stay in the second cache.
  static constexpr std::int64_t kChunk = 128;
  static constexpr std::int64_t kTile = 4;

  // Each row is read once for every four scores; where vectors lie across cache lines that takes
  // twice as long, and with as many scores they are gathered first.
  static constexpr std::int64_t kManyScores = 32;

  std::int64_t size(std::int64_t r) const { return problem_.scores.row_size(r); }
  bool is_small(std::int64_t r) const {
    return size(r) <= kFewScores && size(r) < d_ && !by_gradients(r);
  }
  bool by_gradients(std::int64_t r) const {
    return by_conjugate_gradients(problem_.cg_steps, size(r), d_);
  }
  float lambda(float largest) const { return ridge_lambda(problem_.regularization, largest); }

  // Gathers up to n rows for row r, from its score number `first` on; returns the largest squared
  // norm among them. residual_ gets what the prior leaves of the scores.
  float gather(std::int64_t r, std::int64_t first, std::int64_t n, float* to, std::int64_t stride) {
    const VectorView<const std::int32_t> ids = problem_.scores.row_indices(r);
    const std::int64_t n_ids = std::min(n, ids.size - first), n_written = padded(n, kTile);
    const float* y = problem_.scores.row_values(r).data + first;
    float* residual = residual_.data(2 * n_written);
    float* norms = residual + n_written;
    k_.gather_rows(problem_.factors.data, ids.data + first, n_ids, n, d_, padded_prior(r), to,
                   stride, residual, norms);
    for (std::int64_t i = 0; i < n_ids; ++i) residual[i] = y[i] - residual[i];
    return n == 0 ? 0.0F : *std::max_element(norms, norms + n);
  }

  const float* prior(std::int64_t r) const {
    return problem_.prior.data == nullptr ? zeros_.data() : problem_.prior.row(r);
  }
  const float* padded_prior(std::int64_t r) {
    if (d_ == width_) return prior(r);
    float* copy = prior_.data(width_);
    std::copy_n(prior(r), d_, copy);
    return copy;
  }

  bool solve_alone(std::int64_t r, float* out) {
    if (by_gradients(r)) return gradients_.solve(r, out);
    return size(r) < d_ ? solve_dual(r, out) : solve_primal(r, out);
  }

  // Rows `begin` to `end` of `rows`.
  void solve_together(VectorView<const std::int64_t> rows, std::int64_t begin, std::int64_t end,
                      MatrixView<float> out, std::vector<std::int64_t>& failed) {
    std::int64_t n = 0;
    for (std::int64_t s = begin; s < end; ++s) n = std::max(n, size(rows[s]));
    const std::int64_t n_elements = tile_element(padded(n + 1, kTile), 0), lanes = k_.lanes;
    float* tiles = tiles_.data(lanes * n_elements);
    float* systems = systems_.data(lanes * n_elements);
    float* x = x_.data(lanes * n);
    // What is read and written is asked for before: a third faster where it is not in the caches.
    const std::int64_t ahead = n < 16 ? 3 : 1;  // rows
    for (std::int64_t s = begin; s < end; ++s) {
      if (s + ahead < rows.size && is_small(rows[s + ahead])) {
        const std::int64_t r = rows[s + ahead];
        for (const std::int32_t id : problem_.scores.row_indices(r))
          ask_for(problem_.factors.row(id));
        ask_for(prior(r));
      }
      ask_for(out.row(rows[s]));
      make_system(rows[s], n, tiles + (s - begin) * n_elements);
    }
    std::fill(tiles + (end - begin) * n_elements, tiles + lanes * n_elements, 0.0F);
    k_.tiles_to_lanes(tiles, n_elements, systems);
    const unsigned lost = k_.solve_lanes(systems, n, kPivotFloor<float>, x);
    for (std::int64_t s = 0; s < end - begin; ++s) {
      const std::int64_t r = rows[begin + s];
      if ((lost >> s & 1U) != 0 || !add(r, x + s, lanes, out.row(r))) failed.push_back(r);
    }
  }

  // The n equations of row r in tiles, what the prior leaves of the scores as row n. The prior goes
  // with the factors: its products with them come with theirs.
  void make_system(std::int64_t r, std::int64_t n, float* tiles) {
    point_to_rows(r, n);
    k_.gram_tiles(pointers_.data(), n, width_, tiles);
    float largest = 0.0F;
    for (std::int64_t i = 0; i < n; ++i) largest = std::max(largest, tiles[tile_element(i, i)]);
    const float added = lambda(largest);
    for (std::int64_t i = 0; i < n; ++i) tiles[tile_element(i, i)] += added;
    const VectorView<const float> y = problem_.scores.row_values(r);
    for (std::int64_t i = 0; i < y.size; ++i) {
      float& fit = tiles[tile_element(n, i)];
      fit = y[i] - fit;
    }
  }

  // What gram_tiles reads for row r: its factors, zeros up to n, its prior, and zeros again.
  void point_to_rows(std::int64_t r, std::int64_t n) {
    const VectorView<const std::int32_t> ids = problem_.scores.row_indices(r);
    const bool in_place = d_ == width_ && (aligned_ || n < kManyScores);
    const float* rows = problem_.factors.data;
    if (!in_place) {
      rows = rows_.data(padded(ids.size, kTile) * width_);
      gather(r, 0, ids.size, rows_.data(0), width_);
    }
    std::fill_n(pointers_.begin(), padded(n + 1, kTile), zeros_.data());
    for (std::int64_t i = 0; i < ids.size; ++i)
      pointers_[static_cast<std::size_t>(i)] = rows + (in_place ? ids[i] : i) * width_;
    pointers_[static_cast<std::size_t>(n)] = padded_prior(r);
  }

  void ask_for(const float* row) const {
    for (std::int64_t j = 0; j < d_; j += kRowPadding) __builtin_prefetch(row + j, 0, 2);
  }

  // Where Kernels::gram_tiles puts an element.
  static std::int64_t tile_element(std::int64_t i, std::int64_t j) {
    const std::int64_t tile = i / kTile * (i / kTile + 1) / 2 + j / kTile;
    return (tile * kTile + i % kTile) * kTile + j % kTile;
  }

  bool add(std::int64_t r, const float* x, std::int64_t x_stride, float* out) const {
    const VectorView<const std::int32_t> ids = problem_.scores.row_indices(r);
    return k_.add_combination(problem_.factors.data, ids.data, ids.size, d_, x, x_stride, prior(r),
                              out);
  }

  bool solve_dual(std::int64_t r, float* out) {
    const std::int64_t n = size(r), stride = padded(n + 1);
    float* gathered = rows_.data(padded(n, kTile) * width_);
    float* gram = systems_.data(padded(n, kTile) * stride);
    const float added = lambda(gather(r, 0, n, gathered, width_));
    k_.gram_dots(gathered, n, width_, gram, stride);
    const float* residual = residual_.data(0);
    for (std::int64_t i = 0; i < n; ++i) gram[i * stride + n] = residual[i];
    const float* x = solve_system(gram, n, stride, added);
    return x != nullptr && add(r, x, 1, out);
  }

  bool solve_primal(std::int64_t r, float* out) {
    const std::int64_t stride = padded(d_ + 1);
    float* gathered = chunk_.data(kChunk * stride_);
    float* gram = systems_.data(d_ * stride);
    float* right = right_.data(stride_);
    std::fill_n(gram, d_ * stride, 0.0F);
    std::fill_n(right, stride_, 0.0F);
    float largest = 0.0F;
    for (std::int64_t begin = 0; begin < size(r); begin += kChunk) {
      const std::int64_t n = std::min(kChunk, size(r) - begin);
      largest = std::max(largest, gather(r, begin, n, gathered, stride_));
      k_.gram_outer(gathered, stride_, n, d_, gram, stride);
      k_.add_combination(gathered, in_order_.data(), n, stride_, residual_.data(0), 1, right,
                         right);
    }
    for (std::int64_t i = 0; i < d_; ++i) gram[i * stride + d_] = right[i];
    const float* x = solve_system(gram, d_, stride, lambda(largest));
    if (x == nullptr) return false;
    bool finite = true;
    for (std::int64_t j = 0; j < d_; ++j) {
      out[j] = x[j] + prior(r)[j];
      finite = finite && std::isfinite(out[j]);
    }
    return finite;
  }

  // The solution of the n equations above the diagonal, their right-hand side in column n; null if
  // the factorisation breaks down.
  const float* solve_system(float* a, std::int64_t n, std::int64_t stride, float lambda) {
    for (std::int64_t i = 0; i < n; ++i) a[i * stride + i] += lambda;
    if (!k_.cholesky_upper(a, n, stride, kPivotFloor<float>)) return nullptr;
    float* x = x_.data(n);
    for (std::int64_t i = n - 1; i >= 0; --i) {
      const float* row = a + i * stride;
      x[i] = (row[n] - k_.dot_f32(row + i + 1, x + i + 1, n - i - 1)) / row[i];
    }
    return x;
  }

  const Kernels& k_;
  const RidgeProblem& problem_;
  std::int64_t d_;
  std::int64_t width_;   // d_ in whole vectors
  std::int64_t stride_;  // an odd number of cache lines: a column does not fall on few sets
  bool aligned_;         // factors begin with a cache line
  ConjugateGradients gradients_;
  std::vector<float> zeros_;
  std::array<const float*, kFewScores + kTile> pointers_{};
  std::vector<std::int32_t> in_order_;  // 0, 1, ...
  AlignedFloats rows_;                  // factors gathered, (n, width_)
  AlignedFloats chunk_;                 // factors gathered, (kChunk, stride_)
  AlignedFloats prior_;                 // (width_,)
  AlignedFloats
      residual_;  // what the prior leaves of the scores, and the squared norms of their factors
  AlignedFloats tiles_;    // systems of a few rows, one after another
  AlignedFloats systems_;  // the same, a row to a lane; or one system
  AlignedFloats right_;    // A^T residual
  AlignedFloats x_;
};

// The same row in double precision, in the dual form or, with more scores than factors, the primal
// one. False, out untouched, if that breaks down as well.
inline bool solve_wide(const Kernels& k, const RidgeProblem& problem, std::int64_t r, float* out) {
  const VectorView<const std::int32_t> ids = problem.scores.row_indices(r);
  const std::int64_t n = ids.size, d = problem.factors.cols, size = std::min(n, d);
  std::vector<double> residual(static_cast<std::size_t>(n)), step(static_cast<std::size_t>(d));
  std::vector<double> gram(static_cast<std::size_t>(size * size));
  const auto row = [&](std::int64_t i) { return gram.data() + i * size; };
  double largest = 0.0;
  for (std::int64_t i = 0; i < n; ++i) {
    const float* v = problem.factors.row(ids[i]);
    largest = std::max(largest, k.dot_wide(v, v, d));
    residual[i] = problem.scores.row_values(r)[i];
    if (problem.prior.data != nullptr) residual[i] -= k.dot_wide(v, problem.prior.row(r), d);
    if (n < d) {
      for (std::int64_t j = 0; j <= i; ++j)
        row(i)[j] = k.dot_wide(v, problem.factors.row(ids[j]), d);
    } else {
      for (std::int64_t j = 0; j < d; ++j) k.axpy_wide(v[j], v, row(j), j + 1);
      k.axpy_wide(residual[i], v, step.data(), d);
    }
  }
  const double floor = largest > 0.0 ? kRidgeFloor * largest : 1.0;
  for (std::int64_t i = 0; i < size; ++i) {
    row(i)[i] += std::max(problem.regularization, floor);
    if (!cholesky_row(k, row, i, row(i))) return false;
  }
  double* x = n < d ? residual.data() : step.data();
  solve_lower(k, row, size, x);
  solve_upper(k, row, size, x);
  for (std::int64_t i = 0; n < d && i < n; ++i)
    k.axpy_wide(residual[i], problem.factors.row(ids[i]), step.data(), d);
  for (std::int64_t j = 0; j < d; ++j) {
    if (problem.prior.data != nullptr) step[j] += problem.prior.row(r)[j];
    if (!std::isfinite(static_cast<float>(step[j]))) return false;
  }
  for (std::int64_t j = 0; j < d; ++j) out[j] = static_cast<float>(step[j]);
  return true;
}

}  // namespace cexnn::cpu
