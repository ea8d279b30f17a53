// The regularised least-squares rows on the device: what their kernels share.
//
//   row                 kernels                                             flops a row (n scores)
//   n < 32 and n < d    solve_short                                         n^2 d + n^3 / 3
//   other n < d: dual   add_right_sides, gram, solve_systems                n^2 d + n^3 / 3
//   n >= d: primal      the same                                            n d^2 + d^3 / 3
//   lost its Cholesky   solve_wide, in double precision                     as above
//
// The systems of longer rows lie in a workspace, a batch of them at a time. Each row's sums run in
// an order that depends on n and d alone: no float atomics, no dependence on other rows or on how
// blocks are scheduled.
#pragma once

#include <cstdint>
#include <intrinsics.cuh>

#include "../als_checks.hpp"

namespace cexnn::cuda {
namespace {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = ~0U;

// Rows that lost their factorisation, in no order.
struct FailedRows {
  std::int32_t* count = nullptr;
  std::int32_t* rows = nullptr;
};

// A RidgeProblem whose arrays all lie on the device.
struct DeviceRidge {
  const std::int64_t* indptr = nullptr;
  const std::int32_t* indices = nullptr;
  const float* values = nullptr;
  const float* factors = nullptr;
  const float* prior = nullptr;  // or null: zero
  float* out = nullptr;
  std::int64_t d = 0;
  double regularization = 0.0;
  bool by_fours = false;  // rows may be read 16 bytes at a time
  FailedRows failed;
};

// A row whose system lies in the workspace: n_splits times its matrix (stride x stride, lower
// triangle), its right-hand side (stride) and the largest squared norm among the rows it is of.
struct System {
  std::int64_t first;   // place of the row's first score
  std::int64_t offset;  // in the workspace, floats
  std::int32_t row;
  std::int32_t n_scores;
  std::int32_t size;      // equations: min(n_scores, d)
  std::int32_t n_splits;  // parts of the scores that are summed apart: 1 in the dual form
};

struct SystemPart {
  std::int32_t system;
  std::int32_t split;
};

__host__ __device__ constexpr std::int64_t padded(std::int64_t n, std::int64_t to) {
  return (n + to - 1) / to * to;
}
__host__ __device__ constexpr std::int64_t system_stride(std::int64_t size) {
  return padded(size, kWarp);
}
__host__ __device__ constexpr std::int64_t split_floats(std::int64_t stride) {
  return stride * stride + stride + kWarp;
}

// Scores to a split, in the primal form, where every split is a block's work: rows of up to 1,024
// are not split, and none into more than 64.
constexpr std::int64_t kSplitScores = 1024;
constexpr std::int64_t kMostSplits = 64;
__host__ __device__ constexpr std::int64_t scores_a_split(std::int64_t n) {
  const std::int64_t wanted = (n + kSplitScores - 1) / kSplitScores;
  const std::int64_t n_splits = wanted < kMostSplits ? wanted : kMostSplits;
  return padded((n + n_splits - 1) / n_splits, 16);
}

__device__ inline float ridge_lambda(double regularization, float largest) {
  const double floor = largest > 0.0F ? kRidgeFloor * double(largest) : 1.0;
  return static_cast<float>(regularization > floor ? regularization : floor);
}

__device__ inline void mark_failed(const FailedRows& failed, std::int32_t row) {
  failed.rows[atomicAdd(failed.count, 1)] = row;
}

__device__ inline bool is_finite(float x) { return x - x == 0.0F; }

template <typename Real>
__device__ Real warp_sum(Real x) {
  for (int bit = kWarp / 2; bit > 0; bit /= 2) x += __shfl_xor_sync(kAllLanes, x, bit);
  return x;
}
template <typename Real>
__device__ Real warp_max(Real x) {
  for (int bit = kWarp / 2; bit > 0; bit /= 2) {
    const Real other = __shfl_xor_sync(kAllLanes, x, bit);
    x = x > other ? x : other;
  }
  return x;
}

// kVector floats from place j of a row of d; zero beyond it, and where there is no row.
template <int kVector>
__device__ void load_floats(const float* row, std::int64_t j, std::int64_t d,
                            float (&to)[kVector]) {
  const bool inside = row != nullptr && j < d;
  if constexpr (kVector == 4) {
    const float4 found =
        inside ? *reinterpret_cast<const float4*>(row + j) : make_float4(0.0F, 0.0F, 0.0F, 0.0F);
    to[0] = found.x, to[1] = found.y, to[2] = found.z, to[3] = found.w;
  } else {
    static_assert(kVector == 1);
    to[0] = inside ? row[j] : 0.0F;
  }
}

template <int kVector>
__device__ void store_floats(const float (&from)[kVector], float* row, std::int64_t j,
                             std::int64_t d) {
  if (j >= d) return;
  if constexpr (kVector == 4) {
    *reinterpret_cast<float4*>(row + j) = make_float4(from[0], from[1], from[2], from[3]);
  } else {
    row[j] = from[0];
  }
}

}  // namespace
}  // namespace cexnn::cuda
