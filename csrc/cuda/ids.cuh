// Ids that the caller has on the device, looked at where they are.
#pragma once

#include <cstdint>

#include "launch.cuh"
#include "memory.cuh"
#include "runtime.cuh"

namespace cexnn::cuda {
namespace {

__global__ void check_ids_kernel(const std::int32_t* ids, std::int64_t n, std::int64_t least,
                                 std::int64_t end, int* bad) {
  const std::int64_t e = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (e < n && (ids[e] < least || ids[e] >= end)) *bad = 1;
}

// Whether all n of them are from `least` to `end` - 1; `bad` is room for the answer. One number
// crosses the bus. Waits.
bool all_within(const std::int32_t* ids, std::int64_t n, std::int64_t least, std::int64_t end,
                DeviceBuffer<int>& bad, const Stream& stream) {
  constexpr int kThreads = 256;
  bad.reserve(1);
  fill_zero(bad.data(), 1, stream);
  launch(check_ids_kernel, blocks_for(n, kThreads), dim3(kThreads), 0, stream, ids, n, least, end,
         bad.data());
  return fetch(bad.data(), stream) == 0;
}

}  // namespace
}  // namespace cexnn::cuda
