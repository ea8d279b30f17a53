// Kernels put on a stream.
#pragma once

#include <cstddef>
#include <cstdint>
#include <intrinsics.cuh>
#include <utility>

#include "runtime.cuh"

namespace cexnn::cuda {

// Allows the kernel all the dynamic shared memory that its static arrays leave: never less than a
// launch of the same kernel by another thread needs at the same time.
inline void allow_shared_memory(const void* kernel) {
  cudaFuncAttributes attributes{};
  check(cudaFuncGetAttributes(&attributes, kernel), "cudaFuncGetAttributes");
  const std::int64_t most = device_properties().shared_bytes_a_block -
                            static_cast<std::int64_t>(attributes.sharedSizeBytes);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(most)),
        "cudaFuncSetAttribute");
}

inline dim3 blocks_for(std::int64_t n_threads, int threads) {
  return dim3(static_cast<unsigned>((n_threads + threads - 1) / threads));
}

// Puts a kernel on the stream, with these attributes; an empty grid is no work. More than 48 KiB of
// shared memory is allowed for as needed.
template <typename... Parameters, typename... Arguments>
void launch_as(cudaLaunchAttribute* attributes, unsigned n_attributes,
               void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes,
               const Stream& stream, Arguments&&... arguments) {
  constexpr std::size_t kAllowed = 40 * 1024;  // the kernel's static arrays count among the 48
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (shared_bytes > kAllowed) allow_shared_memory(reinterpret_cast<const void*>(kernel));
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream.get();
  config.attrs = attributes;
  config.numAttrs = n_attributes;
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...),
        "cudaLaunchKernelEx");
}

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes,
            const Stream& stream, Arguments&&... arguments) {
  launch_as(nullptr, 0, kernel, grid, block, shared_bytes, stream,
            std::forward<Arguments>(arguments)...);
}

// The same for a kernel that calls wait_for_grid_before: where the device can, it starts while the
// one before it on the stream ends, or from where that one calls let_next_grid_start.
template <typename... Parameters, typename... Arguments>
void launch_early(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes,
                  const Stream& stream, Arguments&&... arguments) {
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  launch_as(&early, device_properties().instructions >= 90 ? 1 : 0, kernel, grid, block,
            shared_bytes, stream, std::forward<Arguments>(arguments)...);
}

}  // namespace cexnn::cuda
