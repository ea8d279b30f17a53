// Ridge rows by a few steps of conjugate gradients.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "../als.hpp"
#include "../als_checks.hpp"
#include "aligned.hpp"
#include "kernels.hpp"

namespace cexnn::cpu {

// lambda in single precision. Where all rows are zero any positive number will do: the solution is
// the prior.
inline float ridge_lambda(double regularization, float largest) {
  const double floor = largest > 0.0F ? kRidgeFloor * static_cast<double>(largest) : 1.0;
  return static_cast<float>(regularization > floor ? regularization : floor);
}

// Solves rows of one problem, keeping its memory. n scores of d factors cost 4 n d flops before the
// first step and with each. The factors of a row's items are gathered once, on the way to the first
// residual; a step reads them once from the second cache: kChunk of them are multiplied by the
// direction and, while they are in the first, added up by what that gave. Rows that no cache near
// would hold are gathered anew by each step.
class ConjugateGradients {
 public:
  ConjugateGradients(const Kernels& kernels, const RidgeProblem& problem)
      : k_(kernels),
        problem_(problem),
        d_(problem.factors.cols),
        width_(padded(d_)),
        in_order_(kChunk) {
    std::iota(in_order_.begin(), in_order_.end(), 0);
  }

  // problem.cg_steps steps from what `out` holds. False, out untouched, if that is not finite.
  bool solve(std::int64_t r, float* out) {
    float* x = vectors_.data(4 * width_);
    float* residual = x + width_;
    float* direction = residual + width_;
    float* product = direction + width_;
    std::copy_n(out, d_, x);
    std::fill_n(x + d_, width_ - d_, 0.0F);  // a row that overflowed leaves NaN
    const float lambda = start(r, x, residual);
    std::copy_n(residual, width_, direction);
    double square = k_.dot_wide(residual, residual, width_);  // of small ones, too
    for (int step = 0; step < problem_.cg_steps && square != 0.0; ++step) {
      for (std::int64_t j = 0; j < width_; ++j) product[j] = lambda * direction[j];
      add_products(r, direction, product);
      const auto length = static_cast<float>(square / k_.dot_wide(direction, product, width_));
      for (std::int64_t j = 0; j < width_; ++j) {
        x[j] += length * direction[j];
        residual[j] -= length * product[j];
      }
      const double left = k_.dot_wide(residual, residual, width_);
      const auto kept = static_cast<float>(left / square);
      for (std::int64_t j = 0; j < width_; ++j) direction[j] = residual[j] + kept * direction[j];
      square = left;
    }
    if (!std::all_of(x, x + d_, [](float value) { return std::isfinite(value); })) return false;
    std::copy_n(x, d_, out);
    return true;
  }

 private:
  static constexpr std::int64_t kChunk = 16;  // rows of 256 floats: a third of a first cache
  static constexpr std::int64_t kKeptFloats = std::int64_t(1) << 18;  // 1 MiB: a second cache

  // residual = A^T (y - A x) + lambda (x0 - x), A gathered where it is kept; returns lambda.
  float start(std::int64_t r, const float* x, float* residual) {
    const VectorView<const std::int32_t> ids = problem_.scores.row_indices(r);
    const VectorView<const float> y = problem_.scores.row_values(r);
    kept_ = padded(ids.size, kChunk) * width_ <= kKeptFloats;
    float fits[kChunk], norms[kChunk], largest = 0.0F;
    std::fill_n(residual, width_, 0.0F);
    for (std::int64_t begin = 0; begin < ids.size; begin += kChunk) {
      const std::int64_t n = std::min(kChunk, ids.size - begin);
      const float* rows = gather(ids, begin, n, x, fits, norms);
      largest = std::max(largest, *std::max_element(norms, norms + n));
      for (std::int64_t i = 0; i < n; ++i) fits[i] = y[begin + i] - fits[i];
      k_.add_combination(rows, in_order_.data(), n, width_, fits, 1, residual, residual);
    }
    const float lambda = ridge_lambda(problem_.regularization, largest);
    const float* prior = problem_.prior.data == nullptr ? nullptr : problem_.prior.row(r);
    for (std::int64_t j = 0; j < d_; ++j)
      residual[j] += lambda * ((prior == nullptr ? 0.0F : prior[j]) - x[j]);
    return lambda;
  }

  // to += A^T A x.
  void add_products(std::int64_t r, const float* x, float* to) {
    const VectorView<const std::int32_t> ids = problem_.scores.row_indices(r);
    float fits[kChunk], norms[kChunk];
    for (std::int64_t begin = 0; begin < ids.size; begin += kChunk) {
      const std::int64_t n = std::min(kChunk, ids.size - begin);
      const float* rows = rows_.data(0) + begin * width_;
      if (kept_) {
        k_.dots(rows, n, x, width_, fits);
      } else {
        rows = gather(ids, begin, n, x, fits, norms);
      }
      k_.add_combination(rows, in_order_.data(), n, width_, fits, 1, to, to);
    }
  }

  // n rows from number `begin` on, to their place; fits = rows x.
  const float* gather(VectorView<const std::int32_t> ids, std::int64_t begin, std::int64_t n,
                      const float* x, float* fits, float* norms) {
    float* rows = rows_.data((kept_ ? padded(ids.size, kChunk) : kChunk) * width_);
    if (kept_) rows += begin * width_;
    k_.gather_rows(problem_.factors.data, ids.data + begin, n, n, d_, x, rows, width_, fits, norms);
    return rows;
  }

  const Kernels& k_;
  const RidgeProblem& problem_;
  std::int64_t d_;
  std::int64_t width_;                  // d_ in whole vectors
  std::vector<std::int32_t> in_order_;  // 0, 1, ...
  AlignedFloats rows_;                  // factors gathered, (n or kChunk, width_)
  AlignedFloats vectors_;
  bool kept_ = false;  // whether all of the row's factors are in rows_
};

}  // namespace cexnn::cpu
