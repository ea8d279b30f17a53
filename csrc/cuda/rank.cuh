// From candidates to answers: the best of all blocks, scored again by the factors themselves.
//
// Scores of compact items, and those of the matrix units, are rough. More candidates than wanted
// are kept, each is scored again as one query's scan of the factors scores it, and the answer is
// theirs if it is sure that nothing left out belongs there: what was left out has a rough score of
// at most the least of theirs, and an error that is taken to be at most twice the largest of
// theirs, in proportion to the items' largest factors. Otherwise the query is reported as unsure.
#pragma once

#include "last_block.cuh"
#include "rows.cuh"
#include "topk.cuh"

namespace cexnn::cuda {

constexpr int kRankThreads = 512;

// Of the items, null where all are zero: what rows of answers with even and with odd numbers add to
// a dot product. Minus infinity excludes an item.
struct Offsets {
  const float* even = nullptr;
  const float* odd = nullptr;

  __device__ float operator()(std::int64_t row, std::int64_t i) const {
    const float* offsets = (row & 1) == 0 ? even : odd;
    return offsets == nullptr ? 0.0F : __ldg(offsets + i);
  }
};

// Queries, zero from their last factor to the stride, and the ids that each must not return. Each
// is a row of answers; where they are `paired`, each is two of them, one after the other.
struct Queries {
  const float* data = nullptr;
  std::int64_t stride = 0;
  const Mask* masks = nullptr;
  int paired = 0;
  std::int64_t first = 0;  // row, of which row 0 is counted here

  __host__ __device__ std::int64_t query(std::int64_t row) const { return (first + row) >> paired; }
  __host__ __device__ const float* row(std::int64_t row) const {
    return data + query(row) * stride;
  }
  __device__ Mask mask(std::int64_t row) const { return masks[query(row)]; }
};

// By what candidates are scored again; `sizes` may be null where no error is in proportion to one.
struct Exact {
  Rows<float> items;
  Offsets offsets;
  const float* sizes = nullptr;         // of each item: its largest factor, or in proportion to it
  const float* largest_size = nullptr;  // of all
};

// (n_queries, k) each, but `unsure` (n_queries,).
struct Answers {
  std::int32_t* ids = nullptr;
  float* approx = nullptr;
  int* unsure = nullptr;
  int k = 0;

