// Rows of numbers of 4, 2 or 1 bytes, read 16 bytes at a time, and their dot products with a query.
//
// A row takes whole chunks of 16 bytes, zero beyond its factors. A group of 8 or 32 lanes shares
// it: lane l multiplies chunks l, l + lanes, ... one number after the other, and the lanes' sums
// are added pairwise, the farther lanes first. So the sum of a row depends on nothing but the row,
// the query and their length, wherever it is taken.
#pragma once

#include <cstdint>
#include <intrinsics.cuh>

namespace cexnn::cuda {

// Item factors on the device: 32-bit floats, halves by their bits, or bytes.
template <typename T>
struct Rows {
  const T* data = nullptr;
  std::int64_t n = 0;
  std::int64_t stride = 0;  // numbers from row to row: whole chunks
  int chunks = 0;

  __device__ const uint4* row(std::int64_t i) const {
    return reinterpret_cast<const uint4*>(data + i * stride);
  }
};

template <typename T>
constexpr int kChunk = 16 / static_cast<int>(sizeof(T));  // numbers in 16 bytes

// Lanes that share a row of so many chunks.
__host__ __device__ inline int lanes_of(int chunks) { return chunks <= 32 ? 8 : 32; }

__device__ inline void widen(const uint4& raw, float (&out)[4], const float*) {
  out[0] = __uint_as_float(raw.x);
  out[1] = __uint_as_float(raw.y);
  out[2] = __uint_as_float(raw.z);
  out[3] = __uint_as_float(raw.w);
}

__device__ inline void widen(const uint4& raw, float (&out)[8], const std::uint16_t*) {
  const std::uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    out[2 * w] = half_to_float(static_cast<std::uint16_t>(words[w] & 0xFFFFU));
    out[2 * w + 1] = half_to_float(static_cast<std::uint16_t>(words[w] >> 16));
  }
}

// 128 plus a byte, as the last bits of the float 2^23: no conversion, which is a quarter as fast.
__device__ inline void widen(const uint4& raw, float (&out)[16], const std::int8_t*) {
  const std::uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    const std::uint32_t raised = words[w] ^ 0x80808080U;
#pragma unroll
    for (int b = 0; b < 4; ++b)
      out[4 * w + b] =
          __uint_as_float(0x4B000000U | (raised >> (8 * b) & 0xFFU)) - (8388608.0F + 128.0F);
  }
}

// sum + a chunk of a row times the query's numbers there.
template <typename T>
__device__ float add_products(const uint4& raw, const float* query, float sum) {
  float numbers[kChunk<T>];
  widen(raw, numbers, static_cast<const T*>(nullptr));
#pragma unroll
  for (int j = 0; j < kChunk<T>; ++j) sum = fmaf(query[j], numbers[j], sum);
  return sum;
}

// The dot product, in every lane of the group; `lane` counts within it. All lanes of the warp call.
template <typename T>
__device__ float dot(const uint4* row, const float* query, int chunks, int lanes, int lane) {
  float sum = 0.0F;
#pragma unroll 4
  for (int t = lane; t < chunks; t += lanes)
    sum = add_products<T>(row[t], query + std::int64_t{t} * kChunk<T>, sum);
  for (int offset = lanes / 2; offset > 0; offset /= 2)
    sum += __shfl_xor_sync(0xFFFFFFFFU, sum, offset);
  return sum;
}

}  // namespace cexnn::cuda
