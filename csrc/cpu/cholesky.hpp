// Cholesky by rows, in double precision.
#pragma once

#include <cmath>
#include <cstdint>

#include "../als_checks.hpp"
#include "kernels.hpp"

namespace cexnn::cpu {

// Row i of the Cholesky factor, in place: `row` holds A[i, 0..i] and gets L[i, 0..i]; previous(j)
// points to the finished row j. i^2 flops. False if A is not positive definite to working
// precision.
template <typename Previous>
bool cholesky_row(const Kernels& k, const Previous& previous, std::int64_t i, double* row) {
  for (std::int64_t j = 0; j < i; ++j) {
    const double* other = previous(j);
    row[j] = (row[j] - k.dot_f64(row, other, j)) / other[j];
  }
  const double diagonal = row[i];
  const double pivot = diagonal - k.dot_f64(row, row, i);
  if (!(pivot > kPivotFloor<double> * diagonal)) return false;
  row[i] = std::sqrt(pivot);
  return true;
}

// x := L^-1 x and x := L^-T x. n^2 flops each.
template <typename Row>
void solve_lower(const Kernels& k, const Row& row, std::int64_t n, double* x) {
  for (std::int64_t i = 0; i < n; ++i) x[i] = (x[i] - k.dot_f64(row(i), x, i)) / row(i)[i];
}

template <typename Row>
void solve_upper(const Kernels& k, const Row& row, std::int64_t n, double* x) {
  for (std::int64_t i = n - 1; i >= 0; --i) {
    x[i] /= row(i)[i];
    k.axpy_f64(-x[i], row(i), x, i);
  }
}

}  // namespace cexnn::cpu
