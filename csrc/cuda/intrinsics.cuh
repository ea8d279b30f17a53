// What only the device's own instructions do, as small functions of a thread or a warp. Included as
// <intrinsics.cuh>: a build that emulates the device brings its own file of that name.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace cexnn::cuda {

// The block's dynamic shared memory: as many bytes as launch() was given, aligned to 128.
template <typename T>
__device__ T* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char dynamic_shared_bytes[];
  return reinterpret_cast<T*>(dynamic_shared_bytes);
}

// -- grids in a row ---------------------------------------------------------------------------
//
// From compute capability 9.0 on the blocks of a kernel that launch_early put on a stream may start
// before the grid put there before it has ended.

// Until that grid, and so all before it, has ended and what it wrote is seen. Every thread of such
// a kernel calls it, before it reads what others wrote and before it writes or returns.
__device__ inline void wait_for_grid_before() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// By every block: the grid that comes next may start once all of them were here.
__device__ inline void let_next_grid_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// -- memory -----------------------------------------------------------------------------------

// 16 bytes that are read once: they do not displace others from the first cache.
__device__ inline uint4 load_once(const uint4* from) {
  uint4 v;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "l"(from));
  return v;
}

// 16 bytes to shared memory, which are there once a wait_copies covers them; zeros if not `inside`.
__device__ inline void copy_async(uint4* shared, const uint4* from, bool inside) {
#if __CUDA_ARCH__ >= 800
  const auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(inside ? 16 : 0)
               : "memory");
#else
  *shared = inside ? *from : make_uint4(0, 0, 0, 0);
#endif
}

// The same for 1 or 4 floats.
template <int kFloats>
__device__ void copy_floats_async(float* shared, const float* from, bool inside) {
  if constexpr (kFloats == 4) {
    copy_async(reinterpret_cast<uint4*>(shared), reinterpret_cast<const uint4*>(from), inside);
  } else {
    static_assert(kFloats == 1);
#if __CUDA_ARCH__ >= 800
    const auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from),
                 "r"(inside ? 4 : 0)
                 : "memory");
#else
    *shared = inside ? *from : 0.0F;
#endif
  }
}

// Ends a group of this thread's copies, which may be empty.
__device__ inline void commit_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Until all of this thread's groups but the last kPending have arrived; others see them after a
// barrier.
template <int kPending>
__device__ void wait_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

// -- bulk copies ------------------------------------------------------------------------------
//
// From compute capability 9.0 on. A barrier lies in shared memory. Its phases, numbered from 0, end
// one after another: each when as many as it was started with have arrived, and all bytes that
// these expect have come.

using CopyBarrier = std::uint64_t;

// By one thread; others may use it after show_barriers by the same thread and a __syncthreads.
__device__ inline void start_barrier(CopyBarrier* barrier, int n_arrivals) {
#if __CUDA_ARCH__ >= 900
  const auto at = static_cast<unsigned>(__cvta_generic_to_shared(barrier));
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(at), "r"(n_arrivals) : "memory");
#else
  __trap();
#endif
}

__device__ inline void show_barriers() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#else
  __trap();
#endif
}

__device__ inline void arrive(CopyBarrier* barrier) {
#if __CUDA_ARCH__ >= 900
  const auto at = static_cast<unsigned>(__cvta_generic_to_shared(barrier));
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(at) : "memory");
#else
  __trap();
#endif
}

// Arrives, and the phase does not end before so many bytes more have come.
__device__ inline void arrive_expecting(CopyBarrier* barrier, std::uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
  const auto at = static_cast<unsigned>(__cvta_generic_to_shared(barrier));
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(bytes)
               : "memory");
#else
  __trap();
#endif
}

// Until a phase of that parity, 0 or 1, has ended, of which the next has not: what came in it, and
// what those who arrived did before, is seen.
__device__ inline void wait_for_phase(CopyBarrier* barrier, int parity) {
#if __CUDA_ARCH__ >= 900
  const auto at = static_cast<unsigned>(__cvta_generic_to_shared(barrier));
  unsigned ended = 0;
  while (ended == 0)
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.b32 %0, 1, 0, p;\n"
        "}"
        : "=r"(ended)
        : "r"(at), "r"(parity)
        : "memory");
#else
  __trap();
#endif
}

// Bytes from device memory to shared memory; all three are multiples of 16. They come in the
// barrier's phase.
__device__ inline void copy_bulk(void* shared, const void* from, std::uint32_t bytes,
                                 CopyBarrier* barrier) {
#if __CUDA_ARCH__ >= 900
  const auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  const auto at = static_cast<unsigned>(__cvta_generic_to_shared(barrier));
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(to),
      "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(at)
      : "memory");
#else
  __trap();
#endif
}

// -- numbers ----------------------------------------------------------------------------------

__device__ inline float half_to_float(std::uint16_t bits) {
  return __half2float(__ushort_as_half(bits));
}

// Two numbers, the first one in the lower half.
__device__ inline std::uint32_t floats_to_halves(float first, float second) {
  const __half2 both = __floats2half2_rn(first, second);
  return *reinterpret_cast<const std::uint32_t*>(&both);
}

// To the 10 bits after the point that matrix units take of a number, halves away from zero.
__device__ inline float round_to_tf32(float value) {
  return __uint_as_float((__float_as_uint(value) + 0x1000U) & 0xFFFFE000U);
}

// Four bytes, -127 to 127, the lowest first, to as many halves: as the last bits of 1024 plus 128.
__device__ inline uint2 bytes_to_halves(std::uint32_t bytes) {
  const std::uint32_t raised = bytes ^ 0x80808080U;
  const std::uint32_t words[2] = {__byte_perm(raised, 0x64646464U, 0x4140),
                                  __byte_perm(raised, 0x64646464U, 0x4342)};
  std::uint32_t out[2];
  for (int w = 0; w < 2; ++w) {
    const __half2 sum = *reinterpret_cast<const __half2*>(&words[w]);
    const __half2 difference = __hsub2(sum, __float2half2_rn(1024.0F + 128.0F));
    out[w] = *reinterpret_cast<const std::uint32_t*>(&difference);
  }
  return make_uint2(out[0], out[1]);
}

// -- matrix units -----------------------------------------------------------------------------
//
// sums (16, 8) += a (16, k) b (k, 8) by a warp, in single precision. Lane 4 r + c holds, of `sums`,
// rows r and r + 8 at columns 2 c and 2 c + 1; of `a` rows r (a0, a2) and r + 8 (a1, a3), of `b`
// column r, both at places c (a0, a1, b0) and c + 4 (a2, a3, b1) of k / 8-fold numbers. From
// compute capability 8.0 on.

// k = 8, TF32: floats of which the last 13 bits are ignored.
__device__ inline void mma_tf32(float (&sums)[4], std::uint32_t a0, std::uint32_t a1,
                                std::uint32_t a2, std::uint32_t a3, std::uint32_t b0,
                                std::uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm volatile(  // stays where the whole warp is
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#else
  __trap();
#endif
}

// k = 16, halves, two to a register.
__device__ inline void mma_f16(float (&sums)[4], std::uint32_t a0, std::uint32_t a1,
                               std::uint32_t a2, std::uint32_t a3, std::uint32_t b0,
                               std::uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#else
  __trap();
#endif
}

}  // namespace cexnn::cuda
