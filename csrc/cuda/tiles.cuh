// Products of tiles of doubles by a block.
#pragma once

#include <intrinsics.cuh>

namespace cexnn::cuda {

constexpr int kTile = 32;
constexpr int kTileThreads = 256;

using Tile = double[kTile][kTile + 1];

struct TileScratch {
  Tile a;
  Tile b;
};

// How a tile's elements lie in memory: those of a row, or those of a column, one after another.
enum class Along { rows, columns };

// out[i][j] = sum over t from begin to end, a multiple of 32 apart, of a(i, t) b(j, t). Each sum is
// taken in the same order wherever its tile lies: four groups of threads take eight t of each 32.
// A thread has 4 x 4 sums, 16 products for 8 reads of shared memory. a and b may read `out` where
// begin + 32 == end. Every thread of the block calls it; what it wrote is visible to all.
template <Along kB, typename A, typename B>
__device__ void multiply_tiles(int begin, int end, const A& a, const B& b, TileScratch& scratch,
                               Tile& out) {
  constexpr int kGroups = 4, kSide = 8, kEach = kTile / kSide, kSteps = kTile / kGroups;
  constexpr int kRead = kTile * kTile / kTileThreads, kRows = kTileThreads / kTile;
  const int thread = static_cast<int>(threadIdx.x), group = thread / (kSide * kSide);
  const int row = thread / kSide % kSide, column = thread % kSide;
  const int slow = thread / kTile, fast = thread % kTile;
  double sums[kEach][kEach] = {};
  double next_a[kRead], next_b[kRead];  // read while the numbers before are multiplied
  const auto read = [&](int t) {
#pragma unroll
    for (int r = 0; r < kRead; ++r) {
      const int at = slow + kRows * r;
      next_a[r] = a(at, t + fast);
      next_b[r] = kB == Along::rows ? b(at, t + fast) : b(fast, t + at);
    }
  };
  if (begin < end) read(begin);
  for (int t = begin; t < end; t += kTile) {
#pragma unroll
    for (int r = 0; r < kRead; ++r) {
      const int at = slow + kRows * r;
      scratch.a[at][fast] = next_a[r];
      (kB == Along::rows ? scratch.b[at][fast] : scratch.b[fast][at]) = next_b[r];
    }
    __syncthreads();
    if (t + kTile < end) read(t + kTile);
#pragma unroll
    for (int step = group * kSteps; step < (group + 1) * kSteps; ++step)
#pragma unroll
      for (int i = 0; i < kEach; ++i)
#pragma unroll
        for (int j = 0; j < kEach; ++j)
          sums[i][j] = fma(scratch.a[row + kSide * i][step], scratch.b[column + kSide * j][step],
                           sums[i][j]);
    __syncthreads();
  }
  for (int turn = 0; turn < kGroups; ++turn) {
    if (turn == group)
#pragma unroll
      for (int i = 0; i < kEach; ++i)
#pragma unroll
        for (int j = 0; j < kEach; ++j) {
          double& sum = out[row + kSide * i][column + kSide * j];
          sum = turn == 0 ? sums[i][j] : sum + sums[i][j];
        }
    __syncthreads();
  }
}

}  // namespace cexnn::cuda
