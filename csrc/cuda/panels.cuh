// Many queries against every item, on the matrix units: 2 n m d flops on n d numbers, read once for
// up to 256 queries. Scores stay in registers; those above their query's bar are appended to the
// query's list. At 1 million rows of 128 floats and 256 queries: 65.5 GFLOP in TF32 on 0.51 GB.
//
// A block keeps its queries in shared memory and lets items flow past them, 128 bytes of 128 rows
// at a time, four such slices under way. Its eight warps hold 64 items x 8 kColumns queries each:
// every 16 bytes that a lane reads from shared memory, of an item or a query, are its part of two
// multiplications. Units of 16 bytes are swizzled by their row, so that such reads meet all banks.
//
// Bars are those of the items before: the items are taken in a few ranges, each a multiple of all
// before it, and between two ranges every list is cut to its best.
#pragma once

#include "rank.cuh"
#include "rows.cuh"
#include "scan.cuh"
#include "topk.cuh"

namespace cexnn::cuda {

constexpr int kPanelThreads = 256;
constexpr int kPanelItems = 128;  // of a tile
constexpr int kSliceUnits = 8;    // of 16 bytes: what a slice has of a row
constexpr int kSlices = 4;        // under way
constexpr int kListRoom = 8192;   // candidates of a query

// What the matrix units take: 64 bytes of a query's numbers meet those of an item, in two steps.
template <typename T>
struct MatrixNumbers {              // halves
  static constexpr int kSteps = 2;  // of 64 query bytes in a slice
  __device__ static int swizzle(int row) { return (row & 1) * 4; }
  __device__ static uint4 load(const uint4* row, int step, int lane, int swizzled) {
    return row[(4 * step + lane) ^ swizzled];
  }
  __device__ static void multiply(float (&sums)[4], std::uint32_t a0, std::uint32_t a1,
                                  std::uint32_t a2, std::uint32_t a3, std::uint32_t b0,
                                  std::uint32_t b1) {
    mma_f16(sums, a0, a1, a2, a3, b0, b1);
  }
};

template <>
struct MatrixNumbers<float> {
  static constexpr int kSteps = 2;
  __device__ static int swizzle(int row) { return (row & 1) * 4; }
  __device__ static uint4 load(const uint4* row, int step, int lane, int swizzled) {
    const uint4 raw = row[(4 * step + lane) ^ swizzled];  // the unit truncates: add half a place
    return make_uint4(raw.x + 0x1000U, raw.y + 0x1000U, raw.z + 0x1000U, raw.w + 0x1000U);
  }
  __device__ static void multiply(float (&sums)[4], std::uint32_t a0, std::uint32_t a1,
                                  std::uint32_t a2, std::uint32_t a3, std::uint32_t b0,
                                  std::uint32_t b1) {
    mma_tf32(sums, a0, a1, a2, a3, b0, b1);
  }
};

template <>
struct MatrixNumbers<std::int8_t> : MatrixNumbers<std::uint16_t> {  // widened to halves
  static constexpr int kSteps = 4;
  __device__ static int swizzle(int row) { return (row & 3) * 2; }
  __device__ static uint4 load(const uint4* row, int step, int lane, int swizzled) {
    const uint4* unit = row + ((2 * step + lane / 2) ^ swizzled);
    const uint2 bytes = reinterpret_cast<const uint2*>(unit)[lane % 2];
    const uint2 first = bytes_to_halves(bytes.x), second = bytes_to_halves(bytes.y);
    return make_uint4(first.x, first.y, second.x, second.y);
  }
};

// Queries as the matrix units take them: floats rounded to TF32, or scales[q] times halves.
struct PackedQueries {
  uint4* units = nullptr;
  float* scales = nullptr;
  int units_a_row = 0;
};

// Every query's candidates so far.
struct Lists {
  Key* keys = nullptr;       // (n_queries, kListRoom)
  int* counts = nullptr;     // appended, those beyond the room too
  float* bars = nullptr;     // what a score must exceed
  int* overflown = nullptr;  // whether some were lost
};

template <typename T>
int panel_units_a_row(int chunks) {
  return (chunks + kSliceUnits - 1) / kSliceUnits * 4 * MatrixNumbers<T>::kSteps;
}

// A warp to a query: packs it and begins its list, for a first range of n_first items.
template <typename T>
__global__ void pack_queries_kernel(Queries queries, PackedQueries packed, Lists lists,
                                    int n_first) {
  constexpr bool kHalves = !std::is_same_v<T, float>;
  constexpr int kNumbers = kHalves ? 8 : 4;  // of a unit
  const std::int64_t q = blockIdx.x;
  const int lane = static_cast<int>(threadIdx.x);
  const float* query = queries.row(q);
  float largest = 0.0F;
  for (std::int64_t j = lane; j < queries.stride; j += 32)
    largest = fmaxf(largest, fabsf(query[j]));
  for (int offset = 16; offset > 0; offset /= 2)
    largest = fmaxf(largest, __shfl_xor_sync(0xFFFFFFFFU, largest, offset));
  // A power of two from the largest one's exponent; a tiny query is left to be unsure of.
  const std::uint32_t exponent = __float_as_uint(largest) >> 23;
  const bool scaled = kHalves && exponent > 30 && exponent < 224;
  const float scale = scaled ? __uint_as_float(exponent << 23) : 1.0F;
  const float inverse = scaled ? __uint_as_float((254 - exponent) << 23) : 1.0F;
  for (int u = lane; u < packed.units_a_row; u += 32) {
    std::uint32_t words[4];
    for (int w = 0; w < 4; ++w) {
      const std::int64_t j = std::int64_t{u} * kNumbers + w * (kNumbers / 4);
      const float a = j < queries.stride ? query[j] : 0.0F;
      const float b = kHalves && j + 1 < queries.stride ? query[j + 1] : 0.0F;
      words[w] = kHalves ? float_to_half(a * inverse) |
                               static_cast<std::uint32_t>(float_to_half(b * inverse)) << 16
                         : __float_as_uint(a) + 0x1000U;
    }
    packed.units[q * packed.units_a_row + u] = make_uint4(words[0], words[1], words[2], words[3]);
  }
  if (lane == 0) {
    packed.scales[q] = scale;
    lists.counts[q] = n_first;
    lists.bars[q] = kMinusInfinity;
    lists.overflown[q] = 0;
  }
}

// The items from `begin` to `end` against the block's 32 kColumns queries. Of the first range,
// which the list has room for, every item's key is the list's, at its place.
template <typename T, int kColumns>
__global__ void __launch_bounds__(kPanelThreads, 1)
    panel_kernel(Rows<T> items, std::int64_t begin, std::int64_t end, Adjustments adjust,
                 std::int64_t n_queries, PackedQueries packed, Lists lists) {
  using Numbers = MatrixNumbers<T>;
  constexpr int kQueries = 32 * kColumns, kSliceSize = kPanelItems * kSliceUnits;
  __shared__ float bars[kQueries];
  __shared__ float scales[kQueries];
  uint4* const panel = dynamic_shared<uint4>();
  uint4* const slices = panel + kQueries * packed.units_a_row;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int row = lane / 4, column = lane % 4;  // of a fragment
  const int first_item = warp / 4 * 64, first_query = warp % 4 * 8 * kColumns;
  const std::int64_t panel_begin = std::int64_t{blockIdx.y} * kQueries;
  const bool first = begin == 0;

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
  const auto fetch = [&] {
    if (fetched_tile < n_tiles) {
      for (int u = thread; u < kSliceSize; u += kPanelThreads) {
        const int r = u / kSliceUnits, unit = u % kSliceUnits;
        const std::int64_t i = begin + fetched_tile * kPanelItems + r;
        const int chunk = fetched_slice * kSliceUnits + unit;
        const bool inside = i < end && chunk < items.chunks;
        copy_async(
            slices + fetched_to * kSliceSize + r * kSliceUnits + (unit ^ Numbers::swizzle(r)),
            inside ? items.row(i) + chunk : items.row(0), inside);
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
          const uint4 a = Numbers::load(low, step, column, swizzled);
          const uint4 c = Numbers::load(low + 8 * kSliceUnits, step, column, swizzled);
#pragma unroll
          for (int n = 0; n < kColumns; ++n) {
            Numbers::multiply(sums[m][n], a.x, c.x, a.y, c.y, b[n].x, b[n].y);
            Numbers::multiply(sums[m][n], a.z, c.z, a.w, c.w, b[n].z, b[n].w);
          }
        }
      }
    }
#pragma unroll
    for (int m = 0; m < 8; ++m) {  // rows `row` and `row + 8` of each 16
      const std::int64_t i = begin + tile * kPanelItems + first_item + 8 * m + row;
      const float scale = i < end && adjust.scales != nullptr ? __ldg(adjust.scales + i) : 1.0F;
      const float offsets[2] = {i < end ? adjust.offsets(0, i) : kMinusInfinity,
                                i < end ? adjust.offsets(1, i) : kMinusInfinity};
      const auto score = [&](int n, int c) {
        const float sum = sums[m / 2][n][m % 2 * 2 + c];
        return std::is_same_v<T, float>
                   ? sum + offsets[c]  // a panel begins with an even row
                   : fmaf(sum * scales[first_query + 8 * n + 2 * column + c], scale, offsets[c]);
      };
      bool any = first;
#pragma unroll
      for (int n = 0; n < kColumns; ++n)
#pragma unroll
        for (int c = 0; c < 2; ++c) any |= score(n, c) > bars[first_query + 8 * n + 2 * column + c];
      if (!any || i >= end) continue;
#pragma unroll 1
      for (int e = 0; e < 2 * kColumns; ++e) {  // rarely: one piece of code for all of them
        float mine = 0.0F;
#pragma unroll
        for (int n = 0; n < kColumns; ++n)
#pragma unroll
          for (int c = 0; c < 2; ++c) mine = e == 2 * n + c ? score(n, c) : mine;
        const int q = first_query + 8 * (e / 2) + 2 * column + e % 2;
        const bool above = mine > bars[q];
        if (!above && (!first || panel_begin + q >= n_queries)) continue;
        const std::int64_t at = first ? i : atomicAdd(&lists.counts[panel_begin + q], 1);
        if (at < kListRoom)
          lists.keys[(panel_begin + q) * kListRoom + at] =
              above ? key_of(mine, static_cast<std::int32_t>(i)) : kNone;
      }
    }
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
