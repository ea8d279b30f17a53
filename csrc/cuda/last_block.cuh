// The block of a grid that is done last, which goes on with what all of them wrote.
#pragma once

#include <intrinsics.cuh>

namespace cexnn::cuda {

// Whether the calling block is the last of `n_blocks` to come here: it then sees what each of them
// wrote before. Every thread of a block calls it, once in a kernel. *arrived is zero before the
// first of them, and again after the last.
__device__ inline bool is_last_block(int* arrived, int n_blocks) {
  __shared__ int n_before;
  __threadfence();  // what this thread wrote is seen before the block is counted,
  __syncthreads();
  if (threadIdx.x == 0) n_before = atomicAdd(arrived, 1);
  __syncthreads();
  if (n_before + 1 < n_blocks) return false;
  __threadfence();  // and what the others wrote is read after they were
  if (threadIdx.x == 0) *arrived = 0;
  return true;
}

}  // namespace cexnn::cuda
