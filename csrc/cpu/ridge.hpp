// Cholesky by rows and the one regularised least-squares row that both sides of the method solve.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "../views.hpp"
#include "kernels.hpp"

namespace cexnn::cpu {

// Regularisation is at least this times the largest squared row norm: repeated or collinear items
// stay solvable.
constexpr double kRidgeFloor = 1e-6;

inline float dot(const Kernels& k, const float* a, const float* b, std::int64_t n) {
  return k.dot_f32(a, b, n);
}
inline double dot(const Kernels& k, const double* a, const double* b, std::int64_t n) {
  return k.dot_f64(a, b, n);
}
inline void axpy(const Kernels& k, float alpha, const float* x, float* y, std::int64_t n) {
  k.axpy_f32(alpha, x, y, n);
}
inline void axpy(const Kernels& k, double alpha, const double* x, double* y, std::int64_t n) {
  k.axpy_f64(alpha, x, y, n);
}

// A pivot below this share of its diagonal element is noise.
template <typename Real>
constexpr Real kPivotFloor = sizeof(Real) == sizeof(float) ? Real(1e-4) : Real(1e-14);

// Row i of the Cholesky factor, in place: `row` holds A[i, 0..i] and gets L[i, 0..i]; previous(j)
// points to the finished row j. i^2 flops. False if A is not positive definite to working
// precision.
template <typename Real, typename Previous>
bool cholesky_row(const Kernels& k, const Previous& previous, std::int64_t i, Real* row) {
  for (std::int64_t j = 0; j < i; ++j) {
    const Real* other = previous(j);
    row[j] = (row[j] - dot(k, row, other, j)) / other[j];
  }
  const Real diagonal = row[i];
  const Real pivot = diagonal - dot(k, row, row, i);
  if (!(pivot > kPivotFloor<Real> * diagonal)) return false;
  row[i] = std::sqrt(pivot);
  return true;
}

// x := L^-1 x and x := L^-T x. n^2 flops each.
template <typename Real, typename Row>
void solve_lower(const Kernels& k, const Row& row, std::int64_t n, Real* x) {
  for (std::int64_t i = 0; i < n; ++i) x[i] = (x[i] - dot(k, row(i), x, i)) / row(i)[i];
}

template <typename Real, typename Row>
void solve_upper(const Kernels& k, const Row& row, std::int64_t n, Real* x) {
  for (std::int64_t i = n - 1; i >= 0; --i) {
    x[i] /= row(i)[i];
    axpy(k, -x[i], row(i), x, i);
  }
}

// Solves one row after another, keeping its memory. n scores of d factors cost
//   dual    n^2 d + n^3 / 3 flops on n d floats gathered,
//   primal  n d^2 + d^3 / 3 flops.
template <typename Real>
class RidgeSolver {
 public:
  RidgeSolver(const Kernels& kernels, MatrixView<const float> factors)
      : k_(kernels), factors_(factors), d_(factors.cols) {}

  // out = argmin |y - A x|^2 + lambda |x - prior|^2, A = factors[ids]; prior may be null: zero.
  // False, out untouched, if the factorisation breaks down or the solution overflows.
  bool solve(VectorView<const std::int32_t> ids, VectorView<const float> y, const float* prior,
             double regularization, float* out) {
    const std::int64_t n = ids.size;
    residual_.resize(static_cast<std::size_t>(n));
    float largest = 0.0F;
    for (std::int64_t i = 0; i < n; ++i) {
      const float* v = factors_.row(ids[i]);
      const double fit = prior == nullptr ? 0.0 : k_.dot_wide(v, prior, d_);
      residual_[i] = static_cast<Real>(static_cast<double>(y[i]) - fit);
      largest = std::max(largest, k_.dot_f32(v, v, d_));
    }
    // All rows zero: any positive number will do, the solution is the prior.
    const double floor = largest > 0.0F ? kRidgeFloor * static_cast<double>(largest) : 1.0;
    const Real lambda = static_cast<Real>(std::max(regularization, floor));
    step_.assign(static_cast<std::size_t>(d_), Real(0));
    if (n < d_ ? !dual(ids, lambda) : !primal(ids, lambda)) return false;
    for (std::int64_t j = 0; j < d_; ++j) {
      step_[j] += static_cast<Real>(prior == nullptr ? 0.0F : prior[j]);
      if (!std::isfinite(static_cast<float>(step_[j]))) return false;
    }
    for (std::int64_t j = 0; j < d_; ++j) out[j] = static_cast<float>(step_[j]);
    return true;
  }

 private:
  static constexpr std::int64_t kChunk = 512;  // scores gathered at a time in the primal form

