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

struct MatrixRegisters {
  std::uint32_t a[4];
  std::uint32_t b[2];
};

// To single precision, towards zero: what the matrix units do with their sums.
inline float cut_off(double value) {
  const float nearest = static_cast<float>(value);
  return std::fabs(static_cast<double>(nearest)) > std::fabs(value) ? std::nextafterf(nearest, 0.0F)
                                                                    : nearest;
}

// number(register, j): one of the kNumbers numbers of a register.
template <int kNumbers, typename Number>
void multiply_matrices(float (&sums)[4], const MatrixRegisters& mine, const char* name,
                       const Number& number) {
  const cuda_emulation::WarpObjects<MatrixRegisters> of(mine, name);
  const unsigned row = cuda_emulation::lane() / 4, column = cuda_emulation::lane() % 4;
  for (unsigned s = 0; s < 4; ++s) {
    double sum = static_cast<double>(sums[s]);
    for (unsigned half = 0; half < 2; ++half)
      for (unsigned place = 0; place < 4; ++place)
        for (int j = 0; j < kNumbers; ++j)
          sum += static_cast<double>(number(of[4 * row + place].a[2 * half + s / 2], j)) *
                 static_cast<double>(number(of[4 * (2 * column + s % 2) + place].b[half], j));
    sums[s] = cut_off(sum);
  }
  of.done();
}

inline void mma_tf32(float (&sums)[4], std::uint32_t a0, std::uint32_t a1, std::uint32_t a2,
                     std::uint32_t a3, std::uint32_t b0, std::uint32_t b1) {
  expect_compiled_for(80);
  multiply_matrices<1>(sums, {{a0, a1, a2, a3}, {b0, b1}}, "mma_tf32",
                       [](std::uint32_t bits, int) { return __uint_as_float(bits & 0xFFFFE000U); });
}

inline void mma_f16(float (&sums)[4], std::uint32_t a0, std::uint32_t a1, std::uint32_t a2,
                    std::uint32_t a3, std::uint32_t b0, std::uint32_t b1) {
  expect_compiled_for(80);
  multiply_matrices<2>(sums, {{a0, a1, a2, a3}, {b0, b1}}, "mma_f16",
                       [](std::uint32_t bits, int j) {
                         return half_to_float(static_cast<std::uint16_t>(bits >> (16 * j)));
                       });
}

}  // namespace cexnn::cuda
