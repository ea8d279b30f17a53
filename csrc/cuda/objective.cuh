// The objective of the factorisation, in double precision, in an order that depends on shapes
// alone.
#pragma once

#include "ridge.cuh"

namespace cexnn::cuda {
namespace {

constexpr int kSumThreads = 256;
constexpr std::int64_t kSumEntries = 1024;  // scores, or floats, to a block
constexpr std::int64_t kSumFloats = 16384;

// The block's sum, in thread 0.
__device__ inline double block_sum(double mine) {
  __shared__ double sums[kSumThreads / kWarp];
  const int thread = static_cast<int>(threadIdx.x);
  mine = warp_sum(mine);
  if (thread % kWarp == 0) sums[thread / kWarp] = mine;
  __syncthreads();
  double total = 0.0;
  for (int w = 0; thread == 0 && w < kSumThreads / kWarp; ++w) total += sums[w];
  return total;
}

// The row that an entry is in: the last whose start is not beyond it.
__device__ inline std::int64_t row_of(const std::int64_t* indptr, std::int64_t n_rows,
                                      std::int64_t entry) {
  std::int64_t low = 0, high = n_rows;  // indptr[low] <= entry < indptr[high]
  while (high - low > 1) {
    const std::int64_t middle = low + (high - low) / 2;
    (indptr[middle] <= entry ? low : high) = middle;
  }
  return low;
}

// Of kSumEntries scores: the sum of (y - u.v)^2. Lanes look up the rows of 32 scores at once, then
// take the products one after another. 2 d floats and 2 d flops a score: bound by memory.
__global__ void __launch_bounds__(kSumThreads)
    sum_squared_errors(CsrView scores, const float* rows, const float* cols, std::int64_t d,
                       double* parts) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp;
  const std::int64_t n_entries = scores.indptr[scores.rows];
  const std::int64_t start = std::int64_t(blockIdx.x) * kSumEntries + thread - lane;
  double total = 0.0;
  for (std::int64_t first = start; first < start + kSumEntries; first += kSumThreads) {
    const std::int64_t entry = first + lane;
    const bool inside = entry < n_entries;
    const std::int64_t row = inside ? row_of(scores.indptr, scores.rows, entry) : 0;
    const std::int32_t col = inside ? scores.indices[entry] : 0;
    double product = 0.0;
    for (int i = 0; i < kWarp && first + i < n_entries; ++i) {
      const float* u = rows + __shfl_sync(kAllLanes, row, i) * d;
      const float* v = cols + __shfl_sync(kAllLanes, col, i) * d;
      double sum = 0.0;
      for (std::int64_t j = lane; j < d; j += kWarp) sum = fma(double(u[j]), double(v[j]), sum);
      sum = warp_sum(sum);
      if (lane == i) product = sum;
    }
    const double error = inside ? double(scores.values[entry]) - product : 0.0;
    total = fma(error, error, total);
  }
  total = block_sum(total);
  if (thread == 0) parts[blockIdx.x] = total;
}

// Of kSumFloats factors: their squared distance from the prior, or from zero.
__global__ void __launch_bounds__(kSumThreads)
    sum_squared_distances(const float* factors, const float* prior, std::int64_t n, double* parts) {
  const std::int64_t start = std::int64_t(blockIdx.x) * kSumFloats;
  double total = 0.0;
  for (std::int64_t j = start + threadIdx.x; j < start + kSumFloats && j < n; j += kSumThreads) {
    const double gap = double(factors[j]) - (prior == nullptr ? 0.0 : double(prior[j]));
    total = fma(gap, gap, total);
  }
  total = block_sum(total);
  if (threadIdx.x == 0) parts[blockIdx.x] = total;
}

// By one block: to = the sum of n numbers.
__global__ void __launch_bounds__(kSumThreads)
    add_up(const double* parts, std::int64_t n, double* to) {
  double total = 0.0;
  for (std::int64_t i = threadIdx.x; i < n; i += kSumThreads) total += parts[i];
  total = block_sum(total);
  if (threadIdx.x == 0) *to = total;
}

}  // namespace
}  // namespace cexnn::cuda
