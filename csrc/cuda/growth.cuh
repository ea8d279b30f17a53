// How a query's inverse Cholesky factor grows by panels of rows; see query_update.cuh.
//
// A turn computes up to kSpan panels, from the first that is not finished, so that any number of
// scores that a round adds takes few launches. Of K's new rows [K21 K22] beside the finished W11:
//
//   begin     K21, K22, in the place of W's new rows
//   project   L21 = K21 W11^T
//   schur     S = K22 - L21 L21^T in the place of K22, and M = L21 W11; the last block to finish
//             its part of S makes of it W22 = (Cholesky factor of S)^-1
//   invert    W21 = -W22 M, in the place of K21
#pragma once

#include "last_block.cuh"
#include "query_update.cuh"
#include "tiles.cuh"

namespace cexnn::cuda {

constexpr double kPivotFloor = 1e-14;  // a pivot below this share of its diagonal element is noise

// The panels that a query computes in turn `turn`, from the first to before the end; none if it has
// no more.
struct Turn {
  int first = 0;
  int end = 0;

  __device__ Turn(const KnownRows& query, int turn)
      : first(query.first / kTile + turn * kSpan), end(min(first + kSpan, query.n_panels())) {}
};

// Of query q, in its turn: tile `column` of L21 (kWhich 0) or M (kWhich 1) of the turn's panel
// number `panel`.
template <int kWhich>
__device__ double* projected_tile(const UpdateArguments& u, std::int64_t q, int panel, int column) {
  return u.projected + q * u.projected_size() +
         (2 * (std::int64_t{panel} * u.panels + column) + kWhich) * kTile * kTile;
}

// K + noise I in the place of W's new rows: tile `column` of panel `panel` from the first new one.
// Rows beyond the last are those of I.
__device__ inline void fill_tile(const UpdateArguments& u, std::int64_t q, int panel, int column) {
  __shared__ TileScratch scratch;
  __shared__ Tile tile;
  __shared__ double fits[2][kTile];
  const KnownRows query = u.queries[q];
  panel += query.first / kTile;
  if (panel >= query.n_panels() || column > panel) return;
  const int first_column = column * kTile, first_row = panel * kTile;
  if (u.model.prior_scale_variance != 0.0) {  // four threads to a row, all rows at once
    const int thread = static_cast<int>(threadIdx.x), e = thread / 4, i = e % kTile;
    static_assert(kTileThreads == 4 * 2 * kTile);
    const int known = (e < kTile ? first_row : first_column) + i;
    double p = 0.0;
    if (known < query.n) {
      const float *v = u.item(query, known), *prior = u.priors + q * u.d;
#pragma unroll 8
      for (int j = thread % 4; j < u.d; j += 4)
        p = fma(static_cast<double>(v[j]), static_cast<double>(prior[j]), p);
    }
    for (int offset = 2; offset > 0; offset /= 2) p += __shfl_xor_sync(0xFFFFFFFFU, p, offset);
    if (thread % 4 == 0) fits[e / kTile][i] = p;
  } else if (threadIdx.x < 2 * kTile) {
    fits[threadIdx.x / kTile][threadIdx.x % kTile] = 0.0;
  }
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
      value = u.kernel(tile[e / kTile][e % kTile], fits[0][e / kTile], fits[1][e % kTile]) +
              (i == j ? query.noise : 0.0);
    query.row(i)[j] = value;
  }
}

// Of query blockIdx.y: what its first n_prepare blocks prepare, and the tiles of K's new rows.
__global__ void __launch_bounds__(kUpdateThreads) begin_kernel(UpdateArguments u, int n_prepare) {
  static_assert(kUpdateThreads == kTileThreads);
  let_next_grid_start();
  const int block = static_cast<int>(blockIdx.x);
  if (block < n_prepare) {
    prepare(u, blockIdx.y, block);
  } else {
    fill_tile(u, blockIdx.y, (block - n_prepare) / u.panels, (block - n_prepare) % u.panels);
  }
}

