// The device's own instructions (csrc/cuda/intrinsics.cuh) by plain arithmetic of the same
// rounding.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "copies.hpp"

namespace cexnn::cuda {

template <typename T>
T* dynamic_shared() {
  return static_cast<T*>(cuda_emulation::dynamic_shared_bytes());
}

// As instructions end that the device or the compiler's output has not.
inline void expect_compiled_for(int capability) {
  if (cuda_emulation::compiled_for() < capability) __trap();
}

// -- grids in a row ---------------------------------------------------------------------------

inline void wait_for_grid_before() { cuda_emulation::wait_for_grid_before(); }
inline void let_next_grid_start() {}

// -- memory -----------------------------------------------------------------------------------

inline uint4 load_once(const uint4* from) { return *from; }

// Arrives when it is waited for, and not before.
inline void copy_async(uint4* shared, const uint4* from, bool inside) {
  const uint4 value = inside ? *from : make_uint4(0, 0, 0, 0);
  cuda_emulation::copy_later(shared, &value, sizeof value);
}
template <int kFloats>
void copy_floats_async(float* shared, const float* from, bool inside) {
  float values[kFloats] = {};
  if (inside) std::memcpy(values, from, sizeof values);
  cuda_emulation::copy_later(shared, values, sizeof values);
}
inline void commit_copies() { cuda_emulation::commit_copies(); }
template <int kPending>
void wait_copies() {
  cuda_emulation::wait_copies(kPending);
}

// -- bulk copies ------------------------------------------------------------------------------

using CopyBarrier = std::uint64_t;

inline void start_barrier(CopyBarrier* barrier, int n_arrivals) {
  expect_compiled_for(90);
  cuda_emulation::start_barrier(barrier, n_arrivals);
}
inline void show_barriers() {}
inline void arrive(CopyBarrier* barrier) { cuda_emulation::arrive(barrier, 0); }
inline void arrive_expecting(CopyBarrier* barrier, std::uint32_t bytes) {
  cuda_emulation::arrive(barrier, bytes);
}
inline void wait_for_phase(CopyBarrier* barrier, int parity) {
  cuda_emulation::wait_for_phase(barrier, parity);
}
inline void copy_bulk(void* shared, const void* from, std::uint32_t bytes, CopyBarrier* barrier) {
  cuda_emulation::copy_bulk(shared, from, bytes, barrier);
}

// -- numbers ----------------------------------------------------------------------------------

inline float half_to_float(std::uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
inline std::uint16_t float_to_half(float value) { return __half_as_ushort(__float2half_rn(value)); }
inline std::uint32_t floats_to_halves(float first, float second) {
  return float_to_half(first) | static_cast<std::uint32_t>(float_to_half(second)) << 16;
}

inline float round_to_tf32(float value) {
  return __uint_as_float((__float_as_uint(value) + 0x1000U) & 0xFFFFE000U);
}

inline uint2 bytes_to_halves(std::uint32_t bytes) {
  std::uint32_t halves[4];
  for (int b = 0; b < 4; ++b)
    halves[b] = float_to_half(static_cast<std::int8_t>(bytes >> (8 * b) & 0xFFU));
  return make_uint2(halves[0] | halves[1] << 16, halves[2] | halves[3] << 16);
}

// -- matrix units -----------------------------------------------------------------------------

// What a lane brings: its part of the matrices and of their product.
struct MatrixParts {
  std::uint32_t a[4];
  std::uint32_t b[2];
  float* sums;
};

// To single precision, towards zero: what the matrix units do with their sums.
inline float cut_off(double value) {
  const float nearest = static_cast<float>(value);
  if (!(std::fabs(static_cast<double>(nearest)) > std::fabs(value))) return nearest;
  return __uint_as_float(__float_as_uint(nearest) - 1);
}

// The whole product, by one of the lanes. Format::number(register, j): one of the kNumbers numbers
// of a register.
template <typename Format>
void multiply_matrices(std::uint32_t, void* const* of_lanes) {
  constexpr int kDepth = 8 * Format::kNumbers;
  double a[16][kDepth], b[kDepth][8];
  const auto part = [&](int lane) { return static_cast<const MatrixParts*>(of_lanes[lane]); };
  for (int lane = 0; lane < 32; ++lane) {
    const int row = lane / 4, place = lane % 4;
    for (int half = 0; half < 2; ++half)
      for (int j = 0; j < Format::kNumbers; ++j) {
        const int at = (4 * half + place) * Format::kNumbers + j;
        a[row][at] = Format::number(part(lane)->a[2 * half], j);
        a[row + 8][at] = Format::number(part(lane)->a[2 * half + 1], j);
        b[at][row] = Format::number(part(lane)->b[half], j);
      }
  }
  for (int row = 0; row < 16; ++row) {
    double sums[8];
    const auto theirs = [&](int column) {
      return part(row % 8 * 4 + column / 2)->sums + row / 8 * 2 + column % 2;
    };
    for (int column = 0; column < 8; ++column) sums[column] = *theirs(column);
    for (int at = 0; at < kDepth; ++at)
      for (int column = 0; column < 8; ++column) sums[column] += a[row][at] * b[at][column];
    for (int column = 0; column < 8; ++column) *theirs(column) = cut_off(sums[column]);
  }
}

struct Tf32 {
  static constexpr int kNumbers = 1;
  static double number(std::uint32_t bits, int) { return __uint_as_float(bits & 0xFFFFE000U); }
};
struct Halves {
  static constexpr int kNumbers = 2;
  static double number(std::uint32_t bits, int j) {
    return half_to_float(static_cast<std::uint16_t>(bits >> (16 * j)));
  }
};

inline void mma_tf32(float (&sums)[4], std::uint32_t a0, std::uint32_t a1, std::uint32_t a2,
                     std::uint32_t a3, std::uint32_t b0, std::uint32_t b1) {
  expect_compiled_for(80);
  MatrixParts mine{{a0, a1, a2, a3}, {b0, b1}, sums};
  cuda_emulation::sync_warp(~0U, "mma_tf32", &mine, multiply_matrices<Tf32>);
}

inline void mma_f16(float (&sums)[4], std::uint32_t a0, std::uint32_t a1, std::uint32_t a2,
                    std::uint32_t a3, std::uint32_t b0, std::uint32_t b1) {
  expect_compiled_for(80);
  MatrixParts mine{{a0, a1, a2, a3}, {b0, b1}, sums};
  cuda_emulation::sync_warp(~0U, "mma_f16", &mine, multiply_matrices<Halves>);
}

}  // namespace cexnn::cuda
