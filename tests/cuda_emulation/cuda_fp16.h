// CUDA's half precision: stored in 16 bits, computed in float; every rounding to nearest, even.
#pragma once

#include <cuda_runtime.h>

struct alignas(2) __half {
  std::uint16_t bits;
};
using half = __half;

struct alignas(4) __half2 {
  __half x, y;
};
using half2 = __half2;

inline float __half2float(__half h) {
  const std::uint32_t sign = (h.bits & 0x8000U) << 16, rest = h.bits & 0x7fffU;
  if (rest >= 0x7c00U) return __uint_as_float(sign | 0x7f800000U | (rest & 0x3ffU) << 13);
  if (rest < 0x400U) {  // below the smallest normal one: a multiple of 2^-24
    const float size = static_cast<float>(rest) * 5.9604644775390625e-8F;
    return sign != 0 ? -size : size;
  }
  return __uint_as_float(sign | ((rest << 13) + (112U << 23)));
}

inline __half __float2half_rn(float x) {
  const std::uint32_t all = __float_as_uint(x), rest = all & 0x7fffffffU;
  const auto sign = static_cast<std::uint16_t>(all >> 16 & 0x8000U);
  const auto with = [sign](std::uint32_t low) {
    return __half{static_cast<std::uint16_t>(sign | low)};
  };
  if (rest > 0x7f800000U) return with(0x7fffU);
  if (rest >= 0x477ff000U) return with(0x7c00U);  // rounds to infinity from 65520 on
  if (rest < 0x38800000U) {                       // a multiple of 2^-24
    return with(static_cast<std::uint32_t>(lrintf(fabsf(x) * 16777216.0F)));
  }
  const std::uint32_t even = rest >> 13 & 1U;
  return with((rest + 0xfffU + even - (112U << 23)) >> 13);
}

inline __half __float2half(float x) { return __float2half_rn(x); }
inline std::uint16_t __half_as_ushort(__half h) { return h.bits; }
inline __half __ushort_as_half(std::uint16_t bits) { return {bits}; }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half __low2half(__half2 h) { return h.x; }
inline __half __high2half(__half2 h) { return h.y; }
inline float __low2float(__half2 h) { return __half2float(h.x); }
inline float __high2float(__half2 h) { return __half2float(h.y); }
inline float2 __half22float2(__half2 h) { return {__half2float(h.x), __half2float(h.y)}; }
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half(x), __float2half(y)}; }
inline __half2 __float22half2_rn(float2 v) { return __floats2half2_rn(v.x, v.y); }
