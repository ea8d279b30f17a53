// Rows by a few steps of conjugate gradients: what they share with other rows' right-hand sides are
// the products, what is theirs is the step between. A row's vectors lie in the workspace.
#pragma once

#include "ridge_sides.cuh"

namespace cexnn::cuda {
namespace {

constexpr int kStepThreads = 128;

struct GradientScalars {
  double square;  // of the residual; in double precision, as small numbers have squares there
  float lambda;
};

// Of a row in the workspace: the residual, the direction, scalars, and of each split a product. A
// product's number `stride` is the largest squared norm among the split's rows.
struct GradientRow {
  float* residual;
  float* direction;
  GradientScalars* scalars;
  float* products;
  std::int64_t stride;

  __device__ GradientRow(const System& system, float* workspace)
      : residual(workspace + system.offset),
        direction(residual + system_stride(system.size)),
        scalars(reinterpret_cast<GradientScalars*>(direction + system_stride(system.size))),
        products(direction + system_stride(system.size) + kWarp),
        stride(system_stride(system.size)) {}

  __device__ float* product(std::int64_t split) const {
    return products + split * (stride + kWarp);
  }
};

constexpr std::int64_t gradient_floats(std::int64_t stride, std::int64_t n_splits) {
  return 2 * stride + kWarp + n_splits * (stride + kWarp);
}

// Of each split of each row: A^T (y - A x), x what `out` holds, or -A^T A times the direction. A
// block to a split. Reads each of its rows twice, from L1 the second time; 4 n d flops: bound by
// memory.
template <int kVector>
__global__ void __launch_bounds__(kSideWarps* kWarp)
    add_products(DeviceRidge problem, const System* systems, const SystemPart* parts,
                 float* workspace, bool first) {
  const SystemPart part = parts[blockIdx.x];
  const System system = systems[part.system];
  const GradientRow row(system, workspace);
  const float* x = first ? problem.out + system.row * problem.d : row.direction;
  const float* y = first ? problem.values + system.first : nullptr;
  const std::int64_t n_part = scores_a_split(system.n_scores), begin = part.split * n_part;
  const std::int64_t end = begin + n_part < system.n_scores ? begin + n_part : system.n_scores;
  float* product = row.product(part.split);
  const float largest = sum_residual_rows<kVector>(problem, system, begin, end, y, x, product);
  if (threadIdx.x == 0) product[row.stride] = largest;
}

// The block's sum of one number a thread, in every thread.
__device__ inline double step_sum(double mine) {
  __shared__ double sums[kStepThreads / kWarp];
  const int thread = static_cast<int>(threadIdx.x);
  mine = warp_sum(mine);
  __syncthreads();  // the sums of the call before are read
  if (thread % kWarp == 0) sums[thread / kWarp] = mine;
  __syncthreads();
  double total = 0.0;
  for (int w = 0; w < kStepThreads / kWarp; ++w) total += sums[w];
  return total;
}

__device__ inline float sum_of_splits(const GradientRow& row, const System& system,
                                      std::int64_t j) {
  float sum = 0.0F;
  for (int split = 0; split < system.n_splits; ++split) sum += row.product(split)[j];
  return sum;
}

// residual = A^T (y - A x) + lambda (x0 - x), which is the first direction. A block to a row.
__global__ void __launch_bounds__(kStepThreads)
    start_gradients(DeviceRidge problem, const System* systems, float* workspace) {
  const System system = systems[blockIdx.x];
  const GradientRow row(system, workspace);
  const std::int64_t d = problem.d, start = system.row * d;
  float largest = 0.0F;
  for (int split = 0; split < system.n_splits; ++split) {
    const float found = row.product(split)[row.stride];
    largest = found > largest ? found : largest;
  }
  const float lambda = ridge_lambda(problem.regularization, largest);
  double square = 0.0;
  for (std::int64_t j = threadIdx.x; j < row.stride; j += kStepThreads) {
    float value = 0.0F;
    if (j < d) {
      const float x0 = problem.prior == nullptr ? 0.0F : problem.prior[start + j];
      value = fmaf(lambda, x0 - problem.out[start + j], sum_of_splits(row, system, j));
    }
    row.residual[j] = row.direction[j] = value;
    square = fma(double(value), double(value), square);
  }
  square = step_sum(square);
  if (threadIdx.x == 0) *row.scalars = {square, lambda};
}

// One step, given the products with the direction; `last` marks rows whose result is not finite. A
// block to a row.
__global__ void __launch_bounds__(kStepThreads)
    step_gradients(DeviceRidge problem, const System* systems, float* workspace, bool last) {
  const System system = systems[blockIdx.x];
  const GradientRow row(system, workspace);
  const std::int64_t d = problem.d;
  float* x = problem.out + system.row * d;
  const float lambda = row.scalars->lambda;
  const double square = row.scalars->square;
  double curvature = 0.0;
  for (std::int64_t j = threadIdx.x; j < d; j += kStepThreads) {
    const float direction = row.direction[j];
    const float product = fmaf(lambda, direction, -sum_of_splits(row, system, j));
    row.product(0)[j] = product;
    curvature = fma(double(direction), double(product), curvature);
  }
  curvature = step_sum(curvature);
  // A residual of zero: the row is solved.
  const float length = square == 0.0 ? 0.0F : static_cast<float>(square / curvature);
  bool finite = true;
  double left = 0.0;
  for (std::int64_t j = threadIdx.x; j < d; j += kStepThreads) {
    const float found = fmaf(length, row.direction[j], x[j]);
    const float residual = fmaf(-length, row.product(0)[j], row.residual[j]);
    x[j] = found;
    row.residual[j] = residual;
    left = fma(double(residual), double(residual), left);
    finite = finite && is_finite(found);
  }
  left = step_sum(left);
  const float kept = square == 0.0 ? 0.0F : static_cast<float>(left / square);
  for (std::int64_t j = threadIdx.x; j < d; j += kStepThreads)
    row.direction[j] = fmaf(kept, row.direction[j], row.residual[j]);
  if (threadIdx.x == 0) row.scalars->square = left;
  if (last && __syncthreads_and(finite) == 0 && threadIdx.x == 0)
    mark_failed(problem.failed, system.row);
}

}  // namespace
}  // namespace cexnn::cuda
