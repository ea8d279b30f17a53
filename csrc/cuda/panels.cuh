// Many queries against every item, on the matrix units: 2 n m d flops on n d numbers, read once for
// up to 256 queries. Scores stay in registers; those above their query's bar are appended to the
// query's list. At 1 million rows of 128 floats and 256 queries: 65.5 GFLOP on 0.51 GB.
//
// All numbers become halves on their way to the matrix units, which multiply these at twice the
// rate of TF32. Both have 10 bits after the point; floats are brought near a half's largest number
// by a power of two, so that what is 2^28 times smaller has all its bits still.
//
// A block keeps its queries in shared memory and lets items flow past them, 128 bytes of 128 rows
// at a time, four such slices under way. Its eight warps hold 64 items x 8 kColumns queries each:
// every 16 bytes that a lane reads from shared memory of a query are its part of two
// multiplications. Units of 16 bytes are swizzled by their row, so that such reads meet all banks.
// What is to be appended waits in shared memory until there is enough for all threads: nobody waits
// for one count in device memory after another.
//
// Bars are those of the items before: the items are taken in a few ranges, each a multiple of all
// before it, and between two ranges every list is cut to its best.
#pragma once

#include "memory.cuh"
#include "panel_numbers.cuh"
#include "rank.cuh"
#include "rows.cuh"
#include "scan.cuh"
#include "topk.cuh"

namespace cexnn::cuda {

constexpr int kPanelThreads = 256;
constexpr int kPanelItems = 128;  // of a tile
constexpr int kSlices = 4;        // under way
constexpr int kFoundRoom = 256;   // of candidates in shared memory, for 32 queries

// What a block found that lists are to have. Full, it takes no more: what is added then goes to its
// list at once.
template <int kRoom>
class Found {
 public:
  struct Shared {
    Key keys[kRoom];
    std::uint16_t queries[kRoom];
    int count;
  };

  __device__ Found(Shared& shared, const Lists& lists, std::int64_t first_query)
      : shared_(shared), lists_(lists), first_query_(first_query) {}

  __device__ void clear() const {  // by one thread
    shared_.count = 0;
  }
  __device__ void add(int query, Key key) const {
    const int at = atomicAdd(&shared_.count, 1);
    if (at < kRoom) {
      shared_.keys[at] = key;
      shared_.queries[at] = static_cast<std::uint16_t>(query);
    } else {
      append(query, key);
    }
  }
  // Every thread of the block calls it: hands over what there is, if it is much or the last.
  __device__ void hand_over(bool last) const {
    __syncthreads();
    const int n = min(shared_.count, kRoom);
    if (n < kRoom / 2 && !last) return;  // nobody adds before the next barrier
    for (int i = static_cast<int>(threadIdx.x); i < n; i += kPanelThreads)
      append(shared_.queries[i], shared_.keys[i]);
    __syncthreads();
    if (threadIdx.x == 0) clear();
  }

 private:
  __device__ void append(int query, Key key) const {
    const std::int64_t q = first_query_ + query;
    const int at = atomicAdd(&lists_.counts[q], 1);
    if (at < kListRoom) lists_.keys[q * kListRoom + at] = key;
  }

  Shared& shared_;
  const Lists& lists_;
  std::int64_t first_query_;
};

// numbers[e], without an array in memory: by halving.
template <int kCount>
__device__ float pick(const float (&numbers)[kCount], int e) {
  if constexpr (kCount == 1) {
    return numbers[0];
  } else {
    float half[kCount / 2];
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i)
      half[i] = (e & 1) != 0 ? numbers[2 * i + 1] : numbers[2 * i];
    return pick(half, e / 2);
  }
}

