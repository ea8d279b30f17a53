// A query's posterior: the inverse Cholesky factor of its system, which grows by rows, and what
// follows from it. In double precision.
//
// With L L^T = K + noise I of the n known items, W = L^-1 is kept, not L: so every step is a
// product, which many blocks share, and none is a substitution, row after row. W grows by panels of
// 32 rows. With K's new rows [K21 K22] beside the finished W11,
//
//   L21 = K21 W11^T     W22 = (Cholesky factor of K22 - L21 L21^T)^-1     W21 = -W22 L21 W11
//
// and a = W^T (W r) for residuals r. A round from m to n scores: 2 (n - m) n^2 flops, and n d (n -
// m) for K, on the 4 n^2 bytes of W, which solving reads twice. Up to four panels are computed at
// once, by four launches whatever the number of queries. The panel that the last round left
// incomplete is computed again, at most 31 rows of it; so the last bits of W depend on how many
// scores came at a time. There is this one form, whether a query has fewer scores than factors or
// more: 160 kB a query at 200 scores, 4 MB at 1000, 16 MB at 2000.
#pragma once

#include "../searcher.hpp"
#include "rows.cuh"
#include "tiles.cuh"
#include "topk.cuh"

namespace cexnn::cuda {

// One query's known items and its W: row i of panel c = i / 32 holds 32 (c + 1) numbers, panels one
// after another; zero above the diagonal.
struct KnownRows {
  std::int64_t begin = 0;  // of its items among those of all queries
  int n = 0;
  int first = 0;  // the row from which on W is to be computed: of a panel, or beyond n
  double* inverse = nullptr;
  double noise = 0.0;

  __host__ __device__ static std::int64_t size(std::int64_t n_panels) {
    return n_panels * (n_panels + 1) / 2 * kTile * kTile;
  }
  __host__ __device__ int n_panels() const { return (n + kTile - 1) / kTile; }
  __device__ double* row(int i) const {
    const int panel = i / kTile;
    return inverse + size(panel) + std::int64_t{i % kTile} * kTile * (panel + 1);
  }
};

constexpr int kSpan = 4;         // panels that are computed at once
constexpr int kMostAnswers = 2;  // of a query

// Everything the kernels share. Numbers of known items lie one query after another.
struct UpdateArguments {
  QueryModel model;
  Rows<float> items;
  const float* offsets = nullptr;
  const KnownRows* queries = nullptr;
  const Mask* masks = nullptr;  // their tables to be filled
  int* arrived = nullptr;       // (kMostAnswers n_queries,): blocks that are done (last_block.cuh)
  const std::int32_t* ids = nullptr;
  const float* scores = nullptr;
  const float* priors = nullptr;  // (n_queries, d)
  int d = 0;
  std::int64_t room = 0;        // known items that the following have room for
  double* fits = nullptr;       // p
  double* diagonal = nullptr;   // K_ii
  double* residuals = nullptr;  // r
  double* whitened = nullptr;   // W r
  double* weights = nullptr;    // (kPhases, room): a, first in as many parts
  double* steps = nullptr;      // (n_queries, kPhases, d): V_S^T a in as many parts
  int panels = 0;               // most of a query
  double* projected = nullptr;  // (n_queries, projected_size): L21 and L21 W11, by tiles
  int* failed = nullptr;

  __host__ __device__ std::int64_t projected_size() const {
    return std::int64_t{2} * kSpan * panels * kTile * kTile;
  }
  __device__ const float* item(const KnownRows& query, int i) const {
    return items.data + ids[query.begin + i] * items.stride;
  }
  __device__ double kernel(double product, double p, double other_p) const {
    return model.factor_variance * product + model.prior_scale_variance * p * other_p +
           model.shift_variance;
  }
};

constexpr int kUpdateThreads = 256;
constexpr int kSolveThreads = 1024;
constexpr int kPhases = 8;

// sum of a(j) b(j), by a warp; in every lane.
template <typename A, typename B>
__device__ double warp_dot(int n, const A& a, const B& b) {
  double sum = 0.0;
#pragma unroll 4
  for (int j = static_cast<int>(threadIdx.x) % 32; j < n; j += 32)
    sum = fma(static_cast<double>(a(j)), static_cast<double>(b(j)), sum);
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xFFFFFFFFU, sum, offset);
  return sum;
}

