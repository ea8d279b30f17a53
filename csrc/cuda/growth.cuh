// How a query's inverse Cholesky factor grows by panels of rows; see query_update.cuh.
#pragma once

#include "query_update.cuh"
#include "tiles.cuh"

namespace cexnn::cuda {

constexpr double kPivotFloor = 1e-14;  // a pivot below this share of its diagonal element is noise

// K + noise I in the place of W's new rows: tile (blockIdx.y from the first new panel, blockIdx.x)
// of query blockIdx.z. Rows beyond the last are those of I.
__global__ void __launch_bounds__(kTileThreads) fill_kernel(UpdateArguments u) {
  __shared__ TileScratch scratch;
  __shared__ Tile tile;
  const KnownRows query = u.queries[blockIdx.z];
  const int panel = query.first / kTile + static_cast<int>(blockIdx.y);
  const int first_column = static_cast<int>(blockIdx.x) * kTile, first_row = panel * kTile;
  if (panel >= query.n_panels() || first_column > first_row) return;
  const auto factor = [&](int i, int j) {
    return i < query.n && j < u.d ? static_cast<double>(u.item(query, i)[j]) : 0.0;
  };
  multiply_tiles<Along::rows>(
      0, u.d, [&](int i, int j) { return factor(first_row + i, j); },
      [&](int i, int j) { return factor(first_column + i, j); }, scratch, tile);
  for (int e = static_cast<int>(threadIdx.x); e < kTile * kTile; e += kTileThreads) {
    const int i = first_row + e / kTile, j = first_column + e % kTile;
    double value = i == j ? 1.0 : 0.0;
    if (i < query.n && j < query.n)
      value =
          u.kernel(tile[e / kTile][e % kTile], u.fits[query.begin + i], u.fits[query.begin + j]) +
          (i == j ? query.noise : 0.0);
    query.row(i)[j] = value;
  }
}

// The panel that a query works on in turn `turn`; false if it has none.
__device__ inline bool panel_of_turn(const KnownRows& query, int turn, int& panel) {
  panel = query.first / kTile + turn;
  return panel < query.n_panels();
}

// Tile blockIdx.x of L21, of query blockIdx.y, and its product with itself.
__global__ void __launch_bounds__(kTileThreads) project_kernel(UpdateArguments u, int turn) {
  __shared__ TileScratch scratch;
  __shared__ Tile tile;
  const KnownRows query = u.queries[blockIdx.y];
  const int column = static_cast<int>(blockIdx.x);
  int panel = 0;
  if (!panel_of_turn(query, turn, panel) || column >= panel) return;
  multiply_tiles<Along::rows>(
      0, (column + 1) * kTile, [&](int i, int t) { return query.row(panel * kTile + i)[t]; },
      [&](int j, int t) { return query.row(column * kTile + j)[t]; }, scratch, tile);
  double* out = u.projected + blockIdx.y * u.projected_stride + 2 * column * kTile * kTile;
  for (int e = static_cast<int>(threadIdx.x); e < kTile * kTile; e += kTileThreads)
    out[e] = tile[e / kTile][e % kTile];
  const auto self = [&](int i, int t) { return tile[i][t]; };
  multiply_tiles<Along::rows>(0, kTile, self, self, scratch, tile);
  for (int e = static_cast<int>(threadIdx.x); e < kTile * kTile; e += kTileThreads)
    out[kTile * kTile + e] = tile[e / kTile][e % kTile];
}

// W22 of query blockIdx.x. Eliminating the columns of A = K22 - L21 L21^T, and doing the same to I,
// leaves in place of I the inverse of A's unit factor, whose rows are divided by the roots of the
// pivots. Each thread keeps 2 x 2 numbers of both in registers; a column costs one barrier.
__global__ void __launch_bounds__(kTileThreads) eliminate_kernel(UpdateArguments u, int turn) {
  constexpr int kSide = 16;
  __shared__ double columns[2][kTile];
  __shared__ double rows[2][kTile];
  __shared__ double pivots[kTile];
  const KnownRows query = u.queries[blockIdx.x];
  int panel = 0;
  if (!panel_of_turn(query, turn, panel)) return;
  const int y = static_cast<int>(threadIdx.x) / kSide, x = static_cast<int>(threadIdx.x) % kSide;
  const double* grams = u.projected + blockIdx.x * u.projected_stride + kTile * kTile;
  double a[2][2], m[2][2], diagonal[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int i = y + kSide * r;
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int k = x + kSide * c;
      const int low = max(i, k), high = min(i, k);  // one of the two is stored
      a[r][c] = query.row(panel * kTile + low)[panel * kTile + high];
      for (int t = 0; t < panel; ++t) a[r][c] -= grams[2 * t * kTile * kTile + low * kTile + high];
      m[r][c] = i == k ? 1.0 : 0.0;
    }
    diagonal[r] = query.row(panel * kTile + i)[panel * kTile + i];
  }
  for (int j = 0; j < kTile; ++j) {
    double* column = columns[j % 2];
    double* row = rows[j % 2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (x == j % kSide) column[y + kSide * r] = j < kSide ? a[r][0] : a[r][1];
      if (y == j % kSide) row[x + kSide * r] = j < kSide ? m[0][r] : m[1][r];
    }
    __syncthreads();
    const double pivot = column[j], inverse = 1.0 / pivot;
    if (threadIdx.x == 0) pivots[j] = pivot;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int i = y + kSide * r;
      if (i == j && x == 0 && !(pivot > kPivotFloor * diagonal[r])) *u.failed = 1;
      if (i <= j) continue;
      const double factor = column[i] * inverse;
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        a[r][c] = fma(-factor, column[x + kSide * c], a[r][c]);
        m[r][c] = fma(-factor, row[x + kSide * c], m[r][c]);
      }
    }
  }
  __syncthreads();
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int i = y + kSide * r;
    const double scale = 1.0 / sqrt(pivots[i]);
#pragma unroll
    for (int c = 0; c < 2; ++c)
      query.row(panel * kTile + i)[panel * kTile + x + kSide * c] = scale * m[r][c];
  }
}

// Tile blockIdx.x of W21, of query blockIdx.y.
__global__ void __launch_bounds__(kTileThreads) invert_kernel(UpdateArguments u, int turn) {
  __shared__ TileScratch scratch;
  __shared__ Tile tile;
  const KnownRows query = u.queries[blockIdx.y];
  const int column = static_cast<int>(blockIdx.x);
  int panel = 0;
  if (!panel_of_turn(query, turn, panel) || column >= panel) return;
  const double* projected = u.projected + blockIdx.y * u.projected_stride;
  multiply_tiles<Along::columns>(
      column * kTile, panel * kTile,
      [&](int i, int t) {
        return projected[2 * (t / kTile) * kTile * kTile + i * kTile + t % kTile];
      },
      [&](int j, int t) { return query.row(t)[column * kTile + j]; }, scratch, tile);
  multiply_tiles<Along::columns>(
      0, kTile, [&](int i, int t) { return query.row(panel * kTile + i)[panel * kTile + t]; },
      [&](int j, int t) { return tile[t][j]; }, scratch, tile);
  for (int e = static_cast<int>(threadIdx.x); e < kTile * kTile; e += kTileThreads)
    query.row(panel * kTile + e / kTile)[column * kTile + e % kTile] = -tile[e / kTile][e % kTile];
}

}  // namespace cexnn::cuda
