// One query against every item, which memory bounds: 2 n d flops on n d numbers of 4, 2 or 1 bytes,
// read once. At 10 million rows of 256 halves that is 5.12 GB against 5.1 GFLOP: the time is the
// bytes over the bandwidth.
//
// As many blocks as fit on the device take tiles of items in turn. A warp has 8 loads of 16 bytes a
// lane in flight (4 KiB), the query stays in registers, and the sums of its rows are taken for all
// of them together. A score above the block's bar is one append to shared memory (topk.cuh).
#pragma once

#include "rows.cuh"
#include "topk.cuh"

namespace cexnn::cuda {

constexpr int kScanThreads = 256;
constexpr int kScanTile = 512;     // items between two looks at the buffer
constexpr int kLoadsInFlight = 8;  // of a lane

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

// What becomes of a dot product: scales[i] * dot + offset; scales may be null.
struct Adjustments {
  const float* scales = nullptr;
  Offsets offsets;

  __device__ float operator()(float dot, std::int64_t row, std::int64_t i) const {
    return (scales == nullptr ? dot : __ldg(scales + i) * dot) + offsets(row, i);
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

// The row of the group's, of kRows, whose sum sum_rows leaves in a lane; the lanes that share one
// differ in their last bits alone.
template <int kLanes, int kRows>
__device__ int row_of(int lane) {
  return lane / (kLanes / kRows);
}

// Sums v[r] over the group's lanes for all rows at once; the sum of row_of(lane) ends in v[0].
template <int kLanes, int kRows>
__device__ void sum_rows(float (&v)[kRows], int lane) {
  int n = kRows;
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) {
    if (n > 1) {
      n /= 2;
      const bool upper = (lane & offset) != 0;
#pragma unroll
      for (int r = 0; r < kRows / 2; ++r) {
        if (r >= n) break;
        const float kept = upper ? v[r + n] : v[r], other = upper ? v[r] : v[r + n];
        v[r] = kept + __shfl_xor_sync(0xFFFFFFFFU, other, offset);
      }
    } else {
      v[0] += __shfl_xor_sync(0xFFFFFFFFU, v[0], offset);
    }
  }
}

// After a block's threads have offered a tile of items: room for as many again.
__device__ inline void make_room(BlockTop& top, const Mask& mask) {
  __syncthreads();
  const bool full = top.full(kScanTile);
  __syncthreads();
  if (full) top.cut(mask);
}

// The block's best, for query blockIdx.y, beside those of the other blocks.
__device__ inline void write_best(BlockTop& top, const Mask& mask, int n_kept, Key* best) {
  top.cut(mask);
  for (int j = static_cast<int>(threadIdx.x); j < n_kept; j += kScanThreads)
    best[(std::int64_t{blockIdx.y} * n_kept + j) * gridDim.x + blockIdx.x] =
        j < top.count() ? top[j] : kNone;
}

// A query's best of a block's tiles: the j-th best of block b goes to best[j * gridDim.x + b] of
// the query blockIdx.y. kChunks chunks of a row fall to each of kLanes lanes.
template <typename T, int kLanes, int kChunks>
__global__ void __launch_bounds__(kScanThreads, 2)
    scan_kernel(Rows<T> items, Adjustments adjust, Queries queries, int n_kept, int capacity,
                Key* best) {
  constexpr int kRows = kLoadsInFlight / kChunks, kGroups = 32 / kLanes;
  constexpr int kItemsAWarp = kScanTile / (kScanThreads / 32);
  __shared__ BlockTop::Shared shared;
  BlockTop top(shared, dynamic_shared<Key>(), n_kept, capacity);
  const int warp = static_cast<int>(threadIdx.x) / 32,
            lane = static_cast<int>(threadIdx.x) % kLanes;
  const int group = static_cast<int>(threadIdx.x) % 32 / kLanes;
  const Mask mask = queries.mask(blockIdx.y);

  float query[kChunks][kChunk<T>];
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    const int t = lane + c * kLanes;
#pragma unroll
    for (int j = 0; j < kChunk<T>; ++j)
      query[c][j] = t < items.chunks ? queries.row(blockIdx.y)[t * kChunk<T> + j] : 0.0F;
  }

