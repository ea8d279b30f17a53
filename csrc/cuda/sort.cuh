// Sorting any number of keys, by all blocks.
#pragma once

#include "launch.cuh"
#include "runtime.cuh"
#include "topk.cuh"

namespace cexnn::cuda {
namespace {

constexpr int kSortedAtOnce = 2048;

// Of a bitonic sort of many keys: a block's kSortedAtOnce, for the sizes from `from` to `to`.
__global__ void sort_block_kernel(Key* keys, std::int64_t from, std::int64_t to) {
  __shared__ Key mine[kSortedAtOnce];
  const std::int64_t first = std::int64_t{blockIdx.x} * kSortedAtOnce;
  for (int i = static_cast<int>(threadIdx.x); i < kSortedAtOnce; i += static_cast<int>(blockDim.x))
    mine[i] = keys[first + i];
  __syncthreads();
  sort_keys(mine, kSortedAtOnce, first, from, to);
  for (int i = static_cast<int>(threadIdx.x); i < kSortedAtOnce; i += static_cast<int>(blockDim.x))
    keys[first + i] = mine[i];
}

// One step between pairs that are `stride` apart, a pair a thread.
__global__ void sort_step_kernel(Key* keys, std::int64_t size, std::int64_t stride) {
  const std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  order_pair(keys, 2 * i - (i & (stride - 1)), stride, 0, size);
}

// How many keys are sorted where there are n: those beyond are to be kNone.
std::int64_t padded_for_sort(std::int64_t n) {
  std::int64_t n_keys = kSortedAtOnce;
  while (n_keys < n) n_keys *= 2;
  return n_keys;
}

// The largest first; n_keys is a padded_for_sort.
void sort_all_keys(Key* keys, std::int64_t n_keys, const Stream& stream) {
  constexpr int kThreads = 256;
  const dim3 chunks = blocks_for(n_keys, kSortedAtOnce);
  launch(sort_block_kernel, chunks, dim3(kThreads), 0, stream, keys, std::int64_t{2},
         std::int64_t{kSortedAtOnce});
  for (std::int64_t size = 2 * kSortedAtOnce; size <= n_keys; size *= 2) {
    for (std::int64_t stride = size / 2; stride >= kSortedAtOnce; stride /= 2)
      launch(sort_step_kernel, blocks_for(n_keys / 2, kThreads), dim3(kThreads), 0, stream, keys,
             size, stride);
    launch(sort_block_kernel, chunks, dim3(kThreads), 0, stream, keys, size, size);
  }
}

}  // namespace
}  // namespace cexnn::cuda