  __device__ void write(std::int64_t q, int j, Key key) const {
    ids[q * k + j] = id_of(key);
    approx[q * k + j] = key == kNone ? __uint_as_float(0x7FC00000U) : score_of(key);
  }
};

// Scores n keys of a row again, in place: a group of lanes to each. Leaves the largest error and
// the largest size among them in error[0] and error[1]; NaN in an error is larger than any number.
__device__ inline void score_again(Key* keys, int n, const Exact& exact, const Queries& queries,
                                   std::int64_t row, float* error) {
  const int lanes = lanes_of(exact.items.chunks), groups = 32 / lanes;
  const int warp = static_cast<int>(threadIdx.x) / 32, n_warps = static_cast<int>(blockDim.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  const int group = static_cast<int>(threadIdx.x) % 32 / lanes;
  int* bits = reinterpret_cast<int*>(error);  // of numbers not negative: they order alike
  for (int c = warp * groups; c < n; c += n_warps * groups) {
    const Key key = c + group < n ? keys[c + group] : kNone;
    const std::int32_t id = key == kNone ? 0 : id_of(key);
    const float sum =
        dot<float>(exact.items.row(id), queries.row(row), exact.items.chunks, lanes, lane);
    __syncwarp();  // all lanes have read their keys
    if (key == kNone || lane != 0) continue;
    const float score = sum + exact.offsets(queries.first + row, id);
    atomicMax(&bits[0], __float_as_int(fabsf(score - score_of(key))));
    if (exact.sizes != nullptr) atomicMax(&bits[1], __float_as_int(exact.sizes[id]));
    keys[c + group] = score > kMinusInfinity ? key_of(score, id) : kNone;
  }
}

// Writes the answer of row q from the sorted rough candidates in `top`, n_kept of them if there
// were as many.
__device__ inline void answer_from_rough(BlockTop& top, int n_kept, const Exact& exact,
                                         const Queries& queries, std::int64_t q, Answers out) {
  __shared__ float error[2];
  Key* keys = top.keys();
  const int n = top.count();
  const bool all = n < n_kept || keys[n_kept - 1] == kNone;  // every item left was a candidate
  const float bar = all ? 0.0F : score_of(keys[n_kept - 1]);
  if (threadIdx.x < 2) error[threadIdx.x] = 0.0F;
  __syncthreads();
  score_again(keys, n, exact, queries, q, error);
  int size = 2;
  while (size < n) size *= 2;
  for (int i = n + static_cast<int>(threadIdx.x); i < size; i += static_cast<int>(blockDim.x))
    keys[i] = kNone;
  __syncthreads();
  sort_keys(keys, size);
  for (int j = static_cast<int>(threadIdx.x); j < out.k; j += static_cast<int>(blockDim.x))
    out.write(q, j, j < n ? keys[j] : kNone);
  if (threadIdx.x == 0) {
    float most = error[0];
    if (exact.sizes != nullptr && error[1] > 0.0F) most *= *exact.largest_size / error[1];
    const bool sure = all || bar_of(keys[out.k - 1]) >= bar + 2.0F * most;
    out.unsure[q] = sure ? 0 : 1;
  }
}

// What the blocks of a scan keep of each query, and what becomes of it.
struct Selection {
  Key* best = nullptr;  // (n_rows, n_kept, n_blocks): the j-th best of all blocks side by side
  int n_kept = 0;
  int capacity = 0;    // keys that there is room for in a block's shared memory
  bool rough = false;  // whether they are to be scored again
  Exact exact;
  Answers out;
  int* arrived = nullptr;  // (n_rows,), for is_last_block
};

// The best of what n_blocks found of row q. It stops where none of a row is above the bar: they
// fall.
__device__ inline void merge(BlockTop& top, int n_blocks, const Selection& select,
                             const Queries& queries, std::int64_t q) {
  const int n_threads = static_cast<int>(blockDim.x);
  for (int j = 0; j < select.n_kept; ++j) {
    const Key* row = select.best + (q * select.n_kept + j) * n_blocks;
    int n_before = top.count();
    bool any = false;
    for (int b = 0; b < n_blocks; b += n_threads) {
      const Key kth = top.kth();
      const int mine = b + static_cast<int>(threadIdx.x);
      const Key key = mine < n_blocks ? row[mine] : kNone;
      __syncthreads();
      if (key > kth) top.append(key);
      __syncthreads();
      any = any || top.count() > n_before;
      const bool cut = top.full(n_threads) || (kth == kNone && top.count() >= select.n_kept);
      __syncthreads();
      if (cut) top.cut({});
      n_before = top.count();
    }
    if (!any) break;
  }
  __syncthreads();
  top.cut({});
  if (select.rough) {
    answer_from_rough(top, select.n_kept, select.exact, queries, q, select.out);
    return;
  }
  for (int j = static_cast<int>(threadIdx.x); j < select.out.k; j += n_threads)
    select.out.write(q, j, j < top.count() ? top[j] : kNone);
  if (threadIdx.x == 0) select.out.unsure[q] = 0;
}

// The block's best, for row blockIdx.y, beside those of the other blocks; the last block to come
// here answers.
__device__ inline void finish_scan(BlockTop& top, BlockTop::Shared& shared, const Selection& select,
                                   const Queries& queries) {
  const std::int64_t q = blockIdx.y;
  const auto n_blocks = static_cast<int>(gridDim.x);
  top.cut(queries.mask(q));
  for (int j = static_cast<int>(threadIdx.x); j < select.n_kept; j += static_cast<int>(blockDim.x))
    select.best[(q * select.n_kept + j) * n_blocks + blockIdx.x] = j < top.count() ? top[j] : kNone;
  if (!is_last_block(select.arrived + q, n_blocks)) return;
  BlockTop all(shared, top.keys(), select.n_kept, select.capacity);
  merge(all, n_blocks, select, queries, q);
}

// -- any number of answers --------------------------------------------------------------------

// Every item's key of one query, kNone up to n_keys: 8 bytes written for each item's row read.
__global__ void all_keys_kernel(Rows<float> items, Offsets offsets, Queries queries,
                                std::int64_t row, std::int64_t n_keys, Key* keys) {
  const int lanes = lanes_of(items.chunks);
  const std::int64_t thread = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const std::int64_t i = thread / lanes;
  const int lane = static_cast<int>(thread % lanes);
  const float sum =
      dot<float>(items.row(i < items.n ? i : 0), queries.row(row), items.chunks, lanes, lane);
  if (lane != 0 || i >= n_keys) return;
  const auto id = static_cast<std::int32_t>(i);
  const float score = i >= items.n ? kMinusInfinity : sum + offsets(queries.first + row, i);
  keys[i] = score > kMinusInfinity && !queries.mask(row).contains(id) ? key_of(score, id) : kNone;
}

__global__ void write_sorted_kernel(const Key* keys, std::int64_t n_keys, std::int64_t q,
                                    Answers out) {
  const std::int64_t j = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (j < out.k) out.write(q, static_cast<int>(j), j < n_keys ? keys[j] : kNone);
  if (j == 0) out.unsure[q] = 0;
}

}  // namespace cexnn::cuda