template <typename A, typename B>
__device__ double warp_dot_of(int n, const A* a, const B* b) {
  return warp_dot(n, [a](int j) { return a[j]; }, [b](int j) { return b[j]; });
}

// The block-th block's share of query q. Block 0 fills its mask; the others take a known item a
// warp: p, K_ii and r.
__device__ inline void prepare(const UpdateArguments& u, std::int64_t q, int block) {
  const KnownRows query = u.queries[q];
  if (block == 0) {
    if (threadIdx.x == 0) {
      for (int a = 0; a < kMostAnswers; ++a) u.arrived[kMostAnswers * q + a] = 0;
      if (q == 0) *u.failed = 0;
    }
    const Mask mask = u.masks[q];
    fill_mask(u.ids + query.begin, query.n, const_cast<std::int32_t*>(mask.table), mask.size);
    return;
  }
  const int i = (block - 1) * (kUpdateThreads / 32) + static_cast<int>(threadIdx.x) / 32;
  if (i >= query.n) return;
  const std::int64_t e = query.begin + i;
  const float* v = u.item(query, i);
  const double p = warp_dot_of(u.d, v, u.priors + q * u.d);
  const double squared = warp_dot_of(u.d, v, v);
  if (threadIdx.x % 32 != 0) return;
  const double offset = u.offsets == nullptr ? 0.0 : static_cast<double>(u.offsets[u.ids[e]]);
  u.fits[e] = p;
  u.diagonal[e] = u.kernel(squared, p, p);
  u.residuals[e] =
      static_cast<double>(u.scores[e]) - u.model.offset - offset - (u.model.centred ? p : 0.0);
}

// Query blockIdx.x: z = W r, a = W^T z and the new factors, zero from d to the stride of `factors`.
__global__ void __launch_bounds__(kSolveThreads)
    solve_kernel(UpdateArguments u, float* factors, std::int64_t stride) {
  constexpr int kWarps = kSolveThreads / 32, kLanesARow = 8;
  __shared__ double along_prior;
  wait_for_grid_before();
  let_next_grid_start();
  const std::int64_t q = blockIdx.x;
  const KnownRows query = u.queries[q];
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int n = query.n, d = u.d;
  double* z = u.whitened + query.begin;
  double* weights = u.weights + query.begin;
  double* steps = u.steps + q * kPhases * d;
  const float* prior = u.priors + q * d;
  for (int first = 0; first < n; first += kSolveThreads / kLanesARow) {  // rows side by side
    const int i = first + thread / kLanesARow;
    const double* row = i < n ? query.row(i) : nullptr;
    double sum = 0.0;
#pragma unroll 8
    for (int j = thread % kLanesARow; i < n && j <= i; j += kLanesARow)
      sum = fma(row[j], u.residuals[query.begin + j], sum);
    for (int offset = kLanesARow / 2; offset > 0; offset /= 2)
      sum += __shfl_xor_sync(0xFFFFFFFFU, sum, offset);
    if (i < n && thread % kLanesARow == 0) z[i] = sum;
  }
  __syncthreads();
  for (int task = warp; task < query.n_panels() * kPhases; task += kWarps) {
    const int j = task / kPhases * kTile + lane, phase = task % kPhases;
    double sum = 0.0;
#pragma unroll 8
    for (int i = task / kPhases * kTile + phase; i < n; i += kPhases)
      sum = fma(query.row(i)[j], z[i], sum);
    if (j < n) weights[phase * u.room + j] = sum;
  }
  __syncthreads();
  for (int i = thread; i < n; i += kSolveThreads) {
    double sum = 0.0;  // read all at once, as nothing is written between
#pragma unroll
    for (int phase = 0; phase < kPhases; ++phase) sum += weights[phase * u.room + i];
    weights[i] = sum;
  }
  __syncthreads();
  for (int task = warp; task < (d + 31) / 32 * kPhases; task += kWarps) {
    const int j = task / kPhases * 32 + lane, phase = task % kPhases;
    double sum = 0.0;
#pragma unroll 8
    for (int i = phase; i < n; i += kPhases)
      sum = fma(weights[i], j < d ? static_cast<double>(u.item(query, i)[j]) : 0.0, sum);
    if (j < d) steps[phase * d + j] = sum;
  }
  if (warp == 0) {
    const double along = warp_dot_of(n, weights, u.fits + query.begin);
    if (lane == 0) along_prior = u.model.prior_scale_variance * along;
  }
  __syncthreads();
  const bool centred = u.model.centred || n == 0;
  const double prior_weight = n == 0 ? 1.0 : centred ? 1.0 + along_prior : u.model.mix;
  const double step_weight = centred ? 1.0 : 1.0 - u.model.mix;
  for (int j = thread; j < static_cast<int>(stride); j += kSolveThreads) {
    double step = 0.0;
    if (j < d) {
#pragma unroll
      for (int phase = 0; phase < kPhases; ++phase) step += steps[phase * d + j];
    }
    factors[q * stride + j] =
        j < d ? static_cast<float>(prior_weight * static_cast<double>(prior[j]) +
                                   step_weight * u.model.factor_variance * step)
              : 0.0F;
  }
}