  bool dual(VectorView<const std::int32_t> ids, Real lambda) {
    const std::int64_t n = ids.size;
    gather(ids);
    const std::int64_t stride = padded(n);
    gram_.resize(static_cast<std::size_t>(n * stride));
    lower_gram(rows_.data(), n, d_, gram_.data(), stride);
    if (!factorise(n, stride, lambda)) return false;
    const auto row = [this, stride](std::int64_t i) { return gram_.data() + i * stride; };
    solve_lower(k_, row, n, residual_.data());
    solve_upper(k_, row, n, residual_.data());
    for (std::int64_t i = 0; i < n; ++i)
      axpy(k_, residual_[i], rows_.data() + i * d_, step_.data(), d_);
    return true;
  }

  bool primal(VectorView<const std::int32_t> ids, Real lambda) {
    const std::int64_t stride = padded(d_);
    gram_.assign(static_cast<std::size_t>(d_ * stride), Real(0));
    part_.resize(gram_.size());
    for (std::int64_t begin = 0; begin < ids.size; begin += kChunk) {
      const std::int64_t n = std::min(kChunk, ids.size - begin);
      gather_transposed({ids.data + begin, n});
      lower_gram(rows_.data(), d_, n, part_.data(), stride);
      for (std::int64_t j = 0; j < d_; ++j) {
        axpy(k_, Real(1), part_.data() + j * stride, gram_.data() + j * stride, j + 1);
        step_[j] += dot(k_, rows_.data() + j * n, residual_.data() + begin, n);
      }
    }
    if (!factorise(d_, stride, lambda)) return false;
    const auto row = [this, stride](std::int64_t i) { return gram_.data() + i * stride; };
    solve_lower(k_, row, d_, step_.data());
    solve_upper(k_, row, d_, step_.data());
    return true;
  }

  static std::int64_t padded(std::int64_t n) {
    return (n + kRowPadding - 1) / kRowPadding * kRowPadding;
  }

  bool factorise(std::int64_t n, std::int64_t stride, Real lambda) {
    for (std::int64_t i = 0; i < n; ++i) gram_[i * stride + i] += lambda;
    return cholesky(gram_.data(), n, stride);
  }
  bool cholesky(float* a, std::int64_t n, std::int64_t stride) const {
    return k_.cholesky_f32(a, n, stride, kPivotFloor<float>);
  }
  bool cholesky(double* a, std::int64_t n, std::int64_t stride) const {
    const auto row = [a, stride](std::int64_t i) { return a + i * stride; };
    for (std::int64_t i = 0; i < n; ++i)
      if (!cholesky_row(k_, row, i, row(i))) return false;
    return true;
  }

  void gather(VectorView<const std::int32_t> ids) {
    rows_.resize(static_cast<std::size_t>(ids.size * d_));
    for (std::int64_t i = 0; i < ids.size; ++i)
      std::copy_n(factors_.row(ids[i]), d_, rows_.data() + i * d_);
  }

  void gather_transposed(VectorView<const std::int32_t> ids) {
    rows_.resize(static_cast<std::size_t>(ids.size * d_));
    for (std::int64_t i = 0; i < ids.size; ++i) {
      const float* v = factors_.row(ids[i]);
      for (std::int64_t j = 0; j < d_; ++j) rows_[j * ids.size + i] = v[j];
    }
  }

  // The lower triangle of rows rows^T, in blocks: what lies above the diagonal is not defined.
  void lower_gram(const float* rows, std::int64_t n, std::int64_t d, float* out,
                  std::int64_t stride) const {
    constexpr std::int64_t kBlock = 32;
    for (std::int64_t i = 0; i < n; i += kBlock) {
      const std::int64_t n_block = std::min(kBlock, n - i);
      k_.dots(rows, i + n_block, rows + i * d, n_block, d, out + i * stride, stride);
    }
  }
  void lower_gram(const double* rows, std::int64_t n, std::int64_t d, double* out,
                  std::int64_t stride) const {
    for (std::int64_t i = 0; i < n; ++i)
      for (std::int64_t j = 0; j <= i; ++j)
        out[i * stride + j] = k_.dot_f64(rows + i * d, rows + j * d, d);
  }

  const Kernels& k_;
  MatrixView<const float> factors_;
  std::int64_t d_;
  std::vector<Real> rows_;      // gathered factors: (n, d), or (d, n) in the primal form
  std::vector<Real> gram_;      // (n, n) or (d, d), then its Cholesky factor
  std::vector<Real> part_;      // (d, d) of one chunk
  std::vector<Real> residual_;  // (n,)
  std::vector<Real> step_;      // (d,)
};

}  // namespace cexnn::cpu
