// The matrices of longer rows' systems, built in the workspace: products of gathered rows (dual) or
// of their columns (primal).
#pragma once

#include "ridge.cuh"
#include "warp_tile.cuh"

namespace cexnn::cuda {
namespace {

// A tile of a system's matrix: rows and columns from tile_row and tile_col times the tile's size.
struct GramTask {
  std::int32_t system;
  std::int32_t split;
  std::int32_t tile_row;
  std::int32_t tile_col;  // <= tile_row
};

// What a block of `gram` multiplies at a time: kTile rows of the form (scores in the dual, factors
// in the primal), kGramDepth deep, as they come from the factors, padded so that lanes reading a
// TensorTile's or a PlainTile's operands meet no bank twice.
constexpr int kGramDepth = 16;
constexpr int kGramStages = 3;

template <int kTile, bool kDual>
struct GramPanel {
  static constexpr int kStride = kDual ? kGramDepth + 4 : kTile + 8;
  static constexpr int kFloats = (kDual ? kTile : kGramDepth) * kStride;
  static constexpr int kThreads = 2 * kTile;

  const float* data;

  __device__ float operator()(int m, int k) const {
    return kDual ? data[m * kStride + k] : data[k * kStride + m];
  }

  // Starts to copy the panel `to`: of the scores of n_ids items and of the factors from `factor` to
  // d, kTile and kGramDepth of them, or the other way round. Zero where there are none.
  template <int kVector>
  __device__ static void load(const float* factors, std::int64_t d, const std::int32_t* ids,
                              int n_ids, int factor, float* to) {
    constexpr int kScores = kDual ? kTile : kGramDepth, kCols = kDual ? kGramDepth : kTile;
    constexpr int kCopiesARow = kCols / kVector;
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < kScores * kCopiesARow; i += kThreads) {
      const int row = i / kCopiesARow, col = i % kCopiesARow * kVector;
      const bool valid = row < n_ids && factor + col < d;
      const float* from = factors + (valid ? ids[row] * d + factor + col : 0);
      copy_floats_async<kVector>(to + row * kStride + col, from, valid);
    }
  }
};

// One tile of one split of a system. Warps of 32 by kTile / 2 products each; those above the
// diagonal or beyond the system have none. Reads kTile (or twice that, off the diagonal) floats for
// each k through the second cache, in three stages; kTile^2 multiply-adds on them. At 1,000 scores,
// d = 256 (three tiles of 128): 20 warp tiles of 24, of which 80 % are below the diagonal; 2 MB
// gathered for 66 Mflop: 60 Tflop/s would take 1.9 TB/s of the second cache, half of that of
// memory.
template <int kTile, bool kDual, template <int> class Tile>
__global__ void __launch_bounds__(2 * kTile, 128 / kTile * Tile<kTile / 2>::kBlocks)
    gram(DeviceRidge problem, const System* systems, const GramTask* tasks, float* workspace) {
  using Panel = GramPanel<kTile, kDual>;
  constexpr int kWarpCols = kTile / 2;
  const GramTask task = tasks[blockIdx.x];
  const System system = systems[task.system];
  const int stride = static_cast<int>(system_stride(system.size)), d = static_cast<int>(problem.d);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int first_row = task.tile_row * kTile, first_col = task.tile_col * kTile;
  const int my_row = warp / 2 * kWarp, my_col = warp % 2 * kWarpCols;
  const int row = first_row + my_row, col = first_col + my_col;
  const bool computes = row < system.size && col < system.size && col < row + kWarp;
  const bool diagonal = task.tile_row == task.tile_col;

  const int part = static_cast<int>(scores_a_split(system.n_scores));
  const int begin = kDual ? 0 : task.split * part;
  const int n_left = system.n_scores - begin;
  const int depth = kDual ? d : (n_left < part ? n_left : part);
  const int n_panels = (depth + kGramDepth - 1) / kGramDepth;
  const std::int32_t* ids = problem.indices + system.first + begin;

  float* stages = dynamic_shared<float>();
  const auto load = [&](int panel) {
    float* to = stages + panel % kGramStages * (2 * Panel::kFloats);
    const int k = panel * kGramDepth;
#pragma unroll 1
    for (int side = 0; side < (diagonal ? 1 : 2); ++side, to += Panel::kFloats) {
      const int at = side == 0 ? first_row : first_col;
      const int score = kDual ? at : k, factor = kDual ? k : at;
      const int n_ids = (kDual ? system.n_scores : depth) - score;
      if (problem.by_fours) {
        Panel::template load<4>(problem.factors, problem.d, ids + score, n_ids, factor, to);
      } else {
        Panel::template load<1>(problem.factors, problem.d, ids + score, n_ids, factor, to);
      }
    }
  };

  Tile<kWarpCols> tile;
  tile.clear();
  for (int panel = 0; panel < kGramStages - 1; ++panel) {
    if (panel < n_panels) load(panel);
    commit_copies();
  }
  for (int panel = 0; panel < n_panels; ++panel) {
    wait_copies<kGramStages - 2>();
    __syncthreads();  // the panel is here, and nobody reads the one before
    if (panel + kGramStages - 1 < n_panels) load(panel + kGramStages - 1);
    commit_copies();
    if (!computes) continue;
    const float* rows = stages + panel % kGramStages * (2 * Panel::kFloats);
    const Panel a{rows}, b{rows + (diagonal ? 0 : Panel::kFloats)};
    tile.template add<kGramDepth>([&](int m, int k) { return a(my_row + m, k); },
                                  [&](int n, int k) { return b(my_col + n, k); });
  }
  if (!computes) return;
  float* to = workspace + system.offset + task.split * split_floats(stride) +
              std::int64_t(row) * stride + col;
  const int n_cols = stride - col;
  tile.for_each([&](int m, int n, float& value) {
    if (n < n_cols) to[m * stride + n] = value;
  });
}

}  // namespace
}  // namespace cexnn::cuda
