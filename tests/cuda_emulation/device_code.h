// What kernels call, on the fibers: barriers, exchanges within a warp, atomics, arithmetic.
#pragma once

#include <math.h>
#include <stdint.h>

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "fibers.hpp"
#include "vector_types.h"

#define __host__
#define __device__
#define __global__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
#define __cluster_dims__(...)
// One block at a time; the thread-local storage of the CPU thread that runs it is poisoned first.
#define __shared__ static thread_local

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

// -- barriers -----------------------------------------------------------------------------------

inline void __syncthreads() { cuda_emulation::sync_block(); }

namespace cuda_emulation {

// How many threads of the block say yes.
inline int count_block(bool yes) {
  static int count;
  sync_block();
  count = 0;
  sync_block();
  count += yes ? 1 : 0;
  sync_block();
  return count;
}

// What a lane of a warp gives to the others, and what it gets from them.
struct Exchange {
  std::uint64_t value = 0;    // in: what this lane gives; out: what `source` gave
  unsigned source = 0;        // lane of the warp
  std::uint32_t nonzero = 0;  // out: the lanes of the mask that gave another value than 0
};

inline void exchange(std::uint32_t mask, void* const* of_lanes) {
  std::uint64_t given[32];
  std::uint32_t nonzero = 0;
  for (std::uint32_t left = mask; left != 0; left &= left - 1) {
    const int lane = __builtin_ctz(left);
    given[lane] = static_cast<const Exchange*>(of_lanes[lane])->value;
    nonzero |= static_cast<std::uint32_t>(given[lane] != 0) << lane;
  }
  for (std::uint32_t left = mask; left != 0; left &= left - 1) {
    auto& theirs = *static_cast<Exchange*>(of_lanes[__builtin_ctz(left)]);
    if ((mask >> theirs.source & 1) == 0) fail("a lane reads one that is not in the mask");
    theirs.value = given[theirs.source];
    theirs.nonzero = nonzero;
  }
}

template <typename T>
T exchange_warp(unsigned mask, const char* operation, T value, unsigned source) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8);
  Exchange mine;
  std::memcpy(&mine.value, &value, sizeof value);
  mine.source = source;
  sync_warp(mask, operation, &mine, exchange);
  std::memcpy(&value, &mine.value, sizeof value);
  return value;
}

inline unsigned lane() { return current_thread() % 32; }

inline std::uint32_t ballot(unsigned mask, const char* operation, bool yes) {
  Exchange mine;
  mine.value = yes ? 1 : 0;
  mine.source = lane();
  sync_warp(mask, operation, &mine, exchange);
  return mine.nonzero;
}

}  // namespace cuda_emulation

inline int __syncthreads_count(int yes) { return cuda_emulation::count_block(yes != 0); }
inline int __syncthreads_or(int yes) { return cuda_emulation::count_block(yes != 0) > 0; }
inline int __syncthreads_and(int yes) { return cuda_emulation::count_block(yes == 0) == 0; }

inline void __syncwarp(unsigned mask = ~0U) {
  cuda_emulation::sync_warp(mask, "__syncwarp", nullptr, [](std::uint32_t, void* const*) {});
}
inline unsigned __ballot_sync(unsigned mask, int yes) {
  return cuda_emulation::ballot(mask, "__ballot_sync", yes != 0);
}
inline int __any_sync(unsigned mask, int yes) {
  return cuda_emulation::ballot(mask, "__any_sync", yes != 0) != 0;
}
inline int __all_sync(unsigned mask, int yes) {
  return cuda_emulation::ballot(mask, "__all_sync", yes == 0) == 0;
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const unsigned lane = cuda_emulation::lane(), n = static_cast<unsigned>(width);
  const unsigned from = lane / n * n + static_cast<unsigned>(source) % n;
  return cuda_emulation::exchange_warp(mask, "__shfl_sync", value, from);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  const unsigned lane = cuda_emulation::lane(), n = static_cast<unsigned>(width);
  const unsigned from = lane ^ static_cast<unsigned>(bits);
  return cuda_emulation::exchange_warp(mask, "__shfl_xor_sync", value,
                                       from / n <= lane / n ? from : lane);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
  const unsigned lane = cuda_emulation::lane(), n = static_cast<unsigned>(width);
  return cuda_emulation::exchange_warp(mask, "__shfl_down_sync", value,
                                       lane % n + by < n ? lane + by : lane);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
  const unsigned lane = cuda_emulation::lane(), n = static_cast<unsigned>(width);
  return cuda_emulation::exchange_warp(mask, "__shfl_up_sync", value,
                                       lane % n >= by ? lane - by : lane);
}

inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __nanosleep(unsigned) {}
[[noreturn]] inline void __trap() { cuda_emulation::fail("__trap()"); }

// -- atomics: fibers change only at barriers ------------------------------------------------------

namespace cuda_emulation {
template <typename T>
T replace(T* at, T value) {
  const T old = *at;
  *at = value;
  return old;
}
template <typename T>
using Same = std::enable_if_t<true, T>;  // not deduced
}  // namespace cuda_emulation

template <typename T>
T atomicAdd(T* at, cuda_emulation::Same<T> by) {
  return cuda_emulation::replace(at, static_cast<T>(*at + by));
}
template <typename T>
T atomicSub(T* at, cuda_emulation::Same<T> by) {
  return cuda_emulation::replace(at, static_cast<T>(*at - by));
}
template <typename T>
T atomicMax(T* at, cuda_emulation::Same<T> value) {
  return cuda_emulation::replace(at, std::max(*at, value));
}
template <typename T>
T atomicMin(T* at, cuda_emulation::Same<T> value) {
  return cuda_emulation::replace(at, std::min(*at, value));
}
template <typename T>
T atomicOr(T* at, cuda_emulation::Same<T> value) {
  return cuda_emulation::replace(at, static_cast<T>(*at | value));
}
template <typename T>
T atomicAnd(T* at, cuda_emulation::Same<T> value) {
  return cuda_emulation::replace(at, static_cast<T>(*at & value));
}
template <typename T>
T atomicExch(T* at, cuda_emulation::Same<T> value) {
  return cuda_emulation::replace(at, value);
}
template <typename T>
T atomicCAS(T* at, cuda_emulation::Same<T> expected, cuda_emulation::Same<T> value) {
  return cuda_emulation::replace(at, *at == expected ? value : *at);
}

// -- loads, bits, arithmetic ----------------------------------------------------------------------

template <typename T>
T __ldg(const T* at) {
  return *at;
}
template <typename T>
T __ldcs(const T* at) {
  return *at;
}
template <typename T>
T __ldcg(const T* at) {
  return *at;
}
template <typename T>
void __stcs(T* at, T value) {
  *at = value;
}
template <typename T>
void __stcg(T* at, T value) {
  *at = value;
}

namespace cuda_emulation {
template <typename To, typename From>
To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
}  // namespace cuda_emulation

inline int __float_as_int(float x) { return cuda_emulation::bits_as<int>(x); }
inline unsigned __float_as_uint(float x) { return cuda_emulation::bits_as<unsigned>(x); }
inline float __int_as_float(int x) { return cuda_emulation::bits_as<float>(x); }
inline float __uint_as_float(unsigned x) { return cuda_emulation::bits_as<float>(x); }
inline long long __double_as_longlong(double x) { return cuda_emulation::bits_as<long long>(x); }
inline double __longlong_as_double(long long x) { return cuda_emulation::bits_as<double>(x); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __clzll(long long x) {
  return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x));
}
inline unsigned __brev(unsigned x) {
  unsigned y = 0;
  for (int bit = 0; bit < 32; ++bit) y |= (x >> bit & 1) << (31 - bit);
  return y;
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<unsigned long long>(a) * b >> 32);
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const unsigned long long bytes = static_cast<unsigned long long>(y) << 32 | x;
  unsigned out = 0;
  for (int i = 0; i < 4; ++i)
    out |= static_cast<unsigned>(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
  return out;
}
inline int __dp4a(int a, int b, int sum) {
  for (int i = 0; i < 4; ++i)
    sum += static_cast<signed char>(a >> 8 * i) * static_cast<signed char>(b >> 8 * i);
  return sum;
}

inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0F / a; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __frsqrt_rn(float a) { return 1.0F / sqrtf(a); }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline float rsqrtf(float a) { return 1.0F / sqrtf(a); }
inline double rsqrt(double a) { return 1.0 / sqrt(a); }
inline int __float2int_rn(float a) { return static_cast<int>(lrintf(a)); }
inline float __int2float_rn(int a) { return static_cast<float>(a); }

template <typename A, typename B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  return static_cast<T>(b) < static_cast<T>(a) ? static_cast<T>(b) : static_cast<T>(a);
}
template <typename A, typename B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(b) : static_cast<T>(a);
}
