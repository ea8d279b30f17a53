// One query against every item, which memory bounds: 2 n d flops on n d numbers of 4, 2 or 1 bytes,
// read once. At 10 million rows of 256 halves that is 5.12 GB against 5.1 GFLOP: the time is the
// bytes over the bandwidth.
//
// As many blocks as fit on the device take tiles of items in turn. A warp has 8 loads of 16 bytes a
// lane in flight (4 KiB), the query stays in registers, and the sums of its rows are taken for all
// of them together. A score above the block's bar is one append to shared memory (topk.cuh). The
// block that is done last makes the answer of what all of them kept (rank.cuh): one launch in all.
#pragma once

#include "rank.cuh"
#include "rows.cuh"
#include "topk.cuh"

namespace cexnn::cuda {

constexpr int kScanThreads = 256;
constexpr int kScanTile = 512;     // items between two looks at the buffer
constexpr int kLoadsInFlight = 8;  // of a lane

// What becomes of a dot product: scales[i] * dot + offset; scales may be null.
struct Adjustments {
  const float* scales = nullptr;
  Offsets offsets;

  __device__ float operator()(float dot, std::int64_t row, std::int64_t i) const {
    return (scales == nullptr ? dot : __ldg(scales + i) * dot) + offsets(row, i);
  }
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

// The query's numbers that fall to a lane: those of chunks lane, lane + kLanes, ...
template <typename T, int kLanes, int kChunks>
struct QueryChunks {
  float numbers[kChunks][kChunk<T>];

  __device__ QueryChunks(const float* query, int n_chunks, int lane) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int t = lane + c * kLanes;
#pragma unroll
      for (int j = 0; j < kChunk<T>; ++j)
        numbers[c][j] = t < n_chunks ? query[t * kChunk<T> + j] : 0.0F;
    }
  }
};

// Offers kRows items, from `first` on, of a group of kLanes lanes, for row `answer`; load(r, t) is
// chunk t of the r-th of them, or of any other where that is beyond the last.
template <typename T, int kLanes, int kChunks, int kRows, typename Load>
__device__ void offer_rows(const Rows<T>& items, const QueryChunks<T, kLanes, kChunks>& query,
                           const Adjustments& adjust, std::int64_t answer, std::int64_t first,
                           int lane, float bar, BlockTop& top, const Load& load) {
  uint4 raw[kRows][kChunks];
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int t = lane + c * kLanes;
      raw[r][c] = t < items.chunks ? load(r, t) : make_uint4(0, 0, 0, 0);
    }
  float sums[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    sums[r] = 0.0F;
#pragma unroll
    for (int c = 0; c < kChunks; ++c)
      sums[r] = add_products<T>(raw[r][c], query.numbers[c], sums[r]);
  }
  sum_rows<kLanes, kRows>(sums, lane);
  const std::int64_t i = first + row_of<kLanes, kRows>(lane);
  if (lane % (kLanes / kRows) == 0 && i < items.n) {
    const float score = adjust(sums[0], answer, i);
    if (score > bar) top.append(key_of(score, static_cast<std::int32_t>(i)));
  }
}

// The best of query blockIdx.y. kChunks chunks of a row fall to each of kLanes lanes.
template <typename T, int kLanes, int kChunks>
__global__ void __launch_bounds__(kScanThreads, 2)
    scan_kernel(Rows<T> items, Adjustments adjust, Queries queries, Selection select) {
  constexpr int kRows = kLoadsInFlight / kChunks, kGroups = 32 / kLanes;
  constexpr int kItemsAWarp = kScanTile / (kScanThreads / 32);
  __shared__ BlockTop::Shared shared;
  BlockTop top(shared, dynamic_shared<Key>(), select.n_kept, select.capacity);
  const int warp = static_cast<int>(threadIdx.x) / 32,
            lane = static_cast<int>(threadIdx.x) % kLanes;
  const int group = static_cast<int>(threadIdx.x) % 32 / kLanes;
  const Mask mask = queries.mask(blockIdx.y);
  const QueryChunks<T, kLanes, kChunks> query(queries.row(blockIdx.y), items.chunks, lane);
  for (std::int64_t tile = blockIdx.x; tile * kScanTile < items.n; tile += gridDim.x) {
    const std::int64_t begin = tile * kScanTile + warp * kItemsAWarp;
    const float bar = bar_of(top.kth());
    for (int step = 0; step < kItemsAWarp && begin + step < items.n; step += kGroups * kRows) {
      const std::int64_t first = begin + step + group * kRows;
      offer_rows<T, kLanes, kChunks, kRows>(
          items, query, adjust, queries.first + blockIdx.y, first, lane, bar, top,
          [&](int r, int t) {
            return load_once(items.row(first + r < items.n ? first + r : items.n - 1) + t);
          });
    }
    make_room(top, mask);
  }
  finish_scan(top, shared, select, queries);
}

// The same for rows of any length, the query read again with every item.
template <typename T>
__global__ void __launch_bounds__(kScanThreads, 2)
    scan_long_kernel(Rows<T> items, Adjustments adjust, Queries queries, Selection select) {
  __shared__ BlockTop::Shared shared;
  BlockTop top(shared, dynamic_shared<Key>(), select.n_kept, select.capacity);
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
  finish_scan(top, shared, select, queries);
}

template <typename T>
using ScanKernel = void (*)(Rows<T>, Adjustments, Queries, Selection);

// The kernel for rows of so many chunks, up to 32 registers of query a lane: make(kLanes, kChunks)
// as compile-time numbers, or `otherwise` for longer rows.
template <typename T, typename Make, typename Made>
Made for_chunks(int chunks, const Make& make, const Made& otherwise) {
  constexpr int kMost = 32 / kChunk<T>;
  using Eight = std::integral_constant<int, 8>;
  using All = std::integral_constant<int, 32>;
  using One = std::integral_constant<int, 1>;
  using Two = std::integral_constant<int, 2>;
  using Four = std::integral_constant<int, 4>;
  if (lanes_of(chunks) == 8) {
    if (chunks <= 8) return make(Eight{}, One{});
    if (chunks <= 16) return make(Eight{}, Two{});
    if constexpr (kMost >= 4) return make(Eight{}, Four{});
  }
  if (chunks <= 32) return make(All{}, One{});
  if (chunks <= 64) return make(All{}, Two{});
  if constexpr (kMost >= 4)
    if (chunks <= 128) return make(All{}, Four{});
  if constexpr (kMost >= 8)
    if (chunks <= 256) return make(All{}, Eight{});
  return otherwise;
}

template <typename T>
ScanKernel<T> scan_kernel_for(int chunks) {
  return for_chunks<T>(
      chunks,
      [](auto lanes, auto a_lane) -> ScanKernel<T> {
        return scan_kernel<T, decltype(lanes)::value, decltype(a_lane)::value>;
      },
      ScanKernel<T>(scan_long_kernel<T>));
}

}  // namespace cexnn::cuda