// Tile blockIdx.x of L21 of panel blockIdx.y, of query blockIdx.z.
__global__ void __launch_bounds__(kTileThreads) project_kernel(UpdateArguments u, int turn) {
  wait_for_grid_before();
  let_next_grid_start();
  __shared__ TileScratch scratch;
  __shared__ Tile tile;
  const std::int64_t q = blockIdx.z;
  const KnownRows query = u.queries[q];
  const Turn of(query, turn);
  const int column = static_cast<int>(blockIdx.x), panel = of.first + static_cast<int>(blockIdx.y);
  if (panel >= of.end || column >= of.first) return;
  multiply_tiles<Along::rows>(
      0, (column + 1) * kTile, [&](int i, int t) { return query.row(panel * kTile + i)[t]; },
      [&](int j, int t) { return query.row(column * kTile + j)[t]; }, scratch, tile);
  double* out = projected_tile<0>(u, q, panel - of.first, column);
  for (int e = static_cast<int>(threadIdx.x); e < kTile * kTile; e += kTileThreads)
    out[e] = tile[e / kTile][e % kTile];
}

struct EliminationScratch {
  double columns[2][kSpan * kTile];
  double rows[2][kSpan * kTile];
  double pivots[kSpan * kTile];
};

// Makes W22 of S. Eliminating S's columns one after another, and doing the same to I, leaves in
// place of I the inverse of S's unit factor, whose rows are divided by the roots of the pivots. A
// column that is eliminated leaves its place to one of that inverse, so there is one array of
// numbers: thread (y, x) of 16 x 16 keeps those at (y + 16 r, x + 16 c), c <= r, in registers. A
// column costs one barrier.
__device__ inline void eliminate(const UpdateArguments& u, const KnownRows& query, const Turn& of,
                                 EliminationScratch& scratch) {
  constexpr int kSide = 16, kEach = kSpan * kTile / kSide;
  static_assert(kSide * kSide == kTileThreads);
  const int y = static_cast<int>(threadIdx.x) / kSide, x = static_cast<int>(threadIdx.x) % kSide;
  const int first = of.first * kTile, n_rows = (of.end - of.first) * kTile;
  const int n_columns = min(n_rows, query.n - first);  // what follows is I already
  double a[kEach][kEach];
#pragma unroll
  for (int r = 0; r < kEach; ++r)
#pragma unroll
    for (int c = 0; c <= r; ++c)
      a[r][c] = kSide * r < n_rows ? query.row(first + y + kSide * r)[first + x + kSide * c] : 0.0;
#pragma unroll
  for (int c_at = 0; c_at < kEach; ++c_at) {
    const int n_here = min(kSide, n_columns - kSide * c_at);
#pragma unroll 1
    for (int at = 0; at < n_here; ++at) {
      const int j = kSide * c_at + at;
      double* column = scratch.columns[j % 2];
      double* row = scratch.rows[j % 2];
      if (x == at) {
#pragma unroll
        for (int r = c_at; r < kEach; ++r) {
          const int i = y + kSide * r;
          if (i < j || i >= n_rows) continue;
          column[i] = a[r][c_at];
          row[i] = i == j ? 1.0 : a[r][c_at];
          if (i > j) a[r][c_at] = 0.0;
        }
      }
      if (y == at) {
#pragma unroll
        for (int c = 0; c <= c_at; ++c)
          if (x + kSide * c < j) row[x + kSide * c] = a[c_at][c];
      }
      __syncthreads();
      const double inverse = 1.0 / column[j];
#pragma unroll
      for (int r = c_at; r < kEach; ++r) {
        const int i = y + kSide * r;
        if (i <= j || i >= n_rows) continue;
        const double factor = column[i] * inverse;
#pragma unroll
        for (int c = 0; c <= r; ++c) a[r][c] = fma(-factor, row[x + kSide * c], a[r][c]);
      }
    }
  }
  if (x == y) {
#pragma unroll
    for (int r = 0; r < kEach; ++r) scratch.pivots[y + kSide * r] = a[r][r];
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < n_columns; i += kTileThreads) {
    const double diagonal = u.diagonal[query.begin + first + i] + query.noise;
    if (!(scratch.pivots[i] > kPivotFloor * diagonal)) *u.failed = 1;
  }
#pragma unroll
  for (int r = 0; r < kEach; ++r) {
    const int i = y + kSide * r;
    if (i >= n_rows) continue;
    const double scale = 1.0 / sqrt(scratch.pivots[i]);
    double* out = query.row(first + i) + first;
#pragma unroll
    for (int c = 0; c <= r; ++c) {
      const int k = x + kSide * c;
      out[k] = k < i ? scale * a[r][c] : k == i ? scale : 0.0;
    }
    if (r % 2 == 0) out[x + kSide * (r + 1)] = 0.0;  // the rest of the panel's last tile
  }
}

