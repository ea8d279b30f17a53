// Numbers of items and queries as the matrix units take them (panels.cuh): halves.
#pragma once

#include "rank.cuh"
#include "rows.cuh"
#include "topk.cuh"

namespace cexnn::cuda {

constexpr int kSliceUnits = 8;   // of 16 bytes: what a slice has of a row
constexpr int kListRoom = 8192;  // candidates of a query

// A warp's halves of a row of items: of each 64 bytes of a query, those that meet them, in kSteps
// steps of a slice. A lane, of four to a row, has 16 bytes of halves, which `load` makes of what
// lies in shared memory.
template <typename T>
struct MatrixNumbers {  // halves
  static constexpr int kSteps = 2;
  __device__ static int swizzle(int row) { return (row & 1) * 4; }
  __device__ static uint4 load(const uint4* row, int step, int lane, int swizzled, float) {
    return row[(4 * step + lane) ^ swizzled];
  }
};

template <>
struct MatrixNumbers<float> {  // times a power of two
  static constexpr int kSteps = 1;
  __device__ static int swizzle(int row) { return row & 1; }
  __device__ static uint4 load(const uint4* row, int, int lane, int swizzled, float scale) {
    float numbers[8];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint4 raw = row[(2 * lane + half) ^ swizzled];
      numbers[4 * half] = scale * __uint_as_float(raw.x);
      numbers[4 * half + 1] = scale * __uint_as_float(raw.y);
      numbers[4 * half + 2] = scale * __uint_as_float(raw.z);
      numbers[4 * half + 3] = scale * __uint_as_float(raw.w);
    }
    return make_uint4(
        floats_to_halves(numbers[0], numbers[1]), floats_to_halves(numbers[2], numbers[3]),
        floats_to_halves(numbers[4], numbers[5]), floats_to_halves(numbers[6], numbers[7]));
  }
};

template <>
struct MatrixNumbers<std::int8_t> {
  static constexpr int kSteps = 4;
  __device__ static int swizzle(int row) { return (row & 3) * 2; }
  __device__ static uint4 load(const uint4* row, int step, int lane, int swizzled, float) {
    const uint4* unit = row + ((2 * step + lane / 2) ^ swizzled);
    const uint2 bytes = reinterpret_cast<const uint2*>(unit)[lane % 2];
    const uint2 first = bytes_to_halves(bytes.x), second = bytes_to_halves(bytes.y);
    return make_uint4(first.x, first.y, second.x, second.y);
  }
};

// Queries as the matrix units take them, halves: what these make of an item, which is multiplied by
// *item_scale, times scales[q] is the dot product.
struct PackedQueries {
  uint4* units = nullptr;
  float* scales = nullptr;
  float* item_scale = nullptr;
  int units_a_row = 0;  // whole slices of queries: eights
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
  const int slices = (chunks + kSliceUnits - 1) / kSliceUnits;
  return (slices * 4 * MatrixNumbers<T>::kSteps + 7) / 8 * 8;
}

// By what items are multiplied of which `largest` is the largest number: a power of two that brings
// it to 2^14 or more, below 2^15, or as near as it can.
__device__ inline float scale_to_halves(float largest) {
  const std::uint32_t exponent = __float_as_uint(largest) >> 23;
  return exponent == 0 ? 1.0F : __uint_as_float(min(268U - exponent, 253U) << 23);
}

// A warp to a query: packs it and begins its list, for a first range of n_first items. `largest` is
// the items' largest number, null where they are not scaled.
__global__ void pack_queries_kernel(Queries queries, const float* largest, PackedQueries packed,
                                    Lists lists, int n_first) {
  constexpr int kNumbers = 8;  // of a unit
  const std::int64_t q = blockIdx.x;
  const int lane = static_cast<int>(threadIdx.x);
  const float* query = queries.row(q);
  float largest_here = 0.0F;
  for (std::int64_t j = lane; j < queries.stride; j += 32)
    largest_here = fmaxf(largest_here, fabsf(query[j]));
  for (int offset = 16; offset > 0; offset /= 2)
    largest_here = fmaxf(largest_here, __shfl_xor_sync(0xFFFFFFFFU, largest_here, offset));
  // A power of two from the largest one's exponent; a tiny query is left to be unsure of.
  const std::uint32_t exponent = __float_as_uint(largest_here) >> 23;
  const bool scaled = exponent > 30 && exponent < 224;
  const float scale = scaled ? __uint_as_float(exponent << 23) : 1.0F;
  const float inverse = scaled ? __uint_as_float((254 - exponent) << 23) : 1.0F;
  for (int u = lane; u < packed.units_a_row; u += 32) {
    std::uint32_t words[4];
    for (int w = 0; w < 4; ++w) {
      const std::int64_t j = std::int64_t{u} * kNumbers + 2 * w;
      const float a = j < queries.stride ? query[j] : 0.0F;
      const float b = j + 1 < queries.stride ? query[j + 1] : 0.0F;
      words[w] = floats_to_halves(a * inverse, b * inverse);
    }
    packed.units[q * packed.units_a_row + u] = make_uint4(words[0], words[1], words[2], words[3]);
  }
  if (lane == 0) {
    const float item_scale = largest == nullptr ? 1.0F : scale_to_halves(*largest);
    packed.scales[q] = scale / item_scale;
    if (q == 0) *packed.item_scale = item_scale;
    lists.counts[q] = n_first;
    lists.bars[q] = kMinusInfinity;
    lists.overflown[q] = 0;
  }
}

}  // namespace cexnn::cuda
