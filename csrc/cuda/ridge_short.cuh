// Rows with few scores, in the dual form: a warp to a row.
#pragma once

#include "ridge.cuh"

namespace cexnn::cuda {
namespace {

constexpr int kShortWarps = 4;  // a block

// The warp's sums of kCount numbers a lane, 64 at first: `sums` of 32 lanes become one each, those
// of the lanes with `bit` the upper half of them; at the end lane l has numbers 2 l and 2 l + 1.
template <int kCount>
__device__ void spread_sums(float* sums, int lane) {
  constexpr int kHalf = kCount / 2, kBit = kHalf / 2;
  const bool upper = (lane & kBit) != 0;
#pragma unroll
  for (int i = 0; i < kHalf; ++i) {
    const float kept = upper ? sums[i + kHalf] : sums[i];
    const float given = upper ? sums[i] : sums[i + kHalf];
    sums[i] = kept + __shfl_xor_sync(kAllLanes, given, kBit);
  }
  if constexpr (kBit > 1) spread_sums<kHalf>(sums, lane);
}

// The rows whose products are wanted: the factors of row r's items, then its prior.
struct ShortRows {
  const float* factors;
  const float* prior;  // or null
  int d;
  int n;
  std::int32_t id;  // in lane i: of score i

  __device__ const float* row(int i) const {
    const std::int32_t at = __shfl_sync(kAllLanes, id, i);
    if (i < n) return factors + std::int64_t(at) * d;
    return i == n ? prior : nullptr;
  }
};

// products[i][j] and products[j][i] for 8 rows i from `first` and 8 rows j from `second`. Each lane
// has columns of its own, so that rows are read whole; the sums over lanes come last.
template <int kVector, int kStride>
__device__ void short_products(const ShortRows& rows, int first, int second, int lane,
                               float* products) {
  float sums[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) sums[i] = 0.0F;
  for (int first_col = 0; first_col < rows.d; first_col += kWarp * kVector) {
    const int j = first_col + lane * kVector;
    float a[8][kVector];
#pragma unroll
    for (int i = 0; i < 8; ++i) load_floats<kVector>(rows.row(first + i), j, rows.d, a[i]);
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      float b[kVector];
      load_floats<kVector>(rows.row(second + k), j, rows.d, b);
#pragma unroll
      for (int i = 0; i < 8; ++i)
#pragma unroll
        for (int v = 0; v < kVector; ++v) sums[8 * i + k] = fmaf(a[i][v], b[v], sums[8 * i + k]);
    }
  }
  spread_sums<64>(sums, lane);
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const int i = first + lane / 4, k = second + lane % 4 * 2 + e;
    products[i * kStride + k] = sums[e];
    if (first != second) products[k * kStride + i] = sums[e];
  }
}

// Lane i's unknown of the n equations whose row i lane i holds, lambda added to the diagonal:
// Gauss-Jordan elimination without pivoting, whose pivots are the squares of Cholesky's. No square
// roots, and nothing to substitute back. n^3 / 2 multiply-adds, in the time of n^2 / 2 a lane.
template <int kSize>
__device__ float solve_lanes(float (&a)[kSize], float right, float lambda, int n, int lane,
                             bool& solved) {
  float diagonal = 0.0F, own_inverse = 0.0F;
#pragma unroll
  for (int k = 0; k < kSize; ++k) {
    if (k != lane) continue;
    a[k] += lambda;
    diagonal = a[k];
  }
#pragma unroll
  for (int k = 0; k < kSize; ++k) {
    if (k >= n) break;
    const float pivot = __shfl_sync(kAllLanes, a[k], k);
    solved = solved && pivot > kPivotFloor<float> * __shfl_sync(kAllLanes, diagonal, k);
    const float inverse = 1.0F / pivot;
    if (lane == k) own_inverse = inverse;
    const float share = lane == k ? 0.0F : a[k] * inverse;
    right = fmaf(-share, __shfl_sync(kAllLanes, right, k), right);
#pragma unroll
    for (int j = k + 1; j < kSize; ++j) a[j] = fmaf(-share, __shfl_sync(kAllLanes, a[j], k), a[j]);
  }
  return right * own_inverse;
}

// out[r] = prior + sum_i x_i row_i; lane i has x_i. Whether all of it is finite.
template <int kVector>
__device__ bool write_combination(const ShortRows& rows, float x, int lane, float* out) {
  bool finite = true;
  for (int first_col = 0; first_col < rows.d; first_col += kWarp * kVector) {
    const int j = first_col + lane * kVector;
    float sum[kVector];
    load_floats<kVector>(rows.prior, j, rows.d, sum);
#pragma unroll 4
    for (int i = 0; i < rows.n; ++i) {
      const float share = __shfl_sync(kAllLanes, x, i);
      float row[kVector];
      load_floats<kVector>(rows.row(i), j, rows.d, row);
#pragma unroll
      for (int v = 0; v < kVector; ++v) sum[v] = fmaf(share, row[v], sum[v]);
    }
    store_floats<kVector>(sum, out, j, rows.d);
#pragma unroll
    for (int v = 0; v < kVector; ++v) finite = finite && is_finite(sum[v]);
  }
  return __all_sync(kAllLanes, finite) != 0;
}

// Rows of fewer than kSize scores, and fewer than d. Reads n d floats, and again for the step (from
// L1, mostly); writes d. At n = 10, d = 256: 10 KiB for some 1,000 instructions a warp, so that the
// second cache and the multipliers are done at about the same time.
template <int kSize, int kVector>
__global__ void __launch_bounds__(kShortWarps* kWarp, kVector == 4 ? 3 : 4)
    solve_short(DeviceRidge problem, const std::int32_t* row_ids, std::int64_t n_rows) {
  constexpr int kStride = kSize + 1;
  __shared__ float all_products[kShortWarps][kSize * kStride];
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t place = std::int64_t(blockIdx.x) * kShortWarps + warp;
  if (place >= n_rows) return;
  const std::int32_t r = row_ids[place];
  const std::int64_t first = problem.indptr[r];
  const int n = static_cast<int>(problem.indptr[r + 1] - first);
  const bool mine = lane < n;
  const float* prior = problem.prior == nullptr ? nullptr : problem.prior + r * problem.d;
  const ShortRows rows{problem.factors, prior, static_cast<int>(problem.d), n,
                       mine ? problem.indices[first + lane] : 0};
  float* products = all_products[warp];
  for (int i = 0; i <= n; i += 8)
    for (int j = 0; j <= i; j += 8) short_products<kVector, kStride>(rows, i, j, lane, products);
  __syncwarp();

  float a[kSize];
#pragma unroll
  for (int k = 0; k < kSize; ++k) a[k] = mine && k < n ? products[lane * kStride + k] : 0.0F;
  const float square = mine ? products[lane * kStride + lane] : 0.0F;
  const float right = mine ? problem.values[first + lane] - products[lane * kStride + n] : 0.0F;
  const float lambda = ridge_lambda(problem.regularization, warp_max(square));
  bool solved = true;
  const float x = solve_lanes<kSize>(a, right, lambda, n, lane, solved);
  solved = write_combination<kVector>(rows, x, lane, problem.out + r * problem.d) && solved;
  if (!solved && lane == 0) mark_failed(problem.failed, r);
}

}  // namespace
}  // namespace cexnn::cuda