// Of query blockIdx.z and its panel number blockIdx.y: tile blockIdx.x of S, of which there are
// kSpan, or of M. The last of the blocks that computed S makes W22 of it.
__global__ void __launch_bounds__(kTileThreads) schur_kernel(UpdateArguments u, int turn) {
  wait_for_grid_before();
  let_next_grid_start();
  __shared__ TileScratch scratch;
  __shared__ Tile tile;
  __shared__ EliminationScratch elimination;
  const std::int64_t q = blockIdx.z;
  const KnownRows query = u.queries[q];
  const Turn of(query, turn);
  const int other = static_cast<int>(blockIdx.x), number = static_cast<int>(blockIdx.y);
  const int panel = of.first + number, n_panels = of.end - of.first;
  if (number >= n_panels) return;
  const auto projected = [&](int panel_number, int i, int t) {
    return projected_tile<0>(u, q, panel_number, t / kTile)[i * kTile + t % kTile];
  };
  if (other >= kSpan) {
    const int column = other - kSpan;
    if (column >= of.first) return;
    multiply_tiles<Along::columns>(
        column * kTile, of.first * kTile, [&](int i, int t) { return projected(number, i, t); },
        [&](int j, int t) { return query.row(t)[column * kTile + j]; }, scratch, tile);
    double* out = projected_tile<1>(u, q, number, column);
    for (int e = static_cast<int>(threadIdx.x); e < kTile * kTile; e += kTileThreads)
      out[e] = tile[e / kTile][e % kTile];
    return;
  }
  if (other > number) return;
  if (of.first > 0) {
    multiply_tiles<Along::rows>(
        0, of.first * kTile, [&](int i, int t) { return projected(number, i, t); },
        [&](int j, int t) { return projected(other, j, t); }, scratch, tile);
    for (int e = static_cast<int>(threadIdx.x); e < kTile * kTile; e += kTileThreads)
      query.row(panel * kTile + e / kTile)[(of.first + other) * kTile + e % kTile] -=
          tile[e / kTile][e % kTile];
  }
  if (is_last_block(u.arrived + q, n_panels * (n_panels + 1) / 2))
    eliminate(u, query, of, elimination);
}

// Tile blockIdx.x of W21 of panel blockIdx.y, of query blockIdx.z.
__global__ void __launch_bounds__(kTileThreads) invert_kernel(UpdateArguments u, int turn) {
  wait_for_grid_before();
  let_next_grid_start();
  __shared__ TileScratch scratch;
  __shared__ Tile tile;
  const std::int64_t q = blockIdx.z;
  const KnownRows query = u.queries[q];
  const Turn of(query, turn);
  const int column = static_cast<int>(blockIdx.x), number = static_cast<int>(blockIdx.y);
  const int panel = of.first + number;
  if (panel >= of.end || column >= of.first) return;
  multiply_tiles<Along::columns>(
      0, (number + 1) * kTile,
      [&](int i, int t) { return query.row(panel * kTile + i)[of.first * kTile + t]; },
      [&](int j, int t) {
        return projected_tile<1>(u, q, t / kTile, column)[t % kTile * kTile + j];
      },
      scratch, tile);
  for (int e = static_cast<int>(threadIdx.x); e < kTile * kTile; e += kTileThreads)
    query.row(panel * kTile + e / kTile)[column * kTile + e % kTile] = -tile[e / kTile][e % kTile];
}

}  // namespace cexnn::cuda
