// Blocked Cholesky and triangular solves of the systems in the workspace: a block to a system.
#pragma once

#include "ridge.cuh"
#include "warp_tile.cuh"

namespace cexnn::cuda {
namespace {

constexpr int kSolveWarps = 8;          // a block, at most
constexpr int kTileStride = kWarp + 4;  // of a 32 x 32 tile in shared memory: no bank twice
constexpr int kTileFloats = kWarp * kTileStride;
constexpr std::int64_t solve_floats(std::int64_t stride, std::int64_t n_warps) {
  return stride + (2 + n_warps) * kTileFloats;  // of shared memory
}

// A matrix of strips of 32 rows in the workspace, of which tile (i, j), j <= i, is used. What
// several splits give adds up to it; the first is where its factor goes.
struct TiledMatrix {
  float* data;
  int stride;
  int n_splits;

  __device__ float* tile(int i, int j) const {
    return data + (std::int64_t(i) * stride + j) * kWarp;
  }
  __device__ float sum(int i, int j, int m, int n) const {
    const float* at = tile(i, j) + m * stride + n;
    float total = *at;
    for (int split = 1; split < n_splits; ++split) total += at[split * split_floats(stride)];
    return total;
  }
};

// Between global and shared memory, by one warp or by all threads of a block, 16 bytes each.
__device__ inline void read_tile(const float* from, int stride, int thread, int n_threads,
                                 float* to) {
  for (int i = thread; i < kWarp * kWarp / 4; i += n_threads) {
    const int row = i / 8, col = i % 8 * 4;
    *reinterpret_cast<float4*>(to + row * kTileStride + col) =
        *reinterpret_cast<const float4*>(from + row * stride + col);
  }
}
__device__ inline void write_tile(const float* from, int lane, int stride, float* to) {
  for (int i = lane; i < kWarp * kWarp / 4; i += kWarp) {
    const int row = i / 8, col = i % 8 * 4;
    *reinterpret_cast<float4*>(to + row * stride + col) =
        *reinterpret_cast<const float4*>(from + row * kTileStride + col);
  }
}

// What the panel's own tile leaves for the tiles below it, in shared memory.
struct DiagonalTile {
  float* transposed;  // L[j][k] at [k][j]
  float* inverse;     // 1 / L[k][k]
};

// The Cholesky factor of a tile, and its solution of the right-hand side, in place: of each lane
// its row of the tile and its number. Whether every pivot was sound.
__device__ inline bool factor_tile(float* row, float& right, int lane, const DiagonalTile& to) {
  float a[kWarp], diagonal = 0.0F, rest = right;
#pragma unroll
  for (int k = 0; k < kWarp; ++k) {
    a[k] = row[k];
    if (k == lane) diagonal = a[k];
  }
  bool sound = true;
#pragma unroll
  for (int k = 0; k < kWarp; ++k) {
    const float pivot = __shfl_sync(kAllLanes, a[k], k);
    sound = sound && pivot > kPivotFloor<float> * __shfl_sync(kAllLanes, diagonal, k);
    const float inverse = 1.0F / sqrtf(pivot);
    a[k] *= inverse;
    const float found = __shfl_sync(kAllLanes, rest, k) * inverse;
    rest = lane == k ? found : (lane > k ? fmaf(-a[k], found, rest) : rest);
#pragma unroll
    for (int j = k + 1; j < kWarp; ++j) a[j] = fmaf(-a[k], __shfl_sync(kAllLanes, a[k], j), a[j]);
    row[k] = a[k];
    to.transposed[k * kTileStride + lane] = a[k];
    if (lane == k) to.inverse[k] = inverse;
  }
  right = rest;
  return sound;
}

// A lane's row of a tile below the diagonal one: row := row L^-T, in place. What the panel's
// unknowns, solved, explain of the row's right-hand side.
__device__ inline float solve_tile(float* row, const DiagonalTile& diagonal, const float* solved) {
  float a[kWarp], explained = 0.0F;
#pragma unroll
  for (int k = 0; k < kWarp; ++k) a[k] = row[k];
#pragma unroll
  for (int k = 0; k < kWarp; ++k) {
    a[k] *= diagonal.inverse[k];
    explained = fmaf(a[k], solved[k], explained);
#pragma unroll
    for (int j = k + 1; j < kWarp; ++j)
      a[j] = fmaf(-a[k], diagonal.transposed[k * kTileStride + j], a[j]);
  }
#pragma unroll
  for (int k = 0; k < kWarp; ++k) row[k] = a[k];
  return explained;
}

// The factor L, panels of 32 columns one after another, each from those left of it, and
// right := L^-1 right. Strips of the panel go round the warps. The same answer in every thread:
// whether every pivot was sound. In shared memory: `right`, `broken`, which is zero, and two tiles
// and one for each warp.
template <template <int> class Tile>
__device__ bool factor(const TiledMatrix& matrix, int size, float lambda, float* right,
                       float* tiles, int* broken) {
  __shared__ float inverse[kWarp];
  float* column = tiles + kTileFloats;  // tile (p, q)
  const DiagonalTile diagonal{tiles, inverse};
  const int thread = static_cast<int>(threadIdx.x), n_threads = static_cast<int>(blockDim.x);
  const int warp = thread / kWarp, lane = thread % kWarp, n_warps = n_threads / kWarp;
  const int n_strips = matrix.stride / kWarp;
  float* own = tiles + (2 + warp) * kTileFloats;
  for (int p = 0; p < n_strips; ++p) {
    for (int first = p; first < n_strips; first += n_warps) {
      const int strip = first + warp;
      const bool active = strip < n_strips;
      Tile<kWarp> explained;
      explained.clear();
      for (int q = 0; q < p; ++q) {
        __syncthreads();
        read_tile(matrix.tile(p, q), matrix.stride, thread, n_threads, column);
        if (active) read_tile(matrix.tile(strip, q), matrix.stride, lane, kWarp, own);
        __syncthreads();
        if (active)
          explained.template add<kWarp>([&](int m, int k) { return own[m * kTileStride + k]; },
                                        [&](int n, int k) { return column[n * kTileStride + k]; });
      }
      __syncwarp();
      if (active) {
        explained.for_each([&](int m, int n, float& value) { own[m * kTileStride + n] = -value; });
        __syncwarp();
        const bool on_diagonal = strip == p;
#pragma unroll 8
        for (int m = 0; m < kWarp; ++m) {
          float left = own[m * kTileStride + lane] + matrix.sum(strip, p, m, lane);
          if (on_diagonal && m == lane) left = p * kWarp + m < size ? left + lambda : 1.0F;
          own[m * kTileStride + lane] = left;
        }
      }
      __syncwarp();
      float* my_row = own + lane * kTileStride;
      float* my_right = right + strip * kWarp + lane;
      if (strip == p && !factor_tile(my_row, *my_right, lane, diagonal)) *broken = 1;
      __syncthreads();
      if (*broken != 0) return false;
      if (!active) continue;
      if (strip > p) *my_right -= solve_tile(my_row, diagonal, right + p * kWarp);
      __syncwarp();
      write_tile(own, lane, matrix.stride, matrix.tile(strip, p));
    }
    __syncthreads();
  }
  return true;
}

// right := L^-T right, panels from the last to the first: the warps share the rows below.
__device__ inline void solve_back(const TiledMatrix& factor, float* right) {
  __shared__ float sums[kSolveWarps][kWarp];
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  const int n_warps = static_cast<int>(blockDim.x) / kWarp;
  const int n_strips = factor.stride / kWarp;
  for (int p = n_strips - 1; p >= 0; --p) {
    float sum = 0.0F;
    for (int strip = p + 1 + warp; strip < n_strips; strip += n_warps) {
      const float* tile = factor.tile(strip, p) + lane;
#pragma unroll 16
      for (int m = 0; m < kWarp; ++m)
        sum = fmaf(tile[m * factor.stride], right[strip * kWarp + m], sum);
    }
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp == 0) {
      float rows[kWarp], inverse = 0.0F, x = right[p * kWarp + lane];
      for (int w = 0; w < n_warps; ++w) x -= sums[w][lane];
#pragma unroll
      for (int m = 0; m < kWarp; ++m) {
        rows[m] = factor.tile(p, p)[m * factor.stride + lane];
        if (lane == m) inverse = 1.0F / rows[m];
      }
#pragma unroll
      for (int m = kWarp - 1; m >= 0; --m) {
        const float found = __shfl_sync(kAllLanes, x * inverse, m);
        x = lane == m ? found : (lane < m ? fmaf(-rows[m], found, x) : x);
      }
      right[p * kWarp + lane] = x;
    }
    __syncthreads();
  }
}

// out[row] = prior + x, or in the dual form prior + A^T x. Whether this thread's part is finite.
__device__ inline bool write_solution(const DeviceRidge& problem, const System& system,
                                      const float* x) {
  const std::int64_t d = problem.d, start = system.row * d;
  const std::int32_t* ids = problem.indices + system.first;
  bool finite = true;
  for (std::int64_t j = threadIdx.x; j < d; j += blockDim.x) {
    float sum = problem.prior == nullptr ? 0.0F : problem.prior[start + j];
    if (system.n_scores >= d) {
      sum += x[j];
    } else {
#pragma unroll 8
      for (int i = 0; i < system.n_scores; ++i)
        sum = fmaf(x[i], problem.factors[ids[i] * d + j], sum);
    }
    problem.out[start + j] = sum;
    finite = finite && is_finite(sum);
  }
  return finite;
}

// Solves the systems, s equations each: s^3 / 3 multiply-adds in s / 32 panels, of which each reads
// all panels before it, s^3 / 192 floats in all, through the second cache (where they come from, a
// system of 256 has 131 KB). The finished panels stay in the workspace, so that shared memory
// (42 KiB) bounds neither s nor the blocks on a multiprocessor: what a panel of 32 takes (by
// count 5,000 cycles for 32 roots one after the other) is hidden behind the panels of other
// systems.
template <template <int> class Tile>
__global__ void __launch_bounds__(kSolveWarps* kWarp, 2)
    solve_systems(DeviceRidge problem, const System* systems, float* workspace) {
  __shared__ int broken;
  const System system = systems[blockIdx.x];
  const int stride = static_cast<int>(system_stride(system.size));
  float* right = dynamic_shared<float>();  // (stride,), and the tiles
  const TiledMatrix matrix{workspace + system.offset, stride, system.n_splits};
  const float* sides = matrix.data + std::int64_t(stride) * stride;
  float largest = 0.0F;
  for (int split = 0; split < system.n_splits; ++split) {
    const float found = sides[split * split_floats(stride) + stride];
    largest = found > largest ? found : largest;
  }
  for (int j = static_cast<int>(threadIdx.x); j < stride; j += static_cast<int>(blockDim.x)) {
    float sum = 0.0F;
    for (int split = 0; split < system.n_splits; ++split)
      sum += sides[split * split_floats(stride) + j];
    right[j] = sum;
  }
  if (threadIdx.x == 0) broken = 0;
  __syncthreads();
  const float lambda = ridge_lambda(problem.regularization, largest);
  bool solved = factor<Tile>(matrix, system.size, lambda, right, right + stride, &broken);
  if (solved) {
    solve_back(matrix, right);
    solved = __syncthreads_and(write_solution(problem, system, right)) != 0;
  }
  if (!solved && threadIdx.x == 0) mark_failed(problem.failed, system.row);
}

}  // namespace
}  // namespace cexnn::cuda
