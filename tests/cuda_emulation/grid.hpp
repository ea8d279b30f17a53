// A kernel's blocks, one after another.
#pragma once

#include <cuda_runtime.h>

#include <functional>

namespace cuda_emulation {

// Runs `thread` for each thread of each block, in random order, shared memory poisoned before each
// block. Throws std::runtime_error if a block does not end or writes behind its shared memory.
void run_grid(const cudaLaunchConfig_t& config, const std::function<void()>& thread);

}  // namespace cuda_emulation