// Mean and variance of the score of item blockIdx.x of `asked` for query blockIdx.y, NaN for -1;
// `columns` has room for `room` numbers an item asked for. n d + n^2 flops, on W.
__global__ void __launch_bounds__(kUpdateThreads)
    posterior_kernel(UpdateArguments u, const std::int32_t* asked, double* columns, float* means,
                     float* variances) {
  constexpr int kWarps = kUpdateThreads / 32;
  __shared__ double moved[kWarps];
  __shared__ double known[kWarps];
  const std::int64_t q = blockIdx.y, e = q * gridDim.x + blockIdx.x;
  const KnownRows query = u.queries[q];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const std::int32_t id = asked[e];
  if (id < 0) {
    if (threadIdx.x == 0) means[e] = variances[e] = __uint_as_float(0x7FC00000U);
    return;
  }
  const float* v = u.items.data + id * u.items.stride;
  const double p = warp_dot_of(u.d, v, u.priors + q * u.d);
  double* column = columns + blockIdx.x * u.room + query.begin;
  for (int i = warp; i < query.n; i += kWarps) {
    const double product = warp_dot_of(u.d, v, u.item(query, i));
    if (lane == 0) column[i] = u.kernel(product, p, u.fits[query.begin + i]);
  }
  __syncthreads();
  double my_moved = 0.0, my_known = 0.0;
  for (int i = warp; i < query.n; i += kWarps) {
    const double projected = warp_dot_of(i + 1, query.row(i), column);
    my_moved = fma(projected, u.whitened[query.begin + i], my_moved);
    my_known = fma(projected, projected, my_known);
  }
  if (lane == 0) {
    moved[warp] = my_moved;
    known[warp] = my_known;
  }
  const double spread = u.kernel(warp_dot_of(u.d, v, v), p, p);
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < kWarps; ++w) {
    my_moved += moved[w];
    my_known += known[w];
  }
  const double offset = u.offsets == nullptr ? 0.0 : static_cast<double>(u.offsets[id]);
  means[e] = static_cast<float>(u.model.offset + offset + p + my_moved);
  variances[e] = static_cast<float>(fmax(0.0, spread - my_known) + query.noise);
}

}  // namespace cexnn::cuda