  for (std::int64_t tile = blockIdx.x; tile * kScanTile < items.n; tile += gridDim.x) {
    const std::int64_t begin = tile * kScanTile + warp * kItemsAWarp;
    const float bar = bar_of(top.kth());
    for (int step = 0; step < kItemsAWarp && begin + step < items.n; step += kGroups * kRows) {
      const std::int64_t first = begin + step + group * kRows;
      uint4 raw[kRows][kChunks];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const uint4* row = items.row(first + r < items.n ? first + r : items.n - 1);
#pragma unroll
        for (int c = 0; c < kChunks; ++c) {
          const int t = lane + c * kLanes;
          raw[r][c] = t < items.chunks ? load_once(row + t) : make_uint4(0, 0, 0, 0);
        }
      }
      float sums[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        sums[r] = 0.0F;
#pragma unroll
        for (int c = 0; c < kChunks; ++c) sums[r] = add_products<T>(raw[r][c], query[c], sums[r]);
      }
      sum_rows<kLanes, kRows>(sums, lane);
      const std::int64_t i = first + row_of<kLanes, kRows>(lane);
      if (lane % (kLanes / kRows) == 0 && i < items.n) {
        const float score = adjust(sums[0], queries.first + blockIdx.y, i);
        if (score > bar) top.append(key_of(score, static_cast<std::int32_t>(i)));
      }
    }
    make_room(top, mask);
  }
  write_best(top, mask, n_kept, best);
}

// The same for rows of any length, the query read again with every item.
template <typename T>
__global__ void __launch_bounds__(kScanThreads)
    scan_long_kernel(Rows<T> items, Adjustments adjust, Queries queries, int n_kept, int capacity,
                     Key* best) {
  __shared__ BlockTop::Shared shared;
  BlockTop top(shared, dynamic_shared<Key>(), n_kept, capacity);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const Mask mask = queries.mask(blockIdx.y);
  for (std::int64_t tile = blockIdx.x; tile * kScanTile < items.n; tile += gridDim.x) {
    const std::int64_t end = min(items.n, (tile + 1) * kScanTile);
    const float bar = bar_of(top.kth());
    for (std::int64_t i = tile * kScanTile + warp; i < end; i += kScanThreads / 32) {
      const float sum = dot<T>(items.row(i), queries.row(blockIdx.y), items.chunks, 32, lane);
      const float score = adjust(sum, queries.first + blockIdx.y, i);
      if (lane == 0 && score > bar) top.append(key_of(score, static_cast<std::int32_t>(i)));
    }
    make_room(top, mask);
  }
  write_best(top, mask, n_kept, best);
}

template <typename T>
using ScanKernel = void (*)(Rows<T>, Adjustments, Queries, int, int, Key*);

// Up to 32 registers of query a lane.
template <typename T>
ScanKernel<T> scan_kernel_for(int chunks) {
  constexpr int kMost = 32 / kChunk<T>;
  if (lanes_of(chunks) == 8) {
    if (chunks <= 8) return scan_kernel<T, 8, 1>;
    if (chunks <= 16) return scan_kernel<T, 8, 2>;
    if constexpr (kMost >= 4) return scan_kernel<T, 8, 4>;
  }
  if (chunks <= 32) return scan_kernel<T, 32, 1>;
  if (chunks <= 64) return scan_kernel<T, 32, 2>;
  if constexpr (kMost >= 4)
    if (chunks <= 128) return scan_kernel<T, 32, 4>;
  if constexpr (kMost >= 8)
    if (chunks <= 256) return scan_kernel<T, 32, 8>;
  return scan_long_kernel<T>;
}

}  // namespace cexnn::cuda