// The items from `begin` to `end` against the block's 32 kColumns queries. Of the first range,
// which the list has room for, every item's key is the list's, at its place.
template <typename T, int kColumns>
__global__ void __launch_bounds__(kPanelThreads, 1)
    panel_kernel(Rows<T> items, std::int64_t begin, std::int64_t end, Adjustments adjust,
                 std::int64_t n_queries, PackedQueries packed, Lists lists) {
  using Numbers = MatrixNumbers<T>;
  using Hits = Found<kFoundRoom * kColumns>;
  constexpr int kQueries = 32 * kColumns, kSliceSize = kPanelItems * kSliceUnits;
  constexpr bool kHalves = !std::is_same_v<T, float>;
  __shared__ typename Hits::Shared found;
  __shared__ float bars[kQueries];
  __shared__ float scales[kQueries];
  uint4* const panel = dynamic_shared<uint4>();
  uint4* const slices = panel + kQueries * packed.units_a_row;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int row = lane / 4, column = lane % 4;  // of a fragment
  const int first_item = warp / 4 * 64, first_query = warp % 4 * 8 * kColumns;
  const std::int64_t panel_begin = std::int64_t{blockIdx.y} * kQueries;
  const bool first = begin == 0;
  const float item_scale = *packed.item_scale;
  const Hits hits(found, lists, panel_begin);
  if (thread == 0) hits.clear();

  for (int q = thread; q < kQueries; q += kPanelThreads) {
    const bool inside = panel_begin + q < n_queries;
    bars[q] = inside ? lists.bars[panel_begin + q] : -kMinusInfinity;
    scales[q] = inside ? packed.scales[panel_begin + q] : 0.0F;
  }
  for (int u = thread; u < kQueries * packed.units_a_row; u += kPanelThreads) {
    const int q = u / packed.units_a_row, unit = u % packed.units_a_row;
    const bool inside = panel_begin + q < n_queries;
    copy_async(panel + q * packed.units_a_row + (unit ^ (q & 1) * 4),
               packed.units + (inside ? panel_begin * packed.units_a_row + u : 0), inside);
  }

  const int n_slices = (items.chunks + kSliceUnits - 1) / kSliceUnits;
  const std::int64_t n_tiles = (end - begin + kPanelItems - 1) / kPanelItems;
  std::int64_t fetched_tile = blockIdx.x;
  int fetched_slice = 0, fetched_to = 0;
  const int fetched_row = thread / kSliceUnits, fetched_unit = thread % kSliceUnits;
  uint4* const fetched_at =
      slices + fetched_row * kSliceUnits + (fetched_unit ^ Numbers::swizzle(fetched_row));
  const auto fetch = [&] {
    if (fetched_tile < n_tiles) {
      const std::int64_t i = begin + fetched_tile * kPanelItems + fetched_row;
      const int chunk = fetched_slice * kSliceUnits + fetched_unit;
#pragma unroll
      for (int r = 0; r < kPanelItems; r += kPanelThreads / kSliceUnits) {  // swizzled alike
        const bool inside = i + r < end && chunk < items.chunks;
        copy_async(fetched_at + fetched_to * kSliceSize + r * kSliceUnits,
                   inside ? items.row(i + r) + chunk : items.row(0), inside);
      }
      if (++fetched_slice == n_slices) {
        fetched_slice = 0;
        fetched_tile += gridDim.x;
      }
      fetched_to = (fetched_to + 1) % kSlices;
    }
    commit_copies();
  };

  for (int s = 0; s < kSlices - 1; ++s) fetch();
  int slice_at = 0;
  for (std::int64_t tile = blockIdx.x; tile < n_tiles; tile += gridDim.x) {
    float sums[4][kColumns][4] = {};
    for (int slice = 0; slice < n_slices; ++slice) {
      wait_copies<kSlices - 2>();
      __syncthreads();  // the slice is there, and nobody reads the one that is fetched into
      fetch();
      const uint4* mine = slices + slice_at * kSliceSize + (first_item + row) * kSliceUnits;
      slice_at = (slice_at + 1) % kSlices;
#pragma unroll
      for (int step = 0; step < Numbers::kSteps; ++step) {
        uint4 b[kColumns];
        const int unit = ((slice * Numbers::kSteps + step) * 4 + column) ^ (row & 1) * 4;
#pragma unroll
        for (int n = 0; n < kColumns; ++n)
          b[n] = panel[(first_query + 8 * n + row) * packed.units_a_row + unit];
#pragma unroll
        for (int m = 0; m < 4; ++m) {
          const uint4* low = mine + 16 * m * kSliceUnits;
          const int swizzled = Numbers::swizzle(row);
          const uint4 a = Numbers::load(low, step, column, swizzled, item_scale);
          const uint4 c = Numbers::load(low + 8 * kSliceUnits, step, column, swizzled, item_scale);
#pragma unroll
          for (int n = 0; n < kColumns; ++n) {
            mma_f16(sums[m][n], a.x, c.x, a.y, c.y, b[n].x, b[n].y);
            mma_f16(sums[m][n], a.z, c.z, a.w, c.w, b[n].z, b[n].w);
          }
        }
      }
    }
    // Rows `row` and `row + 8` of each 16: four at a time, so that a query's bar and scale are read
    // for all of them. A panel begins with an even row of answers.
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      std::int64_t ids[4];
      float item_scales[4], offsets[4][2];
      std::uint32_t wanted[4];
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        const std::int64_t i = begin + tile * kPanelItems + first_item + 8 * (4 * part + m) + row;
        ids[m] = i;
        item_scales[m] = i < end && adjust.scales != nullptr ? __ldg(adjust.scales + i) : 1.0F;
#pragma unroll
        for (int c = 0; c < 2; ++c) offsets[m][c] = i < end ? adjust.offsets(c, i) : kMinusInfinity;
        wanted[m] = 0;
      }
      const auto score = [&](int m, int e, float sum, float scale) {
        return kHalves ? fmaf(sum * scale, item_scales[m], offsets[m][e % 2])
                       : fmaf(sum, scale, offsets[m][e % 2]);
      };
      const auto query_of = [&](int e) { return first_query + 8 * (e / 2) + 2 * column + e % 2; };
      const auto sum_of = [&](int m, int e) {
        return sums[2 * part + m / 2][e / 2][m % 2 * 2 + e % 2];
      };
#pragma unroll
      for (int e = 0; e < 2 * kColumns; ++e) {
        const float bar = bars[query_of(e)], scale = scales[query_of(e)];
#pragma unroll
        for (int m = 0; m < 4; ++m)
          if (score(m, e, sum_of(m, e), scale) > bar) wanted[m] |= 1U << e;
      }
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        if (first) wanted[m] = ids[m] < end ? (2U << (2 * kColumns - 1)) - 1 : 0;
        if (wanted[m] == 0) continue;
        float mine[2 * kColumns];
#pragma unroll
        for (int e = 0; e < 2 * kColumns; ++e) mine[e] = sum_of(m, e);
#pragma unroll 1
        for (std::uint32_t left = wanted[m]; left != 0; left &= left - 1) {
          const int e = __ffs(static_cast<int>(left)) - 1, q = query_of(e);
          const float offset = e % 2 == 0 ? offsets[m][0] : offsets[m][1];
          const float sum = pick(mine, e) * scales[q];
          const float found_score = fmaf(sum, kHalves ? item_scales[m] : 1.0F, offset);
          const Key key = key_of(found_score, static_cast<std::int32_t>(ids[m]));
          if (!first) {
            hits.add(q, key);
          } else if (panel_begin + q < n_queries) {
            lists.keys[(panel_begin + q) * kListRoom + ids[m]] =
                found_score > bars[q] ? key : kNone;
          }
        }
      }
    }
    hits.hand_over(tile + gridDim.x >= n_tiles);
  }
  wait_copies<0>();
}

// Cuts the list of query blockIdx.x to its best and raises its bar; after the last range, answers.
__global__ void __launch_bounds__(kRankThreads)
    cut_lists_kernel(Lists lists, int n_kept, bool last, Exact exact, Queries queries,
                     Answers out) {
  __shared__ BlockTop::Shared shared;
  const std::int64_t q = blockIdx.x;
  const int n = lists.counts[q];
  const bool lost = n > kListRoom;
  BlockTop top(shared, dynamic_shared<Key>(), n_kept, kListRoom);
  top.load(lists.keys + q * kListRoom, lost ? kListRoom : n);
  top.cut(queries.mask(q));
  if (last) {
    answer_from_rough(top, n_kept, exact, queries, q, out);
    if (threadIdx.x == 0 && (lost || lists.overflown[q] != 0)) out.unsure[q] = 1;
    return;
  }
  for (int j = static_cast<int>(threadIdx.x); j < top.count(); j += kRankThreads)
    lists.keys[q * kListRoom + j] = top[j];
  if (threadIdx.x == 0) {
    lists.counts[q] = top.count();
    lists.bars[q] = bar_of(top.kth());
    if (lost) lists.overflown[q] = 1;
  }
}

}  // namespace cexnn::cuda
