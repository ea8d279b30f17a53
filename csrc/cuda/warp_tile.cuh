// A tile of products that a warp keeps in registers, by tensor cores or by plain arithmetic.
//
// Both have: add<k>(a, b), tile[m][n] += sum over k of a(m, k) b(n, k), where every lane may read
// any a(m, k), m < 32, and b(n, k), n < kCols; and for_each(f), f(m, n, value) over the elements
// this lane holds. What a and b read from shared memory is free of bank conflicts where eight rows
// m and four columns k that follow one another lie in 32 banks.
#pragma once

#include <intrinsics.cuh>

namespace cexnn::cuda {
namespace {

// Each number as the sum of two in TF32, and three products of the four: what is left out is
// 2^-22 of a product. Matrix units cut their sums off rather than round them, which in a long sum
// adds up; so what eight columns give is added to the rest by itself, rounded. With such sums, but
// on the CPU (tests/cuda_emulation), rows of up to 1,000 scores and 256 factors, at condition
// numbers of about ten, come out of it within 4e-7 of their length of those in double precision;
// out of a PlainTile within 6e-7.
template <int kCols>
class TensorTile {
 public:
  static constexpr int kBlocks = 2;  // of 256 threads, for the registers of a multiprocessor

  __device__ void clear() {
    for_each([](int, int, float& value) { value = 0.0F; });
  }

  template <int kDepth, typename A, typename B>
  __device__ void add(const A& a, const B& b) {
    const int lane = static_cast<int>(threadIdx.x) % 32, group = lane / 4, in_group = lane % 4;
#pragma unroll 1
    for (int k = in_group; k < kDepth + in_group; k += 8) {
      Split left[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          left[i][e] = split(a(16 * i + group + e % 2 * 8, k + e / 2 * 4));
#pragma unroll
      for (int j = 0; j < kCols / 8; ++j) {
        const Split first = split(b(8 * j + group, k)), second = split(b(8 * j + group, k + 4));
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float sums[4] = {};
          multiply(sums, left[i], &Split::low, first.high, second.high);
          multiply(sums, left[i], &Split::high, first.low, second.low);
          multiply(sums, left[i], &Split::high, first.high, second.high);
#pragma unroll
          for (int e = 0; e < 4; ++e) acc_[i][j][e] += sums[e];
        }
      }
    }
  }

  template <typename F>
  __device__ void for_each(const F& f) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < kCols / 8; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          f(16 * i + lane / 4 + e / 2 * 8, 8 * j + lane % 4 * 2 + e % 2, acc_[i][j][e]);
  }

 private:
  struct Split {
    float high, low;
  };
  __device__ static Split split(float x) {
    const float high = round_to_tf32(x);
    return {high, x - high};
  }
  __device__ static void multiply(float (&sums)[4], const Split (&a)[4], float Split::* part,
                                  float b0, float b1) {
    mma_tf32(sums, __float_as_uint(a[0].*part), __float_as_uint(a[1].*part),
             __float_as_uint(a[2].*part), __float_as_uint(a[3].*part), __float_as_uint(b0),
             __float_as_uint(b1));
  }

  float acc_[2][kCols / 8][4];
};

// Single precision, fused multiply-adds.
template <int kCols>
class PlainTile {
 public:
  static constexpr int kBlocks = 1;  // shared memory allows no more where this is used

  __device__ void clear() {
    for_each([](int, int, float& value) { value = 0.0F; });
  }

  template <int kDepth, typename A, typename B>
  __device__ void add(const A& a, const B& b) {
    const int lane = static_cast<int>(threadIdx.x) % 32, row = lane / 8, col = lane % 8;
#pragma unroll 4
    for (int k = 0; k < kDepth; ++k) {
      float left[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) left[i] = a(row + 4 * i, k);
#pragma unroll
      for (int j = 0; j < kCols / 8; ++j) {
        const float right = b(col + 8 * j, k);
#pragma unroll
        for (int i = 0; i < 8; ++i) acc_[i][j] = fmaf(left[i], right, acc_[i][j]);
      }
    }
  }

  template <typename F>
  __device__ void for_each(const F& f) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int i = 0; i < 8; ++i)
#pragma unroll
      for (int j = 0; j < kCols / 8; ++j) f(lane / 8 + 4 * i, lane % 8 + 8 * j, acc_[i][j]);
  }

 private:
  float acc_[8][kCols / 8];
};

}  // namespace
}  // namespace cexnn::cuda
