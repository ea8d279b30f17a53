// What only the device's own instructions do, as small functions of a thread or a warp. Included as
// <intrinsics.cuh>: a build that emulates the device brings its own file of that name.
#pragma once

#include <cuda_runtime.h>

namespace cexnn::cuda {

// The block's dynamic shared memory: as many bytes as launch() was given, aligned to 128.
template <typename T>
__device__ T* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char dynamic_shared_bytes[];
  return reinterpret_cast<T*>(dynamic_shared_bytes);
}

}  // namespace cexnn::cuda
