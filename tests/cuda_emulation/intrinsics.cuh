// The device's own instructions (csrc/cuda/intrinsics.cuh) by plain arithmetic of the same
// rounding.
#pragma once

#include <cuda_runtime.h>

namespace cexnn::cuda {

template <typename T>
T* dynamic_shared() {
  return static_cast<T*>(cuda_emulation::dynamic_shared_bytes());
}

}  // namespace cexnn::cuda
