// Rows whose single-precision factorisation broke down, in double precision: a block to a row.
#pragma once

#include "ridge.cuh"

namespace cexnn::cuda {
namespace {

constexpr int kWideThreads = 256;

struct WideRow {
  std::int64_t offset;  // in the workspace, doubles: matrix, step, largest squared norm, residuals
  std::int32_t row;
  std::int32_t size;  // equations: fewer than d in the dual form
  // Of a row in the primal form whose scores come in pieces:
  bool adds = false;   // to what earlier ones left
  bool solves = true;  // there are no more
};

inline std::int64_t wide_doubles(std::int64_t n_scores, std::int64_t d) {
  const std::int64_t size = n_scores < d ? n_scores : d;
  return size * size + d + 1 + n_scores;
}

// The warp's sum of the products of n numbers that follow one another.
template <typename A, typename B>
__device__ double warp_dot(const A* a, const B* b, std::int64_t n, int lane) {
  double sum = 0.0;
  for (std::int64_t j = lane; j < n; j += kWarp) sum = fma(double(a[j]), double(b[j]), sum);
  return warp_sum(sum);
}

// A row's system: (size, size), lower triangle, row by row.
struct WideSystem {
  const float* factors;
  const std::int32_t* ids;
  std::int64_t n;
  std::int64_t d;
  std::int64_t size;
  double* matrix;
  double* step;  // (d,); of use in the primal form
  double* largest;
  double* residual;  // (n,)
  bool adds;
  bool dual;

  __device__ const float* factors_of(std::int64_t i) const { return factors + ids[i] * d; }
};

// Matrix and residuals; in the primal form the step becomes A^T residual. Returns the largest
// squared norm, which is kept, too.
__device__ inline double build_wide(const WideSystem& s, const float* y, const float* prior,
                                    int thread) {
  __shared__ double largest_of_warps[kWideThreads / kWarp];
  const int warp = thread / kWarp, lane = thread % kWarp, n_warps = kWideThreads / kWarp;
  double largest = s.adds ? *s.largest : 0.0;
  for (std::int64_t i = warp; i < s.n; i += n_warps) {
    const float* v = s.factors_of(i);
    const double square = warp_dot(v, v, s.d, lane);
    const double fit = prior == nullptr ? 0.0 : warp_dot(v, prior, s.d, lane);
    largest = square > largest ? square : largest;
    if (lane == 0) s.residual[i] = y[i] - fit;
    for (std::int64_t j = 0; s.dual && j <= i; ++j) {
      const double product = warp_dot(v, s.factors_of(j), s.d, lane);
      if (lane == 0) s.matrix[i * s.size + j] = product;
    }
  }
  if (lane == 0) largest_of_warps[warp] = largest;
  __syncthreads();
  for (std::int64_t i = 0; !s.dual && i < s.d; ++i) {
    for (std::int64_t j = thread; j <= i; j += kWideThreads) {
      double product = s.adds ? s.matrix[i * s.size + j] : 0.0;
      double right = s.adds ? s.step[j] : 0.0;
      for (std::int64_t e = 0; e < s.n; ++e) {
        const float* v = s.factors_of(e);
        product = fma(double(v[i]), double(v[j]), product);
        if (i == j) right = fma(s.residual[e], double(v[j]), right);
      }
      s.matrix[i * s.size + j] = product;
      if (i == j) s.step[j] = right;
    }
  }
  __syncthreads();
  for (int w = 0; w < n_warps; ++w)
    largest = largest_of_warps[w] > largest ? largest_of_warps[w] : largest;
  if (thread == 0) *s.largest = largest;
  return largest;
}

// Cholesky, column by column, a warp to a row of each; whether every pivot was sound, in every
// thread. n^3 / 3 multiply-adds.
__device__ inline bool factor_wide(double* matrix, std::int64_t n, int thread) {
  const int warp = thread / kWarp, lane = thread % kWarp, n_warps = kWideThreads / kWarp;
  for (std::int64_t k = 0; k < n; ++k) {
    __syncthreads();
    double* row = matrix + k * n;
    const double diagonal = row[k];
    const double pivot = diagonal - warp_dot(row, row, k, lane);  // the same in every warp
    if (!(pivot > kPivotFloor<double> * diagonal)) return false;
    const double root = sqrt(pivot);
    for (std::int64_t i = k + 1 + warp; i < n; i += n_warps) {
      double* other = matrix + i * n;
      const double left = (other[k] - warp_dot(other, row, k, lane)) / root;
      if (lane == 0) other[k] = left;
    }
    __syncthreads();
    if (thread == 0) row[k] = root;
  }
  __syncthreads();
  return true;
}

// x := L^-T L^-1 x, by one warp.
__device__ inline void solve_wide_triangles(const double* matrix, std::int64_t n, double* x,
                                            int lane) {
  for (std::int64_t i = 0; i < n; ++i) {
    const double explained = warp_dot(matrix + i * n, x, i, lane);
    if (lane == 0) x[i] = (x[i] - explained) / matrix[i * n + i];
    __syncwarp();
  }
  for (std::int64_t i = n - 1; i >= 0; --i) {
    const double found = x[i] / matrix[i * n + i];
    __syncwarp();
    if (lane == 0) x[i] = found;
    for (std::int64_t j = lane; j < i; j += kWarp) x[j] -= matrix[i * n + j] * found;
    __syncwarp();
  }
}

// Solves the rows, from doubles throughout; marks those that break down again.
__global__ void __launch_bounds__(kWideThreads)
    solve_wide(DeviceRidge problem, const WideRow* rows, double* workspace) {
  const WideRow wide = rows[blockIdx.x];
  const std::int64_t first = problem.indptr[wide.row], d = problem.d, size = wide.size;
  const std::int64_t n = problem.indptr[wide.row + 1] - first;
  const int thread = static_cast<int>(threadIdx.x);
  const float* prior = problem.prior == nullptr ? nullptr : problem.prior + wide.row * d;
  double* matrix = workspace + wide.offset;
  double* step = matrix + size * size;
  const WideSystem system{problem.factors,
                          problem.indices + first,
                          n,
                          d,
                          size,
                          matrix,
                          step,
                          step + d,
                          step + d + 1,
                          wide.adds,
                          size < d};
  const double largest = build_wide(system, problem.values + first, prior, thread);
  if (!wide.solves) return;
  const double floor = largest > 0.0 ? kRidgeFloor * largest : 1.0;
  const double lambda = problem.regularization > floor ? problem.regularization : floor;
  for (std::int64_t i = thread; i < size; i += kWideThreads) matrix[i * size + i] += lambda;
  bool solved = factor_wide(matrix, size, thread);
  if (solved) {
    double* x = system.dual ? system.residual : system.step;
    if (thread < kWarp) solve_wide_triangles(matrix, size, x, thread);
    __syncthreads();
    bool finite = true;
    for (std::int64_t j = thread; j < d; j += kWideThreads) {
      double sum = system.dual ? 0.0 : system.step[j];
      for (std::int64_t i = 0; system.dual && i < n; ++i)
        sum = fma(system.residual[i], double(system.factors_of(i)[j]), sum);
      const float found = static_cast<float>(sum + (prior == nullptr ? 0.0 : double(prior[j])));
      problem.out[wide.row * d + j] = found;
      finite = finite && is_finite(found);
    }
    solved = __syncthreads_and(finite) != 0;
  }
  if (!solved && thread == 0) mark_failed(problem.failed, wide.row);
}

}  // namespace
}  // namespace cexnn::cuda
