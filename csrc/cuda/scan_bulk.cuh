// The same scan where the device copies whole ranges of rows to shared memory by itself (compute
// capability 9.0 on): one thread asks for up to 32 KiB at a time, several such stages are under way
// or being read, and no register waits for memory.
//
// A stage holds the rows that the block's warps multiply in one step. Its barrier `full` says that
// the rows are there, `empty` that all warps have read them. Stages are filled in turn; the n-th
// use of a stage is the n-th phase of its barriers.
#pragma once

#include "memory.cuh"
#include "scan.cuh"

namespace cexnn::cuda {

constexpr int kMostStages = 8;

// A block's way over its tiles, a stage's rows at a time.
template <int kItems>
struct StageCursor {
  std::int64_t tile;
  int step = 0;

  __device__ std::int64_t begin() const { return tile * kScanTile + std::int64_t{step} * kItems; }
  __device__ bool ends_tile() const { return step == kScanTile / kItems - 1; }
  __device__ void next() {
    if (ends_tile()) {
      step = 0;
      tile += gridDim.x;
    } else {
      ++step;
    }
  }
};

template <typename T, int kLanes, int kChunks>
constexpr int kItemsAStage = kScanThreads / kLanes * (kLoadsInFlight / kChunks);

// As scan_kernel; n_stages, 2 at least, lie in the dynamic shared memory behind the keys.
template <typename T, int kLanes, int kChunks>
__global__ void __launch_bounds__(kScanThreads, 2)
    scan_bulk_kernel(Rows<T> items, Adjustments adjust, Queries queries, Selection select,
                     int n_stages) {
  constexpr int kRows = kLoadsInFlight / kChunks, kGroups = 32 / kLanes;
  constexpr int kItems = kItemsAStage<T, kLanes, kChunks>, kWarps = kScanThreads / 32;
  static_assert(kScanTile % kItems == 0);
  __shared__ BlockTop::Shared shared;
  __shared__ CopyBarrier full[kMostStages];
  __shared__ CopyBarrier empty[kMostStages];
  BlockTop top(shared, dynamic_shared<Key>(), select.n_kept, select.capacity);
  uint4* const stages = reinterpret_cast<uint4*>(top.keys() + select.capacity);
  const int stage_size = kItems * items.chunks;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int in_stage = (warp * kGroups + lane / kLanes) * kRows;  // the group's first row
  const bool leads = threadIdx.x == 0;
  if (leads) {
    for (int s = 0; s < n_stages; ++s) {
      start_barrier(&full[s], 1);
      start_barrier(&empty[s], kWarps);
    }
    show_barriers();
  }
  __syncthreads();

  using Cursor = StageCursor<kItems>;
  Cursor fetched{blockIdx.x};
  int fetched_to = 0, n_fetched = 0;  // the stage, and how often all of them were filled before
  const auto fetch = [&] {            // by the leading thread
    const std::int64_t begin = fetched.begin();
    if (begin >= items.n) return;
    if (n_fetched > 0) wait_for_phase(&empty[fetched_to], (n_fetched - 1) % 2);
    const auto bytes = static_cast<std::uint32_t>(min(items.n - begin, std::int64_t{kItems})) *
                       static_cast<std::uint32_t>(items.chunks) * 16U;
    arrive_expecting(&full[fetched_to], bytes);
    copy_bulk(stages + fetched_to * stage_size, items.row(begin), bytes, &full[fetched_to]);
    fetched.next();
    if (++fetched_to == n_stages) {
      fetched_to = 0;
      ++n_fetched;
    }
  };
  for (int s = 0; leads && s < n_stages - 1; ++s) fetch();
  wait_for_grid_before();  // items are there before the query is
  const Mask mask = queries.mask(blockIdx.y);
  const QueryChunks<T, kLanes, kChunks> query(queries.row(blockIdx.y), items.chunks, lane % kLanes);

  int stage = 0, n_read = 0;
  float bar = kMinusInfinity;
  for (Cursor at{blockIdx.x}; at.begin() < items.n; at.next()) {
    if (at.step == 0) bar = bar_of(top.kth());
    if (leads) fetch();  // into the stage that was read last, while this one is read
    __syncwarp();
    wait_for_phase(&full[stage], n_read % 2);
    const std::int64_t begin = at.begin(), first = begin + in_stage;
    const auto last = static_cast<int>(min(items.n - begin, std::int64_t{kItems})) - 1;
    const uint4* rows = stages + stage * stage_size;
    offer_rows<T, kLanes, kChunks, kRows>(
        items, query, adjust, queries.first + blockIdx.y, first, lane % kLanes, bar, top,
        [&](int r, int t) { return rows[min(in_stage + r, last) * items.chunks + t]; });
    __syncwarp();
    if (lane == 0) arrive(&empty[stage]);
    if (++stage == n_stages) {
      stage = 0;
      ++n_read;
    }
    if (at.ends_tile()) make_room(top, mask);
  }
  __syncthreads();
  finish_scan(top, shared, select, queries);
}

template <typename T>
struct BulkScan {
  void (*kernel)(Rows<T>, Adjustments, Queries, Selection, int) = nullptr;
  int items_a_stage = 0;
};

// For rows of so many chunks; no kernel for those that are too long for it.
template <typename T>
BulkScan<T> bulk_scan_for(int chunks) {
  return for_chunks<T>(
      chunks,
      [](auto lanes, auto a_lane) -> BulkScan<T> {
        constexpr int kLanes = decltype(lanes)::value, kChunks = decltype(a_lane)::value;
        return {scan_bulk_kernel<T, kLanes, kChunks>, kItemsAStage<T, kLanes, kChunks>};
      },
      BulkScan<T>{});
}

}  // namespace cexnn::cuda
