// Right-hand sides of longer rows' systems, and what else is a sum of a row's factors.
#pragma once

#include "ridge.cuh"

namespace cexnn::cuda {
namespace {

constexpr int kSideWarps = 4;   // a block of add_right_sides
constexpr int kSideScores = 8;  // a warp at a time

// What the fit of x leaves of kSideScores scores, rows their factors: in all lanes. `largest`
// becomes the largest squared norm.
template <int kVector>
__device__ void residuals(const float* const (&rows)[kSideScores], const float* x, std::int64_t d,
                          int lane, float (&residual)[kSideScores], float& largest) {
  float fits[kSideScores], squares[kSideScores];
#pragma unroll
  for (int i = 0; i < kSideScores; ++i) fits[i] = squares[i] = 0.0F;
  for (std::int64_t j = lane * kVector; j < d; j += kWarp * kVector) {
    float at[kVector];
    load_floats<kVector>(x, j, d, at);
#pragma unroll
    for (int i = 0; i < kSideScores; ++i) {
      float row[kVector];
      load_floats<kVector>(rows[i], j, d, row);
#pragma unroll
      for (int v = 0; v < kVector; ++v) {
        fits[i] = fmaf(row[v], at[v], fits[i]);
        squares[i] = fmaf(row[v], row[v], squares[i]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kSideScores; ++i) {
    const float square = warp_sum(squares[i]);
    largest = square > largest ? square : largest;
    if (x != nullptr) residual[i] -= warp_sum(fits[i]);
  }
}

// Calls use(e, rows, residual) for each kSideScores scores from e on that are this warp's, of the
// system's from `begin` to `end`: the factors of their items, null beyond the end, and y - A x,
// where y or x may be null: zero. Returns the largest squared norm among the block's rows, in
// thread 0.
template <int kVector, typename Use>
__device__ float for_each_residual(const DeviceRidge& problem, const System& system,
                                   std::int64_t begin, std::int64_t end, const float* y,
                                   const float* x, const Use& use) {
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  float largest = 0.0F;
  for (std::int64_t e = begin + warp * kSideScores; e < end; e += kSideWarps * kSideScores) {
    const float* rows[kSideScores];
    float residual[kSideScores];
#pragma unroll
    for (int i = 0; i < kSideScores; ++i) {
      const bool inside = e + i < end;
      rows[i] =
          inside ? problem.factors + problem.indices[system.first + e + i] * problem.d : nullptr;
      residual[i] = inside && y != nullptr ? y[e + i] : 0.0F;
    }
    residuals<kVector>(rows, x, problem.d, lane, residual, largest);
    use(e, rows, residual);
  }
  __shared__ float norms[kSideWarps];
  if (lane == 0) norms[warp] = largest;
  __syncthreads();
  for (int w = 0; w < kSideWarps; ++w) largest = norms[w] > largest ? norms[w] : largest;
  return largest;
}

// to (stride,) = A^T (y - A x) of the scores from `begin` to `end`, zero beyond d; the rest as
// above. Takes kSideWarps times stride floats of dynamic shared memory.
template <int kVector>
__device__ float sum_residual_rows(const DeviceRidge& problem, const System& system,
                                   std::int64_t begin, std::int64_t end, const float* y,
                                   const float* x, float* to) {
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  const std::int64_t d = problem.d, stride = system_stride(d);
  float* sums = dynamic_shared<float>();
  float* mine = sums + warp * stride;
  for (std::int64_t j = lane; j < stride; j += kWarp) mine[j] = 0.0F;
  __syncwarp();
  const float largest = for_each_residual<kVector>(
      problem, system, begin, end, y, x,
      [&](std::int64_t, const float* const(&rows)[kSideScores],
          const float (&residual)[kSideScores]) {
        for (std::int64_t j = lane * kVector; j < d; j += kWarp * kVector) {
          float sum[kVector];
          load_floats<kVector>(mine, j, d, sum);
#pragma unroll
          for (int i = 0; i < kSideScores; ++i) {
            float row[kVector];
            load_floats<kVector>(rows[i], j, d, row);
#pragma unroll
            for (int v = 0; v < kVector; ++v) sum[v] = fmaf(residual[i], row[v], sum[v]);
          }
          store_floats<kVector>(sum, mine, j, d);
        }
      });
  for (std::int64_t j = thread; j < stride; j += kSideWarps * kWarp) {
    float sum = 0.0F;
    for (int w = 0; w < kSideWarps; ++w) sum += sums[w * stride + j];
    to[j] = sum;
  }
  return largest;
}

// Of each split of each system: the right-hand side (what the prior leaves of the scores, or A^T
// times that) and the largest squared norm. A block to a split, eight scores of it to a warp at a
// time. Reads each of its rows once, in the primal form twice, from L1 the second time; 6 n d
// flops: bound by memory.
template <int kVector>
__global__ void __launch_bounds__(kSideWarps* kWarp)
    add_right_sides(DeviceRidge problem, const System* systems, const SystemPart* parts,
                    float* workspace) {
  const SystemPart part = parts[blockIdx.x];
  const System system = systems[part.system];
  const std::int64_t n = system.n_scores, stride = system_stride(system.size);
  const float* prior = problem.prior == nullptr ? nullptr : problem.prior + system.row * problem.d;
  const float* y = problem.values + system.first;
  float* right = workspace + system.offset + part.split * split_floats(stride) + stride * stride;
  const int thread = static_cast<int>(threadIdx.x);
  float largest = 0.0F;
  if (n < problem.d) {
    largest = for_each_residual<kVector>(problem, system, 0, n, y, prior,
                                         [&](std::int64_t e, const float* const(&)[kSideScores],
                                             const float (&residual)[kSideScores]) {
#pragma unroll
                                           for (int i = 0; i < kSideScores; ++i)
                                             if (thread % kWarp == i && e + i < n)
                                               right[e + i] = residual[i];
                                         });
    for (std::int64_t j = n + thread; j < stride; j += kSideWarps * kWarp) right[j] = 0.0F;
  } else {
    const std::int64_t n_part = scores_a_split(n), begin = part.split * n_part;
    const std::int64_t end = begin + n_part < n ? begin + n_part : n;
    largest = sum_residual_rows<kVector>(problem, system, begin, end, y, prior, right);
  }
  if (thread == 0) right[stride] = largest;
}

}  // namespace
}  // namespace cexnn::cuda
